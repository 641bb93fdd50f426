//! The row kernel whose squads share the tokens of an item, for items that are too few to fill the device.

use crate::case::{Case, Extra};
use crate::common::{gpu, layouts, tiers};
use latten::attention::AttentionOptions;
use latten::{CacheOptions, DType, Decode, Gpu, HeadLayout, PagedKvCache, Pages, SplitPolicy, Tier};

/// So large a device that few items leave it idle.
const LARGE: usize = 1 << 12;

fn decode(gpu: &Gpu, case: &Case, options: AttentionOptions) -> Decode {
    let decode = Decode::with_options(gpu, case.heads, case.dtype, options).unwrap();
    decode.with_policy(case.policy).with_target_workgroups(LARGE)
}

fn case(heads: HeadLayout, dtype: DType, lengths: &[(usize, usize)], seed: u64) -> Case {
    Case { heads, dtype, page_size: 16, lengths: lengths.to_vec(), policy: SplitPolicy::Auto, seed }
}

fn check(case: &Case, extra: &Extra) {
    for gpu in tiers().into_iter().filter(|gpu| gpu.capabilities().tier >= Tier::Subgroup) {
        let decode = decode(gpu, case, extra.options);
        let results = case.run_with(gpu, &decode, case.draw(), 0xff, extra);
        case.compare_all_with(&results, extra);
    }
}

/// That it is this kernel which the other tests run: it takes one group a workgroup, where otherwise all groups share one.
#[test]
fn few_items_are_shared_by_squads() {
    let heads = layouts()[1]; // two groups of four heads of 32
    for gpu in tiers().into_iter().filter(|gpu| gpu.capabilities().tier >= Tier::Subgroup) {
        let case = case(heads, DType::F16, &[(100, 1)], 0);
        let pages = Pages { count: 16, size: 16, layers: 1 };
        let mut cache = PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F16, pages)).unwrap();
        let id = cache.insert();
        cache.reserve(&[id], 100).unwrap();
        cache.commit(&[id], 99).unwrap();
        cache.reserve(&[id], 1).unwrap();
        for (policy, want) in [(SplitPolicy::Auto, 2), (SplitPolicy::Off, 1)] {
            let plan = decode(gpu, &Case { policy, ..case.clone() }, AttentionOptions::default());
            let plan = plan.plan(&cache, &[id]).unwrap();
            assert_eq!((plan.items(), plan.workgroups(), plan.is_split()), (1, want, false), "{policy:?}");
        }
    }
}

/// From one token to several turns of all squads, one query token and as many as the kernel takes; in memory full of NaN.
#[test]
fn lengths_of_every_remainder() {
    for (seed, heads) in layouts().into_iter().enumerate() {
        for (kv_len, q_len) in [(1, 1), (2, 1), (31, 1), (33, 2), (64, 1), (129, 1), (257, 2), (520, 1)] {
            check(&case(heads, DType::F16, &[(kv_len, q_len)], seed as u64), &Extra::default());
        }
    }
}

/// f16 is in the tests above. On a software GPU, which takes seconds to compile each kernel, two of the others per layout,
/// unless it is to be `all`.
fn dtypes(all: bool) {
    let all = all || !gpu().capabilities().is_software();
    for (seed, heads) in layouts().into_iter().enumerate() {
        // One of the floats and one of the integers, each pair of them in turn.
        let float = all || seed % 2 == 0;
        let integer = all || seed / 2 % 2 == 0;
        let taken =
            [(DType::F32, float), (DType::BF16, all || !float), (DType::I8, integer), (DType::I4, all || !integer)];
        for dtype in taken.into_iter().filter(|(_, taken)| *taken).map(|(dtype, _)| dtype) {
            check(&case(heads, dtype, &[(75, 1), (200, 1)], seed as u64), &Extra::default());
        }
    }
}

#[test]
fn every_dtype() {
    dtypes(false);
}

#[test]
#[ignore = "long: every dtype of every layout; half a minute of software GPU"]
fn every_dtype_of_every_layout() {
    dtypes(true);
}

/// Windows, first tokens, caps and sinks; and the merge of parts whose squads joined theirs.
#[test]
fn options_and_splits() {
    let options = AttentionOptions { softcap: Some(20.0), window: Some(90), keep_first: 5, sinks: true, tree: false };
    for (seed, heads) in layouts().into_iter().enumerate() {
        let sinks = (0..heads.q_heads()).map(|h| h as f32 * 0.25 - 1.0).collect();
        let extra = Extra { options, sinks, ..Default::default() };
        check(&case(heads, DType::F16, &[(300, 1), (40, 1)], seed as u64), &extra);
    }
    for heads in [layouts()[1], layouts()[4]] {
        check(&case(heads, DType::F16, &[(3000, 1)], 7), &Extra::default());
    }
}
