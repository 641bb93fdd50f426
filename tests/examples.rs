//! The examples as programs: what they accept, what they refuse, and with which exit code.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach
#![allow(clippy::duplicate_mod)] // examples share files, and each is a program of its own

// Included rather than started: a test binary cannot know whether the example beside it is the present one.
#[allow(dead_code)] // its main
#[path = "../examples/check_vector/main.rs"]
mod check_vector;
#[path = "shared/checkout.rs"]
mod checkout;
#[allow(dead_code)]
#[path = "../examples/decode.rs"]
mod decode;
#[allow(dead_code)]
#[path = "../examples/generate.rs"]
mod generate;
#[allow(dead_code)]
#[path = "../examples/kernel_table/main.rs"]
mod kernel_table;
#[allow(dead_code)]
#[path = "../examples/load_speed.rs"]
mod load_speed;
#[path = "examples/loading.rs"]
mod loading;
#[allow(dead_code)]
#[path = "../examples/logits.rs"]
mod logits;
#[allow(dead_code)]
#[path = "../examples/perplexity.rs"]
mod perplexity;
#[path = "examples/perplexity.rs"]
mod perplexity_test;
#[allow(dead_code)]
#[path = "../examples/prefill_table/main.rs"]
mod prefill_table;
#[allow(dead_code)]
#[path = "../examples/save_speed.rs"]
mod save_speed;
#[allow(dead_code)]
#[path = "../examples/sessions.rs"]
mod sessions;
#[path = "examples/several.rs"]
mod several;

use check_vector::{BEYOND, UNCHECKED, WITHIN};
use checkout::checkout;
use latten::reference;
use latten::reference::vector::{LayerWeights, Vector};
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

/// All committed vectors of a kind, in one run; each must give this many lines.
fn check_all(prefix: &str, at_least: usize, lines: usize) {
    let names = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| name.starts_with(prefix) && name.ends_with(".json"));
    let mut files: Vec<String> = names.map(|name| folder().join(name).display().to_string()).collect();
    files.sort();
    assert!(files.len() >= at_least, "{} vectors", files.len());
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let (code, out, complaints) = check(&files, "");
    assert_eq!((code, complaints.as_str()), (WITHIN, ""), "{out}");
    assert_eq!(out.matches(" ok ").count(), files.len() * lines, "{out}");
    assert!(!out.contains("FAIL"), "{out}");
}

#[test]
fn check_vector_passes_every_committed_kernel() {
    // out and lse of the reference, and of three dtypes in two runs.
    check_all("kernel_", 24, 2 + 3 * 2 * 2);
}

#[test]
fn check_vector_passes_every_committed_layer() {
    // y of the reference, and rows and y of two dtypes in two runs.
    check_all("layer_", 8, 1 + 2 * 2 * 2);
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
        (&["--verbose"], "unknown option --verbose\n\nusage: "),
        (&["--adapter"], "--adapter wants a value"),
        (&["--adapter", "no such adapter"], "no such adapter"),
    ] {
        let (code, _, complaints) = check(args, &value("kernel_gqa_4").to_string());
        assert_eq!(code, UNCHECKED, "{args:?}");
        assert!(complaints.contains(why), "{args:?}: {complaints}");
    }
}

#[test]
fn decode_agrees_with_the_reference() {
    let worst = pollster::block_on(decode::run()).unwrap();
    assert!(worst < 2e-5, "{worst}");
}

fn words(args: &str) -> impl Iterator<Item = String> + '_ {
    args.split_whitespace().map(str::to_string)
}

