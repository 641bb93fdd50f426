//! One call of a linear: its arguments, its checks, its dispatches.

use super::matrix::packed_bytes;
use super::shape::Shape;
use super::{AppendRows, CachedOutputs, Linear};
use crate::error::{ErrorKind, Result};
use crate::gpu::pieces::pieces;
use crate::gpu::{check_apart, DType, Extent, Tensor};
use crate::kv::KvView;
use crate::nn::{params, word, RmsNorm, Span};

params!(Params {
    rows: u32,
    out_dim: u32,
    in_dim: u32,
    row_words: u32,
    x_offset: u32,
    x_row_stride: u32,
    x_head_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    y_head_stride: u32,
    flags: u32,
    tail_dim: u32,
    eps: f32,
    rest_groups: u32,
    rest_dim: u32,
    rest_tail: u32,
    slot_count: u32,
    slab_pages: u32,
    scale: f32,
    cap: f32,
});
#[cfg(test)]
pub(in crate::nn) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

/// Of [`Params::flags`]: there is a bias.
const BIAS: u32 = 1;
/// The product is added to what the output holds.
const ACCUMULATE: u32 = 2;
/// Where the first workgroup of a dispatch stands in the whole grid: y from this bit on, 14 bits of it, ..
const FIRST_Y: u32 = 2;
/// .. and x, 16 bits. [`pieces`] makes no piece that begins past these.
const FIRST_X: u32 = 16;

/// Arguments of [`Linear::run`] and [`Linear::encode`].
///
/// ```no_run
/// # use latten::nn::{Linear, LinearArgs, Span};
/// # fn f(down: &Linear, ffn: &latten::Tensor, x: &latten::Tensor) -> latten::Result<()> {
/// // x += W ffn
/// down.run(LinearArgs { accumulate: true, ..LinearArgs::new(4, Span::of(ffn), Span::of(x)) })
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct LinearArgs<'a> {
    /// Rows of input.
    pub rows: usize,
    /// (rows, heads, in_dim) F32; of a linear with a tail (rows, heads, in_dim + rope_dim), with a rest (rows, in_dim + the
    /// norm's width).
    pub x: Span<'a>,
    /// (rows, heads, [`Linear::outputs`]) F32, in another buffer.
    pub y: Span<'a>,
    /// Whether the product is added to what `y` holds.
    pub accumulate: bool,
    /// As [`RopeKernel::encode`](crate::nn::RopeKernel::encode) has it: of a linear made by [`Linear::with_tail`], and only there.
    pub cos_sin: Option<&'a Tensor>,
    /// (rows, the norm's width) F32 in a third buffer: of a linear made by [`Linear::with_rest`], and only there; not where it appends.
    pub rest: Option<&'a Tensor>,
    /// Where new cached rows go: of a linear made by [`Linear::with_append`], and only there.
    pub append: Option<AppendRows<'a>>,
}

impl<'a> LinearArgs<'a> {
    /// A plain product, which overwrites `y`.
    pub fn new(rows: usize, x: Span<'a>, y: Span<'a>) -> Self {
        LinearArgs { rows, x, y, accumulate: false, cos_sin: None, rest: None, append: None }
    }
}

