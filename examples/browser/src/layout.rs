//! Variants of attention and element types, from JavaScript.

use crate::error::Result;
use crate::options::Options;
use latten::{DType, Gla, Gqa, Gta, HeadLayout, Mla};
use wasm_bindgen::JsValue;

#[derive(Clone, Copy)]
enum Variant {
    Gqa,
    Gta,
    Gla,
    Mla,
}

const VARIANTS: [(&str, Variant); 4] =
    [("gqa", Variant::Gqa), ("gta", Variant::Gta), ("gla", Variant::Gla), ("mla", Variant::Mla)];

const KEYS: [&str; 7] = ["variant", "qHeads", "kvHeads", "headDim", "latentHeads", "latentDim", "ropeDim"];

/// What caches may hold.
pub(crate) const CACHE_DTYPES: [(&str, DType); 5] =
    [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16), ("i8", DType::I8), ("i4", DType::I4)];

/// `{variant: "gla", qHeads, latentHeads, latentDim, ropeDim}` and the like.
pub(crate) fn layout(value: &JsValue) -> Result<HeadLayout> {
    let o = Options::new("layout", value, &KEYS)?;
    let variant = o.word("variant", &VARIANTS)?.ok_or_else(|| o.bad("variant", "is missing"))?;
    let q_heads = o.needed("qHeads")?;
    Ok(match variant {
        Variant::Gqa => {
            HeadLayout::gqa(Gqa { q_heads, kv_heads: o.needed("kvHeads")?, head_dim: o.needed("headDim")? })
        }
        Variant::Gta => {
            let (kv_heads, head_dim) = (o.needed("kvHeads")?, o.needed("headDim")?);
            HeadLayout::gta(Gta { q_heads, kv_heads, head_dim, rope_dim: o.needed("ropeDim")? })
        }
        Variant::Gla => {
            let (latent_heads, latent_dim) = (o.needed("latentHeads")?, o.needed("latentDim")?);
            HeadLayout::gla(Gla { q_heads, latent_heads, latent_dim, rope_dim: o.needed("ropeDim")? })
        }
        Variant::Mla => {
            HeadLayout::mla(Mla { q_heads, latent_dim: o.needed("latentDim")?, rope_dim: o.needed("ropeDim")? })
        }
    }?)
}

/// A cache's element type; f16 where none is named.
pub(crate) fn dtype(value: &JsValue) -> Result<DType> {
    if value.is_undefined() || value.is_null() {
        return Ok(DType::F16);
    }
    let name = value.as_string().unwrap_or_default();
    let found = CACHE_DTYPES.iter().find(|(word, _)| *word == name).map(|(_, dtype)| *dtype);
    found.ok_or_else(|| crate::error::argument("dtype", format!("{value:?} is none of f32, f16, bf16, i8, i4")))
}
