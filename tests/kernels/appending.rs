//! A product that rotates and appends, against the three kernels whose work it does: product, rotation, append.

use crate::append::pool;
use crate::common::{download, gpu, tensor, wait, Rng};
use crate::device::poor_device;
use half::{bf16, f16};
use latten::kv::{KvSource, KvView};
use latten::nn::{
    AppendRows, BlockType, Linear, LinearArgs, LinearTuning, RopeKernel, RopeShape, Span, Weight, WeightType,
};
use latten::{
    wgpu, CacheOptions, DType, ErrorKind, Gpu, Gqa, Gta, HeadLayout, Mla, PagedKvCache, Pages, Rope, RopePairs, SeqId,
    Tensor,
};

const IN_DIM: usize = 96;
/// A slot whose place is that of slot 0, in 32 bits.
pub const PAST: u32 = 1 << 30;

/// One product of both kinds, into two layers of one cache.
pub struct Check<'a> {
    pub gpu: &'a Gpu,
    pub heads: HeadLayout,
    pub cached: DType,
    pub weights: WeightType,
    pub pairs: RopePairs,
    pub page_size: usize,
    /// Pages that nobody reads, so that there are several slabs.
    pub more_pages: usize,
}

fn layouts() -> Vec<HeadLayout> {
    vec![
        HeadLayout::gqa(Gqa { q_heads: 6, kv_heads: 2, head_dim: 16 }).unwrap(),
        HeadLayout::gqa(Gqa { q_heads: 1, kv_heads: 1, head_dim: 40 }).unwrap(),
        HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 32, rope_dim: 8 }).unwrap(),
        HeadLayout::gta(Gta { q_heads: 2, kv_heads: 1, head_dim: 16, rope_dim: 16 }).unwrap(),
    ]
}

pub fn weight_of(gpu: &Gpu, shape: [usize; 3], values: &[f32], weights: WeightType) -> Weight {
    match weights {
        WeightType::Plain(dtype) => Weight::new(gpu, shape, values, dtype).unwrap(),
        WeightType::Blocks(block) => Weight::from_blocks(gpu, shape, block, &block.quantise(values).unwrap()).unwrap(),
        other => unreachable!("no test has {other}"),
    }
}