impl Linear {
    /// The product of a dense tensor, in new memory: (rows, in_dim) to (rows, [`Linear::outputs`]), or of several heads
    /// (rows, heads, in_dim) to (rows, heads, outputs). [`Linear::run`] writes into memory that is there.
    ///
    /// # Errors
    ///
    /// As [`Linear::encode`]: so for a linear with a tail or a rest, which need more than `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check_cos_sin(0, None)?;
        self.check_rest(None)?;
        self.check_append(0, None)?;
        let (heads, in_dim) = (self.weight.heads(), self.weight.in_dim());
        let outputs = match x.shape().len() {
            2 if heads == 1 => {
                x.expect("x", &[0, in_dim], DType::F32)?;
                vec![self.outputs()]
            }
            _ => {
                x.expect("x", &[0, heads, in_dim], DType::F32)?;
                vec![heads, self.outputs()]
            }
        };
        let rows = x.shape()[0];
        let y = Tensor::zeros(&self.gpu, &[&[rows], &outputs[..]].concat(), DType::F32)?;
        self.run(LinearArgs::new(rows, Span::of(x), Span::of(&y)))?;
        Ok(y)
    }

    /// Records a product into a pass of the caller's, on the same device.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`]; [`ErrorKind::Argument`] for an output that overlaps itself or shares the
    /// buffer of an input, and for [`LinearArgs::cos_sin`] or [`LinearArgs::rest`] given where the linear has no tail or rest,
    /// or not given where it has.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, args: LinearArgs<'_>) -> Result<()> {
        let LinearArgs { rows, x, y, accumulate, cos_sin, rest, append } = args;
        let w = &self.weight;
        let (heads, in_dim, tail_dim) = (w.heads(), w.in_dim(), self.tail_dim());
        self.check_cos_sin(rows, cos_sin)?;
        let append = self.check_append(rows, append)?;
        if append.is_some() && accumulate {
            return Err(ErrorKind::argument("accumulate", "this linear appends, which adds to nothing"));
        }
        x.check("x", Extent { rows, heads, dim: in_dim + tail_dim })?;
        let choice = self.choose(rows);
        let shape = self.shapes[choice];
        // Bound where a kernel reads nothing. The weights are bound as if cooperative matrices wrote to them, and so nowhere else.
        let any = if matches!(shape, Shape::Matrix(_)) { x.tensor } else { &w.tensor };
        let bias = self.bias.as_ref().unwrap_or(any);
        let gain = self.norm.as_ref().map_or(any, |(gain, _)| gain);
        let scales = w.scales.as_ref().unwrap_or(any);
        let slots = append.map_or(any, |append| append.slots);
        let inputs = [x.tensor, &w.tensor, bias, gain, scales, cos_sin.unwrap_or(any), slots];
        let extent = self.stored(rows);
        y.check_output("y", extent, &inputs)?;
        self.rest_beside(pass, &args, shape)?;
        let params = self.params(&args);
        let aligned = x.is_vec4() && in_dim.is_multiple_of(4);
        let kernel = self.kernel(choice, aligned)?;
        let packed = match shape {
            Shape::Matrix(_) => Some(self.gpu.scratch(packed_bytes(rows, heads, in_dim) as u64)?),
            _ => None,
        };
        if let Some(packed) = &packed {
            let (pack, buffers) = (self.pack_kernel(aligned)?, [packed, &x.tensor.buffer, &gain.buffer]);
            self.gpu.dispatch(pass, pack, &params, &buffers, (word(rows), 1, word(heads)))?;
        }
        let gain = packed.as_ref().unwrap_or(&gain.buffer);
        let mut buffers =
            vec![&w.tensor.buffer, &x.tensor.buffer, &bias.buffer, &y.tensor.buffer, gain, &scales.buffer];
        let norm = self.rest.as_ref().filter(|_| matches!(shape, Shape::Rows(_)));
        buffers.extend(norm.map(|norm| &norm.gain().buffer));
        buffers.extend(rest.filter(|_| norm.is_some()).map(|rest| &rest.buffer));
        buffers.extend(cos_sin.map(|table| &table.buffer));
        let slabs = append.map(|append| append.layer.pool.buffers()).unwrap_or_default();
        buffers.extend(append.map(|append| &append.slots.buffer));
        buffers.extend(&slabs);
        let outputs = shape.outputs(&self.tuning(shape.rows()), self.swiglu);
        let outs = self.outputs().div_ceil(outputs);
        let row_groups = word(rows.div_ceil(shape.rows()));
        let mut grid = match shape {
            Shape::Matrix(_) => (row_groups, word(outs), word(heads)),
            _ => (word(outs), row_groups, word(heads)),
        };
        if let Some(norm) = norm {
            grid = (word(outs.max(shape.rows() * (norm.shape().groups + 1))), grid.1, 2);
        }
        let whole = y.whole(extent).filter(|_| !accumulate);
        // 2 FLOP per weight of the workgroup's matrix rows and row of input.
        let matrix_rows = outputs * if self.swiglu { 2 } else { 1 };
        let flop = 2 * (in_dim * shape.rows() * matrix_rows) as u64;
        for (first, size) in pieces(grid, flop, self.gpu.capabilities().dispatch_flop) {
            let params = Params { flags: params.flags | (first.1 << FIRST_Y) | (first.0 << FIRST_X), ..params };
            self.gpu.dispatch_over(pass, kernel, &params, &buffers, size, whole.as_slice())?;
        }
        Ok(())
    }

    /// [`Linear::encode`] into the [`Gpu`](crate::Gpu)'s own pass.
    ///
    /// # Errors
    ///
    /// As [`Linear::encode`].
    pub fn run(&self, args: LinearArgs<'_>) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, args))
    }

    /// What of `y` is written.
    fn stored(&self, rows: usize) -> Extent {
        match self.cached.as_ref().filter(|_| self.rest.is_none()) {
            Some(cached) => Extent { rows, heads: cached.heads.q_heads(), dim: cached.heads.q_dim() },
            None => Extent { rows, heads: self.weight.heads(), dim: self.outputs() },
        }
    }

    /// Whether cosines and sines are there where, and only where, something is rotated.
    fn check_cos_sin(&self, rows: usize, cos_sin: Option<&Tensor>) -> Result<()> {
        let rotated = self.cached.as_ref().map(CachedOutputs::rotated).or(self.tail.map(|(dim, _)| dim));
        match (cos_sin, rotated) {
            (None, None) => Ok(()),
            (Some(_), None) => Err(ErrorKind::argument("cos_sin", "this linear has no tail and appends nothing")),
            (None, Some(_)) => Err(ErrorKind::argument("cos_sin", "this linear rotates, which needs it")),
            (Some(cos_sin), Some(0)) => cos_sin.expect("cos_sin", cos_sin.shape(), DType::F32),
            (Some(cos_sin), Some(rotated)) => {
                cos_sin.expect("cos_sin", &[0, rotated / 2, 2], DType::F32)?;
                match cos_sin.shape()[0] < rows {
                    true => Err(ErrorKind::shape("cos_sin", cos_sin.shape(), format!("at least {rows} rows"))),
                    false => Ok(()),
                }
            }
        }
    }

    /// Whether a place for the rest is there where, and only where, there is one that is not cached.
    fn check_rest(&self, rest: Option<&Tensor>) -> Result<()> {
        match (self.rest.is_some() && self.cached.is_none(), rest) {
            (true, Some(_)) | (false, None) => Ok(()),
            (false, Some(_)) => Err(ErrorKind::argument("rest", "this linear has none that goes to a tensor")),
            (true, None) => Err(ErrorKind::argument("rest", "this linear has one, which needs a tensor")),
        }
    }

    /// Checks what is beside a product, and records the norm of the rest where that is a dispatch of its own.
    fn rest_beside(&self, pass: &mut wgpu::ComputePass<'_>, args: &LinearArgs<'_>, shape: Shape) -> Result<()> {
        self.check_rest(args.rest)?;
        let Some(norm) = &self.rest else { return Ok(()) };
        let x = args.x.offset(args.x.offset.saturating_add(self.weight.in_dim()));
        let Some(rest) = args.rest else {
            return x.check("x", Extent { rows: args.rows, heads: 1, dim: norm.width() });
        };
        check_apart("rest", rest, &[args.y.tensor, &self.weight.tensor])?;
        rest.expect("rest", &[args.rows, norm.width()], DType::F32)?;
        match shape {
            Shape::Tile(_) | Shape::Matrix(_) => norm.encode(pass, args.rows, x, Span::of(rest)),
            Shape::Rows(_) => norm.check(args.rows, x, Span::of(rest)),
        }
    }

    fn params(&self, args: &LinearArgs<'_>) -> Params {
        let LinearArgs { rows, x, y, accumulate, .. } = *args;
        let (w, rest) = (&self.weight, self.rest.as_ref().map(RmsNorm::shape));
        let layer = args.append.map(|append| append.layer);
        Params {
            rows: word(rows),
            out_dim: word(w.out_dim()),
            in_dim: word(w.in_dim()),
            row_words: word(w.row_words()),
            x_offset: word(x.offset),
            x_row_stride: word(x.row_stride),
            x_head_stride: word(x.head_stride),
            y_offset: word(y.offset),
            y_row_stride: word(y.row_stride),
            y_head_stride: word(y.head_stride),
            flags: (BIAS * u32::from(self.bias.is_some())) | (ACCUMULATE * u32::from(accumulate)),
            tail_dim: word(self.tail_dim()),
            eps: self.norm.as_ref().map(|(_, eps)| *eps).or(rest.map(|s| s.eps)).unwrap_or(0.0),
            rest_groups: word(rest.map_or(0, |s| s.groups)),
            rest_dim: word(rest.map_or(0, |s| s.dim)),
            rest_tail: word(rest.map_or(0, |s| s.tail)),
            slot_count: word(layer.map_or(0, KvView::slot_count)),
            slab_pages: word(layer.map_or(0, |layer| layer.pool.slab_pages())),
            scale: self.scale,
            cap: self.softcap.unwrap_or(0.0),
        }
    }
}
