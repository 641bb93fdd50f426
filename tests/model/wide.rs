//! Models whose keys have large biases, as Qwen2's: what caches of integers make of them.

use crate::assert_kind;
use crate::common::checkout::checkout;
use crate::common::*;
use crate::tiny::Tiny;
use latten::cache::SaveSequence;
use latten::model::{Attention, AttentionArgs, Config, Decoder, Session, SessionOptions, WeightBytes};
use latten::{CacheOptions, DType, Decode, ErrorKind, Gqa, HeadLayout, PagedKvCache, Pages, WideChannels};
use pollster::block_on;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::SafeTensors;

const TOKENS: [u32; 24] = [1, 7, 9, 200, 3, 3, 8, 250, 0, 77, 5, 6, 9, 10, 42, 199, 2, 2, 31, 90, 11, 13, 254, 1];

/// The tiny model with a bias of this size in some pairs of the keys of one KV head of layer 1.
fn biased(pairs: &[usize], size: f32) -> Tiny {
    let mut tiny = Tiny::new("gqa", 5);
    let (_, bias) = tiny.tensors.get_mut("model.layers.1.self_attn.k_proj.bias").unwrap();
    for (i, pair) in pairs.iter().enumerate() {
        bias[6 + pair] = [size, -0.9 * size, 0.8 * size][i];
    }
    tiny
}

fn decoder(tiny: &Tiny) -> Decoder {
    let config = Config::parse("config.json", &tiny.config_json()).unwrap();
    Decoder::from_bytes(exact_gpu(), config, WeightBytes { name: "tiny", bytes: &tiny.bytes(Dtype::F32) }, DType::F32)
        .unwrap()
}

fn options(kv_dtype: DType) -> SessionOptions {
    SessionOptions { chunk: 8, cache_tokens: 64, page_size: 8, kv_dtype, ..Default::default() }
}

fn logits(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    let id = session.insert();
    block_on(session.all_logits(&[(id, tokens)])).unwrap().concat()
}

/// A model without large biases has the cache that it always had.
#[test]
fn small_biases_change_nothing() {
    let decoder = decoder(&Tiny::new("gqa", 5));
    let layout = decoder.config().layout().unwrap();
    for dtype in [DType::F16, DType::I8, DType::I4] {
        let session = Session::new(&decoder, options(dtype)).unwrap();
        assert_eq!((session.cache().heads(), session.cache().wide_channels()), (&layout, None), "{dtype}");
    }
}

/// The pair of the bias is kept apart, in caches of integers alone, and the logits are as good as with a small bias. Without
/// it they were noise.
#[test]
fn large_biases_are_kept_apart() {
    for (dtype, most) in [(DType::I8, 5e-4), (DType::I4, 5e-2)] {
        for size in [0.0, 30.0, 900.0] {
            let tiny = biased(&[2], size);
            let decoder = decoder(&tiny);
            let mut session = Session::new(&decoder, options(dtype)).unwrap();
            let wide = session.cache().wide_channels().cloned();
            match size {
                0.0 => assert_eq!(wide, None),
                _ => assert_eq!(wide.unwrap().of(1, 1), [2, 5], "layer 1, KV head 1: both channels of pair 2"),
            }
            let want = tiny.forward(&TOKENS).concat();
            let error = nmse(&logits(&mut session, &TOKENS), &want);
            println!("{dtype} size {size}: {error:.1e}");
            assert!(error <= most, "{dtype} size {size}: NMSE {error:e}");
        }
    }
    let plain = Session::new(&decoder(&biased(&[2], 900.0)), options(DType::F16)).unwrap();
    assert_eq!(plain.cache().wide_channels(), None);
}

/// Saved, loaded, rebuilt: the same bits.
#[test]
fn sessions_are_saved_with_wide_channels() {
    let decoder = decoder(&biased(&[2], 200.0));
    let mut session = Session::new(&decoder, options(DType::I8)).unwrap();
    let id = session.insert();
    block_on(session.logits(&[(id, &TOKENS[..20])])).unwrap();
    let mut file = Vec::new();
    block_on(session.save(&[SaveSequence { id, tokens: &TOKENS[..20] }], &mut file, |_| {})).unwrap();
    let want = block_on(session.logits(&[(id, &TOKENS[20..])])).unwrap();
    let mut other = Session::new(&decoder, SessionOptions { page_size: 4, ..options(DType::I8) }).unwrap();
    let loaded = block_on(other.load(&file[..], |_| {})).unwrap().remove(0);
    assert_eq!(block_on(other.logits(&[(loaded.id, &TOKENS[20..])])).unwrap(), want);
    session.rebuild(&decoder).unwrap();
    block_on(session.logits(&[(id, &TOKENS[..20])])).unwrap();
    assert_eq!(block_on(session.logits(&[(id, &TOKENS[20..])])).unwrap(), want);
}

