//! Folders in 4 bits as AWQ and GPTQ write them: a model whose projections are quantised is the model of the numbers that they
//! stand for. How tensors are packed is checked against numpy where they are read (`tests/vectors/groups.py`).

use crate::common::*;
use crate::in_pieces;
use crate::model::{config_text, named_values, Model, Vectors};
use latten::model::{Config, Decoder, LoadOptions, WeightBytes};
use latten::{DType, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Value};
use std::collections::BTreeMap;

/// Name, dtype, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

const GROUP: usize = 32;
/// Which output each integer of a word of AWQ's is.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// A matrix (rows, in_dim) in 4 bits.
struct Quantised {
    rows: usize,
    in_dim: usize,
    integers: Vec<u32>,
    /// (rows, groups)
    zeros: Vec<u32>,
    scales: Vec<half::f16>,
}

impl Quantised {
    fn new(values: &[f32], in_dim: usize) -> Self {
        let (mut integers, mut zeros, mut scales) = (Vec::new(), Vec::new(), Vec::new());
        for group in values.chunks_exact(GROUP) {
            let ends = group.iter().fold((0f32, 0f32), |(low, high), v| (low.min(*v), high.max(*v)));
            let scale = half::f16::from_f32((ends.1 - ends.0) / 15.0);
            let code = |v: f32| (v / scale.to_f32()).round();
            let zero = code(-ends.0).clamp(0.0, 15.0);
            integers.extend(group.iter().map(|v| (code(*v) + zero).clamp(0.0, 15.0) as u32));
            zeros.push(zero as u32);
            scales.push(scale);
        }
        Quantised { rows: values.len() / in_dim, in_dim, integers, zeros, scales }
    }

    fn values(&self) -> Vec<f32> {
        let value =
            |(i, q): (usize, &u32)| self.scales[i / GROUP].to_f32() * (*q as f32 - self.zeros[i / GROUP] as f32);
        self.integers.iter().enumerate().map(value).collect()
    }

    /// `x.qweight`, `x.qzeros`, `x.scales`, and GPTQ's `x.g_idx`.
    fn tensors(&self, stem: &str, awq: bool) -> Vec<Tensor> {
        let (rows, groups) = (self.rows, self.in_dim / GROUP);
        let words = |count: usize, word: &dyn Fn(usize) -> u32| -> Vec<u8> {
            (0..count).flat_map(|i| word(i).to_le_bytes()).collect()
        };
        let of_outputs = |place: usize, at: &dyn Fn(usize) -> u32| {
            let order = if awq { AWQ_ORDER } else { [0, 1, 2, 3, 4, 5, 6, 7] };
            order.iter().enumerate().fold(0, |word, (i, output)| word | at(8 * place + output) << (4 * i))
        };
        let (qweight, shape) = if awq {
            let word = |i: usize| {
                let (input, place) = (i / (rows / 8), i % (rows / 8));
                of_outputs(place, &|output| self.integers[output * self.in_dim + input])
            };
            (words(self.in_dim * rows / 8, &word), vec![self.in_dim, rows / 8])
        } else {
            let word = |i: usize| {
                let (input, output) = (8 * (i / rows), i % rows);
                (0..8).fold(0, |word, j| word | self.integers[output * self.in_dim + input + j] << (4 * j))
            };
            (words(self.in_dim / 8 * rows, &word), vec![self.in_dim / 8, rows])
        };
        let zeros = |i: usize| {
            let (group, place) = (i / (rows / 8), i % (rows / 8));
            let zero = |output: usize| self.zeros[output * groups + group];
            of_outputs(place, &|output| if awq { zero(output) } else { zero(output).wrapping_sub(1) & 15 })
        };
        let scale = |i: usize| self.scales[i % rows * groups + i / rows];
        let scales = (0..groups * rows).flat_map(|i| scale(i).to_le_bytes()).collect();
        let part = |name: &str, dtype, shape, bytes| (format!("{stem}.{name}"), dtype, shape, bytes);
        let mut all = vec![
            part("qweight", Dtype::I32, shape, qweight),
            part("qzeros", Dtype::I32, vec![groups, rows / 8], words(groups * rows / 8, &zeros)),
            part("scales", Dtype::F16, vec![groups, rows], scales),
        ];
        if !awq {
            all.push(part("g_idx", Dtype::I32, vec![self.in_dim], words(self.in_dim, &|i| (i / GROUP) as u32)));
        }
        all
    }
}

