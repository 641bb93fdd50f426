//! The product by cooperative matrices on every device, its matrix operations emulated (`gpu/emulation_tests.rs`): packing,
//! staging, steps, slots, clamps, stores. Against the f64 reference with the input rounded as `linear_pack.wgsl` says.

use super::*;
use crate::nn::{quantise, Span};
use crate::reference;
use crate::rope::cos_sin_table;
use crate::rope::Rope;
use half::f16;

#[derive(Debug, Clone, Copy)]
struct Case {
    heads: usize,
    in_dim: usize,
    out_dim: usize,
    rows: usize,
    kind: WeightType,
    bias: bool,
    accumulate: bool,
    norm: bool,
    swiglu: bool,
    tail_dim: usize,
    /// Elements before the first row and behind each head.
    gap: usize,
}

const PLAIN: Case = Case {
    heads: 1,
    in_dim: 64,
    out_dim: 34,
    rows: 20,
    kind: WeightType::Plain(DType::F16),
    bias: false,
    accumulate: false,
    norm: false,
    swiglu: false,
    tail_dim: 0,
    gap: 0,
};

/// Small enough for the emulation, whose factors are f32, in 16 KiB; two of them have two subgroups.
const TILES: [MatrixTile; 3] = [
    MatrixTile { row_tiles: 1, out_tiles: 2, row_groups: 1, out_groups: 1, step_words: 4, ahead: 2 },
    MatrixTile { row_tiles: 2, out_tiles: 2, row_groups: 1, out_groups: 2, step_words: 4, ahead: 1 },
    MatrixTile { row_tiles: 1, out_tiles: 2, row_groups: 2, out_groups: 1, step_words: 8, ahead: 1 },
];

/// Repeatable numbers of about this size; each seventh much smaller.
fn numbers(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|i| next() * size * if i % 7 == 0 { 1e-3 } else { 1.0 }).collect()
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn packed(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let exponent = (largest.to_bits() >> 23).clamp(15, 254) as i32 - 127;
    let scale = 2f32.powi(14 - exponent);
    row.iter().map(|v| f16::from_f32(v * scale).to_f64() / f64::from(scale)).collect()
}

