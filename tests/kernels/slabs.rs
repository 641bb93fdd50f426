//! Pages in several slabs: where a layer's are more than the device binds at once, and where a cache grows and shrinks.

use crate::append::pool;
use crate::case::Case;
use crate::common::{bits, gpu, gpu_with, layouts, place, small, wait, Rng, PLACES};
use crate::device::poor_device;
use latten::cache::{Save, SaveSequence};
use latten::{
    wgpu, CacheOptions, DType, Decode, DecodeArgs, ErrorKind, Gpu, GpuOptions, HeadLayout, PagedKvCache, Pages, SeqId,
    SplitPolicy, Tensor, Tier,
};
use std::sync::OnceLock;

const MIB: u64 = 1 << 20;

/// Devices that bind 1 MiB at once, through kernels of 8 storage buffers (two slabs) and of 10 (four): those of the test that
/// runs here, as [`gpu`] is.
fn narrow() -> &'static [Gpu; 2] {
    static GPUS: [OnceLock<[Gpu; 2]>; PLACES] = [const { OnceLock::new() }; PLACES];
    GPUS[place()].get_or_init(|| {
        [8, 10].map(|max_storage_buffers_per_shader_stage| {
            poor_device(|all| wgpu::Limits {
                max_storage_buffer_binding_size: MIB,
                max_storage_buffers_per_shader_stage,
                ..all
            })
        })
    })
}

/// A ragged batch whose pages, so many bytes of them, are more than one binding.
fn case(heads: HeadLayout, dtype: DType, page_size: usize, bytes: u64) -> Case {
    let pages = Pages { count: 1, size: page_size, layers: 1 };
    let token = PagedKvCache::new(gpu(), heads, CacheOptions::new(dtype, pages)).unwrap().token_bytes() as u64;
    let tokens = (bytes / token) as usize;
    let lengths = vec![(tokens / 2, 3), (1, 1), (tokens / 3, 1), (tokens / 12, 0), (tokens / 12, 16)];
    Case { heads, dtype, page_size, lengths, policy: SplitPolicy::FixedTokens(512), seed: 5 }
}

/// Every kind of row through slabs: right by the reference, and bit for bit what one buffer gives. How a kernel finds a word
/// in slabs depends on their number, not on layout or dtype: on a software GPU, which takes seconds to compile each of these
/// kernels, a layout has one dtype and one number of slabs, unless it is to be `all`; in the run for t0 the other number.
fn as_one_buffer(of: std::ops::Range<usize>, all: bool) {
    let dtypes = [DType::F16, DType::F32, DType::BF16, DType::I8, DType::I4];
    let all = all || !gpu().capabilities().is_software();
    for (i, heads) in layouts().into_iter().enumerate().filter(|(i, _)| of.contains(i)) {
        // Each layout in two dtypes, each page size with each; f16 for all, since matrix kernels are for it alone.
        let two = [(DType::F16, [16, 1, 64][i % 3]), (dtypes[1 + i % 4], [1, 64, 16][i % 3])];
        let one = [(dtypes[i % 5], [16, 1, 64][i % 3])];
        for &(dtype, page_size) in if all { &two[..] } else { &one[..] } {
            let turn = i + usize::from(gpu().capabilities().tier == Tier::Portable);
            let numbers = narrow().iter().zip([2, 4]).enumerate();
            for (_, (gpu, slabs)) in numbers.filter(|(k, _)| all || (turn + k) % 2 == 0) {
                let case = case(heads, dtype, page_size, (slabs - 1) * MIB + MIB / 4);
                let results = case.run_poisoned(gpu, 0xff);
                // The reference takes seconds; and what one buffer gives is compared with it in many other tests.
                if i == 3 {
                    case.compare_all(&results);
                }
                let whole = case.run_poisoned(crate::common::gpu(), 0);
                for (got, want) in results.iter().zip(&whole) {
                    assert!(
                        bits(&got.out) == bits(&want.out) && bits(&got.lse) == bits(&want.lse),
                        "{slabs} slabs: {heads:?} {dtype}"
                    );
                }
                let (cache, _) = case.fill(gpu, &case.draw(), 0);
                assert_eq!(cache.layer(0).unwrap().wgpu_buffers().len(), slabs as usize, "{heads:?} {dtype}");
            }
        }
    }
}

