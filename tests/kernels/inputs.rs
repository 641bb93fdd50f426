//! Bad input to every public function: a typed error with the numbers, nothing changed, no panic. On wgpu's noop
//! device, which validates and computes nothing, so it needs no GPU; once on the adapter too.

use crate::common::{gpu, small, wait};
use latten::attention::{AttentionOptions, DecodeArgs, DecodeOutput};
use latten::cache::SeqTable;
use latten::kv::{Append, AppendArgs, KvSource, Span};
use latten::{
    wgpu, CacheOptions, DType, Decode, ErrorKind, Gla, Gpu, Gqa, Gta, HeadLayout, Mla, PagedKvCache, Pages, Rope,
    RopePairs, SeqId, SplitPolicy, Tensor,
};
use proptest::prelude::*;

fn noop() -> Gpu {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    Gpu::from_wgpu(None, device, queue).unwrap()
}

/// The error's kind and the numbers its text must have.
macro_rules! refused {
    ($call:expr, $kind:pat $(, $word:expr)* $(,)?) => {{
        let error = $call.err().expect(concat!("not refused: ", stringify!($call)));
        assert!(matches!(error.kind(), $kind), "{}: {error:?}", stringify!($call));
        $(assert!(error.to_string().contains(&$word.to_string()), "{}: {error} lacks {}", stringify!($call), $word);)*
    }};
}

use ErrorKind::{Argument, CacheFull, RepeatedSequence, Shape, TooLarge, UnknownSequence, Unsupported};

const HUGE: [usize; 5] = [1 << 31, u32::MAX as usize, 1 << 32, usize::MAX - 1, usize::MAX];

#[test]
fn layouts() {
    let gqa = |q_heads, kv_heads, head_dim| HeadLayout::gqa(Gqa { q_heads, kv_heads, head_dim });
    refused!(gqa(0, 1, 8), Argument { name: "q_heads", .. }, 0);
    refused!(gqa(8, 0, 8), Argument { name: "kv_heads", .. }, 0);
    refused!(gqa(8, 2, 0), Argument { .. }, 0);
    refused!(gqa(8, 3, 8), Argument { name: "kv_heads", .. }, 8, 3);
    refused!(HeadLayout::gta(Gta { q_heads: 8, kv_heads: 2, head_dim: 8, rope_dim: 10 }), Argument { .. }, 8, 10);
    refused!(HeadLayout::gta(Gta { q_heads: 8, kv_heads: 2, head_dim: 8, rope_dim: 3 }), Argument { .. }, 3);
    for n in HUGE {
        refused!(gqa(n, 1, 8), Argument { .. }, n);
        refused!(gqa(n, n, 8), Argument { .. }, n);
        refused!(gqa(8, 1, n), Argument { .. });
        let (q_heads, latent_heads, latent_dim, rope_dim) = (8, 2, 8, n);
        refused!(HeadLayout::gla(Gla { q_heads, latent_heads, latent_dim, rope_dim }), Argument { .. }, n);
        refused!(HeadLayout::mla(Mla { q_heads, latent_dim: n, rope_dim: 8 }), Argument { .. }, n);
    }
}

