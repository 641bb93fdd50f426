//! Which numbers a [`Config`] may have, wherever they come from: its fields are public. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::{AttentionConfig, Config, ExpertsConfig};
use crate::error::{ErrorKind, Result};
use crate::sizes::expect_in;

/// Width of a head or latent, and heads, as a [`HeadLayout`](crate::HeadLayout) has them.
const WIDTH: usize = 1 << 14;

impl Config {
    /// Refuses numbers that no model has, by the bounds of [`Config::parse`]: products of a few of those that pass stay far
    /// inside 64 bits.
    ///
    /// Errors: [`ErrorKind::Argument`] with the field and its value.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_attention()?;
        for (name, size, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("layers", self.layers, 1 << 10),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("max_positions", self.max_positions, 1 << 24),
        ] {
            expect_in(name, size, 1..=most)?;
        }
        self.check_layers()?;
        self.experts.as_ref().map_or(Ok(()), ExpertsConfig::check)
    }

    /// [`Config::check`] of what a layer's attention is made of.
    pub(crate) fn check_attention(&self) -> Result<()> {
        expect_in("hidden_size", self.hidden_size, 1..=1 << 16)?;
        if !self.hidden_size.is_multiple_of(4) {
            return Err(ErrorKind::argument("hidden_size", format!("{} is not a multiple of 4", self.hidden_size)));
        }
        expect_in("head_dim", self.head_dim, 1..=WIDTH)?;
        expect_in("v_head_dim", self.v_head_dim, 1..=WIDTH)?;
        self.layout()?;
        match self.attention {
            AttentionConfig::Latent { q_latent_dim, .. } => {
                expect_in("q_latent_dim", q_latent_dim.unwrap_or(1), 1..=1 << 16)?;
            }
            AttentionConfig::Gqa { .. } | AttentionConfig::Gta { .. } if self.v_head_dim != self.head_dim => {
                let why = format!("{}, of {} it is head_dim, {}", self.v_head_dim, self.variant(), self.head_dim);
                return Err(ErrorKind::argument("v_head_dim", why));
            }
            AttentionConfig::Gqa { .. } | AttentionConfig::Gta { .. } => {}
        }
        let gains = [("rope_gain", self.rope_gain), ("score_gain", self.score_gain)];
        if let Some((name, gain)) = gains.into_iter().find(|(_, gain)| !gain.is_finite()) {
            return Err(ErrorKind::argument(name, format!("{gain} is not finite")));
        }
        // An odd width, and frequencies that are no numbers.
        self.rope().map(drop)
    }
}

impl ExpertsConfig {
    fn check(&self) -> Result<()> {
        self.route.check()?;
        expect_in("width", self.width, 1..=1 << 20)?;
        expect_in("shared_width", self.shared_width, 0..=1 << 30)
    }
}