/// More large channels than find room, or values that are large: refused where noise would be left, else told in the log.
#[test]
fn what_finds_no_room_is_refused_by_its_size() {
    let session = |tiny: &Tiny, dtype| Session::new(&decoder(tiny), options(dtype)).map(drop);
    // Room is for a pair of three; the sizes of this model's keys are about 1.
    let (few, many) = (biased(&[0, 1, 2], 12.0), biased(&[0, 1, 2], 300.0));
    for dtype in [DType::I8, DType::I4] {
        session(&few, dtype).unwrap();
        assert_kind!(session(&many, dtype), ErrorKind::Unsupported { .. });
        let text = message(session(&many, dtype));
        assert!(text.contains("the keys of layer 1, KV head 1 (6 large channels, of which 2 find room)"), "{text}");
        assert!(text.contains(&dtype.to_string()), "{text}");
    }
    session(&many, DType::F16).unwrap();
    // Between the two limits.
    session(&biased(&[0, 1, 2], 27.0), DType::I8).unwrap();
    assert_kind!(session(&biased(&[0, 1, 2], 27.0), DType::I4), ErrorKind::Unsupported { .. });
    // Values, and GTA's states, which are values too.
    for (variant, name) in [("gqa", "v_proj"), ("gta", "kv_proj")] {
        let mut tiny = Tiny::new(variant, 5);
        let mut bias = vec![0.0; 12];
        bias[3] = 500.0;
        tiny.tensors.insert(format!("model.layers.0.self_attn.{name}.bias"), (vec![12], bias));
        assert_kind!(session(&tiny, DType::I8), ErrorKind::Unsupported { .. });
        let text = message(session(&tiny, DType::I8));
        assert!(text.contains("the values of layer 0"), "{text}");
        session(&tiny, DType::BF16).unwrap();
    }
}

/// The layer by itself: it names its channels, the app makes the cache.
#[test]
fn a_layer_by_itself_with_wide_channels() {
    let (gpu, tiny) = (exact_gpu(), biased(&[2], 200.0));
    let config = Config::parse("config.json", &tiny.config_json()).unwrap();
    let prefix = "model.layers.1.self_attn.";
    let own =
        tiny.tensors.iter().filter_map(|(name, values)| Some((name.strip_prefix(prefix)?.to_string(), values.clone())));
    let layer = Tiny { config: tiny.config.clone(), tensors: own.collect() };
    let attention =
        Attention::from_bytes(gpu, &config, WeightBytes { name: "layer", bytes: &layer.bytes(Dtype::F32) }, DType::F32)
            .unwrap();
    let large = attention.large_key_channels();
    assert_eq!(large, [vec![], vec![2, 5]]);

    let forward = |heads: HeadLayout, dtype, wide: Option<&WideChannels>| {
        let rope = Some(config.rope().unwrap());
        let options = CacheOptions::new(dtype, Pages { count: 4, size: 8, layers: 1 });
        let cache = PagedKvCache::new(gpu, heads, CacheOptions { rope, ..options }).unwrap();
        let mut cache = match wide {
            Some(wide) => cache.with_wide_channels(wide).unwrap(),
            None => cache,
        };
        let decode = Decode::new(gpu, heads, dtype).unwrap();
        let id = cache.insert();
        cache.reserve(&[id], 20).unwrap();
        let x = tensor(gpu, &[20, 20], &Rng(3).normals(400, 1.0));
        let (cache, decode) = (&mut cache, &decode);
        let args = AttentionArgs { x: &x, cache, layer: 0, decode, sequences: &[id], prefill: None };
        download(gpu, &attention.forward(args).unwrap())
    };
    let heads = Gqa { q_heads: config.q_heads, kv_heads: 2, head_dim: config.head_dim };
    let want = f64s(&forward(HeadLayout::gqa(heads).unwrap(), DType::F32, None));
    let layout = HeadLayout::gqa_wide(heads, 2).unwrap();
    let wide = WideChannels::new(&layout, &[large]).unwrap();
    let (kept, plain) =
        (forward(layout, DType::I8, Some(&wide)), forward(HeadLayout::gqa(heads).unwrap(), DType::I8, None));
    let (kept, plain) = (nmse(&kept, &want), nmse(&plain, &want));
    assert!(kept <= 5e-4 && plain >= 20.0 * kept, "NMSE {kept:e}, in a plain cache {plain:e}");
}