impl Check<'_> {
    pub fn cache(&self, rows: usize) -> (PagedKvCache, Vec<SeqId>) {
        let Check { heads, cached, pairs, page_size, more_pages, .. } = *self;
        let inv_freq = (0..heads.rotated_dim() / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        let rope = (pairs != RopePairs::None).then_some(Rope { inv_freq, pairs });
        let pages = Pages { count: 40 + more_pages, size: page_size, layers: 2 };
        let options = CacheOptions { rope, ..CacheOptions::new(cached, pages) };
        let mut cache = PagedKvCache::new(self.gpu, heads, options).unwrap();
        for layer in 0..2 {
            for slab in cache.layer(layer).unwrap().wgpu_buffers() {
                self.gpu.queue().write_buffer(&slab, 0, &vec![0xa5; slab.size() as usize]);
            }
        }
        // Ragged: a token each, behind contexts of other lengths, and the last with all that are left.
        let few = rows.min(3);
        let ids: Vec<SeqId> = (0..few).map(|_| cache.insert()).collect();
        for (i, id) in ids.iter().enumerate() {
            cache.reserve(&[*id], 1 + 5 * i).unwrap();
            cache.commit(&[*id], 1 + 5 * i).unwrap();
        }
        let wanted: Vec<(SeqId, usize)> =
            ids.iter().enumerate().map(|(i, id)| (*id, if i + 1 == few { rows - i } else { 1 })).collect();
        cache.reserve_each(&wanted).unwrap();
        (cache, ids)
    }

    /// Queries and both pools, bits of the cache's dtype as numbers.
    fn run(&self, rows: usize, tuning: Option<LinearTuning>) {
        let Check { gpu, heads, cached, weights, pairs, page_size, .. } = *self;
        let what = format!("{heads:?} {cached} of {weights} {pairs:?} pages of {page_size}, {rows} rows, {tuning:?}");
        let (q_heads, q_dim, kv_dim) = (heads.q_heads(), heads.q_dim(), heads.kv_dim());
        let out_dim = q_heads * q_dim + kv_dim;
        let mut rng = Rng(rows as u64 + 7);
        let (shape, values) = ([1, out_dim, IN_DIM], rng.normals(out_dim * IN_DIM, 0.2));
        let weight = weight_of(gpu, shape, &values, weights);
        let bias = tensor(gpu, &[1, out_dim], &rng.normals(out_dim, 1.0));
        let gain = tensor(gpu, &[1, IN_DIM], &rng.normals(IN_DIM, 1.0));
        // Behind some elements of others, in rows that are longer.
        let x = tensor(gpu, &[1, 4 + rows * (IN_DIM + 8)], &rng.normals(4 + rows * (IN_DIM + 8), 1.0));
        let input = Span::of(&x).offset(4).row_stride(IN_DIM + 8);
        let linear = Linear::new(gpu, &weight, Some(&bias)).unwrap().with_norm(&gain, 1e-5).unwrap();
        let linear = tuning.map_or(linear.clone(), |tuning| linear.with_tuning(tuning).unwrap());

        let (mut cache, ids) = self.cache(rows);
        let cos_sin = cache.cos_sin(&ids).unwrap();
        let slots = cache.batch(&ids).unwrap().slots;
        let slots = Tensor::from_slice(gpu, &[rows], &slots, DType::U32).unwrap();
        let nothing = |shape: &[usize]| tensor(gpu, shape, &vec![f32::NAN; shape.iter().product()]);
        let raw = nothing(&[rows, out_dim]);
        linear.run(LinearArgs::new(rows, input, Span::of(&raw))).unwrap();
        let made = download(gpu, &raw);
        let rows_of_kv: Vec<f32> = made.chunks(out_dim).flat_map(|row| row[q_heads * q_dim..].to_vec()).collect();
        cache.append(0, &ids, &tensor(gpu, &[rows, kv_dim], &rows_of_kv)).unwrap();
        let want = nothing(&[rows, q_heads, q_dim]);
        if pairs == RopePairs::None {
            let queries: Vec<f32> = made.chunks(out_dim).flat_map(|row| row[..q_heads * q_dim].to_vec()).collect();
            gpu.upload(&want, &queries).unwrap();
        } else {
            let rope_dim = heads.rotated_dim();
            let shape = RopeShape { heads: q_heads, copy_dim: q_dim - rope_dim, rope_dim, pairs };
            let rotate = RopeKernel::new(gpu, shape).unwrap();
            rotate.run(rows, &cos_sin, Span::of(&raw).head_stride(q_dim), Span::of(&want)).unwrap();
        }

        let layer = cache.layer(1).unwrap();
        let fused = linear.with_append(&layer, pairs).unwrap();
        let q = nothing(&[rows + 1, q_heads, q_dim]);
        let args = LinearArgs::new(rows, input, Span::of(&q));
        // Slots past the pool are written nowhere, where 32 bits of a place would begin anew, too.
        let none = Tensor::from_slice(gpu, &[rows], &vec![PAST; rows], DType::U32).unwrap();
        let nowhere = Some(AppendRows { layer: &layer, slots: &none });
        fused.run(LinearArgs { cos_sin: Some(&cos_sin), append: nowhere, ..args }).unwrap();
        let append = Some(AppendRows { layer: &layer, slots: &slots });
        fused.run(LinearArgs { cos_sin: Some(&cos_sin), append, ..args }).unwrap();

        let (got, want) = (download(gpu, &q), download(gpu, &want));
        let size = want.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= size * 2f32.powi(-22), "{what}: query element {i}: {got}, not {want}");
        }
        assert!(got[want.len()..].iter().all(|v| v.is_nan()), "{what}: a row that nobody asked for");
        self.compare_pools(&what, [0, 1].map(|layer| pool(gpu, &cache, layer)));
    }

    /// Rounded alike, but for what a last bit of f32 tips; and what one leaves alone, the other does.
    pub fn compare_pools(&self, what: &str, [want, got]: [Vec<u32>; 2]) {
        assert!(want.iter().any(|word| *word != 0xa5a5_a5a5), "{what}");
        let halves = |word: u32| [word as u16, (word >> 16) as u16];
        for (at, (want, got)) in want.iter().zip(&got).enumerate().filter(|(_, (want, got))| want != got) {
            let near = match self.cached {
                DType::F32 => (f32::from_bits(*want) - f32::from_bits(*got)).abs() < 1e-5,
                DType::F16 => halves(*want).iter().zip(halves(*got)).all(|(want, got)| {
                    let [want, got] = [f16::from_bits(*want), f16::from_bits(got)].map(f32::from);
                    (want - got).abs() <= want.abs().max(1e-3) * 2f32.powi(-10)
                }),
                _ => halves(*want).iter().zip(halves(*got)).all(|(want, got)| {
                    let [want, got] = [bf16::from_bits(*want), bf16::from_bits(got)].map(f32::from);
                    (want - got).abs() <= want.abs().max(1e-3) * 2f32.powi(-7)
                }),
            };
            assert!(near && *want != 0xa5a5_a5a5, "{what}: u32 {at} of the pool is {got:08x}, not {want:08x}");
        }
    }
}

