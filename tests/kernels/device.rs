//! Devices: poor limits, no features, an app's own, lost ones; and what a decode loop may create.

use crate::case::Case;
use crate::common::{bits, gpu, gpu_with, small, wait, Rng};
use latten::gpu::{Counters, LimitsChoice};
use latten::{
    wgpu, CacheOptions, DType, Decode, DecodeArgs, ErrorKind, Gpu, GpuOptions, PagedKvCache, Pages, Rope, RopePairs,
    SplitPolicy, Tensor, Tier,
};

/// A slice of the decode tests on a device of its own.
fn decodes(gpu: &Gpu) {
    let lengths = vec![(1, 1), (130, 1), (40, 3), (5, 0), (33, 16)];
    let case = Case {
        heads: small(),
        dtype: DType::F16,
        page_size: 8,
        lengths,
        policy: SplitPolicy::FixedTokens(64),
        seed: 61,
    };
    case.check(gpu);
}

#[test]
fn default_and_downlevel_limits_and_no_features_suffice() {
    for limits in [LimitsChoice::Default, LimitsChoice::Downlevel] {
        let gpu = gpu_with(GpuOptions { limits, no_features: true, ..Default::default() });
        assert!(!gpu.capabilities().timestamps);
        assert!(gpu.capabilities().workgroup_storage_bytes <= 16384);
        decodes(&gpu);
        let error = wait(gpu.time_passes(1, |_, _| Ok(()))).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
    }
}

/// The adapter under test as an app would find it. latten's own choice names it.
fn app_adapter() -> wgpu::Adapter {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::all() - wgpu::Backends::GL;
    let adapters = wait(wgpu::Instance::new(desc).enumerate_adapters(wgpu::Backends::all() - wgpu::Backends::GL));
    let used = &gpu().capabilities().adapter;
    adapters.into_iter().find(|a| used.starts_with(&a.get_info().name)).unwrap()
}

fn app_device(limits: impl Fn(&wgpu::Adapter) -> wgpu::Limits) -> (wgpu::Adapter, wgpu::Device, wgpu::Queue) {
    let adapter = app_adapter();
    let request = wgpu::DeviceDescriptor { required_limits: limits(&adapter), ..Default::default() };
    let (device, queue) = wait(adapter.request_device(&request)).unwrap();
    (adapter, device, queue)
}

/// A device of an app's of the tier under test, with poor limits.
pub fn poor_device(limits: impl Fn(wgpu::Limits) -> wgpu::Limits) -> Gpu {
    let tier = gpu().capabilities().tier;
    if tier == Tier::Matrix {
        let (adapter, device, queue) = matrix_device(limits);
        return wait(Gpu::from_wgpu(&adapter, device, queue).unwrap().with_matrix_kernels()).unwrap();
    }
    let adapter = app_adapter();
    let required_features = match tier {
        Tier::Portable => wgpu::Features::empty(),
        _ => wgpu::Features::SUBGROUP,
    };
    let required_limits = limits(adapter.limits());
    let request = wgpu::DeviceDescriptor { required_limits, required_features, ..Default::default() };
    let (device, queue) = wait(adapter.request_device(&request)).unwrap();
    let gpu = Gpu::from_wgpu(&adapter, device, queue).unwrap();
    assert_eq!(gpu.capabilities().tier, tier);
    gpu
}

/// A device with the experimental features that the matrix kernels need.
fn matrix_device(limits: impl Fn(wgpu::Limits) -> wgpu::Limits) -> (wgpu::Adapter, wgpu::Device, wgpu::Queue) {
    use wgpu::Features as F;
    let adapter = app_adapter();
    let request = wgpu::DeviceDescriptor {
        required_limits: limits(adapter.limits()),
        required_features: F::EXPERIMENTAL_COOPERATIVE_MATRIX | F::SHADER_F16 | F::SUBGROUP | F::SUBGROUP_BARRIER,
        // SAFETY: as for latten's own devices of the tier: its kernels load and store matrices in arrays of fixed size.
        #[allow(unsafe_code)]
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..Default::default()
    };
    let (device, queue) = wait(adapter.request_device(&request)).unwrap();
    (adapter, device, queue)
}

