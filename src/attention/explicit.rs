//! Keys and values of GLA and MLA made explicit: cached latents out of their pages, per query head `[k_nope | v]` into a
//! scratch pool, attention over that, part after part. Kernels: `shaders/kv/cached_rows.wgsl`, `join.wgsl`, and those of
//! append and decode.
//!
//! Source: arXiv 2505.21487, §3.3.2; the explicit form of `reference::gla_layer`.

use super::decode::{Decode, DecodeArgs};
use super::options::AttentionOptions;
use super::output::DecodeOutput;
use crate::attention::kernels::spec::{cached_rows_spec, join_spec};
use crate::attention::plan::buffer::PageEntries;
use crate::attention::plan::planner::{Plan, PlanViews};
use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Gpu, Kernel, Span, Tensor, Tier};
use crate::kv::append::{Append, AppendArgs};
use crate::kv::layout::{KvView, StateLayout};
use crate::kv::pool::{Pool, PoolKernel};
use crate::kv::view::SeqView;
use crate::kv::HeadLayout;
use crate::rope::RopePairs;
use std::ops::Range;
use std::sync::Arc;

/// Tokens of a scratch page. Parts begin at multiples of it, in their sequence and in the scratch pool.
pub(crate) const PART_PAGE: usize = 64;
/// Words of a part's head among the places.
const PLACES_HEAD: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct CachedRowsParams {
    pub(crate) first: u32,
    pub(crate) page_shift: u32,
    pub(crate) slot_count: u32,
    pub(crate) slab_pages: u32,
}

/// A latent layout in its explicit form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExplicitLayout {
    /// As it is cached.
    pub(crate) cached: HeadLayout,
    /// Per query head `[k_nope | v]`, and the rope key.
    pub(crate) heads: HeadLayout,
}

impl ExplicitLayout {
    /// `nope_dim` and `v_dim` are a head's, before absorption.
    pub(crate) fn new(cached: HeadLayout, nope_dim: usize, v_dim: usize) -> Result<Self> {
        let heads = HeadLayout::explicit(cached.q_heads(), nope_dim, v_dim, cached.rope_dim())?;
        Ok(ExplicitLayout { cached, heads })
    }

    /// Element type of explicit keys and values, which are rounded once more: to f16 where products are of f16 anyway,
    /// else not at all.
    pub(crate) fn dtype(tier: Tier, cached: DType) -> DType {
        match (tier, cached) {
            (Tier::Matrix, DType::F16 | DType::I8 | DType::I4) => DType::F16,
            _ => DType::F32,
        }
    }

    /// Bytes of scratch memory for one token.
    pub(crate) fn token_bytes(&self, dtype: DType) -> usize {
        let pool = 16 * StateLayout::new(&self.heads, dtype).row_words(self.heads.groups());
        4 * self.latent_width() + 4 * self.heads.kv_dim() + pool
    }

    /// Elements of a token's latents.
    pub(crate) fn latent_width(&self) -> usize {
        self.cached.groups() * self.cached.state_dim()
    }
}

/// Some tokens of one sequence, that are made explicit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index in the step.
    pub(crate) sequence: usize,
    /// Which tokens; the first a multiple of [`PART_PAGE`].
    pub(crate) tokens: Range<u32>,
    /// Where they begin in the scratch pool, a multiple of [`PART_PAGE`].
    pub(crate) at: u32,
}

/// Parts that are in the scratch pool at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) parts: Vec<Part>,
    /// Of the scratch pool, a multiple of [`PART_PAGE`].
    pub(crate) tokens: u32,
    /// Whether the result joins that of an earlier round. Such a round has one part.
    pub(crate) joins: bool,
}

/// Sequences' tokens, in rounds of a scratch pool of `room` tokens: short ones share a round, long ones take several.
/// `needs` are sequences by their index, and what is to be explicit of them.
pub(crate) fn rounds(needs: &[(usize, Range<u32>)], room: u32) -> Vec<Round> {
    let page = PART_PAGE as u32;
    let (mut all, mut shared) = (Vec::new(), Round { parts: Vec::new(), tokens: 0, joins: false });
    for (sequence, tokens) in needs {
        let sequence = *sequence;
        let padded = |tokens: &Range<u32>| (tokens.end - tokens.start).next_multiple_of(page);
        if padded(tokens) > room {
            let mut start = tokens.start;
            while start < tokens.end {
                let part = start..tokens.end.min(start + room);
                start = part.end;
                let (tokens_in_all, joins) = (padded(&part), part.start > tokens.start);
                all.push(Round { parts: vec![Part { sequence, tokens: part, at: 0 }], tokens: tokens_in_all, joins });
            }
            continue;
        }
        if shared.tokens + padded(tokens) > room {
            all.push(std::mem::replace(&mut shared, Round { parts: Vec::new(), tokens: 0, joins: false }));
        }
        shared.parts.push(Part { sequence, tokens: tokens.clone(), at: shared.tokens });
        shared.tokens += padded(tokens);
    }
    if !shared.parts.is_empty() {
        all.push(shared);
    }
    all
}

