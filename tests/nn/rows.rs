//! Norm, SwiGLU, embedding and rotation.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{Embedding, NormShape, RmsNorm, RopeKernel, RopeShape, Span, SwiGlu, Weight};
use latten::reference;
use latten::rope::cos_sin_table;
use latten::rope::Rope;
use latten::rope::RopePairs;
use latten::{DType, ErrorKind, Tensor};

#[test]
fn norm_matches_the_reference_and_copies_the_tail() {
    let gpu = gpu();
    for (groups, dim, tail, gap) in [(1, 256, 0, 0), (2, 64, 16, 0), (3, 5, 7, 9), (1, 1000, 1, 3), (8, 12, 0, 1)] {
        for (rows, deviation) in [(1, 1.0), (5, 1e-3), (70, 300.0)] {
            let mut rng = Rng(3);
            let width = groups * dim + tail;
            let stride = width + gap;
            let mut x = vec![f32::NAN; 2 + rows * stride];
            let mut want = vec![f64::NAN; 1 + rows * stride];
            let gain = rng.normals(groups * dim, 1.0);
            for r in 0..rows {
                let row = rng.normals(width, deviation);
                let mut out =
                    reference::rms_norm(&f64s(&row[..groups * dim]), &f64s(&gain), dim, 1e-6f32.into()).unwrap();
                out.extend(f64s(&row[groups * dim..]).iter());
                x[2 + r * stride..][..width].copy_from_slice(&row);
                want[1 + r * stride..][..width].copy_from_slice(&out);
            }
            let (x, y) = (tensor(gpu, &[1, x.len()], &x), tensor(gpu, &[1, want.len()], &vec![f32::NAN; want.len()]));
            let gain = tensor(gpu, &[groups, dim], &gain);
            let norm = RmsNorm::new(gpu, &gain, NormShape { groups, dim, tail, eps: 1e-6 }).unwrap();
            let (from, to) = (Span::of(&x).offset(2).row_stride(stride), Span::of(&y).offset(1).row_stride(stride));
            norm.run(rows, from, to).unwrap();
            let case = format!("{rows} rows of {groups} x {dim} + {tail}");
            assert_close(&case, &download(gpu, &y), &want, 2e-5, 1e-10);
        }
    }
}

/// Keys of GQA's cached rows are normalised, the values behind each are not.
#[test]
fn a_norm_with_gaps_copies_them() {
    let gpu = gpu();
    for (groups, dim, gap, tail) in [(2, 64, 64, 0), (3, 5, 7, 0), (1, 130, 3, 2), (4, 12, 200, 9)] {
        for rows in [1, 37] {
            let mut rng = Rng(5);
            let (width, gain) = (groups * (dim + gap) + tail, rng.normals(groups * dim, 1.0));
            let x = rng.normals(rows * width, 2.0);
            let mut want = f64s(&x);
            for row in want.chunks_mut(width) {
                for (group, gain) in row.chunks_mut(dim + gap).zip(gain.chunks(dim)) {
                    let normed = reference::rms_norm(&group[..dim], &f64s(gain), dim, 1e-6f32.into()).unwrap();
                    group[..dim].copy_from_slice(&normed);
                }
            }
            let gain = tensor(gpu, &[groups, dim], &gain);
            let norm = RmsNorm::new(gpu, &gain, NormShape { groups, dim, tail, eps: 1e-6 }).unwrap();
            let norm = norm.with_gap(gap).unwrap();
            assert_eq!(norm.gap(), gap);
            let (x, y) = (tensor(gpu, &[rows, width], &x), tensor(gpu, &[rows, width], &vec![f32::NAN; rows * width]));
            norm.run(rows, Span::of(&x), Span::of(&y)).unwrap();
            let case = format!("{rows} rows of {groups} x ({dim} + {gap}) + {tail}");
            assert_close(&case, &download(gpu, &y), &want, 2e-5, 1e-10);
            // A row without gaps is too short for it.
            let short = tensor(gpu, &[rows, width - gap], &vec![0.0; rows * (width - gap)]);
            assert_kind!(norm.run(rows, Span::of(&x), Span::of(&short)), ErrorKind::Shape { .. });
            assert_kind!(norm.with_gap(usize::MAX), ErrorKind::Argument { .. });
        }
    }
}

