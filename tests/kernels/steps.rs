//! Cache and decode together over many steps: reserve, append, decode, commit, rollback, truncate, page reuse; and
//! what refuses to go together.

use crate::append::pool;
use crate::case::{halves, scale, Case, Sequence};
use crate::common::{bits, gpu, small, wait, Rng};
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, ErrorKind, HeadLayout, PagedKvCache, Pages, SeqId, SplitPolicy, Tensor,
};

const SIZE: usize = 8;

/// A cache, its sequences, and on the host every row they should hold.
struct World {
    heads: HeadLayout,
    cache: PagedKvCache,
    decode: Decode,
    sequences: Vec<(SeqId, Vec<f32>)>,
    rng: Rng,
}

impl World {
    fn new(seed: u64, count: usize) -> Self {
        let heads = small();
        let pages = Pages { count, size: SIZE, layers: 1 };
        let cache = PagedKvCache::new(gpu(), heads, CacheOptions::new(DType::F16, pages)).unwrap();
        let decode = Decode::new(gpu(), heads, DType::F16).unwrap().with_policy(SplitPolicy::FixedTokens(32));
        World { heads, cache, decode, sequences: vec![], rng: Rng(seed) }
    }

    /// One step: `new[i]` tokens for sequence i, of which the first `kept[i]` are committed. Compares with the reference.
    fn step(&mut self, new: &[usize], kept: &[usize]) {
        let heads = self.heads;
        let ids: Vec<SeqId> = self.sequences.iter().map(|s| s.0).collect();
        for (id, n) in ids.iter().zip(new).filter(|(_, n)| **n > 0) {
            self.cache.reserve(&[*id], *n).unwrap();
        }
        let mut results: Vec<Sequence> = Vec::new();
        let (mut q, mut kv) = (vec![], vec![]);
        for ((_, rows), n) in self.sequences.iter().zip(new) {
            let added = self.rng.values(n * heads.kv_dim());
            let queries = self.rng.values(n * heads.q_heads() * heads.q_dim());
            kv.extend_from_slice(&added);
            q.extend_from_slice(&queries);
            results.push(Sequence { rows: [&rows[..], &added].concat(), q: queries, ..Default::default() });
        }
        let tokens: usize = new.iter().sum();
        let q = Tensor::from_slice(gpu(), &[tokens, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
        let kv = Tensor::from_slice(gpu(), &[tokens, heads.kv_dim()], &kv, DType::F32).unwrap();
        let plan = self.decode.plan(&self.cache, &ids).unwrap();
        self.cache.append(0, &ids, &kv).unwrap();
        let got = self.decode.run(DecodeArgs::new(&plan, &self.cache.layer(0).unwrap(), &q, scale(&heads))).unwrap();
        let (out, lse) = (wait(gpu().download(&got.out)).unwrap(), wait(gpu().download(&got.lse)).unwrap());
        let mut first = 0;
        for (s, n) in results.iter_mut().zip(new) {
            let width = heads.q_heads() * heads.v_dim();
            s.out = out[first * width..(first + n) * width].to_vec();
            s.lse = lse[first * heads.q_heads()..(first + n) * heads.q_heads()].to_vec();
            s.halves = halves(gpu(), DType::F16);
            first += n;
        }
        let lengths = results.iter().zip(new).map(|(s, n)| (s.rows.len() / heads.kv_dim(), *n)).collect();
        let policy = SplitPolicy::FixedTokens(32);
        let case = Case { heads, dtype: DType::F16, page_size: SIZE, lengths, policy, seed: self.rng.0 };
        case.compare_all(&results);
        for (((id, rows), result), (n, kept)) in self.sequences.iter_mut().zip(results).zip(new.iter().zip(kept)) {
            self.cache.commit(&[*id], *kept).unwrap();
            *rows = result.rows;
            rows.truncate(rows.len() - (n - kept) * heads.kv_dim());
            assert_eq!(self.cache.len(*id).unwrap() * heads.kv_dim(), rows.len());
        }
    }

    fn insert(&mut self) {
        self.sequences.push((self.cache.insert(), vec![]));
    }
}

/// Speculative steps of which some tokens are rolled back, truncations, removals and newcomers on reused pages.
#[test]
fn what_was_rolled_back_truncated_or_removed_is_not_seen() {
    let mut world = World::new(51, 80);
    (0..3).for_each(|_| world.insert());
    for step in 0..30 {
        let new: Vec<usize> = world.sequences.iter().map(|_| [1, 1, 2, 5, 16, 0][world.rng.below(6)]).collect();
        let kept: Vec<usize> = new.iter().map(|n| world.rng.below(n + 1)).collect();
        if new.iter().sum::<usize>() > 0 {
            world.step(&new, &kept);
        }
        let i = world.rng.below(world.sequences.len());
        match step % 5 {
            2 => {
                let (id, rows) = &mut world.sequences[i];
                let len = world.rng.below(rows.len() / world.heads.kv_dim() + 1);
                world.cache.truncate(*id, len).unwrap();
                rows.truncate(len * world.heads.kv_dim());
            }
            4 => {
                let (id, _) = world.sequences.swap_remove(i);
                world.cache.remove(id).unwrap();
                world.insert();
            }
            _ => {}
        }
    }
    for (id, _) in world.sequences {
        world.cache.remove(id).unwrap();
    }
    assert_eq!(world.cache.stats().used, 0);
}

/// A sequence on pages that others used gives the bits that it gives in a fresh cache.
#[test]
fn reused_pages_are_as_good_as_new() {
    let run = |world: &mut World| {
        world.rng = Rng(53);
        world.insert();
        world.step(&[61], &[61]);
        world.step(&[1], &[1]);
        let heads = world.heads;
        let id = world.sequences[0].0;
        world.cache.reserve(&[id], 1).unwrap();
        let q = world.rng.values(heads.q_heads() * heads.q_dim());
        let q = Tensor::from_slice(gpu(), &[1, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
        let kv = world.rng.values(heads.kv_dim());
        let kv = Tensor::from_slice(gpu(), &[1, heads.kv_dim()], &kv, DType::F32).unwrap();
        world.cache.append(0, &[id], &kv).unwrap();
        let plan = world.decode.plan(&world.cache, &[id]).unwrap();
        let got = world.decode.run(DecodeArgs::new(&plan, &world.cache.layer(0).unwrap(), &q, 0.25)).unwrap();
        bits(&wait(gpu().download(&got.out)).unwrap())
    };
    let mut fresh = World::new(52, 9);
    let mut used = World::new(52, 9);
    for n in [70, 9, 33] {
        used.insert();
        used.step(&[n], &[n]);
        let (id, _) = used.sequences.remove(0);
        used.cache.remove(id).unwrap();
    }
    assert!(run(&mut fresh) == run(&mut used));
}

#[test]
fn stale_and_foreign_plans_are_refused() {
    let mut world = World::new(54, 20);
    world.insert();
    world.step(&[9], &[9]);
    let id = world.sequences[0].0;
    let heads = world.heads;
    world.cache.reserve(&[id], 1).unwrap();
    let plan = world.decode.plan(&world.cache, &[id]).unwrap();
    let q = Tensor::zeros(gpu(), &[1, heads.q_heads(), heads.q_dim()], DType::F32).unwrap();
    let before = world.cache.layer(0).unwrap();
    world.decode.run(DecodeArgs::new(&plan, &before, &q, 1.0)).unwrap();

    // Any change of any sequence, whether the view was taken before it or after.
    world.cache.commit(&[id], 1).unwrap();
    let after = world.cache.layer(0).unwrap();
    let error = world.decode.run(DecodeArgs::new(&plan, &after, &q, 1.0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StalePlan { plan, cache } if plan < cache), "{error}");
    let error = world.decode.run(DecodeArgs::new(&plan, &before, &q, 1.0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StalePlan { plan, cache } if plan < cache), "the older view: {error}");
    world.cache.reserve(&[id], 1).unwrap();
    let fresh = world.decode.plan(&world.cache, &[id]).unwrap();
    // A view has no moment of its own: the older one serves the newer plan.
    world.decode.run(DecodeArgs::new(&fresh, &after, &q, 1.0)).unwrap();

    // A plan of another cache with the same history, and of another Decode.
    let mut other = World::new(54, 20);
    other.insert();
    other.step(&[9], &[9]);
    let other_id = other.sequences[0].0;
    other.cache.reserve(&[other_id], 1).unwrap();
    let error = world.decode.run(DecodeArgs::new(&fresh, &other.cache.layer(0).unwrap(), &q, 1.0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StalePlan { .. }), "another cache: {error}");
    let error = other.decode.run(DecodeArgs::new(&fresh, &world.cache.layer(0).unwrap(), &q, 1.0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Argument { name: "plan", .. }), "another Decode: {error}");
    let error = world.decode.plan(&other.cache, &[id]).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::UnknownSequence { .. }), "an id of another cache: {error}");
    world.decode.run(DecodeArgs::new(&fresh, &world.cache.layer(0).unwrap(), &q, 1.0)).unwrap();
}

#[test]
fn a_full_cache_changes_nothing_and_goes_on() {
    let mut world = World::new(55, 6);
    world.insert();
    world.insert();
    world.step(&[20, 10], &[20, 10]);
    let ids: Vec<SeqId> = world.sequences.iter().map(|s| s.0).collect();
    let (stats, memory) = (world.cache.stats(), pool(gpu(), &world.cache, 0));
    // 20 + 10 tokens hold 3 + 2 of 6 pages; 7 more each would take one page, then another.
    let error = world.cache.reserve(&ids, 7).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::CacheFull { needed: 2, free: 1 });
    let error = world.cache.reserve(&ids, usize::MAX).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::CacheFull { free: 1, .. }), "{error}");
    assert_eq!(world.cache.stats(), stats);
    assert!(pool(gpu(), &world.cache, 0) == memory);
    world.step(&[4, 6], &[4, 6]);
    let removed = world.sequences.remove(0).0;
    world.cache.remove(removed).unwrap();
    world.step(&[16], &[16]);
}