/// Where the adapter has matrices, their kernels pass the self-test that comes before their use; and it leaves nothing.
#[test]
fn matrix_kernels_pass_their_self_test() {
    let gpu = gpu_with(GpuOptions { tier: Some(Tier::Matrix), ..Default::default() });
    let c = gpu.capabilities();
    if c.device_tier < Tier::Matrix {
        assert_eq!(c.tier, c.device_tier, "the best there is was asked for");
        println!("skipped: no matrices of 16 x 16 on {}", c.adapter);
        return;
    }
    assert_eq!(c.tier, Tier::Matrix, "{}: the self-test failed", c.adapter);
    let made = gpu.counters();
    assert_eq!((made.buffers, made.pipelines, made.dispatches), (0, 0, 0));
    // An app's device has them only when it asks.
    let (adapter, device, queue) = matrix_device(|all| all);
    let own = Gpu::from_wgpu(&adapter, device, queue).unwrap();
    assert_eq!((own.capabilities().tier, own.capabilities().device_tier), (Tier::Subgroup, Tier::Matrix));
    assert_eq!(wait(own.with_matrix_kernels()).unwrap().capabilities().tier, Tier::Matrix);
}

#[test]
fn an_apps_device_serves_and_keeps_its_error_handling() {
    let (adapter, device, queue) = app_device(wgpu::Adapter::limits);
    decodes(&Gpu::from_wgpu(&adapter, device.clone(), queue.clone()).unwrap());
    // latten's errors stay in its own scopes; the app's scope sees the app's errors alone.
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let gpu = Gpu::from_wgpu(None, device.clone(), queue).unwrap();
    let error = Tensor::zeros(&gpu, &[1 << 40], DType::F32).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
    assert!(wait(scope.pop()).is_none());
}

#[test]
fn a_device_with_too_little_is_refused_with_numbers() {
    let (_, device, queue) = app_device(|_| wgpu::Limits::downlevel_defaults());
    let error = Gpu::from_wgpu(None, device, queue).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }));
    assert!(error.to_string().contains("is 4, latten needs 8"), "{error}");
}

#[test]
fn an_adapter_that_is_not_there_is_named_with_those_that_are() {
    let options = GpuOptions { adapter: Some("no such adapter".into()), ..Default::default() };
    let error = wait(Gpu::with_options(options)).err().unwrap();
    let ErrorKind::NoAdapter { found, .. } = error.kind() else { panic!("{error}") };
    assert!(found.contains("no such adapter"), "{found}");
    let used = &gpu().capabilities().adapter;
    assert!(found.contains(used.as_str()), "{found} lacks {used}");
    // By part of its name, whatever the case.
    let part = used.split(' ').next().unwrap().to_uppercase();
    let gpu = gpu_with(GpuOptions { adapter: Some(part), ..Default::default() });
    assert_eq!(gpu.capabilities().adapter.split(' ').next(), used.split(' ').next());
}

/// Everything of a decode, before the device goes.
struct Loop {
    gpu: Gpu,
    cache: PagedKvCache,
    decode: Decode,
    kv: Tensor,
    q: Tensor,
    sequences: Vec<latten::SeqId>,
}

const BATCH: usize = 2;

