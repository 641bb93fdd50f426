//! What the layers of a model differ in, from those of a Llama and from each other: where norms are, and how heads rotate. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{AttentionConfig, Config};
use crate::error::{ErrorKind, Result};
use crate::nn::GateClamp;
use crate::rope::{Rope, RopePairs, RopeScaling};
use std::ops::Range;

/// Where the norms of a block are, around its attention and around its feed-forward part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockNorms {
    /// Before each: `x + f(norm(x))`.
    #[default]
    Before,
    /// Behind each: `x + norm(f(x))` (OLMo 2).
    After,
    /// Both: `x + norm(f(norm(x)))` (GLM-4).
    Around,
}

impl BlockNorms {
    pub(crate) fn before(self) -> bool {
        self != BlockNorms::After
    }

    pub(crate) fn after(self) -> bool {
        self != BlockNorms::Before
    }
}

/// Norms of GQA's queries and keys before they rotate, with `rms_norm_eps`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QkNorm {
    /// None.
    #[default]
    None,
    /// Of each head by itself, with one gain for all heads (Qwen3).
    Heads,
    /// Of all queries of a token together, and of all keys, each with its own gain for each element (OLMo 2).
    Whole,
}

/// How a layer rotates its queries and keys.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum LayerRope {
    /// As the model's numbers say.
    #[default]
    Model,
    /// Not at all (SmolLM3).
    None,
    /// All of each head, by this base and without scaling (Gemma 3's layers with a window).
    Theta(f64),
}

/// What a layer differs in from others of its model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct LayerKind {
    /// How it rotates.
    pub rope: LayerRope,
    /// Tokens that a token sees in it, its own included; none for those of [`Config::window`].
    pub window: Option<usize>,
}

/// What is between gate and up of a feed-forward part.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// SwiGLU.
    #[default]
    Silu,
    /// GeGLU, by GELU's tanh form (Gemma).
    GeluTanh,
    /// A clamped SwiGLU, of experts alone (gpt-oss).
    Clamped(GateClamp),
}

/// Frequency factors for sequences beyond those of training (LongRoPE, Ding et al., arXiv 2402.13753).
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Tokens up to which [`Config::rope_factors`] are right.
    pub original_positions: usize,
    /// What the frequency of each pair is divided by in their place, in a session whose sequences may be longer
    /// ([`SessionOptions::max_tokens`](crate::model::SessionOptions)): keys stay as they were rotated, so all of a session have one.
    pub factors: Vec<f32>,
}

impl Config {
    /// Elements of a head that are rotated, or go with those: of GQA the whole head, of which [`Config::rotated_dim`] may be less.
    pub fn rope_dim(&self) -> usize {
        match self.attention {
            AttentionConfig::Gqa { .. } => self.head_dim,
            AttentionConfig::Gta { rope_dim, .. } | AttentionConfig::Latent { rope_dim, .. } => rope_dim,
        }
    }

    /// Elements of a head whose angles are not 0.
    pub(crate) fn turning_dim(&self) -> usize {
        self.rotated_dim.unwrap_or(self.rope_dim())
    }

    /// Frequencies and pairs of the rotation. Of a GQA layer that rotates a part of each head the other pairs have frequency 0.
    ///
    /// # Errors
    ///
    /// As [`RopeScaling::inv_freq`](crate::rope::RopeScaling::inv_freq), and [`ErrorKind::Argument`](crate::ErrorKind::Argument) for
    /// `rope_factors` that are no finite numbers above 0 for each pair, or a `rotated_dim` that is odd, past the head or not of GQA.
    pub fn rope(&self) -> Result<Rope> {
        let (turning, all) = (self.turning_dim(), self.rope_dim());
        if turning > all || turning != all && !matches!(self.attention, AttentionConfig::Gqa { .. }) {
            let why = format!("{turning} of the {all} elements of {}", self.variant());
            return Err(ErrorKind::argument("rotated_dim", why));
        }
        let mut inv_freq = self.rope_scaling.inv_freq(turning, self.rope_theta)?;
        if !self.rope_factors.is_empty() && turning > 0 {
            check_factors("rope_factors", &self.rope_factors, inv_freq.len())?;
            inv_freq.iter_mut().zip(&self.rope_factors).for_each(|(frequency, factor)| *frequency /= factor);
        }
        inv_freq.resize(all / 2, 0.0);
        Ok(Rope { inv_freq, pairs: self.rotation() })
    }

