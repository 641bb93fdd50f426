//! A product beside which latents are normalised and appended, against the product with a rest and the append whose work it does.

use crate::append::pool;
use crate::appending::{weight_of, Check, PAST};
use crate::common::{download, gpu, tensor, Rng};
use crate::device::poor_device;
use latten::kv::KvSource;
use latten::nn::{AppendRows, BlockType, Linear, LinearArgs, LinearTuning, NormShape, RmsNorm, Span};
use latten::{wgpu, DType, ErrorKind, Gla, Gpu, HeadLayout, Mla, RopePairs, Tensor};

const IN_DIM: usize = 96;
const OUT_DIM: usize = 40;

fn layouts() -> Vec<HeadLayout> {
    let gla =
        |latent_heads, latent_dim, rope_dim| Gla { q_heads: 2 * latent_heads, latent_heads, latent_dim, rope_dim };
    vec![
        HeadLayout::gla(gla(2, 64, 16)).unwrap(),
        HeadLayout::mla(Mla { q_heads: 3, latent_dim: 136, rope_dim: 8 }).unwrap(),
        HeadLayout::gla(gla(3, 8, 0)).unwrap(),
    ]
}

fn norm_of(gpu: &Gpu, heads: &HeadLayout, rng: &mut Rng) -> RmsNorm {
    let (groups, dim) = (heads.groups(), heads.state_dim());
    let shape = NormShape { groups, dim, tail: heads.rope_dim(), eps: 1e-5 };
    RmsNorm::new(gpu, &tensor(gpu, &[groups, dim], &rng.normals(groups * dim, 1.0)), shape).unwrap()
}

/// Outputs to the bit, and both pools.
fn run(check: &Check<'_>, rows: usize, tuning: Option<LinearTuning>) {
    let Check { gpu, heads, cached, weights, pairs, page_size, .. } = *check;
    let what = format!("{heads:?} {cached} of {weights} {pairs:?} pages of {page_size}, {rows} rows, {tuning:?}");
    let (kv_dim, mut rng) = (heads.kv_dim(), Rng(rows as u64 + 11));
    let weight = weight_of(gpu, [1, OUT_DIM, IN_DIM], &rng.normals(OUT_DIM * IN_DIM, 0.2), weights);
    let gain = tensor(gpu, &[1, IN_DIM], &rng.normals(IN_DIM, 1.0));
    // Behind some elements of others, in rows that are longer.
    let width = IN_DIM + kv_dim + 8;
    let x = tensor(gpu, &[1, 4 + rows * width], &rng.normals(4 + rows * width, 1.0));
    let input = Span::of(&x).offset(4).row_stride(width);
    let linear = Linear::new(gpu, &weight, None).unwrap().with_norm(&gain, 1e-5).unwrap();
    let linear = tuning.map_or(linear.clone(), |tuning| linear.with_tuning(tuning).unwrap());
    let linear = linear.with_rest(norm_of(gpu, &heads, &mut rng)).unwrap();

    let (mut cache, ids) = check.cache(rows);
    let cos_sin = cache.cos_sin(&ids).unwrap();
    let slots = Tensor::from_slice(gpu, &[rows], &cache.batch(&ids).unwrap().slots, DType::U32).unwrap();
    let nothing = |shape: &[usize]| tensor(gpu, shape, &vec![f32::NAN; shape.iter().product()]);
    let (want, rest) = (nothing(&[rows + 1, OUT_DIM]), nothing(&[rows, kv_dim]));
    linear.run(LinearArgs { rest: Some(&rest), ..LinearArgs::new(rows, input, Span::of(&want)) }).unwrap();
    cache.append(0, &ids, &rest).unwrap();

    let layer = cache.layer(1).unwrap();
    let fused = linear.with_append(&layer, pairs).unwrap();
    let got = nothing(&[rows + 1, OUT_DIM]);
    let args = LinearArgs::new(rows, input, Span::of(&got));
    // Slots past the pool are written nowhere.
    let none = Tensor::from_slice(gpu, &[rows], &vec![PAST; rows], DType::U32).unwrap();
    let nowhere = Some(AppendRows { layer: &layer, slots: &none });
    fused.run(LinearArgs { cos_sin: Some(&cos_sin), append: nowhere, ..args }).unwrap();
    let append = Some(AppendRows { layer: &layer, slots: &slots });
    fused.run(LinearArgs { cos_sin: Some(&cos_sin), append, ..args }).unwrap();
    let bits = |y: &Tensor| download(gpu, y).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&got), bits(&want), "{what}");
    check.compare_pools(&what, [0, 1].map(|layer| pool(gpu, &cache, layer)));
}

fn check(heads: HeadLayout) -> Check<'static> {
    let (cached, weights) = (DType::F16, DType::F16.into());
    Check { gpu: gpu(), heads, cached, weights, pairs: RopePairs::Half, page_size: 8, more_pages: 0 }
}

