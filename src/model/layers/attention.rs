//! The attention of a block: from the stream through norm, queries, cache and decode back to the stream.

use super::block::Exchange;
use super::explicit::{ExplicitPrefill, ExplicitStep};
use super::kinds::{plan, LayerDecodes};
use super::large_keys::LargeBiases;
use super::projections::{Forms, Projections};
use crate::attention::explicit::ExplicitPlan;
use crate::attention::{Decode, DecodeArgs, DecodeOutput, Plan};
use crate::cache::{PagedKvCache, SeqId};
use crate::error::Result;
use crate::gpu::{DType, Gpu, Tensor};
use crate::kv::HeadLayout;
use crate::kv::KvView;
#[cfg(doc)]
use crate::kv::WideChannels;
use crate::model::config::share::ModelShare;
use crate::model::config::{AttentionConfig, Config, QkNorm};
use crate::model::weights::reader::WeightReader;
use crate::model::weights::split::Split;
use crate::model::weights::store::WeightFiles;
use crate::model::weights::WeightBytes;
use crate::nn::{AppendRows, Linear, LinearArgs, RopeWideKernel, Span};
use crate::parallel::Shard;
use crate::rope::RopePairs;
use std::fmt;

/// One attention layer: the projections around a cache and a [`Decode`], with their weights. What a [`Decoder`] has in
/// each block; by itself it serves apps that have blocks of their own.
///
/// [`Decoder`]: crate::model::Decoder
pub struct Attention {
    gpu: Gpu,
    config: Config,
    projections: Projections,
    o: Split,
    /// (q_heads) F32
    sinks: Option<Tensor>,
    /// Whether the output is added to the stream, and does not take its place: not of a rank after the first, unless sequences are divided,
    /// nor before a norm.
    adds: bool,
    /// Whether each rank attends over its own tokens, and all merge what they have found.
    by_context: bool,
}

/// What an [`Attention::forward`] works on.
pub struct AttentionArgs<'a> {
    /// (tokens, hidden_size) F32, in the order of the sequences.
    pub x: &'a Tensor,
    /// Of the layout and rotation of the layer's [`Config`], or that layout with wide channels.
    pub cache: &'a mut PagedKvCache,
    /// Which layer of the cache.
    pub layer: usize,
    /// What attends, of the cache's layout and dtype.
    pub decode: &'a Decode,
    /// The sequences, whose new tokens are reserved.
    pub sequences: &'a [SeqId],
    /// Chooses the form in which GLA and MLA take new tokens; none for the absorbed one.
    pub prefill: Option<&'a mut ExplicitPrefill>,
}

/// The tensors of a step's attention, F32, one row per token.
pub(crate) struct AttentionScratch {
    /// What the first product makes: (rows, q_heads * head_dim + kv_dim), of GLA and MLA (rows, q_latent_dim + kv_dim) or without a
    /// query latent (rows, q_heads * (head_dim + rope_dim) + kv_dim)
    pub(crate) raw: Tensor,
    /// Queries before rotation and absorption, where they are not in `raw`, or after their norm: (rows, q_heads, head_dim [+ rope_dim])
    pub(crate) q_raw: Tensor,
    /// (rows, q_heads, q_dim)
    pub(crate) q: Tensor,
    /// GLA, MLA, GQA with a norm of its keys: (rows, kv_dim)
    pub(crate) kv: Tensor,
    /// GLA, MLA, out of the latent space: (rows, q_heads, v_head_dim)
    pub(crate) values: Tensor,
    /// Explicit prefill: (rows, q_heads, head_dim + rope_dim)
    pub(crate) q_explicit: Tensor,
    /// Explicit prefill, and attention over a rank's own tokens: (rows, q_heads)
    pub(crate) lse: Tensor,
    /// Attention over a rank's own tokens: (rows, q_heads, v_dim)
    pub(crate) attended: Tensor,
}

/// What the attention of every block of a step needs beside its own weights.
pub(crate) struct AttentionStep<'a> {
    pub(crate) rows: usize,
    pub(crate) cache: &'a mut PagedKvCache,
    pub(crate) decode: &'a Decode,
    /// Of the sequences in the absorbed form, and those of variants that have one form; none where no sequence is.
    pub(crate) plan: Option<&'a Plan>,
    /// Of layers of other kinds, whose tokens see others: by their number what attends, and its plan.
    pub(crate) kinds: Option<(&'a LayerDecodes, &'a [Plan])>,
    /// Of those in the explicit form, if there are any.
    pub(crate) explicit: Option<ExplicitStep<'a>>,
    pub(crate) sequences: &'a [SeqId],
    /// Products of all layers that append; none where there are no such products.
    pub(crate) appending: Option<&'a [Linear]>,
    /// Of a cache with wide channels.
    pub(crate) wide: Option<&'a RopeWideKernel>,
}

