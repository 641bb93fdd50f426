//! Which decode kernel: tile sizes and lane assignment, chosen once from the layout and the device's limits. Pure.
//!
//! The one predicate for kernel, planner, scratch and dispatch. What the numbers mean stands in `shaders/decode.wgsl`.

use super::layout::StateLayout;
use super::HeadLayout;
use crate::error::{ErrorKind, Result};

/// Most lanes of a workgroup: WebGPU's guaranteed maximum.
const MAX_THREADS: usize = 256;
/// Registers per lane that may hold sums, and that may hold a query slice: together with the fetched words they stay
/// under the 255 of NVIDIA.
const SUM_REGISTERS: usize = 128;
const QUERY_REGISTERS: usize = 64;
/// Words a lane may have in flight.
const MAX_FETCHES: usize = 8;

/// Constants of one variant of the decode kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DecodeShape {
    pub(crate) threads: usize,
    pub(crate) rows_per_block: usize,
    pub(crate) row_blocks: usize,
    pub(crate) tokens: usize,
    pub(crate) key_splits: usize,
    pub(crate) words_per_split: usize,
    pub(crate) token_splits: usize,
    pub(crate) tokens_unrolled: usize,
    pub(crate) units_per_lane: usize,
    pub(crate) query_in_registers: bool,
    pub(crate) tile_vec4s: usize,
    pub(crate) workgroup_bytes: usize,
}

impl DecodeShape {
    /// Query rows of a tile.
    pub(crate) fn rows(&self) -> usize {
        self.rows_per_block * self.row_blocks
    }

    /// The best shape for `rows` rows, or none within the limits.
    fn choose(heads: &HeadLayout, layout: &StateLayout, rows: usize, workgroup_limit: usize) -> Option<Self> {
        let rows_per_block = match rows {
            1 => 1,
            2 => 2,
            _ => 4,
        };
        let row_blocks = rows.div_ceil(rows_per_block);
        let tune = |n: &str, d: usize| std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
        let threads = tune("T_THREADS", MAX_THREADS);
        let units_per_lane = (row_blocks * layout.value_words).div_ceil(threads);
        if units_per_lane * layout.elems_per_word * rows_per_block > SUM_REGISTERS {
            return None;
        }
        let aligned = heads.nope_dim() % 4 == 0 && heads.rope_dim() % 4 == 0;
        let key_words = layout.key_words + layout.rope_words;
        let tile_words = layout.state_words + layout.rope_words;
        [64, 32, 16, 8, 4, 2, 1].into_iter().filter(|t| *t <= tune("T_TOKENS", 32)).find_map(|tokens| {
            if row_blocks * tokens > threads || (tokens * tile_words).div_ceil(threads) > MAX_FETCHES {
                return None;
            }
            let words_per_split = key_words.div_ceil((threads / (row_blocks * tokens)).min(key_words));
            let key_splits = key_words.div_ceil(words_per_split);
            let units = row_blocks * layout.value_words;
            let token_splits = if units_per_lane > 1 { 1 } else { floor_power_of_two(threads / units).min(tokens) };
            let reduction_vec4s = if token_splits > 1 { threads } else { 0 };
            let tile_vec4s = (tokens * (tile_words | 1)).max(reduction_vec4s);
            let block_tokens = row_blocks * tokens;
            let blocks = split_scores(key_splits, block_tokens) + 2 * block_tokens + 2 * row_blocks;
            let workgroup_bytes = 16 * tile_vec4s + 4 * rows_per_block * blocks;
            let slice = words_per_split * layout.elems_per_word * rows_per_block;
            (workgroup_bytes <= workgroup_limit).then_some(Self {
                threads,
                rows_per_block,
                row_blocks,
                tokens,
                key_splits,
                words_per_split,
                token_splits,
                tokens_unrolled: (tokens / token_splits).min(4),
                units_per_lane,
                query_in_registers: slice <= tune("T_QREGS", QUERY_REGISTERS) || !aligned,
                tile_vec4s,
                workgroup_bytes,
            })
        })
    }

    /// The kernels of a layout, one per row tile, ascending: for one query token, a few, and many. A tile is never
    /// taller than what fits; taller sequences take several.
    ///
    /// Errors: [`ErrorKind::Unsupported`] where not even one token of one row block fits in workgroup memory.
    pub(crate) fn all(heads: &HeadLayout, layout: &StateLayout, workgroup_limit: usize) -> Result<Vec<Self>> {
        let mut shapes: Vec<Self> = Vec::new();
        for q_len in [1, 4, 16] {
            let wanted = (heads.heads_per_group() * q_len).min(MAX_ROWS);
            let mut rows = if wanted > 2 { wanted.next_multiple_of(4) } else { wanted };
            let shape = loop {
                match Self::choose(heads, layout, rows, workgroup_limit) {
                    Some(shape) => break shape,
                    None if rows > 4 => rows = (rows / 2).next_multiple_of(4),
                    None => {
                        let what = format!(
                            "a state of {} elements with a rope key of {} does not fit in {workgroup_limit} bytes of \
                             workgroup memory",
                            heads.state_dim(),
                            heads.rope_dim()
                        );
                        return Err(ErrorKind::Unsupported { what }.into());
                    }
                }
            };
            if shapes.last().is_none_or(|last| last.rows() < shape.rows()) {
                shapes.push(shape);
            }
        }
        Ok(shapes)
    }

    /// Row blocks of the key splits' scores; WGSL has no empty array.
    pub(crate) fn split_scores(&self) -> usize {
        split_scores(self.key_splits, self.row_blocks * self.tokens)
    }
}

/// More rows than this are not read together: their sums would not fit in registers.
const MAX_ROWS: usize = 64;

fn split_scores(key_splits: usize, block_tokens: usize) -> usize {
    // At least one: the array exists, unused, where keys are not split.
    if key_splits > 1 {
        block_tokens * (key_splits + 1)
    } else {
        1
    }
}

fn floor_power_of_two(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Gla, Gqa, Gta, Mla};
    use crate::gpu::DType;

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
            for dtype in [DType::F32, DType::F16] {
                let layout = StateLayout::new(&heads, dtype);
                let shapes = DecodeShape::all(&heads, &layout, 16352).unwrap();
                assert!(!shapes.is_empty() && shapes.len() <= 3);
                for s in shapes {
                    assert!(s.workgroup_bytes <= 16352);
                    assert!(s.key_splits * s.row_blocks * s.tokens <= s.threads, "{s:?}");
                    assert!(s.key_splits * s.words_per_split >= layout.key_words + layout.rope_words, "{s:?}");
                    assert_eq!(s.tokens % s.token_splits, 0);
                    assert!(s.units_per_lane * s.threads >= s.row_blocks * layout.value_words);
                    if s.token_splits > 1 {
                        assert!(s.token_splits * s.row_blocks * layout.value_words <= s.threads);
                    }
                    assert!(s.rows() <= s.threads);
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
            assert_eq!(DecodeShape::all(&heads, &layout, 16352).unwrap()[0].rows(), rows);
        }
    }

    #[test]
    fn a_state_too_large_is_refused_with_numbers() {
        let heads = HeadLayout::mla(Mla { q_heads: 1, latent_dim: 8192, rope_dim: 0 }).unwrap();
        let error = DecodeShape::all(&heads, &StateLayout::new(&heads, DType::F32), 16352).unwrap_err();
        assert!(error.to_string().contains("8192"), "{error}");
    }
}