/// All keys of a token together, and what is added to the stream.
#[test]
fn a_norm_of_all_groups_has_one_mean_and_one_behind_a_layer_adds() {
    let gpu = gpu();
    for (groups, dim, gap, adds) in [(2, 64, 64, false), (3, 5, 7, true), (1, 130, 0, true), (5, 12, 0, false)] {
        let (rows, width) = (9, groups * (dim + gap));
        let mut rng = Rng(15);
        let (gain, x) = (rng.normals(groups * dim, 1.0), rng.normals(rows * width, 2.0));
        let old = if adds { rng.normals(rows * width, 1.0) } else { vec![f32::NAN; rows * width] };
        let mut want = f64s(&x);
        for row in want.chunks_mut(width) {
            let keys: Vec<f64> = row.chunks(dim + gap).flat_map(|group| &group[..dim]).copied().collect();
            let normed = reference::rms_norm(&keys, &f64s(&gain), groups * dim, 1e-6f32.into()).unwrap();
            row.chunks_mut(dim + gap).zip(normed.chunks(dim)).for_each(|(group, n)| group[..dim].copy_from_slice(n));
        }
        if adds {
            want.iter_mut().zip(&old).for_each(|(w, o)| *w += f64::from(*o));
        }
        let gain = tensor(gpu, &[groups, dim], &gain);
        let norm = RmsNorm::new(gpu, &gain, NormShape { groups, dim, tail: 0, eps: 1e-6 }).unwrap();
        let norm = norm.with_gap(gap).unwrap().joined();
        let norm = if adds { norm.adding() } else { norm };
        let (x, y) = (tensor(gpu, &[rows, width], &x), tensor(gpu, &[rows, width], &old));
        norm.run(rows, Span::of(&x), Span::of(&y)).unwrap();
        assert_close(&format!("{groups} x ({dim} + {gap}), adds {adds}"), &download(gpu, &y), &want, 2e-5, 1e-10);
        let weight = Weight::new(gpu, [1, 1, 4], &[0.0; 4], DType::F32).unwrap();
        let linear = latten::nn::Linear::new(gpu, &weight, None).unwrap();
        assert_kind!(linear.with_rest(norm), ErrorKind::Argument { name: "rest", .. });
    }
}

#[test]
fn swiglu_matches_the_reference_at_any_size_of_gate() {
    let gpu = gpu();
    for (rows, width) in [(1, 2), (3, 200), (9, 65), (130, 12)] {
        let mut x = Rng(4).normals(rows * 2 * width, 3.0);
        x[0] = -200.0; // exp(200) would be infinite
        let want = reference::swiglu(&f64s(&x), width).unwrap();
        // One more row, which nobody owns.
        let x = tensor(gpu, &[rows, 2 * width], &x);
        let y = tensor(gpu, &[rows + 1, width], &vec![f32::NAN; (rows + 1) * width]);
        SwiGlu::new(gpu).unwrap().run(&x, &y.view(&[rows, width]).unwrap()).unwrap();
        let got = download(gpu, &y);
        assert_close(&format!("{rows} x {width}"), &got[..rows * width], &want, 2e-5, 1e-10);
        assert!(got[rows * width..].iter().all(|v| v.is_nan()), "{rows} x {width}");
    }
}

