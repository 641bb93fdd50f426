//! Times of whole steps, from the call to its result on the host.

use super::models::Size;
use crate::common::breakdown::Breakdown;
use crate::common::timing::{Block, WARM};
use latten::kv::StateLayout;
use latten::model::{Config, Decoder, Draw, Session, SessionOptions};
use latten::{DType, DispatchTime, Gpu, Result, SeqId};
use std::time::{Duration, Instant};

/// Steps whose median counts.
#[derive(Debug, Clone, Copy)]
pub struct Repeats {
    pub prefills: usize,
    pub steps: usize,
    pub warm: Duration,
}

impl Repeats {
    pub fn of(gpu: &Gpu) -> Self {
        match gpu.capabilities().is_software() {
            true => Repeats { prefills: 1, steps: 2, warm: Duration::ZERO },
            false => Repeats { prefills: 7, steps: 24, warm: WARM },
        }
    }
}

/// FLOP of a prompt's blocks: two per token and matrix element, and two per query head, element of key and value, and
/// pair of a token and one that it sees. GLA and MLA are counted in the explicit form, with `kv_b_proj` applied once per
/// token, whichever form is timed, so that rates are in the ratio of times.
pub fn prefill_flop(size: &Size, config: &Config, tokens: usize) -> f64 {
    let extra = match config.attention {
        latten::model::AttentionConfig::Latent { rope_dim, .. } => rope_dim,
        _ => 0,
    };
    let pairs = tokens * (tokens + 1) / 2;
    let attention = pairs * config.layers * config.q_heads * (config.head_dim + extra + config.v_head_dim);
    2.0 * (tokens * size.block_elements(config) + attention) as f64
}

/// Bytes of a cached token in one layer, f16.
pub fn token_bytes(config: &Config) -> Result<usize> {
    let heads = config.layout()?;
    Ok(16 * StateLayout::new(&heads, DType::F16).row_words(heads.groups()))
}

/// Tokens that no model needs to make sense of.
fn prompt(config: &Config, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| i.wrapping_mul(2_654_435_761) % config.vocab_size as u32).collect()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// What is found out about a prompt.
#[derive(Debug, Default)]
pub struct Prefill {
    /// From the call to its first token, the median.
    pub seconds: f64,
    /// From `Session::new` to the first token of the first call, which compiles what is not there.
    pub cold: Duration,
    /// Where they are wanted.
    pub dispatches: Vec<DispatchTime>,
}

/// Times a prompt of so many tokens, and its dispatches if they are wanted.
pub async fn prefill(
    decoder: &Decoder,
    options: SessionOptions,
    (tokens, profile): (usize, bool),
    repeats: Repeats,
) -> Result<Prefill> {
    let (gpu, begun) = (decoder.gpu(), Instant::now());
    let mut session = Session::new(decoder, SessionOptions { cache_tokens: tokens, max_batch: 1, ..options })?;
    let prompt = prompt(decoder.config(), tokens);
    let mut once = async || {
        let id = session.insert();
        let start = Instant::now();
        session.next_tokens(&[(id, &prompt)], &[Draw::default()]).await?;
        let seconds = start.elapsed().as_secs_f64();
        session.remove(id)?;
        Ok::<_, latten::Error>(seconds)
    };
    once().await?;
    let (cold, start) = (begun.elapsed(), Instant::now());
    while start.elapsed() < repeats.warm {
        once().await?;
    }
    let mut seconds = Vec::new();
    for _ in 0..repeats.prefills {
        seconds.push(once().await?);
    }
    let seconds = median(seconds);
    if !profile {
        return Ok(Prefill { seconds, cold, ..Prefill::default() });
    }
    gpu.start_profile()?;
    once().await?;
    Ok(Prefill { seconds, cold, dispatches: gpu.take_profile().await? })
}

/// A session whose cache is full of random rows.
pub fn filled(gpu: &Gpu, decoder: &Decoder, options: SessionOptions, block: &Block) -> Result<Session> {
    let session = Session::new(decoder, options)?;
    for layer in 0..decoder.config().layers {
        for pages in session.cache().layer(layer)?.wgpu_buffers() {
            block.fill(gpu, &pages)?;
        }
    }
    Ok(session)
}

/// Seconds of a step, medians.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// With the next step on its way to the device while the host reads this one's tokens (`Session::stream`).
    pub streamed: f64,
    /// With the tokens on the host before the next step begins (`Session::next_tokens`).
    pub one_by_one: f64,
}