#[test]
fn logits_says_what_is_wrong_with_its_arguments() {
    for (args, why) in [
        ("", "no model folder"),
        ("folder", "no tokens"),
        ("folder 1,x", "\"x\" is not a number"),
        ("folder 1,,2", "\"\" is not a number"),
        ("folder 1,-2", "\"-2\" is not a number"),
        ("folder 1,2 more", "unexpected argument more"),
        ("folder 1,2,3 --chunks 1,1", "do not add up to 3"),
        ("folder 1,2 --chunks 2,0", "do not add up"),
        ("folder 1,2 --dtype f64", "--dtype f64"),
        ("folder 1,2 --dtype", "--dtype wants a value"),
        ("folder 1,2 --kv-dtype u32", "--kv-dtype u32: wanted f32, f16, bf16, i8 or i4"),
        ("folder 1,2 --fast", "unknown option --fast"),
        ("folder 1,2 --greedy few", "--greedy few: not a number"),
        ("folder 1,2 --greedy 3 --all", "without --all and --chunks"),
    ] {
        let message = logits::parse(words(args)).err().unwrap();
        assert!(message.contains(why), "{args}: {message}");
    }
    let args = logits::parse(words("no/such/model 1,2")).unwrap();
    let message = pollster::block_on(logits::run(&args)).unwrap_err().to_string();
    assert!(message.contains("no/such/model"), "{message}");
}

#[test]
fn generate_says_what_is_wrong_with_its_arguments() {
    for (args, why) in [
        ("--variant rwkv", "--variant rwkv: wanted gqa, gta, gla or mla"),
        ("--tokens many", "--tokens many: not a number"),
        ("--tokens 0", "--tokens is 0"),
        ("--model here --variant gla", "exclude each other"),
        ("--dtype f64", "--dtype f64"),
        ("--kv-dtype u32", "--kv-dtype u32: wanted f32, f16, bf16, i8 or i4"),
        ("--seed", "--seed wants a value"),
        ("--prefill implicit", "--prefill implicit: not absorbed, explicit or auto"),
        ("--save-session f", "a session is of one model"),
        ("--load-session f", "a session is of one model"),
        ("--load-session f --variant gla --tokens 0", "--tokens is 0"),
        ("--beams 2 --best-of 2", "--beams and --best-of exclude each other"),
        ("--beams 0", "--beams 0: wanted at least 1"),
        ("--best-of 0", "--best-of 0: wanted at least 1"),
        ("--best-of -1", "--best-of -1: not a number"),
        ("--beams", "--beams wants a value"),
        ("--beams 2 --seed 1", "--beams draws nothing by chance, --seed is not for it"),
        ("--temperature 1 --beams 2", "--temperature is not for it"),
        ("--beams 2 --top-p 0.5", "--top-p is not for it"),
        ("--best-of 2 --profile", "--best-of and --profile exclude each other"),
        ("--beams 2 --variant gla --save-session f", "--beams and --save-session exclude each other"),
        ("--best-of 3 --temperature 0", "--best-of 3 at --temperature 0 are 3 times the same"),
        ("--length-penalty 1", "--length-penalty is for --beams or --best-of"),
        ("--stop 10", "--stop is for --beams or --best-of"),
        ("--beams 2 --stop x", "--stop x: not a number"),
        ("--window x", "--window x: not a number"),
        ("--keep-first", "--keep-first wants a value"),
        ("now", "unknown argument now"),
    ] {
        let message = generate::parse(words(args)).err().unwrap();
        assert!(message.contains(why), "{args}: {message}");
    }
    let args = generate::parse(words("--model no/such/model")).unwrap();
    let Err(generate::Stop::Failed(message)) = pollster::block_on(generate::run(&args)) else { panic!() };
    assert!(message.contains("no/such/model"), "{message}");
    for (args, why) in
        [("--beams 2 --length-penalty 11", "length_penalty: 11 is"), ("--best-of 2 --stop 256", "stop_token")]
    {
        let models = checkout("examples/models");
        let args = generate::parse(words(&format!("--models {models} --variant mla {args}"))).unwrap();
        let Err(generate::Stop::Failed(message)) = pollster::block_on(generate::run(&args)) else { panic!("{why}") };
        assert!(message.contains(why), "{message}");
    }
    let models = checkout("examples/models");
    // Further than the model's 1,024 positions in a cache of some 300 tokens.
    let windowed = format!("--models {models} --variant gta --window 64 --keep-first 4 --tokens 1030");
    let args = generate::parse(words(&windowed)).unwrap();
    assert!(pollster::block_on(generate::run(&args)).is_ok());
    let alone = generate::parse(words(&format!("--models {models} --variant gta --keep-first 4"))).unwrap();
    let Err(generate::Stop::Failed(message)) = pollster::block_on(generate::run(&alone)) else { panic!() };
    assert!(message.contains("keep_first: 4 without a window"), "{message}");
}