// Parts that run side by side.
#[test]
fn results_are_those_of_one_buffer_0() {
    as_one_buffer(0..2, false);
}

#[test]
fn results_are_those_of_one_buffer_1() {
    as_one_buffer(2..4, false);
}

#[test]
fn results_are_those_of_one_buffer_2() {
    as_one_buffer(4..6, false);
}

#[test]
#[ignore = "long: every dtype in each number of slabs; minutes of software GPU"]
fn results_are_those_of_one_buffer_in_each_number_of_slabs() {
    as_one_buffer(0..6, true);
}

/// What does not fit the slabs is refused with the numbers, and one page more than fits already.
#[test]
fn more_than_the_slabs_hold_is_refused() {
    for (gpu, slabs) in narrow().iter().zip([2u64, 4]) {
        assert_eq!(gpu.capabilities().max_slabs() as u64, slabs);
        let heads = small();
        let page = {
            let pages = Pages { count: 1, size: 64, layers: 1 };
            PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F16, pages)).unwrap().page_bytes()
        };
        let most = (MIB / page * slabs) as usize;
        let new = |count, grows: bool| {
            let pages = Pages { count, size: 64, layers: 2 };
            PagedKvCache::new(gpu, heads, CacheOptions { grows, ..CacheOptions::new(DType::F16, pages) })
        };
        assert!(new(most, false).is_ok() && new(most, true).is_ok());
        for grows in [false, true] {
            let error = new(most + 1, grows).err().unwrap();
            match error.kind() {
                ErrorKind::TooLarge { needed_bytes, limit_bytes, .. } => {
                    assert_eq!((*needed_bytes, *limit_bytes), ((most as u64 + 1) * page, most as u64 * page));
                }
                _ => panic!("{error}"),
            }
        }
        // A page that no slab holds.
        let error = PagedKvCache::new(
            gpu,
            layouts()[5],
            CacheOptions::new(DType::F32, Pages { count: 1, size: 4096, layers: 1 }),
        );
        assert!(matches!(error.err().unwrap().kind(), ErrorKind::TooLarge { limit_bytes: 0, .. }));
    }
}

