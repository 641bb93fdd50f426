//! Keys of GGUF files that say how heads rotate. Pure.

use super::gguf::ArchKeys;
use crate::error::Result;
use crate::rope::RopeScaling;

/// What is done with positions.
pub(super) struct Rotation {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    pub(super) gain: f32,
    pub(super) score_gain: f32,
}

impl ArchKeys<'_> {
    pub(super) fn rotation(&self, long_factors: bool) -> Result<Rotation> {
        let theta = self.number("rope.freq_base", 1.0 + 1e-6..=1e12)?.unwrap_or(1e4);
        let factor = match self.number("rope.scaling.factor", 0.0..=1e6)? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear", 0.0..=1e6)?,
        };
        let factor = factor.filter(|factor| *factor > 0.0).unwrap_or(1.0);
        let kind = self.key("rope.scaling.type");
        let attention = self.number("rope.scaling.attn_factor", 1e-3..=1e3)?.unwrap_or(1.0);
        // 0.1 times DeepSeek's mscale_all_dim.
        let log_multiplier = self.number("rope.scaling.yarn_log_multiplier", 0.0..=1e3)?.unwrap_or(0.0);
        let mut made = Rotation { theta, scaling: RopeScaling::None, gain: attention as f32, score_gain: 1.0 };
        match self.file.text(&kind)? {
            Some("none") => {}
            Some("longrope") if long_factors => {}
            None | Some("linear") if factor == 1.0 => {}
            None | Some("linear") => made.scaling = RopeScaling::Linear { factor },
            Some("yarn") => {
                made.scaling = self.yarn(factor)?;
                let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
                match self.architecture.latent {
                    // Its rotation keeps its size, since mscale is mscale_all_dim in all of its models.
                    true => made.score_gain = (1.0 + log_multiplier * factor.max(1.0).ln()).powi(2) as f32,
                    false => made.gain = (usual * attention) as f32,
                }
            }
            Some(_) => return Err(self.bad("rope.scaling.type", "is not among [\"none\", \"linear\", \"yarn\"]")),
        }
        Ok(made)
    }

    fn yarn(&self, factor: f64) -> Result<RopeScaling> {
        let positions = self.size("rope.scaling.original_context_length", 1 << 24)?;
        let beta_fast = self.number("rope.scaling.yarn_beta_fast", 1e-3..=1e6)?.unwrap_or(32.0);
        let beta_slow = self.number("rope.scaling.yarn_beta_slow", 1e-3..=1e6)?.unwrap_or(1.0);
        if beta_fast <= beta_slow {
            return Err(self.bad("rope.scaling.yarn_beta_fast", &format!("is not above yarn_beta_slow = {beta_slow}")));
        }
        self.must_be("rope.scaling.yarn_ext_factor", 1)?;
        let original_positions = positions as f64;
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_positions,
            truncate: self.architecture.truncates,
        })
    }
}