fn check(c: Case, tile: MatrixTile) {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    let tensor = |values: &[f32]| Tensor::from_slice(&gpu, &[1, values.len()], values, DType::F32).unwrap();
    tile.check().unwrap();
    let size = c.out_dim * c.in_dim;
    let w = numbers(c.heads * size, 1, (c.in_dim as f32).powf(-0.5));
    let (b, gain) = (numbers(c.heads * c.out_dim, 2, 1.0), numbers(c.in_dim, 3, 1.0));
    let weights: Vec<f64> = match c.kind {
        WeightType::Blocks(block) => {
            let blocks = block.quantise(&w).unwrap();
            let mut values = vec![0.0; w.len()];
            block.dequantise(&blocks, &mut values).unwrap();
            f64s(&values) // the emulation's factors are f32
        }
        WeightType::Plain(DType::I8) => {
            let (integers, scales) = quantise(&w, c.in_dim).unwrap();
            let rows = integers.chunks_exact(c.in_dim).zip(&scales);
            rows.flat_map(|(row, s)| row.iter().map(|q| f64::from(*q) * f64::from(*s))).collect()
        }
        _ => w.iter().map(|v| f16::from_f32(*v).to_f64()).collect(),
    };
    let weight = Weight::new(&gpu, [c.heads, c.out_dim, c.in_dim], &w, c.kind).unwrap();
    let bias = c.bias.then(|| tensor(&b).view(&[c.heads, c.out_dim]).unwrap());
    let mut linear = Linear::new(&gpu, &weight, bias.as_ref()).unwrap();
    if c.norm {
        linear = linear.with_norm(&tensor(&gain), 1e-5).unwrap();
    }
    if c.swiglu {
        linear = linear.with_swiglu().unwrap();
    }
    if c.tail_dim > 0 {
        linear = linear.with_tail(c.tail_dim, RopePairs::Half).unwrap();
    }
    let tuning = LinearTuning { max_rows: 1, ..linear.tuning(2) };
    let linear = Linear { tiles: vec![tile], ..linear.with_tuning(tuning).unwrap() }.without_kernels();
    assert_eq!(linear.matrix_tile(c.rows), Some(tile));

    let outputs = linear.outputs();
    let (x_head, y_head) = (c.in_dim + c.tail_dim + c.gap, outputs + c.gap);
    let (x_row, y_row) = (c.heads * x_head, c.heads * y_head);
    let positions: Vec<u32> = (0..c.rows as u32).map(|r| 3 * r).collect();
    let by_reference = reference::Rope::new(1e4, c.tail_dim, reference::RopePairs::Half).unwrap();
    // NaN where nobody owns an element; a row more behind.
    let mut x = vec![f32::NAN; c.gap + (c.rows + 1) * x_row];
    let mut old = vec![f32::NAN; c.gap + (c.rows + 1) * y_row];
    let mut want = vec![f64::NAN; old.len()];
    for (r, h) in (0..c.rows).flat_map(|r| (0..c.heads).map(move |h| (r, h))) {
        // Beyond f16 at both ends, unless a sum of other size comes in.
        let scale = if c.bias || c.accumulate || c.tail_dim > 0 { 1.0 } else { [1.0, 1e9, 1e-9][r % 3] };
        let values = numbers(c.in_dim + c.tail_dim, (10 + r * c.heads + h) as u64, scale);
        let at = c.gap + r * y_row + h * y_head;
        x[c.gap + r * x_row + h * x_head..][..values.len()].copy_from_slice(&values);
        let (values, rest) = values.split_at(c.in_dim);
        let scaled: Vec<f32> = values.iter().zip(&gain).map(|(v, g)| if c.norm { v * g } else { *v }).collect();
        let square = f64s(values).iter().map(|v| v * v).sum::<f64>() / c.in_dim as f64;
        let factor = if c.norm { (square + f64::from(1e-5f32)).sqrt().recip() } else { 1.0 };
        let input: Vec<f64> = packed(&scaled).iter().map(|v| v * factor).collect();
        let b = f64s(&b[h * c.out_dim..][..c.out_dim]);
        let mut y =
            reference::linear(&input, &weights[h * size..][..size], c.bias.then_some(&b[..]), c.in_dim).unwrap();
        if c.swiglu {
            y = reference::swiglu(&y, c.out_dim / 2).unwrap();
        }
        let mut rest = f64s(rest);
        if c.tail_dim > 0 {
            reference::rope(&mut rest, positions[r], &by_reference).unwrap();
        }
        y.extend(rest);
        if c.accumulate {
            let add = numbers(outputs, r as u64, 1.0);
            old[at..][..outputs].copy_from_slice(&add);
            y.iter_mut().zip(&add).for_each(|(y, add)| *y += f64::from(*add));
        }
        want[at..][..outputs].copy_from_slice(&y);
    }
    let (x, y) = (tensor(&x), tensor(&old));
    let from = Span::of(&x).offset(c.gap).row_stride(x_row).head_stride(x_head);
    let to = Span::of(&y).offset(c.gap).row_stride(y_row).head_stride(y_head);
    if c.tail_dim > 0 {
        let rope = Rope::new(c.tail_dim, 1e4, RopePairs::Half).unwrap();
        let table = tensor(&cos_sin_table(&rope.inv_freq, &positions)).view(&[c.rows, c.tail_dim / 2, 2]).unwrap();
        linear.run(LinearArgs { cos_sin: Some(&table), ..LinearArgs::new(c.rows, from, to) }).unwrap();
    } else {
        linear.run(LinearArgs { accumulate: c.accumulate, ..LinearArgs::new(c.rows, from, to) }).unwrap();
    }
    let got = pollster::block_on(gpu.download::<f32>(&y)).unwrap();
    for (i, rows) in want.chunks(y_row).enumerate() {
        let finite = || rows.iter().filter(|v| v.is_finite());
        let size = (finite().map(|v| v * v).sum::<f64>() / finite().count().max(1) as f64).sqrt();
        for (j, want) in rows.iter().enumerate() {
            let got = f64::from(got[i * y_row + j]);
            let close = if want.is_nan() { got.is_nan() } else { (got - want).abs() <= 1e-5 * size };
            assert!(close, "{c:?} {tile:?}: element {j} of run {i} is {got}, wanted {want}, size {size:e}");
        }
    }
}

