//! Caches of integers under keys with a few large channels, as Qwen2's biases make them.

use crate::append::pool;
use crate::common::{gpu, nmse, wait, Rng};
use crate::integers::{held, INTEGERS};
use latten::cache::{Save, SaveSequence};
use latten::kv::{Append, KvSource};
use latten::nn::{RopeWideArgs, RopeWideKernel, Span};
use latten::reference;
use latten::reference::{Angles, DecodeInputs};
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, ErrorKind, Gpu, Gqa, HeadLayout, PagedKvCache, Pages, Rope, RopePairs,
    SavedFault, SeqId, SplitPolicy, Tensor, WideChannels,
};

/// Whole pairs where the width allows it, others in every layer and group.
pub fn channels(heads: &HeadLayout, layers: usize) -> WideChannels {
    let (wide, half) = (heads.wide_dim(), heads.nope_dim() / 2);
    let of = |l: usize, g: usize| {
        let pairs = (0..wide / 2).map(|i| (i * 3 + l + 2 * g) % half);
        let mut all: Vec<u32> = Vec::new();
        for i in pairs.flat_map(|i| [i, i + half]).map(|i| i as u32) {
            if !all.contains(&i) {
                all.push(i);
            }
        }
        all
    };
    let layers: Vec<_> = (0..layers).map(|l| (0..heads.groups()).map(|g| of(l, g)).collect()).collect();
    WideChannels::new(heads, &layers).unwrap()
}

/// The elements of a row that are wide channels in the first layer, in the order in which they are kept.
pub fn elements(wide: &WideChannels) -> impl Iterator<Item = usize> + '_ {
    let heads = *wide.heads();
    let of = move |g: usize| wide.of(0, g).iter().map(move |c| g * heads.state_dim() + *c as usize);
    (0..heads.groups()).flat_map(of)
}

/// Adds a bias of about `size` to the wide channels of rows.
pub fn enlarge(wide: &WideChannels, rows: &mut [f32], size: f32) {
    for row in rows.chunks_exact_mut(wide.heads().kv_dim()) {
        elements(wide).enumerate().for_each(|(i, at)| row[at] += size * [1.0, -0.7, 0.4, 0.2][i % 4]);
    }
}

/// A cache of one sequence, and what was appended to it; each layer the same.
struct World {
    heads: HeadLayout,
    dtype: DType,
    wide: WideChannels,
    rotation: RopePairs,
    inv_freq: Vec<f64>,
    /// (tokens, kv_dim), not rotated
    rows: Vec<f32>,
    /// (q_len, q_heads, head_dim), not rotated
    q: Vec<f32>,
    q_len: usize,
}

impl World {
    /// Normal rows of so many tokens, whose wide channels have a bias of this size.
    fn new(heads: HeadLayout, dtype: DType, rotation: RopePairs, (tokens, q_len): (usize, usize), size: f32) -> World {
        let (mut rng, wide) = (Rng(7), channels(&heads, 1));
        let mut rows = rng.values(tokens * heads.kv_dim());
        enlarge(&wide, &mut rows, size);
        let q = rng.values(q_len * heads.q_heads() * heads.nope_dim()).into_iter().map(|v| v * 1.5).collect();
        let inv_freq = match rotation {
            RopePairs::None => Vec::new(),
            _ => reference::inv_freq(1e6, heads.nope_dim()).unwrap(),
        };
        World { heads, dtype, wide, rotation, inv_freq, rows, q, q_len }
    }

    fn tokens(&self) -> usize {
        self.rows.len() / self.heads.kv_dim()
    }

    fn scale(&self) -> f32 {
        (self.heads.nope_dim() as f32).powf(-0.5)
    }

    fn cache(&self, gpu: &Gpu, page_size: usize) -> PagedKvCache {
        let pages = Pages { count: self.tokens() / page_size + 2, size: page_size, layers: 1 };
        let cache = PagedKvCache::new(gpu, self.heads, self.options(self.dtype, pages)).unwrap();
        cache.with_wide_channels(&self.wide).unwrap()
    }

    fn options(&self, dtype: DType, pages: Pages) -> CacheOptions {
        let inv_freq = self.inv_freq.iter().map(|v| *v as f32).collect();
        let rope = (self.rotation != RopePairs::None).then_some(Rope { inv_freq, pairs: self.rotation });
        CacheOptions { rope, ..CacheOptions::new(dtype, pages) }
    }

