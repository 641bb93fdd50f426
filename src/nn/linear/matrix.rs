//! The product of many rows by cooperative matrices: its tiles, which of them for how many rows, its texts. Pure.

use super::shape::Fusion;
use super::weight_type::WeightType;
use crate::error::{ErrorKind, Result};
use crate::gpu::{
    number, part, Access, Capabilities, Const, Consts, DType, KernelSpec, ShaderPart, Tier, MATRIX_WORKGROUP_BYTES,
};

/// Lanes of a subgroup: what the kernel is written for, and [`Tier::Matrix`] promises.
const SUBGROUP: usize = 32;
/// Words that rows of packed input are padded to: whole steps of any tile.
const ROW_ALIGN: usize = 16;
/// Packed input of one call; with more the portable kernel takes over, rather than hold so much memory.
const MAX_PACKED_BYTES: usize = 512 << 20;

/// The tile of a [`Linear`](crate::nn::Linear)'s kernel by cooperative matrices (`shaders/nn/linear_matrix.wgsl`), in matrices of
/// 16 x 16. A workgroup takes `16 * row_tiles * row_groups` rows and `16 * out_tiles * out_groups` matrix rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixTile {
    /// Matrices of a subgroup along the rows of input: 1, 2 or 4.
    pub row_tiles: usize,
    /// Matrices of a subgroup along the matrix rows: 2 or 4.
    pub out_tiles: usize,
    /// Subgroups along the rows of input: 1, 2 or 4.
    pub row_groups: usize,
    /// Subgroups along the matrix rows: 1, 2 or 4; at most 8 subgroups in all.
    pub out_groups: usize,
    /// Words of 8 elements that a step takes of each row: 4, 8 or 16.
    pub step_words: usize,
    /// Steps whose words are on their way at once: 1 or more, with at most 16 words of a row in all.
    pub ahead: usize,
}

const fn tile(tiles: (usize, usize), groups: (usize, usize), step_words: usize, ahead: usize) -> MatrixTile {
    let ((row_tiles, out_tiles), (row_groups, out_groups)) = (tiles, groups);
    MatrixTile { row_tiles, out_tiles, row_groups, out_groups, step_words, ahead }
}

impl MatrixTile {
    /// From large to small. A large tile reads less from the cache for each product, a small one fills the device with
    /// fewer rows.
    pub(crate) const TABLE: [Self; 3] =
        [tile((4, 2), (2, 4), 8, 2), tile((2, 2), (2, 2), 16, 1), tile((1, 2), (4, 1), 16, 1)];

    /// The tiles of a device for weights of a type; none where it cannot multiply matrices, or would have to round weights.
    pub(crate) fn all(capabilities: &Capabilities, kind: WeightType) -> Vec<Self> {
        let fits = kind.is(DType::F16) || kind.is(DType::I8) || kind.blocks().is_some();
        if capabilities.tier < Tier::Matrix || !fits {
            return Vec::new();
        }
        Self::TABLE
            .into_iter()
            .filter(|t| t.workgroup_bytes() <= capabilities.workgroup_storage_bytes as usize)
            .collect()
    }

    /// Of `tiles`, from large to small, the first that fills the device, or the last; none for input that is too large.
    /// `shape` is that of the weights.
    pub(crate) fn choose(tiles: &[Self], capabilities: &Capabilities, rows: usize, shape: [usize; 3]) -> Option<usize> {
        let [heads, out_dim, in_dim] = shape;
        if rows > capabilities.max_workgroups as usize || packed_bytes(rows, heads, in_dim) > MAX_PACKED_BYTES {
            return None;
        }
        // Four subgroups on each multiprocessor: the planner's target has some 8 workgroups of attention for each. Measured
        // on an H100 with 4096 x 4096, us: 64 rows 62 and 50 with the middle and small tile, 512 rows 102 and 192 with
        // the large and middle one; 256 rows 109 with the middle one, and with the large one at most what 512 take.
        let wanted = capabilities.target_workgroups / 2;
        let subgroups = |t: &Self| heads * rows.div_ceil(t.rows()) * out_dim.div_ceil(t.matrix_rows()) * t.subgroups();
        // Of a tile of twice the rows, half would be for nothing.
        let fills = tiles.iter().position(|t| t.rows() < 2 * rows && subgroups(t) >= wanted);
        fills.or(tiles.len().checked_sub(1))
    }

    pub(crate) fn check(&self) -> Result<()> {
        let Self { row_tiles, out_tiles, row_groups, out_groups, step_words, ahead } = *self;
        let fits = [1, 2, 4].contains(&row_tiles)
            && [2, 4].contains(&out_tiles)
            && [row_groups, out_groups].iter().all(|n| [1, 2, 4].contains(n))
            && row_groups * out_groups <= 8
            && [4, 8, 16].contains(&step_words)
            && (1..=ROW_ALIGN).contains(&ahead)
            && ahead.is_power_of_two()
            && ahead * step_words <= ROW_ALIGN
            && (self.rows() * step_words).is_multiple_of(self.threads())
            && (self.matrix_rows() * step_words / 2).is_multiple_of(self.threads())
            && self.workgroup_bytes() <= MATRIX_WORKGROUP_BYTES;
        if !fits {
            return Err(ErrorKind::argument("tile", format!("{self:?} makes no kernel")));
        }
        Ok(())
    }

