//! Integer caches: what append writes, seen in the memory itself, and what decode makes of it.

use crate::append::{layouts_to_append, pool};
use crate::case::{check_on, Case, Extra, Sequence};
use crate::common::{gpu, layouts, tiers_in_turn, Rng};
use half::f16;
use latten::attention::AttentionOptions;
use latten::kv::{Append, AppendArgs, KvSource, StateLayout};
use latten::reference;
use latten::{
    CacheOptions, DType, Decode, Gqa, Gta, HeadLayout, PagedKvCache, Pages, Rope, RopePairs, SeqId, SplitPolicy, Tensor,
};

pub const INTEGERS: [DType; 2] = [DType::I8, DType::I4];

/// The written description of a page, not the crate's code.
#[derive(Clone, Copy)]
struct Page {
    heads: HeadLayout,
    /// Of an integer.
    bits: usize,
    size: usize,
}

/// Where a slot's row lies in the pool (u32s).
struct Places {
    /// Per group, the first u32 of the state.
    states: Vec<usize>,
    rope: usize,
    scales: usize,
}

/// Elements of a state that have a scale in common.
struct Span {
    /// Its first element.
    first: usize,
    elements: usize,
    /// Where its first integer stands among those of the padded state.
    at: usize,
}

impl Page {
    fn new(heads: HeadLayout, dtype: DType, size: usize) -> Self {
        Self { heads, bits: if dtype == DType::I4 { 4 } else { 8 }, size }
    }

    fn spans(&self) -> Vec<Span> {
        match self.heads.v_offset() {
            0 => vec![Span { first: 0, elements: self.heads.state_dim(), at: 0 }],
            first => vec![
                Span { first: 0, elements: first, at: 0 },
                Span { first, elements: self.heads.v_dim(), at: first.next_multiple_of(128 / self.bits) },
            ],
        }
    }

    fn state_words(&self) -> usize {
        self.spans().iter().map(|span| span.elements.div_ceil(128 / self.bits)).sum()
    }

    fn rope_words(&self) -> usize {
        2 * self.heads.rope_dim().div_ceil(16)
    }

    fn places(&self, slot: usize) -> Places {
        let groups = self.heads.groups();
        let (state, rope) = (4 * self.state_words(), 4 * self.rope_words());
        let scales = 4 * (groups * self.spans().len()).div_ceil(4);
        let page = slot / self.size * self.size * (groups * state + rope + scales);
        let (offset, planes) = (slot % self.size, page + groups * self.size * state);
        Places {
            states: (0..groups).map(|g| page + (g * self.size + offset) * state).collect(),
            rope: planes + offset * rope,
            scales: planes + self.size * rope + offset * scales,
        }
    }

    /// Integer `i` of those that begin with the first bit of a u32 of the pool.
    fn integer(&self, pool: &[u32], first_u32: usize, i: usize) -> i32 {
        let word = pool[first_u32 + i * self.bits / 32];
        // To the top of the word, and back with its sign.
        ((word << (32 - self.bits - i * self.bits % 32)) as i32) >> (32 - self.bits)
    }

    /// The row that a slot holds: (kv_dim) of integers times scales.
    fn held(&self, pool: &[u32], slot: usize) -> Vec<f32> {
        let (at, spans) = (self.places(slot), self.spans());
        let mut row = Vec::new();
        for (g, &state) in at.states.iter().enumerate() {
            for (s, span) in spans.iter().enumerate() {
                let scale = f32::from_bits(pool[at.scales + g * spans.len() + s]);
                row.extend((0..span.elements).map(|i| self.integer(pool, state, span.at + i) as f32 * scale));
            }
        }
        let half = |i: usize| f16::from_bits((pool[at.rope + i / 2] >> (16 * (i % 2))) as u16).to_f32();
        row.extend((0..self.heads.rope_dim()).map(half));
        row
    }
}

/// The row that a slot of a cache of integers holds: (kv_dim) of integers times scales.
pub fn held(heads: HeadLayout, dtype: DType, page_size: usize, pool: &[u32], slot: usize) -> Vec<f32> {
    Page::new(heads, dtype, page_size).held(pool, slot)
}

