//! Every kernel of the library again, as plain f64 loops under the kernel's name: the readable specification.
//!
//! Source: Zadouri, Strauss, Dao, "Hardware-Efficient Attention for Fast Decoding", arXiv 2505.21487, §3.3.
//! Nothing here is optimised, and nothing here needs a GPU. Arguments are flat, row-major slices of f64 whose shapes
//! their documentation states; a slice of another size is an [`ErrorKind::Shape`](super::ErrorKind), never a panic. So is a
//! result of more than 2^22 elements whose size is a number of the caller's and not that of a slice.
//! The whole folder depends on [`HeadLayout`](super::HeadLayout) alone.
//!
//! To be read in this order: [`rope()`], [`append()`], [`attend`], [`decode()`], [`merge`], then the layers
//! [`gqa_layer`], [`gta_layer`], [`gla_layer`].
//!
//! ```
//! use latten::{reference, Gta, HeadLayout};
//!
//! // One head of width 2 with no rope key; two tokens that score alike, so the output is their mean.
//! let layout = HeadLayout::gta(Gta { q_heads: 1, kv_heads: 1, head_dim: 2, rope_dim: 0 })?;
//! let step = reference::DecodeInputs {
//!     q: &[1.0, 1.0],
//!     states: &[0.0, 4.0, 4.0, 0.0],
//!     rope_keys: &[],
//!     softmax_scale: 1.0,
//!     causal: true,
//! };
//! let attended = reference::decode(&layout, &step)?;
//! assert_eq!(attended.out, [2.0, 2.0]);
//! assert_eq!(attended.lse, [4.0 + 2f64.ln()]);
//! # Ok::<(), latten::Error>(())
//! ```

mod append;
mod blocks;
mod copy_pages;
mod decode;
mod gla;
mod layers;
mod linear;
mod norm;
mod pages;
mod rope;
mod route;
mod sample;
mod shaped;
mod wide;

pub use append::{append, quantise_span, round_to_i4, round_to_i8, I4_LEVELS, I8_LEVELS};
pub use blocks::dequantised;
pub use copy_pages::copy_pages;
pub use decode::{add_sinks, attend, decode, decode_split, decode_with, merge, Attended, DecodeInputs, DecodeOptions};
pub use gla::{absorb_query, gla_layer, gla_project, unabsorb_values, Form, GlaWeights};
pub use layers::{gqa_layer, gta_layer, gta_project, GqaWeights, GtaWeights, LayerConfig, Projected};
pub use linear::{clamped_swiglu, embedding, geglu, linear, norm_linear, quantised, swiglu};
pub use norm::rms_norm;
pub use pages::pages_rows;
pub use rope::{inv_freq, rope, Angles, Rope, RopePairs};
pub use route::{route, Routing};
pub use sample::sample;
pub use shaped::{log_probabilities, sample_shaped, shape_logits, shaped_probabilities, ShapeOptions};
pub use wide::{keep_wide, wide_queries};

use crate::error::{shape_text, ErrorKind, Result};

/// Scalar product.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Refuses a slice of `len` elements that is not exactly of shape `want`.
fn expect_shape(name: &'static str, len: usize, want: &[usize]) -> Result<()> {
    let elements = want.iter().fold(1usize, |product, &dim| product.saturating_mul(dim));
    if len != elements {
        return Err(ErrorKind::shape(name, &[len], shape_text(want)));
    }
    Ok(())
}

/// Elements of a result, at most, whose size is a number of the caller's and not that of a slice: 32 MiB.
const MOST_ELEMENTS: usize = 1 << 22;

/// Refuses such a result where it is larger.
fn expect_result(name: &'static str, shape: &[usize]) -> Result<()> {
    let elements = shape.iter().fold(1usize, |product, &dim| product.saturating_mul(dim));
    if elements > MOST_ELEMENTS {
        return Err(ErrorKind::shape(name, shape, format!("at most {MOST_ELEMENTS} elements")));
    }
    Ok(())
}

/// How many rows of `row` elements a slice of `len` elements holds; refuses a broken row and rows of no elements.
fn count_rows(name: &'static str, len: usize, row: usize) -> Result<usize> {
    if row == 0 || !len.is_multiple_of(row) {
        return Err(ErrorKind::shape(name, &[len], format!("(_,{row}), {row} not 0")));
    }
    Ok(len / row)
}
