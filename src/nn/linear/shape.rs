//! Which kernel a linear is, by its matrix, its rows and the device. Pure.

use super::blocks::BlockType;
use super::cached::{self, CachedOutputs};
use super::matrix::{pack_spec, MatrixTile};
use super::weight_type::WeightType;
use crate::error::{ErrorKind, Result};
use crate::gpu::{number, part, Access, Capabilities, DType, KernelSpec, Tier, PORTABLE_WORKGROUP_BYTES};
use crate::kv::pool::with_slabs;
use crate::nn::rope::pairs_part;
use crate::nn::Weight;
use crate::rope::RopePairs;

/// The numbers of a [`Linear`](crate::nn::Linear)'s kernels for few rows (`shaders/nn/linear_rows.wgsl`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearTuning {
    /// Lanes that go along the input together: a power of two in 8..=256; or 1, where lanes share nothing.
    pub in_lanes: usize,
    /// Matrix rows of a lane: 1, 2, 4 or 8; with SwiGLU not 1.
    pub outs: usize,
    /// Words of 16 bytes per matrix row that a lane has on their way at once: 1, 2, 4 or 8. Up to 2 rows of input; half
    /// as many for 4, one for more.
    pub steps: usize,
    /// Most rows of input in one go: 1, 2, 4, 8 or 16. More rows are the tile kernel's.
    pub max_rows: usize,
    /// So many times `in_lanes` lanes side by side in a workgroup, each for outputs of its own: 1, 2, 4, 8 or 16. At most 256 lanes in
    /// all; with subgroup operations `in_lanes` is then a subgroup or more, and `in_lanes` of 1 takes 16.
    pub out_lanes: usize,
    /// Sums over lanes by subgroup operations.
    pub subgroups: bool,
}

/// What is fused with a product.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fusion {
    pub(crate) norm: bool,
    pub(crate) swiglu: bool,
    pub(crate) tail: Option<RopePairs>,
    /// Of few rows only.
    pub(crate) rest: bool,
    /// Outputs that are queries and cached rows; of few rows only.
    pub(crate) cached: Option<CachedOutputs>,
    /// Rows by a list of those of each expert ([`Experts`](crate::nn::Experts)); of [`Shape::Tile`] alone.
    pub(crate) listed: bool,
}

/// A kernel by the rows it takes at a time, and how it does so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// linear_rows.wgsl: matrix times a few vectors, each weight read once for them all.
    Rows(usize),
    /// linear_tile.wgsl with `8 * n` rows per tile.
    Tile(usize),
    /// linear_matrix.wgsl, and before it linear_pack.wgsl.
    Matrix(MatrixTile),
}

/// Outputs per lane, in each dimension, of linear_tile.wgsl.
const MICRO_OUT: usize = 8;
/// The fewest lanes of a subgroup where the tier has them.
const LEAST_SUBGROUP: usize = 8;
/// Lanes of a workgroup that share nothing.
const LONE_LANES: usize = 16;
/// Workgroup memory that the sums over lanes may take at once; the rest is left to the results.
const PASS_BYTES: usize = 12 << 10;

impl LinearTuning {
    /// A software adapter runs few lanes at once, and those that meet at a barrier as coroutines: each goes along whole rows.
    pub(crate) const SOFTWARE: [Self; 3] = {
        let more =
            LinearTuning { in_lanes: 1, outs: 4, steps: 1, max_rows: 8, out_lanes: LONE_LANES, subgroups: false };
        [LinearTuning { outs: 2, ..more }, more, more]
    };

