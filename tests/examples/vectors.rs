//! The example `check_vector`: what it passes, what it notices, and what it refuses.

use super::check_vector::vector::{LayerWeights, Vector};
use super::check_vector::{self, BEYOND, UNCHECKED, WITHIN};
use super::checkout;
use latten::reference;
use latten::reference::Form;
use serde_json::{json, Value};
use std::path::PathBuf;

/// A run of check_vector with this on its standard input: exit code, report and complaints.
fn check(args: &[&str], input: &str) -> (u8, String, String) {
    let (mut out, mut complaints) = (Vec::new(), Vec::new());
    let args = args.iter().map(|a| a.to_string());
    let code = check_vector::run(args, &mut input.as_bytes(), &mut out, &mut complaints);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(complaints).unwrap())
}

fn folder() -> PathBuf {
    checkout("tests/vectors").into()
}

fn value(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(format!("{name}.json"))).unwrap()).unwrap()
}

/// Committed vectors whose names begin so, in one run; each must give this many lines. Of each kind those of even numbers,
/// unless it is to be `all`: a software GPU takes seconds to compile the kernels of each. The reference has all of them in
/// `tests/reference`, and the kernels are held to the reference in `tests/kernels`.
fn check_committed(all: bool, prefixes: &[&str], at_least: usize, lines: usize) {
    let taken = |name: &str| all || name.trim_end_matches(".json").ends_with(['2', '4', '6', '8']);
    let names = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)) && name.ends_with(".json"));
    let names = names.filter(|name| taken(name));
    let mut files: Vec<String> = names.map(|name| folder().join(name).display().to_string()).collect();
    files.sort();
    assert!(files.len() >= at_least, "{} vectors", files.len());
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let (code, out, complaints) = check(&files, "");
    assert_eq!((code, complaints.as_str()), (WITHIN, ""), "{out}");
    assert_eq!(out.matches(" ok ").count(), files.len() * lines, "{out}");
    assert!(!out.contains("FAIL"), "{out}");
}

/// out and lse of the reference, and of three dtypes in two runs.
const KERNEL_LINES: usize = 2 + 3 * 2 * 2;

/// y of the reference, and rows and y of two dtypes in two runs.
const LAYER_LINES: usize = 1 + 2 * 2 * 2;

// Two tests, which compile kernels side by side.
#[test]
fn check_vector_passes_committed_kernels_of_gqa_and_gta() {
    check_committed(false, &["kernel_gqa", "kernel_gta"], 6, KERNEL_LINES);
}

#[test]
fn check_vector_passes_committed_kernels_of_gla_and_mla() {
    check_committed(false, &["kernel_gla", "kernel_mla"], 6, KERNEL_LINES);
}

#[test]
fn check_vector_passes_committed_layers() {
    check_committed(false, &["layer_"], 3, LAYER_LINES);
}

#[test]
#[ignore = "long: all of them; a minute of software GPU"]
fn check_vector_passes_every_committed_vector() {
    check_committed(true, &["kernel_"], 24, KERNEL_LINES);
    check_committed(true, &["layer_"], 8, LAYER_LINES);
}

/// The value at a path like `out/0/1/2`, moved by this much.
fn moved(name: &str, path: &str, by: f64) -> String {
    let mut value = value(name);
    let element = value.pointer_mut(&format!("/{path}")).unwrap();
    *element = json!(element.as_f64().unwrap() + by);
    value.to_string()
}

#[test]
fn check_vector_notices_one_wrong_output() {
    let cases = [
        ("kernel_gla_1", "out/2/3/15", "out"),
        ("kernel_gta_1", "lse/0/0", "lse"),
        ("layer_gta_1", "y/23", "y"),
        // A query token that sees nothing, so that no device is asked.
        ("kernel_gqa_4", "out/0/0/0", "out"),
    ];
    for (name, path, output) in cases {
        for by in [1e-3, -1e-3] {
            let (code, out, complaints) = check(&[], &moved(name, path, by));
            assert_eq!((code, complaints.as_str()), (BEYOND, ""), "{name} {path}: {out}");
            for line in out.lines().filter(|l| l.contains("FAIL")) {
                assert!(line.starts_with(&format!("  {output} ")), "{name} {path}: {line}");
            }
        }
    }
    // A sum of exponentials where there is nothing to sum.
    let mut empty = value("kernel_gqa_4");
    empty["lse"][1][2] = json!(0.0);
    let (code, out, _) = check(&[], &empty.to_string());
    assert_eq!(code, BEYOND);
    assert!(out.contains("FAIL") && out.contains("element 5 is -inf, wanted 0"), "{out}");
    // The worst of several files counts.
    let good = folder().join("kernel_gqa_4.json").display().to_string();
    let (code, out, _) = check(&["-", &good], &empty.to_string());
    assert_eq!(code, BEYOND, "{out}");
}