#[test]
fn tensors() {
    for gpu in [&noop(), gpu()] {
        refused!(Tensor::zeros(gpu, &[3, 0], DType::F32), Shape { .. }, "(3,0)");
        for n in HUGE {
            // Past the limit of the device, or past what is counted at all.
            refused!(Tensor::zeros(gpu, &[n, 3], DType::F32), Shape { .. } | TooLarge { .. });
            refused!(Tensor::zeros(gpu, &[n, n, n], DType::U32), Shape { .. });
            refused!(Tensor::from_slice(gpu, &[n, n], &[1.0], DType::F16), Shape { .. });
        }
        refused!(Tensor::from_slice(gpu, &[2, 3], &[0.0; 5], DType::F32), Shape { .. }, "(2,3)", 5);
        refused!(Tensor::from_slice(gpu, &[5], &[0.0; 5], DType::U32), ErrorKind::DType { .. }, "u32");
        // Only caches have it, since rows of it may end within a byte.
        refused!(Tensor::zeros(gpu, &[4], DType::I4), ErrorKind::DType { .. }, "i4", "or u32");
        refused!(Tensor::from_slice(gpu, &[5], &[0.0; 5], DType::I4), ErrorKind::DType { .. }, "i4");
        refused!(Tensor::from_slice(gpu, &[2, 3], &[0; 7], DType::U32), Shape { .. }, 7);
        refused!(Tensor::from_slice::<f32>(gpu, &[], &[], DType::F32), Shape { .. });
        refused!(Tensor::from_slice::<u32>(gpu, &[2], &[1, 2], DType::F16), ErrorKind::DType { .. }, "f16", "u32");
        let t = Tensor::zeros(gpu, &[2, 3], DType::F32).unwrap();
        refused!(t.view(&[1000]), Shape { .. }, 1000);
        refused!(t.view(&[0]), Shape { .. });
        refused!(t.view(&[usize::MAX, 2]), Shape { .. });
        refused!(gpu.upload(&t, &[1.0]), Shape { .. }, 1, "(2,3)");
        refused!(gpu.upload(&t, &[0; 6]), ErrorKind::DType { .. }, "f32", "u32");
        let u = Tensor::from_slice(gpu, &[2], &[1, 2], DType::U32).unwrap();
        refused!(gpu.upload(&u, &[1.0, 2.0]), ErrorKind::DType { .. });
        refused!(gpu.upload(&u, &[1]), Shape { .. });
        refused!(wait(gpu.download::<f32>(&u)), ErrorKind::DType { .. }, "u32");
        refused!(wait(gpu.download::<u32>(&t)), ErrorKind::DType { .. }, "f32");
        let buffer = |usage| {
            gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 64,
                usage,
                mapped_at_creation: false,
            })
        };
        let storage = wgpu::BufferUsages::STORAGE;
        refused!(Tensor::from_wgpu(gpu, buffer(storage), &[17], DType::F32), Argument { .. }, 64, 68);
        let uniform = wgpu::BufferUsages::UNIFORM;
        refused!(Tensor::from_wgpu(gpu, buffer(uniform), &[16], DType::F32), Argument { .. }, "STORAGE");
        // An app's buffer that cannot be copied from: an error of its own, and the device goes on.
        let closed = Tensor::from_wgpu(gpu, buffer(storage), &[16], DType::F32).unwrap();
        refused!(wait(gpu.download::<f32>(&closed)), ErrorKind::Gpu { .. } | Argument { .. });
        refused!(gpu.upload(&closed, &[0.0; 16]), ErrorKind::Gpu { .. } | Argument { .. });
        assert_eq!(wait(gpu.download::<f32>(&t)).unwrap().len(), 6);
    }
}

/// A tensor of a part of a buffer whose length is no multiple of 4 bytes: f16 of odd counts.
#[test]
fn odd_f16_tensors_of_an_apps_buffer() {
    let gpu = gpu();
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let desc = wgpu::BufferDescriptor { label: None, size: 8, usage, mapped_at_creation: false };
    let t = Tensor::from_wgpu(gpu, gpu.device().create_buffer(&desc), &[3], DType::F16).unwrap();
    gpu.upload(&t, &[1.0, 2.0, 3.0]).unwrap();
    assert_eq!(wait(gpu.download::<f32>(&t)).unwrap(), [1.0, 2.0, 3.0]);
}

struct Ready {
    cache: PagedKvCache,
    decode: Decode,
    id: SeqId,
}

fn ready(gpu: &Gpu) -> Ready {
    let mut cache =
        PagedKvCache::new(gpu, small(), CacheOptions::new(DType::F16, Pages { count: 8, size: 4, layers: 2 })).unwrap();
    let decode = Decode::new(gpu, small(), DType::F16).unwrap();
    let id = cache.insert();
    Ready { cache, decode, id }
}