impl Loop {
    fn new(gpu: Gpu) -> Self {
        let heads = small();
        let rope = Some(Rope { inv_freq: vec![1.0, 0.1, 0.01, 0.001], pairs: RopePairs::Half });
        let options = CacheOptions::new(DType::F16, Pages { count: 512, size: 4, layers: 2 });
        let mut cache = PagedKvCache::new(&gpu, heads, CacheOptions { rope, ..options }).unwrap();
        let decode = Decode::new(&gpu, heads, DType::F16).unwrap();
        let mut rng = Rng(63);
        let kv = Tensor::from_slice(&gpu, &[BATCH, heads.kv_dim()], &rng.values(BATCH * heads.kv_dim()), DType::F32);
        let q = rng.values(BATCH * heads.q_heads() * heads.q_dim());
        let q = Tensor::from_slice(&gpu, &[BATCH, heads.q_heads(), heads.q_dim()], &q, DType::F32);
        let sequences = (0..BATCH).map(|_| cache.insert()).collect();
        Loop { gpu, cache, decode, kv: kv.unwrap(), q: q.unwrap(), sequences }
    }

    fn step(&mut self) -> latten::Result<Vec<f32>> {
        self.cache.reserve(&self.sequences, 1)?;
        let plan = self.decode.plan(&self.cache, &self.sequences)?;
        let mut results = vec![];
        for layer in 0..2 {
            self.cache.append(layer, &self.sequences, &self.kv)?;
            let result = self.decode.run(DecodeArgs::new(&plan, &self.cache.layer(layer)?, &self.q, 0.25))?;
            if layer == 1 {
                results = wait(self.gpu.download(&result.out))?;
            }
        }
        self.cache.commit(&self.sequences, 1)?;
        Ok(results)
    }
}

/// Lengths from 1 to 700 tokens: unsplit, then split, then in more parts.
#[test]
fn after_its_first_step_a_decode_loop_creates_nothing() {
    let gpu = gpu_with(GpuOptions { target_workgroups: Some(64), ..Default::default() });
    let mut work = Loop::new(gpu.clone());
    work.step().unwrap();
    let first = gpu.counters();
    let mut grown = None;
    for step in 1..700u64 {
        work.step().unwrap();
        let now = gpu.counters();
        let created = |c: &Counters| (c.buffers, c.pipelines, c.bind_groups);
        if grown.is_none() && created(&now) != created(&first) {
            grown = Some((step, now));
        }
        assert_eq!(now.readbacks - first.readbacks, step);
        // Measured: the plan's upload ends nothing, so one submit, at the download.
        assert!(now.submits - first.submits <= 2 * step, "{} submits in {step} steps", now.submits - first.submits);
    }
    let last = gpu.counters();
    println!("submits per step: {:.2}", (last.submits - first.submits) as f64 / 699.0);
    assert_eq!(grown, None, "after {first:?}: created at step, counters");
    assert_eq!(last.compiled, last.pipelines, "outside of browsers a pipeline that is made is compiled");
}

#[test]
fn a_profile_has_each_dispatch_in_order_and_changes_no_result() {
    let gpu = gpu_with(GpuOptions { profile: true, ..Default::default() });
    let mut work = Loop::new(gpu.clone());
    let first = work.step().unwrap();
    if !gpu.device().features().contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
        println!("skipped: no timestamps inside passes on {}", gpu.capabilities().adapter);
        let kind = |e: latten::Error| format!("{:?}", e.kind());
        assert!(kind(gpu.start_profile().err().unwrap()).contains("Unsupported"));
        return;
    }
    let none = wait(gpu.take_profile()).err().unwrap();
    assert!(matches!(none.kind(), ErrorKind::Argument { .. }), "{none}");

    let before = gpu.counters().dispatches;
    gpu.start_profile().unwrap();
    let second = work.step().unwrap();
    let times = wait(gpu.take_profile()).unwrap();
    assert_eq!(times.len() as u64, gpu.counters().dispatches - before);
    let kernels: Vec<&str> = times.iter().map(|t| t.kernel).collect();
    assert_eq!(kernels[0], "append");
    assert!(kernels[1].starts_with("decode"), "{kernels:?}");
    assert_eq!(kernels[..kernels.len() / 2], kernels[kernels.len() / 2..], "two layers");
    assert!(times.iter().all(|t| (0.0..1e7).contains(&t.us)) && times.iter().any(|t| t.us > 0.0), "{times:?}");
    // The same without: a step more of the same loop.
    let mut plain = Loop::new(gpu_with(GpuOptions::default()));
    assert_eq!(bits(&plain.step().unwrap()), bits(&first));
    assert_eq!(bits(&plain.step().unwrap()), bits(&second));
    // More than one profile holds.
    gpu.start_profile().unwrap();
    for _ in 0..600 {
        work.step().unwrap();
    }
    assert_eq!(wait(gpu.take_profile()).unwrap().len(), 2048);
}

