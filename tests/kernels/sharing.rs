//! Sequences that share pages, on the device: copies before writes, and the bits of sequences that share nothing.

use crate::append::pool;
use crate::common::{bits, gpu, gpu_with, layouts, small, wait, Rng};
use latten::cache::PageCopy;
use latten::{
    reference, AttentionOptions, CacheOptions, DType, Decode, DecodeArgs, ErrorKind, GpuOptions, HeadLayout, KvSource,
    PagedKvCache, Pages, SeqId, SequenceOptions, SplitPolicy, Tensor,
};

const SIZE: usize = 8;
const LAYERS: usize = 3;

/// A cache of several layers whose every slot holds `fill`.
fn cache(heads: HeadLayout, dtype: DType, count: usize, fill: u8) -> PagedKvCache {
    let cache =
        PagedKvCache::new(gpu(), heads, CacheOptions::new(dtype, Pages { count, size: SIZE, layers: LAYERS })).unwrap();
    let bytes = vec![fill; cache.pool_bytes() / LAYERS];
    gpu().submit().unwrap();
    for layer in 0..LAYERS {
        gpu().queue().write_buffer(&cache.layer(layer).unwrap().wgpu_buffers()[0], 0, &bytes);
    }
    cache
}

/// Rows of a token in a layer: another for each token, layer and what came before (`seed`).
fn row(heads: &HeadLayout, seed: u64, layer: usize) -> Vec<f32> {
    Rng(seed * 31 + layer as u64).values(heads.kv_dim())
}

