//! Which experts a row goes to.

use crate::error::{ErrorKind, Result};
use crate::gpu::check_apart;
use crate::gpu::{number, part, Access, DType, Gpu, Kernel, KernelSpec, Tensor};
use crate::nn::params;

params!(Params { factor: f32 });
#[cfg(test)]
pub(crate) const PARAM_FIELDS: &[(&str, usize)] = Params::FIELDS;

const LANES: usize = 64;
/// What fits the workgroup memory that every device has.
const MAX_EXPERTS: usize = 1024;
const MAX_GROUPS: usize = 256;

/// How a [`Route`] chooses; [`reference::route`](crate::reference::route()) defines it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouteShape {
    /// Experts, at most 1024.
    pub experts: usize,
    /// Of them, how many a row goes to; at most 64.
    pub top: usize,
    /// Groups of equally many experts, at most 256; 1 for none.
    pub groups: usize,
    /// Groups that a row may choose from: those with the best members.
    pub top_groups: usize,
    /// Members whose choices make a group's score: 1 (DeepSeek-V2) or 2 (V3).
    pub group_best: usize,
    /// Scores by sigmoid, each by itself, instead of softmax.
    pub sigmoid: bool,
    /// Weights are divided by their sum.
    pub normalise: bool,
    /// What weights are multiplied by.
    pub factor: f32,
}

impl RouteShape {
    /// Errors: [`ErrorKind::Argument`] with the numbers.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { experts, top, groups, top_groups, group_best, factor, .. } = *self;
        let fits = (1..=MAX_EXPERTS).contains(&experts)
            && (1..=MAX_GROUPS.min(experts)).contains(&groups)
            && experts.is_multiple_of(groups)
            && (1..=groups).contains(&top_groups)
            && (1..=LANES.min(top_groups * (experts / groups))).contains(&top)
            && (1..=2.min(experts / groups)).contains(&group_best)
            && factor.is_finite();
        if fits {
            return Ok(());
        }
        Err(ErrorKind::argument("shape", format!("{self:?} makes no choice of experts")))
    }
}

pub(crate) fn spec(shape: &RouteShape) -> KernelSpec {
    let RouteShape { experts, top, groups, top_groups, group_best, .. } = *shape;
    let score = match shape.sigmoid {
        true => part!("nn/expert_score/sigmoid.wgsl"),
        false => part!("nn/expert_score/softmax.wgsl"),
    };
    KernelSpec {
        name: "route",
        consts: vec![
            ("LANES", number(LANES)),
            ("EXPERTS", number(experts)),
            ("GROUPS", number(groups)),
            ("TOP_GROUPS", number(top_groups)),
            ("TOP", number(top)),
            ("GROUP_BEST", number(group_best)),
            ("NORMALISE", number(usize::from(shape.normalise))),
        ],
        parts: vec![score, part!("nn/route.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Write, Access::Write],
        workgroup_bytes: 4 * (2 * experts + 2 * groups + top),
    }
}

/// DeepSeek-V2's and V3's, for inspection and tests.
pub(crate) const SHAPES: [RouteShape; 2] = [
    RouteShape {
        experts: 160,
        top: 6,
        groups: 8,
        top_groups: 3,
        group_best: 1,
        sigmoid: false,
        normalise: false,
        factor: 16.0,
    },
    RouteShape {
        experts: 256,
        top: 8,
        groups: 8,
        top_groups: 4,
        group_best: 2,
        sigmoid: true,
        normalise: true,
        factor: 2.5,
    },
];

/// Chooses experts for each row of logits, with weights.
#[derive(Debug, Clone)]
pub struct Route {
    gpu: Gpu,
    shape: RouteShape,
    /// (experts) F32.
    bias: Tensor,
    kernel: Kernel,
}

impl Route {
    /// Compiles the kernel. `bias` is (experts) F32: what is added to scores for the choice, and not for the weight.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`], [`ErrorKind::Shape`], [`ErrorKind::DType`].
    pub fn new(gpu: &Gpu, bias: &Tensor, shape: RouteShape) -> Result<Self> {
        shape.check()?;
        bias.expect("bias", &[shape.experts], DType::F32)?;
        Ok(Route { gpu: gpu.clone(), shape, bias: bias.clone(), kernel: gpu.kernel(spec(&shape))? })
    }

    /// How it chooses.
    pub fn shape(&self) -> RouteShape {
        self.shape
    }

    /// Records. `logits` is (rows, experts) F32, `ids` (rows, top) U32, `weights` (rows, top) F32; three buffers.
    /// Within a row, experts come in the order of their choice.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Argument`].
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        logits: &Tensor,
        ids: &Tensor,
        weights: &Tensor,
    ) -> Result<()> {
        let RouteShape { experts, top, factor, .. } = self.shape;
        logits.expect("logits", &[0, experts], DType::F32)?;
        let rows = logits.shape()[0];
        ids.expect("ids", &[rows, top], DType::U32)?;
        weights.expect("weights", &[rows, top], DType::F32)?;
        check_apart("ids", ids, &[logits, &self.bias, weights])?;
        check_apart("weights", weights, &[logits, &self.bias])?;
        let buffers = [&logits.buffer, &self.bias.buffer, &ids.buffer, &weights.buffer];
        let whole: Vec<_> = [ids, weights].into_iter().filter_map(Tensor::whole).collect();
        self.gpu.dispatch_over(pass, &self.kernel, &Params { factor }, &buffers, (crate::nn::word(rows), 1, 1), &whole)
    }

    /// [`Route::encode`] into the [`Gpu`]'s own pass.
    ///
    /// # Errors
    ///
    /// As [`Route::encode`].
    pub fn run(&self, logits: &Tensor, ids: &Tensor, weights: &Tensor) -> Result<()> {
        self.gpu.record(|pass| self.encode(pass, logits, ids, weights))
    }
}
