//! The product of many rows by cooperative matrices, on devices that have them: against the f64 reference, as it is and with
//! the input rounded as `shaders/nn/linear_pack.wgsl` says.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{quantise, Linear, LinearArgs, MatrixTile, NormShape, RmsNorm, Span, Weight};
use latten::reference;
use latten::rope::cos_sin_table;
use latten::rope::Rope;
use latten::rope::RopePairs;
use latten::{DType, ErrorKind, Gpu, GpuOptions, Tensor, Tier};
use std::sync::OnceLock;

/// A device with cooperative matrices; None, and said so, without.
fn new_matrix_gpu() -> Option<Gpu> {
    let options = GpuOptions { tier: Some(Tier::Matrix), ..Default::default() };
    let gpu = pollster::block_on(Gpu::with_options(options)).expect("a GPU adapter, software ones count");
    if gpu.capabilities().tier < Tier::Matrix {
        println!("skipped: no cooperative matrices on {}", gpu.capabilities().adapter);
        return None;
    }
    Some(gpu)
}

fn matrix_gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(new_matrix_gpu).as_ref()
}

const fn tile(tiles: (usize, usize), groups: (usize, usize), step_words: usize, ahead: usize) -> MatrixTile {
    let ((row_tiles, out_tiles), (row_groups, out_groups)) = (tiles, groups);
    MatrixTile { row_tiles, out_tiles, row_groups, out_groups, step_words, ahead }
}

/// The device's own, and others at the ends of what there may be; the last has one subgroup.
const TILES: [MatrixTile; 6] = [
    tile((4, 2), (2, 4), 8, 2),
    tile((2, 2), (2, 2), 16, 1),
    tile((1, 2), (4, 1), 16, 1),
    tile((2, 4), (4, 2), 4, 4),
    tile((4, 2), (1, 4), 8, 1),
    tile((1, 2), (1, 1), 8, 2),
];

#[derive(Debug, Clone, Copy)]
struct Case {
    heads: usize,
    in_dim: usize,
    out_dim: usize,
    rows: usize,
    dtype: DType,
    bias: bool,
    accumulate: bool,
    norm: bool,
    swiglu: bool,
    /// Width, if any, and pairs (2i, 2i + 1).
    tail: Option<(usize, bool)>,
    tile: Option<MatrixTile>,
    /// Elements before the first row and behind each head.
    gap: usize,
    /// Rows are of this size, times 1, times its inverse, in turn.
    size: f32,
}

const PLAIN: Case = Case {
    heads: 1,
    in_dim: 64,
    out_dim: 34,
    rows: 40,
    dtype: DType::F16,
    bias: false,
    accumulate: false,
    norm: false,
    swiglu: false,
    tail: None,
    tile: None,
    gap: 0,
    size: 1.0,
};

const EPS: f32 = 1e-5;

/// As the device holds it.
fn held(values: &[f32], in_dim: usize, dtype: DType) -> Vec<f64> {
    if dtype != DType::I8 {
        return f64s(&rounded(values, dtype));
    }
    let (integers, scales) = quantise(values, in_dim).unwrap();
    let rows = integers.chunks_exact(in_dim).zip(&scales);
    rows.flat_map(|(row, scale)| row.iter().map(|q| f64::from(*q) * f64::from(*scale))).collect()
}

/// A row in f16 under the power of two that brings its largest element into [2^14, 2^15).
fn packed(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let exponent = (largest.to_bits() >> 23).clamp(15, 254) as i32 - 127;
    let scale = 2f32.powi(14 - exponent);
    row.iter().map(|v| half::f16::from_f32(v * scale).to_f64() / f64::from(scale)).collect()
}

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
    if let Some(tile) = c.tile {
        linear = linear.with_matrix_tile(tile).unwrap();
    }
    let used = linear.matrix_tile(c.rows);
    assert!(used.is_some() && (c.tile.is_none() || used == c.tile), "{c:?}: {used:?}");
    linear
}

