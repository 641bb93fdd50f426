//! Host structs against the WGSL structs they mirror: sizes, names and offsets, through naga's reflection.

use super::*;
use crate::attention::decode::{DecodeParams, MergeParams};
use crate::attention::explicit::CachedRowsParams;
use crate::attention::plan::work::{MergeItem, WorkItem};
use crate::cache::{CopyParams, PageRowsParams};
use crate::gpu::kernel::PARAM_BYTES;
use crate::gpu::parallelism::StreamParams;
use crate::kv::append::AppendParams;
use std::mem::{offset_of, size_of};
use std::sync::OnceLock;

/// All texts, assembled once: that takes seconds.
fn all() -> &'static [Variant] {
    static ALL: OnceLock<Vec<Variant>> = OnceLock::new();
    ALL.get_or_init(|| variants().unwrap())
}

/// Field names, their byte offsets, and the size of a struct of a kernel.
fn reflect(kernel: &str, structure: &str) -> (Vec<(String, usize)>, usize) {
    let variant = all().iter().find(|v| v.name == kernel).unwrap();
    let module = naga::front::wgsl::parse_str(&variant.wgsl).unwrap();
    let (_, ty) = module.types.iter().find(|(_, t)| t.name.as_deref() == Some(structure)).unwrap();
    let naga::TypeInner::Struct { members, span } = &ty.inner else { panic!("{structure} is no struct") };
    let fields = members.iter().map(|m| (m.name.clone().unwrap(), m.offset as usize)).collect();
    (fields, *span as usize)
}

/// The host's side: names as in WGSL, offsets as Rust lays them out.
macro_rules! host {
    ($ty:ty: $($field:ident $(as $name:literal)?),*) => {
        (vec![$((host!(@name $field $($name)?).to_string(), offset_of!($ty, $field))),*], size_of::<$ty>())
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $name:literal) => { $name };
}

#[test]
fn parameter_blocks_match_the_shaders() {
    assert_eq!(
        reflect("append", "Params"),
        host!(AppendParams: token_count, slot_count, slab_pages, kv_offset, kv_row_stride)
    );
    assert_eq!(
        reflect("append_scaled", "Params"),
        host!(AppendParams: token_count, slot_count, slab_pages, kv_offset, kv_row_stride)
    );
    assert_eq!(
        reflect("decode", "Params"),
        host!(DecodeParams: scale_log2, page_count, page_shift, class_index, slab_pages, item_first)
    );
    assert_eq!(reflect("merge", "Params"), host!(MergeParams: class_index, item_first));
    assert_eq!(reflect("pages_rows", "Params"), host!(PageRowsParams: page_shift, slab_pages));
    assert_eq!(reflect("cached_rows", "Params"), host!(CachedRowsParams: first, page_shift, slot_count, slab_pages));
    assert_eq!(reflect("join", "Params"), (vec![("first".into(), 0)], size_of::<u32>()));
    assert_eq!(reflect("stream", "Params"), host!(StreamParams: words, first));
    assert_eq!(reflect("copy_pages", "Params"), host!(CopyParams: copy_count, page_count, page_words, slab_pages));
    for kernel in ["append", "cached_rows", "copy_pages", "decode", "merge", "pages_rows", "stream"] {
        assert!(reflect(kernel, "Params").1 <= PARAM_BYTES, "{kernel}");
    }
}

#[test]
fn plan_items_match_the_shader() {
    let host = host!(WorkItem: page_table_first, q_token_first, q_len, kv_len, row_first, token_first, token_last,
        partial as "partial_row");
    assert_eq!(reflect("decode", "WorkItem"), host);
    let (mut fields, size) = host!(MergeItem: q_token_first, row_first, rows, partial_first, partial_count, reserved);
    // The shader reads five words and skips the padding that makes an item 32 bytes.
    assert_eq!((fields.pop(), size), (Some(("reserved".to_string(), 20)), 32));
    assert_eq!(reflect("merge", "MergeItem").0, fields);
    assert_eq!(size_of::<WorkItem>(), 32);
}

/// The shader unpacks items word by word, so the order of its fields must be that of its reads: checked by the text.
#[test]
fn items_are_read_in_the_order_of_their_fields() {
    let text = include_str!("../shaders/attention/plan.wgsl");
    assert!(text.contains("PLAN_HEADER + 8u * ("), "work items of 8 words");
    assert!(text.contains("plan[1] + 8u * ("), "merge items of 8 words");
    for reads in ["plan[0] + plan[at]", "plan[at + 3u],", "plan[at + 7u],", "plan[at + 4u]);"] {
        assert!(text.contains(reads), "{reads}");
    }
}

#[test]
fn labels_tell_variants_apart_and_no_text_comes_twice() {
    let all = all();
    let labels: HashSet<(&str, &str)> = all.iter().map(|v| (v.name, v.label.as_str())).collect();
    let texts: HashSet<&str> = all.iter().map(|v| v.wgsl.as_str()).collect();
    assert_eq!((labels.len(), texts.len()), (all.len(), all.len()));
    for name in ["append", "decode", "merge"] {
        assert!(labels.iter().any(|(n, _)| *n == name), "{name}");
    }
}

/// The set must reach every lane assignment, or the tests over it prove less than they say.
#[test]
fn the_set_reaches_every_part_and_regime() {
    let all = all();
    let reached = |what: &str| all.iter().any(|v| v.label.contains(what) || v.wgsl.contains(what));
    for what in [
        "ROWS_PER_BLOCK=1 ",
        "ROWS_PER_BLOCK=2 ",
        "ROWS_PER_BLOCK=4 ",
        "KEY_SPLITS=1 ",
        "TOKEN_SPLITS=1 ",
        "UNITS_PER_LANE=1 ",
        "UNITS_PER_LANE=2 ",
        "TOKENS=32 ",
        "TOKENS=1 ",
        "var<private> q_slice",
        "fn query_init(item: WorkItem, group: u32, row_block: u32, first_word: u32) {\n}",
        "i ^ 1u",
        "bitcast<u32>(values[0])",
        "pack2x16float",
        "ROTATED_STATE=128 ",
        "ROTATED_ROPE=64",
        "fn softcap_tanh",
        "WINDOW=1000 ",
        "KEEP_FIRST=4 ",
        "SINK_BINDING=7",
        "SINK_BINDING=5",
        "attention/mask/tree",
        "kv/element/bf16",
        "attention/scales/token",
        "SPANS=1 ",
        "SPANS=2 ",
    ] {
        assert!(reached(what), "no variant has {what}");
    }
}
