//! Experts of many rows: the rows listed by expert on the device, so that each matrix is read once per tile of its rows.

use super::form::{ExpertForm, GateClamp};
use crate::error::{ErrorKind, Result};
use crate::gpu::pieces::pieces;
use crate::gpu::{number, part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};
use crate::nn::linear::shape::{Fusion, LinearTuning, Shape};
use crate::nn::{params, word, BlockType, ExpertArgs, Experts, Span, Weight, WeightType};
use std::sync::{Arc, OnceLock};

/// A tile kernel takes no notice of it.
const ANY: LinearTuning = LinearTuning::SOFTWARE[1];

params!(ListParams { pairs: u32, experts: u32 });
params!(TileParams {
    pairs: u32,
    experts: u32,
    out_dim: u32,
    in_dim: u32,
    row_words: u32,
    pairs_per_row: u32,
    x_row_stride: u32,
    y_row_stride: u32,
    first_out: u32,
    first_group: u32,
    first_tile: u32,
});
params!(SumParams { outputs: u32, first_out: u32, x_row_stride: u32, y_row_stride: u32 });
#[cfg(test)]
pub(crate) const PARAM_FIELDS: [&[(&str, usize)]; 3] = [ListParams::FIELDS, TileParams::FIELDS, SumParams::FIELDS];

const LANES: usize = 64;
/// Most rows of a tile.
const MAX_TILE_ROWS: usize = 32;
/// What the experts' outputs may take before they are summed; more of them are made and summed in runs of outputs.
const OUTPUT_BYTES: usize = 32 << 20;
/// Runs of outputs are multiples of what a workgroup makes.
const RUN: usize = 64;

/// The sizes of a layer of [`Experts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertShape {
    /// Experts that there are.
    pub experts: usize,
    /// Of them, how many a row goes to.
    pub top: usize,
    /// Width of the rows.
    pub dim: usize,
    /// Width of an expert's SwiGLU.
    pub width: usize,
}

/// How [`Experts`] multiply many rows. The default is what is best by measurement, not by device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertTuning {
    /// Rows of an expert that share one reading of its matrices: 8, 16 or 32.
    pub tile_rows: usize,
    /// Rows are listed by expert where an expert has so many or more of them on average; 0 for always.
    pub rows_per_expert: usize,
}

impl Default for ExpertTuning {
    /// Measured (benches/results/2026-11-26-h100.md): a tile of 16 rows takes as long as four rows by themselves on a software adapter, and as three
    /// to four on an H100.
    fn default() -> Self {
        ExpertTuning { tile_rows: 16, rows_per_expert: 5 }
    }
}

impl ExpertTuning {
    pub(crate) fn check(&self) -> Result<()> {
        match self.tile_rows {
            8 | 16 | 32 => Ok(()),
            _ => Err(ErrorKind::argument("tuning", format!("{self:?} makes no kernel"))),
        }
    }

    /// Whether so many rows of a layer are listed: if they are, so are more.
    pub fn lists(&self, shape: ExpertShape, rows: usize) -> bool {
        rows.saturating_mul(shape.top) >= self.rows_per_expert.saturating_mul(shape.experts)
    }
}

/// The memory of [`Experts`] between their dispatches, for layers of one [`ExpertShape`]; made by [`Experts::scratch`].
#[derive(Debug, Clone)]
pub struct ExpertScratch {
    pub(crate) shape: ExpertShape,
    /// The most rows of a call.
    pub(crate) rows: usize,
    /// (rows, top, width) F32
    pub(crate) hidden: Tensor,
    lists: Option<Lists>,
}

/// What the listing of rows needs besides.
#[derive(Clone, Debug)]
struct Lists {
    /// (tiles * rows of a tile) U32, for any tile
    list: Tensor,
    /// (rows, top, a run of dim) F32
    outputs: Tensor,
}

impl ExpertScratch {
    /// Without what listing needs where no call lists.
    pub(crate) fn new(gpu: &Gpu, shape: ExpertShape, tuning: ExpertTuning, rows: usize) -> Result<Self> {
        let ExpertShape { experts, top, dim, width } = shape;
        let hidden = Tensor::scratch(gpu, &[rows, top, width], DType::F32)?;
        let lists: Option<Result<Lists>> = tuning.lists(shape, rows).then(|| {
            let pairs = rows * top;
            let fits = OUTPUT_BYTES / 4 / pairs.max(1) / RUN * RUN;
            Ok(Lists {
                list: Tensor::scratch(gpu, &[pairs + MAX_TILE_ROWS * experts], DType::U32)?,
                outputs: Tensor::scratch(gpu, &[rows, top, fits.max(RUN).min(dim)], DType::F32)?,
            })
        });
        Ok(ExpertScratch { shape, rows, hidden, lists: lists.transpose()? })
    }
}

