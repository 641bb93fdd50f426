//! Which decode kernel: tile sizes and lane assignment, chosen once from the layout and the device's limits. Pure.
//!
//! The one predicate for kernel, planner, scratch and dispatch. What the numbers mean stands in `shaders/attention/decode_tile.wgsl`.
//! All shapes that fit are compared by a small model of a multiprocessor (issue slots against latency over the
//! workgroups that fit side by side); its constants were fitted on an H200 (benches/results/2026-11-23-h200.md), and other devices
//! differ in scale more than in order.

use crate::error::{ErrorKind, Result};
use crate::kv::layout::StateLayout;
use crate::kv::HeadLayout;

/// Lanes of a workgroup: 256 is WebGPU's guaranteed maximum.
const THREADS: [usize; 4] = [32, 64, 128, 256];
const TOKENS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Registers per lane: what is held must leave room for addresses and temporaries under the 255 of NVIDIA.
const MAX_REGISTERS: usize = 176;
/// Of which the query's slice may take this many.
const QUERY_REGISTERS: usize = 96;
/// Words of the next tile that a lane may hold: with more, an H200 ran slower (same record).
const MAX_FETCHES: usize = 8;
/// More rows than this are not read together: their sums would not fit in registers.
const MAX_ROWS: usize = 64;

// Of the model of a multiprocessor (SM): an H200's sizes, and fitted clocks.
const SM_LANES: f64 = 128.0;
const SM_REGISTERS: usize = 1 << 16;
const SM_WORKGROUP_BYTES: usize = 200 << 10;
/// Workgroups that are counted as running side by side, at most: more hide no more latency.
const MOST_SIDE_BY_SIDE: usize = 8;
/// Registers of a lane beside those that it holds across steps.
const OTHER_REGISTERS: usize = 80;
/// Clocks of a block's softmax beside its rows, of its barriers per subgroup, and of all else that a block takes.
const SOFTMAX_CLOCKS: usize = 60;
const BARRIER_CLOCKS: usize = 400;
const BLOCK_CLOCKS: usize = 480;

/// Constants of one variant of the decode kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DecodeShape {
    pub(crate) threads: usize,
    pub(crate) rows_per_block: usize,
    pub(crate) row_blocks: usize,
    pub(crate) tokens: usize,
    pub(crate) key_splits: usize,
    pub(crate) words_per_split: usize,
    pub(crate) score_lanes: usize,
    pub(crate) token_splits: usize,
    pub(crate) tokens_unrolled: usize,
    pub(crate) units_per_lane: usize,
    pub(crate) state_fetches: usize,
    pub(crate) rope_fetches: usize,
    pub(crate) query_in_registers: bool,
    /// Words of the tile's memory.
    pub(crate) tile_length: usize,
    pub(crate) workgroup_bytes: usize,
    /// Registers that a lane holds across steps.
    registers: usize,
}

/// What the device allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShapeLimits {
    pub(crate) workgroup_bytes: usize,
    /// Lanes that run in step; smaller workgroups would leave some idle.
    pub(crate) subgroup_size: usize,
}

impl DecodeShape {
    /// Query rows of a tile.
    pub(crate) fn rows(&self) -> usize {
        self.rows_per_block * self.row_blocks
    }

    /// The kernels of a layout, one per row tile, ascending: for one query token, a few, and many. A tile is never
    /// taller than what fits; taller sequences take several.
    ///
    /// Errors: [`ErrorKind::Unsupported`] where not even one token of one row block fits in workgroup memory.
    pub(crate) fn all(heads: &HeadLayout, layout: &StateLayout, limits: ShapeLimits) -> Result<Vec<Self>> {
        let mut shapes: Vec<Self> = Vec::new();
        for q_len in [1, 4, 16] {
            let wanted = (heads.heads_per_group() * q_len).min(MAX_ROWS);
            let shape = Self::of_rows(heads, layout, limits, wanted)?;
            if shapes.last().is_none_or(|last| last.rows() < shape.rows()) {
                shapes.push(shape);
            }
        }
        Ok(shapes)
    }

    /// The kernel for as many rows as fit.
    ///
    /// Errors: as [`DecodeShape::all`].
    pub(crate) fn tallest(heads: &HeadLayout, layout: &StateLayout, limits: ShapeLimits) -> Result<Self> {
        Self::of_rows(heads, layout, limits, MAX_ROWS)
    }

    /// The kernel for `wanted` rows, or for fewer where those do not fit.
    fn of_rows(heads: &HeadLayout, layout: &StateLayout, limits: ShapeLimits, wanted: usize) -> Result<Self> {
        let mut rows = if wanted > 2 { wanted.next_multiple_of(4) } else { wanted };
        loop {
            match Self::choose(heads, layout, rows, limits) {
                Some(shape) => return Ok(shape),
                None if rows > 4 => rows = (rows / 2).next_multiple_of(4),
                None => {
                    let what = format!(
                        "a state of {} elements with a rope key of {} does not fit in {} bytes of workgroup memory",
                        heads.state_dim(),
                        heads.rope_dim(),
                        limits.workgroup_bytes
                    );
                    return Err(ErrorKind::Unsupported { what }.into());
                }
            }
        }
    }

