//! The feed-forward part of a block: a SwiGLU, or a mixture of experts beside one that every token goes through.

use super::block::Scratch;
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor};
use crate::model::config::share::ModelShare;
use crate::model::config::{Activation, Config, ExpertsConfig, TensorNames};
use crate::model::weights::matrix::Matrix;
use crate::model::weights::reader::WeightReader;
use crate::model::weights::split::Split;
use crate::nn::{
    ExpertArgs, ExpertScratch, ExpertShape, ExpertTuning, Experts, Linear, LinearArgs, NormShape, RmsNorm, Route, Span,
};
use std::ops::Range;

pub(crate) enum FeedForward {
    /// With the norm before it.
    Dense(Box<Dense>),
    /// The norm, then all that reads its output.
    Mixture(Box<Mixture>),
}

pub(crate) struct Dense {
    /// [gate | up], with the SwiGLU behind it.
    gate_up: Split,
    down: Split,
    /// Whether the output is added to the stream, and does not take its place: not of a rank after the first, nor before a norm.
    adds: bool,
}

pub(crate) struct Mixture {
    norm: RmsNorm,
    /// Logits of the experts; F32.
    router: Linear,
    route: Route,
    experts: Experts,
    shared: Option<Dense>,
    gpu: Gpu,
    /// As [`Dense`] has it.
    adds: bool,
}

/// The tensors of a step's experts, one row per token; of one element each where a model has none.
pub(crate) struct MixtureScratch {
    /// (rows, hidden) F32
    normed: Tensor,
    /// (rows, experts) F32
    logits: Tensor,
    /// (rows, top) U32
    ids: Tensor,
    /// (rows, top) F32
    weights: Tensor,
    /// Of all rows, whatever a step has.
    experts: ExpertScratch,
}

impl FeedForward {
    /// A rank's share of the layer of `config`.
    pub(crate) fn load(source: &WeightReader<'_>, config: &Config, share: &ModelShare, layer: usize) -> Result<Self> {
        let prefix = format!("model.layers.{layer}.");
        let norm = format!("{prefix}{}", config.files.names.of("post_attention_layernorm"));
        let before = config.norms.before().then_some((&*norm, config.rms_norm_eps));
        let first = share.shard.is_first();
        let mlp = format!("{prefix}{}.", config.files.names.of("mlp"));
        match config.experts.filter(|experts| layer >= experts.first_layer) {
            None => Ok(FeedForward::Dense(Box::new(Dense::load(
                source,
                &mlp,
                (config.hidden_size, config.intermediate_size, &share.ffn),
                (before, config.files.fused_gate_up, config.activation),
                (first, first && !config.norms.after(), config.residual_scale),
            )?))),
            Some(experts) => {
                Ok(FeedForward::Mixture(Box::new(Mixture::load(source, (config, share), &experts, (&mlp, &norm))?)))
            }
        }
    }

    /// Records the layer for `rows` rows: `s.x` in, added to `y`, or in its place before a norm behind.
    pub(crate) fn run(&self, rows: usize, s: &Scratch, y: Span<'_>) -> Result<()> {
        match self {
            FeedForward::Dense(dense) => dense.run(rows, Span::of(&s.x), (s, dense.adds), y),
            FeedForward::Mixture(mixture) => mixture.run(rows, s, y),
        }
    }
}

