//! First tokens kept beside a window: against the f64 reference, and the bits of sequences whose pages between the two
//! are gone.

use crate::case::{check_on, Case, Extra};
use crate::common::{bits, gpu, layouts, narrow_layouts, small, tiers, tiers_in_turn, wait, Rng};
use latten::attention::AttentionOptions;
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, ErrorKind, Gpu, HeadLayout, PagedKvCache, Pages, SeqId, SequenceOptions,
    SplitPolicy, Tensor,
};

fn kept(window: usize, keep_first: usize) -> AttentionOptions {
    AttentionOptions { window: Some(window), keep_first, ..Default::default() }
}

/// Rows whose window begins among the first tokens, past them, and inside the step; a sequence with none.
fn case(heads: HeadLayout, dtype: DType, page_size: usize, policy: SplitPolicy) -> Case {
    let lengths = vec![(1, 1), (200, 1), (5, 5), (40, 5), (133, 5), (16, 16), (300, 40), (64, 1), (9, 0), (700, 1)];
    Case { heads, dtype, page_size, lengths, policy, seed: 67 }
}

const POLICIES: [SplitPolicy; 4] =
    [SplitPolicy::Off, SplitPolicy::FixedTokens(32), SplitPolicy::Auto, SplitPolicy::Count(3)];

#[test]
fn first_tokens_beside_a_window() {
    let edges = [(1, 1), (7, 3), (32, 8), (100, 150), (5, usize::MAX)];
    for (i, (window, keep_first)) in edges.into_iter().enumerate() {
        let extra = Extra { options: kept(window, keep_first), ..Default::default() };
        for (page_size, policy) in [1, 8, 16, 64].into_iter().zip(POLICIES) {
            check_on(&tiers_in_turn(i, false), &case(small(), DType::F32, page_size, policy), &extra);
        }
    }
}

/// GQA, GTA, GLA and MLA, in each of their kernels; on one tier each, unless it is to be `all`.
fn every_variant_and_dtype(all: bool) {
    let extra = Extra { options: kept(50, 6), ..Default::default() };
    for (i, heads) in [1, 3, 4, 5].map(|i| narrow_layouts()[i]).into_iter().enumerate() {
        for (j, dtype) in [DType::F32, DType::F16, DType::I8].into_iter().enumerate() {
            for (page_size, policy) in [1, 16, 64].into_iter().zip(POLICIES) {
                check_on(&tiers_in_turn(i + j, all), &case(heads, dtype, page_size, policy), &extra);
            }
        }
    }
}

#[test]
fn in_every_variant_and_dtype() {
    every_variant_and_dtype(false);
}

#[test]
#[ignore = "long: the same on every tier; a minute of software GPU"]
fn in_every_variant_and_dtype_on_every_tier() {
    every_variant_and_dtype(true);
}

/// With a softcap and learned sinks; trees with both are in `tree.rs`.
#[test]
fn with_the_other_options() {
    for (i, (heads, dtype)) in [(small(), DType::F32), (narrow_layouts()[5], DType::F16)].into_iter().enumerate() {
        let options = AttentionOptions { softcap: Some(2.0), sinks: true, ..kept(40, 5) };
        let extra = Extra { options, sinks: Rng(7).values(heads.q_heads()), trees: vec![] };
        for policy in POLICIES {
            check_on(&tiers_in_turn(i, false), &case(heads, dtype, 16, policy), &extra);
        }
    }
}

/// Pages wholly between may be gone: their tokens are NaN here.
#[test]
fn pages_between_are_not_read() {
    for (page_size, window, keep_first) in [(1, 7, 3), (8, 33, 9), (16, 16, 1)] {
        let options = kept(window, keep_first);
        for policy in [SplitPolicy::Off, SplitPolicy::FixedTokens(32)] {
            let case = case(small(), DType::F32, page_size, policy);
            let run = |gpu: &Gpu, between: f32| {
                let decode = Decode::with_options(gpu, small(), DType::F32, options).unwrap().with_policy(policy);
                let mut sequences = case.draw();
                let mut gone = 0;
                for (s, (kv_len, q_len)) in sequences.iter_mut().zip(&case.lengths) {
                    // The first query token's window begins here, the others' no earlier.
                    let first = keep_first.next_multiple_of(page_size);
                    let last = (kv_len - q_len + 1).saturating_sub(window) / page_size * page_size;
                    if first < last {
                        s.rows[first * small().kv_dim()..last * small().kv_dim()].fill(between);
                        gone += last - first;
                    }
                }
                assert!(gone > 500);
                let extra = Extra { options, ..Default::default() };
                let results = case.run_with(gpu, &decode, sequences, 0xff, &extra);
                results.iter().flat_map(|s| [bits(&s.out), bits(&s.lse)]).collect::<Vec<_>>()
            };
            for gpu in tiers() {
                assert!(run(gpu, f32::NAN) == run(gpu, 0.0), "pages of {page_size}, {options:?}, {policy:?}");
            }
        }
    }
}