/// Without the option there is none.
#[test]
fn a_profile_must_be_asked_for() {
    let error = gpu_with(GpuOptions::default()).start_profile().err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
}

#[test]
fn cached_bind_groups_do_not_keep_tensors_alive() {
    let gpu = gpu_with(GpuOptions::default());
    let mut work = Loop::new(gpu.clone());
    work.step().unwrap();
    if gpu.device().generate_allocator_report().is_none() {
        println!("skipped: no allocator report on {}", gpu.capabilities().adapter);
        return;
    }
    // Each round drops a q tensor that was bound.
    let heads = small();
    let mut first = None;
    for round in 0..64 {
        work.q = Tensor::zeros(&gpu, &[BATCH, heads.q_heads(), heads.q_dim()], DType::F32).unwrap();
        let before = gpu.counters().bind_groups;
        work.step().unwrap();
        assert!(gpu.counters().bind_groups > before, "a new tensor needs a new bind group");
        let report = gpu.device().generate_allocator_report();
        let allocations = report.unwrap().allocations.len();
        let first = *first.get_or_insert(allocations);
        assert!(allocations <= first + 4, "round {round}: {allocations} allocations, {first} after the first");
    }
}

#[test]
fn passes_are_timed() {
    let gpu = gpu();
    if !gpu.capabilities().timestamps {
        println!("skipped: no timestamp queries on {}", gpu.capabilities().adapter);
        return;
    }
    let heads = small();
    let mut cache =
        PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F16, Pages { count: 4, size: 64, layers: 1 })).unwrap();
    let decode = Decode::new(gpu, heads, DType::F16).unwrap();
    let id = cache.insert();
    cache.reserve(&[id], 200).unwrap();
    let q = Tensor::zeros(gpu, &[200, heads.q_heads(), heads.q_dim()], DType::F32).unwrap();
    let (plan, output, layer) =
        (decode.plan(&cache, &[id]).unwrap(), decode.output(200).unwrap(), cache.layer(0).unwrap());
    let args = DecodeArgs::new(&plan, &layer, &q, 1.0);
    let times = wait(gpu.time_passes(3, |pass, _| decode.encode(pass, args, &output))).unwrap();
    assert_eq!(times.len(), 3);
    assert!(times.iter().all(|t| *t > 0.0 && *t < 60e6), "{times:?} us");
    for passes in [0, 513, usize::MAX] {
        let error = wait(gpu.time_passes(passes, |_, _| Ok(()))).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "passes", .. }), "{error}");
    }
    // A closure's own error comes back, and the device goes on.
    let error = wait(gpu.time_passes(1, |_, _| Err(Tensor::zeros(gpu, &[0], DType::F32).unwrap_err()))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{error}");
    decodes(gpu);
}

/// A `Gpu` is cheap to clone and may be shared: every thread reads what it recorded itself, whoever submits it.
#[test]
fn threads_may_share_a_gpu() {
    let gpu = gpu_with(GpuOptions::default());
    let mut want = Loop::new(gpu.clone());
    let want: Vec<Vec<u32>> = (0..40).map(|_| bits(&want.step().unwrap())).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (gpu, want) = (gpu.clone(), &want);
            scope.spawn(move || {
                let mut work = Loop::new(gpu);
                for (step, want) in want.iter().enumerate() {
                    assert!(bits(&work.step().unwrap()) == *want, "thread {thread} step {step}");
                }
            });
        }
    });
}