#[test]
fn queries_and_rows_are_those_of_three_kernels() {
    for (i, heads) in layouts().into_iter().enumerate() {
        for (j, pairs) in [RopePairs::Half, RopePairs::Interleaved, RopePairs::None].into_iter().enumerate() {
            let weights = [DType::F16.into(), BlockType::Q4_0.into(), DType::F32.into(), DType::I8.into()][(i + j) % 4];
            let cached = [DType::F16, DType::F32, DType::BF16][(i + j) % 3];
            let page_size = [1, 8, 16][j];
            let check = Check { gpu: gpu(), heads, cached, weights, pairs, page_size, more_pages: 0 };
            for rows in [1, 2, 3, 7].into_iter().filter(|rows| *rows < 3 || (i + j) % 3 == 0) {
                check.run(rows, None);
            }
        }
    }
}

/// Units that lie in one lane, across lanes side by side, and in both.
#[test]
fn so_they_are_with_every_division_among_lanes() {
    let heads = layouts()[0];
    let check = Check {
        gpu: gpu(),
        heads,
        cached: DType::F16,
        weights: DType::F16.into(),
        pairs: RopePairs::Half,
        page_size: 8,
        more_pages: 0,
    };
    let plain = LinearTuning { in_lanes: 8, outs: 1, steps: 1, max_rows: 4, out_lanes: 1, subgroups: false };
    for (in_lanes, outs, out_lanes) in [(8, 1, 1), (8, 2, 1), (8, 8, 1), (8, 1, 8), (8, 2, 4), (1, 2, 16), (128, 1, 1)]
    {
        for rows in [1, 3] {
            check.run(rows, Some(LinearTuning { in_lanes, outs, out_lanes, ..plain }));
        }
    }
}

#[test]
fn so_they_are_in_several_slabs() {
    let poor = poor_device(|all| wgpu::Limits {
        max_storage_buffer_binding_size: 1 << 20,
        max_storage_buffers_per_shader_stage: 12,
        ..all
    });
    let (heads, page_size) = (layouts()[0], 16);
    let row = 2 * heads.kv_dim();
    let more_pages = (3 << 20) / (row * page_size);
    let check = Check {
        gpu: &poor,
        heads,
        cached: DType::F16,
        weights: DType::F16.into(),
        pairs: RopePairs::Half,
        page_size,
        more_pages,
    };
    check.run(3, None);
    let (cache, _) = check.cache(1);
    assert_eq!(cache.layer(0).unwrap().wgpu_buffers().len(), 4);
}

/// A linear that appends to layers of a layout, dtype and page size, and a layer.
fn made(heads: HeadLayout, dtype: DType, out_dim: usize) -> (Result<Linear, latten::Error>, KvView) {
    let gpu = gpu();
    let cache =
        PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, Pages { count: 4, size: 8, layers: 1 })).unwrap();
    let weight = Weight::new(gpu, [1, out_dim, 16], &vec![1.0; out_dim * 16], DType::F32).unwrap();
    let layer = cache.layer(0).unwrap();
    (Linear::new(gpu, &weight, None).unwrap().with_append(&layer, RopePairs::Half), layer)
}