#[test]
fn rows_are_those_of_two_kernels() {
    for (i, heads) in layouts().into_iter().enumerate() {
        for (j, pairs) in [RopePairs::Half, RopePairs::Interleaved, RopePairs::None].into_iter().enumerate() {
            let weights = [DType::F16.into(), BlockType::Q8_0.into(), DType::I8.into()][(i + j) % 3];
            let cached = [DType::F16, DType::F32, DType::BF16][(i + j) % 3];
            let page_size = [1, 8, 16][j];
            for rows in [1, 2, 3, 7].into_iter().filter(|rows| *rows < 3 || i == j) {
                run(&Check { weights, cached, pairs, page_size, ..check(heads) }, rows, None);
            }
        }
    }
}

#[test]
fn so_they_are_with_every_division_among_lanes() {
    let plain = LinearTuning { in_lanes: 8, outs: 1, steps: 1, max_rows: 4, out_lanes: 1, subgroups: false };
    for (in_lanes, outs, out_lanes) in [(8, 1, 1), (8, 2, 4), (1, 2, 16), (32, 4, 2), (128, 1, 1)] {
        for rows in [1, 3] {
            run(&check(layouts()[0]), rows, Some(LinearTuning { in_lanes, outs, out_lanes, ..plain }));
        }
    }
}

#[test]
fn so_they_are_in_several_slabs() {
    let gpu = poor_device(|all| wgpu::Limits {
        max_storage_buffer_binding_size: 1 << 20,
        max_storage_buffers_per_shader_stage: 13,
        ..all
    });
    let heads = layouts()[0];
    let check = Check { gpu: &gpu, more_pages: (3 << 20) / (2 * heads.kv_dim() * 8), ..check(heads) };
    run(&check, 3, None);
    let (cache, _) = check.cache(1);
    assert_eq!(cache.layer(0).unwrap().wgpu_buffers().len(), 4);
}

#[test]
fn what_it_cannot_do_is_refused() {
    let (gpu, heads, mut rng) = (gpu(), layouts()[0], Rng(5));
    let weight = weight_of(gpu, [1, OUT_DIM, IN_DIM], &vec![1.0; OUT_DIM * IN_DIM], DType::F32.into());
    let linear = || Linear::new(gpu, &weight, None).unwrap();
    let with_rest = |heads: &HeadLayout, rng: &mut Rng| linear().with_rest(norm_of(gpu, heads, rng)).unwrap();
    let kind = |result: latten::Result<Linear>| result.unwrap_err().kind().clone();
    let (cache, _) = check(heads).cache(1);
    let layer = cache.layer(0).unwrap();
    // Other latents than those of the cache.
    let other = kind(with_rest(&layouts()[1], &mut rng).with_append(&layer, RopePairs::Half));
    assert!(matches!(other, ErrorKind::Shape { .. }), "{other}");
    let (integers, _) = Check { cached: DType::I8, ..check(heads) }.cache(1);
    let integers = kind(with_rest(&heads, &mut rng).with_append(&integers.layer(0).unwrap(), RopePairs::Half));
    assert!(matches!(integers, ErrorKind::Unsupported { .. }), "{integers}");
    let fused = with_rest(&heads, &mut rng).with_append(&layer, RopePairs::Half).unwrap();
    let behind = kind(fused.clone().with_tail(8, RopePairs::Half));
    assert!(matches!(behind, ErrorKind::Argument { .. }), "{behind}");

    let most = fused.tuning(2).max_rows;
    let width = IN_DIM + heads.kv_dim();
    let x = tensor(gpu, &[most + 1, width], &vec![1.0; (most + 1) * width]);
    let y = tensor(gpu, &[most + 1, OUT_DIM], &vec![7.0; (most + 1) * OUT_DIM]);
    let rest = tensor(gpu, &[1, heads.kv_dim()], &vec![7.0; heads.kv_dim()]);
    let cos_sin = tensor(gpu, &[most + 1, heads.rotated_dim() / 2, 2], &vec![0.5; (most + 1) * heads.rotated_dim()]);
    let slots = Tensor::from_slice(gpu, &[most + 1], &vec![0u32; most + 1], DType::U32).unwrap();
    let append = Some(AppendRows { layer: &layer, slots: &slots });
    let input = Span::of(&x).row_stride(width);
    let good = LinearArgs { cos_sin: Some(&cos_sin), append, ..LinearArgs::new(1, input, Span::of(&y)) };
    let narrow = Span::of(&x).row_stride(width).offset((most + 1) * width - IN_DIM);
    let kinds = [
        LinearArgs { append: None, ..good },
        LinearArgs { cos_sin: None, ..good },
        LinearArgs { rest: Some(&rest), ..good },
        LinearArgs { rows: most + 1, ..good },
        LinearArgs { x: narrow, ..good },
    ]
    .map(|args| fused.run(args).unwrap_err().kind().clone());
    use ErrorKind::{Argument, Shape};
    let wanted = |i: usize| match i {
        4 => matches!(kinds[i], Shape { .. } | Argument { .. }),
        _ => matches!(kinds[i], Argument { .. }),
    };
    assert!((0..kinds.len()).all(wanted), "{kinds:?}");
    assert!(download(gpu, &y).iter().all(|v| *v == 7.0));
    fused.run(good).unwrap();
    assert!(download(gpu, &y)[..OUT_DIM].iter().all(|v| *v != 7.0));
}