/// The oracle clamps to 3.98, which is no f16: the wanted outputs are then those of what the cache holds.
#[test]
fn check_vector_rounds_inputs_that_a_cache_cannot_hold() {
    let mut v = value("kernel_gta_6");
    v["states"][3][1][5] = json!(3.98);
    v["rope_keys"][9][2] = json!(-3.98);
    let Vector::Kernel(mut kernel) = Vector::parse(v.to_string().as_bytes()).unwrap() else { panic!() };
    let want = reference::decode(&kernel.layout, &kernel.inputs()).unwrap();
    (kernel.out, kernel.lse) = (want.out, want.lse);
    let (q_heads, v_dim) = (kernel.layout.q_heads(), kernel.layout.v_dim());
    let rows = |flat: &[f64], width: usize| -> Vec<Vec<f64>> { flat.chunks(width).map(<[f64]>::to_vec).collect() };
    v["lse"] = json!(rows(&kernel.lse, q_heads));
    v["out"] = json!(rows(&kernel.out, v_dim).chunks(q_heads).collect::<Vec<_>>());
    let (code, out, complaints) = check(&["-"], &v.to_string());
    assert_eq!((code, complaints.as_str()), (WITHIN, ""), "{out}");
    assert_eq!(out.matches("against the reference on rounded inputs").count(), 12, "{out}");
}

/// The layer's output by the reference, which the oracle's vectors are held to elsewhere.
fn output(layer: &Value) -> Value {
    let Vector::Layer(layer) = Vector::parse(layer.to_string().as_bytes()).unwrap() else { panic!() };
    let LayerWeights::Gla(weights) = &layer.weights else { panic!() };
    let mut config = layer.config.clone();
    config.rotation = config.rotation.exact();
    json!(reference::gla_layer(&config, weights, &layer.x, Form::Explicit).unwrap())
}

/// The oracle's command prints half-rotated layers alone.
#[test]
fn check_vector_runs_interleaved_layers() {
    let mut v = value("layer_gla_2");
    let half = v["y"].clone();
    v["interleaved"] = json!(true);
    v["y"] = output(&v);
    let (code, out, complaints) = check(&[], &v.to_string());
    assert_eq!((code, complaints.as_str()), (WITHIN, ""), "{out}");
    v["y"] = half;
    assert_eq!(check(&[], &v.to_string()).0, BEYOND, "the half-rotated y passed for the interleaved one");
}

#[test]
fn check_vector_runs_layers_without_a_rope_key() {
    let mut v = value("layer_gla_2");
    let size = |name: &str| v["dims"][name].as_u64().unwrap() as usize;
    let (head_dim, rope, latents) = (size("head_dim"), size("rope"), size("groups") * size("state"));
    v["dims"]["rope"] = json!(0);
    for name in ["w_uq", "b_uq", "w_dkv", "b_dkv"] {
        let rows = v["weights"][name].as_array_mut().unwrap();
        let mut row = 0..;
        rows.retain(|_| {
            let row = row.next().unwrap();
            if name.ends_with("uq") {
                row % (head_dim + rope) < head_dim
            } else {
                row < latents
            }
        });
    }
    v["y"] = output(&v);
    let (code, out, complaints) = check(&[], &v.to_string());
    assert_eq!((code, complaints.as_str()), (WITHIN, ""), "{out}");
}

#[test]
fn check_vector_refuses_what_is_no_vector() {
    let mut odd_head = value("layer_gta_1");
    odd_head["dims"]["head_dim"] = json!(5);
    odd_head["dims"]["state"] = json!(5);
    let mut unknown = value("kernel_gla_1");
    unknown["variant"] = json!("rwkv");
    let mut large = value("kernel_mla_2");
    large["states"][0][0][0] = json!(1e39);
    let mut odd_rope = value("kernel_mla_2");
    odd_rope["layout"]["rope"] = json!(5);
    let cases = [
        ("", "-: empty"),
        (" \n", "-: empty"),
        ("{", "EOF while parsing"),
        ("[1, 2]", "layout"),
        ("{\"layout\": {}}", "missing field"),
        (&unknown.to_string(), "rwkv"),
        (&odd_rope.to_string(), "rope_dim: 5 is not an even number"),
        (&odd_head.to_string(), "wanted"),
    ];
    for (input, why) in cases {
        let (code, out, complaints) = check(&[], input);
        assert_eq!((code, out.as_str()), (UNCHECKED, ""), "{input:.40}");
        assert!(complaints.contains(why), "{input:.40}: {complaints}");
    }
    let (code, _, complaints) = check(&[], &large.to_string());
    assert_eq!((code, complaints.contains("an input is beyond f32")), (UNCHECKED, true), "{complaints}");
    for (args, why) in [
        (&["no/such/file.json"][..], "no/such/file.json: "),
        (&["--verbose"], "unexpected argument '--verbose'"),
        (&["--adapter"], "a value is required for '--adapter <NAME>'"),
        (&["--adapter", "no such adapter"], "no such adapter"),
    ] {
        let (code, _, complaints) = check(args, &value("kernel_gqa_4").to_string());
        assert_eq!(code, UNCHECKED, "{args:?}");
        assert!(complaints.contains(why), "{args:?}: {complaints}");
    }
    let (code, out, complaints) = check(&["--help"], "");
    assert_eq!((code, complaints.as_str()), (WITHIN, ""));
    assert!(out.contains("[default: -]") && out.contains("Exit code: 0"), "{out}");
}