    /// For a device and a matrix: of one row of input, of more, and of 3 to 8. They differ in what leaves a row's sums as they are.
    /// The time of few rows is that of reading the matrix, so what counts is enough loads on their way: as many lanes as
    /// the device likes, a few words each. Measured with `linear_table --sweep` (4096 x 4096 on an H100, 2048 x 11264 on an
    /// H200). Through workgroup memory the dozens of sums of 8 rows are faster than by subgroups (31 us, 40), and those of one row
    /// as fast, if there are few lanes: of 128 it is slower (11.4 us, 9.3 of 5632 x 2048).
    pub(crate) fn of(capabilities: &Capabilities, weight: &Weight) -> [Self; 3] {
        if capabilities.is_software() {
            return LinearTuning::SOFTWARE;
        }
        let least = (capabilities.subgroup_size as usize).next_power_of_two().clamp(8, 64);
        let kind = weight.weight_type();
        let words = match kind {
            WeightType::Blocks(_) => 2,
            WeightType::Plain(DType::I8) => 4,
            WeightType::Plain(_) => 8,
        };
        let in_lanes = weight.row_words().div_ceil(words).next_power_of_two().clamp(least, 128);
        let wanted_lanes = 64 * capabilities.target_workgroups;
        let matrix_rows = weight.heads() * weight.out_dim();
        let enough = |outs: &usize| matrix_rows / outs * in_lanes >= wanted_lanes;
        let outs = [4, 2].into_iter().find(enough).unwrap_or(1);
        let steps = if outs == 4 { 2 } else { 4 };
        // Where it is not known how many lanes run together, a workgroup has at least 64.
        let out_lanes = if capabilities.tier >= Tier::Subgroup { 1 } else { 64usize.div_ceil(in_lanes) };
        let subgroups = capabilities.tier >= Tier::Subgroup && in_lanes > 64;
        let more = LinearTuning { in_lanes, outs, steps, max_rows: 16, out_lanes, subgroups };
        let half_enough = |outs: &usize| enough(&(outs / 2));
        let eight = LinearTuning { outs: [8, 4].into_iter().find(half_enough).unwrap_or(2), steps: 4, ..more };
        let one = match kind {
            WeightType::Plain(DType::I8) if !subgroups => more,
            WeightType::Plain(DType::I8) | WeightType::Blocks(_) => {
                LinearTuning { outs: outs.min(2), steps: 4, ..more }
            }
            WeightType::Plain(_) => LinearTuning { outs: 1, steps: 2, ..more },
        };
        [one, more, eight]
    }

    pub(crate) fn check(&self, capabilities: &Capabilities, swiglu: bool) -> Result<()> {
        let Self { in_lanes, outs, steps, max_rows, out_lanes, subgroups } = *self;
        let one_of = |n: usize, most: usize| n.is_power_of_two() && n <= most;
        let fits = one_of(in_lanes, 256)
            && (in_lanes >= 8 || (in_lanes == 1 && !subgroups))
            && one_of(outs, 8)
            && one_of(steps, 8)
            && one_of(max_rows, 16)
            && one_of(out_lanes, 16)
            && in_lanes * out_lanes <= 256
            && !(swiglu && outs == 1);
        let fusion = Fusion { norm: true, swiglu, ..Default::default() };
        if !fits || self.sums(max_rows, fusion).bytes > PORTABLE_WORKGROUP_BYTES {
            return Err(ErrorKind::argument("tuning", format!("{self:?} makes no kernel")));
        }
        if subgroups && out_lanes > 1 && in_lanes < capabilities.subgroup_size as usize {
            let why = format!("{self:?}: subgroups have up to {} lanes", capabilities.subgroup_size);
            return Err(ErrorKind::argument("tuning", why));
        }
        if subgroups && capabilities.tier < Tier::Subgroup {
            return Err(ErrorKind::Unsupported { what: "subgroup operations".into() }.into());
        }
        Ok(())
    }

    /// By rows, ascending.
    pub(crate) fn shapes(&self) -> Vec<Shape> {
        let few = [1, 2, 4, 8, 16].into_iter().filter(|rows| *rows <= self.max_rows).map(Shape::Rows);
        few.chain([Shape::Tile(2), Shape::Tile(4)]).collect()
    }

