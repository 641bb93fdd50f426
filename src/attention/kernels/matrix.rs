//! Which cooperative-matrix kernel: how subgroups share the two products, chosen once from the layout and the device.
//! Pure.
//!
//! For many query rows over f16 caches, on devices that multiply 16 x 16 matrices of f16 (`shaders/attention/decode_matrix.wgsl`).

use crate::kv::layout::StateLayout;
use crate::kv::HeadLayout;

/// Lanes of a subgroup: what the kernel is written for.
pub(crate) const SUBGROUP: usize = 32;
/// Registers of a lane for what it holds across steps, under the 255 of NVIDIA: the fastest shape for 64 rows of MLA
/// has 228.
const MAX_REGISTERS: usize = 232;
/// Rows of the tallest tile: the sums of 64 rows of 256 elements are a quarter of a multiprocessor's registers.
pub(crate) const MAX_ROWS: usize = 64;

/// Constants of one variant of the matrix kernel. Tiles are of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MatrixShape {
    pub(crate) row_tiles: usize,
    pub(crate) token_tiles: usize,
    /// In the first product a subgroup takes `row_tiles / row_groups` row tiles, one token tile, and one of
    /// `key_splits` parts of the key; in the second all rows of its columns.
    pub(crate) row_groups: usize,
    pub(crate) key_splits: usize,
    /// Whether rows of scores are kept apart from each other's banks, for which memory may be short.
    pub(crate) padded: bool,
}

impl MatrixShape {
    pub(crate) fn rows(&self) -> usize {
        16 * self.row_tiles
    }

    /// Whether a subgroup's scores are one tile, of rows that are its own (`shaders/attention/matrix_step`).
    pub(crate) fn own(&self) -> bool {
        self.padded && self.key_splits == 1 && self.row_groups == self.row_tiles
    }

    pub(crate) fn tokens(&self) -> usize {
        16 * self.token_tiles
    }

    pub(crate) fn subgroups(&self) -> usize {
        self.row_groups * self.token_tiles * self.key_splits
    }

    pub(crate) fn threads(&self) -> usize {
        SUBGROUP * self.subgroups()
    }

    /// The shape for tiles of `rows` rows (16, 32 or 64), or none where the dimensions are no multiples of 16 or memory
    /// does not suffice.
    pub(crate) fn choose(
        heads: &HeadLayout,
        layout: &StateLayout,
        rows: usize,
        workgroup_bytes: usize,
    ) -> Option<Self> {
        let dims = [heads.nope_dim(), heads.rope_dim(), heads.v_offset(), heads.v_dim(), heads.state_dim()];
        if layout.elems_per_word != 8 || dims.iter().any(|dim| !dim.is_multiple_of(16)) {
            return None;
        }
        let row_tiles = rows / 16;
        let mut shapes = Vec::new();
        for token_tiles in [2, 1] {
            for row_groups in [1, 2, 4].into_iter().filter(|n| row_tiles.is_multiple_of(*n)) {
                for (key_splits, padded) in [1, 2, 4, 8].into_iter().flat_map(|n| [(n, true), (n, false)]) {
                    shapes.push(Self { row_tiles, token_tiles, row_groups, key_splits, padded });
                }
            }
        }
        shapes.retain(|shape| shape.fits(heads, layout, workgroup_bytes));
        // Eight subgroups hide each other's waits (H100, 16 rows of GLA: 281 us, 316 with four); then a softmax that waits for
        // nobody (H200, 64 rows of GLA: 762 us, 736), then the least traffic.
        shapes.into_iter().min_by_key(|s| (8 - s.subgroups(), !s.own(), !s.padded, s.traffic(heads, layout)))
    }

    fn fits(&self, heads: &HeadLayout, layout: &StateLayout, workgroup_bytes: usize) -> bool {
        let (key_tiles, columns) = (heads.q_dim() / 16, heads.v_dim() / 16);
        let wanted = if self.row_tiles == 1 { 4..=8 } else { 8..=8 };
        wanted.contains(&self.subgroups())
            && key_tiles.is_multiple_of(self.key_splits)
            && columns.is_multiple_of(self.subgroups())
            // Rows and tokens have whole lanes each.
            && self.rows() <= self.threads() / 2
            && self.tokens() >= self.threads() / self.rows()
            && self.registers(heads, layout) <= MAX_REGISTERS
            && self.stage_fits(1, layout)
            && self.workgroup_bytes(layout) <= workgroup_bytes
    }

    /// Key matrices of a subgroup's part.
    pub(crate) fn key_steps(&self, heads: &HeadLayout) -> usize {
        heads.q_dim() / 16 / self.key_splits
    }

    /// Row tiles of a subgroup in the first product.
    pub(crate) fn group_tiles(&self) -> usize {
        self.row_tiles / self.row_groups
    }

    /// Column tiles of a subgroup in the second product.
    pub(crate) fn column_tiles(&self, heads: &HeadLayout) -> usize {
        heads.v_dim() / 16 / self.subgroups()
    }

    /// Words of a state and of a rope key that a lane fetches.
    pub(crate) fn fetches(&self, layout: &StateLayout) -> (usize, usize) {
        let lanes = self.threads() / self.tokens();
        (layout.state_words.div_ceil(lanes), layout.rope_words.div_ceil(lanes))
    }