/// The shipped GQA model with biases in the slowest pairs of every KV head, and the queries of those pairs as much smaller, so
/// that it is hardly another model: edited, not trained. `docs/quantised-cache.md` has what this prints.
#[test]
#[ignore = "long: a measurement of some minutes: bits per byte of an edited model in every cache"]
fn the_shipped_model_with_large_biases() {
    let folder = std::path::PathBuf::from(checkout("examples/models/gqa"));
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    let config = Config::parse("gqa", &std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let text = std::fs::read(checkout("tests/vectors/held_out.txt")).unwrap();
    let tokens: Vec<u32> = text.iter().take(2048).map(|b| u32::from(*b)).collect();
    println!("| bias | norm | f32 | f16 | i8 | i4 |");
    for size in [0.0f32, 10.0, 50.0, 150.0, 400.0] {
        let weights = edited(&file, config.layers, size);
        let decoder = Decoder::from_bytes(
            exact_gpu(),
            config.clone(),
            WeightBytes { name: "edited", bytes: &weights },
            DType::F32,
        )
        .unwrap();
        let bits =
            [DType::F32, DType::F16, DType::I8, DType::I4].map(|kv_dtype| bits_per_byte(&decoder, &tokens, kv_dtype));
        println!(
            "| {size} | {:.0} | {:.3} | {:.3} | {:.3} | {:.3} |",
            size * 1.286,
            bits[0],
            bits[1],
            bits[2],
            bits[3]
        );
        assert!((bits[2] - bits[0]).abs() < 0.01 && (bits[3] - bits[0]).abs() < 0.15, "{size}: {bits:?}");
    }
}

/// Heads of 32: pairs 15, 14 and 13 of each get biases of `size`, -0.7 and 0.4 of it, spread over both channels.
fn edited(file: &[u8], layers: usize, size: f32) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let halves = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    };
    let parts = [(15, 1.0, 0.3), (14, -0.7, 1.9), (13, 0.4, 0.7f32)];
    let mut all: Vec<(String, Vec<usize>, Vec<f32>)> =
        tensors.tensors().into_iter().map(|(name, t)| (name, t.shape().to_vec(), halves(t.data()))).collect();
    for (name, _, values) in all.iter_mut().filter(|(name, _, _)| name.ends_with("q_proj.weight") && size > 10.0) {
        assert!(name.contains("layers"));
        for (row, values) in values.chunks_exact_mut(256).enumerate() {
            if parts.iter().any(|(pair, _, _)| row % 16 == *pair) {
                values.iter_mut().for_each(|w| *w *= 10.0 / size);
            }
        }
    }
    for layer in (0..layers).filter(|_| size > 0.0) {
        let mut bias = vec![0.0; 128];
        for head in bias.chunks_exact_mut(32) {
            for (pair, part, angle) in parts {
                (head[pair], head[pair + 16]) = (size * part * angle.cos(), size * part * angle.sin());
            }
        }
        all.push((format!("model.layers.{layer}.self_attn.k_proj.bias"), vec![128], bias));
    }
    let bytes: Vec<Vec<u8>> = all.iter().map(|(_, _, v)| v.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = all
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), b)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// In windows of 512 tokens.
fn bits_per_byte(decoder: &Decoder, tokens: &[u32], kv_dtype: DType) -> f64 {
    let options = SessionOptions { chunk: 128, cache_tokens: 512, kv_dtype, ..Default::default() };
    let mut session = Session::new(decoder, options).unwrap();
    let (mut bits, mut count) = (0.0, 0);
    for window in tokens.chunks(512) {
        let id = session.insert();
        let rows = block_on(session.all_logits(&[(id, window)])).unwrap().concat();
        for (row, next) in rows.chunks_exact(256).zip(&window[1..]) {
            let top = row.iter().fold(f32::MIN, |top, x| top.max(*x));
            let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
            bits += sum.log2() - f64::from(row[*next as usize] - top) / std::f64::consts::LN_2;
            count += 1;
        }
        session.remove(id).unwrap();
    }
    bits / f64::from(count)
}
