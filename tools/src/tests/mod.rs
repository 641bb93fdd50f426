//! The tools as programs: what they accept, what they refuse, and what they measure of something small.

mod perplexity;

use crate::common::arguments::{parsed, Checked};
use crate::common::ceilings::Ceilings;
use crate::common::facts::Facts;
use crate::kernel_table::against::{moved, text, Moved};
use crate::kernel_table::report::Table;
use crate::{kernel_table, linear_table, load_speed, logits, prefill_table, save_speed, Cli};
use clap::CommandFactory;
use pollster::block_on;
use serde_json::{json, Value};

/// A path in the repository, as `examples/models/gla`.
fn checkout(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Why clap, or the tool, refuses these arguments.
fn complaint<A: Checked>(args: &str) -> String {
    parsed::<A>(args).err().unwrap_or_default()
}

#[test]
fn every_tool_has_help_with_its_defaults() {
    let mut command = Cli::command();
    command.build();
    command.clone().debug_assert();
    let names: Vec<String> = command.get_subcommands().map(|tool| tool.get_name().to_string()).collect();
    assert!(names.len() >= 9 && names.contains(&"kernel_table".to_string()), "{names:?}"); // clap adds `help`
    for (name, want) in [
        ("kernel_table", "[default: auto]"),
        ("linear_table", "[possible values: portable, subgroup, matrix]"),
        ("prefill_table", "[default: 1471m]"),
        ("save_speed", "[default: 256]"),
        ("shard_table", "[default: 8192,65536,131072]"),
        ("load_speed", "[default: 2048]"),
        ("logits", "[default: f32]"),
        ("perplexity", "[default: gqa gta gla mla]"),
        ("inspect_shader", "--annotated"),
    ] {
        let help = command.find_subcommand_mut(name).unwrap().render_help().to_string();
        assert!(help.contains(want) && help.contains("Usage: "), "{name}: {help}");
    }
}

#[test]
fn logits_says_what_is_wrong_with_its_arguments() {
    for (args, why) in [
        ("", "<MODEL_DIR>"),
        ("folder", "<TOKEN,TOKEN,..>"),
        ("folder 1,x", "invalid value 'x' for '<TOKEN,TOKEN,..>"),
        ("folder 1,-2", "invalid value '-2'"),
        ("folder 1,2 more", "invalid value 'more'"),
        ("folder 1,2,3 --chunks 1,1", "do not add up to 3"),
        ("folder 1,2 --chunks 2,0", "not a number from 1 on"),
        ("folder 1,2 --dtype f64", "[possible values: f32, f16]"),
        ("folder 1,2 --dtype", "a value is required for '--dtype"),
        ("folder 1,2 --kv-dtype u32", "[possible values: f32, f16, bf16, i8, i4]"),
        ("folder 1,2 --fast", "unexpected argument '--fast'"),
        ("folder 1,2 --greedy few", "invalid value 'few' for '--greedy <N>'"),
        ("folder 1,2 --greedy 3 --all", "cannot be used with"),
        ("folder 1,2 --greedy 3 --chunks 1,1", "cannot be used with"),
    ] {
        let message = complaint::<logits::Args>(args);
        assert!(message.contains(why), "{args}: {message}");
    }
    let args = parsed("no/such/model 1,2").unwrap();
    let message = block_on(logits::run(&args)).unwrap_err().to_string();
    assert!(message.contains("no/such/model"), "{message}");
}

#[test]
fn tables_say_what_is_wrong_with_their_arguments() {
    for (args, why) in [
        ("--from a.json", "it needs --svg or --against"),
        ("--from a.json --json b.json --svg c.svg", "cannot be used with"),
        ("--tier t3", "[possible values: auto, t0, t1, t2]"),
        ("--dtype f16,u32", "[possible values: f32, f16, bf16, i8, i4]"),
        ("--target 0", "not a number from 1 on"),
    ] {
        let message = complaint::<kernel_table::Args>(args);
        assert!(message.contains(why), "{args}: {message}");
    }
    let linear = |args: &str| {
        let command = <linear_table::Args as clap::Args>::augment_args(clap::Command::new("t").no_binary_name(true));
        command.try_get_matches_from(args.split_whitespace()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    for (args, why) in [
        ("--size 0x4", "\"0\" is not a number from 1 to 32768"),
        ("--rows 1,40000", "\"40000\" is not"),
        ("--weights q9", "is none of f32, f16"),
        ("--experts 64", "not N,TOP"),
        ("--sweep 4 --json a.json", "cannot be used with"),
    ] {
        let message = linear(args);
        assert!(message.contains(why), "{args}: {message}");
    }
}

#[test]
fn save_speed_measures_a_small_cache() {
    for (args, why) in [
        ("--mib 0", "invalid value '0' for '--mib <N>': not a number"),
        ("--page-size", "a value is required for '--page-size <N>'"),
        ("--fast 1", "unexpected argument '--fast'"),
    ] {
        let message = complaint::<save_speed::Args>(args);
        assert!(message.contains(why), "{args}: {message}");
    }
    let mut out = Vec::new();
    let args = parsed("--mib 3 --repeats 1").unwrap();
    block_on(save_speed::run(&args, &mut out)).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("save ") && out.contains("load ") && out.contains('%'), "{out}");
    let args = parsed("--mib 1 --folder /no/such/folder").unwrap();
    let message = block_on(save_speed::run(&args, &mut Vec::new())).unwrap_err();
    assert!(message.contains("/no/such/folder"), "{message}");
}

#[test]
fn load_speed_measures_a_small_model() {
    for (args, why) in [
        ("--hidden 100", "invalid value '100' for '--hidden <N>': not a multiple of 256"),
        ("--file i8", "[possible values: f16, bf16, f32, q4_0, "),
        ("--weights bf16", "[possible values: f16, f32, i8, q8_0, q4_0]"),
        ("--layers 0", "invalid value '0' for '--layers <N>': not a number"),
        ("--layers", "a value is required for '--layers <N>'"),
        ("--mib 3", "unexpected argument '--mib'"),
    ] {
        let message = complaint::<load_speed::Args>(args);
        assert!(message.contains(why), "{args}: {message}");
    }
    let folder = std::env::temp_dir().join(format!("latten-load-speed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (files, weights, elements_bytes) in
        [("bf16", "f16", 2.0), ("f32", "i8", 4.0), ("q4_k,q8_0", "f16,f32", 144.0 / 256.0)]
    {
        let args = format!("--layers 1 --hidden 256 --vocab 300 --repeats 1 --file {files} --weights {weights}");
        let args = format!("{args} --folder {}", folder.display());
        let mut out = Vec::new();
        block_on(load_speed::run(&parsed(&args).unwrap(), &mut out)).unwrap();
        let out = String::from_utf8(out).unwrap();
        let matrices = 300 * 256 + 256 * 256 * 5 / 2 + 3 * 256 * 768;
        let rows: Vec<Vec<&str>> = out.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
        let kinds = files.split(',').flat_map(|file| weights.split(',').map(move |weights| [file, weights]));
        assert!(rows.iter().map(|row| [row[0], row[1]]).eq(kinds), "{out}");
        let mib = (f64::from(matrices) * elements_bytes / f64::from(1 << 20)).round();
        assert!(rows[0][2] == mib.to_string() && rows[0][5].ends_with('%') && rows[0][8].ends_with('%'), "{out}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let args = parsed("--layers 1 --folder /no/such/folder").unwrap();
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
    let out = std::env::temp_dir().join(format!("latten-roofline-{}.svg", std::process::id()));
    kernel_table::main(&parsed(&format!("--from {json} --svg {}", out.display())).unwrap()).unwrap();
    let svg = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    let (width, height) = (attribute(&svg, "width"), attribute(&svg, "height"));
    let texts: Vec<(&str, &str)> = svg.split("<text").skip(1).filter_map(|text| text.split_once('>')).collect();
    for (text, _) in &texts {
        let (x, y) = (attribute(text, "x"), attribute(text, "y"));
        assert!((0.0..width).contains(&x) && (0.0..height).contains(&y), "{text}");
    }
    let rows = svg.matches(" L8192").count() + svg.matches(" L131072").count() + svg.matches("ragged").count();
    assert_eq!(rows + svg.matches("15x1024").count(), 24, "names in the legend");
    // Each row in the plot and in the legend, and the kinds of marker.
    assert_eq!(svg.matches("<circle").count(), 2 * 24 + 2);
    let small = |text: &str| (attribute(text, "font-size") - 10.0).abs() < 1e-6;
    let numbers: Vec<(f64, f64)> = texts
        .iter()
        .filter(|(text, _)| small(text))
        .map(|(text, _)| (attribute(text, "x"), attribute(text, "y")))
        .collect();
    assert_eq!(numbers.len(), 24);
    for (i, a) in numbers.iter().enumerate() {
        for b in &numbers[i + 1..] {
            assert!((a.0 - b.0).abs() > 6.0 || (a.1 - b.1).abs() > 8.0, "numbers at {a:?} and {b:?}");
        }
    }
    assert!(svg.contains("streaming read 4591 GB/s") && svg.contains("f32 multiply-add 42.1 TFLOP/s"));
    for path in [checkout("tests/vectors/kernel_gla_1.json"), "nowhere.json".into()] {
        let message = kernel_table::main(&parsed(&format!("--from {path} --svg {}", out.display())).unwrap());
        assert!(message.unwrap_err().contains(&path));
    }
    assert!(!out.exists());
}

/// Rows are found by shape, tier, dtype and cache; less than 3% is noise. Files of earlier versions have neither commit nor
/// date.
#[test]
fn kernel_table_prints_what_moved_since_an_earlier_run() {
    let row = |shape: &str, tier: &str, read: f64, cache: &str| {
        json!({
            "shape": shape, "tier": tier, "dtype": "f16", "workgroups": 1, "us": 1.0, "spread_us": 0.1, "gbps": 1.0,
            "read_percent": read, "tflops": 1.0, "fma_percent": 1.0, "bound": "bytes", "max_error": 0.0, "cache": cache,
        })
    };
    let table = |rows: &[Value], facts: &[(&str, &str)]| -> Table {
        let mut table = json!({"adapter": "one", "read_gbps": 100.0, "fma_tflops": 1.0, "rows": rows});
        facts.iter().for_each(|(name, value)| table[*name] = json!(value));
        serde_json::from_value(table).unwrap()
    };
    let before = table(
        &[
            row("a", "t0", 50.0, "cold"),
            row("a", "t1", 50.0, "cold"),
            row("a", "t0", 90.0, "warm"),
            row("old", "t0", 1.0, "cold"),
        ],
        &[],
    );
    let now = table(
        &[
            row("a", "t0", 51.4, "cold"), // 2.8% more
            row("a", "t1", 48.4, "cold"), // 3.2% less
            row("a", "t0", 93.0, "warm"), // 3.3% more
            row("new", "t0", 1.0, "cold"),
        ],
        &[("commit", "abc"), ("date", "2026-11-30"), ("driver", "1.2"), ("clocks", "compute 1 MHz")],
    );
    let read = |name: &str, before, now| Moved::Read { name: name.into(), before, now };
    let want = [
        read("a t1 f16", 50.0, 48.4),
        read("a t0 f16 warm", 90.0, 93.0),
        Moved::New { name: "new t0 f16".into() },
        Moved::Gone { name: "old t0 f16".into() },
    ];
    assert_eq!(moved(&before, &now), want);
    assert_eq!(moved(&now, &now), []);
    let lines = text(&before, &now);
    assert!(lines.contains("before: commit unknown, unknown, one\nnow:    commit abc, 2026-11-30, one\n"), "{lines}");
    assert!(lines.contains("  50.0 ->   48.4 % of read (-3.2%)"), "{lines}");
    assert!(lines.ends_with("2 of 3 rows moved by more than 3% of their percent of read\n"), "{lines}");
    // A file that is written has the facts, and is read as it was.
    let path = std::env::temp_dir().join(format!("latten-table-{}.json", std::process::id())).display().to_string();
    now.write(&path).unwrap();
    let read = Table::read(&path).unwrap();
    assert_eq!((&read.facts, moved(&now, &read)), (&now.facts, Vec::new()));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4 + 2, "one row to a line");
    // And as a program.
    kernel_table::main(&parsed(&format!("--from {path} --against {path}")).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_file_of_linear_table_says_where_it_comes_from() {
    let facts = Facts { commit: Some("abc".into()), date: Some("2026-11-30".into()), ..Default::default() };
    let ceilings = Ceilings { read_gbps: 12.34, fma_tflops: 0.5, matmul_tflops: None };
    let lines = [1, 2].map(|rows| format!("{{\"rows\":{rows}}}"));
    let text = linear_table::table_text("a \"device\"", &facts, &ceilings, &lines);
    assert_eq!(text.lines().count(), 4, "one row to a line: {text}");
    let table: Value = serde_json::from_str(&text).unwrap();
    let want = json!({
        "adapter": "a \"device\"", "commit": "abc", "date": "2026-11-30", "device": null, "driver": null, "clocks": null,
        "read_gbps": 12.3, "fma_tflops": 0.5, "rows": [{"rows": 1}, {"rows": 2}],
    });
    assert_eq!(table, want);
}

#[test]
fn mha_and_mqa_are_the_ends_of_gqa() {
    let size = prefill_table::models::SIZES[0];
    for (variant, heads) in [("mha", size.heads), ("mqa", 1), ("gqa-4", 4)] {
        let config = size.config(variant, 64).unwrap();
        let found = match config.attention {
            latten::model::AttentionConfig::Gqa { kv_heads } => kv_heads,
            other => panic!("{variant}: {other:?}"),
        };
        assert_eq!(found, heads, "{variant}");
    }
}

/// A model small enough for a software GPU; the numbers are those of a run, their arithmetic is checked.
#[test]
fn prefill_table_measures_a_small_model() {
    for (args, why) in [
        ("--size 2b", "[possible values: 183m, 433m, 876m, 1471m]"),
        ("--variants gla-2,rwkv", "invalid value 'rwkv'"),
        ("--paths implicit", "[possible values: -, absorbed, explicit, auto]"),
        ("--tokens 0", "invalid value '0' for '--tokens <N>': not a number"),
        ("--lengths 63", "need 64 tokens"),
        ("--weights f32", "[possible values: f16, i8]"),
        ("--memory 0", "not a size"),
        ("--memory inf", "not a size"),
        ("--json", "a value is required for '--json <FILE>'"),
    ] {
        let message = complaint::<prefill_table::Args>(args);
        assert!(message.contains(why), "{args}: {message}");
    }
    let json = std::env::temp_dir().join(format!("latten-prefill-{}.json", std::process::id()));
    let small =
        "--size 183m --layers 1 --vocab 300 --variants gqa-4,gla-2 --tokens 65 --chunk 65 --batch 2 --lengths 128";
    // A token of a layer has 576 bytes: one sequence of GLA fits, none of GQA with its 1,024.
    let args = format!("{small} --memory 0.0001 --tier portable --json {}", json.display());
    let mut out = Vec::new();
    block_on(prefill_table::run(&parsed(&args).unwrap(), &mut out)).unwrap();
    let (out, table) = (String::from_utf8(out).unwrap(), std::fs::read_to_string(&json).unwrap());
    std::fs::remove_file(&json).unwrap();
    let table: Value = serde_json::from_str(&table).unwrap();
    let facts = ["device", "date"].map(|name| table[name].as_str().unwrap().to_string());
    assert!(out.contains(&facts[0]) && facts[1].len() == 10 && table["clocks"].is_null(), "{facts:?}");
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
    // Where a step's time goes: all of it is the host's, in parts; and the device has not taken longer than the step.
    for row in decode["breakdown"].as_array().unwrap() {
        let parts = ["record_us", "finish_us", "submit_us", "wait_us", "other_us"].map(|name| number(row, name));
        let (step, all): (f64, f64) = (number(row, "step_us"), parts.iter().sum());
        // What is left of the step is computed, and their sum rounded.
        let whole = all > step * (1.0 - 1e-12);
        assert!(parts[..4].iter().all(|us| *us > 0.0) && whole && all < 1.2 * step, "{row}");
        assert!((11.0..20.0).contains(&number(row, "dispatches")) && row["timed"].is_null(), "{row}");
        if !row["passes"].is_null() {
            let device = number(&row["passes"], "first_to_last_us");
            assert!(device > 0.0 && device < 1.2 * step, "{row}");
        }
    }
    assert!(out.contains("streamed, of 2 steps") && out.contains("one by one, of 2 steps"), "{out}");
    assert_eq!(table["weights"], "f16");
    // Of the first variant: loading is a part of the way, and each pipeline is among those of its kernel.
    let cold = &table["cold_start"];
    assert_eq!((text(cold), number(cold, "prompt")), ("gqa-4 -".into(), 65.0), "{cold}");
    assert!(number(cold, "load_ms") > 0.0 && number(cold, "first_token_ms") > number(cold, "load_ms"), "{cold}");
    let kernels = cold["kernels"].as_array().unwrap();
    let sum = |name: &str| kernels.iter().map(|kernel| number(kernel, name)).sum::<f64>();
    assert_eq!(number(cold, "pipelines"), sum("pipelines"), "{cold}");
    assert!((sum("ms") / number(cold, "compiling_in_all_ms") - 1.0).abs() < 1e-9, "{cold}");
    assert!(number(cold, "compiling_ms") <= sum("ms") * (1.0 + 1e-9) && number(&table, "open_ms") > 0.0, "{cold}");
    assert!(kernels.windows(2).all(|pair| number(&pair[0], "ms") >= number(&pair[1], "ms")), "{cold}");
    assert!(
        kernels.iter().any(|kernel| kernel["kernel"] == "linear_tile" && number(kernel, "longest_ms") > 0.0),
        "{cold}"
    );
    assert!(!out.contains("cold start"), "only with --profile: {out}");
}