/// A batch as the explicit form sees it.
#[derive(Clone, Copy)]
pub(crate) struct ExplicitBatch<'a> {
    /// Of the cache, in the step's order.
    pub(crate) sequences: &'a [SeqView],
    /// The cache's.
    pub(crate) page_table: &'a [u32],
    pub(crate) page_size: usize,
    /// Query tokens of the step, over all sequences.
    pub(crate) tokens: usize,
}

impl ExplicitBatch<'_> {
    /// Slot of a token of a sequence; for one that is gone, that of the next that is not.
    fn slot(&self, sequence: &SeqView, token: u32) -> Result<u32> {
        let page_size = self.page_size as u32;
        let in_gap = (sequence.gap_first..sequence.gap_last).contains(&token);
        let token = if in_gap { sequence.gap_last } else { token }.min(sequence.kv_len.saturating_sub(1));
        let gone = if token >= sequence.gap_last { sequence.gap_last - sequence.gap_first } else { 0 };
        let entry = sequence.page_table_first as usize + ((token - gone) / page_size) as usize;
        match self.page_table.get(entry) {
            Some(page) => Ok(page * page_size + token % page_size),
            None => {
                let why = format!("has {} entries, not {entry}", self.page_table.len());
                Err(ErrorKind::argument("page_table", why))
            }
        }
    }
}

/// Kernels and scratch memory, for any number of layers.
pub(crate) struct Explicit {
    gpu: Gpu,
    layout: ExplicitLayout,
    decode: Decode,
    append: Append,
    cached_rows: PoolKernel,
    join: Kernel,
    cached_dtype: DType,
    scratch: KvView,
    /// (room, groups, latent_dim) F32
    latents: Tensor,
    /// (room, kv_dim) F32: keys and values before they are in the scratch pool.
    rows: Tensor,
    /// (room) U32: token t is in slot t.
    slots: Tensor,
    /// Per round and at a fixed distance a head, and the slots of its tokens in the cache: U32.
    places: Tensor,
    room: usize,
}

/// A step's rounds, ready for every layer.
pub(crate) struct ExplicitPlan {
    rounds: Vec<PlannedRound>,
}

struct PlannedRound {
    plan: Plan,
    /// Of the scratch pool.
    tokens: usize,
    /// Query tokens whose result joins an earlier one.
    joined: Option<usize>,
}

/// What one layer attends with.
pub(crate) struct ExplicitArgs<'a> {
    pub(crate) plan: &'a ExplicitPlan,
    /// The layer's cached latents.
    pub(crate) layer: &'a KvView,
    /// (tokens, q_heads, nope_dim + rope_dim) F32, rotated.
    pub(crate) q: &'a Tensor,
    pub(crate) softmax_scale: f32,
    /// Rows of the plan's sequences are written, others left.
    pub(crate) output: &'a DecodeOutput,
}

