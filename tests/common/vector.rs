//! Test vectors: inputs and outputs of an independent float64 oracle, one JSON object each.
//!
//! A kernel vector is one [`latten::reference::decode`] of one sequence:
//! ```json
//! {"variant": "gqa | gta | gla | mla", "layout": {"groups": 2, "state": 16, "nope": 16, "rope": 4, "v_offset": 0, "v": 16},
//!  "softmax_scale": 0.22, "q": (q_len, q_heads, nope + rope), "states": (kv_len, groups, state),
//!  "rope_keys": (kv_len, rope), "out": (q_len, q_heads, v), "lse": (q_len, q_heads), null for an empty row}
//! ```
//! A layer vector is a whole attention layer for the last token of `x`:
//! ```json
//! {"variant": "gta | gla | mla", "eps": 1e-6, "theta": 1e4, "interleaved": false,
//!  "dims": {"model_dim": 24, "q_heads": 4, "groups": 2, "head_dim": 8, "rope": 4, "state": 16, "q_latent": 64},
//!  "weights": as in GtaWeights or GlaWeights, "x": (len, model_dim), "y": (model_dim,)}
//! ```
//! Here a shape stands for nested arrays of that shape. `w_ukv` is (groups, heads_per_group * 2 * head_dim, state) and
//! `b_ukv` lacks its last dimension. An "mla" with several groups is accepted and is the same as "gla".

use serde::Deserialize;
use serde_json::Value;

use latten::reference::{DecodeInputs, GlaWeights, GtaWeights, LayerConfig, Rope, RopePairs};
use latten::{Error, ErrorKind, Gla, Gqa, Gta, HeadLayout, Result};

/// A vector of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Vector {
    /// One decode of one sequence. Boxed for its size, as the other.
    Kernel(Box<KernelVector>),
    /// A whole attention layer.
    Layer(Box<LayerVector>),
}

/// The variant that a vector names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Grouped-query attention.
    Gqa,
    /// Grouped-tied attention.
    Gta,
    /// Grouped latent attention.
    Gla,
    /// Multi-head latent attention.
    Mla,
}

/// One decode of one sequence, causal, with the oracle's outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelVector {
    /// The variant.
    pub variant: Variant,
    /// Its numbers.
    pub layout: HeadLayout,
    /// Query tokens.
    pub q_len: usize,
    /// Cached tokens; the query tokens are the last of them.
    pub kv_len: usize,
    /// Factor of every score.
    pub softmax_scale: f64,
    /// Queries, rotated and absorbed: (q_len, q_heads, nope_dim + rope_dim)
    pub q: Vec<f64>,
    /// (kv_len, groups, state_dim)
    pub states: Vec<f64>,
    /// (kv_len, rope_dim)
    pub rope_keys: Vec<f64>,
    /// Expected: (q_len, q_heads, v_dim)
    pub out: Vec<f64>,
    /// Expected: (q_len, q_heads), -inf for a row without a visible token
    pub lse: Vec<f64>,
}

/// A whole attention layer, with the oracle's output for the last token.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerVector {
    /// The variant.
    pub variant: Variant,
    /// Its numbers; the rotation has the kernels' f32 angles, the oracle has [`Rope::exact`] ones.
    pub config: LayerConfig,
    /// Base of the rotation.
    pub theta: f64,
    /// The weights.
    pub weights: LayerWeights,
    /// Inputs at positions 0..len: (len, model_dim)
    pub x: Vec<f64>,
    /// Expected output of the last token: (model_dim,)
    pub y: Vec<f64>,
}

/// The weights of a layer vector.
#[derive(Debug, Clone, PartialEq)]
pub enum LayerWeights {
    /// Of a GTA layer.
    Gta(GtaWeights),
    /// Of a GLA or MLA layer.
    Gla(GlaWeights),
}

impl Vector {
    /// Reads one vector, whichever kind it is. Anything malformed or inconsistent is an error that names it.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(json).map_err(malformed)?;
        match (value.get("layout"), value.get("weights")) {
            (Some(_), None) => Ok(Vector::Kernel(Box::new(KernelVector::from_value(value)?))),
            (None, Some(_)) => Ok(Vector::Layer(Box::new(LayerVector::from_value(value)?))),
            _ => Err(argument("vector", "an object with either `layout` (kernel) or `weights` (layer) wanted")),
        }
    }
}

