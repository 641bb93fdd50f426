//! Integer caches: what append writes, seen in the memory itself, and what decode makes of it.

use crate::append::{layouts_to_append, pool};
use crate::case::{Case, Sequence};
use crate::support::{gpu, layouts, tiers, Rng};
use half::f16;
use latten::attention::{Append, AppendArgs, KvSource, StateLayout};
use latten::reference::{self, Pairs};
use latten::{DType, Decode, HeadLayout, PagedKvCache, Pages, Rotation, SeqId, SplitPolicy, Tensor};

/// Where a slot's row lies in the pool (u32s) by the written description of a page, not by the crate's code.
struct Places {
    /// Per group, the first u32 of the state.
    states: Vec<usize>,
    rope: usize,
    scales: usize,
}

fn places(heads: &HeadLayout, page_size: usize, slot: usize) -> Places {
    let state = 4 * state_words(heads);
    let rope = 4 * rope_words(heads);
    let scales = 4 * (heads.groups() * spans(heads).len()).div_ceil(4);
    let page = slot / page_size * page_size * (heads.groups() * state + rope + scales);
    let (offset, planes) = (slot % page_size, page + heads.groups() * page_size * state);
    Places {
        states: (0..heads.groups()).map(|g| page + (g * page_size + offset) * state).collect(),
        rope: planes + offset * rope,
        scales: planes + page_size * rope + offset * scales,
    }
}

/// First element and elements of each span, and its first byte within the state.
fn spans(heads: &HeadLayout) -> Vec<(usize, usize, usize)> {
    match heads.v_offset() {
        0 => vec![(0, heads.state_dim(), 0)],
        at => vec![(0, at, 0), (at, heads.v_dim(), at.next_multiple_of(16))],
    }
}

fn state_words(heads: &HeadLayout) -> usize {
    spans(heads).iter().map(|(_, elements, _)| elements.div_ceil(16)).sum()
}

fn rope_words(heads: &HeadLayout) -> usize {
    2 * heads.rope_dim().div_ceil(16)
}

fn byte(pool: &[u32], first_u32: usize, i: usize) -> i8 {
    (pool[first_u32 + i / 4] >> (8 * (i % 4))) as i8
}

/// The row that a slot of an i8 cache holds: (kv_dim) of integers times scales.
pub fn held(heads: &HeadLayout, page_size: usize, pool: &[u32], slot: usize) -> Vec<f32> {
    let at = places(heads, page_size, slot);
    let mut row = Vec::new();
    for (g, &state) in at.states.iter().enumerate() {
        for (s, (_, elements, byte_first)) in spans(heads).into_iter().enumerate() {
            let scale = f32::from_bits(pool[at.scales + g * spans(heads).len() + s]);
            row.extend((0..elements).map(|i| f32::from(byte(pool, state, byte_first + i)) * scale));
        }
    }
    row.extend(
        (0..heads.rope_dim()).map(|i| f16::from_bits((pool[at.rope + i / 2] >> (16 * (i % 2))) as u16).to_f32()),
    );
    row
}

/// Appends rows into memory full of a pattern and compares all of it with the reference. Returns how many integers are
/// one off, which the f32 of the kernel may make of a value half-way between two.
fn check(heads: HeadLayout, page_size: usize, rotation: Rotation, values: impl Fn(&mut Rng) -> f32) -> usize {
    check_many(heads, page_size, rotation, 3, values)
}