/// What one head of one row should be, with the input as it is packed and as it is; then by how much the second may be
/// missed: f16 rounds each element of the input by at most 2^-11 of itself.
fn wanted(c: &Case, values: &[f32], weights: &[f64], bias: Option<&[f64]>, gain: &[f32]) -> [Vec<f64>; 3] {
    let scaled: Vec<f32> = match c.norm {
        true => values.iter().zip(gain).map(|(v, g)| v * g).collect(),
        false => values.to_vec(),
    };
    let square = f64s(values).iter().map(|v| v * v).sum::<f64>() / c.in_dim as f64;
    let factor = if c.norm { (square + f64::from(EPS)).sqrt().recip() } else { 1.0 };
    let input: Vec<f64> = packed(&scaled).iter().map(|v| v * factor).collect();
    let rounded = reference::linear(&input, weights, bias, c.in_dim).unwrap();
    let exact = match c.norm {
        true => reference::norm_linear(&f64s(values), &f64s(gain), EPS.into(), weights, bias).unwrap(),
        false => reference::linear(&f64s(values), weights, bias, c.in_dim).unwrap(),
    };
    let sizes = |values: &[f64]| values.iter().map(|v| v.abs() / 2048.0).collect::<Vec<_>>();
    let weights: Vec<f64> = weights.iter().map(|w| w.abs()).collect();
    let bound = reference::linear(&sizes(&input), &weights, None, c.in_dim).unwrap();
    if !c.swiglu {
        return [rounded, exact, bound];
    }
    // |silu'| is at most 1.1, and |silu(v)| at most |v|.
    let half = c.out_dim / 2;
    let of_both = |i: usize| 1.1 * bound[i] * exact[half + i].abs() + exact[i].abs() * bound[half + i];
    let [rounded, swiglu] = [&rounded, &exact].map(|y| reference::swiglu(y, half).unwrap());
    [rounded, swiglu, (0..half).map(of_both).collect()]
}