impl fmt::Debug for AttentionArgs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AttentionArgs { x, layer, sequences, prefill, .. } = self;
        let mut fields = f.debug_struct("AttentionArgs");
        fields.field("x", x).field("layer", layer).field("sequences", sequences).field("prefill", prefill);
        fields.finish_non_exhaustive()
    }
}

impl fmt::Debug for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attention").field("config", &self.config).field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

impl Attention {
    /// The layer whose weights a safetensors file holds under a block's names without the block's prefix: `q_proj.weight`,
    /// `kv_b_proj.bias`, .. Of `config` the numbers of the
    /// attention count and `hidden_size`, and what it says of names and biases; a `window` is for the `decode` that it runs with. `dtype` (F16,
    /// F32 or I8) is how matrices are kept on the device.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a config whose fields no file could have;
    /// [`ErrorKind::Weights`](crate::ErrorKind::Weights), as [`Decoder::load`](crate::model::Decoder::load) has it, also for a
    /// tensor that is not part of the layer; [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge),
    /// [`ErrorKind::OutOfMemory`](crate::ErrorKind::OutOfMemory).
    pub fn from_bytes(gpu: &Gpu, config: &Config, weights: WeightBytes<'_>, dtype: DType) -> Result<Self> {
        config.check_attention()?;
        let store = WeightFiles::from_bytes(weights.name, weights.bytes)?.with_made(config)?;
        let source = WeightReader::new(gpu, config, store, dtype);
        let share = config.share(Shard::whole())?;
        let attention = Self::from_source(&source, (config, &share), "", None)?;
        source.check_unused(None)?;
        Ok(attention)
    }

    /// A rank's share of the layer of `config`. `norm`: the name of the norm of the layer's input, if that is part of the layer.
    pub(crate) fn from_source(
        source: &WeightReader<'_>,
        (config, share): (&Config, &ModelShare),
        prefix: &str,
        norm: Option<&str>,
    ) -> Result<Self> {
        let (heads, width, by_context) = (&share.q_heads, config.v_head_dim, share.shard.is_by_context());
        let first = share.shard.is_first() || by_context;
        let o = source.matrix(&format!("{prefix}o_proj"), config.hidden_size, config.q_heads * width)?;
        let o = source.of_inputs(o, &(heads.start * width..heads.end * width))?;
        let o = if first { o } else { o.without_any_bias() };
        let adds = first && !config.norms.after();
        let sinks = match config.sinks {
            true => {
                let all = source.values(&format!("{prefix}sinks"), &[config.q_heads])?;
                Some(Tensor::from_slice(source.gpu(), &[heads.len()], &all[heads.clone()], DType::F32)?)
            }
            false => None,
        };
        Ok(Attention {
            gpu: source.gpu().clone(),
            config: share.config.clone(),
            projections: Projections::load(source, (config, share), prefix, norm)?,
            o: source.linear(&o)?.map(|o| o.with_scale(config.residual_scale))?,
            sinks,
            adds,
            by_context,
        })
    }

    /// Of each KV head of GQA, the channels of its keys that are too large to be integers with the others, by `k_proj`'s bias
    /// (Qwen2's): in pairs, the largest first, more than 4 times the root mean square of what the matrix makes of an input with
    /// mean square 1. A cache in I8 or I4 wants them wide ([`HeadLayout::gqa_wide`], [`WideChannels`]), which
    /// [`Attention::forward`] then sees to; a [`Session`](crate::model::Session) takes care of it by itself. Empty lists where there are
    /// none, no lists for the other variants.
    pub fn large_key_channels(&self) -> Vec<Vec<u32>> {
        self.projections.large_biases().channels()
    }

    /// The product that makes new cached rows in layers like this one, if there is one.
    pub(crate) fn appending(&self, layer: &KvView, pairs: RopePairs) -> Result<Option<Linear>> {
        self.projections.appending(layer, pairs)
    }

    pub(crate) fn large_biases(&self) -> LargeBiases {
        self.projections.large_biases()
    }

    pub(crate) fn keeps_explicit(&self) -> bool {
        self.projections.explicit().is_some()
    }

