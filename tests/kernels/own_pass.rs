//! Passes of an app's own: what was dropped before the app submits them is overwritten by nobody.

use crate::common::{bits, gpu_with, small, wait, Rng};
use latten::{wgpu, CacheOptions, DType, Decode, DecodeArgs, Gpu, GpuOptions, PagedKvCache, Pages, SeqId, Tensor};

const SCALE: f32 = 0.25;

/// Two sequences of different content in one cache, each with one token reserved.
struct Two {
    gpu: Gpu,
    cache: PagedKvCache,
    decode: Decode,
    q: Tensor,
    sequences: [SeqId; 2],
}

impl Two {
    fn new() -> Self {
        let (gpu, heads) = (gpu_with(GpuOptions::default()), small());
        let mut cache =
            PagedKvCache::new(&gpu, heads, CacheOptions::new(DType::F16, Pages { count: 64, size: 4, layers: 1 }))
                .unwrap();
        let decode = Decode::new(&gpu, heads, DType::F16).unwrap();
        let mut rng = Rng(64);
        let sequences = [cache.insert(), cache.insert()];
        for (id, tokens) in sequences.into_iter().zip([9, 21]) {
            cache.reserve(&[id], tokens).unwrap();
            let kv = rng.values(tokens * heads.kv_dim());
            let kv = Tensor::from_slice(&gpu, &[tokens, heads.kv_dim()], &kv, DType::F32).unwrap();
            cache.append(0, &[id], &kv).unwrap();
            cache.commit(&[id], tokens - 1).unwrap();
        }
        cache.reserve(&sequences, 1).unwrap();
        let q = rng.values(heads.q_heads() * heads.q_dim());
        let q = Tensor::from_slice(&gpu, &[1, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
        gpu.submit().unwrap();
        Two { gpu, cache, decode, q, sequences }
    }

    /// One sequence's results, by latten's own pass.
    fn run(&self, sequence: usize) -> Vec<u32> {
        let plan = self.decode.plan(&self.cache, &[self.sequences[sequence]]).unwrap();
        let result = self.decode.run(DecodeArgs::new(&plan, &self.cache.layer(0).unwrap(), &self.q, SCALE)).unwrap();
        bits(&wait(self.gpu.download(&result.out)).unwrap())
    }

    /// The same recorded into a pass of an app's, not submitted: plan and output are dropped here. Returns where the results go.
    fn encode(&self, sequence: usize) -> (wgpu::CommandBuffer, wgpu::Buffer) {
        let plan = self.decode.plan(&self.cache, &[self.sequences[sequence]]).unwrap();
        let output = self.decode.output(plan.tokens()).unwrap();
        let layer = self.cache.layer(0).unwrap();
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        self.decode.encode(&mut pass, DecodeArgs::new(&plan, &layer, &self.q, SCALE), &output).unwrap();
        drop(pass);
        (encoder.finish(), output.out.wgpu_buffer().clone())
    }

    fn read(&self, buffer: wgpu::Buffer) -> Vec<u32> {
        let heads = small();
        let shape = [1, heads.q_heads(), heads.v_dim()];
        let tensor = Tensor::from_wgpu(&self.gpu, buffer, &shape, DType::F32).unwrap();
        bits(&wait(self.gpu.download(&tensor)).unwrap())
    }
}

#[test]
fn what_is_dropped_before_the_app_submits_is_not_overwritten() {
    let two = Two::new();
    let want = [two.run(0), two.run(1)];
    assert_ne!(want[0], want[1]);

    let (commands, results) = two.encode(0);
    // A plan is uploaded at once, and the queue's writes come before the app's commands.
    let plan = two.decode.plan(&two.cache, &[two.sequences[1]]).unwrap();
    let later = two.decode.run(DecodeArgs::new(&plan, &two.cache.layer(0).unwrap(), &two.q, SCALE)).unwrap();
    two.gpu.submit().unwrap();
    two.gpu.queue().submit([commands]);
    assert_eq!(two.read(results), want[0], "the app's pass read another plan");
    assert_eq!(bits(&wait(two.gpu.download(&later.out)).unwrap()), want[1], "the app's pass wrote a later output");

    // Several that are under way at once.
    let under_way: Vec<_> = (0..8).map(|i| two.encode(i % 2)).collect();
    assert_eq!(two.run(0), want[0]);
    let mut results = Vec::new();
    for (commands, buffer) in under_way {
        two.gpu.queue().submit([commands]);
        results.push(buffer);
    }
    for (i, buffer) in results.into_iter().enumerate() {
        assert_eq!(two.read(buffer), want[i % 2], "pass {i}");
    }
}

#[test]
fn once_told_of_its_submits_an_apps_loop_allocates_nothing() {
    let two = Two::new();
    let step = |told: bool| {
        let (commands, _) = two.encode(0);
        two.gpu.queue().submit([commands]);
        if told {
            two.gpu.passes_submitted();
        }
        two.gpu.counters().buffers
    };
    let first = step(true);
    for _ in 0..20 {
        assert_eq!(step(true), first);
    }
    // Plan, output and log-sum-exp.
    step(false);
    assert_eq!(step(false), first + 3, "not told, it must not reuse");
    // What latten's own pass uses is pooled as ever, whatever an app has said.
    two.run(0);
    let own = two.gpu.counters().buffers;
    for _ in 0..20 {
        two.run(1);
    }
    assert_eq!(two.gpu.counters().buffers, own);
}