impl Dense {
    /// `sizes`: of the stream and of the SwiGLU, and which of its elements are the rank's. `norm`: name and eps of a norm before it.
    /// `fused`: whether gate and up are one matrix in the files. `first`: whether this is the first rank, which has the bias. `scale`: of
    /// what it makes.
    fn load(
        source: &WeightReader<'_>,
        prefix: &str,
        (hidden, width, part): (usize, usize, &Range<usize>),
        (norm, fused, activation): (Option<(&str, f32)>, bool, Activation),
        (first, adds, scale): (bool, bool, f32),
    ) -> Result<Self> {
        let both = || source.matrix(&format!("{prefix}gate_up_proj"), 2 * width, hidden);
        let rows = |half: usize, name| -> Result<Matrix> {
            let all = match fused {
                true => both()?.cut(half * width..(half + 1) * width),
                false => source.matrix(&format!("{prefix}{name}"), width, hidden)?,
            };
            Ok(all.cut(part.clone()))
        };
        let gate_up = source.side_by_side(&[rows(0, "gate_proj")?, rows(1, "up_proj")?])?;
        let gate_up = match norm {
            Some((name, eps)) => source.normed(gate_up, name, eps)?,
            None => gate_up,
        };
        let down = source.of_inputs(source.matrix(&format!("{prefix}down_proj"), hidden, width)?, part)?;
        let down = if first { down } else { down.without_any_bias() };
        let down = source.linear(&down)?.map(|down| down.with_scale(scale))?;
        let gated = match activation {
            // Clamped ones are of experts alone (`Config::check`).
            Activation::Silu | Activation::Clamped(_) => Linear::with_swiglu,
            Activation::GeluTanh => Linear::with_geglu,
        };
        Ok(Dense { gate_up: gate_up.map(gated)?, down, adds })
    }

    fn run(&self, rows: usize, input: Span<'_>, (s, accumulate): (&Scratch, bool), y: Span<'_>) -> Result<()> {
        let ffn = Span::of(&s.ffn);
        self.gate_up.run(LinearArgs::new(rows, input, ffn))?;
        self.down.run(LinearArgs { accumulate, ..LinearArgs::new(rows, ffn, y) })
    }
}

impl Mixture {
    /// A rank has its part of each expert's width, so that it computes as much whichever are chosen.
    fn load(
        source: &WeightReader<'_>,
        (config, share): (&Config, &ModelShare),
        experts: &ExpertsConfig,
        (mlp, norm): (&str, &str),
    ) -> Result<Self> {
        let (hidden, own, first) = (config.hidden_size, &share.expert, share.shard.is_first());
        let (adds, scale) = (first && !config.norms.after(), config.residual_scale);
        let ExpertsConfig { mut route, width, shared_width, .. } = *experts;
        route.factor *= scale;
        let count = route.experts;
        let gate = format!("{mlp}{}", config.files.names.of("gate"));
        let router = match experts.with_biases {
            true => source.matrix(&gate, count, hidden)?,
            false => source.bare_matrix(&gate, count, hidden)?,
        };
        let bias = match experts.biased {
            true => source.vector(&format!("{gate}.e_score_correction_bias"), count)?,
            false => Tensor::zeros(source.gpu(), &[count], DType::F32)?,
        };
        let part = |e: usize, part: &'static str, rows, in_dim| {
            let part = config.files.names.of(part);
            source.bare_matrix(&format!("{mlp}experts.{e}.{part}"), rows, in_dim)
        };
        let rows = |e, name| part(e, name, width, hidden).map(|all| all.cut(own.clone()));
        let gate_up = source.stack([count, 2 * own.len(), hidden], |e| {
            Ok(Matrix::stack(&[rows(e, "gate_proj")?, rows(e, "up_proj")?]))
        })?;
        let down = source
            .stack([count, hidden, own.len()], |e| source.of_inputs(part(e, "down_proj", hidden, width)?, own))?;
        let mut made = Experts::new(source.gpu(), gate_up, down, route.top)?;
        if experts.with_biases {
            let (gate_up, down) = expert_biases(source, mlp, (config, experts), (own, first))?;
            made = made.with_biases(&gate_up, &down)?;
        }
        if let Activation::Clamped(clamp) = config.activation {
            made = made.with_clamp(clamp)?;
        }
        let of_all = (hidden, shared_width, &share.shared);
        let shared = (shared_width > 0).then(|| {
            Dense::load(
                source,
                &format!("{mlp}shared_experts."),
                of_all,
                (None, false, Activation::Silu),
                (first, adds, scale),
            )
        });
        let shape = NormShape { groups: 1, dim: hidden, tail: 0, eps: config.rms_norm_eps };
        Ok(Mixture {
            norm: source.norm(norm, shape)?,
            router: source.exact_linear(&router)?,
            route: Route::new(source.gpu(), &bias, route)?,
            experts: made,
            shared: shared.transpose()?,
            gpu: source.gpu().clone(),
            adds,
        })
    }

    fn run(&self, rows: usize, s: &Scratch, y: Span<'_>) -> Result<()> {
        let (m, x) = (&s.mixture, Span::of(&s.x));
        let normed = Span::of(&m.normed);
        self.norm.run(rows, x, normed)?;
        self.router.run(LinearArgs::new(rows, normed, Span::of(&m.logits)))?;
        self.route.run(&m.logits, &m.ids, &m.weights)?;
        if !self.adds {
            self.gpu.record_clear(y.tensor)?;
        }
        self.experts.run(normed, y, ExpertArgs { ids: &m.ids, weights: &m.weights, scratch: &m.experts })?;
        match &self.shared {
            Some(shared) => shared.run(rows, normed, (s, true), y),
            None => Ok(()),
        }
    }
}

