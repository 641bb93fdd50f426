//! Models that two ranks compute: two threads, each with a device of its own. Oracles: the same model on one device, and the f64
//! reference.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

mod caches;
#[path = "../common/mod.rs"]
mod common;
mod context;
mod faults;
mod forms;
#[path = "../common/gguf.rs"]
mod gguf_file;
#[path = "../hf/model.rs"]
#[allow(dead_code)]
mod hf;
mod models;
mod refused;
#[path = "../model/tiny.rs"]
#[allow(dead_code)]
mod tiny;

use common::gpu_with;
use latten::model::{follow, Decoder, LoadOptions, Session, SessionOptions};
use latten::parallel::{local, Collective, Shard, Transfer};
use latten::{DType, Gpu, GpuOptions, Result, Tier};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// A software GPU compiles for seconds in the first step.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// A session of one short sequence.
pub(crate) const SMALL: SessionOptions = SessionOptions {
    max_batch: 1,
    chunk: 8,
    cache_tokens: 32,
    page_size: 4,
    kv_dtype: DType::F32,
    window: None,
    keep_first: 0,
    max_tokens: None,
    window_pools: false,
    prefill: latten::model::PrefillPath::Auto,
};

/// Two devices for one test at a time: each has threads of its own, and the machine has two cores.
pub(crate) struct Devices {
    pub(crate) gpus: &'static [Gpu; 2],
    _turn: MutexGuard<'static, ()>,
}

pub(crate) fn devices() -> Devices {
    static GPUS: OnceLock<[Gpu; 2]> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let new = || {
        let gpu = gpu_with(GpuOptions::default());
        gpu.keep_idle_kernels(1 << 8);
        gpu
    };
    Devices { gpus: GPUS.get_or_init(|| [new(), new()]), _turn: turn }
}

/// How the ranks of a test are made.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) options: SessionOptions,
    pub(crate) transfer: Transfer,
    pub(crate) timeout: Duration,
}

impl Setup {
    pub(crate) fn new(options: SessionOptions) -> Self {
        Setup { options, transfer: Transfer::F32, timeout: TIMEOUT }
    }
}

/// Loads a rank's part.
pub(crate) type Load<'a> = &'a (dyn Fn(&Gpu, LoadOptions<'_>) -> Result<Decoder> + Sync);

/// Runs `lead` with the session of two ranks. What the other rank returned must be good.
pub(crate) fn two_ranks<T: Send>(
    devices: &Devices,
    load: Load<'_>,
    setup: Setup,
    lead: impl Fn(Session) -> T + Sync,
) -> T {
    two_ranks_sharing(devices, load, setup, |shard| shard, lead)
}

/// The same of parts as `part` makes them.
pub(crate) fn two_ranks_sharing<T: Send>(
    devices: &Devices,
    load: Load<'_>,
    setup: Setup,
    part: fn(Shard) -> Shard,
    lead: impl Fn(Session) -> T + Sync,
) -> T {
    let results = local::run(2, setup.timeout, |rank| {
        let shard = part(Shard::of(&rank)?);
        let decoder = load(&devices.gpus[rank.rank()], LoadOptions { shard, ..Default::default() })?;
        if rank.rank() > 0 {
            return follow(&decoder, Box::new(rank)).map(|()| None);
        }
        let session = Session::sharded(&decoder, setup.options, Box::new(rank), setup.transfer)?;
        Ok(Some(lead(session)))
    });
    let mut results: Vec<Option<T>> = results.unwrap().into_iter().map(Result::unwrap).collect();
    results.swap_remove(0).unwrap()
}

/// How far logits of ranks may be from `alone`, those of one device: by sums in another order. Cooperative matrices round their
/// factors to f16, so there what differs in the last bit of f32 may differ in that of f16: by so much as rounding takes `alone` from
/// the logits without matrices, once for each of the two.
pub(crate) fn allowed(
    load: Load<'_>,
    options: SessionOptions,
    logits: impl Fn(&mut Session) -> Vec<f32>,
    alone: &[f32],
) -> f32 {
    const SUMS: f32 = 1e-4;
    if common::tier::wanted() != Some(Tier::Matrix) {
        return SUMS;
    }
    let exact = gpu_with(GpuOptions { tier: Some(Tier::Subgroup), ..Default::default() });
    let decoder = load(&exact, LoadOptions::default()).unwrap();
    SUMS + 2.0 * distance(&logits(&mut Session::new(&decoder, options).unwrap()), alone)
}

/// Largest difference.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| if a.is_finite() && b.is_finite() { (a - b).abs() } else { f32::INFINITY })
        .fold(0.0, f32::max)
}