#[test]
fn caches() {
    for gpu in [&noop(), gpu()] {
        let new = |count, size, layers| {
            PagedKvCache::new(gpu, small(), CacheOptions::new(DType::F16, Pages { count, size, layers }))
        };
        refused!(new(0, 4, 1), Argument { name: "pages.count", .. }, 0);
        refused!(new(4, 0, 1), Argument { name: "pages.size", .. }, 0);
        refused!(new(4, 3, 1), Argument { name: "pages.size", .. }, 3);
        refused!(new(4, 8192, 1), Argument { name: "pages.size", .. }, 8192);
        refused!(new(4, 4, 0), Argument { name: "pages.layers", .. }, 0);
        refused!(
            PagedKvCache::new(gpu, small(), CacheOptions::new(DType::U32, new(1, 1, 1).unwrap().pages())),
            ErrorKind::DType { .. }
        );
        for n in HUGE {
            refused!(new(n, 4, 1), Argument { .. } | TooLarge { .. });
            refused!(new(4, n, 1), Argument { .. }, n);
            refused!(new(4, 4, n), Argument { .. }, n);
        }
        let Ready { mut cache, id, .. } = ready(gpu);
        let other = ready(gpu).id;
        let (stats, generation) = (cache.stats(), cache.generation());
        refused!(cache.reserve(&[id], 0), Argument { name: "n", .. }, 0);
        refused!(cache.reserve(&[id, id], 1), RepeatedSequence { .. }, id);
        refused!(cache.reserve(&[id, other], 1), UnknownSequence { .. }, other);
        refused!(cache.reserve(&[id], 33), CacheFull { needed: 9, free: 8 });
        refused!(cache.commit(&[id], 1), Argument { name: "n", .. }, 1, 0);
        refused!(cache.commit(&[id, id], 0), RepeatedSequence { .. });
        refused!(cache.commit(&[other], 0), UnknownSequence { .. });
        refused!(cache.truncate(id, 1), Argument { name: "len", .. }, 1);
        refused!(cache.truncate(other, 0), UnknownSequence { .. });
        refused!(cache.remove(other), UnknownSequence { .. });
        refused!(cache.len(other), UnknownSequence { .. });
        for n in HUGE {
            refused!(cache.reserve(&[id], n), CacheFull { .. });
            refused!(cache.commit(&[id], n), Argument { .. }, n);
            refused!(cache.truncate(id, n), Argument { .. }, n);
            refused!(cache.layer(n), Argument { name: "layer", .. }, n);
        }
        let kv = |shape: &[usize], dtype| Tensor::zeros(gpu, shape, dtype).unwrap();
        let good = kv(&[2, small().kv_dim()], DType::F32);
        refused!(cache.append(0, &[id], &good), Argument { .. }, "no token is reserved");
        refused!(cache.cos_sin(&[id]), Argument { .. });
        refused!(cache.append(0, &[], &good), Argument { .. });
        assert_eq!((cache.stats(), cache.generation()), (stats, generation));

        cache.reserve(&[id], 2).unwrap();
        let generation = cache.generation();
        refused!(cache.append(2, &[id], &good), Argument { name: "layer", .. }, 2);
        refused!(cache.append(0, &[id, id], &good), RepeatedSequence { .. });
        refused!(cache.append(0, &[other], &good), UnknownSequence { .. });
        refused!(cache.append(0, &[id], &kv(&[3, small().kv_dim()], DType::F32)), Shape { name: "kv", .. }, "(3,");
        refused!(cache.append(0, &[id], &kv(&[2, 5], DType::F32)), Shape { .. }, "(2,5)", small().kv_dim());
        refused!(cache.append(0, &[id], &kv(&[2, small().kv_dim()], DType::F16)), ErrorKind::DType { .. }, "f16");
        assert_eq!(cache.generation(), generation);
        cache.append(0, &[id], &good).unwrap();
        for (pairs, wanted) in [(RopePairs::Half, 4), (RopePairs::Interleaved, 4), (RopePairs::None, 0)] {
            let rope = Some(Rope { inv_freq: vec![1.0; 3], pairs });
            let options = CacheOptions { rope, ..cache.options() };
            refused!(PagedKvCache::new(gpu, small(), options), Shape { name: "inv_freq", .. }, 3, wanted);
        }
    }
}

