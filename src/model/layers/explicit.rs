//! Prompts in the explicit form: which sequences of a step take it, and what it needs beside a [`Decode`].

use super::prefill::{Choice, PrefillPath};
use crate::attention::explicit::{Explicit, ExplicitArgs, ExplicitBatch, ExplicitLayout, ExplicitPlan, PART_PAGE};
use crate::attention::{Decode, DecodeOutput};
use crate::cache::{PagedKvCache, SeqId};
use crate::error::{ErrorKind, Result};
use crate::gpu::{DType, Gpu, Tensor};
use crate::kv::{KvSource, KvView};
use crate::model::config::{AttentionConfig, Config};
use crate::sizes::expect_in;
use std::fmt;

/// The explicit form of GLA and MLA for prompts ([`PrefillPath`]): kernels and scratch memory, one for all layers of a model.
/// A [`Session`](crate::model::Session) has its own; by itself it goes with [`Attention::forward`].
///
/// A context longer than the scratch memory, 4,096 tokens or what 256 MiB hold, is taken in parts, whose results are
/// merged by their log-sum-exp: so memory is bounded, and reading the queries once per part costs little beside the
/// products with so many tokens. Explicit keys and values are F32, or F16 where the device multiplies f16 matrices
/// ([`Tier::Matrix`](crate::Tier)) and the cache is no wider.
///
/// [`Attention::forward`]: crate::model::Attention::forward
pub struct ExplicitPrefill {
    gpu: Gpu,
    choice: Choice,
    layout: ExplicitLayout,
    dtype: DType,
    /// Tokens of the scratch memory.
    room: usize,
    /// Made by the first step that needs it.
    explicit: Option<Explicit>,
}

/// Most tokens of the scratch memory, and its most bytes. Per part and query a head's scores, weights and sums take
/// `2 (head_dim + rope_dim + v_head_dim)` FLOP a token, and reading its query and merging its output some 3 KiB: from
/// some hundred tokens on the memory is not what a GPU waits for.
const MOST_TOKENS: usize = 4096;
const MOST_BYTES: usize = 256 << 20;
/// What an app may ask for: no sequence is longer.
const MOST_SCRATCH: usize = 1 << 24;

/// A step's sequences in the explicit form, and what the others are.
pub(crate) struct Planned {
    pub(crate) plan: ExplicitPlan,
    /// Of each sequence, whether it is absorbed.
    pub(crate) absorbed: Vec<bool>,
    /// Query tokens of the step.
    pub(crate) tokens: usize,
}

/// One step of the explicit form.
#[derive(Clone, Copy)]
pub(crate) struct ExplicitStep<'a> {
    explicit: &'a Explicit,
    plan: &'a ExplicitPlan,
}

impl fmt::Debug for ExplicitPrefill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExplicitPrefill { choice, dtype, room, .. } = self;
        let mut fields = f.debug_struct("ExplicitPrefill");
        fields.field("choice", choice).field("dtype", dtype).field("scratch_tokens", room).finish_non_exhaustive()
    }
}

impl ExplicitPrefill {
    /// For caches and options like those given: of `cache` the layout and dtype count, of `decode` its
    /// [`AttentionOptions`](crate::AttentionOptions), policy and parallelism. Memory is allocated and kernels are compiled
    /// here.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a config that is not GLA or MLA or has no rope key or fields that no file could have, for first tokens beside a
    /// window, sinks or trees, a `path` that never is explicit; those of [`Decode::new`].
    pub fn new(gpu: &Gpu, config: &Config, cache: &PagedKvCache, decode: &Decode, path: PrefillPath) -> Result<Self> {
        config.check_attention()?;
        let choice = Choice::new(config, path, decode.options().window, usize::MAX).ok_or_else(|| {
            let why = format!("{path:?} never takes the explicit form of {}", config.variant());
            ErrorKind::argument("path", why)
        })?;
        let mut prefill = Self::of_choice(gpu, config, cache.dtype(), choice, usize::MAX)?;
        prefill.explicit = Some(gpu.together(|| prefill.make(decode))?);
        Ok(prefill)
    }