impl Explicit {
    /// For caches of `dtype`, with room for `room` tokens (rounded up to whole scratch pages) at a time.
    ///
    /// Errors: those of [`Decode::new`]; [`ErrorKind::Argument`] for first tokens beside a window, sinks or trees, which
    /// the explicit form has not.
    pub(crate) fn new(
        gpu: &Gpu,
        layout: ExplicitLayout,
        dtype: DType,
        options: AttentionOptions,
        room: usize,
    ) -> Result<Self> {
        if options.keep_first > 0 || options.sinks || options.tree {
            let why = format!("{options:?}: prompts in the explicit form have no first tokens, sinks or trees");
            return Err(ErrorKind::argument("options", why));
        }
        let room = room.max(1).next_multiple_of(PART_PAGE);
        let own = ExplicitLayout::dtype(gpu.capabilities().tier, dtype);
        let heads = layout.heads;
        let page_words = PART_PAGE * StateLayout::new(&heads, own).row_words(heads.groups());
        let pages = room / PART_PAGE;
        let pool = gpu.create_scratch("explicit keys and values", 16 * (pages * page_words) as u64)?;
        let scratch = KvView {
            wide: None,
            pool: Pool::new(pages, vec![pool], pages),
            heads,
            dtype: own,
            page_size: PART_PAGE,
            live_generation: Arc::default(),
        };
        let slots: Vec<u32> = (0..room as u32).collect();
        Ok(Explicit {
            decode: Decode::tallest(gpu, heads, own, options)?,
            append: Append::new(gpu, heads, own, PART_PAGE, RopePairs::None)?,
            cached_rows: PoolKernel::new(gpu, cached_rows_spec(&layout.cached, dtype, heads.kv_dim())?)?,
            join: gpu.kernel(join_spec(&heads))?,
            cached_dtype: dtype,
            scratch,
            latents: Tensor::scratch(gpu, &[room, layout.cached.groups(), layout.cached.state_dim()], DType::F32)?,
            rows: Tensor::scratch(gpu, &[room, heads.kv_dim()], DType::F32)?,
            slots: Tensor::from_slice(gpu, &[room], &slots, DType::U32)?,
            places: Tensor::zeros(gpu, &[PLACES_HEAD + room], DType::U32)?,
            layout,
            room,
            gpu: gpu.clone(),
        })
    }

    /// The same with the policy and the device's parallelism of another `Decode`.
    pub(crate) fn like(mut self, decode: &Decode) -> Self {
        self.decode = self.decode.with_policy(decode.policy()).with_target_workgroups(decode.shape.target_workgroups);
        self
    }

    /// Plans a step in which the sequences of `needs` attend, by their index, over these tokens, which are all that they
    /// see. Uploads, and so submits what is recorded.
    ///
    /// Errors: as [`Decode::plan`].
    pub(crate) fn plan(&mut self, batch: ExplicitBatch<'_>, needs: &[(usize, Range<u32>)]) -> Result<ExplicitPlan> {
        let rounds = rounds(needs, self.room as u32);
        let stride = PLACES_HEAD + self.room;
        if self.places.len() < rounds.len() * stride {
            self.places = Tensor::zeros(&self.gpu, &[rounds.len().next_power_of_two() * stride], DType::U32)?;
        }
        let mut planned = Vec::with_capacity(rounds.len());
        for (index, round) in rounds.iter().enumerate() {
            let joined = round.joins.then(|| batch.sequences[round.parts[0].sequence]);
            let (first, count) = joined.map_or((0, 0), |sequence| (sequence.q_token_first, sequence.q_len));
            let mut places = vec![round.tokens, first, count, 0];
            for part in &round.parts {
                let sequence = &batch.sequences[part.sequence];
                // Rows that fill up a page stand for none: the part's last token again.
                let end = part.tokens.start + (part.tokens.end - part.tokens.start).next_multiple_of(PART_PAGE as u32);
                for token in part.tokens.start..end {
                    places.push(batch.slot(sequence, token.min(part.tokens.end - 1))?);
                }
            }
            self.gpu.write(&self.places.buffer, 4 * (index * stride) as u64, bytemuck::cast_slice(&places))?;
            let plan = self.plan_round(&batch, round)?;
            planned.push(PlannedRound { plan, tokens: round.tokens as usize, joined: joined.map(|_| count as usize) });
        }
        Ok(ExplicitPlan { rounds: planned })
    }

    fn plan_round(&self, batch: &ExplicitBatch<'_>, round: &Round) -> Result<Plan> {
        let page = PART_PAGE as u32;
        let mut sequences: Vec<SeqView> = batch.sequences.iter().map(|s| SeqView { q_len: 0, ..*s }).collect();
        let mut held = vec![0..1; sequences.len()];
        for part in &round.parts {
            let sequence = &mut sequences[part.sequence];
            sequence.q_len = batch.sequences[part.sequence].q_len;
            sequence.page_table_first = part.at / page;
            (sequence.gap_first, sequence.gap_last) = (0, part.tokens.start);
            held[part.sequence] = part.tokens.clone();
        }
        let pages: Vec<u32> = (0..round.tokens / page).collect();
        self.decode.plan_views(PlanViews {
            sequences: &sequences,
            held: &held,
            masks: &[],
            tokens: batch.tokens,
            page_size: PART_PAGE,
            generation: self.scratch.generation(),
            entries: PageEntries { words: &pages, resident: None },
            most_page: None,
        })
    }

