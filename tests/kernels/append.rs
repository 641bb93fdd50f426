//! Append, seen in the memory itself: the whole pool against an image made on the host.

use crate::common::{gpu, layouts, small, wait, Rng};
use half::{bf16, f16};
use latten::kv::{Append, AppendArgs, KvSource, Span, StateLayout};
use latten::reference;
use latten::{
    CacheOptions, DType, Gla, Gpu, Gqa, Gta, HeadLayout, PagedKvCache, Pages, Rope, RopePairs, SeqId, Tensor,
};

/// The bits of a layer's pool, slab after slab.
pub fn pool(gpu: &Gpu, cache: &PagedKvCache, layer: usize) -> Vec<u32> {
    let mut all = Vec::new();
    for slab in cache.layer(layer).unwrap().wgpu_buffers() {
        let words = slab.size() as usize / 4;
        let tensor = Tensor::from_wgpu(gpu, slab, &[words], DType::U32).unwrap();
        all.extend(wait(gpu.download::<u32>(&tensor)).unwrap());
    }
    assert_eq!(all.len(), cache.pool_bytes() / cache.pages().layers / 4);
    all
}

/// The element at each place of a row: `(u32 of the pool, half of it, element of the row or padding)`.
fn places(heads: &HeadLayout, dtype: DType, page_size: usize, slot: usize) -> Vec<(usize, usize, Option<usize>)> {
    let layout = StateLayout::new(heads, dtype);
    let per_u32 = if dtype == DType::F32 { 1 } else { 2 };
    let page_words = page_size * layout.row_words(heads.groups());
    let (page, offset) = (slot / page_size * page_words, slot % page_size);
    let mut places = Vec::new();
    let mut span = |first_word: usize, words: usize, first: usize, elements: usize| {
        for e in 0..words * layout.elems_per_word {
            let at = 4 * first_word + e / per_u32;
            places.push((at, e % per_u32, (e < elements).then_some(first + e)));
        }
    };
    for g in 0..heads.groups() {
        let state = page + g * page_size * layout.state_words + offset * layout.state_words;
        let first = g * heads.state_dim();
        if heads.v_offset() == 0 {
            span(state, layout.state_words, first, heads.state_dim());
        } else {
            span(state, layout.key_words, first, heads.nope_dim());
            span(state + layout.value_first, layout.value_words, first + heads.v_offset(), heads.v_dim());
        }
    }
    let rope = page + heads.groups() * page_size * layout.state_words + offset * layout.rope_words;
    span(rope, layout.rope_words, heads.groups() * heads.state_dim(), heads.rope_dim());
    places
}

struct Check {
    heads: HeadLayout,
    dtype: DType,
    page_size: usize,
    rotation: RopePairs,
}

