//! Keys of a `config.json` that say how heads rotate. Pure.

use super::families::Family;
use super::keys::Keys;
use super::layers::LongRope;
use crate::error::Result;
use crate::rope::RopeScaling;

/// What keys say of the rotation.
pub(super) struct RopeKeys {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    pub(super) factors: Vec<f32>,
    pub(super) long: Option<LongRope>,
    pub(super) gain: f32,
    /// 1 where there is no such key.
    pub(super) mscale_all_dim: f32,
    /// The key of which this is right only up to `max_position_embeddings`, if there is one.
    pub(super) only_within: Option<&'static str>,
    /// Of layers with a window, where they have another base.
    pub(super) theta_of_windows: Option<f64>,
    /// The key of the object that it stands in.
    pub(super) name: &'static str,
}

const PARTIAL: &str = "partial_rotary_factor";

/// Elements of a head that rotate, if not all.
pub(super) fn partial(keys: &Keys<'_>, (family, rope): (&Family, &str), head_dim: usize) -> Result<Option<usize>> {
    let inner = keys.object(rope).filter(|inner| inner.has(PARTIAL));
    let keys = inner.as_ref().unwrap_or(keys);
    let range = if family.partial.is_some() { 1e-3..=1.0 } else { 1.0..=1.0 };
    let part = keys.number_or(PARTIAL, range, family.partial.unwrap_or(1.0))?;
    let rotated = (head_dim as f64 * part) as usize;
    if rotated == 0 || !rotated.is_multiple_of(2) {
        return Err(keys.bad(PARTIAL, &format!("makes {rotated} of {head_dim} elements rotate: not an even number")));
    }
    Ok(Some(rotated).filter(|rotated| *rotated < head_dim))
}

/// `rope_parameters`, or in older files `rope_theta` and `rope_scaling`.
pub(super) fn rope(keys: &Keys<'_>, family: &Family, max_positions: usize) -> Result<RopeKeys> {
    let name = keys.either(["rope_scaling", "rope_parameters"]);
    let by_kind = keys.is_mixed(name, "");
    if by_kind && family.theta_of_windows.is_none() {
        return Err(keys.bad(name, "is not supported, all layers must have the same rotation"));
    }
    let thetas = 1.0 + 1e-6..=1e12;
    let inner = keys.object(name);
    let [of_model, of_windows] = match &inner {
        Some(kinds) if by_kind => ["full_attention", "sliding_attention"].map(|kind| kinds.object(kind)),
        _ => [inner, None],
    };
    let mut made = RopeKeys {
        theta: keys.number_or("rope_theta", thetas.clone(), family.theta)?,
        theta_of_windows: match family.theta_of_windows {
            Some(usual) => Some(theta_of_windows(keys, of_windows.as_ref(), usual)?),
            None => None,
        },
        scaling: RopeScaling::None,
        factors: Vec::new(),
        long: None,
        gain: 1.0,
        mscale_all_dim: 1.0,
        only_within: None,
        name,
    };
    let Some(inner) = of_model else {
        return if keys.has(name) && !by_kind { Err(keys.bad(name, "is not an object")) } else { Ok(made) };
    };
    made.theta = inner.number_or("rope_theta", thetas, made.theta)?;
    let kind = inner.either(["rope_type", "type"]);
    if !inner.has(kind) {
        return Ok(made);
    }
    let key = kind;
    // Phi-3's first files call it "su" or "yarn".
    let kind = match inner.has("short_factor") {
        true => inner.word(kind, &["longrope", "su", "yarn"]).map(|_| "longrope")?,
        false => inner.word(kind, &["default", "linear", "dynamic", "llama3", "yarn", "longrope"])?,
    };
    if kind == "default" {
        return Ok(made);
    }
    let tokens = 1.0..=1e9;
    let original_positions = match keys.has("original_max_position_embeddings") {
        true => keys.number("original_max_position_embeddings", tokens)?,
        false => inner.number_or("original_max_position_embeddings", tokens, max_positions as f64)?,
    };
    let factor = match ["yarn", "longrope"].contains(&kind) && !inner.has("factor") {
        true => max_positions as f64 / original_positions,
        false => inner.number("factor", 1e-3..=1e6)?,
    };
    made.scaling = match kind {
        "linear" => RopeScaling::Linear { factor },
        "llama3" => llama3(&inner, factor, original_positions)?,
        "yarn" => yarn(&inner, factor, original_positions)?,
        _ => RopeScaling::None,
    };
    match kind {
        // The base is stretched for what is longer than the model's positions alone.
        "dynamic" => made.only_within = Some(key),
        "longrope" => longrope(&inner, (factor, original_positions), &mut made)?,
        "yarn" => {
            let (gain, all_dim) = temperatures(&inner, factor)?;
            (made.gain, made.mscale_all_dim) = (gain, all_dim);
        }
        _ => {}
    }
    Ok(made)
}

