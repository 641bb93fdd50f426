//! The texts of the attention kernels (append, decode, merge), over a representative set of layouts: for people who want
//! to read a shader, and for the tests that validate and translate them all. Needs no GPU.

use crate::attention::kernels::select::{Device, KernelShape};
use crate::attention::kernels::spec::{cached_rows_spec, join_spec, kernel_spec, merge_spec};
use crate::attention::kernels::tile::ShapeLimits;
use crate::attention::AttentionOptions;
use crate::cache::{pages_rows_spec, Direction};
use crate::error::Result;
use crate::gpu::shader::Assembled;
use crate::gpu::{Access, Const, DType, KernelSpec, Tier, MATRIX_WORKGROUP_BYTES, PORTABLE_WORKGROUP_BYTES};
use crate::kv::append::append_spec;
use crate::kv::pool::with_slabs;
use crate::kv::{Gla, Gqa, Gta, HeadLayout, Mla};
use crate::rope::RopePairs;
use std::collections::HashSet;

/// One assembled kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Variant {
    /// The kernel: `append`, `decode`, `merge`, ...
    pub name: &'static str,
    /// What it was made for, and the constants and parts that tell it from its siblings, for example
    /// `gla-2x256+64 128 heads f16: TOKENS=8 .. of kv/element/f16 .. decode`.
    pub label: String,
    /// What the device must have to run it.
    pub tier: Tier,
    /// The text given to wgpu.
    pub wgsl: String,
    /// The same with each line's origin in a comment.
    pub annotated: String,
    /// Bytes of `var<workgroup>` that the host reckons with.
    pub workgroup_bytes: usize,
    /// For storage bindings 1, 2, ..: whether the kernel may write there. Binding 0 is the uniform block.
    pub writable: Vec<bool>,
}

/// The attention kernels over a set of layouts that reaches each part and slot; no text twice.
///
/// ```
/// let merges = latten::inspect::variants()?.into_iter().filter(|v| v.name == "merge");
/// assert!(merges.count() > 0);
/// # Ok::<(), latten::Error>(())
/// ```
///
/// # Errors
///
/// Those of a constructor of [`HeadLayout`]; none is known.
pub fn variants() -> Result<Vec<Variant>> {
    let mut all = attention()?;
    let copy = crate::cache::copy_spec();
    all.extend([1, 2, 4].map(|slabs| ("whole pages".into(), with_slabs(&copy, slabs))));
    all.extend(crate::nn::specs()?);
    all.push(("64 lanes".into(), crate::gpu::parallelism::spec()));
    let mut seen = HashSet::new();
    // Most texts come several times: only of those that stay are the lines annotated.
    let new = all.into_iter().filter_map(|(what, spec)| {
        let source = spec.assemble();
        seen.insert(source.text.clone()).then(|| variant(&what, &spec, source))
    });
    Ok(new.collect())
}

/// A label and what it belongs to.
type Labelled = (String, KernelSpec);

fn attention() -> Result<Vec<Labelled>> {
    let mut all = Vec::new();
    for (name, heads) in layouts()? {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4] {
            if heads.wide_dim() > 0 && !matches!(dtype, DType::I8 | DType::I4) {
                continue;
            }
            // The text differs from f16's in one slot.
            if dtype == DType::BF16 && heads.q_heads() > 8 {
                continue;
            }
            let what = format!("{name} {} heads {dtype}", heads.q_heads());
            // Lanes in step of software GPUs and of desktop ones: the choice of workgroup size depends on them.
            for (tier, lanes, workgroup_bytes) in [
                (Tier::Portable, 4, PORTABLE_WORKGROUP_BYTES),
                (Tier::Portable, 32, PORTABLE_WORKGROUP_BYTES),
                (Tier::Subgroup, 8, PORTABLE_WORKGROUP_BYTES),
                (Tier::Subgroup, 32, PORTABLE_WORKGROUP_BYTES),
                (Tier::Matrix, 32, MATRIX_WORKGROUP_BYTES),
            ] {
                let limits = ShapeLimits { workgroup_bytes, subgroup_size: lanes };
                let device = Device { limits, tier, subgroup_min: lanes };
                let mut shapes = KernelShape::all(&heads, dtype, &device)?;
                let others: Vec<_> = shapes.iter().map(|shape| shape.for_few(&heads, dtype, &device)).collect();
                shapes.extend(others.into_iter().flat_map(|(squads, short)| [squads, short]).flatten());
                if heads.heads_per_group() == 1 {
                    shapes.push(KernelShape::tallest(&heads, dtype, &device)?);
                }
                for shape in shapes {
                    // A device of more memory has other tiles, too; the portable ones stand for them.
                    if tier == Tier::Matrix && !matches!(shape, KernelShape::Matrix(_)) {
                        continue;
                    }
                    for options in options(&heads) {
                        let spec = kernel_spec(&heads, dtype, &options, &shape)?;
                        // Options and slabs do not meet in one line.
                        let plain = options == AttentionOptions::default();
                        all.extend(slabs(&heads, plain).iter().map(|slabs| (what.clone(), with_slabs(&spec, *slabs))));
                        all.push((what.clone(), merge_spec(&heads, &options, shape.rows())));
                    }
                }
            }
            if heads.state_dim() == heads.nope_dim() {
                let (what, spec) = (format!("{what} rows"), cached_rows_spec(&heads, dtype, 3 * heads.kv_dim())?);
                all.extend(slabs(&heads, true).iter().map(|slabs| (what.clone(), with_slabs(&spec, *slabs))));
            }
            all.push((what.clone(), join_spec(&heads)));
            for direction in [Direction::FromPages, Direction::ToPages] {
                let (what, spec) = (format!("{what} {direction:?}"), pages_rows_spec(&heads, dtype, direction));
                all.extend(slabs(&heads, true).iter().map(|slabs| (what.clone(), with_slabs(&spec, *slabs))));
            }
            for (rotation, page_size) in [(RopePairs::None, 1), (RopePairs::Half, 64), (RopePairs::Interleaved, 4096)] {
                let Ok(spec) = append_spec(&heads, dtype, page_size, rotation) else { continue };
                let what = format!("{what} rotation {rotation:?}");
                all.extend(slabs(&heads, true).iter().map(|slabs| (what.clone(), with_slabs(&spec, *slabs))));
            }
        }
    }
    Ok(all)
}

