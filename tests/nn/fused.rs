//! What is fused with a linear, in any combination, in each dtype of weights, and with the numbers of every tier and
//! device: a norm before, SwiGLU after, rotated elements beside.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{quantise, Linear, LinearArgs, LinearTuning, NormShape, RmsNorm, Span, Weight};
use latten::reference;
use latten::rope::cos_sin_table;
use latten::rope::Rope;
use latten::rope::RopePairs;
use latten::{DType, ErrorKind, Gpu, Tensor, Tier};

#[derive(Debug, Clone, Copy)]
struct Case {
    heads: usize,
    in_dim: usize,
    out_dim: usize,
    rows: usize,
    dtype: DType,
    bias: bool,
    norm: bool,
    swiglu: bool,
    /// Width, if any, and pairs (2i, 2i + 1).
    tail: Option<(usize, bool)>,
    tuning: Option<LinearTuning>,
    /// Elements before the first row and behind each.
    gap: usize,
}

const PLAIN: Case = Case {
    heads: 1,
    in_dim: 64,
    out_dim: 34,
    rows: 3,
    dtype: DType::F16,
    bias: false,
    norm: false,
    swiglu: false,
    tail: None,
    tuning: None,
    gap: 0,
};

/// What GPUs get, with and without subgroups, and a software adapter with numbers at their ends.
fn tunings() -> Vec<LinearTuning> {
    let wide = LinearTuning { in_lanes: 64, outs: 4, steps: 2, max_rows: 16, out_lanes: 1, subgroups: false };
    let mut all = vec![
        wide,
        LinearTuning { in_lanes: 32, outs: 2, steps: 4, out_lanes: 2, ..wide },
        LinearTuning { in_lanes: 8, outs: 8, steps: 1, max_rows: 2, out_lanes: 8, ..wide },
        LinearTuning { in_lanes: 128, outs: 2, steps: 8, max_rows: 1, ..wide },
        LinearTuning { in_lanes: 1, outs: 4, steps: 1, max_rows: 8, out_lanes: 16, ..wide },
        LinearTuning { in_lanes: 1, outs: 2, steps: 2, max_rows: 1, out_lanes: 16, ..wide },
    ];
    if exact_gpu().capabilities().tier >= Tier::Subgroup {
        all.extend([
            LinearTuning { subgroups: true, ..wide },
            LinearTuning { subgroups: true, in_lanes: 32, outs: 2, ..wide },
            LinearTuning { subgroups: true, in_lanes: 8, max_rows: 4, ..wide },
            LinearTuning { subgroups: true, steps: 8, outs: 2, out_lanes: 4, ..wide },
        ]);
    } else {
        println!("skipped: no subgroups on {}", gpu().capabilities().adapter);
    }
    all
}

