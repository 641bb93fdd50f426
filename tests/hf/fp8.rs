//! Folders whose projections are floats of 8 bits under a scale for each square, as DeepSeek-V3's are: the model of the numbers that
//! they stand for.

use crate::common::{gpu, message};
use crate::in_pieces;
use crate::model::{config_text, named_values, Model, Vectors};
use latten::model::{Config, Decoder, LoadOptions, WeightBytes};
use latten::{DType, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Value};

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Rows and columns of a scale, of which no matrix here is a multiple.
const SQUARE: [usize; 2] = [24, 40];

/// E4M3 as f16 has it: the same bits behind the sign, with an exponent that is 8 less.
fn number(code: u8) -> f32 {
    let bits = u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7;
    half::f16::from_bits(bits).to_f32() * 256.0
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The tensors of a case with its projections in 8 bits, scales in F32 or BF16; and as numbers.
fn tensors(case: &str, halves: bool) -> [Vec<Tensor>; 2] {
    let (mut packed, mut plain) = (Vec::new(), Vec::new());
    for (name, shape) in Vectors::read(case).tensors {
        let values = named_values(&name, shape.iter().product());
        let Some(stem) = name.strip_suffix("weight").filter(|_| name.contains("proj") && shape.len() == 2) else {
            packed.push((name.clone(), Dtype::F32, shape.clone(), floats(&values)));
            plain.push((name, Dtype::F32, shape, floats(&values)));
            continue;
        };
        let (rows, columns) = (shape[0], shape[1]);
        let squares = [rows.div_ceil(SQUARE[0]), columns.div_ceil(SQUARE[1])];
        // The draws behind the values, of which two are no numbers.
        let codes: Vec<u8> =
            values.iter().map(|v| (v * 512.0) as i32 as u8).map(|c| c & !u8::from(c & 0x7f == 0x7f)).collect();
        let scales = named_values(&format!("{stem}weight_scale_inv"), squares[0] * squares[1]);
        let scales: Vec<f32> = scales.into_iter().map(|s| (0.25 + s.abs()) / 64.0).collect();
        let scale = |at: usize| scales[at / columns / SQUARE[0] * squares[1] + at % columns / SQUARE[1]];
        let numbers: Vec<f32> = codes.iter().enumerate().map(|(at, code)| number(*code) * scale(at)).collect();
        let stored = match halves {
            true => (Dtype::BF16, scales.iter().flat_map(|s| half::bf16::from_f32(*s).to_le_bytes()).collect()),
            false => (Dtype::F32, floats(&scales)),
        };
        packed.push((format!("{stem}weight_scale_inv"), stored.0, squares.to_vec(), stored.1));
        packed.push((name.clone(), Dtype::F8_E4M3, shape.clone(), codes));
        plain.push((name, Dtype::F32, shape, floats(&numbers)));
    }
    [packed, plain]
}

fn load(case: &str, quantised: Option<Value>, tensors: &[Tensor]) -> Result<Decoder> {
    let mut config: Value = serde_json::from_str(&config_text(case)).unwrap();
    quantised.into_iter().for_each(|quantised| config["quantization_config"] = quantised);
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    let config = Config::parse("config.json", &config.to_string())?;
    let options = LoadOptions { dtype: DType::F32, ..Default::default() };
    Decoder::from_bytes_with(gpu(), config, WeightBytes { name: "model.safetensors", bytes: &bytes }, options)
}

fn fp8() -> Value {
    json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": SQUARE})
}

#[test]
fn a_model_in_8_bits_is_the_model_of_its_numbers() {
    // Each scale is one that BF16 has, so both forms are the same numbers.
    for (case, halves) in [("deepseek_v3_experts", false), ("llama_linear", true)] {
        let [packed, plain] = tensors(case, halves);
        let models = [(None, &plain), (Some(fp8()), &packed)];
        let [want, got] = models
            .map(|(config, tensors)| in_pieces(&Model::of_folder(case, load(case, config, tensors).unwrap()), 64));
        assert!(want.iter().all(|l| l.is_finite()) && want.iter().any(|l| l.abs() > 0.01), "{case}");
        let same = want.iter().zip(&got).all(|(w, g)| w.to_bits() == g.to_bits());
        assert!(same, "{case}: {} {}", want[0], got[0]);
    }
}

#[test]
fn what_is_not_read_is_refused_by_its_name() {
    let [packed, _] = tensors("llama_linear", false);
    let refused = |quantised: Option<Value>, tensors: &[Tensor], words: &[&str]| {
        let text = message(load("llama_linear", quantised, tensors));
        assert!(words.iter().all(|word| text.contains(word)), "{text}, not {words:?}");
    };
    let with = |key: &str, value: Value| {
        let mut quantised = fp8();
        quantised[key] = value;
        Some(quantised)
    };
    refused(with("fmt", json!("e5m2")), &packed, &["key fmt = \"e5m2\"", "e4m3"]);
    refused(with("weight_block_size", Value::Null), &packed, &["key weight_block_size"]);
    refused(with("weight_block_size", json!([128])), &packed, &["key weight_block_size", "two whole numbers"]);
    refused(with("weight_block_size", json!([0.5, 128])), &packed, &["key weight_block_size"]);
    refused(with("weight_block_size", json!([64, 64])), &packed, &["weight_scale_inv", "wanted (1,1) in F32"]);
    let fewer: Vec<Tensor> = packed.iter().filter(|(name, ..)| !name.ends_with("scale_inv")).cloned().collect();
    refused(Some(fp8()), &fewer, &["has dtype F8_E4M3, wanted F32, F16 or BF16"]);
    refused(None, &packed, &["has dtype F8_E4M3"]);
    let mut odd = packed.clone();
    odd.iter_mut().find(|(_, dtype, ..)| *dtype == Dtype::F8_E4M3).unwrap().3[0] = 0x7f;
    refused(Some(fp8()), &odd, &["proj.weight", "NaN"]);
}