impl KernelVector {
    /// The inputs in the form [`latten::reference::decode`] takes.
    pub fn inputs(&self) -> DecodeInputs<'_> {
        DecodeInputs {
            q: &self.q,
            states: &self.states,
            rope_keys: &self.rope_keys,
            softmax_scale: self.softmax_scale,
            causal: true,
        }
    }

    fn from_value(value: Value) -> Result<Self> {
        let raw: RawKernel = serde_json::from_value(value).map_err(malformed)?;
        let (q_len, kv_len) = (length("q", &raw.q)?, length("states", &raw.states)?);
        let q_heads = match raw.q.get(0) {
            Some(row) => length("q", row)?,
            None => return Err(argument("q", "no query token")),
        };
        let layout = raw.layout.checked(raw.variant, q_heads)?;
        Ok(KernelVector {
            variant: raw.variant,
            layout,
            q_len,
            kv_len,
            softmax_scale: positive("softmax_scale", raw.softmax_scale)?,
            q: flat("q", &raw.q, &[q_len, q_heads, layout.q_dim()])?,
            states: flat("states", &raw.states, &[kv_len, layout.groups(), layout.state_dim()])?,
            rope_keys: flat("rope_keys", &raw.rope_keys, &[kv_len, layout.rope_dim()])?,
            out: flat("out", &raw.out, &[q_len, q_heads, layout.v_dim()])?,
            lse: Flatten { name: "lse", shape: &[q_len, q_heads], null: Some(f64::NEG_INFINITY) }.run(&raw.lse)?,
        })
    }
}

impl LayerVector {
    fn from_value(mut value: Value) -> Result<Self> {
        let weights = value.get_mut("weights").map(Value::take).unwrap_or_default();
        let raw: RawLayer = serde_json::from_value(value).map_err(malformed)?;
        let dims = raw.dims;
        let layout = dims.layout(raw.variant)?;
        let pairs = if raw.interleaved { RopePairs::Interleaved } else { RopePairs::Half };
        let theta = positive("theta", raw.theta)?;
        let len = length("x", &raw.x)?;
        if len == 0 {
            return Err(argument("x", "no token"));
        }
        let weights = match raw.variant {
            Variant::Gta => LayerWeights::Gta(gta_weights(&dims, &weights)?),
            _ => LayerWeights::Gla(gla_weights(&dims, &layout, &weights)?),
        };
        Ok(LayerVector {
            variant: raw.variant,
            config: LayerConfig {
                model_dim: dims.model_dim,
                q_heads: dims.q_heads,
                groups: dims.groups,
                head_dim: dims.head_dim,
                rope_dim: dims.rope,
                state_dim: dims.state,
                q_latent_dim: dims.q_latent,
                eps: positive("eps", raw.eps)?,
                rotation: Rope::new(theta, dims.rope, pairs)?,
            },
            theta,
            weights,
            x: flat("x", &raw.x, &[len, dims.model_dim])?,
            y: flat("y", &raw.y, &[dims.model_dim])?,
        })
    }
}

#[derive(Deserialize)]
struct RawKernel {
    variant: Variant,
    layout: RawLayout,
    softmax_scale: f64,
    q: Value,
    states: Value,
    rope_keys: Value,
    out: Value,
    lse: Value,
}

#[derive(Debug, Deserialize, PartialEq)]
struct RawLayout {
    groups: usize,
    state: usize,
    nope: usize,
    rope: usize,
    v_offset: usize,
    v: usize,
}

impl RawLayout {
    /// The variant's layout; refuses numbers that the variant does not have.
    fn checked(&self, variant: Variant, q_heads: usize) -> Result<HeadLayout> {
        let (groups, rope_dim) = (self.groups, self.rope);
        let layout = match variant {
            Variant::Gqa => HeadLayout::gqa(Gqa { q_heads, kv_heads: groups, head_dim: self.nope })?,
            Variant::Gta => HeadLayout::gta(Gta { q_heads, kv_heads: groups, head_dim: self.state, rope_dim })?,
            Variant::Gla | Variant::Mla => {
                HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: self.state, rope_dim })?
            }
        };
        let want = RawLayout {
            groups: layout.groups(),
            state: layout.state_dim(),
            nope: layout.nope_dim(),
            rope: layout.rope_dim(),
            v_offset: layout.v_offset(),
            v: layout.v_dim(),
        };
        if *self != want {
            return Err(argument("layout", format!("{self:?} is not {variant:?}'s {want:?}")));
        }
        Ok(layout)
    }
}

#[derive(Deserialize)]
struct RawLayer {
    variant: Variant,
    dims: RawDims,
    eps: f64,
    theta: f64,
    interleaved: bool,
    x: Value,
    y: Value,
}

#[derive(Deserialize)]
struct RawDims {
    model_dim: usize,
    q_heads: usize,
    groups: usize,
    head_dim: usize,
    rope: usize,
    state: usize,
    q_latent: usize,
}

/// No real model comes near; keeps products of dimensions from overflowing.
const MAX_DIM: usize = 1 << 20;

impl RawDims {
    fn layout(&self, variant: Variant) -> Result<HeadLayout> {
        if variant == Variant::Gqa {
            return Err(argument("variant", "a layer vector is gta, gla or mla, not gqa"));
        }
        let positive = [("model_dim", self.model_dim), ("head_dim", self.head_dim)];
        for (name, dim) in positive.into_iter().chain((variant != Variant::Gta).then_some(("q_latent", self.q_latent)))
        {
            if !(1..=MAX_DIM).contains(&dim) {
                return Err(argument(name, format!("{dim} is not in 1..={MAX_DIM}")));
            }
        }
        let (q_heads, groups, rope_dim) = (self.q_heads, self.groups, self.rope);
        match variant {
            Variant::Gta if self.state != self.head_dim => {
                Err(argument("dims", format!("state {} is not gta's head_dim {}", self.state, self.head_dim)))
            }
            Variant::Gta => HeadLayout::gta(Gta { q_heads, kv_heads: groups, head_dim: self.head_dim, rope_dim }),
            _ => HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: self.state, rope_dim }),
        }
    }
}