    fn steps(&self, rows: usize) -> usize {
        match rows {
            1 | 2 => self.steps,
            4 => (self.steps / 2).max(1),
            _ => 1,
        }
    }

    /// How a lane's sums are joined with those of the others.
    fn sums(&self, rows: usize, fusion: Fusion) -> Sums {
        let values = rows * self.outs + if fusion.norm { rows } else { 0 };
        let (lanes, out_lanes) = (self.in_lanes * self.out_lanes, self.out_lanes);
        if self.in_lanes == 1 {
            return Sums { passes: 1, pass: values, bytes: 0 };
        }
        let (passes, partials) = if self.subgroups {
            (1, values * (lanes / LEAST_SUBGROUP))
        } else {
            let passes = values.div_ceil((PASS_BYTES / (4 * (lanes + 1))).min(16));
            (passes, values.div_ceil(passes) * (lanes + 1))
        };
        let pass = values.div_ceil(passes);
        Sums { passes, pass, bytes: 4 * (partials + passes * pass * out_lanes) }
    }
}

struct Sums {
    passes: usize,
    pass: usize,
    bytes: usize,
}

impl Shape {
    pub(crate) fn rows(self) -> usize {
        match self {
            Shape::Rows(n) => n,
            Shape::Tile(n) => 8 * n,
            Shape::Matrix(tile) => tile.rows(),
        }
    }

    /// Outputs of a workgroup.
    pub(crate) fn outputs(self, tuning: &LinearTuning, swiglu: bool) -> usize {
        let sums = match self {
            Shape::Rows(_) => tuning.outs * tuning.out_lanes,
            Shape::Tile(_) => 8 * MICRO_OUT,
            Shape::Matrix(tile) => tile.matrix_rows(),
        };
        sums / if swiglu { 2 } else { 1 }
    }

