//! `Vector::parse` on broken input: an error that names what is wrong, never a panic.

use crate::vector::Vector;
use proptest::prelude::*;
use serde_json::{json, Value};

use crate::vector_files;

fn value(prefix: &str) -> Value {
    serde_json::from_slice(&vector_files(prefix, 1)[0].1).unwrap()
}

/// The error of `base` after `change`.
fn error_of(base: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut value = value(base);
    change(&mut value);
    Vector::parse(value.to_string().as_bytes()).expect_err("it should be refused").to_string()
}

#[test]
fn malformed_text_is_refused() {
    for text in
        ["", "{", "[]", "3", "null", "{}", "{\"layout\": 1, \"weights\": 2}", "{\"layout\": {}}", "{\"weights\": []}"]
    {
        assert!(Vector::parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(Vector::parse(&[0xff, 0xfe]).is_err());
    let deep = "[".repeat(100_000);
    assert!(Vector::parse(format!("{{\"layout\": {deep}").as_bytes()).is_err());
    for number in ["NaN", "Infinity", "1e999", "null", "\"1\"", "[]"] {
        let text = value("kernel_gla_1").to_string();
        let at = text.find("\"q\":[[[").unwrap() + "\"q\":[[[".len();
        let end = at + text[at..].find(',').unwrap();
        let broken = format!("{}{number}{}", &text[..at], &text[end..]);
        assert!(Vector::parse(broken.as_bytes()).is_err(), "{number} as an element of q");
    }
}

#[test]
fn malformed_kernels_are_refused_by_name() {
    let k = "kernel_gla_1";
    assert!(error_of(k, |v| v["variant"] = json!("rwkv")).contains("rwkv"));
    assert!(error_of(k, |v| v["variant"] = json!("gqa")).starts_with("layout: "), "gla's numbers are not gqa's");
    assert!(error_of(k, |v| v["layout"]["v"] = json!(8)).starts_with("layout: "));
    assert!(error_of(k, |v| v["layout"]["v_offset"] = json!(u64::MAX)).starts_with("layout: "));
    assert!(error_of(k, |v| v["layout"]["groups"] = json!(3)).contains("does not divide"));
    assert!(error_of(k, |v| v["layout"]["groups"] = json!(-1)).starts_with("vector: "));
    assert!(error_of(k, |v| v["layout"]["rope"] = json!(5)).starts_with("rope_dim: "));
    assert!(error_of(k, |v| v["softmax_scale"] = json!(0.0)).starts_with("softmax_scale: "));
    assert!(error_of(k, |v| drop(v.as_object_mut().unwrap().remove("lse"))).contains("lse"));
    assert_eq!(error_of(k, |v| v["q"] = json!([])), "q: no query token");
    assert!(error_of(k, |v| v["q"] = json!([[]])).starts_with("q_heads: "));
    assert!(error_of(k, |v| v["q"] = json!(7)).starts_with("q: "));
    let ragged = error_of(k, |v| drop(v["q"][1][2].as_array_mut().unwrap().pop()));
    assert_eq!(ragged, "q has shape an array of 19 at q[1][2], wanted (3,4,20)");
    assert!(error_of(k, |v| drop(v["states"].as_array_mut().unwrap().pop())).starts_with("rope_keys has shape"));
    assert!(error_of(k, |v| v["states"][0] = json!(1)).contains("no array at states[0]"));
    assert!(error_of(k, |v| v["out"][0][0][0] = json!([1])).contains("no number at out[0][0][0]"));
    assert!(error_of(k, |v| v["out"][0][0][0] = json!(null)).contains("no number"), "null is for lse alone");
    assert!(error_of(k, |v| v["lse"][0] = json!([0, 0, 0])).starts_with("lse has shape"));
}

#[test]
fn malformed_layers_are_refused_by_name() {
    for base in ["layer_gla_1", "layer_gta_1"] {
        for variant in ["gqa", "none"] {
            assert!(error_of(base, |v| v["variant"] = json!(variant)).contains(variant), "{base} as {variant}");
        }
        assert!(error_of(base, |v| v["x"] = json!([])).starts_with("x: no token"));
        assert!(error_of(base, |v| v["y"] = json!([0])).starts_with("y has shape"));
        assert!(error_of(base, |v| v["eps"] = json!(-1)).starts_with("eps: "));
        assert!(error_of(base, |v| v["theta"] = json!(0)).starts_with("theta: "));
        assert!(error_of(base, |v| v["interleaved"] = json!(0)).starts_with("vector: "));
        assert!(error_of(base, |v| v["weights"] = json!(0)).contains("missing"));
        for dim in ["model_dim", "q_heads", "groups", "head_dim", "state", "rope"] {
            for size in [1, 0, 3, u64::MAX, 1 << 33] {
                if json!(size) != value(base)["dims"][dim] {
                    error_of(base, |v| v["dims"][dim] = json!(size));
                }
            }
        }
        let names: Vec<String> = value(base)["weights"].as_object().unwrap().keys().cloned().collect();
        for name in names {
            let missing = error_of(base, |v| drop(v["weights"].as_object_mut().unwrap().remove(&name)));
            assert_eq!(missing, format!("weights: {name} is missing"));
            let short = error_of(base, |v| drop(v["weights"][&name].as_array_mut().unwrap().pop()));
            assert!(short.starts_with(&format!("{name} has shape")), "{short}");
        }
    }
}

/// The oracle prints `mla` with several groups where asked to; it is a gla.
#[test]
fn malformed_is_not_an_mla_with_groups() {
    let mut v = value("kernel_gla_1");
    v["variant"] = json!("mla");
    Vector::parse(v.to_string().as_bytes()).unwrap();
}

proptest! {
    /// Bytes of a small vector overwritten, or its end cut off: an error or a vector, never a panic.
    #[test]
    fn malformed_bytes_never_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let (_, mut json) = vector_files("kernel_gta_4", 1).remove(0);
        let at = at.index(json.len());
        json[at] = byte;
        let _ = Vector::parse(&json);
        // A prefix without the closing brace is no object, unless the byte written above is one.
        let is_error = Vector::parse(&json[..cut.index(json.len() - 1)]).is_err();
        prop_assert!(is_error || byte == 0x7d, "a vector cut short was accepted");
    }
}