/// Of the experts' products: gate and up of a rank's part of their width, (experts, 2 width), and down, (experts, hidden), which is the
/// first rank's. In the files they are of gate and up in turn, or each by itself.
fn expert_biases(
    source: &WeightReader<'_>,
    mlp: &str,
    (config, experts): (&Config, &ExpertsConfig),
    (own, first): (&Range<usize>, bool),
) -> Result<(Tensor, Tensor)> {
    let (count, width, hidden) = (experts.route.experts, experts.width, config.hidden_size);
    let (gate, up, down) = match config.files.names == TensorNames::GptOss {
        true => {
            let both = source.values(&format!("{mlp}experts.gate_up_proj_bias"), &[count, 2 * width])?;
            let every_second = |from: usize| both.iter().copied().skip(from).step_by(2).collect::<Vec<f32>>();
            (every_second(0), every_second(1), "down_proj_bias")
        }
        false => {
            let one = |part| source.values(&format!("{mlp}experts.{part}.bias"), &[count, width]);
            (one("gate_proj")?, one("up_proj")?, "down_proj.bias")
        }
    };
    let down = match source.values(&format!("{mlp}experts.{down}"), &[count, hidden])? {
        all if first => all,
        all => vec![0.0; all.len()],
    };
    let rows = gate.chunks_exact(width).zip(up.chunks_exact(width));
    let gate_up: Vec<f32> = rows.flat_map(|(gate, up)| [&gate[own.clone()], &up[own.clone()]].concat()).collect();
    Ok((
        Tensor::from_slice(source.gpu(), &[count, 2 * own.len()], &gate_up, DType::F32)?,
        Tensor::from_slice(source.gpu(), &[count, hidden], &down, DType::F32)?,
    ))
}

impl MixtureScratch {
    pub(crate) fn new(gpu: &Gpu, config: &Config, rows: usize) -> Result<Self> {
        let sizes = config.experts.map_or([1; 4], |e| [config.hidden_size, e.route.experts, e.route.top, e.width]);
        let [hidden, experts, top, width] = sizes;
        let shape = ExpertShape { experts, top, dim: hidden, width };
        let rows = if config.experts.is_some() { rows } else { 1 };
        Ok(MixtureScratch {
            normed: Tensor::scratch(gpu, &[rows, hidden], DType::F32)?,
            logits: Tensor::scratch(gpu, &[rows, experts], DType::F32)?,
            ids: Tensor::scratch(gpu, &[rows, top], DType::U32)?,
            weights: Tensor::scratch(gpu, &[rows, top], DType::F32)?,
            experts: ExpertScratch::new(gpu, shape, ExpertTuning::default(), rows)?,
        })
    }

    /// The same memory for the first `rows` rows.
    pub(crate) fn first(&self, rows: usize) -> Result<Self> {
        let cut = |t: &Tensor| t.view(&[&[rows.min(t.shape()[0])], &t.shape()[1..]].concat());
        Ok(MixtureScratch {
            normed: cut(&self.normed)?,
            logits: cut(&self.logits)?,
            ids: cut(&self.ids)?,
            weights: cut(&self.weights)?,
            experts: self.experts.clone(),
        })
    }
}