    /// Appends the reserved tokens of the sequences to one layer of the cache and attends from them. Returns (tokens, hidden_size)
    /// F32, new memory.
    ///
    /// # Errors
    ///
    /// Those of [`Decode::plan`], [`PagedKvCache::append`] and [`Decode::run`];
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a `prefill` of another layout or dtype.
    pub fn forward(&self, args: AttentionArgs<'_>) -> Result<Tensor> {
        let AttentionArgs { x, cache, layer, decode, sequences, prefill } = args;
        let losses = self.gpu.losses();
        let planned = StepPlans::new(decode, cache, sequences, prefill.filter(|_| self.keeps_explicit()))?;
        let (rows, hidden) = (planned.tokens, self.config.hidden_size);
        x.expect("x", &[rows, hidden], DType::F32)?;
        cache.slots(sequences)?; // what comes from the host comes before all commands
        let heads = *cache.heads();
        let forms = ScratchForms { explicit: planned.explicit().is_some(), by_context: false };
        let scratch = AttentionScratch::new(&self.gpu, (&self.config, &heads), rows, forms)?;
        let rotation = self.config.rope()?.pairs;
        let wide = (heads.wide_dim() > 0).then(|| RopeWideKernel::new(&self.gpu, heads, rotation)).transpose()?;
        let y = Tensor::zeros(&self.gpu, &[rows, hidden], DType::F32)?;
        let mut step = AttentionStep {
            rows,
            cache,
            decode,
            plan: planned.absorbed.as_ref(),
            kinds: None,
            explicit: planned.explicit(),
            sequences,
            appending: None,
            wide: wide.as_ref(),
        };
        self.gpu.together(|| self.run(layer, &scratch, &mut step, (Span::of(x), Span::of(&y)), &mut || Ok(())))?;
        // The plan and the scratch go at the end of this function, so what uses them must be on its way.
        self.gpu.submit()?;
        self.gpu.expect_no_loss(losses, "this layer")?;
        Ok(y)
    }

    /// Whether [`Attention::run`] calls `merge`: where each rank attends over its own tokens.
    pub(crate) fn is_by_context(&self) -> bool {
        self.by_context
    }

    /// Records the attention of the step's rows of `input`, added to `x`, or in its place before a norm behind. `merge` is called where each rank has attended over its own
    /// tokens: to make of [`AttentionScratch::found`] what attention over the tokens of all has found.
    pub(crate) fn run(
        &self,
        layer: usize,
        s: &AttentionScratch,
        step: &mut AttentionStep<'_>,
        (input, x): (Span<'_>, Span<'_>),
        merge: Exchange<'_>,
    ) -> Result<()> {
        let rows = step.rows;
        let explicit = self.projections.explicit().zip(step.explicit);
        let forms = Forms { absorbed: step.plan.is_some(), explicit: explicit.is_some() };
        let view = step.cache.layer(layer)?;
        let wide = step.wide.map(|rotate| (rotate, &view));
        let (cos_sin, softmax_scale) = (step.cache.angles(layer)?, self.config.softmax_scale());
        let appending = step.appending.and_then(|linears| linears.get(layer));
        let appending = appending.filter(|linear| rows <= linear.tuning(rows).max_rows);
        let slots = step.cache.slots_of(layer);
        let append = appending.map(|linear| (linear, AppendRows { layer: &view, slots: &slots }));
        self.projections.project(s, rows, input, (&cos_sin, wide), (forms, append))?;
        if append.is_none() {
            step.cache.append_span(layer, step.sequences, self.projections.cached_rows(s))?;
        }
        let (decode, plan) = step.of_layer(layer);
        let sinks = self.sinks.as_ref();
        let args = plan.map(|plan| DecodeArgs { sinks, ..DecodeArgs::new(plan, &view, &s.q, softmax_scale) });
        let attended = match args {
            Some(args) if self.by_context => {
                // In memory of its own, which is exchanged at this place whenever the step's commands come again.
                let own = DecodeOutput { out: s.attended.clone(), lse: s.lse.clone() };
                self.gpu.record(|pass| decode.encode(pass, args, &own))?;
                Some(own)
            }
            args => args.map(|args| decode.run(args)).transpose()?,
        };
        let values = match &attended {
            // Of rows in the explicit form this is nothing: what follows writes them.
            Some(attended) => self.projections.values(s, rows, &attended.out)?,
            None => &s.values,
        };
        if self.by_context {
            merge()?;
        }
        if let Some((up, explicit)) = explicit {
            let output = DecodeOutput { out: s.values.clone(), lse: s.lse.clone() };
            explicit
                .run(&view, &s.q_explicit, softmax_scale, &output, |rows, latents, kv| up.run(rows, latents, kv))?;
        }
        self.o.run(LinearArgs { accumulate: self.adds, ..LinearArgs::new(rows, Span::of(values), x) })
    }
}

/// The plans of a step, for all layers of the first kind.
pub(crate) struct StepPlans<'a> {
    /// Query tokens.
    pub(crate) tokens: usize,
    pub(crate) absorbed: Option<Plan>,
    explicit: Option<(&'a ExplicitPrefill, ExplicitPlan)>,
}