fn file<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<u8> {
    let views = tensors
        .into_iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// The tensors of a case, its projections quantised; and all of them as numbers.
fn tensors(case: &str, awq: bool) -> [Vec<Tensor>; 2] {
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (mut packed, mut plain) = (Vec::new(), Vec::new());
    for (name, shape) in Vectors::read(case).tensors {
        let values = named_values(&name, shape.iter().product());
        let matrix = name.contains("proj") && shape.last().is_some_and(|in_dim| in_dim.is_multiple_of(GROUP));
        match name.strip_suffix(".weight").filter(|_| matrix) {
            Some(stem) => {
                let quantised = Quantised::new(&values, shape[1]);
                packed.extend(quantised.tensors(stem, awq));
                plain.push((name.clone(), Dtype::F32, shape, floats(&quantised.values())));
            }
            None => {
                packed.push((name.clone(), Dtype::F32, shape.clone(), floats(&values)));
                plain.push((name, Dtype::F32, shape, floats(&values)));
            }
        }
    }
    [packed, plain]
}

fn config(case: &str, quantised: Option<Value>) -> Value {
    let mut config: Value = serde_json::from_str(&config_text(case)).unwrap();
    quantised.into_iter().for_each(|quantised| config["quantization_config"] = quantised);
    config
}

fn awq() -> Value {
    json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": true, "version": "gemm"})
}

fn gptq() -> Value {
    json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": false, "sym": false})
}

fn load(config: &Value, tensors: &[Tensor], dtype: DType) -> Result<Decoder> {
    let config = Config::parse("config.json", &config.to_string())?;
    let bytes = file(tensors);
    let weights = WeightBytes { name: "model.safetensors", bytes: &bytes };
    Decoder::from_bytes_with(gpu(), config, weights, LoadOptions { dtype, ..Default::default() })
}

#[test]
fn a_quantised_model_is_the_model_of_its_numbers() {
    for (case, is_awq) in
        [("llama_linear", true), ("llama_linear", false), ("qwen2", true), ("deepseek_v2_lite", false)]
    {
        let [packed, plain] = tensors(case, is_awq);
        let own = config(case, Some(if is_awq { awq() } else { gptq() }));
        let [want, exact] = [(config(case, None), &plain), (own.clone(), &packed)]
            .map(|(config, tensors)| Model::of_folder(case, load(&config, tensors, DType::F32).unwrap()));
        let [want, exact] = [want, exact].map(|model| in_pieces(&model, 64));
        assert!(want.iter().any(|l| l.abs() > 0.01));
        let same = want.iter().zip(&exact).all(|(w, e)| w.to_bits() == e.to_bits());
        assert!(same, "{case}, awq {is_awq}: {} {}", want[0], exact[0]);
        // With F16 the projections stay as they are in the file; the table, and what is transposed, is rounded to f16. Cooperative
        // matrices round the input by as much again.
        let tolerance = if gpu().capabilities().tier == latten::Tier::Matrix { 1e-2 } else { 5e-3 };
        let kept = Model::of_folder(case, load(&own, &packed, DType::F16).unwrap());
        assert_close(case, &in_pieces(&kept, 64), &f64s(&want), tolerance, 1e-5);
    }
}

/// Parts of a matrix may lie in different files.
#[test]
fn a_folder_of_several_files_is_the_same_model() {
    let [packed, _] = tensors("llama_linear", true);
    let own = config("llama_linear", Some(awq()));
    let folder = std::env::temp_dir().join(format!("latten-groups-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), own.to_string()).unwrap();
    let mut map = BTreeMap::new();
    for part in 0..2 {
        let name = format!("model-{part}.safetensors");
        let tensors: Vec<&Tensor> = packed.iter().enumerate().filter(|(i, _)| i % 2 == part).map(|(_, t)| t).collect();
        tensors.iter().for_each(|tensor| drop(map.insert(tensor.0.clone(), name.clone())));
        std::fs::write(folder.join(&name), file(tensors)).unwrap();
    }
    std::fs::write(folder.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    let got = Decoder::load(gpu(), &folder, DType::F16);
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(got.unwrap().fingerprint(), load(&own, &packed, DType::F16).unwrap().fingerprint());
}

#[test]
fn what_is_not_read_is_refused_by_its_key() {
    let [packed, _] = tensors("llama_linear", false);
    let refused = |base: Value, key: &str, value: Value, words: &[&str]| {
        let mut quantised = base;
        quantised[key] = value;
        let text = message(load(&config("llama_linear", Some(quantised)), &packed, DType::F16));
        assert!(words.iter().all(|word| text.contains(word)), "{text}, not {words:?}");
    };
    for bits in [3, 8] {
        refused(gptq(), "bits", json!(bits), &["key bits = ", "only 4 bits are"]);
        refused(awq(), "bits", json!(bits), &["key bits = ", "only 4 bits are"]);
    }
    refused(gptq(), "bits", Value::Null, &["key bits", "only 4 bits are"]);
    refused(gptq(), "quant_method", json!("bitsandbytes"), &["quantization_config", "\"awq\" or \"gptq\""]);
    refused(gptq(), "group_size", json!(48), &["key group_size = 48", "multiples of 32"]);
    refused(gptq(), "group_size", json!(0), &["key group_size = 0", "whole number"]);
    refused(gptq(), "checkpoint_format", json!("marlin"), &["key checkpoint_format", "gptq_v2"]);
    refused(gptq(), "is_marlin_format", json!(true), &["key is_marlin_format"]);
    refused(gptq(), "dynamic", json!({"+:.*": {"bits": 8}}), &["key dynamic", "alike"]);
    refused(gptq(), "pack_dtype", json!("int16"), &["key pack_dtype", "int32"]);
    refused(awq(), "version", json!("gemv"), &["key version = \"gemv\"", "gemm"]);
    refused(awq(), "zero_point", json!(false), &["key zero_point = false"]);
    // Tensors that are packed in the other way.
    refused(awq(), "bits", json!(4), &["model.layers.0.", "wanted a multiple of 8"]);
    let text = message(load(&config("llama_linear", None), &packed, DType::F16));
    assert!(text.contains("proj.weight: missing") && text.contains("no quantization_config"), "{text}");
    let mut ordered = packed;
    let order = ordered.iter_mut().find(|(name, ..)| name.ends_with("g_idx")).unwrap();
    order.3[..4].copy_from_slice(&1i32.to_le_bytes());
    let text = message(load(&config("llama_linear", Some(gptq())), &ordered, DType::F16));
    assert!(text.contains("g_idx") && text.contains("desc_act = true"), "{text}");
}
