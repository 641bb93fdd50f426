//! Medians of exchanges and of steps.

use crate::prefill_table::models::{Size, Weights};
use latten::model::{follow, Decoder, Draw, LoadOptions, Session, SessionOptions};
use latten::parallel::{local, Collective, Shard, Transfer};
use latten::{DType, ErrorKind, Gpu, Result, SeqId, Tensor};
use pollster::block_on;
use std::time::{Duration, Instant};

/// Longer than a software GPU compiles the kernels of a segment.
const TIMEOUT: Duration = Duration::from_secs(120);
const PAGE: usize = 64;
/// Numbers of an exchange.
const NUMBERS: [usize; 5] = [2048, 16_384, 131_072, 524_288, 1_048_576];

/// Numbers, seconds of an exchange between two devices, and of one without another rank.
pub(crate) struct Exchanges {
    pub(crate) rows: Vec<(usize, f64, f64)>,
}

impl Exchanges {
    /// Of so many numbers: on the line between the two that were measured beside it.
    pub(crate) fn seconds(&self, numbers: usize) -> f64 {
        let after = self.rows.iter().position(|row| row.0 >= numbers).unwrap_or(self.rows.len() - 1).max(1);
        let ((n, a, _), (m, b, _)) = (self.rows[after - 1], self.rows[after]);
        (a + (b - a) * (numbers as f64 - n as f64) / (m as f64 - n as f64)).max(0.0)
    }
}

/// A step that is timed.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) size: Size,
    pub(crate) variant: &'a str,
    pub(crate) length: usize,
    pub(crate) batch: usize,
    pub(crate) transfer: Transfer,
    /// Whether sequences are divided, not heads.
    pub(crate) by_context: bool,
    pub(crate) repeats: usize,
    /// Bytes for a device's cache.
    pub(crate) memory: u64,
}

/// What it took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) seconds: f64,
    /// Sequences that there was room for.
    pub(crate) batch: usize,
    /// Of all layers, on each device.
    pub(crate) token_bytes: f64,
    pub(crate) weight_bytes: f64,
    /// Numbers of a layer's exchanges, for a sequence.
    pub(crate) exchanged: [usize; 2],
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of an exchange on rank 0, with or without a sum.
pub(crate) fn exchanges(gpus: &[Gpu; 2], repeats: usize) -> std::result::Result<Exchanges, String> {
    let ranks = local::run(2, TIMEOUT, |mut rank| {
        let (gpu, mut values) = (&gpus[rank.rank()], Vec::new());
        let mut rows = Vec::new();
        for numbers in NUMBERS {
            let tensor = Tensor::zeros(gpu, &[numbers], DType::F32)?;
            let mut time = |sums: bool| {
                let mut seconds = Vec::new();
                for _ in 0..repeats + 3 {
                    let start = Instant::now();
                    gpu.exchange(&tensor, &mut values, |values| if sums { rank.all_reduce(values) } else { Ok(()) })?;
                    gpu.submit()?;
                    seconds.push(start.elapsed().as_secs_f64());
                }
                Ok::<_, latten::Error>(median(seconds.split_off(3)))
            };
            rows.push((numbers, time(true)?, time(false)?));
        }
        Ok(rows)
    });
    let mut ranks = ranks.map_err(|e| e.to_string())?;
    Ok(Exchanges { rows: ranks.swap_remove(0).map_err(|e| e.to_string())? })
}

fn loaded(gpu: &Gpu, weights: &Weights, case: &Case<'_>, shard: Shard) -> Result<Decoder> {
    let config = case.size.config(case.variant, case.length + PAGE)?;
    let options = LoadOptions { shard, explicit: false, ..Default::default() };
    let loaded = weights.decoder_with(gpu, &case.size, &config, options);
    loaded.map(|(decoder, _)| decoder).map_err(|message| ErrorKind::Config { path: "random".into(), message }.into())
}

/// Sequences that a device's memory holds, and the options for as many.
fn room(case: &Case<'_>, token_bytes: usize) -> (usize, SessionOptions) {
    let tokens = case.length.next_multiple_of(PAGE) + PAGE;
    let fit = case.memory / (tokens * token_bytes).max(1) as u64;
    let batch = case.batch.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1);
    let cache_tokens = batch * tokens;
    (batch, SessionOptions { max_batch: batch, chunk: batch, cache_tokens, page_size: PAGE, ..Default::default() })
}