#[test]
fn rotations() {
    let gpu = noop();
    let odd = HeadLayout::mha(2, 5).unwrap();
    refused!(Append::new(&gpu, odd, DType::F32, 4, RopePairs::Half), Argument { .. }, 5);
    Append::new(&gpu, odd, DType::F32, 4, RopePairs::None).unwrap();
    // A tied state without a rope key has nothing that may be rotated: its value would turn with it.
    let tied = HeadLayout::mla(Mla { q_heads: 2, latent_dim: 8, rope_dim: 0 }).unwrap();
    assert_eq!(Append::new(&gpu, tied, DType::F32, 4, RopePairs::Half).unwrap().rotated_dim(), 0);
    for page_size in [0, 3, 1 << 20, usize::MAX] {
        refused!(Append::new(&gpu, small(), DType::F32, page_size, RopePairs::None), Argument { .. }, page_size);
    }
}

#[test]
fn decodes() {
    for gpu in [&noop(), gpu()] {
        refused!(Decode::new(gpu, small(), DType::U32), ErrorKind::DType { .. }, "u32");
        let wide = HeadLayout::mla(Mla { q_heads: 2, latent_dim: 16_384, rope_dim: 0 }).unwrap();
        refused!(Decode::new(gpu, wide, DType::F32), Unsupported { .. }, 16_384);
        let Ready { mut cache, decode, id } = ready(gpu);
        let other = ready(gpu).id;
        refused!(decode.plan(&cache, &[id]), Argument { .. }, "no token is reserved");
        refused!(decode.plan(&cache, &[]), Argument { .. });
        refused!(decode.plan(&cache, &[other]), UnknownSequence { .. }, other);
        cache.reserve(&[id], 3).unwrap();
        refused!(decode.plan(&cache, &[id, id]), RepeatedSequence { .. });
        for policy in [SplitPolicy::FixedTokens(0), SplitPolicy::Count(0)] {
            let decode = Decode::new(gpu, small(), DType::F16).unwrap().with_policy(policy);
            refused!(decode.plan(&cache, &[id]), Argument { name: "split", .. }, 0);
        }
        for policy in [SplitPolicy::FixedTokens(usize::MAX), SplitPolicy::Count(usize::MAX)] {
            let decode = Decode::new(gpu, small(), DType::F16).unwrap().with_policy(policy);
            decode.plan(&cache, &[id]).unwrap();
        }
        refused!(decode.output(0), Shape { .. });
        for n in HUGE {
            refused!(decode.output(n), Shape { .. } | TooLarge { .. });
        }
        let plan = decode.plan(&cache, &[id]).unwrap();
        let layer = cache.layer(0).unwrap();
        let q = |shape: &[usize], dtype| Tensor::zeros(gpu, shape, dtype).unwrap();
        let (heads, dim) = (small().q_heads(), small().q_dim());
        let good = q(&[3, heads, dim], DType::F32);
        for shape in [&[2, heads, dim][..], &[3, heads + 1, dim], &[3, heads, dim - 1], &[3, heads * dim]] {
            let text: Vec<String> = shape.iter().map(usize::to_string).collect();
            let wanted = format!("(3,{heads},{dim})");
            refused!(
                decode.run(DecodeArgs::new(&plan, &layer, &q(shape, DType::F32), 1.0)),
                Shape { .. },
                text.join(","),
                wanted
            );
        }
        refused!(
            decode.run(DecodeArgs::new(&plan, &layer, &q(&[3, heads, dim], DType::F16), 1.0)),
            ErrorKind::DType { .. },
            "f16"
        );
        for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            refused!(
                decode.run(DecodeArgs::new(&plan, &layer, &good, scale)),
                Argument { name: "softmax_scale", .. },
                scale
            );
        }
        // A cache of another dtype, of another layout.
        for (heads, dtype) in [(small(), DType::F32), (HeadLayout::mha(4, 16).unwrap(), DType::F16)] {
            let mut foreign =
                PagedKvCache::new(gpu, heads, CacheOptions::new(dtype, Pages { count: 8, size: 4, layers: 1 }))
                    .unwrap();
            let id = foreign.insert();
            foreign.reserve(&[id], 3).unwrap();
            let plan = decode.plan(&foreign, &[id]).unwrap();
            refused!(
                decode.run(DecodeArgs::new(&plan, &foreign.layer(0).unwrap(), &good, 1.0)),
                Argument { name: "layer", .. },
                dtype
            );
        }
        // Results of another size, into a pass of the caller's.
        let output = decode.output(3).unwrap();
        let small_out = DecodeOutput { out: output.out.view(&[2, heads, 16]).unwrap(), lse: output.lse.clone() };
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let args = DecodeArgs::new(&plan, &layer, &good, 1.0);
        refused!(decode.encode(&mut pass, args, &small_out), Shape { name: "out", .. }, "(2,");
        decode.encode(&mut pass, args, &output).unwrap();
        let append = Append::new(gpu, small(), DType::F16, 4, RopePairs::None).unwrap();
        let (kv, slots) = (q(&[3, small().kv_dim()], DType::F32), q(&[3], DType::U32));
        let good = AppendArgs { kv: Span::of(&kv), slots: &slots, cos_sin: &kv, tokens: 3 };
        refused!(append.encode(gpu, &mut pass, &layer, AppendArgs { tokens: 4, ..good }), Shape { .. }, 4);
        refused!(append.encode(gpu, &mut pass, &layer, AppendArgs { tokens: usize::MAX, ..good }), Shape { .. });
        refused!(append.encode(gpu, &mut pass, &layer, AppendArgs { slots: &kv, ..good }), Shape { .. });
        refused!(
            append.encode(gpu, &mut pass, &layer, AppendArgs { kv: Span::of(&slots), ..good }),
            ErrorKind::DType { name: "kv", .. }
        );
        let rotated = Append::new(gpu, small(), DType::F16, 4, RopePairs::Half).unwrap();
        let short = q(&[1, 1, 2], DType::F32);
        refused!(
            rotated.encode(gpu, &mut pass, &layer, AppendArgs { cos_sin: &short, ..good }),
            Shape { .. },
            "(1,1,2)"
        );
        let paged = Append::new(gpu, small(), DType::F16, 8, RopePairs::None).unwrap();
        refused!(paged.encode(gpu, &mut pass, &layer, good), Argument { name: "layer", .. }, 4, 8);
        append.encode(gpu, &mut pass, &layer, good).unwrap();
    }
}

