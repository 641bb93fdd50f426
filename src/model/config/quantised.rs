//! `quantization_config` of a `config.json`: matrices in 4 bits by AWQ and GPTQ, in floats of 8 bits, experts in MXFP4. Pure.
//!
//! Source: the configs that the programs AutoAWQ, AutoGPTQ and GPTQModel write. What would change how a matrix is read, and is not
//! known here, is refused by name.

use super::keys::Keys;
use crate::error::Result;
use serde_json::json;

/// How the matrices of a folder are quantised, where their tensors do not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantised {
    Groups(GroupQuantised),
    /// E4M3, with a scale for each square of so many rows and columns.
    Fp8 {
        square: [usize; 2],
    },
}

/// In 4 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupQuantised {
    pub(crate) packing: GroupPacking,
    /// Elements of a row that share a scale, a multiple of 32; none for all of them.
    pub(crate) group: Option<usize>,
    /// Whether the order of the elements may be another (`g_idx`).
    pub(crate) ordered: bool,
}

/// How integers are put into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupPacking {
    /// AutoAWQ's "gemm": 8 outputs of an input in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7.
    Awq,
    /// 8 inputs of an output in a word; zeros are one too small.
    Gptq,
    /// The same, with zeros as they are.
    GptqV2,
}

const KEY: &str = "quantization_config";

/// What `quantization_config` says, if it is there and says more than the tensors. `mxfp4`: whether experts may be in MXFP4, and nothing
/// else may be quantised.
///
/// Errors: [`ErrorKind::Config`](crate::ErrorKind::Config), naming the key and its value.
pub(super) fn quantised(keys: &Keys<'_>, mxfp4: bool) -> Result<Option<Quantised>> {
    if !keys.has(KEY) {
        return Ok(None);
    }
    let only = "is not supported, only weights in bf16, f16 or f32, in 4 bits by \"awq\" or \"gptq\", and in 8 by \"fp8\", are";
    let inner = keys.object(KEY).ok_or_else(|| keys.bad(KEY, only))?;
    let known = if mxfp4 { &["mxfp4"][..] } else { &["awq", "gptq", "fp8"] };
    let method = known.iter().copied().find(|method| !inner.differs("quant_method", json!(method)));
    let method = method.filter(|_| inner.has("quant_method")).ok_or_else(|| keys.bad(KEY, only))?;
    match method {
        "mxfp4" => return Ok(None),
        "fp8" => return fp8(&inner).map(Some),
        _ => {}
    }
    let bits = inner.either(["bits", "w_bit"]);
    if !inner.has(bits) || inner.differs(bits, json!(4)) {
        return Err(inner.bad(bits, "is not supported, only 4 bits are"));
    }
    let packing = if method == "awq" { awq(&inner)? } else { gptq(&inner)? };
    let ordered = method == "gptq" && inner.flag_or("desc_act", false)?;
    Ok(Some(Quantised::Groups(GroupQuantised { packing, group: group(&inner)?, ordered })))
}

/// Squares of elements with a scale each: what becomes of a layer's input (`activation_scheme`) is not part of the model.
fn fp8(keys: &Keys<'_>) -> Result<Quantised> {
    const SQUARE: &str = "weight_block_size";
    if keys.differs("fmt", json!("e4m3")) {
        return Err(keys.bad("fmt", "is not supported, only \"e4m3\" is"));
    }
    let sizes = keys.numbers(SQUARE, 1.0..=65536.0)?;
    match sizes[..] {
        [rows, columns] if rows.fract() == 0.0 && columns.fract() == 0.0 => {
            Ok(Quantised::Fp8 { square: [rows as usize, columns as usize] })
        }
        _ => Err(keys.bad(SQUARE, "is not two whole numbers")),
    }
}

/// -1 stands for whole rows.
fn group(keys: &Keys<'_>) -> Result<Option<usize>> {
    let key = keys.either(["group_size", "q_group_size"]);
    if keys.has(key) && !keys.differs(key, json!(-1)) {
        return Ok(None);
    }
    let group = keys.size(key, 1 << 20)?;
    match group.is_multiple_of(32) {
        true => Ok(Some(group)),
        false => Err(keys.bad(key, "is not supported, only multiples of 32, and -1, are")),
    }
}

fn awq(keys: &Keys<'_>) -> Result<GroupPacking> {
    if ["gemm", "GEMM"].iter().all(|version| keys.differs("version", json!(version))) {
        return Err(keys.bad("version", "is not supported, only \"gemm\" is"));
    }
    match keys.flag_or("zero_point", true)? {
        true => Ok(GroupPacking::Awq),
        false => Err(keys.bad("zero_point", "is not supported, only true is")),
    }
}

fn gptq(keys: &Keys<'_>) -> Result<GroupPacking> {
    if keys.flag_or("is_marlin_format", false)? {
        return Err(keys.bad("is_marlin_format", "is not supported, only false is"));
    }
    // Bits and groups of some of the matrices, which differ from those of the others.
    if keys.differs("dynamic", json!({})) {
        return Err(keys.bad("dynamic", "is not supported: all matrices are quantised alike"));
    }
    if keys.differs("pack_dtype", json!("int32")) {
        return Err(keys.bad("pack_dtype", "is not supported, only \"int32\" is"));
    }
    let format = keys.either(["checkpoint_format", "format"]);
    match keys.has(format) {
        true if keys.word(format, &["gptq", "gptq_v2"])? == "gptq_v2" => Ok(GroupPacking::GptqV2),
        _ => Ok(GroupPacking::Gptq),
    }
}