    /// Tokens `from..` of the rows.
    fn kv(&self, gpu: &Gpu, tokens: std::ops::Range<usize>) -> Tensor {
        let width = self.heads.kv_dim();
        let rows = &self.rows[tokens.start * width..tokens.end * width];
        Tensor::from_slice(gpu, &[tokens.len(), width], rows, DType::F32).unwrap()
    }

    /// All but the new tokens.
    fn fill(&self, gpu: &Gpu, cache: &mut PagedKvCache) -> SeqId {
        let (id, old) = (cache.insert(), self.tokens() - self.q_len);
        cache.reserve(&[id], old).unwrap();
        cache.append(0, &[id], &self.kv(gpu, 0..old)).unwrap();
        cache.commit(&[id], old).unwrap();
        id
    }

    /// Out and LSE of the new tokens.
    fn step(&self, gpu: &Gpu, cache: &mut PagedKvCache, id: SeqId) -> (Vec<f32>, Vec<f32>) {
        let decode = Decode::new(gpu, self.heads, self.dtype).unwrap().with_policy(SplitPolicy::FixedTokens(64));
        let rotate = RopeWideKernel::new(gpu, self.heads, self.rotation).unwrap();
        cache.reserve(&[id], self.q_len).unwrap();
        let (plan, cos_sin) = (decode.plan(cache, &[id]).unwrap(), cache.cos_sin(&[id]).unwrap());
        let (heads, rows) = (self.heads, self.q_len);
        let x = Tensor::from_slice(gpu, &[rows, heads.q_heads(), heads.nope_dim()], &self.q, DType::F32).unwrap();
        let q = Tensor::zeros(gpu, &[rows, heads.q_heads(), heads.q_dim()], DType::F32).unwrap();
        let layer = cache.layer(0).unwrap();
        let (x, y) = (Span::of(&x), Span::of(&q));
        rotate.run(RopeWideArgs { rows, layer: &layer, cos_sin: &cos_sin, x, y }).unwrap();
        cache.append(0, &[id], &self.kv(gpu, self.tokens() - rows..self.tokens())).unwrap();
        let got = decode.run(DecodeArgs::new(&plan, &layer, &q, self.scale())).unwrap();
        (wait(gpu.download(&got.out)).unwrap(), wait(gpu.download(&got.lse)).unwrap())
    }

    fn turn(&self, key: &mut [f64], position: usize) {
        if self.rotation == RopePairs::None {
            return;
        }
        let pairs = if self.rotation == RopePairs::Interleaved {
            reference::RopePairs::Interleaved
        } else {
            reference::RopePairs::Half
        };
        let rotation = reference::Rope { inv_freq: self.inv_freq.clone(), pairs, angles: Angles::F32 };
        reference::rope(key, position as u32, &rotation).unwrap();
    }

    /// Rotated queries.
    fn queries(&self) -> Vec<f64> {
        let mut q: Vec<f64> = self.q.iter().map(|v| f64::from(*v)).collect();
        for (i, query) in q.chunks_exact_mut(self.heads.nope_dim()).enumerate() {
            self.turn(query, self.tokens() - self.q_len + i / self.heads.q_heads());
        }
        q
    }

    /// Over the rows before rounding, in f64; (tokens, groups * state_dim) and no wide channels.
    fn exact(&self) -> (Vec<f64>, Vec<f64>) {
        let mut states: Vec<f64> = self.rows.iter().map(|v| f64::from(*v)).collect();
        let (width, head_dim) = (self.heads.state_dim(), self.heads.nope_dim());
        for (i, state) in states.chunks_exact_mut(width).enumerate() {
            self.turn(&mut state[..head_dim], i / self.heads.groups());
        }
        let plain = Gqa { q_heads: self.heads.q_heads(), kv_heads: self.heads.groups(), head_dim };
        self.attend(&HeadLayout::gqa(plain).unwrap(), (&self.queries(), &states, &[]))
    }