/// Tensors of another `Gpu`: an error, not a panic, from whatever meets both first; and the device goes on.
#[test]
fn tensors_of_another_device() {
    let (here, there) = (noop(), noop());
    let Ready { mut cache, decode, id } = ready(&here);
    cache.reserve(&[id], 1).unwrap();
    let q = |gpu: &Gpu| Tensor::zeros(gpu, &[1, small().q_heads(), small().q_dim()], DType::F32).unwrap();
    let kv = |gpu: &Gpu| Tensor::zeros(gpu, &[1, small().kv_dim()], DType::F32).unwrap();
    let plan = decode.plan(&cache, &[id]).unwrap();
    let layer = cache.layer(0).unwrap();
    refused!(
        decode.run(DecodeArgs::new(&plan, &layer, &q(&there), 1.0)),
        Argument { name: "tensor", .. },
        "another Gpu"
    );
    refused!(cache.append(0, &[id], &kv(&there)), Argument { name: "tensor", .. }, "another Gpu");
    refused!(wait(here.download::<f32>(&q(&there))), Argument { name: "tensor", .. }, "another Gpu");
    refused!(
        here.upload(&q(&there), &vec![0.0; small().q_heads() * small().q_dim()]),
        Argument { name: "tensor", .. },
        "another Gpu"
    );
    cache.append(0, &[id], &kv(&here)).unwrap();
    let result = decode.run(DecodeArgs::new(&plan, &layer, &q(&here), 1.0)).unwrap();
    wait(here.download::<f32>(&result.out)).unwrap();
}