/// The base of layers with a window, which have no scaling.
fn theta_of_windows(keys: &Keys<'_>, own: Option<&Keys<'_>>, usual: f64) -> Result<f64> {
    let thetas = 1.0 + 1e-6..=1e12;
    match own {
        Some(own) => {
            own.number_or(PARTIAL, 1.0..=1.0, 1.0)?;
            let kind = own.either(["rope_type", "type"]);
            if own.has(kind) {
                own.word(kind, &["default"])?;
            }
            own.number_or("rope_theta", thetas, usual)
        }
        None => keys.number_or("rope_local_base_freq", thetas, usual),
    }
}

/// YaRN's, and DeepSeek's `mscale_all_dim`.
fn temperatures(keys: &Keys<'_>, factor: f64) -> Result<(f32, f32)> {
    let all_dim = keys.number_or("mscale_all_dim", 0.0..=1e3, 0.0)?;
    let both = keys.number_or("mscale", 0.0..=1e3, 0.0)?;
    let usual = match both > 0.0 && all_dim > 0.0 {
        true => mscale(factor, both) / mscale(factor, all_dim),
        false => mscale(factor, 1.0),
    };
    let gain = keys.number_or("attention_factor", 1e-3..=1e3, usual)? as f32;
    Ok((gain, if all_dim > 0.0 { mscale(factor, all_dim) as f32 } else { 1.0 }))
}

/// Factors of each pair, for sequences up to those of training and for longer ones.
fn longrope(keys: &Keys<'_>, (factor, original): (f64, f64), made: &mut RopeKeys) -> Result<()> {
    let factors = |key| -> Result<Vec<f32>> {
        Ok(keys.numbers(key, 1e-3..=1e6)?.into_iter().map(|factor| factor as f32).collect())
    };
    made.factors = factors("short_factor")?;
    let long = factors("long_factor")?;
    if long.len() != made.factors.len() {
        return Err(keys.bad("long_factor", &format!("has other than {} numbers", made.factors.len())));
    }
    made.long = Some(LongRope { original_positions: original as usize, factors: long });
    let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
    made.gain = keys.number_or("attention_factor", 1e-3..=1e3, usual)? as f32;
    Ok(())
}

/// YaRN's temperature.
fn mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}

fn llama3(keys: &Keys<'_>, factor: f64, original_positions: f64) -> Result<RopeScaling> {
    let low_freq_factor = keys.number("low_freq_factor", 1e-3..=1e6)?;
    let high_freq_factor = keys.number("high_freq_factor", 1e-3..=1e6)?;
    if high_freq_factor <= low_freq_factor {
        return Err(keys.bad("high_freq_factor", &format!("is not above low_freq_factor = {low_freq_factor}")));
    }
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions })
}

fn yarn(keys: &Keys<'_>, factor: f64, original_positions: f64) -> Result<RopeScaling> {
    let beta_fast = keys.number_or("beta_fast", 1e-3..=1e6, 32.0)?;
    let beta_slow = keys.number_or("beta_slow", 1e-3..=1e6, 1.0)?;
    if beta_fast <= beta_slow {
        return Err(keys.bad("beta_fast", &format!("is not above beta_slow = {beta_slow}")));
    }
    let truncate = keys.flag_or("truncate", true)?;
    Ok(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate })
}