    /// The best shape for `rows` rows by the model, or none within the limits.
    fn choose(heads: &HeadLayout, layout: &StateLayout, rows: usize, limits: ShapeLimits) -> Option<Self> {
        let key_words = layout.query_words();
        let mut best: Option<(f64, Self)> = None;
        for threads in THREADS.into_iter().filter(|t| *t >= limits.subgroup_size) {
            for tokens in TOKENS {
                for words_per_split in 1..=key_words {
                    let Some(shape) = Self::build(heads, layout, [rows, threads, tokens, words_per_split]) else {
                        continue;
                    };
                    let cost = shape.cost(limits.subgroup_size, layout.spans > 0);
                    let fits = shape.workgroup_bytes <= limits.workgroup_bytes;
                    if fits && best.as_ref().is_none_or(|(least, _)| cost < *least) {
                        best = Some((cost, shape));
                    }
                }
            }
        }
        best.map(|(_, shape)| shape)
    }

    /// The shape with these numbers, or none where lanes or registers do not suffice.
    fn build(heads: &HeadLayout, layout: &StateLayout, numbers: [usize; 4]) -> Option<Self> {
        let [rows, threads, tokens, words_per_split] = numbers;
        let rows_per_block = match rows {
            1 => 1,
            2 => 2,
            _ => 4,
        };
        let row_blocks = rows.div_ceil(rows_per_block);
        let block_tokens = row_blocks * tokens;
        let key_splits = layout.query_words().div_ceil(words_per_split);
        if block_tokens > threads || row_blocks * key_splits > threads {
            return None;
        }
        let score_lanes = floor_power_of_two(threads / (row_blocks * key_splits)).min(tokens);
        let tile_words = layout.state_words + layout.rope_words;
        let state_fetches = (tokens * layout.state_words).div_ceil(threads);
        let rope_fetches = (tokens * layout.rope_words).div_ceil(threads);
        let units = row_blocks * layout.value_words;
        let units_per_lane = units.div_ceil(threads);
        let token_splits = if units_per_lane > 1 { 1 } else { floor_power_of_two(threads / units).min(tokens) };

        // Unaligned queries can only be read element by element, so never inside the loop.
        let aligned = heads.nope_dim().is_multiple_of(4) && heads.rope_dim().is_multiple_of(4);
        let elems = layout.elems_per_word;
        let fetched = layout.word_bytes / 4 * (state_fetches + rope_fetches);
        let held = rows_per_block * (units_per_lane * (elems + 1) + tokens / score_lanes) + fetched;
        let slice = words_per_split * elems * rows_per_block;
        let query_in_registers = (held + slice <= MAX_REGISTERS && slice <= QUERY_REGISTERS) || !aligned;
        let registers = held + if query_in_registers { slice } else { elems * rows_per_block };
        if state_fetches + rope_fetches > MAX_FETCHES.max(layout.state_words.div_ceil(threads) + 1) {
            return None;
        }
        if registers > MAX_REGISTERS && aligned {
            return None;
        }
        // Sums of four rows pass through it, 16 bytes a lane.
        let reduction = if token_splits > 1 { threads * (16 / layout.word_bytes) } else { 0 };
        let tile_length = (tokens * (tile_words | 1)).max(reduction);
        let scale_bytes = if layout.spans > 0 { 8 * tokens } else { 0 };
        let blocks = block_tokens * (key_splits | 1) + 2 * block_tokens + 2 * row_blocks;
        Some(Self {
            threads,
            rows_per_block,
            row_blocks,
            tokens,
            key_splits,
            words_per_split,
            score_lanes,
            token_splits,
            tokens_unrolled: (tokens / token_splits).min(4),
            units_per_lane,
            state_fetches,
            rope_fetches,
            query_in_registers,
            tile_length,
            workgroup_bytes: layout.word_bytes * tile_length + 4 * rows_per_block * blocks + 8 * tokens + scale_bytes,
            registers,
        })
    }

