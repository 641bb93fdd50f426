//! Layouts, rotations, configs and other numbers of the host.

use crate::numbers::Gen;
use latten::cache::saved_info;
use latten::kv::StateLayout;
use latten::model::{AttentionConfig, Config, ExpertsConfig, PrefillPath, Utf8Stream};
use latten::nn::{quantise, ExpertShape, ExpertTuning, RouteShape, Sampling};
use latten::rope::cos_sin_table;
use latten::rope::Rope;
use latten::rope::RopeScaling;
use latten::{DType, Gla, Gqa, Gta, HeadLayout, Mla, Pages, RopePairs};

pub const DTYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4, DType::U32];
pub const ROTATIONS: [RopePairs; 3] = [RopePairs::None, RopePairs::Half, RopePairs::Interleaved];

pub fn case(g: &mut Gen) {
    match g.below(8) {
        0 | 1 => layouts(g),
        2 => rotations(g),
        3 => parsed(g),
        4 => fields(g),
        5 => saved(g),
        _ => small(g),
    }
}

pub fn layout(g: &mut Gen) -> Option<HeadLayout> {
    let (q_heads, groups, rope_dim) = (g.near(8), g.near(2), g.near(4));
    let head_dim = g.near(8);
    match g.below(6) {
        0 => g.call("HeadLayout::mha", HeadLayout::mha(q_heads, head_dim)),
        1 => g.call("HeadLayout::mqa", HeadLayout::mqa(q_heads, head_dim)),
        2 => g.call("HeadLayout::gqa", HeadLayout::gqa(Gqa { q_heads, kv_heads: groups, head_dim })),
        3 => g.call("HeadLayout::gta", HeadLayout::gta(Gta { q_heads, kv_heads: groups, head_dim, rope_dim })),
        4 => g.call("HeadLayout::mla", HeadLayout::mla(Mla { q_heads, latent_dim: head_dim, rope_dim })),
        _ => {
            let gla = Gla { q_heads, latent_heads: groups, latent_dim: head_dim, rope_dim };
            g.call("HeadLayout::gla", HeadLayout::gla(gla))
        }
    }
}

fn layouts(g: &mut Gen) {
    let Some(heads) = layout(g) else { return };
    let dims = heads.heads_per_group() + heads.q_dim() + heads.kv_dim() + heads.rotated_dim();
    assert!(dims < 1 << 31);
    let dtype = g.pick(&DTYPES);
    let mut state = StateLayout::new(&heads, dtype);
    if g.one_in(8) {
        (state.state_words, state.rope_words, state.scale_words) = (g.size(), g.size(), g.size());
    }
    let groups = g.near(heads.groups());
    let _ = (state.row_words(groups), state.group_bytes());
    let (bytes, size, layers) = (g.near(1 << 24), g.near(16), g.near(2));
    g.call("Pages::within", Pages::within(bytes as u64, &heads, dtype, size, layers));
}

pub fn scaling(g: &mut Gen) -> RopeScaling {
    let (factor, original_positions) = (g.float(8.0), g.float(4096.0));
    match g.below(4) {
        0 => RopeScaling::None,
        1 => RopeScaling::Linear { factor },
        2 => {
            let (low_freq_factor, high_freq_factor) = (g.float(1.0), g.float(4.0));
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions }
        }
        _ => {
            let (beta_fast, beta_slow, truncate) = (g.float(32.0), g.float(1.0), g.one_in(2));
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, truncate }
        }
    }
}

fn rotations(g: &mut Gen) {
    let (rope_dim, theta, rotation) = (g.near(8), g.float(1e4), g.pick(&ROTATIONS));
    let scaled = scaling(g).inv_freq(rope_dim, theta);
    g.call("RopeScaling::inv_freq", scaled);
    if let Some(rope) = g.call("Rope::new", Rope::new(rope_dim, theta, rotation)) {
        assert_eq!(rope.rope_dim(), rope_dim);
        let positions: Vec<u32> = (0..g.below(3)).map(|_| g.word()).collect();
        if rope_dim <= 64 {
            cos_sin_table(&rope.inv_freq, &positions);
        }
    }
}

const CONFIG: &str = r#"{"model_type": "latten", "attention": "gla", "vocab_size": 256, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 4, "intermediate_size": 8, "rms_norm_eps": 1e-6,
    "rope_theta": 1e4, "rope_interleaved": false, "max_position_embeddings": 64, "tie_word_embeddings": true,
    "tokenizer": "bytes", "latent_heads": 2, "latent_dim": 8, "q_latent_dim": 8, "rope_dim": 4,
    "num_key_value_heads": 2}"#;