/// Appends rows into memory full of a pattern and compares all of it with the reference. Returns how many integers are
/// one off, which the f32 of the kernel may make of a value half-way between two.
fn check(
    (heads, dtype): (HeadLayout, DType),
    page_size: usize,
    rotation: RopePairs,
    values: impl Fn(&mut Rng) -> f32,
) -> usize {
    check_many((heads, dtype), page_size, rotation, 3, values)
}

/// The same with `new` tokens of each of three sequences.
fn check_many(
    (heads, dtype): (HeadLayout, DType),
    page_size: usize,
    rotation: RopePairs,
    new: usize,
    values: impl Fn(&mut Rng) -> f32,
) -> usize {
    const PATTERN: u32 = 0xa5a5_a5a5;
    let gpu = gpu();
    let pages = Pages { count: 3 * (new + 30).div_ceil(page_size), size: page_size, layers: 1 };
    let wide = (heads.wide_dim() > 0).then(|| crate::wide::channels(&heads, 1));
    let (layout, page) = (StateLayout::new(&heads, dtype), Page::new(heads, dtype, page_size));
    let levels = if dtype == DType::I4 { reference::I4_LEVELS } else { reference::I8_LEVELS };
    assert_eq!((layout.state_words, layout.rope_words), (page.state_words(), page.rope_words()));
    let width = match (rotation, heads.rope_dim()) {
        (RopePairs::None, _) => 0,
        _ if wide.is_some() => heads.nope_dim(),
        (_, 0) if heads.v_offset() == 0 => 0,
        (_, 0) => heads.nope_dim(),
        (_, rope_dim) => rope_dim,
    };
    let table = reference::inv_freq(10_000.0, width).unwrap();
    let rope = Some(Rope { inv_freq: table.iter().map(|v| *v as f32).collect(), pairs: rotation });
    let mut cache = PagedKvCache::new(gpu, heads, CacheOptions { rope, ..CacheOptions::new(dtype, pages) }).unwrap();
    if let Some(wide) = &wide {
        cache = cache.with_wide_channels(wide).unwrap();
    }
    let view = cache.layer(0).unwrap();
    let slab = &view.wgpu_buffers()[0];
    gpu.queue().write_buffer(slab, 0, &vec![0xa5; slab.size() as usize]);
    let ids: Vec<SeqId> = (0..3).map(|_| cache.insert()).collect();
    for (id, position) in ids.iter().zip([0, 7, 30]).filter(|(_, p)| *p > 0) {
        cache.reserve(&[*id], position).unwrap();
        cache.commit(&[*id], position).unwrap();
    }
    cache.reserve(&ids, new).unwrap();
    let mut rng = Rng(43);
    let mut kv: Vec<f32> = (0..3 * new * heads.kv_dim()).map(|_| values(&mut rng)).collect();
    if let Some(wide) = &wide {
        crate::wide::enlarge(wide, &mut kv, 300.0);
    }
    cache.append(0, &ids, &Tensor::from_slice(gpu, &[3 * new, heads.kv_dim()], &kv, DType::F32).unwrap()).unwrap();

    let pairs =
        if rotation == RopePairs::Interleaved { reference::RopePairs::Interleaved } else { reference::RopePairs::Half };
    let rotate = reference::Rope { inv_freq: table, pairs, angles: reference::Angles::F32 };
    let (mut got, batch) = (pool(gpu, &cache, 0), cache.batch(&ids).unwrap());
    let mut off_by_one = 0;
    for (t, row) in kv.chunks_exact(heads.kv_dim()).enumerate() {
        let mut want: Vec<f64> = row.iter().map(|v| f64::from(v.clamp(f32::MIN, f32::MAX))).collect();
        if rotation != RopePairs::None {
            reference::append(&heads, &mut want, batch.positions[t], &rotate).unwrap();
        }
        let at = page.places(batch.slots[t] as usize);
        if let Some(wide) = &wide {
            // Of what lies half-way between two f16, either is right; the integers are of what is left of it.
            let large = crate::wide::elements(wide).collect::<Vec<_>>();
            want.extend(large.iter().map(|at| want[*at]).collect::<Vec<_>>());
            for (i, element) in large.iter().enumerate() {
                let bits = (got[at.rope + i / 2] >> (16 * (i % 2))) as u16;
                want[*element] -= f16::from_bits(bits).to_f64();
            }
        }
        let what = format!("{heads:?} {dtype} {rotation:?} page {page_size} token {t}");
        let spans = page.spans();
        for (g, &state) in at.states.iter().enumerate() {
            let mut seen = vec![false; 128 / page.bits * page.state_words()];
            for (s, span) in spans.iter().enumerate() {
                let (whole, scale) =
                    reference::quantise_span(&want[g * heads.state_dim() + span.first..][..span.elements], levels);
                let got_scale = f64::from(f32::from_bits(got[at.scales + g * spans.len() + s]));
                assert!(
                    (got_scale - scale).abs() <= 1e-6 * scale,
                    "{what} group {g}: scale {got_scale}, wanted {scale}"
                );
                for (i, q) in whole.iter().enumerate() {
                    let (got, q) = (page.integer(&got, state, span.at + i), *q as i32);
                    assert!((got - q).abs() <= 1, "{what} group {g} element {i} of span {s}: {got}, wanted {q}");
                    off_by_one += usize::from(got != q);
                    seen[span.at + i] = true;
                }
            }
            let padding = (0..seen.len()).find(|i| !seen[*i] && page.integer(&got, state, *i) != 0);
            assert_eq!(padding, None, "{what} group {g}: padding");
            got[state..state + 4 * page.state_words()].fill(PATTERN);
        }
        for i in 0..8 * page.rope_words() {
            let bits = (got[at.rope + i / 2] >> (16 * (i % 2))) as u16;
            let want = if i < heads.rope_dim() { want[heads.groups() * heads.state_dim() + i] } else { 0.0 };
            let unit = (want.abs() * 2f64.powi(-10)).max(2f64.powi(-24));
            let got = f16::from_bits(bits).to_f64();
            assert!((got - want.clamp(-65504.0, 65504.0)).abs() <= unit, "{what} rope key {i}: {got}, wanted {want}");
        }
        got[at.rope..at.rope + 4 * page.rope_words()].fill(PATTERN);
        let scales = heads.groups() * spans.len();
        let end = scales.next_multiple_of(4);
        assert!(got[at.scales + scales..at.scales + end].iter().all(|w| *w == 0), "{what}: padding of scales");
        got[at.scales..at.scales + end].fill(PATTERN);
    }
    let touched = got.iter().position(|w| *w != PATTERN);
    assert_eq!(touched, None, "{heads:?} {dtype}: u32 {touched:?} of the pool belongs to nobody");
    off_by_one
}