    /// Modelled clocks per token of one multiprocessor: issue slots, and latency shared by the workgroups side by side.
    /// The weights were fitted to seventeen timings on an H200 (the same record, "Which shape"): they order shapes,
    /// they do not predict times. For integers (`scaled`), whose words have 16 elements of two instructions each to unpack, the same
    /// weights are taken: not fitted.
    fn cost(&self, subgroup_size: usize, scaled: bool) -> f64 {
        let (rows, elems, unpack) = (self.rows_per_block, if scaled { 16 } else { 8 }, if scaled { 2 } else { 1 });
        let product = 3 + unpack * elems + elems * rows;
        let query_load = if self.query_in_registers { 0 } else { 5 * elems * rows };
        let score = self.words_per_split * (query_load + self.tokens / self.score_lanes * product);
        let reduce = 8 * self.key_splits * (1 + rows);
        let softmax = self.tokens * (1 + rows) + SOFTMAX_CLOCKS;
        let output = self.units_per_lane * (self.tokens / self.token_splits * (product + 2 + rows) + 10);
        let fetch = (self.state_fetches + self.rope_fetches) * 16 + 20;
        let barriers = BARRIER_CLOCKS * self.threads.div_ceil(subgroup_size);

        // Lanes that sit out still occupy their subgroup, but whole subgroups that sit out cost nothing.
        let softmax_lanes = (self.row_blocks * self.tokens).next_multiple_of(subgroup_size.min(self.threads));
        let issue = self.threads * (score + output + fetch) + softmax_lanes * (reduce + softmax);
        let latency = score + reduce + softmax + output + fetch + barriers + BLOCK_CLOCKS;
        let by_registers = SM_REGISTERS / ((self.registers + OTHER_REGISTERS) * self.threads);
        let by_memory = SM_WORKGROUP_BYTES / self.workgroup_bytes;
        let side_by_side = by_registers.min(by_memory).clamp(1, MOST_SIDE_BY_SIDE);
        (issue as f64 / SM_LANES + latency as f64 / side_by_side as f64) / self.tokens as f64
    }
}

fn floor_power_of_two(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DType;
    use crate::gpu::PORTABLE_WORKGROUP_BYTES;
    use crate::kv::{Gla, Gqa, Gta, Mla};

    const LIMITS: ShapeLimits = ShapeLimits { workgroup_bytes: PORTABLE_WORKGROUP_BYTES, subgroup_size: 32 };

    fn layouts() -> Vec<HeadLayout> {
        let mut all = Vec::new();
        for q_heads in [1, 2, 3, 8, 9, 16, 32, 63, 64, 128] {
            for dim in [8, 32, 48, 64, 96, 100, 128, 192, 256, 512] {
                all.push(HeadLayout::mla(Mla { q_heads, latent_dim: dim, rope_dim: 64 }).unwrap());
                all.push(HeadLayout::gqa(Gqa { q_heads, kv_heads: 1, head_dim: dim }).unwrap());
                all.push(
                    HeadLayout::gta(Gta { q_heads, kv_heads: q_heads, head_dim: dim, rope_dim: dim / 2 }).unwrap(),
                );
            }
        }
        all
    }

    #[test]
    fn every_layout_gets_kernels_within_default_limits() {
        for heads in layouts() {
            for dtype in [DType::F32, DType::F16, DType::I8, DType::I4] {
                let layout = StateLayout::of_decode(&heads, dtype);
                let shapes = DecodeShape::all(&heads, &layout, LIMITS).unwrap();
                assert!(!shapes.is_empty() && shapes.len() <= 3);
                for s in shapes {
                    assert!(s.workgroup_bytes <= PORTABLE_WORKGROUP_BYTES);
                    assert!(s.key_splits * s.row_blocks * s.score_lanes <= s.threads, "{s:?}");
                    assert!(s.row_blocks * s.tokens <= s.threads, "{s:?}");
                    assert_eq!(s.tokens % s.score_lanes, 0);
                    assert!(s.key_splits * s.words_per_split >= layout.query_words(), "{s:?}");
                    assert_eq!(s.tokens % s.token_splits, 0);
                    assert!(s.units_per_lane * s.threads >= s.row_blocks * layout.value_words);
                    if s.token_splits > 1 {
                        assert!(s.token_splits * s.row_blocks * layout.value_words <= s.threads);
                    }
                    assert!(s.row_blocks <= s.threads);
                }
            }
        }
    }

    #[test]
    fn one_query_group_is_one_tile() {
        // Each state is read once per query group: up to 64 heads of a group share one tile at these real shapes.
        let gla = HeadLayout::gla(Gla { q_heads: 128, latent_heads: 2, latent_dim: 256, rope_dim: 64 }).unwrap();
        let mla = HeadLayout::mla(Mla { q_heads: 16, latent_dim: 512, rope_dim: 64 }).unwrap();
        let gqa = HeadLayout::gqa(Gqa { q_heads: 32, kv_heads: 8, head_dim: 128 }).unwrap();
        for (heads, rows) in [(gla, 64), (mla, 16), (gqa, 4)] {
            let layout = StateLayout::new(&heads, DType::F16);
            assert_eq!(DecodeShape::all(&heads, &layout, LIMITS).unwrap()[0].rows(), rows);
        }
    }

    #[test]
    fn a_state_too_large_is_refused_with_numbers() {
        let heads = HeadLayout::mla(Mla { q_heads: 1, latent_dim: 8192, rope_dim: 0 }).unwrap();
        let error = DecodeShape::all(&heads, &StateLayout::new(&heads, DType::F32), LIMITS).unwrap_err();
        assert!(error.to_string().contains("8192"), "{error}");
    }
}