impl<'a> StepPlans<'a> {
    /// Errors: as [`Decode::plan`].
    pub(crate) fn new(
        decode: &Decode,
        cache: &PagedKvCache,
        sequences: &[SeqId],
        prefill: Option<&'a mut ExplicitPrefill>,
    ) -> Result<Self> {
        let planned = match prefill {
            Some(prefill) => prefill.plan(decode, cache, sequences)?.map(|planned| (&*prefill, planned)),
            None => None,
        };
        if let Some((tables, share)) = cache.shared_out() {
            let plan = decode.plan_share(tables, sequences, share)?;
            return Ok(StepPlans { tokens: plan.tokens(), absorbed: Some(plan), explicit: None });
        }
        let Some((prefill, planned)) = planned else {
            let plan = plan(decode, cache, sequences)?;
            return Ok(StepPlans { tokens: plan.tokens(), absorbed: Some(plan), explicit: None });
        };
        let absorbed = match planned.absorbed.contains(&true) {
            true => Some(decode.plan_some(cache, sequences, |sequence| planned.absorbed[sequence])?),
            false => None,
        };
        Ok(StepPlans { tokens: planned.tokens, absorbed, explicit: Some((prefill, planned.plan)) })
    }

    pub(crate) fn explicit(&self) -> Option<ExplicitStep<'_>> {
        self.explicit.as_ref().and_then(|(prefill, plan)| prefill.step(plan))
    }
}

/// What attention needs tensors for beside the absorbed form on one device.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ScratchForms {
    /// Prompts in the explicit form.
    pub(crate) explicit: bool,
    /// Attention over a rank's own tokens.
    pub(crate) by_context: bool,
}

impl AttentionScratch {
    /// Tensors of `rows` rows for a cache of `layout`, with those that forms need.
    pub(crate) fn new(
        gpu: &Gpu,
        (config, layout): (&Config, &HeadLayout),
        rows: usize,
        forms: ScratchForms,
    ) -> Result<Self> {
        let heads = config.q_heads;
        let f32s = |dims: &[usize]| Tensor::scratch(gpu, &[&[rows], dims].concat(), DType::F32);
        // What a variant does not use is tiny.
        let unused = |dims: usize| f32s(&vec![1; dims]);
        let (raw, q_raw, kv, values) = match config.attention {
            AttentionConfig::Latent { q_latent_dim, rope_dim, .. } => {
                let raw_dim = config.head_dim + rope_dim;
                let raw = f32s(&[q_latent_dim.unwrap_or(heads * raw_dim) + layout.kv_dim()])?;
                let q_raw = if q_latent_dim.is_some() { f32s(&[heads, raw_dim])? } else { unused(2)? };
                (raw, q_raw, f32s(&[layout.kv_dim()])?, f32s(&[heads, config.v_head_dim])?)
            }
            _ => {
                let raw = f32s(&[heads * config.head_dim + layout.kv_dim()])?;
                let (q_raw, kv) = match config.qk_norm {
                    QkNorm::None => (unused(2)?, unused(1)?),
                    _ => (f32s(&[heads, config.head_dim])?, f32s(&[layout.kv_dim()])?),
                };
                (raw, q_raw, kv, unused(2)?)
            }
        };
        let q = f32s(&[heads, layout.q_dim()])?;
        let q_explicit = match forms.explicit {
            true => f32s(&[heads, config.head_dim + config.rope_dim()])?,
            false => unused(2)?,
        };
        let lse = if forms.explicit || forms.by_context { f32s(&[heads])? } else { unused(1)? };
        let attended = if forms.by_context { f32s(&[heads, layout.v_dim()])? } else { unused(2)? };
        Ok(AttentionScratch { raw, q_raw, q, kv, values, q_explicit, lse, attended })
    }

    /// The same memory for the first `rows` rows.
    pub(crate) fn first(&self, rows: usize) -> Result<Self> {
        let cut = |t: &Tensor| t.view(&[&[rows], &t.shape()[1..]].concat());
        Ok(AttentionScratch {
            raw: cut(&self.raw)?,
            q_raw: cut(&self.q_raw)?,
            q: cut(&self.q)?,
            kv: cut(&self.kv)?,
            values: cut(&self.values)?,
            q_explicit: cut(&self.q_explicit)?,
            lse: cut(&self.lse)?,
            attended: cut(&self.attended)?,
        })
    }

    /// What attention over a rank's own tokens has found, (rows, q_heads, v_head_dim), and its log-sum-exp, (rows, q_heads).
    pub(crate) fn found(&self, config: &Config) -> [&Tensor; 2] {
        match config.attention {
            AttentionConfig::Latent { .. } => [&self.values, &self.lse],
            _ => [&self.attended, &self.lse],
        }
    }
}