#[test]
fn save_speed_measures_a_small_cache() {
    for (args, why) in [
        ("--mib 0", "--mib 0: not a number"),
        ("--page-size", "--page-size wants a value"),
        ("--fast 1", "unknown argument --fast"),
    ] {
        let message = save_speed::parse(words(args)).err().unwrap();
        assert!(message.contains(why), "{args}: {message}");
    }
    let mut out = Vec::new();
    let args = save_speed::parse(words("--mib 3 --repeats 1")).unwrap();
    pollster::block_on(save_speed::run(&args, &mut out)).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("save ") && out.contains("load ") && out.contains('%'), "{out}");
    let args = save_speed::parse(words("--mib 1 --folder /no/such/folder")).unwrap();
    let message = pollster::block_on(save_speed::run(&args, &mut Vec::new())).unwrap_err();
    assert!(message.contains("/no/such/folder"), "{message}");
}

/// Text in two runs is that of one.
#[test]
fn generate_goes_on_with_a_saved_session() {
    let folder = std::env::temp_dir().join(format!("latten-generate-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let models = checkout("examples/models");
    let generate = |args: &str| {
        let args = args.replace("@", &format!("{}/", folder.display()));
        let args = generate::parse(words(&format!("--models {models} --variant mla --temperature 0 {args}"))).unwrap();
        match pollster::block_on(generate::run(&args)) {
            Ok(()) => String::new(),
            Err(generate::Stop::Failed(message)) => message,
            Err(generate::Stop::ReaderGone) => panic!("nobody reads"),
        }
    };
    assert_eq!(generate("--tokens 24 --save-session @whole"), "");
    assert_eq!(generate("--tokens 10 --save-session @half"), "");
    assert_eq!(generate("--tokens 14 --load-session @half --save-session @both"), "");
    assert_eq!(generate("--tokens 2 --load-session @both --prompt A --save-session @more"), "");
    let tokens = |name: &str| {
        let info = latten::cache::saved_info(std::fs::File::open(folder.join(name)).unwrap()).unwrap();
        info.sequences[0].tokens.clone()
    };
    assert_eq!((tokens("half").len(), tokens("whole").len()), (17, 31));
    assert_eq!(tokens("both"), tokens("whole"));
    assert_eq!(tokens("more")[..32], [&tokens("whole")[..], &[65]].concat());
    assert!(generate("--load-session @none").contains("none: "));
    std::fs::write(folder.join("half"), "no session").unwrap();
    let message = generate("--load-session @half");
    assert!(message.contains("half") && message.contains("ends at byte 10"), "{message}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The number after `name="` in an SVG element.
fn attribute(element: &str, name: &str) -> f64 {
    let (_, rest) = element.split_once(&format!(" {name}=\"")).unwrap_or_else(|| panic!("no {name} in {element}"));
    rest.split('"').next().unwrap().parse().unwrap()
}

/// The picture of a run that was measured once: all of it inside its frame, each point numbered, no two numbers on top
/// of each other.
#[test]
fn kernel_table_draws_an_earlier_run() {
    let json = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/h200-2026-11-23.json");
    let svg = kernel_table::drawn(json.to_str().unwrap()).unwrap();
    let (width, height) = (attribute(&svg, "width"), attribute(&svg, "height"));
    let texts: Vec<&str> = svg.lines().filter(|line| line.starts_with("<text")).collect();
    for text in &texts {
        let (x, y) = (attribute(text, "x"), attribute(text, "y"));
        assert!((0.0..width).contains(&x) && (0.0..height).contains(&y), "{text}");
    }
    let rows = svg.matches(" L8192").count() + svg.matches(" L131072").count() + svg.matches("ragged").count();
    assert_eq!(rows + svg.matches("15x1024").count(), 24, "names in the legend");
    // Each row in the plot and in the legend, and the kinds of marker.
    assert_eq!(svg.matches("<circle").count(), 2 * 24 + 2);
    let numbers: Vec<(f64, f64)> = texts
        .iter()
        .filter(|text| text.contains("font-size=\"10\""))
        .map(|text| (attribute(text, "x"), attribute(text, "y")))
        .collect();
    assert_eq!(numbers.len(), 24);
    for (i, a) in numbers.iter().enumerate() {
        for b in &numbers[i + 1..] {
            assert!((a.0 - b.0).abs() > 6.0 || (a.1 - b.1).abs() > 8.0, "numbers at {a:?} and {b:?}");
        }
    }
    assert!(svg.contains("streaming read 4591 GB/s") && svg.contains("f32 multiply-add 42.1 TFLOP/s"));
    assert!(kernel_table::drawn("tests/vectors/kernel_gla_1.json").is_err());
    assert!(kernel_table::drawn("nowhere.json").is_err());
}

/// A model small enough for a software GPU; the numbers are those of a run, their arithmetic is checked.
#[test]
fn prefill_table_measures_a_small_model() {
    let complaint = |args| prefill_table::parse(words(args)).err().unwrap_or_default();
    for (args, why) in [
        ("--size 2b", "no size 2b"),
        ("--variants gla-2,rwkv", "no variant rwkv"),
        ("--paths implicit", "no path implicit"),
        ("--tokens 0", "--tokens 0: not a number"),
        ("--lengths 63", "need 64 tokens"),
        ("--memory -1", "--memory -1: no size"),
        ("--json", "--json needs a value"),
    ] {
        assert!(complaint(args).contains(why), "{args}: {}", complaint(args));
    }
    let json = std::env::temp_dir().join(format!("latten-prefill-{}.json", std::process::id()));
    let small =
        "--size 183m --layers 1 --vocab 300 --variants gqa-4,gla-2 --tokens 65 --chunk 65 --batch 2 --lengths 128";
    // A token of a layer has 576 bytes: one sequence of GLA fits, none of GQA with its 1,024.
    let args = format!("{small} --memory 0.0001 --tier portable --json {}", json.display());
    let mut out = Vec::new();
    pollster::block_on(prefill_table::run(&prefill_table::parse(words(&args)).unwrap(), &mut out)).unwrap();
    let (out, table) = (String::from_utf8(out).unwrap(), std::fs::read_to_string(&json).unwrap());
    std::fs::remove_file(&json).unwrap();
    let table: Value = serde_json::from_str(&table).unwrap();
    let text = |row: &Value| [&row["variant"], &row["path"]].map(|v| v.as_str().unwrap().to_string()).join(" ");
    let rows: Vec<String> = table["prefill"].as_array().unwrap().iter().map(text).collect();
    assert_eq!(rows, ["gqa-4 -", "gla-2 absorbed", "gla-2 explicit", "gla-2 auto"], "{out}");
    let number = |row: &Value, name: &str| row[name].as_f64().unwrap();
    for row in table["prefill"].as_array().unwrap() {
        // Matrices of a layer of GLA: MLP, o, down and up of queries and of keys and values; of GQA q, k, v.
        let projections = match text(row).starts_with("gla") {
            true => 512 * 768 + 12 * 96 * 512 + (256 + 32) * 768 + 12 * 128 * 128,
            false => (12 + 8) * 64 * 768,
        };
        let rope = if text(row).starts_with("gla") { 32 } else { 0 };
        let flop = 2.0 * (65 * (3 * 2112 * 768 + 768 * 768 + projections) + 65 * 33 * 12 * (128 + rope)) as f64;
        assert!((number(row, "tflop") * 1e12 - flop).abs() < 1.0, "{row}, wanted {flop}");
        let rate = number(row, "tflop") / number(row, "ms") * 1e3;
        assert!((rate / number(row, "tflops") - 1.0).abs() < 1e-9, "{row}");
    }
    let decode = &table["decode"][0];
    let cut =
        ["batch", "wanted_batch", "length", "bytes_per_token_and_layer"].map(|name| decode[name].as_u64().unwrap());
    assert_eq!((table["decode"].as_array().unwrap().len(), cut), (1, [1, 2, 128, 576]), "{out}");
    assert!(out.contains("1 (of 2)"), "{out}");
}