#[test]
fn append_writes_rows_scales_and_nothing_else() {
    for dtype in INTEGERS {
        let (mut off, mut all) = (0, 0);
        for heads in layouts_to_append() {
            for (rotation, page_size) in [(RopePairs::None, 1), (RopePairs::Half, 8), (RopePairs::Interleaved, 64)] {
                // Not on a grid, where every other quotient would be half-way between two integers.
                let value = |rng: &mut Rng| (rng.value() * 0.731 + rng.uniform()) * 1.037;
                off += check((heads, dtype), page_size, rotation, value);
                all += 9 * heads.groups() * heads.state_dim();
            }
        }
        println!("{dtype}: {off} of {all} integers one off");
        assert!(off * 1000 <= all, "{dtype}: {off} of {all} integers one off: not rounded to nearest");
    }
}

/// Wide channels in f16, and what f16 leaves of them among the integers, whose scale does not know of their size.
#[test]
fn append_keeps_wide_channels_apart() {
    for dtype in INTEGERS {
        for (q_heads, kv_heads, head_dim, wide) in [(8, 2, 32, 4), (3, 3, 20, 2), (4, 1, 128, 32), (2, 1, 6, 2)] {
            let heads = HeadLayout::gqa_wide(Gqa { q_heads, kv_heads, head_dim }, wide).unwrap();
            for (rotation, page_size) in [(RopePairs::None, 1), (RopePairs::Half, 8), (RopePairs::Interleaved, 64)] {
                let value = |rng: &mut Rng| (rng.value() * 0.731 + rng.uniform()) * 1.037;
                check((heads, dtype), page_size, rotation, value);
            }
        }
    }
}