    /// Over what the cache holds.
    fn held(&self, memory: &[u32], page_size: usize, slots: &[u32]) -> (Vec<f64>, Vec<f64>) {
        let (mut states, mut wide) = (Vec::new(), Vec::new());
        for slot in slots {
            let row = held(self.heads, self.dtype, page_size, memory, *slot as usize);
            let (state, halves) = row.split_at(self.heads.groups() * self.heads.state_dim());
            states.extend(state.iter().map(|v| f64::from(*v)));
            wide.extend(halves.iter().map(|v| f64::from(*v)));
        }
        let q = reference::wide_queries(&self.wide, 0, &self.queries()).unwrap();
        self.attend(&self.heads, (&q, &states, &wide))
    }

    fn attend(&self, heads: &HeadLayout, (q, states, rope_keys): (&[f64], &[f64], &[f64])) -> (Vec<f64>, Vec<f64>) {
        let inputs = DecodeInputs { q, states, rope_keys, softmax_scale: f64::from(self.scale()), causal: true };
        let attended = reference::decode(heads, &inputs).unwrap();
        (attended.out, attended.lse)
    }
}

/// Every slot of every page of the one sequence, by token.
fn slots(cache: &PagedKvCache, tokens: usize) -> Vec<u32> {
    let size = cache.pages().size;
    // The lowest pages first, and nothing else is in the cache.
    (0..tokens.div_ceil(size) * size).map(|slot| slot as u32).take(tokens).collect()
}

/// The kernels against the reference over what the cache holds: rows of all kernels, with and without rotation.
fn compare(heads: HeadLayout, (dtype, rotation, q_len, size): (DType, RopePairs, usize, f32)) {
    let (gpu, world) = (gpu(), World::new(heads, dtype, rotation, (200 + q_len, q_len), size));
    let mut cache = world.cache(gpu, 16);
    let id = world.fill(gpu, &mut cache);
    let (out, lse) = world.step(gpu, &mut cache, id);
    let memory = pool(gpu, &cache, 0);
    let (want, want_lse) = world.held(&memory, 16, &slots(&cache, world.tokens()));
    let what = format!("{heads:?} {dtype} {rotation:?} {q_len} tokens, {:?}", gpu.capabilities().tier);
    let error = nmse(&out, &want);
    // That of any cache; with scores of 40 * 1.5 their f32 rounding on top.
    assert!(error <= if size > 10.0 { 1e-8 } else { 1e-9 }, "{what}: NMSE {error:e}");
    for (got, want) in lse.iter().zip(&want_lse) {
        assert!((f64::from(*got) - want).abs() <= 2e-5 + 1e-6 * want.abs(), "{what}: {got}, wanted {want}");
    }
}

const CASES: [(DType, RopePairs, usize, f32); 3] = [
    (DType::I8, RopePairs::Half, 1, 40.0),
    (DType::I8, RopePairs::None, 9, 3.0),
    (DType::I4, RopePairs::Half, 2, 40.0),
];

#[test]
fn decode_reads_wide_channels() {
    let heads = HeadLayout::gqa_wide(Gqa { q_heads: 3, kv_heads: 3, head_dim: 20 }, 2).unwrap();
    CASES.into_iter().for_each(|case| compare(heads, case));
}

#[test]
#[ignore = "long: kernels of more layouts, which software GPUs take a minute to compile"]
fn decode_reads_wide_channels_of_more_layouts() {
    for (q_heads, kv_heads, head_dim, wide) in [(4, 1, 128, 8), (8, 4, 64, 4), (14, 2, 64, 16)] {
        let heads = HeadLayout::gqa_wide(Gqa { q_heads, kv_heads, head_dim }, wide).unwrap();
        CASES.into_iter().for_each(|case| compare(heads, case));
    }
}

