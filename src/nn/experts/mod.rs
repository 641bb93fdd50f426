//! The feed-forward layers of many experts, of which each row goes through a few.

pub(super) mod form;
pub(super) mod listed;
pub(super) mod route;

pub use form::GateClamp;
pub use listed::{ExpertScratch, ExpertShape, ExpertTuning};
pub use route::{Route, RouteShape};

use super::{params, word, Span, Weight};
use crate::error::{ErrorKind, Result};
use crate::gpu::Extent;
use crate::gpu::{number, part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};
use crate::nn::WeightType;
use form::{expert_bias_part, swiglu_part, ExpertBiases, ExpertForm};
use listed::Listed;

params!(Params { out_dim: u32, in_dim: u32, row_words: u32, experts: u32, x_row_stride: u32, y_row_stride: u32 });
#[cfg(test)]
pub(super) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

const LANES: usize = 64;
const IN_LANES: usize = 16;
const OUT_LANES: usize = LANES / IN_LANES;

/// `up`: gate and up, else down.
pub(super) fn spec(kind: impl Into<WeightType>, top: usize, up: bool, form: ExpertForm) -> Result<KernelSpec> {
    let kind = kind.into();
    let (mut parts, mut consts) = kind.parts()?;
    consts.extend([
        ("LANES", number(LANES)),
        ("IN_LANES", number(IN_LANES)),
        ("OUT_LANES", number(OUT_LANES)),
        ("VECS_PER_WORD", number(kind.per_word() / 4)),
        ("SCALES_BINDING", number(2)),
        ("TOP", number(top)),
    ]);
    parts.push(expert_bias_part(form.biased));
    match up {
        true => parts.extend([swiglu_part(form.clamp), part!("nn/expert_side/up.wgsl")]),
        false => parts.push(part!("nn/expert_side/down.wgsl")),
    }
    parts.push(part!("nn/experts.wgsl"));
    consts.extend(form.clamp.iter().filter(|_| up).flat_map(GateClamp::consts));
    consts.extend(form.biased.then_some(("BIAS_BINDING", number(7))));
    let mut bindings = vec![Access::Read, Access::Read, Access::Read, Access::Read, Access::Read, Access::Write];
    bindings.extend(form.biased.then_some(Access::Read));
    Ok(KernelSpec { name: "experts", consts, parts, bindings, workgroup_bytes: 8 * LANES })
}

/// `y[r] += sum_s w[r, s] W_down[e] (silu(W_gate[e] x[r]) (W_up[e] x[r]))`, with `e = ids[r, s]` and `w` from a
/// [`Route`](super::Route); with biases of the three products, and another SwiGLU, where they are asked for. No result of the choice
/// comes to the host: what is dispatched depends on the number of rows alone.
///
/// Few rows are multiplied one by one; many ([`ExpertTuning`]) are listed by expert first, and read each matrix once per tile
/// of its rows. A row's result does not depend on what the other rows are, to the bit, but the two ways differ by rounding.
#[derive(Debug, Clone)]
pub struct Experts {
    pub(super) gpu: Gpu,
    pub(super) gate_up: Weight,
    pub(super) down: Weight,
    pub(super) top: usize,
    pub(super) tuning: ExpertTuning,
    pub(super) form: ExpertForm,
    pub(super) biases: Option<ExpertBiases>,
    kernels: [Kernel; 2],
    pub(super) listed: Listed,
}

/// Tensors of a call.
#[derive(Debug, Clone, Copy)]
pub struct ExpertArgs<'a> {
    /// (rows, top) U32.
    pub ids: &'a Tensor,
    /// (rows, top) F32.
    pub weights: &'a Tensor,
    /// What lies between the dispatches, for so many rows or more.
    pub scratch: &'a ExpertScratch,
}