/// All zero, below what is kept, of every size, with an outlier that leaves the others nothing, near the largest f32.
#[test]
fn append_of_any_size() {
    for dtype in INTEGERS {
        let check = |layout: usize, values: &dyn Fn(&mut Rng) -> f32| {
            check((layouts()[layout], dtype), 8, RopePairs::None, values);
        };
        for size in [0.0f32, 1e-36, 1e-28, 1e-5, 3e4, 1e30, 8e37] {
            check(1, &|rng| rng.value() * size);
            check(4, &|rng| rng.value() * size);
        }
        check(1, &|rng| if rng.below(40) == 0 { 1e4 } else { rng.value() });
        // Infinity is taken as the largest f32.
        check(1, &|rng| [f32::MAX, f32::NEG_INFINITY, 1e37, -1e38][rng.below(4)]);
    }
}

/// 70,005 tokens: two planes of the grid, the second one short.
#[test]
fn every_token_past_a_grid_dimension_is_written_once() {
    let heads = HeadLayout::mha(1, 4).unwrap();
    for dtype in INTEGERS {
        check_many((heads, dtype), 64, RopePairs::None, 23_335, |rng| rng.uniform());
    }
}

/// Of a token whose slot is past the pool nothing is written.
#[test]
fn slots_past_the_pool_are_written_nowhere() {
    let (gpu, heads, size) = (gpu(), layouts()[3], 8);
    let kv = Tensor::from_slice(gpu, &[2, heads.kv_dim()], &vec![1.0; 2 * heads.kv_dim()], DType::F32).unwrap();
    for dtype in INTEGERS {
        let cache =
            PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, Pages { count: 5, size, layers: 1 })).unwrap();
        let append = Append::new(gpu, heads, dtype, size, RopePairs::None).unwrap();
        for slot in [40, 41, 1 << 20, 1 << 30, u32::MAX] {
            let layer = cache.layer(0).unwrap();
            gpu.queue().write_buffer(&layer.wgpu_buffers()[0], 0, &vec![0; cache.pool_bytes()]);
            let slots = Tensor::from_slice(gpu, &[2], &[slot, 11], DType::U32).unwrap();
            let args = AppendArgs { kv: latten::kv::Span::of(&kv), slots: &slots, cos_sin: &kv, tokens: 2 };
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            append.encode(gpu, &mut encoder.begin_compute_pass(&Default::default()), &layer, args).unwrap();
            gpu.queue().submit([encoder.finish()]);
            let memory = pool(gpu, &cache, 0);
            let row = |slot: usize| held(heads, dtype, size, &memory, slot);
            assert!(row(11).iter().all(|v| (v - 1.0).abs() < 1e-6), "{dtype} slot {slot}: not the next token's either");
            let elsewhere = (0..40).find(|slot| *slot != 11 && row(*slot).iter().any(|v| *v != 0.0));
            assert_eq!(elsewhere, None, "{dtype} slot {slot}");
        }
    }
}

