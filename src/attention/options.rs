//! What may be asked of attention beyond its definition: softcap, sliding window, sinks, tree masks. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::attention::plan::tree::{chain_masks, tree_masks, Shown};
use crate::kv::view::SeqView;

use crate::error::{ErrorKind, Result};
use crate::gpu::{part, Access, Const, Consts, ShaderPart};

/// Options of a [`Decode`](super::Decode). They are constants of its kernels: what is not asked for costs nothing.
///
/// ```
/// # use latten::attention::AttentionOptions;
/// let gemma = AttentionOptions { softcap: Some(50.0), window: Some(4096), ..Default::default() };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct AttentionOptions {
    /// Scores become `cap * tanh(score / cap)` before the softmax; from 1e-3 to 1e6.
    pub softcap: Option<f32>,
    /// A query token sees the last this many tokens, its own included: tokens `max(0, p - window + 1) ..= p` from position
    /// `p`. Pages outside the window are not read. At least 1.
    pub window: Option<usize>,
    /// And the first this many tokens of the sequence, beside those of a window, each at its own position: token `t` is
    /// seen from `p` where `t < keep_first` or `t + window > p`. (StreamingLLM's attention sinks, Xiao et al.,
    /// arXiv 2309.17453. [`AttentionOptions::sinks`] is another thing.) Of the tokens between them, whole pages are not
    /// read. 0 for none; more only with a window.
    pub keep_first: usize,
    /// Whether a learned logit per query head takes part in the softmax, as one more token whose value is zero. It is given
    /// with the queries ([`DecodeArgs::sinks`](super::DecodeArgs::sinks)), since each layer has its own.
    ///
    /// The log-sum-exp of the results includes it, as FlashAttention's and FlashInfer's do: so `(out, lse)` stays a state
    /// that merges with others over further tokens, as long as only one of them has the sink.
    pub sinks: bool,
    /// Whether the step's own tokens see each other by masks instead of causally, as the verification of a tree of drafted
    /// tokens needs: [`Decode::plan_tree`](super::Decode::plan_tree). Up to 64 new tokens per sequence.
    pub tree: bool,
}

/// Range of a softcap. Beyond, the score in units of the cap, or the cap in units of the score, leaves f32.
const SOFTCAPS: std::ops::RangeInclusive<f32> = 1e-3..=1e6;

impl AttentionOptions {
    /// Errors: [`ErrorKind::Argument`] with the number.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(cap) = self.softcap.filter(|cap| !SOFTCAPS.contains(cap)) {
            let why = format!("{cap} is not in {}..={}", SOFTCAPS.start(), SOFTCAPS.end());
            return Err(ErrorKind::argument("softcap", why));
        }
        if self.window == Some(0) {
            return Err(ErrorKind::argument("window", "0: a token sees at least itself"));
        }
        if self.keep_first > 0 && self.window.is_none() {
            return Err(ErrorKind::argument("keep_first", format!("{} without a window", self.keep_first)));
        }
        Ok(())
    }

    /// The window as planner and kernels count it: 0 for none. No sequence has more than u32 tokens.
    pub(crate) fn window_tokens(&self) -> u32 {
        self.window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX))
    }

    /// As [`AttentionOptions::window_tokens`], the first tokens beside the window.
    pub(crate) fn first_tokens(&self) -> u32 {
        u32::try_from(self.keep_first).unwrap_or(u32::MAX)
    }

    /// The step's tree masks, one per query token: `given` ones checked and cut to what window and first tokens show,
    /// or those of plain sequences; none without [`AttentionOptions::tree`].
    pub(crate) fn masks(&self, sequences: &[SeqView], given: Option<&[u64]>) -> Result<Vec<u64>> {
        let shown = Shown { window: self.window_tokens(), keep_first: self.first_tokens() };
        match (self.tree, given) {
            (false, None) => Ok(Vec::new()),
            (false, Some(_)) => Err(ErrorKind::argument("masks", "were given, the Decode was made without tree masks")),
            (true, Some(masks)) => tree_masks(sequences, masks, shown),
            (true, None) => tree_masks(sequences, &chain_masks(sequences)?, shown),
        }
    }

    /// Adds what a kernel needs that scores and masks: constants and the slots `attention/score` and `attention/mask`. To follow
    /// `attention/plan.wgsl`.
    pub(crate) fn score_parts(&self, consts: &mut Consts) -> [ShaderPart; 2] {
        consts.push(("WINDOW", Const::U32(self.window_tokens())));
        consts.push(("KEEP_FIRST", Const::U32(self.first_tokens())));
        let score = match self.softcap {
            Some(cap) => {
                let cap_log2 = f64::from(cap) * std::f64::consts::LOG2_E;
                consts.push(("SOFTCAP_LOG2", Const::f32(cap_log2 as f32)));
                part!("attention/score/softcap.wgsl")
            }
            None => part!("attention/score/plain.wgsl"),
        };
        [score, if self.tree { part!("attention/mask/tree.wgsl") } else { part!("attention/mask/causal.wgsl") }]
    }

    /// Adds what a kernel needs that writes finished rows: constants, the sinks' binding (after all others) and the slot
    /// `attention/sink`. To follow `attention/softmax.wgsl`.
    pub(crate) fn sink_part(&self, consts: &mut Consts, bindings: &mut Vec<Access>) -> ShaderPart {
        if !self.sinks {
            return part!("attention/sink/none.wgsl");
        }
        bindings.push(Access::Read);
        consts.push(("SINK_BINDING", Const::U32(bindings.len() as u32)));
        part!("attention/sink/logit.wgsl")
    }
}