    /// Which elements rotate together.
    pub(in crate::model) fn rotation(&self) -> RopePairs {
        if self.rope_interleaved {
            RopePairs::Interleaved
        } else {
            RopePairs::Half
        }
    }

    /// The order in which a head's elements are kept, where it is not the files': elements that rotate together are half a head
    /// apart, whatever part of it rotates. Scores of queries and keys do not hang on the order.
    pub(crate) fn head_order(&self) -> Option<[Range<usize>; 4]> {
        let (turning, all) = (self.turning_dim(), self.rope_dim());
        if self.rope_interleaved || turning == all || turning == 0 {
            return None;
        }
        let (half, rest) = (turning / 2, all.saturating_sub(turning) / 2);
        let middle = turning.saturating_add(rest);
        Some([0..half, turning..middle, half..turning, middle..all])
    }

    /// Factor on the scores: the width of a head before absorption, to the power -1/2, and the gains. Where a whole
    /// head rotates (GQA), [`Config::rope_gain`] is in here; else in [`Config::rotated_query_gain`].
    pub fn softmax_scale(&self) -> f32 {
        let (width, gain) = match self.attention {
            AttentionConfig::Latent { rope_dim, .. } => (self.head_dim.saturating_add(rope_dim), 1.0),
            AttentionConfig::Gqa { .. } if self.rotated_dim.is_none() => {
                (self.head_dim, self.rope_gain * self.rope_gain)
            }
            AttentionConfig::Gqa { .. } | AttentionConfig::Gta { .. } => (self.head_dim, 1.0),
        };
        (width as f32).powf(-0.5) * gain * self.score_gain
    }

    /// What the rotated elements of queries are multiplied by, for the keys as well, beside [`Config::softmax_scale`].
    pub fn rotated_query_gain(&self) -> f32 {
        match self.attention {
            AttentionConfig::Gqa { .. } if self.rotated_dim.is_none() => 1.0,
            _ => self.rope_gain * self.rope_gain,
        }
    }

    /// The numbers of a model whose layers are all like this one.
    pub(crate) fn of_layer(&self, layer: usize) -> Config {
        let plain = Config { layer_kinds: Vec::new(), ..self.clone() };
        let kind = self.layer_kinds.get(layer).copied().unwrap_or_default();
        let plain = Config { window: kind.window.or(self.window), ..plain };
        match kind.rope {
            LayerRope::Model => plain,
            LayerRope::Theta(rope_theta) => Config {
                rope_theta,
                rope_scaling: RopeScaling::None,
                rope_factors: Vec::new(),
                rope_gain: 1.0,
                rotated_dim: None,
                ..plain
            },
            LayerRope::None => Config { rotated_dim: Some(0), rope_gain: 1.0, ..plain },
        }
    }