// Software adapters compile these texts for long, and each device on one core: each tile, slot and dtype, not all together,
// and a test per dtype, which run side by side.
#[test]
fn emulated_products_of_f16_match_the_reference() {
    check(Case { in_dim: 300, out_dim: 40, rows: 33, ..PLAIN }, TILES[0]);
    check(Case { heads: 3, in_dim: 32, tail_dim: 8, bias: true, gap: 4, rows: 18, ..PLAIN }, TILES[1]);
}

#[test]
fn emulated_products_of_i8_match_the_reference() {
    let i8 = Case { kind: DType::I8.into(), ..PLAIN };
    check(Case { norm: true, swiglu: true, in_dim: 100, out_dim: 70, rows: 35, ..i8 }, TILES[0]);
    check(Case { in_dim: 61, out_dim: 65, rows: 50, ..i8 }, TILES[1]);
    check(Case { heads: 2, in_dim: 13, out_dim: 33, accumulate: true, bias: true, gap: 3, ..i8 }, TILES[2]);
}

#[test]
fn emulated_products_of_blocks_match_the_reference() {
    let [q4, q8] = [BlockType::Q4_0, BlockType::Q8_0].map(|block| Case { kind: block.into(), ..PLAIN });
    check(Case { in_dim: 96, out_dim: 70, rows: 35, norm: true, swiglu: true, ..q4 }, TILES[0]);
    check(Case { heads: 2, in_dim: 160, out_dim: 33, rows: 18, bias: true, gap: 4, ..q8 }, TILES[2]);
    // Rows of one word.
    check(Case { in_dim: 32, out_dim: 128, norm: true, swiglu: true, ..q8 }, TILES[2]);
    check(Case { in_dim: 64, out_dim: 32, accumulate: true, ..q8 }, TILES[2]);
}

#[test]
fn a_large_tile_is_taken_where_it_fills_the_device() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    let device = crate::Capabilities {
        tier: crate::Tier::Matrix,
        target_workgroups: 1024,
        dispatch_flop: u64::MAX,
        workgroup_storage_bytes: crate::gpu::MATRIX_WORKGROUP_BYTES as u32,
        max_workgroups: 65_535,
        ..gpu.capabilities().clone()
    };
    let tiles = MatrixTile::all(&device, DType::I8.into());
    assert_eq!(tiles, MatrixTile::TABLE);
    for tile in &tiles {
        tile.check().unwrap();
    }
    assert_eq!(MatrixTile::all(&device, DType::F32.into()), []);
    assert_eq!(MatrixTile::all(gpu.capabilities(), DType::F16.into()), []);
    let of = |rows: usize, out_dim: usize| MatrixTile::choose(&tiles, &device, rows, [1, out_dim, 4096]);
    for (rows, out_dim, want) in [
        (17, 4096, 2),
        (64, 4096, 2),
        (128, 4096, 1),
        (256, 4096, 0),
        (2048, 4096, 0),
        (64, 14336, 1),
        (65, 14336, 0),
        (2048, 64, 2),
    ] {
        assert_eq!(of(rows, out_dim), Some(want), "{rows} rows, {out_dim} outputs");
    }
    assert_eq!(of(65_536, 4096), None, "more rows than workgroups in a dimension");
    assert_eq!(MatrixTile::choose(&tiles, &device, 60_000, [4, 64, 2048]), None, "too much packed input");
    assert_eq!(MatrixTile::choose(&[], &device, 100, [1, 64, 64]), None);
}