#[test]
fn embedding_gathers_exactly_and_clamps_what_the_host_did_not_check() {
    let gpu = gpu();
    for dtype in [DType::F32, DType::F16] {
        for (table_rows, dim) in [(7, 5), (256, 64), (3, 1001)] {
            let values = rounded(&Rng(6).normals(table_rows * dim, 1.0), dtype);
            let table = Weight::new(gpu, [1, table_rows, dim], &values, dtype).unwrap();
            let embedding = Embedding::new(gpu, &table).unwrap();
            let mut ids = vec![2, 0, table_rows as u32 - 1, 2];
            assert!(embedding.check_ids(&ids).is_ok());
            let want = reference::embedding(&f64s(&values), &ids, dim).unwrap();
            ids.extend([table_rows as u32, u32::MAX]);
            let bad = message(embedding.check_ids(&ids));
            assert_eq!(bad, format!("ids: entry 4 is {table_rows}, the table has {table_rows} rows"));
            let y = tensor(gpu, &[7, dim], &vec![f32::NAN; 7 * dim]);
            let ids = Tensor::from_slice(gpu, &[6], &ids, DType::U32).unwrap();
            embedding.run(&ids, &y.view(&[6, dim]).unwrap()).unwrap();
            let got = download(gpu, &y);
            assert_eq!(f64s(&got[..4 * dim]), want, "{dtype} {table_rows} x {dim}");
            assert_eq!(got[4 * dim..5 * dim], values[(table_rows - 1) * dim..], "clamped to the last row");
            assert_eq!(got[5 * dim..6 * dim], values[(table_rows - 1) * dim..], "clamped to the last row");
            assert!(got[6 * dim..].iter().all(|v| v.is_nan()), "{dtype} {table_rows} x {dim}: a row nobody owns");
            let scaled = embedding.clone().with_scale(-2.0).unwrap();
            scaled.run(&ids, &y.view(&[6, dim]).unwrap()).unwrap();
            let twice: Vec<f32> = got[..6 * dim].iter().map(|v| -2.0 * v).collect();
            assert_eq!(download(gpu, &y)[..6 * dim], twice, "{dtype} {table_rows} x {dim}, scaled");
            assert_kind!(embedding.with_scale(f32::INFINITY), ErrorKind::Argument { name: "scale", .. });
        }
    }
}

#[test]
fn rows_of_an_activation_are_gathered() {
    let gpu = gpu();
    let values = Rng(8).normals(9 * 12, 1.0);
    let rows = Embedding::new(gpu, &Weight::from_rows(&tensor(gpu, &[9, 12], &values)).unwrap()).unwrap();
    let y = tensor(gpu, &[2, 12], &[f32::NAN; 24]);
    rows.run(&Tensor::from_slice(gpu, &[2], &[8, 3], DType::U32).unwrap(), &y).unwrap();
    assert_eq!(download(gpu, &y), [&values[96..], &values[36..48]].concat());
}

#[test]
fn rotation_matches_the_reference_up_to_large_positions() {
    let gpu = gpu();
    for (rotation, pairs) in
        [(RopePairs::Half, reference::RopePairs::Half), (RopePairs::Interleaved, reference::RopePairs::Interleaved)]
    {
        for (heads, copy_dim, rope_dim, gap) in [(1, 0, 2, 0), (8, 0, 32, 0), (8, 16, 16, 3), (3, 5, 6, 64)] {
            let rope = Rope::new(rope_dim, 1e4, rotation).unwrap();
            let by_reference = reference::Rope::new(1e4, rope_dim, pairs).unwrap();
            let positions = [0, 1, 7, 1023, 131_071, 1_000_003];
            let mut rng = Rng(9);
            let (width, rows) = (copy_dim + rope_dim, positions.len());
            let (x_head, y_head) = (width + gap, width + 2);
            let (x_row, y_row) = (heads * x_head, heads * y_head + 1);
            let mut x = vec![f32::NAN; 1 + rows * x_row];
            let mut want = vec![f64::NAN; 3 + rows * y_row];
            for (r, &position) in positions.iter().enumerate() {
                for h in 0..heads {
                    let head = rng.normals(width, 1.0);
                    let mut out = f64s(&head);
                    reference::rope(&mut out[copy_dim..], position, &by_reference).unwrap();
                    x[1 + r * x_row + h * x_head..][..width].copy_from_slice(&head);
                    want[3 + r * y_row + h * y_head..][..width].copy_from_slice(&out);
                }
            }
            let (x, y) = (tensor(gpu, &[1, x.len()], &x), tensor(gpu, &[1, want.len()], &vec![f32::NAN; want.len()]));
            let table = tensor(gpu, &[rows, rope_dim / 2, 2], &cos_sin_table(&rope.inv_freq, &positions));
            let rotate = RopeKernel::new(gpu, RopeShape { heads, copy_dim, rope_dim, pairs: rotation }).unwrap();
            let from = Span::of(&x).offset(1).row_stride(x_row).head_stride(x_head);
            let to = Span::of(&y).offset(3).row_stride(y_row).head_stride(y_head);
            rotate.run(rows, &table, from, to).unwrap();
            let case = format!("{rotation:?} {heads} x ({copy_dim} + {rope_dim})");
            assert_close(&case, &download(gpu, &y), &want, 2e-6, 1e-12);
        }
    }
}