/// Adds a token to each of these sequences in all layers and attends in all; returns the bits of the results.
pub fn step(gpu: &Gpu, cache: &mut PagedKvCache, decode: &Decode, new: &[(SeqId, u64)]) -> Vec<u32> {
    let heads = *cache.heads();
    let ids: Vec<SeqId> = new.iter().map(|(id, _)| *id).collect();
    cache.reserve(&ids, 1).unwrap();
    let plan = decode.plan(cache, &ids).unwrap();
    let mut all = Vec::new();
    for layer in 0..cache.pages().layers {
        let values = |seed: u64, width| new.iter().flat_map(move |(_, t)| Rng(t * 7 + seed).values(width));
        let kv: Vec<f32> = values(layer as u64, heads.kv_dim()).collect();
        let kv = Tensor::from_slice(gpu, &[new.len(), heads.kv_dim()], &kv, DType::F32).unwrap();
        cache.append(layer, &ids, &kv).unwrap();
        let q: Vec<f32> = values(99, heads.q_heads() * heads.q_dim()).collect();
        let q = Tensor::from_slice(gpu, &[new.len(), heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
        let got = decode.run(DecodeArgs::new(&plan, &cache.layer(layer).unwrap(), &q, 0.25)).unwrap();
        all.extend(bits(&wait(gpu.download(&got.out)).unwrap()));
    }
    cache.commit(&ids, 1).unwrap();
    all
}

const PAGES: Pages = Pages { count: 22, size: 4, layers: 2 };

fn decode(gpu: &Gpu) -> Decode {
    Decode::new(gpu, small(), DType::F16).unwrap().with_policy(SplitPolicy::FixedTokens(8))
}

/// A cache that grows gives, step by step and through forks, the bits of one that has all its memory; views taken before
/// see the new slabs; between the growths nothing is made.
#[test]
fn a_cache_grows_by_slabs_and_no_page_moves() {
    let gpu = gpu_with(GpuOptions::default());
    let mut growing =
        PagedKvCache::new(&gpu, small(), CacheOptions { grows: true, ..CacheOptions::new(DType::F16, PAGES) }).unwrap();
    let mut fixed = PagedKvCache::new(&gpu, small(), CacheOptions::new(DType::F16, PAGES)).unwrap();
    let slab_bytes = |slabs: usize| PAGES.layers * growing_pages(slabs) * fixed_page_bytes(&gpu);
    assert_eq!((growing.pool_bytes(), fixed.pool_bytes()), (slab_bytes(1), slab_bytes(4)));
    let early = growing.layer(1).unwrap();
    let decode = decode(&gpu);
    let mut pairs = vec![(growing.insert(), fixed.insert())];
    let mut sizes = vec![growing.pool_bytes()];
    for token in 0..28u64 {
        if token % 9 == 5 {
            let (a, b) = pairs[0];
            pairs.push((growing.fork(a).unwrap(), fixed.fork(b).unwrap()));
        }
        let new = |pick: fn(&(SeqId, SeqId)) -> SeqId| -> Vec<(SeqId, u64)> {
            pairs.iter().enumerate().map(|(i, pair)| (pick(pair), 100 * i as u64 + token)).collect()
        };
        let want = step(&gpu, &mut fixed, &decode, &new(|pair| pair.1));
        let before = gpu.counters().buffers;
        // The step's own tensors: rows and queries of each layer.
        let tensors = 2 * PAGES.layers as u64;
        assert!(step(&gpu, &mut growing, &decode, &new(|pair| pair.0)) == want, "token {token}");
        let made = gpu.counters().buffers - before - tensors;
        let slabs = if growing.pool_bytes() == *sizes.last().unwrap() { 0 } else { PAGES.layers as u64 };
        // The first plan of a cache gets a buffer of its own.
        assert_eq!(made, slabs + u64::from(token == 0), "buffers made at token {token}");
        if slabs > 0 {
            sizes.push(growing.pool_bytes());
        }
        assert!(growing.stats() == fixed.stats());
    }
    assert_eq!(sizes, [1, 2, 3, 4].map(slab_bytes));
    assert_eq!(early.wgpu_buffers().len(), 4);
    assert_eq!(pool(&gpu, &growing, 1), pool(&gpu, &fixed, 1));
}

/// Pages of the first so many of four slabs of [`PAGES`].
fn growing_pages(slabs: usize) -> usize {
    (6 * slabs).min(22)
}

fn fixed_page_bytes(gpu: &Gpu) -> usize {
    PagedKvCache::new(gpu, small(), CacheOptions::new(DType::F16, Pages { layers: 1, ..PAGES })).unwrap().page_bytes()
        as usize
}

/// Slabs that nothing needs go, what is held stays where it is, and what went comes again.
#[test]
fn a_cache_shrinks_and_grows_again() {
    let gpu = gpu();
    let mut cache =
        PagedKvCache::new(gpu, small(), CacheOptions { grows: true, ..CacheOptions::new(DType::F16, PAGES) }).unwrap();
    let decode = decode(gpu);
    let slab_bytes = |slabs: usize| PAGES.layers * growing_pages(slabs) * fixed_page_bytes(gpu);
    let first = cache.insert();
    let mut want = Vec::new();
    for token in 0..30 {
        want = step(gpu, &mut cache, &decode, &[(first, token)]);
    }
    // Pages 8 to 21, in the tree.
    let tokens: Vec<u32> = (0..56).collect();
    let second = cache.match_prefix(&tokens, 0);
    cache.reserve(&[second], 56).unwrap();
    cache.commit_tokens(&[(second, &tokens)]).unwrap();
    assert_eq!((cache.pool_bytes(), cache.shrink().unwrap()), (slab_bytes(4), 0), "all in use");
    cache.remove(second).unwrap();
    assert_eq!((cache.stats().used, cache.stats().evictable), (8, 14));
    // Kept pages in the first sequence's second slab stay, but for those that follow, the ones in the third and fourth.
    assert_eq!(cache.shrink().unwrap() as usize, slab_bytes(4) - slab_bytes(2));
    let stats = cache.stats();
    assert_eq!((stats.used, stats.evictable, stats.free, stats.evictions), (8, 4, 10, 10));
    assert_eq!((cache.pool_bytes(), cache.shrink().unwrap()), (slab_bytes(2), 0));
    // The sequence is as it was.
    cache.truncate(first, 29).unwrap();
    assert!(step(gpu, &mut cache, &decode, &[(first, 29)]) == want);
    // Sixteen pages to be had: ten of slabs that are gone, then evicted ones.
    let third = cache.insert();
    cache.reserve(&[third], 4 * 10).unwrap();
    assert_eq!((cache.pool_bytes(), cache.stats().evictable), (slab_bytes(4), 4));
    for id in [first, third] {
        cache.remove(id).unwrap();
    }
    // Empty but for what is kept, which goes with its slab but for the first.
    assert_eq!(cache.shrink().unwrap() as usize, slab_bytes(4) - slab_bytes(1));
    assert_eq!((cache.stats().used, cache.stats().evictable, cache.pool_bytes()), (0, 0, slab_bytes(1)));
    // One buffer has nothing to give.
    let mut whole = PagedKvCache::new(gpu, small(), CacheOptions::new(DType::F16, PAGES)).unwrap();
    assert_eq!((whole.shrink().unwrap(), whole.pool_bytes()), (0, slab_bytes(4)));
}

/// A slab that cannot be allocated: the error, and the cache as it was.
#[test]
fn a_failed_growth_changes_nothing() {
    let gpu = gpu_with(GpuOptions::default());
    let mut cache =
        PagedKvCache::new(&gpu, small(), CacheOptions { grows: true, ..CacheOptions::new(DType::F16, PAGES) }).unwrap();
    let ids = [cache.insert(), cache.insert()];
    cache.reserve(&ids, 10).unwrap();
    cache.commit(&ids, 10).unwrap();
    let (stats, bytes) = (cache.stats(), cache.pool_bytes());
    gpu.device().destroy();
    let error = cache.reserve(&ids, 3).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::DeviceLost { .. }), "{error}");
    assert_eq!((cache.stats(), cache.pool_bytes(), cache.len(ids[1]).unwrap()), (stats, bytes, 10));
}