/// The fault that wide channels mend: what biases of norms up to 900 do to the output, against the rows before rounding. Not
/// more than 3 times what there is without a bias; a plain cache has noise there (0.3 to 1).
#[test]
fn large_biases_cost_nothing() {
    let gqa = Gqa { q_heads: 4, kv_heads: 1, head_dim: 128 };
    let heads = HeadLayout::gqa_wide(gqa, 4).unwrap();
    for dtype in INTEGERS {
        for rotation in [RopePairs::None, RopePairs::Half] {
            let error = |size: f32| {
                let (gpu, world) = (gpu(), World::new(heads, dtype, rotation, (256, 1), size));
                let mut cache = world.cache(gpu, 64);
                let id = world.fill(gpu, &mut cache);
                nmse(&world.step(gpu, &mut cache, id).0, &world.exact().0)
            };
            let none = error(0.0);
            assert!(none <= if dtype == DType::I8 { 3e-4 } else { 1e-1 }, "{dtype}: {none:e}");
            for size in [10.0, 50.0, 150.0, 400.0, 700.0] {
                let got = error(size);
                println!("{dtype} {rotation:?} size {size}: {got:.1e}");
                assert!(got <= 3.0 * none, "{dtype} {rotation:?} size {size}: NMSE {got:e}, {none:e} without");
            }
        }
    }
    // What the same rows are in a plain cache: that the test can fail.
    let world = World::new(heads, DType::I8, RopePairs::None, (256, 1), 400.0);
    let plain = HeadLayout::gqa(gqa).unwrap();
    let mut states: Vec<f64> = world.rows.iter().map(|v| f64::from(*v)).collect();
    states.chunks_exact_mut(plain.kv_dim()).for_each(|row| reference::round_to_i8(&plain, row).unwrap());
    let got: Vec<f32> =
        world.attend(&plain, (&world.queries(), &states, &[])).0.into_iter().map(|v| v as f32).collect();
    assert!(nmse(&got, &world.exact().0) > 0.1);
}

/// The reference of what is kept: nothing is lost but f16's and f32's rounding, and scores are the same.
#[test]
fn kept_rows_and_queries_make_the_same_scores() {
    let heads = HeadLayout::gqa_wide(Gqa { q_heads: 6, kv_heads: 3, head_dim: 20 }, 4).unwrap();
    let (wide, mut rng) = (channels(&heads, 1), Rng(3));
    let mut row = rng.values(heads.kv_dim());
    enlarge(&wide, &mut row, 333.3);
    let row: Vec<f64> = row.into_iter().map(f64::from).collect();
    let kept = reference::keep_wide(&wide, 0, &row).unwrap();
    let (states, halves) = kept.split_at(heads.kv_dim());
    assert_eq!((halves.len(), kept.len()), (heads.rope_dim(), 3 * 40 + 12));
    assert!(states.iter().all(|x| x.abs() < 4.1), "what is left is small");
    let q: Vec<f64> = rng.values(6 * 20).into_iter().map(f64::from).collect();
    let q_wide = reference::wide_queries(&wide, 0, &q).unwrap();
    for h in 0..6 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let want = dot(&q[h * 20..][..20], &row[h / 2 * 40..][..20]);
        let own = &q_wide[h * 32..][..32];
        let got = dot(&own[..20], &states[h / 2 * 40..][..20]) + dot(&own[20..], halves);
        assert!((got - want).abs() <= 1e-9, "head {h}: {got}, wanted {want}");
    }
}

/// Saved with its channels; a cache of others, or of none, refuses the file; a rebuilt cache has them.
#[test]
fn saved_with_its_channels() {
    let gpu = gpu();
    let heads = HeadLayout::gqa_wide(Gqa { q_heads: 4, kv_heads: 2, head_dim: 16 }, 4).unwrap();
    for dtype in INTEGERS {
        let world = World::new(heads, dtype, RopePairs::Half, (50, 2), 90.0);
        let mut cache = world.cache(gpu, 8);
        let id = world.fill(gpu, &mut cache);
        let (mut file, sequences) = (Vec::new(), [SaveSequence { id, tokens: &[] }]);
        wait(cache.save(Save { sequences: &sequences, fingerprint: b"m" }, &mut file, |_| {})).unwrap();
        let info = latten::cache::saved_info(&file[..]).unwrap();
        assert_eq!((info.heads, info.wide.as_ref()), (heads, Some(&world.wide)));
        let want = world.step(gpu, &mut cache, id);
        for page_size in [1, 32] {
            let mut other = world.cache(gpu, page_size);
            let loaded = wait(other.load(b"m", &file[..], |_| {})).unwrap().remove(0);
            assert!(world.step(gpu, &mut other, loaded.id) == want, "{dtype} pages of {page_size}");
        }

        let pages = Pages { count: 20, size: 8, layers: 1 };
        assert_eq!(world.rotation, RopePairs::Half);
        let fresh = |heads: HeadLayout| PagedKvCache::new(gpu, heads, world.options(dtype, pages)).unwrap();
        let refused = |mut cache: PagedKvCache, name: &str| {
            let error = wait(cache.load(b"m", &file[..], |_| {})).unwrap_err();
            let ErrorKind::Saved { fault: SavedFault::Other { name: got, .. }, .. } = error.kind() else {
                panic!("{error}")
            };
            assert_eq!((*got, cache.stats().used), (name, 0));
        };
        let moved = WideChannels::new(&heads, &[vec![vec![1, 9], vec![0, 8]]]).unwrap();
        refused(fresh(heads).with_wide_channels(&moved).unwrap(), "wide channels");
        refused(fresh(heads), "wide channels");
        refused(fresh(HeadLayout::gqa(Gqa { q_heads: 4, kv_heads: 2, head_dim: 16 }).unwrap()), "layout");

        cache.rebuild(gpu).unwrap();
        assert_eq!(cache.wide_channels(), Some(&world.wide));
        let again = world.fill(gpu, &mut cache);
        assert!(world.step(gpu, &mut cache, again) == want, "{dtype} rebuilt");
    }
}