/// A file's text with one number changed.
fn parsed(g: &mut Gen) {
    let variant = g.pick(&["gqa", "gta", "gla", "mla"]);
    let text = CONFIG.replace("\"gla\"", &format!("{variant:?}"));
    let text = if variant == "mla" { text.replace("\"latent_heads\": 2", "\"latent_heads\": 1") } else { text };
    let keys = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
        "intermediate_size",
        "max_position_embeddings",
        "latent_heads",
        "latent_dim",
        "q_latent_dim",
        "rope_dim",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
    ];
    let (key, number) = (format!("\"{}\": ", g.pick(&keys)), g.size());
    let text = match text.split_once(&key) {
        Some((before, after)) if g.one_in(2) => {
            let rest = after.find([',', '}']).map_or("", |end| &after[end..]);
            format!("{before}{key}{number}{rest}")
        }
        _ => text,
    };
    if let Some(config) = g.call("Config::parse", Config::parse("config.json", &text)) {
        methods(g, &config);
    }
}

/// The numbers of a small model, one of them changed or none.
pub fn config(g: &mut Gen, valid: &Config) -> Config {
    let mut c = valid.clone();
    if g.one_in(4) {
        return c;
    }
    let n = g.size();
    match (g.below(20), &mut c.attention) {
        (0, _) => c.vocab_size = n,
        (1, _) => c.hidden_size = n,
        (2, _) => c.layers = n,
        (3, _) => c.q_heads = n,
        (4, _) => c.head_dim = n,
        (5, _) => c.v_head_dim = n,
        (6, _) => c.intermediate_size = n,
        (7, _) => c.max_positions = n,
        (8, _) => c.window = Some(n),
        (9, _) => c.rope_theta = g.float(f64::NAN),
        (10, _) => c.rms_norm_eps = g.float(f64::NAN) as f32,
        (11, _) => c.latent_norm_eps = g.float(-1.0) as f32,
        (12, _) => c.rope_gain = g.float(f64::INFINITY) as f32,
        (13, _) => c.score_gain = g.float(1e30) as f32,
        (14, _) => c.rope_scaling = scaling(g),
        (15, _) => c.rope_interleaved = !c.rope_interleaved,
        (16, _) => {
            let route = RouteShape {
                experts: g.near(8),
                top: g.near(2),
                groups: g.near(2),
                top_groups: g.near(1),
                group_best: g.near(1),
                sigmoid: g.one_in(2),
                normalise: g.one_in(2),
                factor: g.float(1.0) as f32,
            };
            let (first_layer, biased) = (g.near(0), g.one_in(2));
            c.experts = Some(ExpertsConfig {
                first_layer,
                route,
                biased,
                with_biases: g.one_in(4),
                width: g.near(8),
                shared_width: g.near(8),
            });
        }
        (_, AttentionConfig::Gqa { kv_heads }) => *kv_heads = n,
        (17, AttentionConfig::Gta { kv_heads, .. }) => *kv_heads = n,
        (_, AttentionConfig::Gta { rope_dim, .. }) => *rope_dim = n,
        (17, AttentionConfig::Latent { latent_heads, .. }) => *latent_heads = n,
        (18, AttentionConfig::Latent { latent_dim, .. }) => *latent_dim = n,
        (_, AttentionConfig::Latent { rope_dim, q_latent_dim, .. }) => match g.below(3) {
            0 => *rope_dim = n,
            1 => *q_latent_dim = Some(n),
            _ => *q_latent_dim = None,
        },
        (_, new) => unreachable!("{new:?} has no numbers here yet"),
    }
    c
}

fn methods(g: &mut Gen, config: &Config) {
    g.call("Config::layout", config.layout());
    g.call("Config::rope", config.rope());
    let _ = (config.softmax_scale(), config.rotated_query_gain(), config.rope_dim(), config.variant());
    let _ = config.prefill_break_even();
}

fn fields(g: &mut Gen) {
    let variant = g.pick(&["gqa", "gta", "gla"]);
    let valid = Config::parse("config.json", &CONFIG.replace("\"gla\"", &format!("{variant:?}"))).unwrap();
    let config = config(g, &valid);
    methods(g, &config);
}

/// A head of a saved cache, which a checksum guards: what comes before that.
fn saved(g: &mut Gen) {
    let mut bytes = b"lattenKV".to_vec();
    bytes.extend((0..22).flat_map(|_| g.word().to_le_bytes()));
    bytes.truncate(g.len(96));
    assert!(saved_info(&bytes[..]).is_err());
}

fn small(g: &mut Gen) {
    let sampling = Sampling::new(g.float(0.7) as f32, g.float(0.9) as f32);
    let u = g.float(0.5) as f32;
    g.call("Sampling::row", sampling.row(u));
    let (values, in_dim) = (g.f32s(8), g.near(4));
    g.call("quantise", quantise(&values, in_dim));
    let tuning = ExpertTuning { tile_rows: g.size(), rows_per_expert: g.size() };
    let shape = ExpertShape { experts: g.size(), top: g.size(), dim: g.size(), width: g.size() };
    let rows = g.size();
    tuning.lists(shape, rows);
    let mut stream = Utf8Stream::default();
    for _ in 0..4 {
        let token = g.word();
        stream.push(token);
    }
    stream.finish();
    let _ = PrefillPath::From(rows);
}
