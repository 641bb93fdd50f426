//! How tokens are drawn, in numbers. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{ErrorKind, Result};

/// How a token is drawn from logits. What is on is applied in the order of the fields here after the penalties, each to what those
/// before it left: `temperature`, `min_p`, `top_k`, `typical_p`, `top_p`. The definition is
/// [`reference::sample_shaped`](crate::reference::sample_shaped).
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Sampling {
    /// Divides the logits; 0 takes the largest one, the lowest index among equals.
    pub temperature: f32,
    /// Keep the tokens whose probability is at least this share of the largest one; 0 keeps all.
    pub min_p: f32,
    /// Keep so many of the most likely tokens, and those that are as likely as the last of them; 0 keeps all.
    pub top_k: u32,
    /// Keep the tokens whose information is closest to its mean (Meister et al., arXiv 2202.00666) and that together hold this
    /// share of the mass; 1 keeps all. Equally close ones are kept or dropped together.
    pub typical_p: f32,
    /// Keep the most likely tokens that together hold this share of the mass; 1 keeps all. Tokens of one probability
    /// are kept or dropped together.
    pub top_p: f32,
    /// What tokens that were there lose.
    pub penalties: Penalties,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Sampling::new(0.0, 1.0)
    }
}

/// What tokens lose that were among the last ones, before the temperature is applied.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Penalties {
    /// Divides the positive logits, and multiplies the others, of all tokens in the window, those of the prompt included
    /// (Keskar et al., arXiv 1909.05858); in (0, 100], 1 changes nothing.
    pub repetition: f32,
    /// Subtracted from the logits of tokens that were drawn in the window; in -100..=100.
    pub presence: f32,
    /// Subtracted as often as a token was drawn in the window; in -100..=100.
    pub frequency: f32,
    /// How many of a sequence's last tokens count.
    pub window: u32,
}

impl Default for Penalties {
    /// None, over all tokens.
    fn default() -> Self {
        Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0, window: u32::MAX }
    }
}

impl Penalties {
    /// Whether they change nothing.
    pub fn are_off(&self) -> bool {
        let Penalties { repetition, presence, frequency, window } = *self;
        window == 0 || (repetition == 1.0 && presence == 0.0 && frequency == 0.0)
    }

    fn check(&self) -> Result<()> {
        let Penalties { repetition, presence, frequency, window: _ } = *self;
        if !(repetition > 0.0 && repetition <= 100.0) {
            return Err(ErrorKind::argument("repetition", format!("{repetition} is not in (0, 100]")));
        }
        for (name, value) in [("presence", presence), ("frequency", frequency)] {
            if !(-100.0..=100.0).contains(&value) {
                return Err(ErrorKind::argument(name, format!("{value} is not in -100..=100")));
            }
        }
        Ok(())
    }
}

impl Sampling {
    /// Temperature and nucleus, and nothing else.
    pub const fn new(temperature: f32, top_p: f32) -> Self {
        let penalties = Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0, window: u32::MAX };
        Sampling { temperature, min_p: 0.0, top_k: 0, typical_p: 1.0, top_p, penalties }
    }

    /// Whether every number is in its range.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`], by the field's name: a negative or non-finite temperature, a `top_p` or `typical_p` outside (0, 1],
    /// a `min_p` outside 0..=1, a penalty outside its range.
    pub fn check(&self) -> Result<()> {
        let Sampling { temperature, min_p, top_k: _, typical_p, top_p, penalties } = self;
        if !(*temperature >= 0.0 && temperature.is_finite()) {
            return Err(ErrorKind::argument("temperature", format!("{temperature} is not a number of at least 0")));
        }
        for (name, value) in [("top_p", *top_p), ("typical_p", *typical_p)] {
            if !(value > 0.0 && value <= 1.0) {
                return Err(ErrorKind::argument(name, format!("{value} is not in (0, 1]")));
            }
        }
        if !(0.0..=1.0).contains(min_p) {
            return Err(ErrorKind::argument("min_p", format!("{min_p} is not in 0..=1")));
        }
        penalties.check()
    }

    /// The name and value of an option that [`Sample`](super::Sample) does not know, if one is on: anything but temperature
    /// and nucleus.
    pub fn beyond_nucleus(&self) -> Option<(&'static str, f64)> {
        let Sampling { temperature: _, min_p, top_k, typical_p, top_p: _, penalties } = *self;
        let Penalties { repetition, presence, frequency, window: _ } = penalties;
        let penalties = [("repetition", repetition, 1.0), ("presence", presence, 0.0), ("frequency", frequency, 0.0)];
        let first = penalties.into_iter().find(|(_, value, off)| value != off && !self.penalties.are_off());
        if min_p != 0.0 {
            Some(("min_p", min_p.into()))
        } else if top_k != 0 {
            Some(("top_k", top_k.into()))
        } else if typical_p != 1.0 {
            Some(("typical_p", typical_p.into()))
        } else {
            first.map(|(name, value, _)| (name, value.into()))
        }
    }

    /// One row of a [`Sample`](super::Sample)'s `samplers`, drawing with `u` in [0, 1).
    ///
    /// # Errors
    ///
    /// Those of [`Sampling::check`]; [`ErrorKind::Argument`] for a `u` outside [0, 1), or where more is on than temperature and
    /// nucleus, by the name of the option: that is for a [`ShapedSample`](super::ShapedSample).
    pub fn row(&self, u: f32) -> Result<[f32; 4]> {
        self.check()?;
        if let Some((name, value)) = self.beyond_nucleus() {
            return Err(ErrorKind::argument(name, format!("{value}, where only temperature and top_p are known")));
        }
        check_u(u)?;
        Ok([self.divisor(), self.top_p, u, 0.0])
    }

    /// The temperature as kernels take it.
    pub(crate) fn divisor(&self) -> f32 {
        // Below this the division by it could overflow; the result is the same as at 0 long before.
        if self.temperature < 1e-6 {
            0.0
        } else {
            self.temperature
        }
    }
}

pub(super) fn check_u(u: f32) -> Result<()> {
    match (0.0..1.0).contains(&u) {
        true => Ok(()),
        false => Err(ErrorKind::argument("u", format!("{u} is not in [0, 1)"))),
    }
}