    /// [`MatrixTile::check`], and that all lanes fetch as many words of weights of this type.
    pub(crate) fn check_for(&self, kind: WeightType) -> Result<()> {
        self.check()?;
        let words = self.matrix_rows() * self.step_words * 8;
        match words.is_multiple_of(kind.per_word().max(16) * self.threads()) {
            true => Ok(()),
            false => Err(ErrorKind::argument("tile", format!("{self:?} makes no kernel for weights in {kind}"))),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        16 * self.row_tiles * self.row_groups
    }

    pub(crate) fn matrix_rows(&self) -> usize {
        16 * self.out_tiles * self.out_groups
    }

    fn subgroups(&self) -> usize {
        self.row_groups * self.out_groups
    }

    fn threads(&self) -> usize {
        SUBGROUP * self.subgroups()
    }

    /// A step of both tiles, and 16 x 16 sums for each subgroup.
    pub(crate) fn workgroup_bytes(&self) -> usize {
        let row_bytes = 16 * (self.step_words | 1);
        row_bytes * (self.rows() + self.matrix_rows()) + 1024 * self.subgroups()
    }

    pub(crate) fn spec(
        &self,
        kind: WeightType,
        fusion: Fusion,
        (mut parts, weight_consts): (Vec<ShaderPart>, Consts),
    ) -> KernelSpec {
        let halves_per_word = kind.per_word() / 8;
        let sums = if fusion.swiglu { 2 } else { 1 };
        let x_fetches = self.rows() * self.step_words / self.threads();
        let w_fetches = self.matrix_rows() * self.step_words / halves_per_word / self.threads();
        let mut consts: Consts = vec![
            ("f16", Const::Enable),
            ("wgpu_cooperative_matrix", Const::Enable),
            ("THREADS", number(self.threads())),
            ("ROW_TILES", number(self.row_tiles)),
            ("OUT_TILES", number(self.out_tiles)),
            ("ROW_GROUPS", number(self.row_groups)),
            ("OUT_GROUPS", number(self.out_groups)),
            ("STEP_WORDS", number(self.step_words)),
            ("STEP_MATRICES", number(self.step_words / 2)),
            ("HALVES_PER_WORD", number(halves_per_word)),
            ("AHEAD", number(self.ahead)),
            ("X_FETCHES", number(x_fetches)),
            ("W_FETCHES", number(w_fetches)),
            ("X_HELD", number(self.ahead * x_fetches)),
            ("W_HELD", number(self.ahead * w_fetches)),
            ("SUM_MATRICES", number(self.row_tiles * self.out_tiles)),
            ("SUMS", number(sums)),
            ("OUTPUTS", number(self.out_tiles / sums)),
            ("OUT_LANES", number(16)),
            ("ROW_ALIGN", number(ROW_ALIGN)),
        ];
        consts.extend(weight_consts);
        parts.extend([
            match ordered(kind) {
                true => part!("nn/packed_input/ordered.wgsl"),
                false => part!("nn/packed_input/constant.wgsl"),
            },
            part!("half_word.wgsl"),
            part!("nn/linear_matrix.wgsl", Subgroup, native),
        ]);
        use Access::{Read, Write};
        let factors = if ordered(kind) { Write } else { Read };
        let mut bindings = vec![factors, Read, Read, Write, factors, Read];
        bindings.extend(fusion.tail.map(|_| Read));
        KernelSpec { name: "linear_matrix", consts, parts, bindings, workgroup_bytes: self.workgroup_bytes() }
    }
}

/// Whether weights and packed input are declared as if they were written to, so that the driver keeps their reads ahead of the
/// products they are issued ahead of. On an H200, 2,048 rows of 2,048 x 11,264, us: f16 494 to 421, i8 524 to 471; Q4_K, whose
/// words are few and take long to unpack, 500 to 537.
pub(crate) fn ordered(kind: WeightType) -> bool {
    kind.blocks().is_none()
}

/// Words of a row of packed input.
fn packed_words(in_dim: usize) -> usize {
    in_dim.div_ceil(8).next_multiple_of(ROW_ALIGN)
}

/// What `linear_pack` writes: halves and a word of factor for each row of each head.
pub(crate) fn packed_bytes(rows: usize, heads: usize, in_dim: usize) -> usize {
    rows.saturating_mul(heads).saturating_mul(16 * (packed_words(in_dim) + 1))
}

/// The kernel that rounds the input to f16 for the product: `vec4` as for the other kernels, `norm` of the input.
pub(crate) fn pack_spec(in_dim: usize, vec4: bool, norm: bool) -> KernelSpec {
    let steps = 2;
    let lanes = packed_words(in_dim).div_ceil(steps).next_power_of_two().clamp(SUBGROUP, 256);
    let consts = vec![
        ("LANES", number(lanes)),
        ("STEPS", number(steps)),
        ("ROW_ALIGN", number(ROW_ALIGN)),
        ("GAIN_BINDING", number(3)),
        ("WHOLE", number(0)),
    ];
    let parts = vec![
        part!("nn/linear_params.wgsl"),
        if vec4 { part!("nn/input/vec4.wgsl") } else { part!("nn/input/scalar.wgsl") },
        if norm { part!("nn/gain/rms.wgsl") } else { part!("nn/gain/none.wgsl") },
        part!("nn/linear_pack.wgsl"),
    ];
    let bindings = vec![Access::Write, Access::Read, Access::Read];
    KernelSpec { name: "linear_pack", consts, parts, bindings, workgroup_bytes: 8 * lanes }
}