#[test]
fn bad_calls_are_typed_errors() {
    let gpu = gpu();
    let t = |shape: &[usize]| Tensor::zeros(gpu, shape, DType::F32).unwrap();
    let ids = Tensor::zeros(gpu, &[4], DType::U32).unwrap();
    let shape = NormShape { groups: 2, dim: 8, tail: 4, eps: 1e-6 };
    assert_kind!(RmsNorm::new(gpu, &t(&[8, 2]), shape), ErrorKind::Shape { .. });
    assert_kind!(RmsNorm::new(gpu, &t(&[2, 8]), NormShape { eps: f32::NAN, ..shape }), ErrorKind::Argument { .. });
    assert_kind!(RmsNorm::new(gpu, &t(&[2, 8]), NormShape { groups: 0, ..shape }), ErrorKind::Argument { .. });
    let norm = RmsNorm::new(gpu, &t(&[2, 8]), shape).unwrap();
    let (x, y) = (t(&[3, 20]), t(&[3, 20]));
    norm.run(3, Span::of(&x), Span::of(&y)).unwrap();
    assert_kind!(norm.run(4, Span::of(&x), Span::of(&y)), ErrorKind::Shape { .. });
    assert_kind!(norm.run(3, Span::of(&x), Span::of(&y).row_stride(19)), ErrorKind::Argument { .. });
    assert_kind!(norm.run(3, Span::of(&x), Span::of(&x)), ErrorKind::Argument { .. });

    let swiglu = SwiGlu::new(gpu).unwrap();
    assert_kind!(swiglu.run(&t(&[3, 9]), &t(&[3, 5])), ErrorKind::Shape { .. });
    assert_kind!(swiglu.run(&t(&[3, 5, 2]), &t(&[3, 5])), ErrorKind::Shape { .. });
    assert_kind!(swiglu.run(&ids, &t(&[3, 5])), ErrorKind::Shape { .. });

    let two_heads = Weight::new(gpu, [2, 1, 4], &[0.0; 8], DType::F32).unwrap();
    assert_kind!(Embedding::new(gpu, &two_heads), ErrorKind::Argument { .. });
    let embedding = Embedding::new(gpu, &Weight::from_rows(&t(&[5, 8])).unwrap()).unwrap();
    assert_kind!(embedding.run(&ids, &t(&[4, 7])), ErrorKind::Shape { .. });
    assert_kind!(embedding.run(&ids, &t(&[3, 8])), ErrorKind::Shape { .. });
    assert_kind!(embedding.run(&t(&[4]), &t(&[4, 8])), ErrorKind::DType { .. });

    let shape = RopeShape { heads: 2, copy_dim: 1, rope_dim: 4, pairs: RopePairs::Half };
    assert_kind!(RopeKernel::new(gpu, RopeShape { rope_dim: 3, ..shape }), ErrorKind::Argument { .. });
    assert_kind!(RopeKernel::new(gpu, RopeShape { rope_dim: 0, ..shape }), ErrorKind::Argument { .. });
    assert_kind!(RopeKernel::new(gpu, RopeShape { heads: 0, ..shape }), ErrorKind::Argument { .. });
    let rotate = RopeKernel::new(gpu, shape).unwrap();
    let (x, y) = (t(&[3, 2, 5]), t(&[3, 2, 5]));
    assert_kind!(rotate.run(3, &t(&[2, 2, 2]), Span::of(&x), Span::of(&y)), ErrorKind::Shape { .. });
    assert_kind!(rotate.run(3, &t(&[3, 4]), Span::of(&x), Span::of(&y)), ErrorKind::Shape { .. });
    assert_kind!(rotate.run(4, &t(&[4, 2, 2]), Span::of(&x), Span::of(&y)), ErrorKind::Shape { .. });
}
