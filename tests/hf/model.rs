//! A case of `tests/vectors/hf` as a model.

use crate::common::gpu;
use latten::model::{Config, Decoder, LoadOptions, PrefillPath, Session, SessionOptions, SplitMix64, WeightBytes};
use latten::{DType, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// (tokens, vocab_size), flat.
pub type Logits = Vec<f32>;

/// `vectors.json`.
#[derive(Clone, Deserialize)]
pub struct Vectors {
    /// Shapes.
    pub tensors: BTreeMap<String, Vec<usize>>,
    pub prompt: Vec<u32>,
    /// Tokens after the prompt, each that of the largest logit.
    pub greedy: Vec<u32>,
    /// Least distance of such a logit from the second.
    pub min_gap: f32,
    /// Where logits were kept.
    positions: Vec<usize>,
    /// (positions, vocab_size)
    logits: Vec<Vec<f32>>,
}

impl Vectors {
    pub fn read(case: &str) -> Vectors {
        serde_json::from_slice(&std::fs::read(folder(case).join("vectors.json")).unwrap()).unwrap()
    }

    /// The prompt and all greedy tokens but the last: the logits are after these.
    pub fn fed(&self) -> Vec<u32> {
        [&self.prompt[..], &self.greedy[..self.greedy.len() - 1]].concat()
    }

    /// Largest difference, in units of the logits' root mean square.
    pub fn distance(&self, got: &[f32]) -> f32 {
        let vocab = self.logits[0].len();
        assert_eq!(got.len(), self.fed().len() * vocab);
        assert!(self.positions.len() >= 5 && self.positions.last() == Some(&(self.fed().len() - 1)));
        let all = self.logits.concat();
        let rms = (all.iter().map(|l| l * l).sum::<f32>() / all.len() as f32).sqrt();
        let rows = self.positions.iter().zip(&self.logits).flat_map(|(position, want)| {
            let row = &got[position * vocab..(position + 1) * vocab];
            row.iter().zip(want).map(|(g, w)| if g.is_finite() { (g - w).abs() } else { f32::INFINITY })
        });
        rows.fold(0.0, f32::max) / rms
    }
}

pub struct Model {
    pub config: Config,
    pub vectors: Vectors,
    decoder: Decoder,
}

impl Model {
    /// A case with its weights in f32, its config changed.
    pub fn of(case: &str, change: impl Fn(&mut Value), dtype: DType) -> Result<Model> {
        let mut config: Value = serde_json::from_str(&config_text(case)).unwrap();
        let as_published = config.clone();
        change(&mut config);
        // What another config has no use for may be left out; what the case's own has none for may not.
        let leave_out = config != as_published;
        let config = Config::parse("config.json", &config.to_string())?;
        Self::load(config, Vectors::read(case), LoadOptions { dtype, leave_out, ..Default::default() })
    }

    fn load(config: Config, vectors: Vectors, options: LoadOptions<'_>) -> Result<Model> {
        let bytes = file(&vectors.tensors, Dtype::F32);
        let decoder = Decoder::from_bytes_with(
            gpu(),
            config.clone(),
            WeightBytes { name: "model.safetensors", bytes: &bytes },
            options,
        )?;
        Ok(Model { config, vectors, decoder })
    }

    /// A case in f32, with zeros in the tensors whose names end so.
    pub fn without(case: &str, end: &str) -> Model {
        let (config, vectors) = (Config::parse("config.json", &config_text(case)).unwrap(), Vectors::read(case));
        let mut bytes = file(&vectors.tensors, Dtype::F32);
        let places: Vec<_> = {
            let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let found = read.tensors().into_iter().filter(|(name, _)| name.ends_with(end));
            found
                .map(|(_, view)| (view.data().as_ptr() as usize - bytes.as_ptr() as usize, view.data().len()))
                .collect()
        };
        assert!(!places.is_empty(), "{case} has no {end}");
        places.into_iter().for_each(|(at, count)| bytes[at..at + count].fill(0));
        let weights = WeightBytes { name: "model.safetensors", bytes: &bytes };
        let decoder = Decoder::from_bytes(gpu(), config.clone(), weights, DType::F32).unwrap();
        Model { config, vectors, decoder }
    }

    /// The model again, of what `config` has become.
    pub fn reload(&self, dtype: DType) -> Result<Model> {
        let options = LoadOptions { dtype, ..Default::default() };
        Self::load(self.config.clone(), self.vectors.clone(), options)
    }

    /// A case by its folder alone, which must have weights.
    pub fn of_folder(case: &str, decoder: Decoder) -> Model {
        Model { config: decoder.config().clone(), vectors: Vectors::read(case), decoder }
    }

    /// Names of all cases.
    pub fn cases() -> Vec<String> {
        let entries = std::fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    pub fn session(&self, max_batch: usize, chunk: usize) -> Session {
        // Batches take the explicit form of prompts where there is one, everything else the absorbed.
        let explicit = max_batch == 3 && self.decoder.keeps_explicit();
        let prefill = if explicit { PrefillPath::Explicit } else { PrefillPath::Absorbed };
        let kv_dtype = DType::F32;
        // What has other angles for longer sequences has those of 64 tokens.
        let max_tokens = self.config.long_rope.as_ref().map(|_| 64);
        let options =
            SessionOptions { max_batch, chunk, page_size: 8, kv_dtype, prefill, max_tokens, ..Default::default() };
        Session::new(&self.decoder, options).unwrap()
    }
}

pub fn folder(case: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "vectors", "hf", case].iter().collect()
}

pub fn config_text(case: &str) -> String {
    std::fs::read_to_string(folder(case).join("config.json")).unwrap()
}

/// A safetensors file of the tensors of these shapes, their values those of `training/weights.py`.
pub fn file(tensors: &BTreeMap<String, Vec<usize>>, dtype: Dtype) -> Vec<u8> {
    let bytes = |name: &str, shape: &[usize]| -> Vec<u8> {
        let values = named_values(name, shape.iter().product());
        match dtype {
            Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let one = |name: &str, shape: &[usize]| match is_packed(name) {
        true => (Dtype::U8, packed_values(name, shape.iter().product())),
        false => (dtype, bytes(name, shape)),
    };
    let data: Vec<_> = tensors.iter().map(|(name, shape)| (name, shape.clone(), one(name, shape))).collect();
    let views = data.iter().map(|(name, shape, (dtype, b))| (name, TensorView::new(*dtype, shape.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// `bytes_of` of `training/weights.py`.
fn named_bytes(name: &str, count: usize) -> Vec<u8> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut random = SplitMix64::new(name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv));
    (0..count).map(|_| (random.next_u64() >> 56) as u8).collect()
}

/// Whether a tensor is of codes or scales of MXFP4.
pub fn is_packed(name: &str) -> bool {
    name.ends_with("_blocks") || name.ends_with("_scales")
}

/// `packed_values` of `training/weights.py`.
pub fn packed_values(name: &str, count: usize) -> Vec<u8> {
    let scale = |byte: u8| if name.ends_with("_blocks") { byte } else { 121 + byte % 4 };
    named_bytes(name, count).into_iter().map(scale).collect()
}

/// `values` of `training/weights.py`: of the name alone.
pub fn named_values(name: &str, count: usize) -> Vec<f32> {
    let draws = named_bytes(name, count).into_iter().map(|byte| i32::from(byte) - 128);
    match name.contains("norm") {
        true => draws.map(|d| 1.0 + (d >> 3) as f32 / 64.0).collect(),
        false => draws.map(|d| d as f32 / 512.0).collect(),
    }
}