    /// The numbers for sequences of up to so many tokens.
    pub(crate) fn for_positions(&self, positions: usize) -> Config {
        match &self.long_rope {
            Some(long) if positions > long.original_positions => {
                Config { rope_factors: long.factors.clone(), long_rope: None, ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// What [`Config::check`] asks of the numbers that are here.
    pub(super) fn check_layers(&self) -> Result<()> {
        let scales = [
            ("embedding_scale", self.embedding_scale),
            ("residual_scale", self.residual_scale),
            ("logit_scale", self.logit_scale),
        ];
        if let Some((name, scale)) = scales.into_iter().find(|(_, scale)| !scale.is_finite()) {
            return Err(ErrorKind::argument(name, format!("{scale} is not finite")));
        }
        let kinds = self.layer_kinds.len();
        if kinds > 0 && kinds != self.layers {
            return Err(ErrorKind::argument("layer_kinds", format!("{kinds} of {} layers", self.layers)));
        }
        let gqa = matches!(self.attention, AttentionConfig::Gqa { .. });
        if !gqa && (self.qk_norm != QkNorm::None || kinds > 0) {
            let name = if kinds > 0 { "layer_kinds" } else { "qk_norm" };
            return Err(ErrorKind::argument(name, format!("of {}: only layers of gqa have them", self.variant())));
        }
        let all_experts = self.experts.is_some_and(|experts| experts.first_layer == 0 && experts.shared_width == 0);
        let fits = match self.activation {
            Activation::Silu => true,
            Activation::GeluTanh => self.experts.is_none(),
            Activation::Clamped(clamp) => clamp.check().map(|()| all_experts)?,
        };
        if !fits {
            let which = if self.experts.is_some() { "some of which are experts" } else { "none of which are experts" };
            return Err(ErrorKind::argument(
                "activation",
                format!("{:?} of feed-forward parts, {which}", self.activation),
            ));
        }
        for (name, cap) in [("logit_softcap", self.logit_softcap), ("score_softcap", self.score_softcap)] {
            if let Some(cap) = cap.filter(|cap| !(1e-3..=1e6).contains(cap)) {
                return Err(ErrorKind::argument(name, format!("{cap} is not in 1e-3..=1e6")));
            }
        }
        if self.logit_softcap.is_some() && self.logit_scale != 1.0 {
            return Err(ErrorKind::argument("logit_softcap", format!("beside a logit_scale of {}", self.logit_scale)));
        }
        for (name, there) in [("score_softcap", self.score_softcap.is_some()), ("sinks", self.sinks)] {
            if there && !gqa {
                return Err(ErrorKind::argument(name, format!("of {}: only gqa has it", self.variant())));
            }
        }
        if self.layer_kinds.iter().any(|kind| kind.window == Some(0)) {
            return Err(ErrorKind::argument("layer_kinds", "a window of 0: a token sees at least itself"));
        }
        if self.experts.is_some() && !self.norms.before() {
            return Err(ErrorKind::argument("norms", "experts want a norm before them"));
        }
        match &self.long_rope {
            Some(long) => check_factors("long_rope", &long.factors, self.turning_dim() / 2),
            None => Ok(()),
        }
    }
}

fn check_factors(name: &'static str, factors: &[f32], pairs: usize) -> Result<()> {
    let good = |f: &f32| f.is_finite() && *f > 0.0;
    if factors.len() == pairs && factors.iter().all(good) {
        return Ok(());
    }
    let why = format!("{} numbers for {pairs} pairs, which must be finite and above 0", factors.len());
    Err(ErrorKind::argument(name, why))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { layers: 2, ..Config::new(AttentionConfig::Gqa { kv_heads: 2 }, 64, 4, 16) }
    }

    #[test]
    fn a_part_of_a_head_rotates() {
        let part = Config { rotated_dim: Some(12), rope_gain: 1.5, ..config() };
        let whole = Config { head_dim: 12, v_head_dim: 12, ..config() };
        let rope = part.rope().unwrap();
        assert_eq!(rope.inv_freq[..6], whole.rope().unwrap().inv_freq[..]);
        assert_eq!(rope.inv_freq[6..], [0.0; 2]);
        // Element i of the part and i + 6 are half a head apart; each element stands once.
        let order: Vec<usize> = part.head_order().unwrap().into_iter().flatten().collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 12, 13, 6, 7, 8, 9, 10, 11, 14, 15]);
        assert_eq!((part.softmax_scale(), part.rotated_query_gain()), (0.25, 2.25));
        assert_eq!(Config { rope_interleaved: true, ..part.clone() }.head_order(), None);
        for rotated_dim in [Some(18), Some(7)] {
            assert!(Config { rotated_dim, ..config() }.check().is_err(), "{rotated_dim:?}");
        }
        let tied = Config::new(AttentionConfig::Gta { kv_heads: 2, rope_dim: 8 }, 64, 4, 16);
        assert!(Config { rotated_dim: Some(4), ..tied }.check().is_err());
    }

    #[test]
    fn a_layer_may_not_rotate() {
        let none = LayerKind { rope: LayerRope::None, ..Default::default() };
        let mixed = Config { layer_kinds: vec![LayerKind::default(), none], rope_gain: 1.5, ..config() };
        mixed.check().unwrap();
        assert_eq!(mixed.of_layer(0).rope().unwrap(), mixed.rope().unwrap());
        assert_eq!(mixed.of_layer(1).rope().unwrap().inv_freq, [0.0; 8]);
        assert_eq!((mixed.of_layer(0).softmax_scale(), mixed.of_layer(1).softmax_scale()), (0.25 * 2.25, 0.25));
        assert!(Config { layer_kinds: vec![none], ..mixed }.check().is_err());
    }

    #[test]
    fn long_sequences_have_factors_of_their_own() {
        let long = LongRope { original_positions: 32, factors: vec![4.0; 8] };
        let config = Config { rope_factors: vec![2.0; 8], long_rope: Some(long), ..config() };
        config.check().unwrap();
        let first = |positions| config.for_positions(positions).rope().unwrap().inv_freq[0];
        assert_eq!([first(32), first(33)], [0.5, 0.25]);
        let few = LongRope { original_positions: 32, factors: vec![4.0; 7] };
        assert!(Config { long_rope: Some(few), ..config }.check().is_err());
    }
}