/// The same with `new` tokens of each of three sequences.
fn check_many(
    heads: HeadLayout,
    page_size: usize,
    rotation: Rotation,
    new: usize,
    values: impl Fn(&mut Rng) -> f32,
) -> usize {
    const PATTERN: u32 = 0xa5a5_a5a5;
    let gpu = gpu();
    let pages = Pages { count: 3 * (new + 30).div_ceil(page_size), size: page_size, layers: 1 };
    let mut cache = PagedKvCache::new(gpu, heads, DType::I8, pages).unwrap();
    let layout = StateLayout::new(&heads, DType::I8);
    assert_eq!((layout.state_words, layout.rope_words), (state_words(&heads), rope_words(&heads)));
    let width = match (rotation, heads.rope_dim()) {
        (Rotation::None, _) => 0,
        (_, 0) if heads.v_offset() == 0 => 0,
        (_, 0) => heads.nope_dim(),
        (_, rope_dim) => rope_dim,
    };
    let table = reference::inv_freq(10_000.0, width);
    if rotation != Rotation::None {
        let inv_freq: Vec<f32> = table.iter().map(|v| *v as f32).collect();
        cache = cache.with_rotation(rotation, &inv_freq).unwrap();
    }
    let view = cache.layer(0).unwrap();
    gpu.queue().write_buffer(view.wgpu_buffer(), 0, &vec![0xa5; view.wgpu_buffer().size() as usize]);
    let ids: Vec<SeqId> = (0..3).map(|_| cache.insert()).collect();
    for (id, position) in ids.iter().zip([0, 7, 30]).filter(|(_, p)| *p > 0) {
        cache.reserve(&[*id], position).unwrap();
        cache.commit(&[*id], position).unwrap();
    }
    cache.reserve(&ids, new).unwrap();
    let mut rng = Rng(43);
    let kv: Vec<f32> = (0..3 * new * heads.kv_dim()).map(|_| values(&mut rng)).collect();
    cache.append(0, &ids, &Tensor::from_f32(gpu, &[3 * new, heads.kv_dim()], &kv, DType::F32).unwrap()).unwrap();

    let pairs = if rotation == Rotation::Interleaved { Pairs::Interleaved } else { Pairs::Half };
    let rotate = reference::Rotation { inv_freq: table, pairs, angles: reference::Angles::F32 };
    let (mut got, batch) = (pool(gpu, &cache, 0), cache.batch(&ids).unwrap());
    let mut off_by_one = 0;
    for (t, row) in kv.chunks_exact(heads.kv_dim()).enumerate() {
        let mut want: Vec<f64> = row.iter().map(|v| f64::from(v.clamp(f32::MIN, f32::MAX))).collect();
        if rotation != Rotation::None {
            reference::append(&heads, &mut want, batch.positions[t], &rotate).unwrap();
        }
        let at = places(&heads, page_size, batch.slots[t] as usize);
        let what = format!("{heads:?} {rotation:?} page {page_size} token {t}");
        let spans = spans(&heads);
        for (g, &state) in at.states.iter().enumerate() {
            let mut seen = vec![false; 16 * state_words(&heads)];
            for (s, &(first, elements, byte_first)) in spans.iter().enumerate() {
                let (whole, scale) = reference::quantise_span(&want[g * heads.state_dim() + first..][..elements]);
                let got_scale = f64::from(f32::from_bits(got[at.scales + g * spans.len() + s]));
                assert!(
                    (got_scale - scale).abs() <= 1e-6 * scale,
                    "{what} group {g}: scale {got_scale}, wanted {scale}"
                );
                for (i, q) in whole.iter().enumerate() {
                    let (got, q) = (i32::from(byte(&got, state, byte_first + i)), *q as i32);
                    assert!((got - q).abs() <= 1, "{what} group {g} element {i} of span {s}: {got}, wanted {q}");
                    off_by_one += usize::from(got != q);
                    seen[byte_first + i] = true;
                }
            }
            let padding = (0..seen.len()).find(|i| !seen[*i] && byte(&got, state, *i) != 0);
            assert_eq!(padding, None, "{what} group {g}: padding");
            got[state..state + 4 * state_words(&heads)].fill(PATTERN);
        }
        for i in 0..8 * rope_words(&heads) {
            let bits = (got[at.rope + i / 2] >> (16 * (i % 2))) as u16;
            let want = if i < heads.rope_dim() { want[heads.groups() * heads.state_dim() + i] } else { 0.0 };
            let unit = (want.abs() * 2f64.powi(-10)).max(2f64.powi(-24));
            let got = f16::from_bits(bits).to_f64();
            assert!((got - want.clamp(-65504.0, 65504.0)).abs() <= unit, "{what} rope key {i}: {got}, wanted {want}");
        }
        got[at.rope..at.rope + 4 * rope_words(&heads)].fill(PATTERN);
        let scales = heads.groups() * spans.len();
        let end = scales.next_multiple_of(4);
        assert!(got[at.scales + scales..at.scales + end].iter().all(|w| *w == 0), "{what}: padding of scales");
        got[at.scales..at.scales + end].fill(PATTERN);
    }
    let touched = got.iter().position(|w| *w != PATTERN);
    assert_eq!(touched, None, "{heads:?}: u32 {touched:?} of the pool belongs to nobody");
    off_by_one
}

#[test]
fn append_writes_rows_scales_and_nothing_else() {
    let (mut off, mut all) = (0, 0);
    for heads in layouts_to_append() {
        for (rotation, page_size) in [(Rotation::None, 1), (Rotation::Half, 8), (Rotation::Interleaved, 64)] {
            // Not on a grid, where every other quotient would be half-way between two integers.
            off += check(heads, page_size, rotation, |rng| (rng.value() * 0.731 + rng.uniform() as f32) * 1.037);
            all += 9 * heads.groups() * heads.state_dim();
        }
    }
    println!("{off} of {all} integers one off");
    assert!(off * 1000 <= all, "{off} of {all} integers one off: not rounded to nearest");
}

