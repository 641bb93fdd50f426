//! What an app keeps in its settings comes back as it was, and what no app may write there is refused. Needs no GPU.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

use latten::attention::{AttentionOptions, SplitPolicy};
use latten::gpu::{GpuOptions, LimitsChoice};
use latten::model::{GenerateOptions, PrefillPath, SessionOptions, SpeculativeOptions};
use latten::nn::{Penalties, Sampling};
use latten::{CacheOptions, DType, Gla, Gqa, Gta, HeadLayout, Mla, Pages, Rope, RopePairs, SequenceOptions, Tier};
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::fmt::Debug;

/// The text of a value, which is read back equal.
fn text<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> String {
    let text = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value, "{text}");
    text
}

#[test]
fn options_come_back() {
    let session = SessionOptions {
        max_batch: 3,
        chunk: 7,
        cache_tokens: 999,
        page_size: 16,
        kv_dtype: DType::I4,
        window: Some(80),
        keep_first: 4,
        max_tokens: Some(700),
        window_pools: true,
        prefill: PrefillPath::From(300),
    };
    let penalties = Penalties { repetition: 1.25, presence: -0.5, frequency: 0.125, window: 64 };
    let sampling = Sampling { temperature: 0.75, min_p: 0.25, top_k: 40, typical_p: 0.5, top_p: 0.5, penalties };
    let generate = GenerateOptions { max_new_tokens: 5, sampling, seed: u64::MAX };
    text(&session);
    text(&generate);
    text(&SpeculativeOptions { generate, max_draft: 9 });
    text(&AttentionOptions { softcap: Some(50.0), window: Some(9), keep_first: 2, sinks: true, tree: false });
    for policy in [SplitPolicy::Auto, SplitPolicy::FixedTokens(64), SplitPolicy::Count(3), SplitPolicy::Off] {
        text(&policy);
    }
    text(&SequenceOptions { window: Some(64), keep_first: 4 });
    let rope = Some(Rope::new(64, 10_000.0, RopePairs::Interleaved).unwrap());
    let pages = Pages { count: 9, size: 64, layers: 3 };
    text(&CacheOptions { rope, grows: true, ..CacheOptions::new(DType::I8, pages) });
    let gpu = GpuOptions {
        adapter: Some("llvmpipe".into()),
        limits: LimitsChoice::Downlevel,
        tier: Some(Tier::Subgroup),
        dispatch_flop: Some(u64::MAX),
        pipeline_cache: Some("cache/pipelines".into()),
        ..Default::default()
    };
    let written = serde_json::to_string(&gpu).unwrap();
    let back: GpuOptions = serde_json::from_str(&written).unwrap();
    assert_eq!(format!("{back:?}"), format!("{gpu:?}"));
}

/// What is not there is what it is by default, so that settings outlive new fields.
#[test]
fn a_part_of_the_options_is_enough() {
    let session: SessionOptions = serde_json::from_str(r#"{ "chunk": 64, "kv_dtype": "bf16" }"#).unwrap();
    assert_eq!(session, SessionOptions { chunk: 64, kv_dtype: DType::BF16, ..Default::default() });
    let cache = r#"{ "dtype": "f16", "pages": { "count": 4, "size": 64, "layers": 1 } }"#;
    let pages = Pages { count: 4, size: 64, layers: 1 };
    assert_eq!(serde_json::from_str::<CacheOptions>(cache).unwrap(), CacheOptions::new(DType::F16, pages));
    let generate: GenerateOptions = serde_json::from_str(r#"{ "sampling": { "temperature": 0.5 } }"#).unwrap();
    let sampling = Sampling { temperature: 0.5, ..Default::default() };
    assert_eq!(generate, GenerateOptions { sampling, ..Default::default() });
}

/// Words in settings are those that latten prints.
#[test]
fn small_enums_are_words() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4, DType::U32] {
        assert_eq!(text(&dtype), format!("\"{dtype}\""));
    }
    assert_eq!(text(&PrefillPath::Auto), "\"auto\"");
    assert_eq!(text(&PrefillPath::From(64)), r#"{"from":64}"#);
    assert_eq!([Tier::Portable, Tier::Subgroup, Tier::Matrix].map(|tier| text(&tier)).join(" "), {
        r#""portable" "subgroup" "matrix""#
    });
}

#[test]
fn layouts_come_back_through_their_constructors() {
    let (q_heads, head_dim, rope_dim) = (8, 64, 32);
    let gqa = Gqa { q_heads, kv_heads: 2, head_dim };
    for heads in [
        HeadLayout::mha(q_heads, head_dim),
        HeadLayout::mqa(q_heads, head_dim),
        HeadLayout::gqa(gqa),
        HeadLayout::gqa_wide(gqa, 4),
        HeadLayout::gta(Gta { q_heads, kv_heads: 2, head_dim, rope_dim }),
        HeadLayout::gla(Gla { q_heads, latent_heads: 2, latent_dim: 96, rope_dim }),
        HeadLayout::mla(Mla { q_heads, latent_dim: 96, rope_dim }),
    ] {
        text(&heads.unwrap());
    }
    text(&gqa);
    let good = text(&HeadLayout::gqa(gqa).unwrap());
    for (from, to) in [
        ("\"groups\":2", "\"groups\":3"),
        ("\"groups\":2", "\"groups\":0"),
        ("\"rope_dim\":0", "\"rope_dim\":2"),
        ("\"v_dim\":64", "\"v_dim\":63"),
        ("\"v_dim\":64", "\"v_dim\":64,\"wide_dim\":4"),
        ("\"q_heads\":8", "\"q_heads\":18446744073709551615"),
        ("\"v_dim\":64", "\"v_dim\":64,\"heads\":1"),
    ] {
        assert!(good.contains(from), "{good}");
        let bad = good.replace(from, to);
        let error = serde_json::from_str::<HeadLayout>(&bad).unwrap_err().to_string();
        assert!(
            error.contains("no variant of attention has the numbers") || error.contains("unknown field"),
            "{error}"
        );
    }
}