/// Pages in slabs: the channels are bound between them.
#[test]
fn slabs_and_wide_channels() {
    let gpu = gpu();
    let heads = HeadLayout::gqa_wide(Gqa { q_heads: 4, kv_heads: 2, head_dim: 16 }, 4).unwrap();
    let world = World::new(heads, DType::I8, RopePairs::Half, (50, 2), 90.0);
    let mut whole = world.cache(gpu, 4);
    let id = world.fill(gpu, &mut whole);
    let want = world.step(gpu, &mut whole, id);
    let pages = Pages { count: 14, size: 4, layers: 1 };
    assert_eq!(world.rotation, RopePairs::Half);
    let options = CacheOptions { grows: true, ..world.options(DType::I8, pages) };
    let mut cache = PagedKvCache::new(gpu, heads, options).unwrap().with_wide_channels(&world.wide).unwrap();
    let id = world.fill(gpu, &mut cache);
    assert!(world.step(gpu, &mut cache, id) == want);
    assert!(cache.layer(0).unwrap().wgpu_buffers().len() > 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    let gqa = Gqa { q_heads: 4, kv_heads: 2, head_dim: 16 };
    for wide in [0, 3, 18, usize::MAX] {
        let error = HeadLayout::gqa_wide(gqa, wide).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "wide", .. }), "{error}");
        assert!(error.to_string().contains(&wide.to_string()), "{error}");
    }
    assert!(HeadLayout::gqa_wide(Gqa { q_heads: 2048, kv_heads: 2048, head_dim: 64 }, 16).is_err());
    let heads = HeadLayout::gqa_wide(gqa, 4).unwrap();
    assert_eq!((heads.wide_dim(), heads.rope_dim(), heads.q_dim(), heads.kv_dim()), (4, 8, 24, 64));
    let plain = HeadLayout::gqa(gqa).unwrap();
    assert_eq!((plain.wide_dim(), plain.kv_dim()), (0, 64));

    let refused = |result: Result<WideChannels, latten::Error>, text: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "channels", .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    refused(WideChannels::new(&plain, &[vec![vec![], vec![]]]), "no wide channels");
    refused(WideChannels::new(&heads, &[]), "no layers");
    refused(WideChannels::new(&heads, &[vec![vec![]]]), "1 KV heads in layer 0, wanted 2");
    refused(WideChannels::new(&heads, &[vec![vec![], vec![0, 1, 2, 3, 4]]]), "5 in layer 0, KV head 1");
    refused(WideChannels::new(&heads, &[vec![vec![16], vec![]]]), "16 in layer 0, KV head 0");
    refused(WideChannels::new(&heads, &[vec![vec![3, 3], vec![]]]), "3 in layer 0, KV head 0");
    let wide = WideChannels::new(&heads, &[vec![vec![5, 13], vec![1]]]).unwrap();
    assert_eq!((wide.of(0, 0), wide.of(0, 1)), (&[5, 13, 0, 1][..], &[1, 0, 2, 3][..]));
    assert_eq!((wide.of(1, 0), wide.of(0, 2)), (&[][..], &[][..]));

    let (gpu, pages) = (gpu(), Pages { count: 4, size: 4, layers: 1 });
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let error = PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, pages)).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::DType { .. }), "{error}");
    }
    assert!(Append::new(gpu, heads, DType::F16, 4, RopePairs::None).is_err());
    let cache = || PagedKvCache::new(gpu, heads, CacheOptions::new(DType::I8, pages)).unwrap();
    for other in [channels(&heads, 2), channels(&HeadLayout::gqa_wide(gqa, 2).unwrap(), 1)] {
        let error = cache().with_wide_channels(&other).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Argument { name: "channels", .. }), "{error}");
    }
    let told = cache().with_wide_channels(&wide).unwrap();
    assert!(told.with_wide_channels(&wide).is_err());
    // Nobody has named them: nothing is appended, and no query made.
    let mut cache = cache();
    let id = cache.insert();
    cache.reserve(&[id], 1).unwrap();
    let kv = Tensor::zeros(gpu, &[1, 64], DType::F32).unwrap();
    let error = cache.append(0, &[id], &kv).unwrap_err();
    assert!(error.to_string().contains("4 wide channels per KV head are not named"), "{error}");
    let rotate = RopeWideKernel::new(gpu, heads, RopePairs::Half).unwrap();
    let (x, y) =
        (Tensor::zeros(gpu, &[1, 4, 16], DType::F32).unwrap(), Tensor::zeros(gpu, &[1, 4, 24], DType::F32).unwrap());
    let layer = cache.layer(0).unwrap();
    let (x, y) = (Span::of(&x), Span::of(&y));
    assert!(rotate.run(RopeWideArgs { rows: 1, layer: &layer, cos_sin: &kv, x, y }).is_err());
    assert!(RopeWideKernel::new(gpu, plain, RopePairs::Half).is_err());
    assert!(cache.batch(&[id]).is_ok());
}