/// All zero, below what is kept, of every size, with an outlier that leaves the others nothing, near the largest f32.
#[test]
fn append_of_any_size() {
    for size in [0.0f32, 1e-36, 1e-28, 1e-5, 3e4, 1e30, 8e37] {
        check(layouts()[1], 8, Rotation::None, |rng| rng.value() * size);
        check(layouts()[4], 8, Rotation::None, |rng| rng.value() * size);
    }
    check(layouts()[1], 8, Rotation::None, |rng| if rng.below(40) == 0 { 1e4 } else { rng.value() });
    // Infinity is taken as the largest f32.
    check(layouts()[1], 8, Rotation::None, |rng| [f32::MAX, f32::NEG_INFINITY, 1e37, -1e38][rng.below(4)]);
}

/// 70,005 tokens: two planes of the grid, the second one short.
#[test]
fn every_token_past_a_grid_dimension_is_written_once() {
    let heads = HeadLayout::mha(1, 4).unwrap();
    check_many(heads, 64, Rotation::None, 23_335, |rng| rng.uniform() as f32);
}

/// A slot that is none ends up in the pool's last one.
#[test]
fn slots_past_the_pool_are_clamped_to_its_last() {
    let (gpu, heads, size) = (gpu(), layouts()[3], 8);
    let cache = PagedKvCache::new(gpu, heads, DType::I8, Pages { count: 5, size, layers: 1 }).unwrap();
    let append = Append::new(gpu, heads, DType::I8, size, Rotation::None).unwrap();
    let kv = Tensor::from_f32(gpu, &[1, heads.kv_dim()], &vec![1.0; heads.kv_dim()], DType::F32).unwrap();
    for slot in [40, 41, 1 << 20, u32::MAX] {
        let layer = cache.layer(0).unwrap();
        gpu.queue().write_buffer(layer.wgpu_buffer(), 0, &vec![0; cache.pool_bytes()]);
        let slots = Tensor::from_u32(gpu, &[1], &[slot]).unwrap();
        let args = AppendArgs { kv: &kv, slots: &slots, cos_sin: &kv, tokens: 1 };
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        append.encode(gpu, &mut encoder.begin_compute_pass(&Default::default()), &layer, args).unwrap();
        gpu.queue().submit([encoder.finish()]);
        let memory = pool(gpu, &cache, 0);
        let row = held(&heads, size, &memory, 39);
        assert!(row.iter().all(|v| (v - 1.0).abs() < 1e-6), "slot {slot}: not in the last slot");
        let elsewhere = (0..39).find(|slot| held(&heads, size, &memory, *slot).iter().any(|v| *v != 0.0));
        assert_eq!(elsewhere, None, "slot {slot}");
    }
}

/// How far results are from those of the rows that were appended: printed, and bounded by what 8 bits hold. See
/// `reference::quantise_span`: 1e-5 is out of reach for values like these, whatever the code.
#[test]
fn error_against_the_unquantised() {
    // One of each kind of page: two spans, one, one span and a rope key.
    for (i, heads) in [layouts()[1], layouts()[3], layouts()[5]].into_iter().enumerate() {
        for uniform in [false, true] {
            let lengths = vec![(100, 1), (400, 3)];
            let policy = SplitPolicy::FixedTokens(64);
            let case = Case { heads, dtype: DType::I8, page_size: 16, lengths, policy, seed: 47 + i as u64 };
            let mut drawn = case.draw();
            if uniform {
                let mut rng = Rng(53);
                drawn.iter_mut().flat_map(|s| &mut s.rows).for_each(|v| *v = 2.0 * rng.uniform() as f32 - 1.0);
            }
            let mut worst = 0.0f64;
            for gpu in tiers() {
                let decode = Decode::new(gpu, heads, DType::I8).unwrap().with_policy(policy);
                let results = case.run(gpu, &decode, drawn.clone(), 0xff);
                // Against the same integers, within the bounds of any cache.
                case.compare_all(&results);
                for ((index, got), drawn) in results.iter().enumerate().zip(&drawn) {
                    let plain = Sequence { out: got.out.clone(), lse: got.lse.clone(), ..drawn.clone() };
                    worst = worst.max(case.nmse(index, &plain));
                }
            }
            println!("{heads:?} {}: NMSE {worst:.2e}", if uniform { "uniform" } else { "normal" });
            // Twice (values and scores) the widest span's (a / 127)^2 / 12, a = 4 (the largest of the test's normal values).
            let a = if uniform { 3f64.sqrt() } else { 4.0 };
            assert!(worst <= 2.0 * (a / 127.0).powi(2) / 12.0, "{heads:?} uniform {uniform}: NMSE {worst:e}");
        }
    }
}
