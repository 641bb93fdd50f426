//! Matrices that are more than the device binds at once: in several buffers, with the same results to the bit.

use crate::assert_kind;
use crate::common::{gpu, gpu_with, message};
use crate::model::{config_text, file, Vectors};
use latten::model::{Config, Decoder, Session, SessionOptions, WeightBytes};
use latten::{wgpu, DType, ErrorKind, Gpu, GpuOptions, SplitPolicy, Tier};
use pollster::block_on;
use safetensors::tensor::Dtype;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A key of `config.json`, its new size, and the tensors whose sizes follow, with the dimension that does.
type Sizes<'a> = (&'a str, usize, &'a [(&'a str, usize)]);

const BINDING: u64 = 256 << 10;

/// A device of the tier under test that binds 256 KiB at once.
fn narrow() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let (mut desc, all) =
            (wgpu::InstanceDescriptor::new_without_display_handle(), wgpu::Backends::all() - wgpu::Backends::GL);
        desc.backends = all;
        let adapters = block_on(wgpu::Instance::new(desc).enumerate_adapters(all));
        let adapter =
            adapters.into_iter().find(|a| gpu().capabilities().adapter.starts_with(&a.get_info().name)).unwrap();
        // The check of matrix kernels at start needs larger bindings than that.
        let tier = gpu().capabilities().tier.min(Tier::Subgroup);
        let mut features = wgpu::Features::empty();
        if tier >= Tier::Subgroup {
            features |= wgpu::Features::SUBGROUP;
        }
        let request = wgpu::DeviceDescriptor {
            required_limits: wgpu::Limits { max_storage_buffer_binding_size: BINDING, ..adapter.limits() },
            required_features: features,
            ..Default::default()
        };
        let (device, queue) = block_on(adapter.request_device(&request)).unwrap();
        let narrow = Gpu::from_wgpu(&adapter, device, queue).unwrap();
        assert_eq!((narrow.capabilities().tier, narrow.capabilities().max_binding_bytes), (tier, BINDING));
        narrow
    })
}

/// A case with other sizes.
struct Wide {
    config: Value,
    tensors: BTreeMap<String, Vec<usize>>,
}