/// What wide channels cost a decode step: printed. A few new tokens over 4,096, the best of several runs.
#[test]
#[ignore = "long: a measurement"]
fn time_of_wide_channels() {
    let gpu = gpu();
    for (q_heads, kv_heads, head_dim) in [(28, 4, 128), (14, 2, 64), (40, 8, 128)] {
        let gqa = Gqa { q_heads, kv_heads, head_dim };
        for dtype in [DType::F16, DType::I8, DType::I4] {
            for wide in [0, 4, 8, 16] {
                if dtype == DType::F16 && wide > 0 {
                    continue;
                }
                let heads = if wide == 0 { HeadLayout::gqa(gqa) } else { HeadLayout::gqa_wide(gqa, wide) }.unwrap();
                let cache =
                    PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, Pages { count: 66, size: 64, layers: 1 }))
                        .unwrap();
                let mut cache = match wide {
                    0 => cache,
                    _ => cache.with_wide_channels(&channels(&heads, 1)).unwrap(),
                };
                let id = cache.insert();
                cache.reserve(&[id], 4096).unwrap();
                let rows = Rng(3).values(4096 * heads.kv_dim());
                let kv = Tensor::from_slice(gpu, &[4096, heads.kv_dim()], &rows, DType::F32).unwrap();
                cache.append(0, &[id], &kv).unwrap();
                cache.commit(&[id], 4095).unwrap();
                cache.reserve(&[id], 1).unwrap();
                let decode = Decode::new(gpu, heads, dtype).unwrap();
                let plan = decode.plan(&cache, &[id]).unwrap();
                let q = Tensor::zeros(gpu, &[1, q_heads, heads.q_dim()], DType::F32).unwrap();
                let mut best = f64::INFINITY;
                for _ in 0..12 {
                    let start = std::time::Instant::now();
                    let out = decode.run(DecodeArgs::new(&plan, &cache.layer(0).unwrap(), &q, 0.1)).unwrap();
                    wait(gpu.download::<f32>(&out.out)).unwrap();
                    best = best.min(start.elapsed().as_secs_f64());
                }
                let bytes = cache.token_bytes();
                println!(
                    "{q_heads}/{kv_heads} heads of {head_dim} {dtype} wide {wide}: {bytes} B, {:.2} ms",
                    best * 1e3
                );
            }
        }
    }
}
