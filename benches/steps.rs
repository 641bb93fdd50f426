//! What the host does for a decode step of a model of 24 layers, on wgpu's no-op device: which validates and executes nothing,
//! so that this is latten and wgpu's core, and no driver.
//!
//! `cargo bench --bench steps`: microseconds a step. Instructions by function, which a loaded machine does not change:
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*steps::measured*' target/release/deps/steps-HASH --steps 50 --variant gqa --how one
//! callgrind_annotate callgrind.out.PID
//! ```

use latten::model::{Config, Decoder, Draw, Session, SessionOptions, WeightBytes};
use latten::{wgpu, DType, Gpu, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::time::Instant;

const LAYERS: usize = 24;
const HIDDEN: usize = 64;
const HEADS: usize = 4;
const HEAD_DIM: usize = 16;
const FFN: usize = 128;
/// So large that sampling is two dispatches, as in published models.
const VOCAB: usize = 5000;

type Shape = Vec<usize>;

/// Its attention as config.json says it, and the tensors of a layer's.
fn attention(variant: &str) -> (serde_json::Value, Vec<(&'static str, Shape)>) {
    match variant {
        "gqa" => (
            json!({ "attention": "gqa", "num_key_value_heads": 2 }),
            vec![
                ("q_proj", vec![HEADS * HEAD_DIM, HIDDEN]),
                ("k_proj", vec![2 * HEAD_DIM, HIDDEN]),
                ("v_proj", vec![2 * HEAD_DIM, HIDDEN]),
            ],
        ),
        _ => (
            json!({ "attention": "gla", "latent_heads": 2, "latent_dim": 32, "q_latent_dim": 64, "rope_dim": 8 }),
            vec![
                ("q_a_proj", vec![64, HIDDEN]),
                ("q_a_layernorm", vec![64]),
                ("q_b_proj", vec![HEADS * (HEAD_DIM + 8), 64]),
                ("kv_a_proj_with_mqa", vec![2 * 32 + 8, HIDDEN]),
                ("kv_a_layernorm", vec![2, 32]),
                ("kv_b_proj", vec![HEADS * 2 * HEAD_DIM, 32]),
            ],
        ),
    }
}

fn decoder(gpu: &Gpu, variant: &str) -> Result<Decoder> {
    let mut config = json!({
        "model_type": "latten", "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "head_dim": HEAD_DIM, "intermediate_size": FFN, "rms_norm_eps": 1e-6,
        "rope_theta": 1e4, "rope_interleaved": false, "max_position_embeddings": 65536, "tie_word_embeddings": true,
        "tokenizer": "bytes",
    });
    let (own, projections) = attention(variant);
    if let (Some(config), serde_json::Value::Object(own)) = (config.as_object_mut(), own) {
        config.extend(own);
    }
    let config = Config::parse("steps", &config.to_string())?;
    let mut tensors: Vec<(String, Shape)> =
        vec![("model.embed_tokens".into(), vec![VOCAB, HIDDEN]), ("model.norm".into(), vec![HIDDEN])];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: &[usize]| tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        add("mlp.gate_proj", &[FFN, HIDDEN]);
        add("mlp.up_proj", &[FFN, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, FFN]);
        add("self_attn.o_proj", &[HIDDEN, HEADS * HEAD_DIM]);
        for (name, shape) in &projections {
            add(&format!("self_attn.{name}"), shape);
        }
    }
    let zeros = vec![0; 2 * VOCAB * HIDDEN];
    let views = tensors.into_iter().map(|(name, shape)| {
        let bytes = 2 * shape.iter().product::<usize>();
        (format!("{name}.weight"), TensorView::new(Dtype::BF16, shape, &zeros[..bytes]))
    });
    let views: Vec<_> = views.filter_map(|(name, view)| Some((name, view.ok()?))).collect();
    let bytes = safetensors::serialize(views, None).unwrap_or_default();
    Decoder::from_bytes(gpu, config, WeightBytes { name: "steps", bytes: &bytes }, DType::F16)
}

/// What is looked at, after what compiles.
#[inline(never)]
fn measured(session: &mut Session, batch: usize, how: (usize, bool)) -> Result<()> {
    decode(session, batch, how)
}

/// So many steps, streamed or one by one.
fn decode(session: &mut Session, batch: usize, (steps, streamed): (usize, bool)) -> Result<()> {
    let ids = (0..batch).map(|_| session.insert_uncomputed(1000)).collect::<Result<Vec<_>>>()?;
    let fed: Vec<(_, &[u32])> = ids.iter().map(|id| (*id, &[7][..])).collect();
    if streamed {
        let mut stream = session.stream(&fed, |_| Draw::default())?;
        (0..steps).try_for_each(|_| pollster::block_on(stream.next(true)).map(drop))?;
    } else {
        let draws = vec![Draw::default(); batch];
        (0..steps).try_for_each(|_| pollster::block_on(session.next_tokens(&fed, &draws)).map(drop))?;
    }
    ids.iter().try_for_each(|id| session.remove(*id))
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let after = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let number = |name: &str, other| after(name).and_then(|text| text.parse().ok()).unwrap_or(other);
    let (steps, batch, only) = (number("--steps", 500), number("--batch", 1), after("--variant"));
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    let gpu = Gpu::from_wgpu(None, device, queue)?;
    let hows = [("one by one", false), ("streamed", true)];
    let only_how = after("--how");
    for variant in ["gqa", "gla"].into_iter().filter(|variant| only.is_none_or(|only| only == variant)) {
        let decoder = decoder(&gpu, variant)?;
        let cache_tokens = batch * (1000 + steps + 64);
        let options = SessionOptions { max_batch: batch, cache_tokens, ..Default::default() };
        let mut session = Session::new(&decoder, options)?;
        decode(&mut session, batch, (3, true))?;
        for (what, streamed) in hows.into_iter().filter(|(what, _)| only_how.is_none_or(|how| what.starts_with(how))) {
            let (start, before) = (Instant::now(), gpu.counters().dispatches);
            measured(&mut session, batch, (steps, streamed))?;
            let us = 1e6 * start.elapsed().as_secs_f64() / steps as f64;
            let dispatches = (gpu.counters().dispatches - before) as f64 / steps as f64;
            println!(
                "{variant}, batch {batch}, {what}: {us:.1} us a step of {dispatches:.1} dispatches, {:.2} us each",
                us / dispatches
            );
        }
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