/// Eight lanes are joined by shuffles or in workgroup memory, in one order.
#[test]
fn subgroups_change_no_bit() {
    let gpu = exact_gpu();
    if gpu.capabilities().tier < Tier::Subgroup {
        println!("skipped: no subgroups on {}", gpu.capabilities().adapter);
        return;
    }
    let (rows, in_dim, out_dim) = (5, 1100, 37);
    let mut rng = Rng(3);
    let weight = Weight::new(gpu, [1, out_dim, in_dim], &rng.normals(out_dim * in_dim, 0.3), DType::F16).unwrap();
    let gain = Tensor::from_slice(gpu, &[1, in_dim], &rng.normals(in_dim, 1.0), DType::F32).unwrap();
    let x = Tensor::from_slice(gpu, &[rows, in_dim], &rng.normals(rows * in_dim, 1.0), DType::F32).unwrap();
    let linear = Linear::new(gpu, &weight, None).unwrap().with_norm(&gain, 1e-5).unwrap();
    for (in_lanes, out_lanes) in [(8, 1), (8, 8), (32, 1), (32, 4), (64, 2), (128, 1), (256, 1)] {
        let plain = LinearTuning { in_lanes, outs: 2, steps: 2, max_rows: 16, out_lanes, subgroups: false };
        let bits = |tuning: LinearTuning, rows: usize| {
            let y = linear.clone().with_tuning(tuning).unwrap().forward(&x.view(&[rows, in_dim]).unwrap()).unwrap();
            download(gpu, &y).iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let want = bits(plain, rows);
        assert!(want.iter().any(|v| f32::from_bits(*v).abs() > 0.1));
        for tuning in [plain, LinearTuning { outs: 1, steps: 4, ..plain }] {
            for subgroups in [false, true] {
                let tuning = LinearTuning { subgroups, ..tuning };
                assert_eq!(bits(tuning, rows), want, "{tuning:?}");
                assert_eq!(bits(tuning, 1), want[..out_dim], "{tuning:?}, one row");
            }
        }
    }
}

/// As the device holds it.
fn held(values: &[f32], in_dim: usize, dtype: DType) -> Vec<f64> {
    if dtype != DType::I8 {
        return f64s(&rounded(values, dtype));
    }
    let (integers, scales) = quantise(values, in_dim).unwrap();
    let rows = integers.chunks_exact(in_dim).zip(&scales);
    rows.flat_map(|(row, scale)| row.iter().map(|q| f64::from(*q) * f64::from(*scale))).collect()
}

const EPS: f32 = 1e-5;

fn linear(gpu: &Gpu, c: &Case, w: &[f32], b: &[f32], gain: &[f32]) -> Linear {
    let weight = Weight::new(gpu, [c.heads, c.out_dim, c.in_dim], w, c.dtype).unwrap();
    let bias = c.bias.then(|| tensor(gpu, &[c.heads, c.out_dim], b));
    let mut linear = Linear::new(gpu, &weight, bias.as_ref()).unwrap();
    if c.norm {
        linear = linear.with_norm(&tensor(gpu, &[1, c.in_dim], gain), EPS).unwrap();
    }
    if c.swiglu {
        linear = linear.with_swiglu().unwrap();
    }
    if let Some((dim, interleaved)) = c.tail {
        linear = linear.with_tail(dim, if interleaved { RopePairs::Interleaved } else { RopePairs::Half }).unwrap();
    }
    match c.tuning {
        Some(tuning) => linear.with_tuning(tuning).unwrap(),
        None => linear,
    }
}

fn check(c: Case) {
    let gpu = exact_gpu();
    let mut rng = Rng(21);
    let w = rng.normals(c.heads * c.out_dim * c.in_dim, (c.in_dim as f32).powf(-0.5));
    let b = rng.normals(c.heads * c.out_dim, 1.0);
    let gain = rng.normals(c.in_dim, 1.0);
    let weights = held(&w, c.in_dim, c.dtype);
    let linear = linear(gpu, &c, &w, &b, &gain);
    let (tail_dim, interleaved) = c.tail.unwrap_or((0, false));
    let outputs = c.out_dim / if c.swiglu { 2 } else { 1 } + tail_dim;
    assert_eq!(linear.outputs(), outputs);
    let pairs = if interleaved { reference::RopePairs::Interleaved } else { reference::RopePairs::Half };
    let by_reference = reference::Rope::new(1e4, tail_dim, pairs).unwrap();
    let positions: Vec<u32> = (0..c.rows as u32).map(|r| r * 37).collect();

    let (x_head, y_head) = (c.in_dim + tail_dim + c.gap, outputs + c.gap);
    let (x_row, y_row) = (c.heads * x_head, c.heads * y_head);
    // NaN where nobody owns an element; a row more behind.
    let mut x = vec![f32::NAN; c.gap + (c.rows + 1) * x_row];
    let mut want = vec![f64::NAN; c.gap + (c.rows + 1) * y_row];
    for r in 0..c.rows {
        for h in 0..c.heads {
            let values = rng.normals(c.in_dim + tail_dim, 2.0);
            x[c.gap + r * x_row + h * x_head..][..values.len()].copy_from_slice(&values);
            let (values, rest) = values.split_at(c.in_dim);
            let size = c.out_dim * c.in_dim;
            let (wh, bh) = (&weights[h * size..][..size], f64s(&b[h * c.out_dim..][..c.out_dim]));
            let bias = c.bias.then_some(&bh[..]);
            let mut out = if c.norm {
                reference::norm_linear(&f64s(values), &f64s(&gain), EPS.into(), wh, bias).unwrap()
            } else {
                reference::linear(&f64s(values), wh, bias, c.in_dim).unwrap()
            };
            if c.swiglu {
                out = reference::swiglu(&out, c.out_dim / 2).unwrap();
            }
            let mut rest = f64s(rest);
            if tail_dim > 0 {
                reference::rope(&mut rest, positions[r], &by_reference).unwrap();
            }
            out.extend(rest);
            want[c.gap + r * y_row + h * y_head..][..outputs].copy_from_slice(&out);
        }
    }
    let (x, y) = (tensor(gpu, &[1, x.len()], &x), tensor(gpu, &[1, want.len()], &vec![f32::NAN; want.len()]));
    let from = Span::of(&x).offset(c.gap).row_stride(x_row).head_stride(x_head);
    let to = Span::of(&y).offset(c.gap).row_stride(y_row).head_stride(y_head);
    if tail_dim > 0 {
        let rope = Rope::new(tail_dim, 1e4, RopePairs::Half).unwrap();
        let table = tensor(gpu, &[c.rows, tail_dim / 2, 2], &cos_sin_table(&rope.inv_freq, &positions));
        linear.run(LinearArgs { cos_sin: Some(&table), ..LinearArgs::new(c.rows, from, to) }).unwrap();
    } else {
        linear.run(LinearArgs::new(c.rows, from, to)).unwrap();
    }
    assert_close(&format!("{c:?}"), &download(gpu, &y), &want, 2e-5, 1e-9);
}

const ROWS: [usize; 8] = [1, 2, 3, 8, 9, 16, 17, 40];

#[test]
fn a_norm_before_and_swiglu_after_match_the_reference() {
    for dtype in [DType::F32, DType::F16, DType::I8] {
        for (i, rows) in ROWS.into_iter().enumerate() {
            let (in_dim, out_dim) = [(64, 34), (31, 130), (256, 2), (20, 44), (100, 258)][i % 5];
            for (norm, swiglu) in [(true, false), (false, true), (true, true)] {
                let gap = [0, 4, 3][i % 3];
                check(Case { in_dim, out_dim, rows, dtype, norm, swiglu, gap, bias: i % 2 == 0, ..PLAIN });
            }
        }
    }
}

#[test]
fn rotated_tails_match_the_reference() {
    for (i, rows) in ROWS.into_iter().enumerate() {
        let (heads, in_dim, out_dim, tail_dim) =
            [(4, 32, 64, 16), (3, 6, 10, 4), (2, 32, 128, 16), (8, 6, 21, 2)][i % 4];
        let dtype = [DType::F16, DType::F32, DType::I8][i % 3];
        let tail = Some((tail_dim, i % 2 == 1));
        check(Case { heads, in_dim, out_dim, rows, dtype, tail, bias: i % 2 == 0, gap: i % 5, ..PLAIN });
    }
}

/// The product of a row's first part and the norm of its second, in one call.
fn check_rest((in_dim, out_dim, groups, dim, tail): (usize, usize, usize, usize, usize), rows: usize, c: Case) {
    let gpu = exact_gpu();
    let mut rng = Rng(41);
    let w = rng.normals(out_dim * in_dim, (in_dim as f32).powf(-0.5));
    let (gain, rest_gain) = (rng.normals(in_dim, 1.0), rng.normals(groups * dim, 1.0));
    let norm = NormShape { groups, dim, tail, eps: EPS };
    let norm = RmsNorm::new(gpu, &tensor(gpu, &[groups, dim], &rest_gain), norm).unwrap();
    let c = Case { in_dim, out_dim, norm: true, ..c };
    let linear = linear(gpu, &c, &w, &[], &gain).with_rest(norm).unwrap();
    let (width, stride) = (groups * dim + tail, in_dim + groups * dim + tail + c.gap);
    let weights = held(&w, in_dim, c.dtype);
    let mut x = vec![f32::NAN; c.gap + rows * stride];
    let (mut want, mut want_rest) = (Vec::new(), Vec::new());
    for r in 0..rows {
        let row = rng.normals(in_dim + width, 2.0);
        x[c.gap + r * stride..][..row.len()].copy_from_slice(&row);
        let row = f64s(&row);
        let (input, rest) = row.split_at(in_dim);
        want.extend(reference::norm_linear(input, &f64s(&gain), EPS.into(), &weights, None).unwrap());
        let (latents, key) = rest.split_at(groups * dim);
        want_rest.extend(reference::rms_norm(latents, &f64s(&rest_gain), dim, EPS.into()).unwrap());
        want_rest.extend(key);
    }
    // A row more of each, which nobody owns.
    let x = tensor(gpu, &[1, x.len()], &x);
    let y = tensor(gpu, &[rows + 1, out_dim], &vec![f32::NAN; (rows + 1) * out_dim]);
    let rest = tensor(gpu, &[rows + 1, width], &vec![f32::NAN; (rows + 1) * width]);
    want.resize(want.len() + out_dim, f64::NAN);
    want_rest.resize(want_rest.len() + width, f64::NAN);
    let from = Span::of(&x).offset(c.gap).row_stride(stride);
    let rest_rows = rest.view(&[rows, width]).unwrap();
    linear.run(LinearArgs { rest: Some(&rest_rows), ..LinearArgs::new(rows, from, Span::of(&y)) }).unwrap();
    let case = format!("{rows} rows, {groups} x {dim} + {tail} beside {c:?}");
    assert_close(&case, &download(gpu, &y), &want, 2e-5, 1e-9);
    assert_close(&case, &download(gpu, &rest), &want_rest, 2e-5, 1e-9);
}

#[test]
fn a_norm_beside_a_product_matches_the_reference() {
    let sizes = [(64, 96, 2, 128, 16), (14, 8, 1, 21, 2), (32, 40, 8, 12, 0), (128, 3, 3, 65, 130)];
    for (i, size) in sizes.into_iter().enumerate() {
        for rows in [1, 3, 8, 9, 20] {
            check_rest(size, rows, Case { gap: i, dtype: [DType::F16, DType::I8][i % 2], ..PLAIN });
        }
    }
    for tuning in tunings() {
        check_rest(sizes[0], 3, Case { tuning: Some(tuning), ..PLAIN });
        check_rest(sizes[1], 1, Case { tuning: Some(tuning), ..PLAIN });
    }
}

#[test]
fn the_numbers_of_every_tier_and_device_give_the_same() {
    for (i, tuning) in tunings().into_iter().enumerate() {
        let tuning = Some(tuning);
        // Software adapters compile for long: the kernels of each tuning, with one fusion each.
        for (j, rows) in [1, 2, 3, 7, 13].into_iter().enumerate() {
            let (in_dim, out_dim) = [(1000, 70), (64, 12), (2052, 18), (5, 6)][(j + i) % 4];
            let dtype = [DType::F16, DType::I8, DType::F32][(j + i) % 3];
            let c = Case { in_dim, out_dim, rows, dtype, tuning, bias: true, ..PLAIN };
            match (i + j) % 4 {
                0 => check(Case { heads: 2, ..c }),
                1 => check(Case { norm: true, ..c }),
                2 => check(Case { norm: true, swiglu: true, gap: 4, ..c }),
                _ => check(Case { heads: 3, tail: Some((8, false)), ..c }),
            }
        }
    }
}

#[test]
fn eight_bit_weights_are_near_the_unrounded_ones() {
    let gpu = exact_gpu();
    let (rows, in_dim, out_dim) = (5, 512, 96);
    let mut rng = Rng(31);
    let w = rng.normals(in_dim * out_dim, 0.05);
    let x = rng.normals(rows * in_dim, 1.0);
    let (integers, scales) = quantise(&w, in_dim).unwrap();
    assert!(integers.iter().any(|q| *q == 127 || *q == -127) && scales.len() == out_dim);
    for (i, (w, q)) in w.iter().zip(&integers).enumerate() {
        let scale = scales[i / in_dim];
        assert!((w - f32::from(*q) * scale).abs() <= 0.5001 * scale, "element {i}: {w} as {q} * {scale}");
    }
    // The f64 definition rounds to the same weights.
    let by_reference = reference::quantised(&f64s(&w), in_dim).unwrap();
    for (got, want) in held(&w, in_dim, DType::I8).iter().zip(&by_reference) {
        assert!((got - want).abs() <= 1e-6 * 0.05, "{got} {want}");
    }
    let want = reference::linear(&f64s(&x), &f64s(&w), None, in_dim).unwrap();
    let weight = Weight::new(gpu, [1, out_dim, in_dim], &w, DType::I8).unwrap();
    assert_eq!(weight.size_bytes(), out_dim * in_dim + 4 * out_dim);
    let (x, y) = (tensor(gpu, &[rows, in_dim], &x), tensor(gpu, &[rows, out_dim], &vec![0.0; rows * out_dim]));
    Linear::new(gpu, &weight, None).unwrap().run(LinearArgs::new(rows, Span::of(&x), Span::of(&y))).unwrap();
    let got = download(gpu, &y);
    let error: f64 = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let nmse = error / want.iter().map(|w| w * w).sum::<f64>();
    println!("int8 weights: normalised mean square error {nmse:.1e} against the unrounded");
    // Rounding alone: (max / 127)^2 / 12 over the variance, for normal weights with max near 3.2 deviations 5.3e-5.
    assert!((1e-5..1e-4).contains(&nmse), "{nmse:e}");
}

#[test]
fn bad_fusions_are_typed_errors() {
    let gpu = exact_gpu();
    let t = |shape: &[usize]| Tensor::zeros(gpu, shape, DType::F32).unwrap();
    let of = |out_dim: usize| {
        let weight = Weight::new(gpu, [1, out_dim, 8], &vec![1.0; 8 * out_dim], DType::F16).unwrap();
        Linear::new(gpu, &weight, None).unwrap()
    };
    assert_kind!(of(4).with_norm(&t(&[1, 7]), 1e-6), ErrorKind::Shape { .. });
    assert_kind!(of(4).with_norm(&t(&[1, 8]), 0.0), ErrorKind::Argument { .. });
    assert_kind!(of(3).with_swiglu(), ErrorKind::Shape { .. });
    assert_kind!(of(4).with_tail(3, RopePairs::Half), ErrorKind::Argument { .. });
    assert_kind!(of(4).with_swiglu().unwrap().with_tail(2, RopePairs::Half), ErrorKind::Argument { .. });
    assert_kind!(of(4).with_tail(2, RopePairs::Half).unwrap().with_swiglu(), ErrorKind::Argument { .. });
    let good = of(4).tuning(1);
    for bad in [
        LinearTuning { in_lanes: 12, ..good },
        LinearTuning { in_lanes: 4, ..good },
        LinearTuning { in_lanes: 1, subgroups: true, ..good },
        LinearTuning { in_lanes: 512, ..good },
        LinearTuning { outs: 0, ..good },
        LinearTuning { outs: 16, ..good },
        LinearTuning { steps: 3, ..good },
        LinearTuning { max_rows: 32, ..good },
        LinearTuning { out_lanes: 3, ..good },
        LinearTuning { in_lanes: 256, out_lanes: 2, subgroups: false, ..good },
    ] {
        assert_kind!(of(4).with_tuning(bad), ErrorKind::Argument { .. });
    }
    let one = LinearTuning { outs: 1, ..good };
    assert_kind!(of(4).with_swiglu().unwrap().with_tuning(one), ErrorKind::Argument { .. });

    let tailed = of(4).with_tail(2, RopePairs::Half).unwrap();
    let (x, y) = (t(&[3, 1, 10]), t(&[3, 1, 6]));
    let args = LinearArgs::new(3, Span::of(&x), Span::of(&y));
    let (cos_sin, short) = (t(&[3, 1, 2]), t(&[2, 1, 2]));
    tailed.run(LinearArgs { cos_sin: Some(&cos_sin), ..args }).unwrap();
    let short = tailed.run(LinearArgs { cos_sin: Some(&short), ..args });
    assert_eq!(message(short), "cos_sin has shape (2,1,2), wanted at least 3 rows");
    assert_kind!(tailed.run(args), ErrorKind::Argument { .. });
    assert_kind!(of(4).run(LinearArgs { cos_sin: Some(&cos_sin), ..args }), ErrorKind::Argument { .. });

    let rest = |eps| RmsNorm::new(gpu, &t(&[1, 2]), NormShape { groups: 1, dim: 2, tail: 0, eps }).unwrap();
    assert_kind!(of(4).with_tail(2, RopePairs::Half).unwrap().with_rest(rest(1e-6)), ErrorKind::Argument { .. });
    assert_kind!(of(4).with_rest(rest(1e-6)).unwrap().with_tail(2, RopePairs::Half), ErrorKind::Argument { .. });
    assert_kind!(of(4).with_rest(rest(1e-6)).unwrap().with_norm(&t(&[1, 8]), 1e-6), ErrorKind::Argument { .. });
    assert_kind!(of(4).with_norm(&t(&[1, 8]), 1e-5).unwrap().with_rest(rest(1e-6)), ErrorKind::Argument { .. });
    let with_rest = of(4).with_rest(rest(1e-6)).unwrap();
    for rows in [3, 40] {
        let (x, y) = (t(&[rows, 10]), t(&[rows, 4]));
        let run = |x: &Tensor, rest: &Tensor| {
            with_rest.run(LinearArgs { rest: Some(rest), ..LinearArgs::new(rows, Span::of(x), Span::of(&y)) })
        };
        run(&x, &t(&[rows, 2])).unwrap();
        assert_kind!(run(&x, &t(&[rows, 3])), ErrorKind::Shape { .. });
        assert_kind!(run(&t(&[rows, 9]), &t(&[rows, 2])), ErrorKind::Shape { .. });
        assert_kind!(run(&x, &y.view(&[rows, 2]).unwrap()), ErrorKind::Argument { .. });
        assert_kind!(run(&x, &x.view(&[rows, 2]).unwrap()), ErrorKind::Argument { .. });
        let (args, rest) = (LinearArgs::new(rows, Span::of(&x), Span::of(&y)), t(&[rows, 2]));
        assert_kind!(with_rest.run(args), ErrorKind::Argument { .. });
        assert_kind!(of(4).run(LinearArgs { rest: Some(&rest), ..args }), ErrorKind::Argument { .. });
    }
    assert_kind!(quantise(&[1.0, f32::NAN], 2), ErrorKind::Argument { .. });
    assert_kind!(quantise(&[1.0, 2.0, 3.0], 2), ErrorKind::Shape { .. });
    assert_kind!(quantise(&[], 0), ErrorKind::Shape { .. });
    assert_eq!(quantise(&[0.0, 0.0, -2.0, 0.5], 2).unwrap().0, [0, 0, -127, 32]);
    let ints = Tensor::zeros(gpu, &[4], DType::I8).unwrap();
    assert_kind!(pollster::block_on(gpu.download::<f32>(&ints)), ErrorKind::DType { .. });
    assert_kind!(gpu.upload(&ints, &[0.0; 4]), ErrorKind::DType { .. });
}

/// GELU in the place of silu, and outputs that are capped: for few rows and for many, of small and of large numbers.
#[test]
fn geglu_and_softcaps_match_the_reference() {
    let gpu = exact_gpu();
    for (in_dim, out_dim, rows, size) in [(64, 30, 1, 1.0), (64, 30, 5, 3.0), (61, 70, 40, 1.0), (64, 16, 3, 100.0)] {
        let mut rng = Rng(21);
        let w = rng.normals(out_dim * in_dim, size * (in_dim as f32).powf(-0.5));
        let (bias, x) = (rng.normals(out_dim, 1.0), rng.normals(rows * in_dim, 1.0));
        let y = reference::linear(&f64s(&x), &f64s(&w), Some(&f64s(&bias)), in_dim).unwrap();
        let weight = Weight::new(gpu, [1, out_dim, in_dim], &w, DType::F32).unwrap();
        let linear = Linear::new(gpu, &weight, Some(&tensor(gpu, &[1, out_dim], &bias))).unwrap();
        let x = tensor(gpu, &[rows, in_dim], &x);
        let case = format!("{rows} rows of {in_dim} to {out_dim}, {size}");
        let got = download(gpu, &linear.clone().with_geglu().unwrap().forward(&x).unwrap());
        assert_close(&format!("{case}: geglu"), &got, &reference::geglu(&y, out_dim / 2).unwrap(), 5e-5, 1e-9);
        let capped: Vec<f64> = y.iter().map(|y| 2.5 * (y / 2.5).tanh()).collect();
        let softcap = linear.clone().with_softcap(2.5).unwrap();
        assert_close(&format!("{case}: softcap"), &download(gpu, &softcap.forward(&x).unwrap()), &capped, 2e-5, 1e-9);
        assert!(message(softcap.clone().with_scale(2.0)).contains("softcap"));
        assert!(message(softcap.with_swiglu()).contains("softcap"));
        assert!(message(linear.with_softcap(f32::NAN)).contains("cap: NaN"));
    }
}
