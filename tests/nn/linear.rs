//! Linear: odd sizes, strides, several heads, bias, accumulation, both weight dtypes, poison.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{Linear, LinearArgs, Span, Weight};
use latten::{reference, DType, ErrorKind, RopePairs, Tensor};

/// One call. Rows and heads lie `*_gap` elements apart beyond their own width, and begin at an offset.
#[derive(Debug, Clone, Copy)]
struct Case {
    heads: usize,
    in_dim: usize,
    out_dim: usize,
    rows: usize,
    dtype: DType,
    bias: bool,
    accumulate: bool,
    /// Of outputs.
    scale: f32,
    offset: usize,
    gap: usize,
}

const PLAIN: Case = Case {
    heads: 1,
    in_dim: 64,
    out_dim: 31,
    rows: 3,
    dtype: DType::F32,
    bias: false,
    accumulate: false,
    scale: 1.0,
    offset: 0,
    gap: 0,
};

/// Where element `i` of a head of a row lies, heads inside rows.
struct Lay {
    offset: usize,
    row: usize,
    head: usize,
    len: usize,
}

fn lay(c: &Case, dim: usize) -> Lay {
    let head = dim + c.gap;
    let row = c.heads * head + c.gap;
    // Eight more rows, which nobody owns.
    Lay { offset: c.offset, row, head, len: c.offset + (c.rows + 8) * row }
}

impl Lay {
    fn at(&self, r: usize, h: usize) -> usize {
        self.offset + r * self.row + h * self.head
    }

    fn span<'a>(&self, t: &'a Tensor) -> Span<'a> {
        Span::of(t).offset(self.offset).row_stride(self.row).head_stride(self.head)
    }
}

/// (y on the device, y by the reference); NaN where nobody owns an element.
fn run(c: &Case, seed: u64) -> (Vec<f32>, Vec<f64>) {
    let gpu = exact_gpu();
    let mut rng = Rng(seed);
    let deviation = (c.in_dim as f32).powf(-0.5);
    let w = rounded(&rng.normals(c.heads * c.out_dim * c.in_dim, deviation), c.dtype);
    let b = rng.normals(c.heads * c.out_dim, 1.0);
    let (x_lay, y_lay) = (lay(c, c.in_dim), lay(c, c.out_dim));
    let (mut x, mut y) = (vec![f32::NAN; x_lay.len], vec![f32::NAN; y_lay.len]);
    let mut want = vec![f64::NAN; y_lay.len];
    for r in 0..c.rows {
        for h in 0..c.heads {
            let values = rng.normals(c.in_dim, 1.0);
            let size = c.out_dim * c.in_dim;
            let (wh, bh) = (f64s(&w[h * size..][..size]), f64s(&b[h * c.out_dim..][..c.out_dim]));
            let mut out = reference::linear(&f64s(&values), &wh, c.bias.then_some(&bh[..]), c.in_dim).unwrap();
            let (from, to) = (x_lay.at(r, h), y_lay.at(r, h));
            out.iter_mut().for_each(|o| *o *= f64::from(c.scale));
            if c.accumulate {
                let old = rng.normals(c.out_dim, 1.0);
                out.iter_mut().zip(&old).for_each(|(o, v)| *o += f64::from(*v));
                y[to..to + c.out_dim].copy_from_slice(&old);
            }
            x[from..from + c.in_dim].copy_from_slice(&values);
            want[to..to + c.out_dim].copy_from_slice(&out);
        }
    }
    let weight = Weight::new(gpu, [c.heads, c.out_dim, c.in_dim], &w, c.dtype).unwrap();
    let bias = c.bias.then(|| tensor(gpu, &[c.heads, c.out_dim], &b));
    let linear = Linear::new(gpu, &weight, bias.as_ref()).unwrap().with_scale(c.scale).unwrap();
    let (x, y) = (tensor(gpu, &[1, x.len()], &x), tensor(gpu, &[1, y.len()], &y));
    let args = LinearArgs::new(c.rows, x_lay.span(&x), y_lay.span(&y));
    linear.run(LinearArgs { accumulate: c.accumulate, ..args }).unwrap();
    (download(gpu, &y), want)
}

fn check(c: Case) {
    let (got, want) = run(&c, 11);
    let nmse = if c.dtype == DType::F32 { 1e-10 } else { 1e-9 };
    assert_close(&format!("{c:?}"), &got, &want, 2e-5, nmse);
}