    fn registers(&self, heads: &HeadLayout, layout: &StateLayout) -> usize {
        let (state, rope) = self.fetches(layout);
        let queries = 4 * self.key_steps(heads) * self.group_tiles();
        queries + 8 * self.row_tiles * self.column_tiles(heads) + 8 * self.group_tiles() + 4 * (state + rope)
    }

    /// Words between the rows of scores.
    pub(crate) fn score_stride(&self) -> usize {
        match self.own() {
            // Of a tile alone; two lanes read a row, and those of 8 rows at once meet no bank twice.
            true => 6,
            false => self.tokens() / 4 + usize::from(self.padded),
        }
    }

    /// Whether `steps` matrices of each part of the key, of all rows, have room in place of a tile.
    fn stage_fits(&self, steps: usize, layout: &StateLayout) -> bool {
        self.rows() * ((2 * self.key_splits * steps) | 1) <= self.arrays(layout).tile_words
    }

    /// Key matrices of a part whose queries are staged at once.
    pub(crate) fn stage_steps(&self, heads: &HeadLayout, layout: &StateLayout) -> usize {
        let steps = self.key_steps(heads);
        (1..=steps).rev().find(|n| steps.is_multiple_of(*n) && self.stage_fits(*n, layout)).unwrap_or(1)
    }

    /// Bytes that a step moves through workgroup memory, per token: what bounds the kernel where rows are many.
    fn traffic(&self, heads: &HeadLayout, layout: &StateLayout) -> usize {
        let tokens = self.tokens();
        let tile = 16 * tokens * (layout.state_words + layout.rope_words);
        let keys = 2 * tokens * heads.q_dim() * self.row_groups;
        // By 4 bytes a lane, which takes longer: the factor puts the shapes that were timed in their order (tests).
        let scores = 7 * 2 * 4 * self.key_splits * self.rows() * tokens / 3;
        let weights = 2 * self.rows() * tokens * (1 + self.subgroups());
        let values = 2 * tokens * heads.v_dim();
        // Four barriers a step, each worth some kilobytes of traffic.
        let barriers = 4 * 8192;
        (tile + keys + scores + weights + values + barriers) / tokens
    }

    /// Elements of the workgroup's arrays.
    pub(crate) fn arrays(&self, layout: &StateLayout) -> Arrays {
        let stride = (layout.state_words + layout.rope_words) | 1;
        let scores = match self.own() {
            true => self.subgroups() * 16 * self.score_stride(),
            false => self.key_splits * self.rows() * self.score_stride(),
        };
        Arrays {
            tile_words: self.tokens() * stride,
            score_vec4s: scores.max(64 * self.subgroups()),
            weight_words: self.rows() * (self.tokens() / 8 + 1),
        }
    }

    pub(crate) fn workgroup_bytes(&self, layout: &StateLayout) -> usize {
        let arrays = self.arrays(layout);
        // Beside the arrays and factors: what a row's lanes share, and a word for a maximum that rises and one for the items.
        let shares = if self.own() { 4 * self.token_tiles * self.rows() } else { 0 };
        16 * (arrays.tile_words + arrays.score_vec4s + arrays.weight_words) + 4 * self.rows() + shares + 32
    }
}

/// See [`MatrixShape::arrays`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrays {
    pub(crate) tile_words: usize,
    pub(crate) score_vec4s: usize,
    pub(crate) weight_words: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::DType;
    use crate::gpu::MATRIX_WORKGROUP_BYTES;
    use crate::kv::{Gla, Mla};

    /// `benches/results/2026-11-25-h100.md`: the fastest of those timed on an H100.
    #[test]
    fn timed_layouts_get_their_fastest_shape() {
        let gla = |q_heads| HeadLayout::gla(Gla { q_heads, latent_heads: 2, latent_dim: 256, rope_dim: 64 }).unwrap();
        let mla = |q_heads| HeadLayout::mla(Mla { q_heads, latent_dim: 512, rope_dim: 64 }).unwrap();
        for (heads, rows, token_tiles, row_groups, key_splits) in
            [(gla(16), 16, 2, 1, 4), (gla(128), 64, 2, 4, 1), (mla(16), 16, 2, 1, 4), (mla(128), 64, 1, 4, 2)]
        {
            let layout = StateLayout::new(&heads, DType::F16);
            let shape = MatrixShape::choose(&heads, &layout, rows, MATRIX_WORKGROUP_BYTES).unwrap();
            let got = (shape.token_tiles, shape.row_groups, shape.key_splits);
            assert_eq!(got, (token_tiles, row_groups, key_splits), "{heads:?}: {shape:?}");
            assert!(shape.workgroup_bytes(&layout) <= MATRIX_WORKGROUP_BYTES);
        }
    }

    #[test]
    fn odd_dimensions_and_little_memory_get_none() {
        let odd = HeadLayout::mla(Mla { q_heads: 64, latent_dim: 100, rope_dim: 64 }).unwrap();
        let even = HeadLayout::mla(Mla { q_heads: 64, latent_dim: 512, rope_dim: 64 }).unwrap();
        for (heads, dtype, bytes) in [
            (odd, DType::F16, MATRIX_WORKGROUP_BYTES),
            (even, DType::F32, MATRIX_WORKGROUP_BYTES),
            (even, DType::F16, 16 << 10),
        ] {
            let layout = StateLayout::new(&heads, dtype);
            assert_eq!(MatrixShape::choose(&heads, &layout, 64, bytes), None, "{heads:?} {dtype}");
        }
    }
}
