//! The tools as programs: what they accept, what they refuse, and what they measure of something small.

mod perplexity;

use crate::{kernel_table, load_speed, logits, prefill_table, save_speed};
use pollster::block_on;
use serde_json::Value;

/// A path in the repository, as `examples/models/gla`.
fn checkout(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
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
    let message = block_on(logits::run(&args)).unwrap_err().to_string();
    assert!(message.contains("no/such/model"), "{message}");
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
    block_on(save_speed::run(&args, &mut out)).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("save ") && out.contains("load ") && out.contains('%'), "{out}");
    let args = save_speed::parse(words("--mib 1 --folder /no/such/folder")).unwrap();
    let message = block_on(save_speed::run(&args, &mut Vec::new())).unwrap_err();
    assert!(message.contains("/no/such/folder"), "{message}");
}

#[test]
fn load_speed_measures_a_small_model() {
    for (args, why) in [
        ("--hidden 100", "--hidden 100: not a multiple of 256"),
        ("--file i8", "--file i8: wanted f16"),
        ("--dtype bf16", "--dtype bf16: wanted f16"),
        ("--layers 0", "--layers 0: not a number"),
        ("--layers", "--layers wants a value"),
        ("--mib 3", "unknown argument --mib"),
    ] {
        let message = load_speed::parse(words(args)).err().unwrap();
        assert!(message.contains(why), "{args}: {message}");
    }
    let folder = std::env::temp_dir().join(format!("latten-load-speed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (file, dtype, bytes) in [("bf16", "f16", 2), ("f32", "i8", 4)] {
        let args = format!("--layers 1 --hidden 256 --vocab 300 --repeats 1 --file {file} --dtype {dtype}");
        let args = format!("{args} --folder {}", folder.display());
        let mut out = Vec::new();
        block_on(load_speed::run(&load_speed::parse(words(&args)).unwrap(), &mut out)).unwrap();
        let out = String::from_utf8(out).unwrap();
        let elements = 300 * 256 + 256 + 2 * 256 + 256 * 256 * 5 / 2 + 3 * 256 * 704;
        assert!(
            out.starts_with(&format!("{} MiB of {file} to {dtype}", (bytes * elements + (1 << 19)) >> 20)),
            "{out}"
        );
        assert!(out.lines().count() == 4 && out.lines().skip(2).all(|line| line.ends_with('%')), "{out}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let args = load_speed::parse(words("--layers 1 --folder /no/such/folder")).unwrap();
    assert!(block_on(load_speed::run(&args, &mut Vec::new())).is_err());
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
    let json = checkout("benches/h200-2026-11-23.json");
    let svg = kernel_table::drawn(&json).unwrap();
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
    assert!(kernel_table::drawn(&checkout("tests/vectors/kernel_gla_1.json")).is_err());
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
    block_on(prefill_table::run(&prefill_table::parse(words(&args)).unwrap(), &mut out)).unwrap();
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
