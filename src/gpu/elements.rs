//! The slots of a shader that pack and unpack elements of a dtype. Pure.

use super::{part, DType, ShaderPart};
use crate::error::{Error, ErrorKind, Result};

/// The slot that unpacks words of a cache dtype.
fn cache_part(dtype: DType) -> Result<ShaderPart> {
    match dtype {
        DType::I8 => Ok(part!("kv/element/i8.wgsl")),
        DType::I4 => Ok(part!("kv/element/i4.wgsl")),
        DType::U32 => Err(no_cache_dtype()),
        _ => elements_part(dtype),
    }
}

/// The slots that unpack words of a cache dtype as decode reads them, whose words are of `word_bytes`: its elements, and the
/// halves beside integers.
pub(crate) fn cache_parts(dtype: DType, word_bytes: usize) -> Result<Vec<ShaderPart>> {
    let mut parts = vec![cache_part(dtype)?];
    if matches!(dtype, DType::I8 | DType::I4) {
        parts.push(match word_bytes {
            8 => part!("kv/halves/vec2.wgsl"),
            _ => part!("kv/halves/vec4.wgsl"),
        });
    }
    Ok(parts)
}

/// The slot that packs elements of a cache dtype.
pub(crate) fn pack_part(dtype: DType) -> Result<ShaderPart> {
    match dtype {
        DType::F32 => Ok(part!("kv/pack/f32.wgsl")),
        DType::F16 => Ok(part!("kv/pack/f16.wgsl")),
        DType::BF16 => Ok(part!("kv/pack/bf16.wgsl")),
        DType::I8 => Ok(part!("kv/pack/i8.wgsl")),
        DType::I4 => Ok(part!("kv/pack/i4.wgsl")),
        DType::U32 => Err(no_cache_dtype()),
    }
}

fn no_cache_dtype() -> Error {
    ErrorKind::DType { name: "dtype", got: "u32".into(), want: "f32, f16, bf16, i8 or i4".into() }.into()
}

/// The slot that unpacks words of floats.
pub(crate) fn elements_part(dtype: DType) -> Result<ShaderPart> {
    match dtype {
        DType::F32 => Ok(part!("kv/element/f32.wgsl")),
        DType::F16 => Ok(part!("kv/element/f16.wgsl")),
        DType::BF16 => Ok(part!("kv/element/bf16.wgsl")),
        DType::U32 | DType::I8 | DType::I4 => {
            Err(ErrorKind::DType { name: "dtype", got: dtype.to_string(), want: "f32, f16 or bf16".into() }.into())
        }
    }
}