#[test]
fn what_it_cannot_do_is_refused() {
    let outputs = |heads: &HeadLayout| heads.q_heads() * heads.q_dim() + heads.kv_dim();
    let heads = layouts()[0];
    let kind = |heads: HeadLayout, dtype, out_dim| made(heads, dtype, out_dim).0.unwrap_err().kind().clone();
    assert!(matches!(kind(heads, DType::F16, outputs(&heads) + 4), ErrorKind::Shape { .. }));
    assert!(matches!(kind(heads, DType::I8, outputs(&heads)), ErrorKind::Unsupported { .. }));
    // Padded: 12 of 16 bytes.
    let padded = HeadLayout::gqa(Gqa { q_heads: 2, kv_heads: 1, head_dim: 12 }).unwrap();
    assert!(matches!(kind(padded, DType::F16, outputs(&padded)), ErrorKind::Unsupported { .. }));
    assert!(made(padded, DType::F32, outputs(&padded)).0.is_ok());
    // Whose queries are absorbed, but a layout like another.
    let mla = HeadLayout::mla(Mla { q_heads: 2, latent_dim: 32, rope_dim: 8 }).unwrap();
    assert!(made(mla, DType::F16, outputs(&mla)).0.is_ok());
}

#[test]
fn a_call_says_what_is_missing_and_writes_nothing() {
    let (gpu, heads) = (gpu(), layouts()[0]);
    let (fused, layer) = made(heads, DType::F16, heads.q_heads() * heads.q_dim() + heads.kv_dim());
    let fused = fused.unwrap();
    let most = fused.tuning(2).max_rows;
    let x = tensor(gpu, &[most + 1, 16], &vec![1.0; (most + 1) * 16]);
    let q = tensor(
        gpu,
        &[most + 1, heads.q_heads(), heads.q_dim()],
        &vec![7.0; (most + 1) * heads.q_heads() * heads.q_dim()],
    );
    let slots = Tensor::from_slice(gpu, &[most + 1], &vec![0u32; most + 1], DType::U32).unwrap();
    let cos_sin = tensor(gpu, &[most + 1, heads.rotated_dim() / 2, 2], &vec![0.5; (most + 1) * heads.rotated_dim()]);
    let other = made(heads, DType::F32, heads.q_heads() * heads.q_dim() + heads.kv_dim()).1;
    let args = LinearArgs::new(1, Span::of(&x), Span::of(&q));
    let append = Some(AppendRows { layer: &layer, slots: &slots });
    let good = LinearArgs { cos_sin: Some(&cos_sin), append, ..args };
    let short = cos_sin.view(&[1, heads.rotated_dim() / 2, 2]).unwrap();
    let kinds = [
        LinearArgs { append: None, ..good },
        LinearArgs { cos_sin: None, ..good },
        LinearArgs { cos_sin: Some(&short), rows: 2, ..good },
        LinearArgs { rows: most + 1, ..good },
        LinearArgs { accumulate: true, ..good },
        LinearArgs { append: Some(AppendRows { layer: &other, slots: &slots }), ..good },
        LinearArgs { append: Some(AppendRows { layer: &layer, slots: &x }), ..good },
        LinearArgs { append: Some(AppendRows { layer: &layer, slots: &slots.view(&[1]).unwrap() }), rows: 2, ..good },
    ]
    .map(|args| fused.run(args).unwrap_err().kind().clone());
    use ErrorKind::{Argument, Shape};
    let wanted = |i: usize| match i {
        2 | 6 | 7 => matches!(kinds[i], Shape { .. }),
        _ => matches!(kinds[i], Argument { .. }),
    };
    assert!((0..kinds.len()).all(wanted), "{kinds:?}");
    assert!(download(gpu, &q).iter().all(|v| *v == 7.0));
    fused.run(good).unwrap();
    assert!(wait(gpu.download::<f32>(&q)).unwrap()[..16].iter().all(|v| *v != 7.0));
}