impl Experts {
    /// `gate_up` is (experts, 2 width, dim), `down` (experts, dim, width); F32, F16, BF16, I8 or blocks. `top`: experts of a row.
    /// The kernels for many rows are compiled at their first use.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn new(gpu: &Gpu, gate_up: Weight, down: Weight, top: usize) -> Result<Self> {
        let fits = gate_up.heads() == down.heads()
            && gate_up.out_dim() == 2 * down.in_dim()
            && gate_up.in_dim() == down.out_dim();
        if !fits {
            let (heads, dim) = (gate_up.heads(), gate_up.in_dim());
            let got = [down.heads(), down.out_dim(), down.in_dim()];
            let width = gate_up.out_dim() / 2;
            let odd = if gate_up.out_dim().is_multiple_of(2) { "" } else { ", and gate_up an even out_dim" };
            return Err(ErrorKind::shape("down", &got, format!("({heads},{dim},{width}){odd}")));
        }
        if !(1..=gate_up.heads()).contains(&top) {
            return Err(ErrorKind::argument("top", format!("{top} of {} experts", gate_up.heads())));
        }
        let form = ExpertForm::default();
        let kernels = few_kernels(gpu, [&gate_up, &down], top, form)?;
        let (gpu, tuning, biases) = (gpu.clone(), ExpertTuning::default(), None);
        Ok(Experts { gpu, gate_up, down, top, tuning, form, biases, kernels, listed: Listed::default() })
    }

    /// The same with what is added to the products: `gate_up` is (experts, 2 width), `down` (experts, dim), both F32.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`].
    pub fn with_biases(self, gate_up: &Tensor, down: &Tensor) -> Result<Self> {
        gate_up.expect("gate_up", &[self.gate_up.heads(), self.gate_up.out_dim()], DType::F32)?;
        down.expect("down", &[self.down.heads(), self.down.out_dim()], DType::F32)?;
        let biases = Some(ExpertBiases { gate_up: gate_up.clone(), down: down.clone() });
        let form = ExpertForm { biased: true, ..self.form };
        Experts { biases, ..self }.with_form(form)
    }

    /// The same with another SwiGLU.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that are not in 1e-3..=1e4.
    pub fn with_clamp(self, clamp: GateClamp) -> Result<Self> {
        clamp.check()?;
        let form = ExpertForm { clamp: Some(clamp), ..self.form };
        self.with_form(form)
    }

    fn with_form(self, form: ExpertForm) -> Result<Self> {
        let kernels = few_kernels(&self.gpu, [&self.gate_up, &self.down], self.top, form)?;
        Ok(Experts { form, kernels, listed: Listed::default(), ..self })
    }

    /// The same with other numbers than [`ExpertTuning::default`]: for measurements and tests.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for numbers that make no kernel.
    pub fn with_tuning(self, tuning: ExpertTuning) -> Result<Self> {
        tuning.check()?;
        Ok(Experts { tuning, listed: Listed::default(), ..self })
    }

    /// How many rows are multiplied.
    pub fn tuning(&self) -> ExpertTuning {
        self.tuning
    }

    /// Its sizes.
    pub fn shape(&self) -> ExpertShape {
        let (experts, dim, width) = (self.gate_up.heads(), self.gate_up.in_dim(), self.down.in_dim());
        ExpertShape { experts, top: self.top, dim, width }
    }

    /// Memory for calls of up to `rows` rows, of this layer and of others of its shape and tuning; used in one pass after
    /// another, as any tensor.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`], [`ErrorKind::OutOfMemory`].
    pub fn scratch(&self, rows: usize) -> Result<ExpertScratch> {
        ExpertScratch::new(&self.gpu, self.shape(), self.tuning, rows)
    }

    /// Records the rows of `ids`. `x` and `y` are (rows, dim) F32, in two buffers; `y` is added to.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        x: Span<'_>,
        y: Span<'_>,
        args: ExpertArgs<'_>,
    ) -> Result<()> {
        let ExpertArgs { ids, weights, scratch } = args;
        ids.expect("ids", &[0, self.top], DType::U32)?;
        let rows = ids.shape()[0];
        weights.expect("weights", &[rows, self.top], DType::F32)?;
        if scratch.shape != self.shape() || scratch.rows < rows {
            let got = format!("for {} rows of {:?}, wanted {rows} of {:?}", scratch.rows, scratch.shape, self.shape());
            return Err(ErrorKind::argument("scratch", got));
        }
        let extent = Extent { rows, heads: 1, dim: self.gate_up.in_dim() };
        x.check("x", extent)?;
        y.check_output("y", extent, &[x.tensor, ids, weights])?;
        for (name, span) in [("x", x), ("y", y)] {
            if span.offset != 0 {
                return Err(ErrorKind::argument(name, format!("offset {}, wanted 0", span.offset)));
            }
        }
        if self.tuning.lists(self.shape(), rows) {
            return self.encode_listed(pass, (x, y), args);
        }
        let inner = Span::of(&scratch.hidden);
        self.product(pass, 0, (x, inner), args)?;
        self.product(pass, 1, (inner, y), args)
    }

    /// [`Experts::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`Experts::encode`].
    pub fn run(&self, x: Span<'_>, y: Span<'_>, args: ExpertArgs<'_>) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, x, y, args))
    }

    fn product(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        which: usize,
        (x, y): (Span<'_>, Span<'_>),
        args: ExpertArgs<'_>,
    ) -> Result<()> {
        let w = if which == 0 { &self.gate_up } else { &self.down };
        let (outputs, slots) = if which == 0 { (w.out_dim() / 2, self.top) } else { (w.out_dim(), 1) };
        let params = Params {
            out_dim: word(w.out_dim()),
            in_dim: word(w.in_dim()),
            row_words: word(w.row_words()),
            experts: word(w.heads()),
            x_row_stride: word(x.row_stride),
            y_row_stride: word(y.row_stride),
        };
        let scales = w.scales.as_ref().unwrap_or(&w.tensor);
        let bias = self.biases.as_ref().map(|both| if which == 0 { &both.gate_up } else { &both.down });
        let mut buffers = vec![
            &w.tensor.buffer,
            &scales.buffer,
            &x.tensor.buffer,
            &args.ids.buffer,
            &args.weights.buffer,
            &y.tensor.buffer,
        ];
        buffers.extend(bias.map(|bias| &bias.buffer));
        let grid = (word(outputs.div_ceil(OUT_LANES)), word(slots), word(args.ids.shape()[0]));
        self.gpu.dispatch(pass, &self.kernels[which], &params, &buffers, grid)
    }
}

/// Those for few rows: of gate and up, and of down.
fn few_kernels(gpu: &Gpu, [gate_up, down]: [&Weight; 2], top: usize, form: ExpertForm) -> Result<[Kernel; 2]> {
    Ok([
        gpu.kernel(spec(gate_up.weight_type(), top, true, form)?)?,
        gpu.kernel(spec(down.weight_type(), top, false, form)?)?,
    ])
}
