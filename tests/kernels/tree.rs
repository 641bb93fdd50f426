//! Tree masks: chains are causal attention bit for bit, trees agree with the f64 reference, bad masks are refused.

use crate::case::{check, check_on, Case, Extra};
use crate::common::{bits, gpu, narrow_layouts, small, tiers_in_turn, Rng};
use latten::attention::AttentionOptions;
use latten::{CacheOptions, DType, Decode, ErrorKind, Gpu, HeadLayout, PagedKvCache, Pages, SplitPolicy};

const TREE: AttentionOptions =
    AttentionOptions { softcap: None, window: None, keep_first: 0, sinks: false, tree: true };

fn case(heads: HeadLayout, dtype: DType, policy: SplitPolicy) -> Case {
    let lengths = vec![
        (1, 1),
        (10, 3),
        (200, 1),
        (5, 5),
        (133, 5),
        (16, 16),
        (300, 16),
        (64, 64),
        (111, 64),
        (9, 0),
        (90, 33),
        (70, 2),
        (77, 4),
    ];
    Case { heads, dtype, page_size: 8, lengths, policy, seed: 71 }
}

fn chain(case: &Case) -> Vec<Vec<u64>> {
    case.lengths.iter().map(|(_, q_len)| (0..*q_len).map(|m| u64::MAX >> (63 - m)).collect()).collect()
}

/// Each token's parent is an earlier one, or none: several roots, branches and long lines.
fn random_trees(case: &Case, rng: &mut Rng) -> Vec<Vec<u64>> {
    let tree = |(_, q_len): &(usize, usize)| {
        let mut masks: Vec<u64> = Vec::new();
        for m in 0..*q_len {
            let parent = rng.below(m + 2).checked_sub(1).filter(|p| *p < m);
            masks.push(parent.map_or(0, |p| masks[p]) | 1 << m);
        }
        masks
    };
    case.lengths.iter().map(tree).collect()
}

fn run(gpu: &Gpu, case: &Case, options: AttentionOptions, trees: Vec<Vec<u64>>) -> Vec<Vec<u32>> {
    let decode = Decode::with_options(gpu, case.heads, case.dtype, options).unwrap().with_policy(case.policy);
    let results = case.run_with(gpu, &decode, case.draw(), 0xff, &Extra { options, sinks: vec![], trees });
    results.iter().flat_map(|s| [bits(&s.out), bits(&s.lse)]).collect()
}

#[test]
fn a_chain_is_causal_bit_for_bit() {
    for (i, (window, keep_first)) in [(None, 0), (Some(20), 0), (Some(20), 7)].into_iter().enumerate() {
        for policy in [SplitPolicy::Off, SplitPolicy::FixedTokens(32), SplitPolicy::Auto] {
            let case = case(small(), DType::F32, policy);
            for gpu in tiers_in_turn(i, false) {
                let what = format!("{:?} {policy:?} {window:?} {keep_first}", gpu.capabilities().tier);
                let causal = run(gpu, &case, AttentionOptions { window, keep_first, ..Default::default() }, vec![]);
                let tree = AttentionOptions { window, keep_first, ..TREE };
                assert!(run(gpu, &case, tree, chain(&case)) == causal, "{what}");
                // And a chain is what a plan without masks means.
                assert!(run(gpu, &case, tree, vec![]) == causal, "{what} without masks");
            }
        }
    }
}

/// Each layout with two sets of options; on each tier one of the two, unless it is to be `all`.
fn random_trees_agree(all: bool) {
    let mut rng = Rng(73);
    for (i, heads) in narrow_layouts().into_iter().enumerate() {
        let (dtype, policy) =
            ([DType::F16, DType::F32][i % 2], [SplitPolicy::Off, SplitPolicy::FixedTokens(32)][i / 3]);
        let case = case(heads, dtype, policy);
        // A window counts what the mask lets through, and so do first tokens: of some sequences they are in the tree.
        let window = AttentionOptions { window: Some(12), ..TREE };
        let more = AttentionOptions { keep_first: 9, softcap: Some(2.0), ..window };
        let both = [TREE, if i % 2 == 0 { window } else { more }];
        for (j, options) in both.into_iter().take(if i < 4 { 2 } else { 1 }).enumerate() {
            let extra = Extra { options, sinks: vec![], trees: random_trees(&case, &mut rng) };
            check_on(&tiers_in_turn(i.div_ceil(2) + j, all), &case, &extra);
        }
    }
}

#[test]
fn random_trees_agree_with_the_reference() {
    random_trees_agree(false);
}

#[test]
#[ignore = "long: the same on every tier; a minute of software GPU"]
fn random_trees_agree_with_the_reference_on_every_tier() {
    random_trees_agree(true);
}

/// Masks need not be trees: any set of the step's tokens that has the token itself.
#[test]
fn any_visibility() {
    let mut rng = Rng(79);
    let case = case(small(), DType::F32, SplitPolicy::FixedTokens(32));
    let any = |(_, q_len): &(usize, usize)| {
        (0..*q_len).map(|m| rng.next() & (u64::MAX >> (64 - q_len)) | 1 << m).collect::<Vec<u64>>()
    };
    let trees = case.lengths.iter().map(any).collect();
    check(&case, &Extra { options: TREE, sinks: vec![], trees });
}

#[test]
fn bad_masks_are_refused() {
    let mut cache =
        PagedKvCache::new(gpu(), small(), CacheOptions::new(DType::F32, Pages { count: 40, size: 4, layers: 1 }))
            .unwrap();
    let (a, b) = (cache.insert(), cache.insert());
    cache.reserve(&[a], 3).unwrap();
    cache.reserve(&[b], 2).unwrap();
    let decode = Decode::with_options(gpu(), small(), DType::F32, TREE).unwrap();
    let refused = |masks: &[u64], words: &[&str]| {
        let error = decode.plan_tree(&cache, &[a, b], masks).err().unwrap();
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text} lacks one of {words:?}");
        error.kind().clone()
    };
    decode.plan_tree(&cache, &[a, b], &[1, 3, 7, 1, 3]).unwrap();
    assert!(matches!(refused(&[1, 3, 7, 1], &["(4)", "5"]), ErrorKind::Shape { name: "masks", .. }));
    assert!(matches!(refused(&[], &["(0)", "5"]), ErrorKind::Shape { name: "masks", .. }));
    let argument = |kind| matches!(kind, ErrorKind::Argument { name: "masks", .. });
    assert!(argument(refused(&[1, 3, 7, 1, 7], &["token 1 of sequence 1", "0x7", "2 new tokens"])));
    assert!(argument(refused(&[1, 3, 1 << 63 | 4, 1, 3], &["token 2 of sequence 0", "3 new tokens"])));
    assert!(argument(refused(&[1, 1, 7, 1, 3], &["token 1 of sequence 0", "see itself"])));
    let causal = Decode::new(gpu(), small(), DType::F32).unwrap();
    let error = causal.plan_tree(&cache, &[a, b], &[1, 3, 7, 1, 3]).err().unwrap();
    assert!(argument(error.kind().clone()), "{error}");
    cache.reserve(&[a], 62).unwrap();
    for error in [decode.plan(&cache, &[a]).err(), decode.plan_tree(&cache, &[a], &[1; 65]).err()] {
        assert!(error.as_ref().unwrap().to_string().contains("65"), "{error:?}");
    }
}