    /// The same with scratch memory for so many tokens, rounded up to a multiple of 64. `decode` as before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for more than 2^24; those of the device.
    pub fn with_scratch_tokens(mut self, decode: &Decode, tokens: usize) -> Result<Self> {
        expect_in("tokens", tokens, 0..=MOST_SCRATCH)?;
        self.room = tokens;
        self.explicit = Some(self.make(decode)?);
        Ok(self)
    }

    /// Allocates nothing yet. `most`: tokens that a sequence has at most where it takes the explicit form.
    pub(crate) fn of_choice(gpu: &Gpu, config: &Config, dtype: DType, choice: Choice, most: usize) -> Result<Self> {
        let layout = layout(config)?;
        let token_bytes = layout.token_bytes(ExplicitLayout::dtype(gpu.capabilities().tier, dtype));
        // The largest of its buffers is less than all of them.
        let bytes = MOST_BYTES.min(gpu.capabilities().max_binding_bytes as usize);
        let room = (bytes / token_bytes / PART_PAGE * PART_PAGE).clamp(PART_PAGE, MOST_TOKENS).min(most);
        Ok(ExplicitPrefill { gpu: gpu.clone(), choice, layout, dtype, room, explicit: None })
    }

    fn make(&self, decode: &Decode) -> Result<Explicit> {
        Ok(Explicit::new(&self.gpu, self.layout, self.dtype, *decode.options(), self.room)?.like(decode))
    }

    /// The same for another policy of `decode`, at the next step.
    pub(crate) fn forget(&mut self) {
        self.explicit = None;
    }

    /// The plan of a step, if one of its sequences is explicit.
    pub(crate) fn plan(
        &mut self,
        decode: &Decode,
        cache: &PagedKvCache,
        sequences: &[SeqId],
    ) -> Result<Option<Planned>> {
        // Steps of few tokens, which are most, do without a page table of their own.
        let may_take = |id: &SeqId| Ok(self.choice.may_take(cache.reserved(*id)?));
        if !sequences.iter().map(may_take).collect::<Result<Vec<bool>>>()?.contains(&true) {
            return Ok(None);
        }
        let batch = cache.batch(sequences)?;
        let needs: Vec<_> = batch.sequences.iter().map(|view| self.choice.explicit(view)).collect();
        let absorbed: Vec<bool> = needs.iter().map(Option::is_none).collect();
        let needs: Vec<_> =
            needs.into_iter().enumerate().filter_map(|(index, tokens)| tokens.map(|t| (index, t))).collect();
        if needs.is_empty() {
            return Ok(None);
        }
        let made = match self.explicit.take() {
            Some(explicit) => explicit,
            None => self.gpu.lazily(|| self.make(decode))?,
        };
        let explicit = self.explicit.insert(made);
        let tokens = batch.tokens();
        let (sequences, page_table) = (&batch.sequences[..], &batch.page_table[..]);
        let plan =
            explicit.plan(ExplicitBatch { sequences, page_table, page_size: cache.page_size(), tokens }, &needs)?;
        Ok(Some(Planned { plan, absorbed, tokens }))
    }

    /// One step; none before there was a plan.
    pub(crate) fn step<'a>(&'a self, plan: &'a ExplicitPlan) -> Option<ExplicitStep<'a>> {
        self.explicit.as_ref().map(|explicit| ExplicitStep { explicit, plan })
    }
}

impl ExplicitStep<'_> {
    /// Records one layer; `up` as [`Explicit::run`] has it.
    pub(crate) fn run(
        &self,
        layer: &KvView,
        q: &Tensor,
        softmax_scale: f32,
        output: &DecodeOutput,
        up: impl Fn(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<()> {
        self.explicit.run(ExplicitArgs { plan: self.plan, layer, q, softmax_scale, output }, up)
    }
}

fn layout(config: &Config) -> Result<ExplicitLayout> {
    match config.attention {
        AttentionConfig::Latent { rope_dim, .. } if rope_dim > 0 => {
            ExplicitLayout::new(config.layout()?, config.head_dim, config.v_head_dim)
        }
        _ => {
            let why = format!("{} with a rope key of {} has no explicit form", config.variant(), config.rope_dim());
            Err(ErrorKind::argument("config", why))
        }
    }
}