fn check(c: Case) {
    let Some(gpu) = matrix_gpu() else { return };
    let mut rng = Rng(21);
    let w = rng.normals(c.heads * c.out_dim * c.in_dim, (c.in_dim as f32).powf(-0.5));
    let b = rng.normals(c.heads * c.out_dim, 1.0);
    let gain = rng.normals(c.in_dim, 1.0);
    let weights = held(&w, c.in_dim, c.dtype);
    let linear = linear(gpu, &c, &w, &b, &gain);
    let (tail_dim, interleaved) = c.tail.unwrap_or((0, false));
    let outputs = linear.outputs();
    let pairs = if interleaved { reference::RopePairs::Interleaved } else { reference::RopePairs::Half };
    let by_reference = reference::Rope::new(1e4, tail_dim, pairs).unwrap();
    let positions: Vec<u32> = (0..c.rows as u32).map(|r| r * 37).collect();

    let (x_head, y_head) = (c.in_dim + tail_dim + c.gap, outputs + c.gap);
    let (x_row, y_row) = (c.heads * x_head, c.heads * y_head);
    // NaN where nobody owns an element; a row more behind.
    let mut x = vec![f32::NAN; c.gap + (c.rows + 1) * x_row];
    let mut old = vec![f32::NAN; c.gap + (c.rows + 1) * y_row];
    let mut want = [vec![f64::NAN; old.len()], vec![f64::NAN; old.len()], vec![0.0; old.len()]];
    for r in 0..c.rows {
        let size = [c.size, 1.0, 1.0 / c.size][r % 3];
        for h in 0..c.heads {
            let values = rng.normals(c.in_dim + tail_dim, 2.0 * size);
            x[c.gap + r * x_row + h * x_head..][..values.len()].copy_from_slice(&values);
            let (values, rest) = values.split_at(c.in_dim);
            let (all, b) = (c.out_dim * c.in_dim, f64s(&b[h * c.out_dim..][..c.out_dim]));
            let at = c.gap + r * y_row + h * y_head;
            let add = if c.accumulate { rng.normals(outputs, 1.0) } else { vec![0.0; outputs] };
            if c.accumulate {
                old[at..][..outputs].copy_from_slice(&add);
            }
            let mut rest = f64s(rest);
            if tail_dim > 0 {
                reference::rope(&mut rest, positions[r], &by_reference).unwrap();
            }
            let [rounded, exact, bound] =
                wanted(&c, values, &weights[h * all..][..all], c.bias.then_some(&b[..]), &gain);
            for (want, y) in want.iter_mut().zip([rounded, exact]) {
                let y = y.iter().chain(&rest).zip(&add).map(|(y, add)| y + f64::from(*add));
                want[at..][..outputs].iter_mut().zip(y).for_each(|(want, y)| *want = y);
            }
            want[2][at..][..bound.len()].copy_from_slice(&bound);
        }
    }
    let (x, y) = (tensor(gpu, &[1, x.len()], &x), tensor(gpu, &[1, old.len()], &old));
    let from = Span::of(&x).offset(c.gap).row_stride(x_row).head_stride(x_head);
    let to = Span::of(&y).offset(c.gap).row_stride(y_row).head_stride(y_head);
    if tail_dim > 0 {
        let rope = Rope::new(tail_dim, 1e4, RopePairs::Half).unwrap();
        let table = tensor(gpu, &[c.rows, tail_dim / 2, 2], &cos_sin_table(&rope.inv_freq, &positions));
        linear.run(LinearArgs { cos_sin: Some(&table), ..LinearArgs::new(c.rows, from, to) }).unwrap();
    } else {
        linear.run(LinearArgs { accumulate: c.accumulate, ..LinearArgs::new(c.rows, from, to) }).unwrap();
    }
    let got = download(gpu, &y);
    // Row by row, each against its own size.
    let (mut errors, mut square) = ([0.0; 2], 0.0);
    for r in 0..=c.rows {
        let size = if c.accumulate || c.bias || c.norm { 1.0 } else { [c.size, 1.0, 1.0 / c.size][r % 3] };
        let row = if r == 0 { 0 } else { c.gap + r * y_row }..c.gap + (r + 1) * y_row;
        let got: Vec<f32> = got[row.clone()].iter().map(|v| v / size).collect();
        let [rounded, exact, bound] =
            [0, 1, 2].map(|i| want[i][row.clone()].iter().map(|v| v / f64::from(size)).collect::<Vec<f64>>());
        assert_close(&format!("row {r} of {c:?}"), &got, &rounded, 2e-5, 1.0);
        for i in (0..got.len()).filter(|i| !exact[*i].is_nan()) {
            let [off, off_exact] = [rounded[i], exact[i]].map(|want| (f64::from(got[i]) - want).abs());
            let (want, bound) = (exact[i], bound[i]);
            assert!(off_exact <= bound + 1e-4, "row {r} of {c:?}: {}, wanted {want} within {bound}", got[i]);
            errors = [errors[0] + off * off, errors[1] + off_exact * off_exact];
            square += want * want;
        }
    }
    let [rounded, exact] = errors.map(|error| error / square);
    assert!(rounded <= 1e-9 && exact <= 1e-6, "{c:?}: normalised mean square errors {rounded:e} and {exact:e}");
}

#[test]
fn every_tile_row_count_and_width_matches_the_reference() {
    for (t, tile) in TILES.into_iter().enumerate() {
        for (i, rows) in [17, 31, 64, 65, 130, 257].into_iter().enumerate() {
            for dtype in [DType::F16, DType::I8] {
                let in_dim = [1000, 64, 5, 100, 32, 256][(i + t) % 6];
                let out_dim = [300, 1, 65, 64, 130, 7][(i + 2 * t) % 6];
                let c = Case { in_dim, out_dim, rows, dtype, tile: Some(tile), gap: [0, 4, 3][(i + t) % 3], ..PLAIN };
                check(Case { bias: i % 2 == 0, accumulate: t % 2 == 0, ..c });
            }
        }
    }
    for rows in [17, 130, 520] {
        check(Case { rows, in_dim: 512, out_dim: 2048, ..PLAIN });
    }
}

