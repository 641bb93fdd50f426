//! How the frequencies of a rotation are stretched for sequences longer than those of training. Pure.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use crate::error::{ErrorKind, Result};
use crate::sizes::MAX_DIM;
use std::f64::consts::TAU;

/// What becomes of the frequencies `theta^(-2 i / rope_dim)`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RopeScaling {
    /// Nothing.
    #[default]
    None,
    /// All are divided: positions interpolated (Chen et al., arXiv 2306.15595).
    Linear {
        /// How many times longer sequences become.
        factor: f64,
    },
    /// Llama 3.1: long waves are divided, short ones kept, those between blended.
    Llama3 {
        /// How many times longer sequences become.
        factor: f64,
        /// Waves that turn fewer times than this in `original_positions` are divided.
        low_freq_factor: f64,
        /// Those that turn more often than this are kept. Above `low_freq_factor`.
        high_freq_factor: f64,
        /// Tokens of the sequences of training.
        original_positions: f64,
    },
    /// YaRN (Peng et al., arXiv 2309.00071), "NTK by parts". Its temperature is not here: it is no frequency.
    Yarn {
        /// How many times longer sequences become.
        factor: f64,
        /// Pairs that turn more often than this in `original_positions` are kept. Above `beta_slow`.
        beta_fast: f64,
        /// Pairs that turn fewer times than this are divided.
        beta_slow: f64,
        /// Tokens of the sequences of training.
        original_positions: f64,
        /// Whether the ends of the ramp between are rounded outwards to whole pairs, as in most models.
        truncate: bool,
    },
}

impl RopeScaling {
    /// Radians per position of each of `rope_dim / 2` pairs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a `rope_dim` that is odd or above 16,384, which no layout has, and for numbers by
    /// which a frequency is not finite.
    pub fn inv_freq(&self, rope_dim: usize, theta: f64) -> Result<Vec<f32>> {
        if rope_dim > MAX_DIM || !rope_dim.is_multiple_of(2) {
            let why = format!("{rope_dim} is not an even number up to {MAX_DIM}");
            return Err(ErrorKind::argument("rope_dim", why));
        }
        let frequencies = self.frequencies(rope_dim, theta);
        match frequencies.iter().position(|f| !f.is_finite()) {
            None => Ok(frequencies),
            Some(pair) => {
                let why =
                    format!("theta {theta} and {self:?} give pair {pair} of {rope_dim} elements no finite frequency");
                Err(ErrorKind::argument("theta", why))
            }
        }
    }

    fn frequencies(&self, rope_dim: usize, theta: f64) -> Vec<f32> {
        let plain = |pair: usize| theta.powf(-2.0 * pair as f64 / rope_dim as f64);
        let pairs = 0..rope_dim / 2;
        match *self {
            RopeScaling::None => pairs.map(|pair| plain(pair) as f32).collect(),
            RopeScaling::Linear { factor } => pairs.map(|pair| (plain(pair) / factor) as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let kept = |turns: f64| (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let stretched = |pair| blend(plain(pair), factor, kept(original_positions * plain(pair) / TAU));
                pairs.map(stretched).collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate } => {
                // The pair, as a fraction, that turns so many times.
                let at = |turns: f64| rope_dim as f64 * (original_positions / (turns * TAU)).ln() / (2.0 * theta.ln());
                let (first, last) = (at(beta_fast), at(beta_slow));
                let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
                // To the last element, not pair: so in the authors' code and all models made with it.
                let (first, last) = (first.max(0.0), last.min(rope_dim as f64 - 1.0));
                let width = if first == last { 0.001 } else { last - first };
                pairs.map(|pair| blend(plain(pair), factor, 1.0 - (pair as f64 - first) / width)).collect()
            }
        }
    }
}

/// Of a frequency: the part `kept` (cut to 0..=1) as it is, the rest divided.
fn blend(frequency: f64, factor: f64, kept: f64) -> f32 {
    let kept = kept.clamp(0.0, 1.0);
    (frequency * kept + frequency / factor * (1.0 - kept)) as f32
}