/// Reserves, appends in all layers, attends in all, and commits the tokens: one per sequence, its seed the token. Returns
/// the bits of all outputs, by sequence.
fn step(cache: &mut PagedKvCache, decode: &Decode, new: &[(SeqId, u32)]) -> Vec<Vec<u32>> {
    let heads = *cache.heads();
    let ids: Vec<SeqId> = new.iter().map(|(id, _)| *id).collect();
    cache.reserve(&ids, 1).unwrap();
    let plan = decode.plan(cache, &ids).unwrap();
    let mut all = vec![Vec::new(); new.len()];
    for layer in 0..LAYERS {
        let kv: Vec<f32> = new.iter().flat_map(|(_, token)| row(&heads, u64::from(*token), layer)).collect();
        let kv = Tensor::from_slice(gpu(), &[new.len(), heads.kv_dim()], &kv, DType::F32).unwrap();
        cache.append(layer, &ids, &kv).unwrap();
        let width = heads.q_heads() * heads.q_dim();
        let q: Vec<f32> = new.iter().flat_map(|(_, token)| Rng(u64::from(*token) + 99).values(width)).collect();
        let q = Tensor::from_slice(gpu(), &[new.len(), heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
        let got = decode.run(DecodeArgs::new(&plan, &cache.layer(layer).unwrap(), &q, 0.25)).unwrap();
        let out = wait(gpu().download(&got.out)).unwrap();
        let lse = wait(gpu().download(&got.lse)).unwrap();
        for (i, all) in all.iter_mut().enumerate() {
            all.extend(bits(&out[i * out.len() / new.len()..(i + 1) * out.len() / new.len()]));
            all.extend(bits(&lse[i * lse.len() / new.len()..(i + 1) * lse.len() / new.len()]));
        }
    }
    let accepted: Vec<(SeqId, &[u32])> = new.iter().map(|(id, token)| (*id, std::slice::from_ref(token))).collect();
    cache.commit_tokens(&accepted).unwrap();
    all
}

/// Feeds tokens one by one; returns the bits of the last.
fn feed(cache: &mut PagedKvCache, decode: &Decode, id: SeqId, tokens: &[u32]) -> Vec<u32> {
    let mut last = Vec::new();
    for token in tokens {
        last = step(cache, decode, &[(id, *token)]).remove(0);
    }
    last
}

fn decode(heads: HeadLayout, dtype: DType) -> Decode {
    Decode::new(gpu(), heads, dtype).unwrap().with_policy(SplitPolicy::FixedTokens(16))
}

/// A fork in the middle of a page, on a page's end, and forks of forks: every branch gives the bits that it gives alone
/// in a cache of its own. What no one owns holds NaN in one and zeros in the other.
#[test]
fn branches_give_the_bits_of_sequences_of_their_own() {
    // Rows of each kind: key and value apart, a rope key, and i8 with its scales.
    for (heads, dtype) in [(layouts()[1], DType::F16), (layouts()[4], DType::F32), (layouts()[3], DType::I8)] {
        let decode = decode(heads, dtype);
        for common in [1, SIZE - 1, SIZE, 2 * SIZE + 3] {
            let prompt: Vec<u32> = (0..common as u32).collect();
            let mut shared = cache(heads, dtype, 24, 0xff);
            let root = shared.insert();
            feed(&mut shared, &decode, root, &prompt);
            let first = shared.fork(root).unwrap();
            let second = shared.fork(first).unwrap();
            let mut branches = [(root, 100, prompt.clone()), (first, 200, prompt.clone()), (second, 300, prompt)];
            let mut got = Vec::new();
            for i in 0..SIZE as u32 + 2 {
                let new: Vec<(SeqId, u32)> = branches.iter().map(|(id, base, _)| (*id, base + i)).collect();
                got = step(&mut shared, &decode, &new);
                branches.iter_mut().zip(&new).for_each(|((_, _, tokens), (_, token))| tokens.push(*token));
            }
            for ((_, _, tokens), got) in branches.iter().zip(&got) {
                let mut own = cache(heads, dtype, 24, 0);
                let id = own.insert();
                assert!(feed(&mut own, &decode, id, tokens) == *got, "{heads:?} {dtype}, {common} tokens in common");
            }
        }
    }
}

/// One call copies one page per branch, in every layer, exactly, and nothing else; as `reference::copy_pages` says.
#[test]
fn one_page_is_copied_and_no_other_byte_changes() {
    let heads = small();
    for (branches, count) in [(1usize, 8usize), (5, 16), (300, 310)] {
        let mut cache = cache(heads, DType::F16, count, 0x11);
        let decode = decode(heads, DType::F16);
        let root = cache.insert();
        feed(&mut cache, &decode, root, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let ids: Vec<SeqId> = (0..branches).map(|_| cache.fork(root).unwrap()).collect();
        assert_eq!((cache.stats().used, cache.stats().shared), (2, 2));
        let before: Vec<Vec<u32>> = (0..LAYERS).map(|layer| pool(gpu(), &cache, layer)).collect();
        let counters = gpu().counters();
        cache.reserve(&ids, 1).unwrap();
        // Other tests run beside this one; what it dispatches itself is one per layer at least.
        assert!(gpu().counters().dispatches >= counters.dispatches + LAYERS as u64);
        assert_eq!(cache.stats().used, 2 + branches);
        // Pages are handed out in order, and the root's second is page 1.
        let copies: Vec<PageCopy> = (0..branches as u32).map(|i| PageCopy { source: 1, target: 2 + i }).collect();
        let pairs: Vec<(usize, usize)> = copies.iter().map(|c| (c.source as usize, c.target as usize)).collect();
        for (layer, before) in before.iter().enumerate() {
            let mut want: Vec<f64> = before.iter().map(|w| f64::from(*w)).collect();
            reference::copy_pages(&mut want, before.len() / count, &pairs).unwrap();
            let got: Vec<f64> = pool(gpu(), &cache, layer).iter().map(|w| f64::from(*w)).collect();
            let differs = got.iter().zip(&want).position(|(a, b)| a != b);
            assert!(differs.is_none(), "{branches} branches, layer {layer}: word {differs:?}");
        }
        let changed = before[0] != pool(gpu(), &cache, 0);
        assert!(changed, "nothing was copied");
    }
}

/// A page longer than the grid that copies it.
#[test]
fn long_pages_are_copied_whole() {
    let heads = HeadLayout::mha(4, 128).unwrap();
    let pages = Pages { count: 3, size: 1024, layers: 1 };
    let mut cache = PagedKvCache::new(gpu(), heads, CacheOptions::new(DType::F16, pages)).unwrap();
    let words = cache.pool_bytes() / 4;
    assert!(words / 3 / 4 > 64 * 1024, "{words} u32s");
    let root = cache.insert();
    cache.reserve(&[root], 5).unwrap();
    cache.commit(&[root], 5).unwrap();
    let fork = cache.fork(root).unwrap();
    let bytes: Vec<u32> = (0..words as u32).collect();
    gpu().submit().unwrap();
    let buffer = cache.layer(0).unwrap().wgpu_buffers()[0].clone();
    let raw: Vec<u8> = bytes.iter().flat_map(|w| w.to_le_bytes()).collect();
    gpu().queue().write_buffer(&buffer, 0, &raw);
    cache.reserve(&[fork], 1).unwrap();
    let got = pool(gpu(), &cache, 0);
    let page = words / 3;
    assert!(
        got[..page] == bytes[..page] && got[page..2 * page] == bytes[..page] && got[2 * page..] == bytes[2 * page..]
    );
}

/// A prompt of which most is found gives the bits of one that is computed whole, with NaN in what no one owns; also after
/// other sequences came and went, and when the pages had to be computed again because they were evicted.
#[test]
fn a_cached_prefix_gives_the_bits_of_a_computed_one() {
    let heads = layouts()[3];
    let decode = decode(heads, DType::F16);
    let tokens: Vec<u32> = (0..3 * SIZE as u32 + 2).collect();
    let mut own = cache(heads, DType::F16, 8, 0);
    let id = own.insert();
    let want = feed(&mut own, &decode, id, &tokens);

    let mut cache = cache(heads, DType::F16, 8, 0xff);
    let prompt = |cache: &mut PagedKvCache, salt, found| {
        let id = cache.match_prefix(&tokens, salt);
        assert_eq!(cache.len(id).unwrap(), found, "salt {salt}");
        let rest = &tokens[found..];
        assert!(feed(cache, &decode, id, rest) == want, "salt {salt}, {found} tokens found");
        id
    };
    let first = prompt(&mut cache, 0, 0);
    let second = prompt(&mut cache, 0, 3 * SIZE);
    assert_eq!((cache.stats().used, cache.stats().shared), (5, 3));
    cache.remove(first).unwrap();
    cache.remove(second).unwrap();
    assert_eq!((cache.stats().used, cache.stats().evictable), (0, 3));
    let third = prompt(&mut cache, 0, 3 * SIZE);
    cache.remove(third).unwrap();
    // Another salt finds nothing and needs 4 pages; then the first is evicted in part.
    let other = prompt(&mut cache, 1, 0);
    assert_eq!(cache.stats().evictions, 0);
    let filler = cache.insert();
    feed(&mut cache, &decode, filler, &[7; SIZE + 1]);
    assert_eq!((cache.stats().evictions, cache.stats().evictable), (1, 2));
    cache.remove(filler).unwrap();
    cache.remove(other).unwrap();
    prompt(&mut cache, 0, 2 * SIZE);
}

/// Through a window a sequence gives the same bits whether its pages are kept or freed as it moves on, and reused by
/// itself, in every kernel; what sees further is refused.
#[test]
fn a_windowed_sequence_gives_the_bits_of_one_that_keeps_all() {
    for (heads, dtype) in [(layouts()[1], DType::F16), (layouts()[4], DType::F32), (layouts()[3], DType::I8)] {
        for window in [1, SIZE, 2 * SIZE + 3] {
            let options = AttentionOptions { window: Some(window), ..Default::default() };
            let decode = Decode::with_options(gpu(), heads, dtype, options).unwrap();
            let decode = decode.with_policy(SplitPolicy::FixedTokens(16));
            let mut whole = cache(heads, dtype, 12, 0);
            // Two sequences, so that the second's entries come after entries of the first.
            let mut freed = cache(heads, dtype, 8, 0xff);
            let kept = [whole.insert(), whole.insert()];
            let moving = [
                freed.insert_with(SequenceOptions { window: Some(window), keep_first: 0 }).unwrap(),
                freed.insert_with(SequenceOptions { window: Some(window), keep_first: 0 }).unwrap(),
            ];
            for i in 0..5 * SIZE as u32 {
                let want = step(&mut whole, &decode, &[(kept[0], i), (kept[1], 500 + i)]);
                let got = step(&mut freed, &decode, &[(moving[0], i), (moving[1], 500 + i)]);
                assert!(got == want, "{heads:?} {dtype}, window {window}, token {i}");
            }
            assert!(freed.stats().used <= 2 * ((window - 1).div_ceil(SIZE) + 1), "{:?}", freed.stats());
            assert_eq!(whole.stats().used, 10);
        }
    }
    let heads = small();
    let mut cache = cache(heads, DType::F16, 8, 0);
    let id = cache.insert_with(SequenceOptions { window: Some(SIZE), keep_first: 0 }).unwrap();
    cache.reserve(&[id], 3 * SIZE).unwrap();
    cache.commit(&[id], 3 * SIZE).unwrap();
    cache.reserve(&[id], 1).unwrap();
    let decode = |window| {
        let options = AttentionOptions { window, ..Default::default() };
        Decode::with_options(gpu(), heads, DType::F16, options).unwrap()
    };
    for window in [None, Some(2 * SIZE)] {
        let error = decode(window).plan(&cache, &[id]).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "window", .. }), "{error}");
    }
    decode(Some(SIZE)).plan(&cache, &[id]).unwrap();
}

