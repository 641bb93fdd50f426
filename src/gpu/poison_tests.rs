//! No kernel reads workgroup memory before it has written it: pipelines are made without zero-initialised workgroup
//! memory, so this is proved by filling it with NaN at each kernel's start, and finding the same bits at the end.

#[path = "../../tests/common/checkout.rs"]
mod checkout;

use super::{Gpu, GpuOptions};
#[cfg(feature = "model")]
use crate::model::{Decoder, Draw, Session, SessionOptions};
use crate::DType;
use std::sync::atomic::Ordering;

/// The text with every `var<workgroup>` array filled with NaN (or an absurd index) when `main` begins.
pub(super) fn poisoned(wgsl: &str) -> String {
    let arrays = wgsl.lines().filter_map(|line| {
        let (name, ty) = line.strip_prefix("var<workgroup> ")?.split_once(": array<")?;
        let (element, len) = ty.split_once(">;")?.0.rsplit_once(", ")?;
        Some((name, element, len))
    });
    // Not a constant expression, which a NaN may not be.
    let mut fill = String::from("    var poison_bits = 0x7fc00000u;\n    let poison = bitcast<f32>(poison_bits);\n");
    for (name, element, len) in arrays {
        let value = match element {
            "u32" => "0x7fffffffu",
            "vec4<u32>" => "vec4<u32>(0x7e007e00u)",
            "PoolWord" => "PoolWord(0x7e007e00u)",
            "f32" => "poison",
            "vec4<f32>" => "vec4<f32>(poison)",
            "Rows" => "Rows(poison)",
            other => panic!("poison of {other}"),
        };
        fill += &format!("    for (var p = 0u; p < {len}; p++) {{\n        {name}[p] = {value};\n    }}\n");
    }
    fill += "    workgroupBarrier();\n";
    let main = wgsl.find("fn main(").unwrap();
    let body = main + wgsl[main..].find(") {\n").unwrap() + 4;
    format!("{}{fill}{}", &wgsl[..body], &wgsl[body..])
}

/// Logits of a prompt in two chunks and of three single tokens, and tokens drawn: every kernel that has workgroup
/// memory (decode of few and many rows, both linears, norm, sample).
#[cfg(feature = "model")]
fn bits(variant: &str, kv_dtype: DType, poison: bool) -> Vec<u32> {
    let gpu = pollster::block_on(Gpu::with_options(GpuOptions::default())).expect("a GPU adapter");
    gpu.inner.poison_workgroup.store(poison, Ordering::Relaxed);
    let folder = checkout::checkout(&format!("examples/models/{variant}"));
    let decoder = Decoder::load(&gpu, folder, DType::F16).unwrap();
    let mut session = Session::new(&decoder, SessionOptions { kv_dtype, ..Default::default() }).unwrap();
    let id = session.insert();
    let prompt: Vec<u32> = (0..150).map(|i| 97 + i * 7 % 26).collect();
    let mut out = Vec::new();
    let mut tokens = prompt.as_slice();
    let greedy = [Draw::default()];
    let mut last;
    for _ in 0..3 {
        let logits = pollster::block_on(session.logits(&[(id, tokens)])).unwrap();
        out.extend(logits.iter().flatten().map(|l| l.to_bits()));
        last = pollster::block_on(session.next_tokens(&[(id, &[32])], &greedy)).unwrap();
        out.extend(&last);
        tokens = &last;
    }
    assert!(out.iter().any(|b| *b != 0));
    out
}

#[cfg(feature = "model")]
fn is_written_before_it_is_read(models: [(&str, DType); 2]) {
    for (variant, kv_dtype) in models {
        assert_eq!(bits(variant, kv_dtype, false), bits(variant, kv_dtype, true), "{variant} {kv_dtype}");
    }
}

/// Grouped states with separate keys and values, and tied ones, in i4, which has words of its own.
#[cfg(feature = "model")]
#[test]
fn workgroup_memory_of_groups_is_written_before_it_is_read() {
    is_written_before_it_is_read([("gqa", DType::F16), ("gta", DType::I4)]);
}

/// Latents with a rope key; i8 has scales and an append of its own.
#[cfg(feature = "model")]
#[test]
fn workgroup_memory_of_latents_is_written_before_it_is_read() {
    is_written_before_it_is_read([("gla", DType::F16), ("gla", DType::I8)]);
}

#[test]
fn a_kernel_that_reads_first_would_be_found() {
    let wgsl = "var<workgroup> a: array<f32, 8>;\nfn main(lane: u32) {\n    let x = a[lane];\n}\n";
    let text = poisoned(wgsl);
    assert!(text.find("a[p] = poison").unwrap() < text.find("let x").unwrap());
}