/// Adds `n` tokens to each sequence and attends from them; returns the bits of all results.
fn step(cache: &mut PagedKvCache, decode: &Decode, ids: &[SeqId], n: usize, seed: u64) -> Vec<u32> {
    let (heads, tokens) = (*cache.heads(), ids.len() * n);
    cache.reserve(ids, n).unwrap();
    let plan = decode.plan(cache, ids).unwrap();
    let mut rng = Rng(seed);
    let kv = rng.values(tokens * heads.kv_dim());
    let kv = Tensor::from_slice(gpu(), &[tokens, heads.kv_dim()], &kv, DType::F32).unwrap();
    cache.append(0, ids, &kv).unwrap();
    let q = rng.values(tokens * heads.q_heads() * heads.q_dim());
    let q = Tensor::from_slice(gpu(), &[tokens, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
    let got = decode.run(DecodeArgs::new(&plan, &cache.layer(0).unwrap(), &q, 0.25)).unwrap();
    let mut all = bits(&wait(gpu().download(&got.out)).unwrap());
    all.extend(bits(&wait(gpu().download(&got.lse)).unwrap()));
    cache.commit(ids, n).unwrap();
    all
}

/// Whether pages between first tokens and window are kept or freed and used again makes no difference to the bit, in
/// steps of one token and of many, and for forks.
#[test]
fn a_sequence_with_a_gap_gives_the_bits_of_one_that_keeps_all() {
    let variants = [(layouts()[1], DType::F16), (narrow_layouts()[4], DType::F32), (layouts()[3], DType::I8)];
    for (heads, dtype) in variants {
        let (window, keep_first) = (20, 5);
        let decode = Decode::with_options(gpu(), heads, dtype, kept(window, keep_first)).unwrap();
        let decode = decode.with_policy(SplitPolicy::FixedTokens(16));
        for page_size in [1, 16, 64] {
            let cache = |count| {
                let pages = Pages { count, size: page_size, layers: 1 };
                let cache = PagedKvCache::new(gpu(), heads, CacheOptions::new(dtype, pages)).unwrap();
                let bytes = vec![0xff; cache.pool_bytes()];
                gpu().submit().unwrap();
                gpu().queue().write_buffer(&cache.layer(0).unwrap().wgpu_buffers()[0], 0, &bytes);
                cache
            };
            // Between steps: pages of the first tokens, and of the window wherever it begins.
            let most = keep_first.div_ceil(page_size) + (window - 1).div_ceil(page_size) + 1;
            let mut whole = cache(3 * 400usize.div_ceil(page_size));
            let mut freed = cache(3 * (most + 40usize.div_ceil(page_size)));
            let mut all = vec![whole.insert(), whole.insert()];
            let mut gaps: Vec<SeqId> = (0..2)
                .map(|_| freed.insert_with(SequenceOptions { window: Some(window), keep_first }).unwrap())
                .collect();
            for (i, n) in [3, 40, 1, 1, 17, 40, 1, 25, 40, 40, 1, 1, 9, 1].into_iter().enumerate() {
                let want = step(&mut whole, &decode, &all, n, i as u64);
                let got = step(&mut freed, &decode, &gaps, n, i as u64);
                assert!(got == want, "{heads:?} {dtype}, pages of {page_size}, step {i}");
                assert!(freed.stats().used <= 3 * most, "{:?}", freed.stats());
                if i == 9 {
                    all.push(whole.fork(all[1]).unwrap());
                    gaps.push(freed.fork(gaps[1]).unwrap());
                }
            }
            // Exactly the pages of tokens 0..5, and of 201.. where 220 tokens are there.
            let len = freed.len(gaps[0]).unwrap();
            assert_eq!((len, gaps.iter().all(|id| freed.len(*id).unwrap() == 220)), (220, true));
            let window_pages = 220usize.div_ceil(page_size) - 201 / page_size;
            let firsts = keep_first.div_ceil(page_size);
            // The fork was made at 208 tokens, and the pages that were full then are shared.
            let shared = firsts + (208 / page_size).saturating_sub(201 / page_size);
            assert_eq!(freed.stats().used, 3 * (firsts + window_pages) - shared);
            assert_eq!(freed.stats().shared, shared);
        }
    }
}

#[test]
fn a_decode_that_sees_more_than_is_kept_is_refused() {
    let pages = Pages { count: 30, size: 8, layers: 1 };
    let mut cache = PagedKvCache::new(gpu(), small(), CacheOptions::new(DType::F16, pages)).unwrap();
    assert!(matches!(
        cache.insert_with(SequenceOptions { window: Some(0), keep_first: 3 }).unwrap_err().kind(),
        ErrorKind::Argument { name: "window", .. }
    ));
    let id = cache.insert_with(SequenceOptions { window: Some(16), keep_first: 3 }).unwrap();
    cache.reserve(&[id], 100).unwrap();
    cache.commit(&[id], 100).unwrap();
    cache.reserve(&[id], 1).unwrap();
    let plan = |options| {
        let decode = Decode::with_options(gpu(), small(), DType::F16, options).unwrap();
        decode.plan(&cache, &[id]).map(|plan| plan.items())
    };
    for options in [AttentionOptions::default(), kept(30, 3), kept(16, 9)] {
        let error = plan(options).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "window", .. }), "{error}");
        assert!(error.to_string().contains("8..80"), "{error}");
    }
    // As many or fewer; pages hold more of both than was asked for.
    for options in [kept(16, 3), kept(16, 8), kept(16, 0), kept(21, 1)] {
        assert_eq!(plan(options).unwrap(), 1, "{options:?}");
    }
}