#[test]
fn budgets_and_refusals() {
    let heads = small();
    let pages = Pages::within(1 << 20, &heads, DType::F16, SIZE, LAYERS).unwrap();
    let mut cache = PagedKvCache::new(gpu(), heads, CacheOptions::new(DType::F16, pages)).unwrap();
    let page_bytes = cache.page_bytes();
    assert!(cache.pool_bytes() <= 1 << 20 && cache.pool_bytes() as u64 + page_bytes > 1 << 20);
    assert_eq!(pages.count as u64 * page_bytes, cache.pool_bytes() as u64);
    let none = Pages::within(page_bytes - 1, &heads, DType::F16, SIZE, LAYERS).unwrap_err();
    assert!(matches!(none.kind(), ErrorKind::TooLarge { needed_bytes, .. } if *needed_bytes == page_bytes), "{none}");
    for (size, layers) in [(0, 1), (1, 0)] {
        let error = Pages::within(1 << 20, &heads, DType::F16, size, layers).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { .. }), "{error}");
    }

    cache.set_byte_budget(3 * page_bytes + 1).unwrap();
    let id = cache.insert();
    cache.reserve(&[id], 2 * SIZE).unwrap();
    assert_eq!((cache.stats().bytes, cache.stats().free), (2 * page_bytes, 1));
    let wanted = [(id, SIZE + 1)];
    for error in [cache.check_reserve(&wanted).unwrap_err(), cache.reserve_each(&wanted).unwrap_err()] {
        assert_eq!(*error.kind(), ErrorKind::CacheFull { needed: 2, free: 1 });
    }
    assert_eq!(*cache.set_byte_budget(page_bytes).unwrap_err().kind(), ErrorKind::CacheFull { needed: 2, free: 1 });
    cache.set_byte_budget(u64::MAX).unwrap();
    cache.check_reserve(&wanted).unwrap();
    let stats = cache.stats();
    let mut other =
        PagedKvCache::new(gpu(), heads, CacheOptions::new(DType::F16, Pages { count: 2, size: SIZE, layers: 1 }))
            .unwrap();
    let foreign = other.insert();
    for result in [
        cache.fork(foreign).map(drop),
        cache.pin(foreign),
        cache.unpin(id),
        cache.commit_tokens(&[(foreign, &[])]),
        cache.tokens(foreign).map(drop),
        cache.reserve_each(&[(foreign, 1)]),
    ] {
        assert!(matches!(result.unwrap_err().kind(), ErrorKind::UnknownSequence { .. }));
    }
    let error = cache.commit_tokens(&[(id, &[]), (id, &[])]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::RepeatedSequence { .. }));
    let error = cache.commit_tokens(&[(id, &[0; 2 * SIZE + 1])]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Argument { name: "n", .. }), "{error}");
    assert_eq!(cache.stats(), stats);
}

/// The copy of a page needs the device; without it a reservation fails, and the sequences are as they were.
#[test]
fn a_lost_device_leaves_shared_pages_as_they_were() {
    let gpu = gpu_with(GpuOptions::default());
    let pages = Pages { count: 4, size: SIZE, layers: 1 };
    let mut cache = PagedKvCache::new(&gpu, small(), CacheOptions::new(DType::F16, pages)).unwrap();
    let root = cache.insert();
    cache.reserve(&[root], 3).unwrap();
    cache.commit(&[root], 3).unwrap();
    let fork = cache.fork(root).unwrap();
    let (stats, batch) = (cache.stats(), cache.batch(&[root, fork]).unwrap());
    gpu.device().destroy();
    for n in [1, SIZE] {
        let error = cache.reserve(&[root, fork], n).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::DeviceLost { .. }), "{error}");
        let after = cache.batch(&[root, fork]).unwrap();
        assert_eq!((cache.stats(), &after.page_table), (stats, &batch.page_table));
        assert_eq!(after.sequences, batch.sequences);
    }
    // What needs no copy needs no device.
    cache.remove(fork).unwrap();
    cache.reserve(&[root], 1).unwrap();
}