#[test]
fn what_is_fused_matches_the_reference() {
    for (t, tile) in TILES.into_iter().enumerate() {
        for dtype in [DType::F16, DType::I8] {
            let c = Case { dtype, tile: Some(tile), rows: 100, gap: 4 * (t % 2), ..PLAIN };
            check(Case { norm: true, in_dim: 100, out_dim: 70, bias: true, ..c });
            check(Case { swiglu: true, in_dim: 48, out_dim: 258, bias: true, ..c });
            check(Case { norm: true, swiglu: true, in_dim: 1024, out_dim: 34, ..c });
            check(Case { heads: 3, in_dim: 32, out_dim: 64, accumulate: true, ..c });
            check(Case { heads: 4, in_dim: 32, out_dim: 64, tail: Some((16, false)), ..c });
            check(Case { heads: 2, in_dim: 13, out_dim: 21, tail: Some((6, true)), bias: true, ..c });
        }
    }
}

#[test]
fn rows_of_any_size_keep_their_precision() {
    for size in [3e4, 1e6, 1e20, 1e33] {
        for dtype in [DType::F16, DType::I8] {
            check(Case { size, dtype, rows: 70, in_dim: 200, out_dim: 48, ..PLAIN });
        }
    }
    // The norm takes the size away, as long as squares are numbers.
    check(Case { size: 1e15, norm: true, rows: 33, in_dim: 200, ..PLAIN });
    let Some(gpu) = matrix_gpu() else { return };
    // Rows of zeros give the bias.
    let weight = Weight::new(gpu, [1, 40, 32], &[1.0; 40 * 32], DType::F16).unwrap();
    let bias = Rng(3).normals(40, 1.0);
    let linear = Linear::new(gpu, &weight, Some(&tensor(gpu, &[1, 40], &bias))).unwrap();
    let (x, y) = (tensor(gpu, &[50, 32], &[0.0; 50 * 32]), tensor(gpu, &[50, 40], &[7.0; 50 * 40]));
    linear.run(LinearArgs::new(50, Span::of(&x), Span::of(&y))).unwrap();
    assert!(linear.matrix_tile(50).is_some());
    assert!(download(gpu, &y).chunks_exact(40).all(|row| row == bias));
}

#[test]
fn a_norm_beside_a_product_is_a_dispatch_of_its_own() {
    // Its own, since dispatches are counted.
    let Some(gpu) = &new_matrix_gpu() else { return };
    let (rows, in_dim, out_dim, width) = (50, 64, 96, 48);
    let mut rng = Rng(41);
    let (w, x) = (rng.normals(out_dim * in_dim, 0.125), rng.normals(rows * (in_dim + width), 1.0));
    let shape = NormShape { groups: 1, dim: width, tail: 0, eps: EPS };
    let norm = RmsNorm::new(gpu, &tensor(gpu, &[1, width], &vec![1.0; width]), shape).unwrap();
    let linear = linear(gpu, &Case { in_dim, out_dim, rows, ..PLAIN }, &w, &[], &[]).with_rest(norm).unwrap();
    let (mut want, mut want_rest) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(in_dim + width) {
        want.extend(reference::linear(&packed(&row[..in_dim]), &held(&w, in_dim, DType::F16), None, in_dim).unwrap());
        want_rest.extend(reference::rms_norm(&f64s(&row[in_dim..]), &vec![1.0; width], width, EPS.into()).unwrap());
    }
    let x = tensor(gpu, &[rows, in_dim + width], &x);
    let t = |dim: usize| Tensor::zeros(gpu, &[rows, dim], DType::F32).unwrap();
    let (y, rest) = (t(out_dim), t(width));
    let before = gpu.counters().dispatches;
    linear.run(LinearArgs { rest: Some(&rest), ..LinearArgs::new(rows, Span::of(&x), Span::of(&y)) }).unwrap();
    assert_eq!(gpu.counters().dispatches - before, 3, "norm, packing, product");
    assert_close("product", &download(gpu, &y), &want, 2e-5, 1e-9);
    assert_close("norm", &download(gpu, &rest), &want_rest, 2e-5, 1e-9);
}