    /// Records the attention of one layer. `up` is to record the product from latents (rows, groups, latent_dim) to keys
    /// and values (rows, q_heads, nope_dim + v_dim), which lie in rows of the second tensor's width.
    ///
    /// Errors: as [`Decode::run`], and those of `up`.
    pub(crate) fn run(&self, args: ExplicitArgs<'_>, up: impl Fn(usize, &Tensor, &Tensor) -> Result<()>) -> Result<()> {
        let ExplicitArgs { plan, layer, q, softmax_scale, output } = args;
        if layer.heads != self.layout.cached || layer.dtype != self.cached_dtype {
            let (got, want) = (layer.heads, self.layout.cached);
            let why = format!("caches {got:?} as {}, wanted {want:?} as {}", layer.dtype, self.cached_dtype);
            return Err(ErrorKind::argument("layer", why));
        }
        for (index, round) in plan.rounds.iter().enumerate() {
            let first = (index * (PLACES_HEAD + self.room)) as u32;
            self.read_rows(layer, first, round.tokens)?;
            up(round.tokens, &self.latents, &self.rows)?;
            let append =
                AppendArgs { kv: Span::of(&self.rows), slots: &self.slots, cos_sin: &self.rows, tokens: round.tokens };
            self.gpu.record(|pass| self.append.encode(&self.gpu, pass, &self.scratch, append))?;
            let other = round.joined.map(|_| self.decode.output(round.plan.tokens())).transpose()?;
            let args = DecodeArgs::new(&round.plan, &self.scratch, q, softmax_scale);
            self.gpu.record(|pass| self.decode.encode(pass, args, other.as_ref().unwrap_or(output)))?;
            if let (Some(other), Some(count)) = (other, round.joined) {
                let buffers = [&self.places, &other.out, &other.lse, &output.out, &output.lse].map(|t| &t.buffer);
                let grid = (count as u32, self.layout.heads.q_heads() as u32, 1);
                self.gpu.record(|pass| self.gpu.dispatch(pass, &self.join, &first, &buffers, grid))?;
            }
        }
        Ok(())
    }

    fn read_rows(&self, layer: &KvView, first: u32, tokens: usize) -> Result<()> {
        let params = CachedRowsParams {
            first,
            page_shift: layer.page_size.ilog2(),
            slot_count: layer.slot_count() as u32,
            slab_pages: layer.pool.slab_pages() as u32,
        };
        let layout = StateLayout::of_decode(&layer.heads, layer.dtype);
        let words = layer.heads.groups() * layout.state_words + layout.rope_words;
        let grid = (words.div_ceil(8) as u32, tokens.div_ceil(8) as u32, 1);
        let slabs = layer.pool.buffers();
        let mut buffers = vec![&self.places.buffer, &slabs[0], &self.latents.buffer, &self.rows.buffer];
        buffers.extend(&slabs[1..]);
        let kernel = self.cached_rows.of(&self.gpu, slabs.len())?;
        self.gpu.record(|pass| self.gpu.dispatch(pass, kernel, &params, &buffers, grid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_hold_every_token_once_and_no_more_than_fits() {
        let cases: [&[(usize, Range<u32>)]; 5] = [
            &[(0, 0..1)],
            &[(0, 0..64), (1, 64..129), (3, 0..500)],
            &[(2, 128..1000), (5, 0..3)],
            &[(0, 0..256), (1, 0..256), (2, 0..257), (3, 0..10)],
            &[],
        ];
        for needs in cases {
            for room in [64, 256, 4096] {
                let rounds = rounds(needs, room);
                let mut found: Vec<(usize, Range<u32>)> = Vec::new();
                for round in &rounds {
                    let mut next = 0;
                    for part in &round.parts {
                        assert_eq!((part.at, part.tokens.start % 64), (next, 0), "{rounds:?}");
                        next += (part.tokens.end - part.tokens.start).next_multiple_of(64);
                        match found.iter_mut().find(|(sequence, _)| *sequence == part.sequence) {
                            Some((_, so_far)) => {
                                assert!(round.joins && round.parts.len() == 1, "{rounds:?}");
                                assert_eq!(so_far.end, part.tokens.start);
                                so_far.end = part.tokens.end;
                            }
                            None => {
                                assert!(!round.joins, "{rounds:?}");
                                found.push((part.sequence, part.tokens.clone()));
                            }
                        }
                    }
                    assert!(next == round.tokens && next <= room, "{rounds:?}");
                }
                found.sort_by_key(|(sequence, _)| *sequence);
                assert_eq!(found, needs, "room {room}");
            }
        }
    }
}
