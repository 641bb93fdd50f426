//! `y = W x + b`, for one matrix or one per head. The absorbed projections of GLA and MLA are this kernel too.

use super::span::Extent;
use super::{params, word, Span, Weight};
use crate::attention::append::elements_part;
use crate::error::Result;
use crate::gpu::{number, part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};

params!(Params {
    rows: u32,
    out_dim: u32,
    in_dim: u32,
    row_vec4: u32,
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
    has_bias: u32,
    accumulate: u32,
});
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

/// A kernel by the rows it takes at a time, and how it does so. The one list: [`choose`] picks from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// linear_rows.wgsl: matrix times a few vectors, each weight read once for them all.
    Rows(usize),
    /// linear_tile.wgsl with `8 * n` rows per tile.
    Tile(usize),
}
const SHAPES: [Shape; 6] =
    [Shape::Rows(1), Shape::Rows(2), Shape::Rows(4), Shape::Rows(8), Shape::Tile(2), Shape::Tile(4)];

/// Index into [`SHAPES`] of the kernel for so many rows.
fn choose(rows: usize) -> usize {
    SHAPES.iter().position(|s| rows <= s.rows()).unwrap_or(SHAPES.len() - 1)
}

/// Outputs of one lane in linear_rows.wgsl.
const OUTS: usize = 4;
/// Lanes of linear_rows.wgsl.
const LANES: usize = 64;
/// Outputs per lane, in each dimension, of linear_tile.wgsl.
const MICRO_OUT: usize = 8;

impl Shape {
    fn rows(self) -> usize {
        match self {
            Shape::Rows(n) => n,
            Shape::Tile(n) => 8 * n,
        }
    }

    fn outs(self, in_lanes: usize) -> usize {
        match self {
            Shape::Rows(_) => OUTS * (LANES / in_lanes),
            Shape::Tile(_) => 8 * MICRO_OUT,
        }
    }

    fn spec(self, dtype: DType, in_lanes: usize, vec4: bool) -> Result<KernelSpec> {
        let quads = ("VECS_PER_WORD", number(dtype.per_vec4() / 4));
        let input = if vec4 { part!("parts/input_vec4.wgsl") } else { part!("parts/input_scalar.wgsl") };
        let (name, text, consts, workgroup_bytes) = match self {
            Shape::Rows(rows) => {
                let consts = vec![
                    ("ROWS", number(rows)),
                    ("OUTS", number(OUTS)),
                    ("IN_LANES", number(in_lanes)),
                    ("OUT_LANES", number(LANES / in_lanes)),
                    ("LANES", number(LANES)),
                    quads,
                ];
                ("linear_rows", part!("linear_rows.wgsl"), consts, 4 * rows * OUTS * (LANES + 1))
            }
            Shape::Tile(micro_rows) => {
                let consts = vec![("MICRO_ROWS", number(micro_rows)), ("MICRO_OUT", number(MICRO_OUT)), quads];
                ("linear_tile", part!("linear_tile.wgsl"), consts, 16 * 9 * 8 * (micro_rows + MICRO_OUT))
            }
        };
        let parts = vec![part!("parts/linear_io.wgsl"), input, elements_part(dtype)?, text];
        let bindings = vec![Access::Read, Access::Read, Access::Read, Access::Write];
        Ok(KernelSpec { name, consts, parts, bindings, workgroup_bytes })
    }
}

/// Every kernel of a dtype: [`SHAPES`] with 16-byte input, then with input of any alignment.
pub(super) fn specs(dtype: DType, in_lanes: usize) -> Result<Vec<KernelSpec>> {
    [true, false].iter().flat_map(|&vec4| SHAPES.map(|s| s.spec(dtype, in_lanes, vec4))).collect()
}

/// A linear layer on the device: `y[r, h, :] (+)= W[h] x[r, h, :] + b[h]`.
#[derive(Clone)]
pub struct Linear {
    gpu: Gpu,
    weight: Weight,
    /// (heads, out_dim) F32.
    bias: Option<Tensor>,
    kernels: Vec<Kernel>,
    in_lanes: usize,
}

impl Linear {
    /// Compiles the kernels of this weight. `bias` is (heads, out_dim) F32.
    ///
    /// Errors: [`ErrorKind::Shape`](crate::ErrorKind::Shape), [`ErrorKind::Gpu`](crate::ErrorKind::Gpu).
    pub fn new(gpu: &Gpu, weight: &Weight, bias: Option<&Tensor>) -> Result<Self> {
        if let Some(bias) = bias {
            bias.expect("bias", &[weight.heads(), weight.out_dim()], DType::F32)?;
        }
        // A software adapter runs few lanes at once: more work for each costs less in reductions.
        let in_lanes = if gpu.capabilities().is_software() { 8 } else { 32 };
        let kernels = specs(weight.dtype(), in_lanes)?.into_iter().map(|s| gpu.kernel(s)).collect::<Result<_>>()?;
        Ok(Linear { gpu: gpu.clone(), weight: weight.clone(), bias: bias.cloned(), kernels, in_lanes })
    }

    /// The weights.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Records `rows` rows. `x` is (rows, heads, in_dim), `y` (rows, heads, out_dim), in another buffer;
    /// `accumulate` adds to what `y` holds.
    ///
    /// Errors: [`ErrorKind::Shape`](crate::ErrorKind::Shape), [`ErrorKind::DType`](crate::ErrorKind::DType),
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for an output that overlaps itself or shares the buffer of `x`.
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        rows: usize,
        x: Span<'_>,
        y: Span<'_>,
        accumulate: bool,
    ) -> Result<()> {
        let w = &self.weight;
        let (heads, in_dim, out_dim) = (w.heads(), w.in_dim(), w.out_dim());
        x.check("x", Extent { rows, heads, dim: in_dim })?;
        let bias = self.bias.as_ref().unwrap_or(&w.tensor);
        y.check_output("y", Extent { rows, heads, dim: out_dim }, &[x.tensor, &w.tensor, bias])?;
        let params = Params {
            rows: word(rows),
            out_dim: word(out_dim),
            in_dim: word(in_dim),
            row_vec4: word(w.row_vec4()),
            x_offset: word(x.offset),
            x_row_stride: word(x.row_stride),
            x_head_stride: word(x.head_stride),
            y_offset: word(y.offset),
            y_row_stride: word(y.row_stride),
            y_head_stride: word(y.head_stride),
            has_bias: self.bias.is_some().into(),
            accumulate: accumulate.into(),
        };
        let choice = choose(rows);
        let shape = SHAPES[choice];
        let aligned = x.is_vec4() && in_dim % 4 == 0;
        let kernel = &self.kernels[if aligned { choice } else { SHAPES.len() + choice }];
        let buffers = [&w.tensor.buffer, &x.tensor.buffer, &bias.buffer, &y.tensor.buffer];
        let outs = out_dim.div_ceil(shape.outs(self.in_lanes));
        let grid = (word(outs), word(rows.div_ceil(shape.rows())), word(heads));
        self.gpu.dispatch(pass, kernel, &params, &buffers, grid)
    }

    /// [`Linear::encode`] into the [`Gpu`]'s own pass.
    pub fn run(&self, rows: usize, x: Span<'_>, y: Span<'_>, accumulate: bool) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, rows, x, y, accumulate))
    }
}