pub(crate) fn list_spec(tile_rows: usize) -> KernelSpec {
    KernelSpec {
        name: "experts_list",
        consts: vec![("LANES", number(LANES)), ("TILE_ROWS", number(tile_rows))],
        parts: vec![part!("nn/experts_listed.wgsl"), part!("nn/experts_list.wgsl")],
        bindings: vec![Access::Read, Access::Write],
        workgroup_bytes: 8 * LANES,
    }
}

pub(crate) fn tile_spec(
    tile_rows: usize,
    kind: impl Into<WeightType>,
    (vec4, up): (bool, bool),
    form: ExpertForm,
) -> Result<KernelSpec> {
    let clamp = form.clamp.filter(|_| up);
    let fusion = Fusion { swiglu: up, clamp, listed: true, biased: form.biased, ..Default::default() };
    Shape::Tile(tile_rows / 8).spec(&ANY, kind, vec4, fusion)
}

pub(crate) fn sum_spec(top: usize) -> KernelSpec {
    KernelSpec {
        name: "experts_sum",
        consts: vec![("LANES", number(LANES)), ("TOP", number(top))],
        parts: vec![part!("nn/experts_sum.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Write],
        workgroup_bytes: 0,
    }
}

/// As gpt-oss has it, for inspection.
pub(crate) const GPT_OSS: GateClamp = GateClamp { alpha: 1.702, limit: 7.0 };

/// Every kernel text of listed rows: each slot with each dtype, and each height of a tile.
pub(crate) fn specs() -> Result<Vec<(String, KernelSpec)>> {
    let mut all = vec![("6 experts".into(), sum_spec(6))];
    for tile_rows in [8, 16, 32] {
        all.push((format!("tiles of {tile_rows}"), list_spec(tile_rows)));
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
            for (vec4, up) in [(true, true), (true, false), (false, true), (false, false)] {
                all.push((
                    format!("{dtype} {}", if up { "up" } else { "down" }),
                    tile_spec(tile_rows, dtype, (vec4, up), ExpertForm::default())?,
                ));
            }
        }
    }
    for block in BlockType::ALL {
        for up in [true, false] {
            let plain = tile_spec(16, block, (true, up), ExpertForm::default())?;
            all.push((format!("{block} {}", if up { "up" } else { "down" }), plain));
        }
    }
    for up in [true, false] {
        let form = ExpertForm { clamp: Some(GPT_OSS), biased: true };
        let of_biases = tile_spec(16, BlockType::MXFP4, (true, up), form)?;
        all.push((format!("biases, {}", if up { "up" } else { "down" }), of_biases));
    }
    Ok(all)
}

/// The kernels for many rows, compiled at their first use. Shared by clones.
#[derive(Clone, Default, Debug)]
pub(crate) struct Listed {
    list: Arc<OnceLock<Kernel>>,
    /// For input at multiples of 4 elements, and for any.
    up: Arc<[OnceLock<Kernel>; 2]>,
    down: Arc<OnceLock<Kernel>>,
    sum: Arc<OnceLock<Kernel>>,
}

/// One of the two products of listed rows.
struct Product<'a> {
    kernel: &'a Kernel,
    weight: &'a Weight,
    /// Of the weight's rows.
    bias: Option<&'a Tensor>,
    swiglu: bool,
    /// (rows or pairs, in_dim)
    x: Span<'a>,
    /// (pairs, a run of the outputs)
    y: &'a Tensor,
    /// First of the run, and how many.
    outputs: (usize, usize),
}