/// Bytes of a token's rows over all layers of a rank, the mean of all tokens.
fn token_bytes(case: &Case<'_>, shard: Shard) -> Result<usize> {
    let config = case.size.config(case.variant, case.length + PAGE)?;
    let heads = config.layout()?.shard(shard)?.layout;
    let row = latten::kv::StateLayout::new(&heads, DType::F16).row_words(heads.groups());
    let bytes = 16 * row * config.layers;
    Ok(if shard.is_by_context() { bytes.div_ceil(shard.size()) } else { bytes })
}

/// The median of steps of a token for each sequence, whose tokens are on the host.
fn steps(session: &mut Session, case: &Case<'_>, batch: usize) -> Result<f64> {
    let count = case.repeats + 3;
    let first = case.length.saturating_sub(count).max(1);
    let ids = (0..batch).map(|_| session.insert_uncomputed(first)).collect::<Result<Vec<SeqId>>>()?;
    let (mut tokens, draws) = (vec![1u32; batch], vec![Draw::default(); batch]);
    let mut seconds = Vec::new();
    for _ in 0..count {
        let fed: Vec<(SeqId, &[u32])> = ids.iter().copied().zip(tokens.chunks(1)).collect();
        let start = Instant::now();
        let next = block_on(session.next_tokens(&fed, &draws))?;
        seconds.push(start.elapsed().as_secs_f64());
        tokens = next;
    }
    Ok(median(seconds.split_off(3)))
}

/// A step on one device.
pub(crate) fn step_on_one(gpu: &Gpu, weights: &Weights, case: &Case<'_>) -> std::result::Result<Step, String> {
    step(gpu, weights, case).map_err(|e| e.to_string())
}

fn step(gpu: &Gpu, weights: &Weights, case: &Case<'_>) -> Result<Step> {
    let decoder = loaded(gpu, weights, case, Shard::whole())?;
    let token_bytes = token_bytes(case, Shard::whole())?;
    let (batch, options) = room(case, token_bytes);
    let mut session = Session::new(&decoder, options)?;
    let weight_bytes = 2.0 * case.size.block_elements(decoder.config()) as f64;
    let seconds = steps(&mut session, case, batch)?;
    let exchanged = [0, 0];
    Ok(Step { seconds, batch, token_bytes: token_bytes as f64, weight_bytes, exchanged })
}

/// A step that two devices compute.
pub(crate) fn step_on_two(gpus: &[Gpu; 2], weights: &Weights, case: &Case<'_>) -> std::result::Result<Step, String> {
    let results = local::run(2, TIMEOUT, |rank| {
        let shard = Shard::of(&rank)?;
        let shard = if case.by_context { shard.by_context() } else { shard };
        let decoder = loaded(&gpus[rank.rank()], weights, case, shard)?;
        if rank.rank() > 0 {
            return follow(&decoder, Box::new(rank)).map(|()| None);
        }
        let token_bytes = token_bytes(case, shard)?;
        let (batch, options) = room(case, token_bytes);
        let config = decoder.config();
        // 2 bytes of each on two devices; where sequences are divided, attention's are on both.
        let twice = if case.by_context { case.size.attention_elements(config) } else { 0 };
        let weight_bytes = (case.size.block_elements(config) + twice) as f64;
        // The log-sum-exp of each head goes beside its values.
        let found = if case.by_context { config.q_heads * (config.v_head_dim + 1) } else { config.hidden_size };
        let exchanged = [found, config.hidden_size];
        let mut session = Session::sharded(&decoder, options, Box::new(rank), case.transfer)?;
        let seconds = steps(&mut session, case, batch)?;
        Ok(Some(Step { seconds, batch, token_bytes: token_bytes as f64, weight_bytes, exchanged }))
    });
    let mut step = None;
    for result in results.map_err(|e| e.to_string())? {
        step = step.or(result.map_err(|e| e.to_string())?);
    }
    step.ok_or_else(|| "rank 0 has measured nothing".into())
}