    pub(crate) fn spec(
        self,
        tuning: &LinearTuning,
        kind: impl Into<WeightType>,
        vec4: bool,
        fusion: Fusion,
    ) -> Result<KernelSpec> {
        let kind = kind.into();
        let vecs = kind.per_word() / 4;
        let sums_per_output = if fusion.swiglu { 2 } else { 1 };
        let mut parts = match fusion.listed {
            true => vec![part!("nn/experts_listed.wgsl"), part!("nn/experts_io.wgsl")],
            false => vec![part!("nn/linear_params.wgsl"), part!("nn/linear_io.wgsl")],
        };
        let (weight_parts, mut consts) = kind.parts()?;
        parts.extend(weight_parts);
        parts.push(match (fusion.swiglu, &fusion.cached) {
            (true, _) => part!("nn/output/swiglu.wgsl"),
            (false, Some(_)) => part!("nn/output/cached.wgsl"),
            (false, None) => part!("nn/output/plain.wgsl"),
        });
        match fusion.tail {
            Some(rotation) => parts.extend([pairs_part(rotation), part!("nn/tail/rope.wgsl")]),
            None => parts.push(part!("nn/tail/none.wgsl")),
        }
        let input = [
            if vec4 { part!("nn/input/vec4.wgsl") } else { part!("nn/input/scalar.wgsl") },
            if fusion.norm { part!("nn/gain/rms.wgsl") } else { part!("nn/gain/none.wgsl") },
        ];
        consts.extend([("VECS_PER_WORD", number(vecs)), ("SCALES_BINDING", number(6))]);
        let (name, workgroup_bytes) = match self {
            Shape::Matrix(tile) => return Ok(tile.spec(kind, fusion, (parts, consts))),
            Shape::Rows(rows) => {
                parts.extend(input);
                consts.extend([("NORMS", number(fusion.norm.into())), ("GAIN_BINDING", number(5))]);
                let sums = tuning.sums(rows, fusion);
                let (steps, outs, out_lanes) = (tuning.steps(rows), tuning.outs, tuning.out_lanes);
                let (lanes, lone) = (tuning.in_lanes * out_lanes, tuning.in_lanes == 1);
                consts.extend([
                    ("ROWS", number(rows)),
                    ("OUTS", number(outs)),
                    ("OUTPUTS", number(outs / sums_per_output)),
                    ("STEPS", number(steps)),
                    ("STEP_WORDS", number(steps * outs)),
                    ("IN_LANES", number(tuning.in_lanes)),
                    ("OUT_LANES", number(out_lanes)),
                    ("LANES", number(lanes)),
                    ("PASSES", number(sums.passes)),
                    ("PASS", number(sums.pass)),
                    ("PADDED", number(sums.passes * sums.pass)),
                    ("JOINED_LANES", number(if lone { 1 } else { lanes })),
                    ("JOINED_SUMS", number(if lone { 1 } else { out_lanes })),
                ]);
                if tuning.subgroups {
                    consts.push(("MAX_SUBGROUPS", number(lanes / LEAST_SUBGROUP)));
                    parts.push(part!("nn/reduce/subgroup.wgsl"));
                } else if lone {
                    parts.push(part!("nn/reduce/none.wgsl"));
                } else {
                    parts.push(part!("nn/reduce/workgroup.wgsl"));
                }
                consts.push(("PRODUCTS", number(rows * outs)));
                parts.push(match kind {
                    WeightType::Blocks(_) if lone => part!("nn/sums/blocks.wgsl"),
                    WeightType::Blocks(_) => part!("nn/sums/pieces.wgsl"),
                    WeightType::Plain(_) => part!("nn/sums/words.wgsl"),
                });
                parts.push(if fusion.rest { part!("nn/beside/norm.wgsl") } else { part!("nn/beside/none.wgsl") });
                match &fusion.cached {
                    Some(cached) => {
                        parts.extend(cached.parts()?);
                        parts.push(part!("nn/rows_end/cached.wgsl"));
                        consts.extend(cached.consts());
                    }
                    None => parts.push(part!("nn/rows_end/plain.wgsl")),
                }
                parts.push(part!("nn/linear_rows.wgsl"));
                ("linear_rows", sums.bytes)
            }
            Shape::Tile(micro_rows) => {
                parts.extend(input);
                consts.extend([("NORMS", number(fusion.norm.into())), ("GAIN_BINDING", number(5))]);
                consts.extend([
                    ("MICRO_ROWS", number(micro_rows)),
                    ("MICRO_OUT", number(MICRO_OUT)),
                    ("OUT_LANES", number(8)),
                    ("OUTPUTS", number(MICRO_OUT / sums_per_output)),
                    ("TILE_WORDS", number(MICRO_OUT / vecs)),
                ]);
                parts.push(part!("nn/linear_tile.wgsl"));
                (if fusion.listed { "experts_tile" } else { "linear_tile" }, 16 * 9 * 8 * (micro_rows + MICRO_OUT))
            }
        };
        use Access::{Read, Write};
        let mut bindings = vec![Read, Read, Read, Write, Read, Read];
        if fusion.tail.is_some() || fusion.listed {
            bindings.push(Read);
        } else if fusion.rest && matches!(self, Shape::Rows(_)) {
            bindings.extend([Read, Write]);
        }
        bindings.extend(fusion.cached.iter().flat_map(|_| [Read, Read, Write]));
        let spec = KernelSpec { name, consts, parts, bindings, workgroup_bytes };
        Ok(match fusion.cached {
            Some(cached) => with_slabs(&spec, cached.slabs),
            None => spec,
        })
    }
}

