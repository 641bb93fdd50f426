//! What the kernel tests share: the adapter, seeded inputs, a case and its comparison with the f64 reference.

use latten::attention::{KvSource, SeqView};
use latten::reference;
use latten::{DType, Decode, Gpu, GpuOptions, HeadLayout, PagedKvCache, Pages, SeqId, SplitPolicy, Tensor};
use std::sync::OnceLock;

/// The adapter under test. No adapter is a failure, never a silent pass.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let gpu = gpu_with(GpuOptions::default());
        eprintln!("adapter: {}", gpu.capabilities().adapter);
        gpu
    })
}

pub fn gpu_with(options: GpuOptions) -> Gpu {
    pollster::block_on(Gpu::with_options(options)).expect("a GPU adapter, software ones count: ./dev installs one")
}

/// SplitMix64: seeded, the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal, on a 1/256 grid and below 4: exact in f16 and f32.
    pub fn value(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0;
        ((sum * 256.0).round() / 256.0).clamp(-1018.0 / 256.0, 1018.0 / 256.0) as f32
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// One decode to check: a ragged batch of `(cached tokens with the new ones, new tokens)`.
#[derive(Debug, Clone)]
pub struct Case {
    pub heads: HeadLayout,
    pub dtype: DType,
    pub page_size: usize,
    pub lengths: Vec<(usize, usize)>,
    pub policy: SplitPolicy,
    pub seed: u64,
}

/// Inputs of one sequence, and what the device made of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// (kv_len, kv_dim)
    pub rows: Vec<f32>,
    /// (q_len, q_heads, q_dim)
    pub q: Vec<f32>,
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
}

pub fn scale(heads: &HeadLayout) -> f32 {
    (heads.q_dim() as f32).powf(-0.5)
}

impl Case {
    /// Random inputs, one sequence after the other.
    pub fn draw(&self) -> Vec<Sequence> {
        let draw = |(i, &(kv_len, q_len)): (usize, &(usize, usize))| {
            let mut rng = Rng(self.seed + 1000 * i as u64);
            let rows = rng.values(kv_len * self.heads.kv_dim());
            let q = rng.values(q_len * self.heads.q_heads() * self.heads.q_dim());
            Sequence { rows, q, out: vec![], lse: vec![] }
        };
        self.lengths.iter().enumerate().map(draw).collect()
    }

    /// A cache whose memory holds `poison` (repeated) before the sequences are appended, their pages interleaved.
    pub fn fill(&self, gpu: &Gpu, sequences: &[Sequence], poison: u8) -> (PagedKvCache, Vec<SeqId>) {
        let pages: usize = self.lengths.iter().map(|l| l.0.div_ceil(self.page_size)).sum::<usize>() + 3;
        let pages = Pages { count: pages, size: self.page_size, layers: 1 };
        let mut cache = PagedKvCache::new(gpu, self.heads, self.dtype, pages).unwrap();
        let pool = cache.layer(0).unwrap();
        let bytes = vec![poison; pool.wgpu_buffer().size() as usize];
        gpu.queue().write_buffer(pool.wgpu_buffer(), 0, &bytes);
        // A page held and freed, so that the sequences' pages do not start at 0 and lie scattered.
        let blocker = cache.insert();
        cache.reserve(&[blocker], 2 * self.page_size).unwrap();
        let ids: Vec<SeqId> = sequences.iter().map(|_| cache.insert()).collect();
        let old: Vec<usize> = self.lengths.iter().map(|(kv, q)| kv - q).collect();
        let mut done = vec![0; old.len()];
        let mut rng = Rng(self.seed ^ 0xabcd);
        let kv_dim = self.heads.kv_dim();
        while let Some(_) = (0..old.len()).find(|&i| done[i] < old[i]) {
            // Rounds of uneven steps: several sequences in one append, pages taken in turn.
            let active: Vec<usize> = (0..old.len()).filter(|&i| done[i] < old[i]).collect();
            let mut kv = Vec::new();
            let mut step = Vec::new();
            for &i in &active {
                let n = (1 + rng.below(3 * self.page_size + 70)).min(old[i] - done[i]);
                cache.reserve(&[ids[i]], n).unwrap();
                kv.extend_from_slice(&sequences[i].rows[done[i] * kv_dim..(done[i] + n) * kv_dim]);
                step.push(n);
                done[i] += n;
            }
            let tokens = kv.len() / kv_dim;
            let kv = Tensor::from_f32(gpu, &[tokens, kv_dim], &kv, DType::F32).unwrap();
            let names: Vec<SeqId> = active.iter().map(|&i| ids[i]).collect();
            cache.append(0, &names, &kv).unwrap();
            for (&i, n) in active.iter().zip(step) {
                cache.commit(&[ids[i]], n).unwrap();
            }
        }
        cache.remove(blocker).unwrap();
        (cache, ids)
    }