fn gta_weights(dims: &RawDims, weights: &Value) -> Result<GtaWeights> {
    let RawDims { model_dim, q_heads, groups, head_dim, rope, .. } = *dims;
    Ok(GtaWeights {
        w_q: member("w_q", weights, &[q_heads * head_dim, model_dim])?,
        w_kv: member("w_kv", weights, &[groups * head_dim, model_dim])?,
        w_rope_k: member("w_rope_k", weights, &[rope, model_dim])?,
        b_rope_k: member("b_rope_k", weights, &[rope])?,
        w_o: member("w_o", weights, &[model_dim, q_heads * head_dim])?,
    })
}

fn gla_weights(dims: &RawDims, layout: &HeadLayout, weights: &Value) -> Result<GlaWeights> {
    let RawDims { model_dim, q_heads, groups, head_dim, rope, state, q_latent } = *dims;
    let q_width = q_heads * (head_dim + rope);
    let up = layout.heads_per_group() * 2 * head_dim;
    Ok(GlaWeights {
        w_dq: member("w_dq", weights, &[q_latent, model_dim])?,
        b_dq: member("b_dq", weights, &[q_latent])?,
        q_gain: member("q_gain", weights, &[q_latent])?,
        w_uq: member("w_uq", weights, &[q_width, q_latent])?,
        b_uq: member("b_uq", weights, &[q_width])?,
        w_dkv: member("w_dkv", weights, &[layout.kv_dim(), model_dim])?,
        b_dkv: member("b_dkv", weights, &[layout.kv_dim()])?,
        c_gain: member("c_gain", weights, &[groups, state])?,
        w_ukv: member("w_ukv", weights, &[groups, up, state])?,
        b_ukv: member("b_ukv", weights, &[groups, up])?,
        w_o: member("w_o", weights, &[model_dim, q_heads * head_dim])?,
    })
}

fn argument(name: &'static str, why: impl Into<String>) -> Error {
    ErrorKind::Argument { name, why: why.into() }.into()
}

fn malformed(error: serde_json::Error) -> Error {
    argument("vector", error.to_string())
}

fn positive(name: &'static str, value: f64) -> Result<f64> {
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(argument(name, format!("{value} is not finite and positive")))
}

fn length(name: &'static str, value: &Value) -> Result<usize> {
    value.as_array().map(Vec::len).ok_or_else(|| argument(name, "nested arrays wanted"))
}

fn member(name: &'static str, object: &Value, shape: &[usize]) -> Result<Vec<f64>> {
    match object.get(name) {
        Some(value) => flat(name, value, shape),
        None => Err(argument("weights", format!("{name} is missing"))),
    }
}

fn flat(name: &'static str, value: &Value, shape: &[usize]) -> Result<Vec<f64>> {
    Flatten { name, shape, null: None }.run(value)
}

/// Nested arrays of one shape to a row-major vector.
struct Flatten<'a> {
    name: &'static str,
    shape: &'a [usize],
    /// What a null stands for, where it is allowed.
    null: Option<f64>,
}

impl Flatten<'_> {
    fn run(&self, value: &Value) -> Result<Vec<f64>> {
        let mut elements = Vec::new();
        self.walk(value, &mut Vec::new(), &mut elements)?;
        Ok(elements)
    }

    /// `value` lies at index `path`; the length of the path is the depth.
    fn walk(&self, value: &Value, path: &mut Vec<usize>, elements: &mut Vec<f64>) -> Result<()> {
        if path.len() == self.shape.len() {
            let number = if value.is_null() { self.null } else { value.as_f64().filter(|v| v.is_finite()) };
            elements.push(number.ok_or_else(|| self.mismatch("no number", path))?);
            return Ok(());
        }
        let Some(rows) = value.as_array() else {
            return Err(self.mismatch("no array", path));
        };
        if rows.len() != self.shape[path.len()] {
            return Err(self.mismatch(&format!("an array of {}", rows.len()), path));
        }
        for (i, row) in rows.iter().enumerate() {
            path.push(i);
            self.walk(row, path, elements)?;
            path.pop();
        }
        Ok(())
    }

    fn mismatch(&self, found: &str, path: &[usize]) -> Error {
        let index: String = path.iter().map(|i| format!("[{i}]")).collect();
        let got = format!("{found} at {}{index}", self.name);
        let dims: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        ErrorKind::Shape { name: self.name, got, want: format!("({})", dims.join(",")) }.into()
    }
}