fn any_size() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..5, 0usize..200, Just(4096), Just(1 << 14), prop::sample::select(HUGE.to_vec())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the numbers: an error or a thing that works, never a panic.
    #[test]
    fn any_layout_any_pages(a in any_size(), b in any_size(), c in any_size(), d in any_size(), e in any_size()) {
        let layouts = [
            HeadLayout::gqa(Gqa { q_heads: a, kv_heads: b, head_dim: c }),
            HeadLayout::gta(Gta { q_heads: a, kv_heads: b, head_dim: c, rope_dim: d }),
            HeadLayout::gla(Gla { q_heads: a, latent_heads: b, latent_dim: c, rope_dim: d }),
            HeadLayout::mla(Mla { q_heads: a, latent_dim: c, rope_dim: d }),
        ];
        let gpu = noop();
        for heads in layouts.into_iter().flatten() {
            // Texts of thousands of lines validate slowly: only what fits in seconds.
            if heads.kv_dim() * heads.q_heads() < 1 << 14 {
                let _ = Decode::new(&gpu, heads, DType::F16);
            }
            for dtype in [DType::F32, DType::F16, DType::U32] {
                if let Err(e) = PagedKvCache::new(&gpu, heads, CacheOptions::new(dtype, Pages { count: d, size: e, layers: 1 })) {
                    let own = matches!(e.kind(), ErrorKind::Gpu { .. });
                    prop_assert!(!own, "{heads:?} {dtype} {d} pages of {e:?}");
                }
            }
        }
        let _ = SeqTable::new(a, b);
    }
}

#[test]
fn attention_options() {
    for gpu in [&noop(), gpu()] {
        let with = |options| Decode::with_options(gpu, small(), DType::F16, options);
        let none = AttentionOptions::default();
        for cap in [0.0, -1.0, 9e-4, 1.1e6, f32::NAN, f32::INFINITY] {
            refused!(with(AttentionOptions { softcap: Some(cap), ..none }), Argument { name: "softcap", .. }, cap);
        }
        refused!(with(AttentionOptions { window: Some(0), ..none }), Argument { name: "window", .. }, 0);
        refused!(with(AttentionOptions { keep_first: 7, ..none }), Argument { name: "keep_first", .. }, 7);
        let Ready { mut cache, decode: plain, id } = ready(gpu);
        let sinking = with(AttentionOptions { sinks: true, ..none }).unwrap();
        cache.reserve(&[id], 3).unwrap();
        let (heads, layer) = (small().q_heads(), cache.layer(0).unwrap());
        let q = Tensor::zeros(gpu, &[3, heads, small().q_dim()], DType::F32).unwrap();
        let sinks = |n, dtype| Tensor::zeros(gpu, &[n], dtype).unwrap();
        let plan = plain.plan(&cache, &[id]).unwrap();
        let with_sinks = |d: &Decode, plan, sinks: Tensor| {
            d.run(DecodeArgs { sinks: Some(&sinks), ..DecodeArgs::new(plan, &layer, &q, 1.0) })
        };
        refused!(with_sinks(&plain, &plan, sinks(heads, DType::F32)), Argument { name: "sinks", .. });
        let plan = sinking.plan(&cache, &[id]).unwrap();
        refused!(sinking.run(DecodeArgs::new(&plan, &layer, &q, 1.0)), Argument { name: "sinks", .. });
        refused!(with_sinks(&sinking, &plan, sinks(heads + 1, DType::F32)), Shape { name: "sinks", .. }, heads + 1);
        refused!(with_sinks(&sinking, &plan, sinks(heads, DType::F16)), ErrorKind::DType { name: "sinks", .. }, "f16");
        with_sinks(&sinking, &plan, sinks(heads, DType::F32)).unwrap();
    }
}