/// Widths that fill no word, pages from one token on, and softcap, window and sinks at once, or a tree: against the
/// reference over what the cache holds, in its bounds for any cache. On one tier each, unless it is to be `all`.
fn odd_widths(all: bool) {
    let gqa = HeadLayout::gqa(Gqa { q_heads: 6, kv_heads: 3, head_dim: 20 }).unwrap();
    let gta = HeadLayout::gta(Gta { q_heads: 8, kv_heads: 2, head_dim: 12, rope_dim: 6 }).unwrap();
    let most = AttentionOptions { softcap: Some(2.0), window: Some(70), keep_first: 3, sinks: true, tree: false };
    let tree = AttentionOptions { tree: true, ..Default::default() };
    // The numbers say which tier's turn it is: each has both widths, both dtypes, and both kinds of options.
    for (number, heads, dtype, options, page_size) in [
        (0, gqa, DType::I4, most, 1),
        (1, gta, DType::I4, most, 256),
        (1, gqa, DType::I4, tree, 16),
        (0, gta, DType::I4, tree, 2),
        (1, gqa, DType::I8, most, 64),
        (0, gta, DType::I8, tree, 1),
    ] {
        let lengths = vec![(1, 1), (200, 1), (40, 5), (300, 16), (9, 0)];
        let policy = SplitPolicy::FixedTokens(48);
        let masks = |q_len: usize| (0..q_len).map(|m| (0..=m).filter(|i| (m - i) % 3 != 1).map(|i| 1 << i).sum());
        let extra = Extra {
            options,
            sinks: if options.sinks { Rng(7).values(heads.q_heads()) } else { vec![] },
            trees: if options.tree { lengths.iter().map(|l| masks(l.1).collect()).collect() } else { vec![] },
        };
        let case = Case { heads, dtype, page_size, lengths, policy, seed: 59 };
        check_on(&tiers_in_turn(number, all), &case, &extra);
    }
}

#[test]
fn odd_widths_pages_and_options() {
    odd_widths(false);
}

#[test]
#[ignore = "long: the same on every tier; a minute of software GPU"]
fn odd_widths_pages_and_options_on_every_tier() {
    odd_widths(true);
}

/// How far results are from those of the rows that were appended: printed, and bounded by what so many bits hold. See
/// `reference::quantise_span`: 1e-5 (i8) and, for normal values, 1e-2 (i4) are out of reach of a scale per span.
fn errors(all: bool) {
    // One of each kind of page: two spans, one, one span and a rope key.
    for (i, heads) in [layouts()[1], layouts()[3], layouts()[5]].into_iter().enumerate() {
        for (j, (dtype, levels)) in [(DType::I8, 127.0), (DType::I4, 7.0)].into_iter().enumerate() {
            for uniform in [false, true] {
                let lengths = vec![(100, 1), (400, 3)];
                let policy = SplitPolicy::FixedTokens(64);
                let case = Case { heads, dtype, page_size: 16, lengths, policy, seed: 47 + i as u64 };
                let mut drawn = case.draw();
                if uniform {
                    let mut rng = Rng(53);
                    drawn.iter_mut().flat_map(|s| &mut s.rows).for_each(|v| *v = 2.0 * rng.uniform() - 1.0);
                }
                let mut worst = 0.0f64;
                for gpu in tiers_in_turn(i + j, all) {
                    let decode = Decode::new(gpu, heads, dtype).unwrap().with_policy(policy);
                    let results = case.run(gpu, &decode, drawn.clone(), 0xff);
                    // Against the same integers, within the bounds of any cache.
                    case.compare_all(&results);
                    for ((index, got), drawn) in results.iter().enumerate().zip(&drawn) {
                        let plain = Sequence { out: got.out.clone(), lse: got.lse.clone(), ..drawn.clone() };
                        worst = worst.max(case.nmse(index, &plain));
                    }
                }
                println!("{heads:?} {dtype} {}: NMSE {worst:.2e}", if uniform { "uniform" } else { "normal" });
                // Twice (values and scores) the widest span's (a / levels)^2 / 12, a = 4 (the largest of the test's normal
                // values).
                let a = if uniform { 3f64.sqrt() } else { 4.0 };
                let most = 2.0 * (a / levels).powi(2) / 12.0;
                assert!(worst <= most, "{heads:?} {dtype} uniform {uniform}: NMSE {worst:e}");
            }
        }
    }
}

#[test]
fn error_against_the_unquantised() {
    errors(false);
}

#[test]
#[ignore = "long: the same on every tier; a minute of software GPU"]
fn error_against_the_unquantised_on_every_tier() {
    errors(true);
}
