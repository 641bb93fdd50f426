//! Models of the Llama family with random weights, as folders or as GGUF files.

use super::Args;
use crate::common::disk::PLAIN_BYTES;
use crate::linear_table::random_blocks;
use latten::nn::BlockType;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

type Tensor = (String, Vec<usize>);

/// About 2.75 times the stream, in whole blocks of every type.
pub(super) fn ffn_width(hidden: usize) -> usize {
    (11 * hidden / 4).next_multiple_of(256)
}

/// Published names and shapes, in the order of the names.
fn tensors(args: &Args) -> Vec<Tensor> {
    let (hidden, wide) = (args.hidden, ffn_width(args.hidden));
    let mut all = vec![
        ("model.embed_tokens.weight".into(), vec![args.vocab, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
    ];
    for layer in 0..args.layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("mlp.down_proj", vec![hidden, wide]),
            ("mlp.gate_proj", vec![wide, hidden]),
            ("mlp.up_proj", vec![wide, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.k_proj", vec![hidden / 4, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.v_proj", vec![hidden / 4, hidden]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    all.sort();
    all
}

/// Writes the model; returns the file of its weights, and what to load.
pub(super) fn write(folder: &Path, args: &Args, kind: &str) -> std::io::Result<(PathBuf, PathBuf)> {
    match kind.parse::<BlockType>() {
        Ok(block) => {
            let path = folder.join(format!("{kind}.gguf"));
            write_gguf(&path, args, block)?;
            Ok((path.clone(), path))
        }
        Err(_) => Ok((write_safetensors(folder, args, kind)?, folder.to_path_buf())),
    }
}

/// Finite random numbers, which no file system compresses.
fn write_safetensors(folder: &Path, args: &Args, kind: &str) -> std::io::Result<PathBuf> {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": args.vocab, "hidden_size": args.hidden, "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden / 64, "num_key_value_heads": args.hidden / 256, "head_dim": 64,
        "intermediate_size": ffn_width(args.hidden), "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "tie_word_embeddings": true, "hidden_act": "silu",
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let (size, mask) = match kind {
        "f16" => (2, 0xbbff_bbff_bbff_bbff),
        "bf16" => (2, 0xbf7f_bf7f_bf7f_bf7f),
        _ => (4, 0xbf7f_ffff_bf7f_ffffu64),
    };
    let (mut header, mut bytes) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors(args) {
        let end = bytes + size * shape.iter().product::<usize>();
        let dtype = kind.to_uppercase();
        header.insert(name, serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [bytes, end]}));
        bytes = end;
    }
    let mut header = serde_json::Value::from(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let path = folder.join("model.safetensors");
    let mut file = BufWriter::with_capacity(PLAIN_BYTES, File::create(&path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..bytes / 8 {
        file.write_all(&(random.u64(..) & mask).to_le_bytes())?;
    }
    file.write_all(&vec![0; bytes % 8])?;
    file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    Ok(path)
}

/// What ggml calls a tensor.
fn ggml_name(published: &str) -> String {
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.v_proj", "attn_v"),
    ];
    parts.iter().fold(published.to_string(), |name, (from, to)| name.replace(from, to))
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Matrices in blocks, vectors in F32.
fn write_gguf(path: &Path, args: &Args, block: BlockType) -> std::io::Result<()> {
    const ALIGNMENT: u64 = 32;
    let tensors = tensors(args);
    let hidden = args.hidden as u32;
    let counts = [
        ("block_count", args.layers as u32),
        ("context_length", 2048),
        ("embedding_length", hidden),
        ("feed_forward_length", ffn_width(args.hidden) as u32),
        ("attention.head_count", hidden / 64),
        ("attention.head_count_kv", hidden / 256),
        ("attention.key_length", 64),
        ("attention.value_length", 64),
        ("rope.dimension_count", 64),
    ];
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((counts.len() as u64 + 2).to_le_bytes());
    text(&mut header, "general.architecture");
    header.extend(8u32.to_le_bytes());
    text(&mut header, "llama");
    text(&mut header, "llama.attention.layer_norm_rms_epsilon");
    header.extend(6u32.to_le_bytes());
    header.extend(1e-5f32.to_le_bytes());
    for (name, count) in counts {
        text(&mut header, &format!("llama.{name}"));
        header.extend(4u32.to_le_bytes());
        header.extend(count.to_le_bytes());
    }
    let mut offset = 0u64;
    let size = |shape: &[usize]| match shape {
        [rows, columns] => rows * columns / block.elements() * block.bytes(),
        _ => 4 * shape.iter().product::<usize>(),
    };
    for (name, shape) in &tensors {
        text(&mut header, &ggml_name(name));
        header.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|dim| header.extend((*dim as u64).to_le_bytes()));
        header.extend(if shape.len() == 2 { block.gguf_id().unwrap_or(0) } else { 0 }.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset = (offset + size(shape) as u64).next_multiple_of(ALIGNMENT);
    }
    let mut file = BufWriter::with_capacity(PLAIN_BYTES, File::create(path)?);
    let pad = |file: &mut BufWriter<File>, bytes: u64| {
        file.write_all(&vec![0; (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize])
    };
    file.write_all(&header)?;
    pad(&mut file, header.len() as u64)?;
    for (number, (_, shape)) in tensors.iter().enumerate() {
        match shape[..] {
            [rows, columns] => file.write_all(&random_blocks(block, rows * columns / block.elements(), number))?,
            _ => file.write_all(&1f32.to_le_bytes().repeat(shape.iter().product()))?,
        }
        pad(&mut file, size(shape) as u64)?;
    }
    file.into_inner().map_err(|e| e.into_error())?.sync_all()
}
