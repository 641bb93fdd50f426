//! A cache on another device, after its own was lost.

use crate::common::{gpu, gpu_with, small, wait};
use crate::device::poor_device;
use crate::slabs::step;
use latten::cache::{EmptiedSequence, Save, SaveSequence};
use latten::{
    wgpu, CacheOptions, DType, Decode, DecodeArgs, ErrorKind, Gpu, GpuOptions, KvSource, PagedKvCache, Pages, Rope,
    RopePairs, SeqId, SplitPolicy,
};

const PAGES: Pages = Pages { count: 40, size: 4, layers: 2 };

fn decode(gpu: &Gpu) -> Decode {
    Decode::new(gpu, small(), DType::F16).unwrap().with_policy(SplitPolicy::FixedTokens(8))
}

fn rotated(gpu: &Gpu, grows: bool) -> PagedKvCache {
    let rope = Some(Rope { inv_freq: vec![1.0, 0.5, 0.25, 0.125], pairs: RopePairs::Half });
    PagedKvCache::new(gpu, small(), CacheOptions { grows, rope, ..CacheOptions::new(DType::F16, PAGES) }).unwrap()
}

/// Tokens one by one; the bits of the last.
fn feed(gpu: &Gpu, cache: &mut PagedKvCache, decode: &Decode, id: SeqId, tokens: &[u32]) -> Vec<u32> {
    let mut last = Vec::new();
    for token in tokens {
        last = step(gpu, cache, decode, &[(id, u64::from(*token))]);
    }
    last
}

/// Lost, made anew on a second device, its sequences fed again: what follows has the bits of a cache that never was lost.
#[test]
fn sequences_go_on_where_they_are_fed_again() {
    for grows in [false, true] {
        let (first, second) = (gpu_with(GpuOptions::default()), gpu());
        let mut cache = rotated(&first, grows);
        let own = decode(&first);
        let tokens: Vec<u32> = (0..23).collect();
        let known = cache.match_prefix(&[], 3);
        let (plain, empty) = (cache.insert(), cache.insert());
        for token in &tokens {
            cache.reserve(&[known], 1).unwrap();
            cache.commit_tokens(&[(known, &[*token])]).unwrap();
        }
        feed(&first, &mut cache, &own, plain, &tokens[..9]);
        let fork = cache.fork(plain).unwrap();
        cache.pin(known).unwrap();
        cache.reserve(&[plain], 2).unwrap();
        cache.set_byte_budget(30 * cache.page_bytes()).unwrap();
        let view = cache.layer(0).unwrap();

        first.device().destroy();
        assert!(matches!(cache.cos_sin(&[plain]).unwrap_err().kind(), ErrorKind::DeviceLost { .. }));
        let emptied = cache.rebuild(second).unwrap();
        let want = [(known, 23, Some(tokens.clone())), (plain, 9, None), (fork, 9, None)];
        let got: Vec<_> =
            emptied.into_iter().map(|EmptiedSequence { id, len, tokens, .. }| (id, len, tokens)).collect();
        assert_eq!(got, want);
        let stats = cache.stats();
        assert_eq!((stats.total, stats.used, stats.evictable, stats.free), (30, 0, 0, 30));
        assert!([known, plain, fork, empty].iter().all(|id| cache.len(*id).unwrap() == 0));
        assert!(matches!(cache.unpin(known).unwrap_err().kind(), ErrorKind::UnknownSequence { .. }));

        let own = decode(second);
        let mut whole = rotated(second, false);
        let other = whole.insert();
        assert!(feed(second, &mut cache, &own, plain, &tokens) == feed(second, &mut whole, &own, other, &tokens));
        // What was known is known again once its tokens are committed.
        cache.reserve(&[known], 23).unwrap();
        cache.commit_tokens(&[(known, &tokens)]).unwrap();
        let found = cache.match_prefix(&tokens, 3);
        assert_eq!((cache.len(found).unwrap(), cache.stats().hits), (20, 5));
        // A view of the old memory is none of the new.
        cache.reserve(&[plain], 1).unwrap();
        let plan = own.plan(&cache, &[plain]).unwrap();
        let q = latten::Tensor::zeros(second, &[1, 4, small().q_dim()], DType::F32).unwrap();
        let error = own.run(DecodeArgs::new(&plan, &view, &q, 0.25)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::StalePlan { .. }), "{error}");
    }
}

/// What was saved needs no computing, and a device of other limits cuts the pages in its own way.
#[test]
fn saved_sequences_come_back_on_a_device_of_other_limits() {
    let (first, pages) = (gpu(), Pages { count: 400, size: 64, layers: 2 });
    let mut cache = PagedKvCache::new(first, small(), CacheOptions::new(DType::F16, pages)).unwrap();
    let own = decode(first);
    let id = cache.insert();
    let tokens: Vec<u32> = (0..30).collect();
    feed(first, &mut cache, &own, id, &tokens);
    let (mut file, sequences) = (Vec::new(), [SaveSequence { id, tokens: &tokens }]);
    wait(cache.save(Save { sequences: &sequences, fingerprint: b"m" }, &mut file, |_| {})).unwrap();
    let want = feed(first, &mut cache, &own, id, &[77]);

    let narrow = poor_device(|all| wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..all });
    assert_eq!(cache.layer(0).unwrap().wgpu_buffers().len(), 1);
    assert_eq!(cache.rebuild(&narrow).unwrap().len(), 1);
    assert!(cache.layer(0).unwrap().wgpu_buffers().len() > 1);
    let back = wait(cache.load(b"m", &file[..], |_| {})).unwrap().remove(0);
    assert_eq!((back.tokens, cache.generation() > 0), (tokens, true));
    assert!(feed(&narrow, &mut cache, &decode(&narrow), back.id, &[77]) == want);
}

/// Where the other device has no room, everything stays.
#[test]
fn a_device_too_small_changes_nothing() {
    let pages = Pages { count: 4000, size: 64, layers: 1 };
    let mut cache = PagedKvCache::new(gpu(), small(), CacheOptions::new(DType::F16, pages)).unwrap();
    let own = decode(gpu());
    let (id, same) = (cache.insert(), cache.insert());
    let tokens: Vec<u32> = (0..13).collect();
    feed(gpu(), &mut cache, &own, id, &tokens);
    let want = feed(gpu(), &mut cache, &own, same, &[&tokens[..], &[5]].concat());
    let narrow = poor_device(|all| wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..all });
    let (stats, generation) = (cache.stats(), cache.generation());
    let error = cache.rebuild(&narrow).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
    assert_eq!((cache.stats(), cache.generation()), (stats, generation));
    assert!(feed(gpu(), &mut cache, &own, id, &[5]) == want);
}