/// In how many slabs the pages of a kernel lie: several for a few layouts.
fn slabs(heads: &HeadLayout, plain: bool) -> &'static [usize] {
    match plain && [3, 8].contains(&heads.q_heads()) {
        true => &[1, 2, 4],
        false => &[1],
    }
}

/// None; and for a few layouts all at once, since options do not meet in one line of the kernels, and a tree.
fn options(heads: &HeadLayout) -> Vec<AttentionOptions> {
    let mut some = vec![AttentionOptions::default()];
    if [3, 8].contains(&heads.q_heads()) {
        let all = AttentionOptions { softcap: Some(50.0), window: Some(1000), keep_first: 4, sinks: true, tree: false };
        some.extend([all, AttentionOptions { tree: true, ..Default::default() }]);
    }
    some
}

/// Real shapes, and odd ones: one head, heads that fill no block, widths that fill no word.
fn layouts() -> Result<Vec<(String, HeadLayout)>> {
    let mut all = Vec::new();
    for (q_heads, kv_heads, head_dim) in
        [(1, 1, 32), (3, 3, 20), (32, 8, 128), (9, 1, 48), (128, 1, 512), (8, 4, 64), (2, 1, 1)]
    {
        all.push((format!("gqa-{kv_heads}x{head_dim}"), HeadLayout::gqa(Gqa { q_heads, kv_heads, head_dim })?));
    }
    for (q_heads, kv_heads, head_dim, wide) in [(32, 8, 128, 8), (8, 4, 64, 4), (3, 3, 20, 2)] {
        let heads = HeadLayout::gqa_wide(Gqa { q_heads, kv_heads, head_dim }, wide)?;
        all.push((format!("gqa-{kv_heads}x{head_dim} wide {wide}"), heads));
    }
    for (q_heads, kv_heads, head_dim, rope_dim) in
        [(32, 8, 128, 64), (4, 4, 12, 6), (63, 1, 96, 48), (12, 4, 64, 32), (8, 2, 100, 4), (6, 2, 32, 0)]
    {
        let heads = HeadLayout::gta(Gta { q_heads, kv_heads, head_dim, rope_dim })?;
        all.push((format!("gta-{kv_heads}x{head_dim}+{rope_dim}"), heads));
    }
    for (q_heads, latent_heads, latent_dim, rope_dim) in
        [(128, 2, 256, 64), (16, 2, 128, 32), (8, 8, 64, 32), (64, 4, 192, 32), (126, 2, 12, 6)]
    {
        let heads = HeadLayout::gla(Gla { q_heads, latent_heads, latent_dim, rope_dim })?;
        all.push((format!("gla-{latent_heads}x{latent_dim}+{rope_dim}"), heads));
    }
    for (q_heads, nope_dim, v_dim, rope_dim) in [(16, 128, 128, 64), (8, 48, 64, 0), (3, 20, 6, 2)] {
        let heads = HeadLayout::explicit(q_heads, nope_dim, v_dim, rope_dim)?;
        all.push((format!("explicit-{nope_dim}+{rope_dim} values {v_dim}"), heads));
    }
    for (q_heads, latent_dim, rope_dim) in [(128, 512, 64), (16, 256, 32), (16, 1792, 64)] {
        all.push((format!("mla-{latent_dim}+{rope_dim}"), HeadLayout::mla(Mla { q_heads, latent_dim, rope_dim })?));
    }
    Ok(all)
}

fn variant(what: &str, spec: &KernelSpec, source: Assembled) -> Variant {
    let numbers: Vec<String> = spec.consts.iter().filter_map(|(name, value)| number(name, *value)).collect();
    let parts: Vec<&str> = spec.parts.iter().map(|part| part.name.trim_end_matches(".wgsl")).collect();
    Variant {
        name: spec.name,
        tier: spec.tier(),
        label: format!("{what}: {} of {}", numbers.join(" "), parts.join(" ")),
        annotated: source.annotated(),
        wgsl: source.text,
        workgroup_bytes: spec.workgroup_bytes,
        writable: spec.bindings.iter().map(|access| *access == Access::Write).collect(),
    }
}

/// `TOKENS=8`; types follow from the numbers.
fn number(name: &str, value: Const) -> Option<String> {
    match value {
        Const::U32(v) => Some(format!("{name}={v}")),
        Const::F32(bits) => Some(format!("{name}={}", f32::from_bits(bits))),
        Const::Alias(_) | Const::Enable => None,
    }
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