/// Of steps of one token for each of `batch` sequences that have `length` tokens at their end, after as long as `repeats` says
/// of the same.
pub async fn decode(session: &mut Session, batch: usize, length: usize, repeats: Repeats) -> Result<Step> {
    let start = Instant::now();
    loop {
        let one_by_one = steps(session, (batch, length), repeats.steps, false).await?;
        let streamed = steps(session, (batch, length), repeats.steps, true).await?;
        if start.elapsed() >= repeats.warm {
            return Ok(Step { streamed: median(streamed), one_by_one: median(one_by_one) });
        }
    }
}

/// Dispatches that a profile holds.
const MOST_DISPATCHES: f64 = 2048.0;

/// Where the time of such steps goes, streamed and one by one; dispatch by dispatch too if `profile` says so.
pub async fn breakdowns(
    session: &mut Session,
    (batch, length): (usize, usize),
    steps: usize,
    profile: bool,
) -> Result<Option<[Breakdown; 2]>> {
    let mut both = Vec::new();
    for streamed in [true, false] {
        let mut timed = Timed { session, batch, length, streamed };
        let gpu = timed.session.decoder().gpu().clone();
        let seconds = timed.steps(steps, || gpu.start_submit_times()).await?;
        let Some(found) = Breakdown::new(steps, seconds, &gpu.take_submit_times().await?) else { return Ok(None) };
        if !profile {
            both.push(found);
            continue;
        }
        let fit = (MOST_DISPATCHES / found.dispatches.max(1.0)) as usize;
        let fit = fit.clamp(1, steps);
        timed.steps(fit, || gpu.start_profile()).await?;
        both.push(found.with_dispatches(&gpu.take_profile().await?, fit));
    }
    Ok(both.try_into().ok())
}

/// Steps of one token for each of `batch` sequences.
struct Timed<'a> {
    session: &'a mut Session,
    batch: usize,
    length: usize,
    streamed: bool,
}

impl Timed<'_> {
    /// Seconds of so many steps, after two more and a call of `start`.
    async fn steps(&mut self, steps: usize, start: impl FnOnce() -> Result<()>) -> Result<f64> {
        let Timed { session, batch, length, streamed } = self;
        // One more than is fed: a stream is a step ahead.
        let count = steps + 3;
        let ids = (0..*batch).map(|_| session.insert_uncomputed(*length - count)).collect::<Result<Vec<SeqId>>>()?;
        let mut tokens = prompt(session.decoder().config(), *batch);
        let fed: Vec<(SeqId, &[u32])> = ids.iter().copied().zip(tokens.chunks(1)).collect();
        let seconds = if *streamed {
            let mut stream = session.stream(&fed, |_| Draw::default())?;
            stream.next(true).await?;
            stream.next(true).await?;
            start()?;
            let from = Instant::now();
            for _ in 0..steps {
                stream.next(true).await?;
            }
            from.elapsed()
        } else {
            let (draws, mut from, mut start) = (vec![Draw::default(); *batch], Instant::now(), Some(start));
            for step in 0..steps + 2 {
                if let Some(start) = start.take_if(|_| step == 2) {
                    start()?;
                    from = Instant::now();
                }
                let fed: Vec<(SeqId, &[u32])> = ids.iter().copied().zip(tokens.chunks(1)).collect();
                let next = session.next_tokens(&fed, &draws).await?;
                tokens = next;
            }
            from.elapsed()
        };
        ids.iter().try_for_each(|id| session.remove(*id))?;
        Ok(seconds.as_secs_f64())
    }
}

/// Seconds of each step but the first two, which compile.
async fn steps(
    session: &mut Session,
    (batch, length): (usize, usize),
    count: usize,
    streamed: bool,
) -> Result<Vec<f64>> {
    let count = count + 2;
    let ids = (0..batch).map(|_| session.insert_uncomputed(length - count)).collect::<Result<Vec<SeqId>>>()?;
    let mut tokens = prompt(session.decoder().config(), batch);
    let mut seconds = Vec::new();
    if streamed {
        let fed: Vec<(SeqId, &[u32])> = ids.iter().copied().zip(tokens.chunks(1)).collect();
        let mut stream = session.stream(&fed, |_| Draw::default())?;
        for step in 0..count {
            let start = Instant::now();
            stream.next(step + 1 < count).await?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.pop(); // of a step with none behind it
    } else {
        let draws = vec![Draw::default(); batch];
        for _ in 0..count {
            let fed: Vec<(SeqId, &[u32])> = ids.iter().copied().zip(tokens.chunks(1)).collect();
            let start = Instant::now();
            let next = session.next_tokens(&fed, &draws).await?;
            seconds.push(start.elapsed().as_secs_f64());
            tokens = next;
        }
    }
    ids.iter().try_for_each(|id| session.remove(*id))?;
    Ok(seconds.split_off(2))
}