/// A representative set of kernel texts: every slot and shape, on software adapters and GPUs of either tier.
pub(crate) fn specs() -> Result<Vec<(String, KernelSpec)>> {
    let [one, software, _] = LinearTuning::SOFTWARE;
    let portable = LinearTuning { in_lanes: 32, outs: 2, steps: 4, max_rows: 16, out_lanes: 2, subgroups: false };
    let wide = LinearTuning { in_lanes: 128, outs: 4, steps: 2, out_lanes: 1, ..portable };
    let subgroups = LinearTuning { in_lanes: 64, subgroups: true, ..wide };
    let side_by_side = LinearTuning { in_lanes: 32, steps: 8, out_lanes: 4, ..subgroups };
    let plain = Fusion::default();
    let norm = Fusion { norm: true, ..plain };
    let both = Fusion { swiglu: true, ..norm };
    let rest = Fusion { rest: true, ..norm };
    let tails = [RopePairs::Half, RopePairs::Interleaved].map(|r| Fusion { tail: Some(r), ..plain });
    let mut all = Vec::new();
    let mut add = |shape: Shape, tuning: &LinearTuning, dtype: DType, vec4: bool, fusion: Fusion| {
        shape.spec(tuning, dtype, vec4, fusion).map(|spec| all.push((dtype.to_string(), spec)))
    };
    // Each slot with each dtype and alignment, then each shape of each device.
    for dtype in [DType::F32, DType::F16, DType::I8] {
        for vec4 in [true, false] {
            for fusion in [plain, norm, both, rest, tails[0], tails[1]] {
                add(Shape::Rows(1), &one, dtype, vec4, fusion)?;
            }
            add(Shape::Tile(4), &software, dtype, vec4, both)?;
        }
    }
    for tuning in [software, portable, wide, subgroups, side_by_side] {
        for shape in tuning.shapes() {
            add(shape, &tuning, DType::F16, true, both)?;
        }
        add(Shape::Rows(tuning.max_rows), &tuning, DType::I8, true, rest)?;
        add(Shape::Rows(1), &tuning, DType::F16, true, plain)?;
    }
    for (dtype, outs, steps) in [(DType::F16, 1, 2), (DType::I8, 2, 4)] {
        for tuning in [wide, subgroups] {
            add(Shape::Rows(1), &LinearTuning { outs, steps, ..tuning }, dtype, true, norm)?;
        }
    }
    for fusion in [plain, tails[0]] {
        add(Shape::Tile(2), &software, DType::F16, true, fusion)?;
    }
    for tile in MatrixTile::TABLE {
        for dtype in [DType::F16, DType::I8] {
            for fusion in [plain, both, tails[0], tails[1]] {
                add(Shape::Matrix(tile), &subgroups, dtype, true, fusion)?;
            }
        }
    }
    all.extend(block_specs(&subgroups, &software)?);
    all.extend(cached::specs([one, subgroups, portable])?);
    for (in_dim, vec4) in [(4096, true), (64, true), (61, false)] {
        all.extend([false, true].map(|norm| (format!("{in_dim}"), pack_spec(in_dim, vec4, norm))));
    }
    Ok(all)
}

/// The same of each block type, with fewer of the other slots.
fn block_specs(gpu: &LinearTuning, software: &LinearTuning) -> Result<Vec<(String, KernelSpec)>> {
    let plain = Fusion::default();
    let both = Fusion { norm: true, swiglu: true, ..plain };
    let rest = Fusion { rest: true, norm: true, ..plain };
    let mut all = Vec::new();
    for block in BlockType::ALL {
        let few = [
            (Shape::Rows(1), software, false, plain),
            (Shape::Rows(1), gpu, true, rest),
            (Shape::Rows(8), software, true, both),
            (Shape::Rows(16), gpu, true, both),
        ];
        let many = [(Shape::Tile(2), software, true, plain), (Shape::Tile(4), software, false, both)];
        let tiles = MatrixTile::TABLE.map(|tile| (Shape::Matrix(tile), gpu, true, both));
        for (shape, tuning, vec4, fusion) in few.into_iter().chain(many).chain(tiles) {
            all.push((block.to_string(), shape.spec(tuning, block, vec4, fusion)?));
        }
    }
    Ok(all)
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