impl Check {
    /// Appends at `positions` (one sequence each, the tokens before them reserved and never written) into memory full
    /// of a pattern, and compares all of it. Returns how many f16 were not rounded to nearest even.
    fn run(&self, positions: &[usize], new: usize, values: impl Fn(&mut Rng) -> f32) -> usize {
        let Check { heads, dtype, page_size, rotation } = *self;
        let gpu = gpu();
        let count = positions.iter().map(|p| (p + new).div_ceil(page_size)).sum::<usize>() + 1;
        let width = match heads.rope_dim() {
            0 if heads.v_offset() == 0 => 0,
            0 => heads.nope_dim(),
            rope_dim => rope_dim,
        };
        let table = reference::inv_freq(10_000.0, width).unwrap();
        let inv_freq: Vec<f32> = table.iter().map(|v| *v as f32).collect();
        let rope = (rotation != RopePairs::None).then_some(Rope { inv_freq, pairs: rotation });
        let options = CacheOptions::new(dtype, Pages { count, size: page_size, layers: 2 });
        let mut cache = PagedKvCache::new(gpu, heads, CacheOptions { rope, ..options }).unwrap();
        for layer in 0..2 {
            let view = cache.layer(layer).unwrap();
            let slab = &view.wgpu_buffers()[0];
            gpu.queue().write_buffer(slab, 0, &vec![0xa5; slab.size() as usize]);
        }
        let ids: Vec<SeqId> = positions.iter().map(|_| cache.insert()).collect();
        for (id, &position) in ids.iter().zip(positions).filter(|(_, p)| **p > 0) {
            cache.reserve(&[*id], position).unwrap();
            cache.commit(&[*id], position).unwrap();
        }
        cache.reserve(&ids, new).unwrap();
        let mut rng = Rng(41);
        let tokens = ids.len() * new;
        let kv: Vec<f32> = (0..tokens * heads.kv_dim()).map(|_| values(&mut rng)).collect();
        let tensor = Tensor::from_slice(gpu, &[tokens, heads.kv_dim()], &kv, DType::F32).unwrap();
        cache.append(1, &ids, &tensor).unwrap();
        assert!(pool(gpu, &cache, 0).iter().all(|w| *w == 0xa5a5_a5a5), "the other layer was written");

        let pairs = if rotation == RopePairs::Interleaved {
            reference::RopePairs::Interleaved
        } else {
            reference::RopePairs::Half
        };
        let rotate = reference::Rope { inv_freq: table, pairs, angles: reference::Angles::F32 };
        let (mut got, batch) = (pool(gpu, &cache, 1), cache.batch(&ids).unwrap());
        let mut uneven = 0;
        for (t, row) in kv.chunks_exact(heads.kv_dim()).enumerate() {
            let mut want: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
            if rotation != RopePairs::None {
                reference::append(&heads, &mut want, batch.positions[t], &rotate).unwrap();
            }
            for (at, half, element) in places(&heads, dtype, page_size, batch.slots[t] as usize) {
                let what = format!("{heads:?} {dtype} {rotation:?} token {t} element {element:?}");
                match (dtype, element) {
                    (DType::F32, None) => assert_eq!(got[at], 0, "{what}: padding"),
                    (_, None) => assert_eq!(got[at] >> (16 * half) & 0xffff, 0, "{what}: padding"),
                    (DType::F32, Some(e)) => close_f32(&what, f32::from_bits(got[at]), want[e], row[e], &want),
                    (DType::BF16, Some(e)) => {
                        let bits = (got[at] >> (16 * half) & 0xffff) as u16;
                        close_bf16(&what, bf16::from_bits(bits), want[e], row[e]);
                    }
                    (_, Some(e)) => {
                        let bits = (got[at] >> (16 * half) & 0xffff) as u16;
                        uneven += close_f16(&what, f16::from_bits(bits), want[e], row[e]);
                    }
                }
            }
            // What was checked counts as untouched from here on.
            for (at, ..) in places(&heads, dtype, page_size, batch.slots[t] as usize) {
                got[at] = 0xa5a5_a5a5;
            }
        }
        let touched = got.iter().position(|w| *w != 0xa5a5_a5a5);
        assert_eq!(touched, None, "{heads:?} {dtype}: u32 {touched:?} of the pool belongs to nobody");
        uneven
    }
}

/// A value that is not rotated arrives bit for bit; one that is, within two roundings of its pair's size.
fn close_f32(what: &str, got: f32, want: f64, raw: f32, row: &[f64]) {
    if want == f64::from(raw) {
        return assert_eq!(got.to_bits(), raw.to_bits(), "{what}: {got}, wanted {raw}");
    }
    let size = row.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    assert!((f64::from(got) - want).abs() <= size * 3.0 * 2f64.powi(-24), "{what}: {got}, wanted {want}");
}

/// Within one unit in the last place (the rotation's own f32 rounding may tip it); 1 if it is not the nearest.
fn close_f16(what: &str, got: f16, want: f64, raw: f32) -> usize {
    let nearest = f16::from_f64(want.clamp(-65504.0, 65504.0));
    // f16 in order of size: the bits of positive ones count up, of negative ones down.
    let order = |v: f16| i32::from(v.to_bits() & 0x7fff) * if v.is_sign_negative() { -1 } else { 1 };
    let off = (order(got) - order(nearest)).abs();
    // Infinity is one unit past the largest, and still wrong.
    assert!(off <= 1 && got.is_finite(), "{what}: {got}, wanted {want}, raw {raw}");
    usize::from(off != 0 && want == f64::from(raw))
}