#[test]
fn every_row_count_and_odd_width_matches_the_reference() {
    for dtype in [DType::F32, DType::F16] {
        for (i, in_dim) in [5, 12, 31, 64, 256, 1000].into_iter().enumerate() {
            for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 130] {
                let out_dim = [1, 7, 64, 65, 130, 33][(i + rows) % 6];
                let (bias, accumulate, scale) = (rows % 2 == 0, rows % 3 == 0, if rows % 2 == 0 { -0.75 } else { 1.0 });
                check(Case { in_dim, out_dim, rows, dtype, bias, accumulate, scale, ..PLAIN });
            }
        }
    }
}

#[test]
fn strides_offsets_and_heads_match_the_reference() {
    for dtype in [DType::F32, DType::F16] {
        for rows in [1, 3, 8, 20] {
            for (offset, gap) in [(4, 8), (3, 5), (0, 4), (1, 0)] {
                for (bias, accumulate) in [(false, false), (true, true)] {
                    let c = Case { rows, dtype, offset, gap, bias, accumulate, ..PLAIN };
                    check(Case { heads: 3, in_dim: 32, out_dim: 48, ..c });
                    check(Case { heads: 2, in_dim: 13, out_dim: 9, ..c });
                    check(Case { heads: 2, in_dim: 12, out_dim: 8, ..c });
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_other_rows() {
    let gpu = exact_gpu();
    let (in_dim, out_dim) = (100, 40);
    let mut rng = Rng(5);
    let weight = Weight::new(gpu, [1, out_dim, in_dim], &rng.normals(in_dim * out_dim, 0.1), DType::F16).unwrap();
    let linear = Linear::new(gpu, &weight, None).unwrap();
    let row = rng.normals(in_dim, 1.0);
    // Up to the rows that the kernel for few takes, any position: the same bits. Above that likewise, in the other kernel.
    let few = linear.tuning(2).max_rows;
    let mut alone = [Vec::new(), Vec::new()];
    for (rows, at) in [(1, 0), (2, 1), (3, 0), (5, 4), (8, 6), (9, 8), (9, 0), (16, 3), (17, 2), (24, 19), (40, 37)] {
        let mut x = rng.normals(rows * in_dim, 1e3);
        x[at * in_dim..][..in_dim].copy_from_slice(&row);
        let (x, y) = (tensor(gpu, &[rows, in_dim], &x), tensor(gpu, &[rows, out_dim], &vec![0.0; rows * out_dim]));
        linear.run(LinearArgs::new(rows, Span::of(&x), Span::of(&y))).unwrap();
        let got = download(gpu, &y)[at * out_dim..][..out_dim].to_vec();
        let alone = &mut alone[usize::from(rows > few)];
        if alone.is_empty() {
            *alone = got.clone();
        }
        assert_eq!(got, *alone, "row {at} of {rows}");
    }
}

#[test]
fn an_output_does_not_depend_on_the_weights_of_others() {
    let gpu = exact_gpu();
    for (in_dim, rows) in [(12, 1), (12, 20), (100, 3), (100, 9)] {
        let mut rng = Rng(6);
        let mut w = rng.normals(5 * in_dim, 0.1);
        let x = rng.normals(rows * in_dim, 1.0);
        let mut want = reference::linear(&f64s(&x), &f64s(&w), None, in_dim).unwrap();
        w[2 * in_dim..3 * in_dim].fill(f32::NAN);
        want.iter_mut().skip(2).step_by(5).for_each(|v| *v = f64::NAN);
        let weight = Weight::new(gpu, [1, 5, in_dim], &w, DType::F32).unwrap();
        let (x, y) = (tensor(gpu, &[rows, in_dim], &x), tensor(gpu, &[rows, 5], &vec![0.0; rows * 5]));
        Linear::new(gpu, &weight, None).unwrap().run(LinearArgs::new(rows, Span::of(&x), Span::of(&y))).unwrap();
        assert_close(&format!("{rows} rows of {in_dim}"), &download(gpu, &y), &want, 2e-5, f64::INFINITY);
    }
}

/// In memory of its own, as `run` writes into memory that is there.
#[test]
fn forward_makes_its_output() {
    let gpu = exact_gpu();
    let mut rng = Rng(17);
    for (heads, shape) in [(1, vec![5, 12]), (1, vec![5, 1, 12]), (3, vec![5, 3, 12])] {
        let weight = Weight::new(gpu, [heads, 7, 12], &rng.normals(heads * 7 * 12, 1.0), DType::F32).unwrap();
        let linear = Linear::new(gpu, &weight, None).unwrap();
        let x = Tensor::from_slice(gpu, &shape, &rng.normals(5 * heads * 12, 1.0), DType::F32).unwrap();
        let y = Tensor::zeros(gpu, &[5, heads, 7], DType::F32).unwrap();
        linear.run(LinearArgs::new(5, Span::of(&x), Span::of(&y))).unwrap();
        let got = linear.forward(&x).unwrap();
        assert_eq!(got.shape(), [&shape[..shape.len() - 1], &[7]].concat());
        let [got, want] = [&got, &y].map(|tensor| pollster::block_on(gpu.download::<f32>(tensor)).unwrap());
        assert!(got == want && got.iter().any(|value| *value != 0.0), "{shape:?}");
    }
}

#[test]
fn bad_calls_are_typed_errors_with_the_numbers() {
    let gpu = exact_gpu();
    let t = |shape: &[usize]| Tensor::zeros(gpu, shape, DType::F32).unwrap();
    assert_kind!(Weight::new(gpu, [1, 2, 3], &[0.0; 5], DType::F32), ErrorKind::Shape { .. });
    assert_kind!(Weight::new(gpu, [1, 0, 3], &[], DType::F32), ErrorKind::Shape { .. });
    assert_kind!(Weight::new(gpu, [usize::MAX, 3, 2], &[0.0; 6], DType::F32), ErrorKind::Shape { .. });
    assert_kind!(Weight::new(gpu, [1, 1, 4], &[0.0; 4], DType::U32), ErrorKind::DType { .. });
    assert_kind!(Weight::new(gpu, [1, 1, 4], &[0.0; 4], DType::I4), ErrorKind::DType { .. });
    assert_kind!(Weight::from_rows(&t(&[3, 6])), ErrorKind::Shape { .. });
    let weight = Weight::new(gpu, [2, 3, 8], &[1.0; 48], DType::F32).unwrap();
    assert_kind!(Linear::new(gpu, &weight, Some(&t(&[2, 4]))), ErrorKind::Shape { .. });
    let linear = Linear::new(gpu, &weight, None).unwrap();
    let (x, y) = (t(&[4, 2, 8]), t(&[4, 2, 3]));
    linear.run(LinearArgs::new(4, Span::of(&x), Span::of(&y))).unwrap();
    let short = linear.run(LinearArgs::new(5, Span::of(&x), Span::of(&y)));
    assert_eq!(message(short), "x has shape (4,2,8), wanted (5,2,8) at offset 0 with strides 16 and 8");
    assert_kind!(linear.run(LinearArgs::new(0, Span::of(&x), Span::of(&y))), ErrorKind::Argument { .. });
    assert_kind!(linear.run(LinearArgs::new(4, Span::of(&x).offset(1), Span::of(&y))), ErrorKind::Shape { .. });
    assert_kind!(
        linear.run(LinearArgs::new(4, Span::of(&x).offset(usize::MAX), Span::of(&y))),
        ErrorKind::Shape { .. }
    );
    assert_kind!(
        linear.run(LinearArgs::new(4, Span::of(&x).row_stride(usize::MAX), Span::of(&y))),
        ErrorKind::Shape { .. }
    );
    assert_kind!(linear.run(LinearArgs::new(4, Span::of(&x), Span::of(&y).head_stride(2))), ErrorKind::Argument { .. });
    assert_kind!(linear.run(LinearArgs::new(1, Span::of(&x), Span::of(&x).offset(32))), ErrorKind::Argument { .. });
    let ids = Tensor::zeros(gpu, &[4, 2, 8], DType::U32).unwrap();
    assert_kind!(linear.run(LinearArgs::new(4, Span::of(&ids), Span::of(&y))), ErrorKind::DType { .. });
    assert_kind!(linear.forward(&ids), ErrorKind::DType { .. });
    assert_eq!(message(linear.forward(&t(&[4, 8]))), "x has shape (4,8), wanted (_,2,8)");
    assert_kind!(linear.clone().with_scale(f32::NAN), ErrorKind::Argument { name: "scale", .. });
    let scaled = linear.clone().with_scale(2.0).unwrap();
    assert_kind!(scaled.clone().with_tail(2, RopePairs::Half), ErrorKind::Argument { .. });
    let beside = Linear::new(gpu, &weight, None).unwrap().with_tail(2, RopePairs::Half).unwrap();
    assert_kind!(beside.clone().with_scale(2.0), ErrorKind::Argument { .. });
    assert_kind!(beside.forward(&x), ErrorKind::Argument { .. });
}
