//! What several programs read from their command lines.
#![allow(dead_code)] // not all read all

use clap::builder::{PossibleValuesParser, TypedValueParser};
use latten::model::PrefillPath;
use latten::nn::WeightType;
use latten::DType;

/// The example models.
pub const VARIANTS: [&str; 4] = ["gqa", "gta", "gla", "mla"];

/// What a cache may hold.
pub const CACHE_DTYPES: [&str; 5] = ["f32", "f16", "bf16", "i8", "i4"];

/// The forms that prompts of GLA and MLA may have.
pub const FORMS: [(&str, PrefillPath); 3] =
    [("absorbed", PrefillPath::Absorbed), ("explicit", PrefillPath::Explicit), ("auto", PrefillPath::Auto)];

/// One of these names of dtypes.
pub fn dtypes<const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(names).try_map(|name| {
        let all = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4];
        all.into_iter().find(|dtype| dtype.to_string() == name).ok_or("no dtype")
    })
}

/// What matrices may become on the device.
pub const WEIGHT_TYPES: [&str; 5] = ["f16", "f32", "i8", "q8_0", "q4_0"];

/// One of these names of types of weights.
pub fn weight_types<const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = WeightType> {
    PossibleValuesParser::new(names).try_map(|name| name.parse::<WeightType>())
}

/// One of the forms of prompts.
pub fn forms() -> impl TypedValueParser<Value = PrefillPath> {
    PossibleValuesParser::new(FORMS.map(|(name, _)| name))
        .try_map(|name| FORMS.into_iter().find(|(known, _)| *known == name).map(|(_, form)| form).ok_or("no form"))
}

/// A number from 1 on.
pub fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "not a number from 1 on".into())
}