/// The nearest bf16, ties to even, bit for bit; what is rotated within a unit in the last place.
fn close_bf16(what: &str, got: bf16, want: f64, raw: f32) {
    let largest = f64::from(bf16::MAX);
    if want.is_nan() || want == f64::from(raw) {
        // From the f32: an f64 on its way to bf16 would be rounded once, as the f32 is.
        let nearest = bf16::from_f32(raw.clamp(bf16::MIN.to_f32(), bf16::MAX.to_f32()));
        let same = if raw.is_nan() { got.is_nan() } else { got.to_bits() == nearest.to_bits() };
        return assert!(same, "{what}: {got}, wanted {nearest}, raw {raw:e}");
    }
    let unit = want.abs().max(1e-30) * 2f64.powi(-7);
    assert!((got.to_f64() - want.clamp(-largest, largest)).abs() <= unit, "{what}: {got}, wanted {want}");
}

pub fn layouts_to_append() -> Vec<HeadLayout> {
    let mut all = layouts();
    all.extend([
        HeadLayout::gta(Gta { q_heads: 2, kv_heads: 2, head_dim: 12, rope_dim: 6 }).unwrap(),
        HeadLayout::gqa(Gqa { q_heads: 3, kv_heads: 3, head_dim: 20 }).unwrap(),
        HeadLayout::gqa(Gqa { q_heads: 1, kv_heads: 1, head_dim: 100 }).unwrap(),
        HeadLayout::gla(Gla { q_heads: 2, latent_heads: 2, latent_dim: 10, rope_dim: 4 }).unwrap(),
        HeadLayout::gla(Gla { q_heads: 2, latent_heads: 2, latent_dim: 10, rope_dim: 0 }).unwrap(),
        HeadLayout::gla(Gla { q_heads: 2, latent_heads: 2, latent_dim: 4, rope_dim: 40 }).unwrap(),
    ]);
    all
}

/// Each with one of two page sizes, so that each of the others has both, or with `all` with both: every page size is a kernel.
fn every_layout_rotation_and_dtype(all: bool) {
    let (mut uneven, mut number) = (0, 0);
    for (i, heads) in layouts_to_append().into_iter().enumerate() {
        for (j, dtype) in [DType::F32, DType::F16, DType::BF16].into_iter().enumerate() {
            for (k, rotation) in [RopePairs::None, RopePairs::Half, RopePairs::Interleaved].into_iter().enumerate() {
                for (page, page_size) in [1, 8].into_iter().enumerate() {
                    if all || (i + j + k) % 2 == page {
                        let check = Check { heads, dtype, page_size, rotation };
                        uneven += check.run(&[0, 7, 8, 900], 3, Rng::value);
                        number += 1;
                    }
                }
            }
        }
    }
    println!("{uneven} f16 values of {number} not rounded to nearest even on {}", gpu().capabilities().adapter);
}

#[test]
fn every_layout_rotation_and_dtype_writes_its_rows_and_nothing_else() {
    every_layout_rotation_and_dtype(false);
}

#[test]
#[ignore = "long: both page sizes for all; half a minute of software GPU without a driver's cache"]
fn every_layout_rotation_dtype_and_page_size_writes_its_rows() {
    every_layout_rotation_and_dtype(true);
}

#[test]
fn far_positions_are_rotated_exactly() {
    for heads in [small(), HeadLayout::mha(1, 16).unwrap()] {
        for rotation in [RopePairs::Half, RopePairs::Interleaved] {
            let check = Check { heads, dtype: DType::F32, page_size: 64, rotation };
            check.run(&[65_535, 100_000], 2, Rng::value);
        }
    }
}