    /// Runs the case on the device with memory nobody owns filled with `poison`; fills in `out` and `lse`.
    pub fn run_poisoned(&self, gpu: &Gpu, poison: u8) -> Vec<Sequence> {
        let decode = Decode::new(gpu, self.heads, self.dtype).unwrap().with_policy(self.policy);
        self.run_with(gpu, &decode, poison)
    }

    pub fn run_with(&self, gpu: &Gpu, decode: &Decode, poison: u8) -> Vec<Sequence> {
        let mut sequences = self.draw();
        let (mut cache, ids) = self.fill(gpu, &sequences, poison);
        let heads = &self.heads;
        let (mut q, mut kv) = (Vec::new(), Vec::new());
        for ((s, id), (kv_len, q_len)) in sequences.iter().zip(&ids).zip(&self.lengths) {
            if *q_len > 0 {
                cache.reserve(&[*id], *q_len).unwrap();
            }
            q.extend_from_slice(&s.q);
            kv.extend_from_slice(&s.rows[(kv_len - q_len) * heads.kv_dim()..]);
        }
        let tokens = kv.len() / heads.kv_dim();
        let q = Tensor::from_f32(gpu, &[tokens, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
        let kv = Tensor::from_f32(gpu, &[tokens, heads.kv_dim()], &kv, DType::F32).unwrap();
        let plan = decode.plan(&cache, &ids).unwrap();
        cache.append(0, &ids, &kv).unwrap();
        let output = decode.output(tokens).unwrap();
        // Unwritten results would show as NaN.
        gpu.upload(&output.out, &vec![f32::NAN; output.out.len()]).unwrap();
        gpu.upload(&output.lse, &vec![f32::NAN; output.lse.len()]).unwrap();
        drop(output);
        let result = decode.run(&plan, &cache.layer(0).unwrap(), &q, scale(heads)).unwrap();
        let out = pollster::block_on(gpu.download(&result.out)).unwrap();
        let lse = pollster::block_on(gpu.download(&result.lse)).unwrap();
        let batch = cache.batch(&ids).unwrap();
        for (s, SeqView { q_token_first, q_len, .. }) in sequences.iter_mut().zip(&batch.sequences) {
            let rows = |width: usize| *q_token_first as usize * width..(*q_token_first + *q_len) as usize * width;
            s.out = out[rows(heads.q_heads() * heads.v_dim())].to_vec();
            s.lse = lse[rows(heads.q_heads())].to_vec();
        }
        sequences
    }

    /// Runs the case in NaN-filled memory and compares with the reference within the bounds of the dtype.
    pub fn check(&self, gpu: &Gpu) -> Errors {
        let mut worst = Errors::default();
        for (i, s) in self.run_poisoned(gpu, 0xff).iter().enumerate() {
            let e = self.compare(i, s);
            worst = Errors { nmse: worst.nmse.max(e.nmse), out: worst.out.max(e.out), lse: worst.lse.max(e.lse) };
        }
        worst
    }

    pub fn compare(&self, index: usize, s: &Sequence) -> Errors {
        let heads = &self.heads;
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (mut states, mut keys) = (Vec::new(), Vec::new());
        for row in s.rows.chunks_exact(heads.kv_dim()) {
            let (state, key) = row.split_at(heads.groups() * heads.state_dim());
            states.extend(wide(state));
            keys.extend(wide(key));
        }
        let inputs = reference::DecodeInputs {
            q: &wide(&s.q),
            states: &states,
            rope_keys: &keys,
            softmax_scale: f64::from(scale(heads)),
            causal: true,
        };
        let want = reference::decode(heads, &inputs).unwrap();
        let bound = if self.dtype == DType::F32 { 1e-10 } else { 1e-9 };
        let what = format!("{self:?} sequence {index}");
        let (nmse, out) = compare(&format!("{what} out"), &s.out, &want.out, 2e-5);
        let (_, lse) = compare(&format!("{what} lse"), &s.lse, &want.lse, 1e-5);
        assert!(nmse <= bound, "{what}: NMSE {nmse:e} exceeds {bound:e}");
        Errors { nmse, out, lse }
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Errors {
    pub nmse: f64,
    pub out: f64,
    pub lse: f64,
}

/// Positions of NaN and infinity first, then absolute error; returns NMSE and largest absolute error.
pub fn compare(what: &str, got: &[f32], want: &[f64], atol: f64) -> (f64, f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = if w.is_finite() { g.is_finite() } else { f64::from(*g) == *w };
        assert!(same, "{what}[{i}]: got {g}, wanted {w}");
    }
    let finite = || got.iter().zip(want).enumerate().filter(|(_, (_, w))| w.is_finite());
    let (mut error, mut norm, mut worst) = (0.0, 0.0, 0.0f64);
    for (i, (g, w)) in finite() {
        let d = (f64::from(*g) - w).abs();
        assert!(d <= atol + 1e-5 * w.abs(), "{what}[{i}]: got {g}, wanted {w}, off by {d:e}");
        error += d * d;
        norm += w * w;
        worst = worst.max(d);
    }
    (if norm > 0.0 { error / norm } else { error }, worst)
}
