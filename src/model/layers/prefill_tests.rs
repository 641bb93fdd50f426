use super::*;
use serde_json::json;

fn config(q_heads: usize, latent_heads: usize, latent_dim: usize, head_dim: usize) -> Config {
    let variant = if latent_heads == 1 { "mla" } else { "gla" };
    let text = json!({
        "model_type": "latten", "attention": variant, "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": q_heads, "head_dim": head_dim, "intermediate_size": 8, "rms_norm_eps": 1e-6,
        "rope_theta": 1e4, "rope_interleaved": false, "max_position_embeddings": 100_000, "tie_word_embeddings": true,
        "tokenizer": "bytes", "latent_heads": latent_heads, "latent_dim": latent_dim, "q_latent_dim": 8, "rope_dim": 64,
    });
    Config::parse("test", &text.to_string()).unwrap()
}

fn view(new: u32, kv_len: u32) -> SeqView {
    SeqView { page_table_first: 0, q_token_first: 0, q_len: new, kv_len, gap_first: 0, gap_last: 0 }
}

/// attention.md: "The break-even is about 171 query tokens (DeepSeek-V3 shape) and 256 (GLA-2)."
#[test]
fn break_even_is_that_of_the_design() {
    assert_eq!(config(128, 1, 512, 128).prefill_break_even(), Some(171));
    assert_eq!(config(16, 2, 256, 128).prefill_break_even(), Some(256));
    // No latent is wider than a head's key and value together.
    assert_eq!(config(16, 4, 128, 128).prefill_break_even(), None);
    assert_eq!(config(16, 8, 64, 128).prefill_break_even(), None);
    let gqa = Config { attention: AttentionConfig::Gqa { kv_heads: 4 }, ..config(16, 1, 512, 128) };
    assert_eq!(gqa.prefill_break_even(), None);
    // Over a long context that is where Auto changes its mind.
    for (config, from) in [(config(128, 1, 512, 128), 171), (config(16, 2, 256, 128), 256)] {
        let auto = Choice::new(&config, PrefillPath::Auto, None, 4096).unwrap();
        let explicit = |new: u32| auto.explicit(&view(new, 1 << 24)).is_some();
        assert!(explicit(from) && !explicit(from - 1), "from {from}");
        // Without one keys and values cost nothing that queries and outputs would not.
        assert!(auto.explicit(&view(64, 64)).is_some() && auto.explicit(&view(63, 63)).is_none());
    }
}

/// Multiply-adds counted pair by pair.
#[test]
fn auto_takes_the_form_of_fewer_products() {
    let (heads, latent, head, rope) = (4u64, 96u64, 64u64, 16u64);
    for window in [None, Some(40), Some(300), Some(5000)] {
        let config = Config {
            attention: AttentionConfig::Latent {
                latent_heads: 2,
                latent_dim: latent as usize,
                q_latent_dim: None,
                rope_dim: rope as usize,
            },
            ..config(heads as usize, 2, 96, head as usize)
        };
        let auto = Choice::new(&config, PrefillPath::Auto, window, 4096).unwrap();
        let mut both = [0, 0];
        for new in [64u64, 65, 100, 130, 200, 1000] {
            for before in [0u64, 1, 50, 128, 300, 1000, 4000, 40_000] {
                let sees = |m: u64| (before + m + 1).min(window.unwrap_or(usize::MAX) as u64);
                let pairs: u64 = (0..new).map(sees).sum();
                let first = (before + 1).saturating_sub(window.unwrap_or(usize::MAX) as u64) / 64 * 64;
                let absorbed = pairs * (2 * latent + rope) + new * latent * 2 * head;
                let explicit = pairs * (2 * head + rope) + (before + new - first) * latent * 2 * head;
                let got = auto.explicit(&view(new as u32, (before + new) as u32));
                let want = (explicit < absorbed).then_some(first as u32..(before + new) as u32);
                assert_eq!(got, want, "{new} after {before}, window {window:?}");
                both[usize::from(want.is_some())] += 1;
            }
        }
        assert!(both[1] > 0 && (both[0] > 0 || window.is_some_and(|w| w < 301)), "{both:?} {window:?}");
    }
}

#[test]
fn paths_are_what_they_say() {
    let config = config(16, 2, 256, 128);
    let choice = |path, most| Choice::new(&config, path, Some(100), most);
    assert!(choice(PrefillPath::Absorbed, 4096).is_none());
    assert!(choice(PrefillPath::Auto, 63).is_none() && choice(PrefillPath::Explicit, 1).is_none());
    assert!(choice(PrefillPath::From(40), 39).is_none());
    let explicit = |path, new, kv_len| choice(path, 4096).unwrap().explicit(&view(new, kv_len));
    // From the first page that the window reaches into.
    assert_eq!(explicit(PrefillPath::Explicit, 2, 1002), Some(896..1002));
    assert_eq!(explicit(PrefillPath::Explicit, 1, 1002), None);
    assert_eq!(explicit(PrefillPath::From(40), 40, 60), Some(0..60));
    assert_eq!(explicit(PrefillPath::From(40), 39, 60), None);
    assert_eq!(explicit(PrefillPath::From(0), 1, 60), None);
    assert_eq!(explicit(PrefillPath::From(0), 0, 60), None);
}

#[test]
fn words_are_read_as_they_are_printed() {
    for path in [PrefillPath::Auto, PrefillPath::Absorbed, PrefillPath::Explicit, PrefillPath::From(300)] {
        assert_eq!(path.to_string().parse::<PrefillPath>().unwrap(), path);
    }
    for bad in ["", "Auto", "from", "from ", "from -1", "from x", "explicit "] {
        let error = bad.parse::<PrefillPath>().unwrap_err();
        assert!(error.to_string().contains(&format!("{bad:?} is not")), "{error}");
    }
}