/// f16 over its whole range: subnormals, halfway cases, and values beyond it, which become its largest.
#[test]
fn f16_is_rounded_to_nearest_even_and_clamped() {
    let check = Check { heads: layouts()[5], dtype: DType::F16, page_size: 4, rotation: RopePairs::None };
    let uneven = check.run(&[0, 5], 64, |rng| {
        let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
        let halfway = (2049 + 2 * rng.below(1000)) as f32 * 2f32.powi(-11);
        sign * match rng.below(6) {
            0 => [65_504.0, 65_519.0, 65_520.0, 7.0e4, 1.0e30, f32::MAX][rng.below(6)],
            1 => halfway * 2f32.powi(rng.below(24) as i32 - 12),
            2 => (rng.below(4096) as f32 + 0.5) * 2f32.powi(-25),
            3 => 0.0,
            _ => rng.value() * 2f32.powi(rng.below(28) as i32 - 15),
        }
    });
    let adapter = &gpu().capabilities().adapter;
    println!("{uneven} f16 values not rounded to nearest even on {adapter}");
}

/// bf16 over its whole range: halfway cases to both sides, subnormals, the largest, infinities and NaN.
#[test]
fn bf16_is_rounded_to_nearest_even_and_clamped() {
    let check = Check { heads: layouts()[5], dtype: DType::BF16, page_size: 4, rotation: RopePairs::None };
    check.run(&[0, 5], 64, |rng| {
        // Upper half: any; lower half: around nothing, the middle and the end.
        let low = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff][rng.below(6)];
        let bits = (rng.next() as u32 & 0xffff_0000) | low;
        match rng.below(8) {
            0 => {
                [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, 3.39e38, 3.3962e38][rng.below(8)]
            }
            1 => f32::from_bits(0x7f7f_0000 | low),
            2 => f32::from_bits(bits & 0x807f_ffff),
            _ => f32::from_bits(bits),
        }
    });
}

/// 70,001 tokens: two planes of the grid, the second one short.
#[test]
fn every_token_past_a_grid_dimension_is_written_once() {
    let heads = HeadLayout::mha(1, 4).unwrap();
    Check { heads, dtype: DType::F16, page_size: 64, rotation: RopePairs::None }.run(&[5], 70_001, Rng::value);
}

/// Of a token whose slot is past the pool nothing is written: never outside, never at a place that arithmetic makes up.
#[test]
fn slots_past_the_pool_are_written_nowhere() {
    let (gpu, heads, size) = (gpu(), small(), 8);
    let cache =
        PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F32, Pages { count: 5, size, layers: 1 })).unwrap();
    let append = Append::new(gpu, heads, DType::F32, size, RopePairs::None).unwrap();
    let kv = Tensor::from_slice(gpu, &[2, heads.kv_dim()], &vec![1.0; 2 * heads.kv_dim()], DType::F32).unwrap();
    for slot in [40, 41, 1 << 20, 1 << 30, u32::MAX] {
        let before = vec![0u32; cache.pool_bytes() / 4];
        gpu.queue().write_buffer(&cache.layer(0).unwrap().wgpu_buffers()[0], 0, bytemuck::cast_slice(&before));
        let slots = Tensor::from_slice(gpu, &[2], &[slot, 11], DType::U32).unwrap();
        let args = AppendArgs { kv: Span::of(&kv), slots: &slots, cos_sin: &kv, tokens: 2 };
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let layer = cache.layer(0).unwrap();
        append.encode(gpu, &mut encoder.begin_compute_pass(&Default::default()), &layer, args).unwrap();
        gpu.queue().submit([encoder.finish()]);
        let got = pool(gpu, &cache, 0);
        let next: Vec<usize> = places(&heads, DType::F32, size, 11).iter().map(|p| p.0).collect();
        assert!(next.iter().all(|at| got[*at] == 1f32.to_bits()), "slot {slot}: not the next token's either");
        let elsewhere = got.iter().enumerate().find(|(at, word)| **word != 0 && !next.contains(at));
        assert!(elsewhere.is_none(), "slot {slot}: {elsewhere:?}");
    }
}