impl Wide {
    /// `sizes`: keys of the config and what they become, and, where a tensor's name ends so, the dimension that they are.
    fn new(case: &str, sizes: &[Sizes<'_>]) -> Wide {
        let mut wide =
            Wide { config: serde_json::from_str(&config_text(case)).unwrap(), tensors: Vectors::read(case).tensors };
        for (key, size, tensors) in sizes {
            assert!(wide.config[*key].is_u64());
            wide.config[*key] = json!(size);
            for (end, dim) in *tensors {
                let ending = wide.tensors.iter_mut().filter(|(name, _)| name.ends_with(end));
                assert!(ending.map(|(_, shape)| shape[*dim] = *size).count() > 0, "{end}");
            }
        }
        wide
    }

    fn load(&self, gpu: &Gpu, dtype: DType) -> latten::Result<Decoder> {
        let config = Config::parse("c", &self.config.to_string())?;
        Decoder::from_bytes(gpu, config, WeightBytes { name: "w", bytes: &file(&self.tensors, Dtype::F32) }, dtype)
    }

    /// Logits of a prompt and of a token after it, and the dispatches of that one.
    fn logits(&self, gpu: &Gpu, dtype: DType) -> (Vec<u32>, u64) {
        let decoder = self.load(gpu, dtype).unwrap();
        let options = SessionOptions { chunk: 16, page_size: 8, cache_tokens: 64, ..Default::default() };
        let mut session = Session::new(&decoder, options).unwrap().with_policy(SplitPolicy::FixedTokens(64));
        let id = session.insert();
        let prompt: Vec<u32> = (0..21).map(|i| i * 139 % 3000).collect();
        let mut feed = |tokens: &[u32]| block_on(session.all_logits(&[(id, tokens)])).unwrap().concat();
        let mut all = feed(&prompt);
        let before = gpu.counters().dispatches;
        all.extend(feed(&[2999]));
        (all.iter().map(|v| v.to_bits()).collect(), gpu.counters().dispatches - before)
    }
}

fn llama() -> Wide {
    Wide::new(
        "llama",
        &[
            ("vocab_size", 3000, &[("embed_tokens.weight", 0), ("lm_head.weight", 0)]),
            (
                "intermediate_size",
                2400,
                &[
                    ("gate_proj.weight", 0),
                    ("gate_proj.bias", 0),
                    ("up_proj.weight", 0),
                    ("up_proj.bias", 0),
                    ("down_proj.weight", 1),
                ],
            ),
        ],
    )
}

/// The embedding, a tied and an untied head, gate and up, down, with biases and without, the first product of MLA and its
/// queries with the latents' norm beside.
#[test]
fn parts_give_the_bits_of_the_whole() {
    // Dispatches are counted, so nobody else may use it.
    let whole = gpu_with(GpuOptions::default());
    let mut tied = llama();
    tied.config["tie_word_embeddings"] = json!(true);
    tied.tensors.remove("lm_head.weight");
    let latent = Wide::new(
        "deepseek_v3",
        &[
            ("vocab_size", 3000, &[("embed_tokens.weight", 0), ("lm_head.weight", 0)]),
            ("q_lora_rank", 1024, &[("q_a_proj.weight", 0), ("q_a_layernorm.weight", 0), ("q_b_proj.weight", 1)]),
        ],
    );
    for (case, model, dtypes) in [
        ("llama", llama(), &[DType::F32, DType::F16, DType::I8][..]),
        ("tied", tied, &[DType::F32, DType::I8]),
        ("deepseek_v3", latent, &[DType::F32]),
    ] {
        for dtype in dtypes {
            let ((want, few), (got, many)) = (model.logits(&whole, *dtype), model.logits(narrow(), *dtype));
            assert_eq!(want.len(), 22 * 3000);
            assert!(want.iter().any(|v| f32::from_bits(*v).abs() > 0.1));
            let differs = want.iter().zip(&got).filter(|(w, g)| w != g).count();
            assert_eq!(differs, 0, "{case} {dtype}: of {}", want.len());
            println!("{case} {dtype}: {few} dispatches, {many} in parts");
            assert!(many > few, "{case} {dtype}: {few} and {many}, nothing was split");
            // Where one buffer suffices there is a dispatch each: the embedding; per layer queries, keys and values with their
            // rotation and append, decode, o, the SwiGLU and down; the head.
            let known = match (case, dtype) {
                ("llama", DType::F32) => {
                    // 1024 rows of 256 bytes are a binding: 3 parts of table and head, 5 of the SwiGLU. 27 of 9600: 3 of down.
                    assert_eq!(many, few + 2 + 2 * (4 + 2) + 2);
                    1 + 2 * 5 + 1
                }
                ("tied", DType::F32) => 1 + 2 * 5 + 1,
                _ => few,
            };
            assert_eq!(few, known, "{case} {dtype}");
        }
    }
}

/// What is not split, and fits nowhere, is named.
#[test]
fn what_fits_nowhere_is_named() {
    let experts = Wide::new(
        "deepseek_v3_experts",
        &[("moe_intermediate_size", 60, &[("gate_proj.weight", 0), ("up_proj.weight", 0), ("down_proj.weight", 1)])],
    );
    let mut experts = experts;
    let shared = experts.tensors.iter_mut().filter(|(name, _)| name.contains("shared_experts"));
    shared.for_each(|(_, shape)| shape.iter_mut().filter(|n| **n == 60).for_each(|n| *n = 120));
    assert!(experts.load(gpu(), DType::F32).is_ok());
    assert_kind!(experts.load(narrow(), DType::F32), ErrorKind::TooLarge { limit_bytes: BINDING, .. });
    let text = message(experts.load(narrow(), DType::F32));
    let first = "model.layers.0.mlp.experts.0.gate_proj.weight to model.layers.0.mlp.experts.0.up_proj.weight";
    assert!(text.contains(first) && text.contains("(12,120,64) in f32"), "{text}");
    assert!(text.ends_with("needs 368640 bytes, the device allows 262144"), "{text}");
    // A weight of an app's own has its shape for a name.
    let text = message(latten::nn::Weight::new(narrow(), [1, 1000, 100], &vec![0.5; 100_000], DType::F32));
    assert_eq!(text, "a weight (1,1000,100) in f32 needs 400000 bytes, the device allows 262144");
}