fn is_lost<T>(what: &str, result: latten::Result<T>) {
    let error = result.err().unwrap_or_else(|| panic!("{what} succeeded on a lost device"));
    assert!(matches!(error.kind(), ErrorKind::DeviceLost { .. }), "{what}: {error:?}");
}

/// Every call that reaches the device, after it is gone: `DeviceLost`, and no panic.
fn everything_is_lost(mut work: Loop) {
    let (gpu, heads, rows) = (work.gpu.clone(), small(), BATCH);
    let plan = work.decode.plan(&work.cache, &work.sequences);
    is_lost("plan", plan.map(|_| ()));
    let kv = work.kv.clone();
    is_lost("append", work.cache.append(0, &work.sequences, &kv));
    is_lost("download", wait(gpu.download::<f32>(&work.q)));
    is_lost("upload", gpu.upload(&work.q, &vec![0.0; work.q.len()]));
    is_lost("zeros", Tensor::zeros(&gpu, &[rows, 5], DType::F32));
    is_lost("from_f32", Tensor::from_slice(&gpu, &[2], &[1.0, 2.0], DType::F16));
    is_lost("from_u32", Tensor::from_slice(&gpu, &[2], &[1, 2], DType::U32));
    is_lost("output", work.decode.output(100_000));
    is_lost("Decode::new", Decode::new(&gpu, heads, DType::F32).map(|_| ()));
    let pages = Pages { count: 2, size: 4, layers: 1 };
    is_lost("PagedKvCache::new", PagedKvCache::new(&gpu, heads, CacheOptions::new(DType::F32, pages)).map(|_| ()));
    is_lost("step", work.step());
    if gpu.capabilities().timestamps {
        is_lost("time_passes", wait(gpu.time_passes(1, |_, _| Ok(()))));
    }
    // The host's part goes on: the table from which an app rebuilds.
    work.cache.commit(&work.sequences, 0).unwrap();
    assert!(work.cache.len(work.sequences[0]).is_ok());
    let _ = gpu.submit();
}

#[test]
fn a_destroyed_device_is_lost_for_every_call() {
    // Between steps.
    let mut work = Loop::new(gpu_with(GpuOptions::default()));
    work.step().unwrap();
    work.cache.reserve(&work.sequences, 1).unwrap();
    work.gpu.device().destroy();
    everything_is_lost(work);

    // With commands recorded and not submitted.
    let mut work = Loop::new(gpu_with(GpuOptions::default()));
    work.step().unwrap();
    work.cache.reserve(&work.sequences, 1).unwrap();
    let plan = work.decode.plan(&work.cache, &work.sequences).unwrap();
    let kv = work.kv.clone();
    work.cache.append(0, &work.sequences, &kv).unwrap();
    let result = work.decode.run(DecodeArgs::new(&plan, &work.cache.layer(0).unwrap(), &work.q, 0.25)).unwrap();
    work.gpu.device().destroy();
    is_lost("download of recorded work", wait(work.gpu.download::<f32>(&result.out)));
    is_lost("run", work.decode.run(DecodeArgs::new(&plan, &work.cache.layer(0).unwrap(), &work.q, 0.25)));
    everything_is_lost(work);
}

/// On a device of the app's own there is no callback of latten's: the calls themselves must notice.
#[test]
fn a_destroyed_app_device_is_lost_for_every_call() {
    let (adapter, device, queue) = app_device(wgpu::Adapter::limits);
    let mut work = Loop::new(Gpu::from_wgpu(&adapter, device.clone(), queue).unwrap());
    work.step().unwrap();
    work.cache.reserve(&work.sequences, 1).unwrap();
    device.destroy();
    everything_is_lost(work);
}