#[test]
fn a_row_does_not_depend_on_the_other_rows() {
    let Some(gpu) = matrix_gpu() else { return };
    let (in_dim, out_dim) = (100, 40);
    let mut rng = Rng(5);
    let weight = Weight::new(gpu, [1, out_dim, in_dim], &rng.normals(in_dim * out_dim, 0.1), DType::F16).unwrap();
    let row = rng.normals(in_dim, 1.0);
    for tile in TILES {
        let linear = Linear::new(gpu, &weight, None).unwrap().with_matrix_tile(tile).unwrap();
        let mut alone = Vec::new();
        for (rows, at) in [(17, 0), (18, 16), (40, 37), (65, 64), (200, 130)] {
            let mut x = rng.normals(rows * in_dim, 1e9);
            x[..in_dim].fill(f32::NAN);
            x[at * in_dim..][..in_dim].copy_from_slice(&row);
            let (x, y) = (tensor(gpu, &[rows, in_dim], &x), tensor(gpu, &[rows, out_dim], &vec![0.0; rows * out_dim]));
            linear.run(LinearArgs::new(rows, Span::of(&x), Span::of(&y))).unwrap();
            let got = download(gpu, &y)[at * out_dim..][..out_dim].to_vec();
            if alone.is_empty() {
                alone.clone_from(&got);
            }
            assert_eq!(got, alone, "row {at} of {rows}, {tile:?}");
        }
    }
}

#[test]
fn few_rows_and_f32_weights_keep_their_kernels() {
    let Some(gpu) = matrix_gpu() else { return };
    let of = |dtype: DType| {
        let weight = Weight::new(gpu, [1, 64, 64], &[1.0; 64 * 64], dtype).unwrap();
        Linear::new(gpu, &weight, None).unwrap()
    };
    let max_rows = of(DType::F16).tuning(2).max_rows;
    for dtype in [DType::F16, DType::I8] {
        assert_eq!((of(dtype).matrix_tile(1), of(dtype).matrix_tile(max_rows)), (None, None));
        assert!(of(dtype).matrix_tile(max_rows + 1).is_some());
    }
    assert_eq!(of(DType::F32).matrix_tile(500), None);
    assert_kind!(of(DType::F32).with_matrix_tile(TILES[0]), ErrorKind::Unsupported { .. });
}

#[test]
fn bad_tiles_are_typed_errors_and_none_is_used_unasked() {
    let gpu = gpu();
    let weight = Weight::new(gpu, [1, 8, 8], &[1.0; 64], DType::F16).unwrap();
    let linear = Linear::new(gpu, &weight, None).unwrap();
    for bad in [
        MatrixTile { row_tiles: 3, ..TILES[0] },
        MatrixTile { out_tiles: 1, ..TILES[0] },
        MatrixTile { row_groups: 4, ..TILES[0] },
        MatrixTile { row_groups: 0, ..TILES[0] },
        MatrixTile { step_words: 16, ahead: 1, ..TILES[0] },
        MatrixTile { step_words: 12, ..TILES[0] },
        MatrixTile { ahead: 0, ..TILES[0] },
        MatrixTile { ahead: 4, ..TILES[0] },
        MatrixTile { step_words: 4, ..TILES[2] },
    ] {
        assert_kind!(linear.clone().with_matrix_tile(bad), ErrorKind::Argument { .. });
    }
    if gpu.capabilities().tier < Tier::Matrix {
        assert_kind!(linear.clone().with_matrix_tile(TILES[0]), ErrorKind::Unsupported { .. });
        assert_eq!(linear.matrix_tile(1000), None);
    }
}