/// From slabs to a file and into one buffer, and back into slabs that grow as the file needs them.
#[test]
fn a_save_does_not_know_of_slabs() {
    let gpu = gpu();
    for (heads, dtype) in [(small(), DType::F16), (layouts()[4], DType::I8)] {
        let mut source =
            PagedKvCache::new(gpu, heads, CacheOptions { grows: true, ..CacheOptions::new(dtype, PAGES) }).unwrap();
        let decode = Decode::new(gpu, heads, dtype).unwrap().with_policy(SplitPolicy::FixedTokens(8));
        let id = source.insert();
        for token in 0..85 {
            step(gpu, &mut source, &decode, &[(id, token)]);
        }
        assert_eq!(source.layer(0).unwrap().wgpu_buffers().len(), 4);
        let save = |cache: &PagedKvCache, id| {
            let (mut bytes, sequences) = (Vec::new(), [SaveSequence { id, tokens: &[] }]);
            wait(cache.save(Save { sequences: &sequences, fingerprint: b"m" }, &mut bytes, |_| {})).unwrap();
            bytes
        };
        let bytes = save(&source, id);
        let mut whole =
            PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, Pages { count: 2, size: 64, layers: 2 })).unwrap();
        let copy = wait(whole.load(b"m", &bytes[..], |_| {})).unwrap()[0].id;
        let mut again =
            PagedKvCache::new(gpu, heads, CacheOptions { grows: true, ..CacheOptions::new(dtype, PAGES) }).unwrap();
        let back = wait(again.load(b"m", &save(&whole, copy)[..], |_| {})).unwrap()[0].id;
        assert!(save(&again, back) == bytes, "{dtype}");
        let want = step(gpu, &mut source, &decode, &[(id, 85)]);
        assert!(want == step(gpu, &mut whole, &decode, &[(copy, 85)]));
        assert!(want == step(gpu, &mut again, &decode, &[(back, 85)]));
    }
}