impl Experts {
    /// Records rows in dispatches that list them, multiply them tile by tile, and sum what each row's experts made of it.
    pub(crate) fn encode_listed(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        (x, y): (Span<'_>, Span<'_>),
        args: ExpertArgs<'_>,
    ) -> Result<()> {
        let ExpertArgs { ids, weights, scratch } = args;
        let (rows, ExpertShape { experts, top, dim, width }) = (ids.shape()[0], self.shape());
        let Some(Lists { list, outputs }) = &scratch.lists else {
            let what = format!("made without the lists of {rows} rows by {:?}", self.tuning);
            return Err(ErrorKind::argument("scratch", what));
        };
        let tile_rows = self.tuning.tile_rows;
        let kernel = self.gpu.kernel_in(&self.listed.list, || Ok(list_spec(tile_rows)))?;
        let params = ListParams { pairs: word(rows * top), experts: word(experts) };
        self.gpu.dispatch(pass, kernel, &params, &[&ids.buffer, &list.buffer], (word(experts), 1, 1))?;

        let (kind, vec4) = (self.gate_up.weight_type(), x.is_vec4() && dim.is_multiple_of(4));
        let cell = &self.listed.up[usize::from(!vec4)];
        let kernel = self.gpu.kernel_in(cell, || tile_spec(tile_rows, kind, (vec4, true), self.form))?;
        let (weight, hidden) = (&self.gate_up, &scratch.hidden);
        let bias = self.biases.as_ref().map(|both| &both.gate_up);
        let up = Product { kernel, weight, bias, swiglu: true, x, y: hidden, outputs: (0, width) };
        self.encode_tiles(pass, up, (ids, list))?;

        let (kind, vec4) = (self.down.weight_type(), width.is_multiple_of(4));
        let down = self.gpu.kernel_in(&self.listed.down, || tile_spec(tile_rows, kind, (vec4, false), self.form))?;
        let sum = self.gpu.kernel_in(&self.listed.sum, || Ok(sum_spec(top)))?;
        let (weight, run) = (&self.down, outputs.shape()[2]);
        let bias = self.biases.as_ref().map(|both| &both.down);
        for first in (0..dim).step_by(run) {
            let (kernel, x, count) = (down, Span::of(hidden).row_stride(width), run.min(dim - first));
            let product = Product { kernel, weight, bias, swiglu: false, x, y: outputs, outputs: (first, count) };
            self.encode_tiles(pass, product, (ids, list))?;
            let params = SumParams {
                outputs: word(count),
                first_out: word(first),
                x_row_stride: word(run),
                y_row_stride: word(y.row_stride),
            };
            let buffers = [&weights.buffer, &outputs.buffer, &y.tensor.buffer];
            self.gpu.dispatch(pass, sum, &params, &buffers, (word(count.div_ceil(LANES)), word(rows), 1))?;
        }
        Ok(())
    }

    fn encode_tiles(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        product: Product<'_>,
        (ids, list): (&Tensor, &Tensor),
    ) -> Result<()> {
        let Product { kernel, weight: w, bias, swiglu, x, y, outputs: (first, count) } = product;
        let (pairs, tile_rows) = (ids.len(), self.tuning.tile_rows);
        let per_group = Shape::Tile(tile_rows / 8).outputs(&ANY, swiglu);
        let params = TileParams {
            pairs: word(pairs),
            experts: word(w.heads()),
            out_dim: word(w.out_dim()),
            in_dim: word(w.in_dim()),
            row_words: word(w.row_words()),
            pairs_per_row: word(if swiglu { self.top } else { 1 }),
            x_row_stride: word(x.row_stride),
            y_row_stride: word(y.shape()[2]),
            first_out: word(first),
            first_group: 0,
            first_tile: 0,
        };
        let scales = w.scales.as_ref().unwrap_or(&w.tensor);
        // There is no gain: any buffer stands for it.
        let any = &w.tensor.buffer;
        let mut buffers = vec![any, &x.tensor.buffer, &list.buffer, &y.buffer, any, &scales.buffer, &ids.buffer];
        buffers.extend(bias.map(|bias| &bias.buffer));
        // The most tiles that a choice can need. Those that are not there are counted as work, too.
        let tiles = pairs / tile_rows + w.heads();
        let grid = (word(count.div_ceil(per_group)), word(tiles), 1);
        let matrix_rows = per_group * if swiglu { 2 } else { 1 };
        let flop = 2 * (w.in_dim() * tile_rows * matrix_rows) as u64;
        for (piece, size) in pieces(grid, flop, self.gpu.capabilities().dispatch_flop) {
            let first_group = word(first / per_group) + piece.0;
            let params = TileParams { first_group, first_tile: piece.1, ..params };
            self.gpu.dispatch(pass, kernel, &params, &buffers, size)?;
        }
        Ok(())
    }
}
