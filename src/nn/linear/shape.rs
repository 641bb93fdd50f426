//! Which kernel a linear is, by its matrix, its rows and the device. Pure.

use super::cached::CachedOutputs;
use super::matrix::{ordered, MatrixTile};
use super::weight_type::WeightType;
use crate::error::{ErrorKind, Result};
use crate::gpu::{number, part, Access, Capabilities, DType, KernelSpec, Tier, PORTABLE_WORKGROUP_BYTES};
use crate::kv::pool::with_slabs;
use crate::nn::experts::form::{expert_bias_part, swiglu_part};
use crate::nn::rope::pairs_part;
use crate::nn::{GateClamp, Weight};
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
    /// all; `in_lanes` of 1 takes 16.
    pub out_lanes: usize,
    /// Sums of eight lanes by subgroup operations, to the same bits as without.
    pub subgroups: bool,
}

/// What is fused with a product.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fusion {
    pub(crate) norm: bool,
    pub(crate) swiglu: bool,
    /// Of a SwiGLU, that it is a GeGLU.
    pub(crate) gelu: bool,
    /// And this, that it is a clamped one.
    pub(crate) clamp: Option<GateClamp>,
    /// Outputs are capped.
    pub(crate) softcap: bool,
    pub(crate) tail: Option<RopePairs>,
    /// Of few rows only.
    pub(crate) rest: bool,
    /// Outputs that are queries and cached rows, or with `rest` a rest that is cached rows; of few rows only.
    pub(crate) cached: Option<CachedOutputs>,
    /// Rows by a list of those of each expert ([`Experts`](crate::nn::Experts)); of [`Shape::Tile`] alone.
    pub(crate) listed: bool,
    /// Of rows by a list, whether products have biases.
    pub(crate) biased: bool,
    /// Few rows of an aligned input take no step past the end of a matrix row ([`LinearTuning::whole_steps`]).
    pub(crate) whole: bool,
    /// Dot products of bytes for few rows ([`Linear::with_integer_dot`](crate::nn::Linear::with_integer_dot)).
    pub(crate) integers: bool,
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
    /// the device likes, a few words each. Measured with `linear_table --sweep` (4096 x 4096 on an H100, 2048 x 11264 and
    /// 5632 x 2048 on an H200). Through workgroup memory the dozens of sums of 8 rows are faster than by subgroups (22.8 us, 40; of 128
    /// lanes 14.5, 20.6). Those of one row are as fast, but of 128 lanes in a model (a step of 24 layers 1.40 ms, 1.33 by subgroups).
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
        let more = LinearTuning { in_lanes, outs, steps, max_rows: 16, out_lanes, subgroups: false };
        let half_enough = |outs: &usize| enough(&(outs / 2));
        let widest: &[usize] = if in_lanes > 64 { &[4] } else { &[8, 4] };
        let eight_outs = widest.iter().copied().find(half_enough).unwrap_or(2);
        let eight = LinearTuning { outs: eight_outs, steps: 4, ..more };
        let one = match kind {
            WeightType::Plain(DType::I8) => more,
            WeightType::Blocks(_) => LinearTuning { outs: outs.min(2), steps: 8, ..more },
            WeightType::Plain(_) => LinearTuning { outs: 1, steps: 2, ..more },
        };
        let one = LinearTuning { subgroups: capabilities.tier >= Tier::Subgroup && in_lanes > 64, ..one };
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

    /// Whether the lanes' steps along a matrix row end where it ends, so that no load needs a bound.
    pub(crate) fn whole_steps(&self, rows: usize, weight: &Weight) -> bool {
        let kind = weight.weight_type();
        let lanes = if kind.blocks().is_some() && self.in_lanes > 1 { self.in_lanes / 4 } else { self.in_lanes };
        weight.row_words().is_multiple_of(self.steps(rows) * lanes)
            && weight.in_dim() == weight.row_words() * kind.per_word()
    }

    /// Sums of eight lanes of an output, which are added in turn.
    fn segments(&self) -> usize {
        (self.in_lanes / 8).max(1)
    }

    /// How a lane's sums are joined with those of the others.
    fn sums(&self, rows: usize, fusion: Fusion) -> Sums {
        let values = rows * self.outs + if fusion.norm { rows } else { 0 };
        let (lanes, out_lanes) = (self.in_lanes * self.out_lanes, self.out_lanes);
        if self.in_lanes == 1 {
            return Sums { passes: 1, pass: values, bytes: 0 };
        }
        let segments = out_lanes * (self.segments() | 1);
        let (passes, partials) = if self.subgroups {
            (1, values * segments)
        } else {
            // shaders/nn/reduce/workgroup.wgsl: nine places for eight lanes, an odd number.
            let partials = (lanes / 8 * 9) | 1;
            let passes = values.div_ceil((PASS_BYTES / (4 * partials)).clamp(1, 16));
            (passes, values.div_ceil(passes) * (partials + segments))
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
        let words = match self {
            Shape::Matrix(_) if ordered(kind) => part!("nn/weight_words/ordered.wgsl"),
            _ => part!("nn/weight_words/constant.wgsl"),
        };
        let mut parts = match fusion.listed {
            true => vec![part!("nn/experts_listed.wgsl"), expert_bias_part(fusion.biased), part!("nn/experts_io.wgsl")],
            false => vec![part!("nn/linear_params.wgsl"), words, part!("nn/linear_io.wgsl")],
        };
        let (weight_parts, mut consts) = kind.parts()?;
        parts.extend(weight_parts);
        let cached_outputs = fusion.cached.filter(|_| !fusion.rest);
        parts.push(match (fusion.swiglu, cached_outputs) {
            (true, _) if fusion.gelu => part!("nn/output/geglu.wgsl"),
            (true, _) => swiglu_part(fusion.clamp),
            (false, None) if fusion.softcap => part!("nn/output/softcap.wgsl"),
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
        consts.extend(fusion.clamp.iter().flat_map(GateClamp::consts));
        consts.extend(fusion.biased.then_some(("BIAS_BINDING", number(8))));
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
                    ("WHOLE", number((fusion.whole && vec4).into())),
                    ("IN_LANES", number(tuning.in_lanes)),
                    ("OUT_LANES", number(out_lanes)),
                    ("LANES", number(lanes)),
                    ("PASSES", number(sums.passes)),
                    ("PASS", number(sums.pass)),
                    ("PADDED", number(sums.passes * sums.pass)),
                    ("JOINED_LANES", number(if lone { 1 } else { lanes })),
                    ("JOINED_SUMS", number(if lone { 1 } else { out_lanes })),
                ]);
                if lone {
                    parts.push(part!("nn/reduce/none.wgsl"));
                } else {
                    consts.push(("SEGMENTS", number(tuning.segments())));
                    parts.push(part!("nn/segments.wgsl"));
                    parts.push(match tuning.subgroups {
                        true => part!("nn/reduce/subgroup.wgsl", Subgroup),
                        false => part!("nn/reduce/workgroup.wgsl"),
                    });
                }
                consts.push(("PRODUCTS", number(rows * outs)));
                parts.push(match kind {
                    WeightType::Blocks(_) if lone => part!("nn/sums/blocks.wgsl"),
                    WeightType::Blocks(_) if fusion.integers => part!("nn/sums/integers.wgsl"),
                    WeightType::Plain(DType::I8) if fusion.integers && !lone => part!("nn/sums/bytes.wgsl"),
                    WeightType::Blocks(_) => part!("nn/sums/pieces.wgsl"),
                    WeightType::Plain(_) => part!("nn/sums/words.wgsl"),
                });
                if let Some(cached) = &fusion.cached {
                    parts.extend(cached.parts(fusion.rest)?);
                    consts.extend(cached.consts());
                }
                parts.push(match (fusion.rest, fusion.cached) {
                    (true, Some(_)) => part!("nn/beside/append.wgsl"),
                    (true, None) => part!("nn/beside/norm.wgsl"),
                    (false, _) => part!("nn/beside/none.wgsl"),
                });
                parts.push(match cached_outputs {
                    Some(_) => part!("nn/rows_end/cached.wgsl"),
                    None => part!("nn/rows_end/plain.wgsl"),
                });
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
                    ("WHOLE", number(0)),
                ]);
                parts.push(part!("nn/linear_tile.wgsl"));
                (if fusion.listed { "experts_tile" } else { "linear_tile" }, 16 * 9 * 8 * (micro_rows + MICRO_OUT))
            }
        };
        use Access::{Read, Write};
        let mut bindings = vec![Read, Read, Read, Write, Read, Read];
        if fusion.tail.is_some() || fusion.listed {
            bindings.push(Read);
            bindings.extend(fusion.biased.then_some(Read));
        } else if fusion.rest && matches!(self, Shape::Rows(_)) {
            bindings.push(Read);
            bindings.extend(fusion.cached.is_none().then_some(Write));
        }
        bindings.extend(fusion.cached.iter().flat_map(|_| [Read, Read, Write]));
        let spec = KernelSpec { name, consts, parts, bindings, workgroup_bytes };
        Ok(match fusion.cached {
            Some(cached) => with_slabs(&spec, cached.slabs),
            None => spec,
        })
    }
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
