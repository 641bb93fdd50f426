//! Random calls against a trivial model: memory in which a token is a number that depends on all tokens before it, and
//! for each sequence the tokens it should hold. After every call each sequence must find its own numbers in its slots.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest_state_machine::{prop_state_machine, ReferenceStateMachine, StateMachineTest};

#[path = "world.rs"]
mod world;
use world::{Seen, World};

/// Few of each, so that prompts often begin alike.
const TOKENS: u32 = 2;
const SALTS: u64 = 2;
const MOST_SEQUENCES: usize = 12;

/// One call; numbers choose among the sequences, some removed ones included.
#[derive(Debug, Clone)]
enum Op {
    Insert,
    /// With a window of so many tokens, and so many first ones kept beside it.
    InsertWindowed(usize, usize),
    /// The tokens of a sequence, cut to a length, and some more; a salt.
    Match(usize, usize, Vec<u32>, u64),
    Fork(usize),
    Remove(usize),
    /// Tokens that are reserved, the drafts.
    Reserve(Vec<(usize, Vec<u32>)>),
    /// As [`Op::Reserve`], and then the copies fail.
    ReserveUndone(Vec<(usize, Vec<u32>)>),
    Commit(Vec<usize>, usize),
    CommitTokens(Vec<(usize, usize)>),
    /// To a length up to one more than there is.
    Truncate(usize, usize),
    /// As [`Op::Truncate`], and what is cut off is not kept.
    Discard(usize, usize),
    /// To some of the first tokens of a sequence that has lost some past them.
    CutToFirst(usize),
    /// As it would come from a file that it was saved to.
    SaveAndLoad(usize),
    Pin(usize),
    Unpin(usize),
    Limit(usize),
    DropKept,
    /// Empty what can be emptied behind the last slab that is needed.
    Shrink,
    Clear,
}

#[derive(Debug, Clone)]
struct Sizes {
    pages: usize,
    page_size: usize,
    slab_pages: usize,
}

struct Calls;

impl ReferenceStateMachine for Calls {
    type State = Sizes;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Sizes> {
        (1usize..48, prop_oneof![1 => Just(0u32), 6 => 1u32..4], 1usize..48)
            .prop_map(|(pages, log2, slab_pages)| Sizes { pages, page_size: 1 << log2, slab_pages })
            .boxed()
    }

    fn transitions(_: &Sizes) -> BoxedStrategy<Op> {
        let id = || 0usize..32;
        let tokens = |most| prop::collection::vec(0..TOKENS, 0..most);
        // Now and then none, which is refused.
        let drafts = move || prop_oneof![20 => prop::collection::vec(0..TOKENS, 1..9), 1 => Just(Vec::new())];
        let kept = || prop_oneof![1 => Just(0usize), 2 => 1usize..12];
        let wanted = move || prop::collection::vec((id(), drafts()), 0..4);
        prop_oneof![
            2 => Just(Op::Insert),
            3 => (0usize..20, kept()).prop_map(|(window, kept)| Op::InsertWindowed(window, kept)),
            6 => (id(), 0usize..40, tokens(20), 0..SALTS).prop_map(|(id, len, more, salt)| Op::Match(id, len, more, salt)),
            9 => id().prop_map(Op::Fork),
            5 => id().prop_map(Op::Remove),
            20 => wanted().prop_map(Op::Reserve),
            4 => wanted().prop_map(Op::ReserveUndone),
            3 => (prop::collection::vec(id(), 0..4), 0usize..8).prop_map(|(ids, n)| Op::Commit(ids, n)),
            20 => prop::collection::vec((id(), 0usize..24), 0..6).prop_map(Op::CommitTokens),
            5 => (id(), 0usize..40).prop_map(|(id, len)| Op::Truncate(id, len)),
            2 => (id(), 0usize..40).prop_map(|(id, len)| Op::Discard(id, len)),
            2 => id().prop_map(Op::CutToFirst),
            3 => id().prop_map(Op::SaveAndLoad),
            2 => id().prop_map(Op::Pin),
            2 => id().prop_map(Op::Unpin),
            1 => (0usize..30).prop_map(Op::Limit),
            5 => Just(Op::Limit(usize::MAX)),
            8 => Just(Op::Shrink),
            1 => prop::bool::weighted(0.3).prop_map(|all| if all { Op::Clear } else { Op::DropKept }),
        ]
        .boxed()
    }

    fn apply(state: Sizes, _: &Op) -> Sizes {
        state
    }
}

impl StateMachineTest for World {
    type SystemUnderTest = World;
    type Reference = Calls;

    fn init_test(sizes: &Sizes) -> World {
        World::new(sizes, false)
    }

    fn apply(mut world: World, _: &Sizes, op: Op) -> World {
        world.apply(op);
        world
    }

    fn check_invariants(world: &World, _: &Sizes) {
        world.check();
    }
}

/// The same with every allocation failing before it succeeds.
struct Failing;

impl StateMachineTest for Failing {
    type SystemUnderTest = World;
    type Reference = Calls;

    fn init_test(sizes: &Sizes) -> World {
        World::new(sizes, true)
    }

    fn apply(world: World, sizes: &Sizes, op: Op) -> World {
        <World as StateMachineTest>::apply(world, sizes, op)
    }

    fn check_invariants(world: &World, _: &Sizes) {
        world.check();
    }
}

/// Calls that meet nothing would prove nothing.
#[test]
fn the_calls_reach_what_they_are_for() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = Calls::sequential_strategy(200);
    let mut all = Seen::default();
    for _ in 0..600 {
        let (sizes, calls, _) = strategy.new_tree(&mut runner).unwrap().current();
        let mut world = World::new(&sizes, true);
        world.seen = all;
        for call in calls {
            world.apply(call);
            world.check();
        }
        all = world.seen;
    }
    println!("{all:?}");
    let Seen { copies, undone_copies, injected, full, forgotten, merged, found, found_all, evictions, freed, .. } = all;
    let Seen { beside, cut_before_gap, shrunk, discarded, loaded, .. } = all;
    let sharing = [copies, undone_copies, injected, full, forgotten, merged, found, found_all, evictions];
    for count in sharing.into_iter().chain([freed, beside, cut_before_gap, shrunk, discarded, loaded]) {
        assert!(count >= 20, "{count} of {all:?}");
    }
}

// 10^5 calls each.
prop_state_machine! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn the_table_is_its_model(sequential 200 => World);

    #[test]
    fn a_failed_allocation_leaves_no_trace(sequential 200 => Failing);
}

// 10^6 calls each.
prop_state_machine! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    #[ignore = "long: minutes"]
    fn the_table_is_its_model_for_long(sequential 250 => World);

    #[test]
    #[ignore = "long: minutes"]
    fn a_failed_allocation_leaves_no_trace_for_long(sequential 250 => Failing);
}
