//! Weights in blocks: what the device makes of them equal to what the host does, to the bit; products, fused and not, experts,
//! against the f64 reference.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{
    BlockType, Embedding, ExpertArgs, ExpertTuning, Experts, Linear, LinearArgs, LinearTuning, NormShape, RmsNorm,
    Span, Weight, WeightType,
};
use latten::{reference, DType, ErrorKind, Gpu, Tensor, Tier};

const EPS: f32 = 1e-5;

/// Where a block's f16 numbers lie: scales, then offsets.
fn halves(block: BlockType) -> (usize, Option<usize>) {
    match block {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => (0, Some(2)),
        BlockType::Q2_K => (80, Some(82)),
        BlockType::Q3_K => (108, None),
        BlockType::Q6_K => (208, None),
        _ => (0, None),
    }
}

/// What a block's scale is multiplied by, about.
fn spread(block: BlockType) -> f32 {
    match block {
        BlockType::Q5_0 | BlockType::Q5_1 => 10.0,
        BlockType::Q8_0 | BlockType::IQ4_NL => 70.0,
        BlockType::Q2_K => 15.0,
        BlockType::Q3_K => 40.0,
        BlockType::Q4_K => 250.0,
        BlockType::Q5_K => 500.0,
        BlockType::Q6_K | BlockType::IQ4_XS => 1500.0,
        _ => 5.0,
    }
}

/// Blocks of random codes and scales, whose numbers have about this deviation.
fn random_blocks(rng: &mut Rng, block: BlockType, count: usize, deviation: f32) -> Vec<u8> {
    let mut blocks: Vec<u8> = (0..count * block.bytes()).map(|_| (rng.next() >> 32) as u8).collect();
    for bytes in blocks.chunks_exact_mut(block.bytes()) {
        if block == BlockType::MXFP4 {
            bytes[0] = (127.0 + (deviation / 3.0).log2().round()) as u8 + bytes[0] % 2;
            continue;
        }
        let scale = deviation / spread(block) * (0.5 + rng.uniform());
        let (at, offset) = halves(block);
        let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
        bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(sign * scale).to_le_bytes());
        if [BlockType::Q4_G32, BlockType::Q4_G128].contains(&block) {
            // What stands for 0; the byte behind it says nothing.
            bytes[2] %= 17;
        }
        if let Some(at) = offset {
            let least = if block.elements() == 256 { sign * scale * 4.0 } else { -sign * scale * 8.0 };
            bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(least).to_le_bytes());
        }
    }
    blocks
}

fn dequantised(block: BlockType, blocks: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; blocks.len() / block.bytes() * block.elements()];
    block.dequantise(blocks, &mut values).unwrap();
    values
}

#[derive(Debug, Clone, Copy)]
struct Case {
    block: BlockType,
    heads: usize,
    /// Blocks of a row.
    blocks: usize,
    out_dim: usize,
    rows: usize,
    bias: bool,
    accumulate: bool,
    norm: bool,
    swiglu: bool,
    tuning: Option<LinearTuning>,
    /// Elements before the first row and behind each.
    gap: usize,
}

const PLAIN: Case = Case {
    block: BlockType::Q4_0,
    heads: 1,
    blocks: 1,
    out_dim: 10,
    rows: 1,
    bias: false,
    accumulate: false,
    norm: false,
    swiglu: false,
    tuning: None,
    gap: 0,
};

fn check(c: Case) {
    let gpu = exact_gpu();
    let mut rng = Rng(7 + c.rows as u64);
    let in_dim = c.blocks * c.block.elements();
    let shape = [c.heads, c.out_dim, in_dim];
    let blocks = random_blocks(&mut rng, c.block, c.heads * c.out_dim * c.blocks, (in_dim as f32).powf(-0.5));
    let w = f64s(&dequantised(c.block, &blocks));
    let (b, gain) = (rng.normals(c.heads * c.out_dim, 1.0), rng.normals(in_dim, 1.0));
    let weight = Weight::from_blocks(gpu, shape, c.block, &blocks).unwrap();
    let bias = c.bias.then(|| tensor(gpu, &[c.heads, c.out_dim], &b));
    let mut linear = Linear::new(gpu, &weight, bias.as_ref()).unwrap();
    if c.norm {
        linear = linear.with_norm(&tensor(gpu, &[1, in_dim], &gain), EPS).unwrap();
    }
    if c.swiglu {
        linear = linear.with_swiglu().unwrap();
    }
    if let Some(tuning) = c.tuning {
        linear = linear.with_tuning(tuning).unwrap();
    }
    let outputs = linear.outputs();
    let (x_row, y_row) = (c.heads * in_dim + c.gap, c.heads * outputs + c.gap);
    let mut x = vec![f32::NAN; c.gap + (c.rows + 3) * x_row];
    let mut y = vec![f32::NAN; c.gap + (c.rows + 3) * y_row];
    let mut want = vec![f64::NAN; y.len()];
    for (r, h) in (0..c.rows).flat_map(|r| (0..c.heads).map(move |h| (r, h))) {
        let values = rng.normals(in_dim, 1.0);
        x[c.gap + r * x_row + h * in_dim..][..in_dim].copy_from_slice(&values);
        let size = c.out_dim * in_dim;
        let (w, b) = (&w[h * size..][..size], f64s(&b[h * c.out_dim..][..c.out_dim]));
        let b = c.bias.then_some(&b[..]);
        let mut out = match c.norm {
            true => reference::norm_linear(&f64s(&values), &f64s(&gain), EPS.into(), w, b),
            false => reference::linear(&f64s(&values), w, b, in_dim),
        }
        .unwrap();
        if c.swiglu {
            out = reference::swiglu(&out, outputs).unwrap();
        }
        let at = c.gap + r * y_row + h * outputs;
        if c.accumulate {
            let old = rng.normals(outputs, 1.0);
            out.iter_mut().zip(&old).for_each(|(out, old)| *out += f64::from(*old));
            y[at..at + outputs].copy_from_slice(&old);
        }
        want[at..at + outputs].copy_from_slice(&out);
    }
    let (x, y) = (tensor(gpu, &[1, x.len()], &x), tensor(gpu, &[1, y.len()], &y));
    let span = |t, row, head| Span::of(t).offset(c.gap).row_stride(row).head_stride(head);
    let args = LinearArgs::new(c.rows, span(&x, x_row, in_dim), span(&y, y_row, outputs));
    linear.run(LinearArgs { accumulate: c.accumulate, ..args }).unwrap();
    assert_close(&format!("{c:?}"), &download(gpu, &y), &want, 2e-5, 1e-9);
}

#[test]
fn table_rows_are_equal_to_the_host_to_the_bit() {
    let gpu = exact_gpu();
    for block in BlockType::ALL {
        for (rows, per_row) in [(5, 3), (3, 1), (4, 8)] {
            let mut rng = Rng(rows as u64);
            let dim = per_row * block.elements();
            let blocks = random_blocks(&mut rng, block, rows * per_row, 1.0);
            let weight = Weight::from_blocks(gpu, [1, rows, dim], block, &blocks).unwrap();
            assert_eq!(weight.weight_type(), WeightType::Blocks(block));
            let ids: Vec<u32> = (0..7).map(|i| (i * 3 % rows) as u32).collect();
            let y = tensor(gpu, &[ids.len(), dim], &vec![f32::NAN; ids.len() * dim]);
            let id_tensor = Tensor::from_slice(gpu, &[ids.len()], &ids, DType::U32).unwrap();
            Embedding::new(gpu, &weight).unwrap().run(&id_tensor, &y).unwrap();
            let table = dequantised(block, &blocks);
            let want: Vec<f32> = ids.iter().flat_map(|id| table[*id as usize * dim..][..dim].iter().copied()).collect();
            // Zeros of either sign: some products of a 0 are fused with a sum.
            let bits = |values: &[f32]| values.iter().map(|v| (v + 0.0).to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&download(gpu, &y)), bits(&want), "{block}, {rows} rows of {dim}");
        }
    }
}

#[test]
fn products_match_the_reference_in_every_type() {
    for block in BlockType::ALL {
        for (rows, blocks, out_dim) in [(1, 1, 7), (1, 5, 33), (3, 3, 10), (20, 2, 65)] {
            check(Case { block, rows, blocks, out_dim, bias: rows == 3, ..PLAIN });
        }
    }
}

#[test]
fn every_row_count_matches_the_reference() {
    for block in [BlockType::Q4_0, BlockType::Q4_K] {
        for rows in [1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 70] {
            let (blocks, out_dim) = ([1, 2, 5][rows % 3], [1, 9, 64, 70][rows % 4]);
            check(Case { block, rows, blocks, out_dim, bias: rows % 2 == 0, accumulate: rows % 3 == 0, ..PLAIN });
        }
    }
}

#[test]
fn fused_products_of_heads_match_the_reference() {
    let wide = LinearTuning { in_lanes: 64, outs: 4, steps: 2, max_rows: 16, out_lanes: 1, subgroups: false };
    let mut tunings = vec![
        wide,
        LinearTuning { in_lanes: 8, outs: 8, steps: 1, max_rows: 2, out_lanes: 8, ..wide },
        LinearTuning { in_lanes: 1, outs: 2, steps: 2, max_rows: 1, out_lanes: 16, ..wide },
    ];
    if exact_gpu().capabilities().tier >= Tier::Subgroup {
        tunings.push(LinearTuning { subgroups: true, ..wide });
        tunings.push(LinearTuning { subgroups: true, steps: 4, outs: 2, out_lanes: 4, ..wide });
    }
    for (i, tuning) in tunings.into_iter().enumerate() {
        for (j, rows) in [1, 2, 7, 20].into_iter().enumerate() {
            let block = [BlockType::Q4_K, BlockType::Q6_K, BlockType::Q5_0, BlockType::Q8_0][(i + j) % 4];
            let heads = 1 + (i + j) % 3;
            let (swiglu, norm) = (i % 2 == 0, true);
            let (bias, accumulate, gap) = (j % 2 == 0, i % 3 == 0, [0, 3, 4][j % 3]);
            let c = Case { block, heads, blocks: 3, out_dim: 18, rows, bias, accumulate, norm, swiglu, gap, ..PLAIN };
            check(Case { tuning: Some(tuning), ..c });
        }
    }
}

#[test]
fn a_norm_beside_and_a_tail_behind_are_as_with_other_weights() {
    let gpu = exact_gpu();
    let (block, in_dim, out_dim, width) = (BlockType::Q4_K, 256, 12, 32);
    let mut rng = Rng(3);
    let blocks = random_blocks(&mut rng, block, out_dim, 0.05);
    let plain = Weight::new(gpu, [1, out_dim, in_dim], &dequantised(block, &blocks), DType::F32).unwrap();
    let weight = Weight::from_blocks(gpu, [1, out_dim, in_dim], block, &blocks).unwrap();
    for rows in [1, 20] {
        let x = tensor(gpu, &[rows, in_dim + width], &rng.normals(rows * (in_dim + width), 1.0));
        let gain = tensor(gpu, &[1, width], &rng.normals(width, 1.0));
        let results = [&weight, &plain].map(|weight| {
            let norm = RmsNorm::new(gpu, &gain, NormShape { groups: 1, dim: width, tail: 0, eps: EPS }).unwrap();
            let linear = Linear::new(gpu, weight, None).unwrap().with_rest(norm).unwrap();
            let y = tensor(gpu, &[rows, out_dim], &vec![f32::NAN; rows * out_dim]);
            let rest = tensor(gpu, &[rows, width], &vec![f32::NAN; rows * width]);
            linear.run(LinearArgs { rest: Some(&rest), ..LinearArgs::new(rows, Span::of(&x), Span::of(&y)) }).unwrap();
            [download(gpu, &y), download(gpu, &rest)].concat()
        });
        assert_close(&format!("rest, {rows} rows"), &results[0], &f64s(&results[1]), 1e-5, 1e-10);
    }
}

/// Experts of blocks beside the same in F32.
fn experts(gpu: &Gpu, block: BlockType, rows: usize, tuning: ExpertTuning) -> [Vec<f32>; 2] {
    let (count, dim, width, top) = (5, 512, 256, 2);
    let mut rng = Rng(rows as u64);
    let mut weight = |out_dim: usize, in_dim: usize| {
        let blocks = random_blocks(&mut rng, block, count * out_dim * in_dim / block.elements(), 0.05);
        let plain = Weight::new(gpu, [count, out_dim, in_dim], &dequantised(block, &blocks), DType::F32).unwrap();
        [Weight::from_blocks(gpu, [count, out_dim, in_dim], block, &blocks).unwrap(), plain]
    };
    let (up, down) = (weight(2 * width, dim), weight(dim, width));
    let x = tensor(gpu, &[rows, dim], &rng.normals(rows * dim, 1.0));
    let ids: Vec<u32> = (0..rows * top).map(|i| (i * i % count) as u32).collect();
    let ids = Tensor::from_slice(gpu, &[rows, top], &ids, DType::U32).unwrap();
    let weights = tensor(gpu, &[rows, top], &rng.normals(rows * top, 1.0));
    [0, 1].map(|i| {
        let experts = Experts::new(gpu, up[i].clone(), down[i].clone(), top).unwrap().with_tuning(tuning).unwrap();
        let (y, scratch) = (tensor(gpu, &[rows, dim], &vec![1.0; rows * dim]), experts.scratch(rows).unwrap());
        let args = ExpertArgs { ids: &ids, weights: &weights, scratch: &scratch };
        experts.run(Span::of(&x), Span::of(&y), args).unwrap();
        download(gpu, &y)
    })
}

#[test]
fn experts_are_those_of_the_same_numbers_in_f32() {
    let gpu = exact_gpu();
    for block in [BlockType::Q4_K, BlockType::Q6_K, BlockType::Q8_0, BlockType::MXFP4] {
        for (rows, rows_per_expert) in [(3, 100), (9, 0)] {
            let tuning = ExpertTuning { tile_rows: 16, rows_per_expert };
            let [got, want] = experts(gpu, block, rows, tuning);
            assert!(want.iter().any(|v| (v - 1.0).abs() > 0.1), "{block}: nothing was added");
            assert_close(&format!("{block}, {rows} rows"), &got, &f64s(&want), 2e-5, 1e-9);
        }
    }
}

#[test]
fn numbers_are_quantised_as_blocks_are_made_and_heads_as_they_come() {
    let gpu = exact_gpu();
    for block in [BlockType::Q8_0, BlockType::Q4_0] {
        // A block a head: groups of two are of different heads, and the last has but one.
        for shape in [[3, 1, 32], [5, 3, 96], [1, 7, 64]] {
            let [heads, out_dim, in_dim] = shape;
            let values = Rng(1).normals(heads * out_dim * in_dim, 1.0);
            let blocks = block.quantise(&values).unwrap();
            let made = [
                Weight::new(gpu, shape, &values, block).unwrap(),
                Weight::from_blocks(gpu, shape, block, &blocks).unwrap(),
                Weight::from_heads(gpu, shape, block, |head| {
                    Ok(values.chunks_exact(out_dim * in_dim).nth(head).unwrap().to_vec())
                })
                .unwrap(),
            ];
            let x = tensor(gpu, &[1, heads, in_dim], &Rng(2).normals(heads * in_dim, 1.0));
            let outs: Vec<Vec<f32>> = made
                .iter()
                .map(|weight| download(gpu, &Linear::new(gpu, weight, None).unwrap().forward(&x).unwrap()))
                .collect();
            assert_eq!(bits(&outs[0]), bits(&outs[1]), "{block} {shape:?}");
            assert_eq!(bits(&outs[0]), bits(&outs[2]), "{block} {shape:?}");
            assert!(outs[0].iter().any(|v| *v != 0.0));
            // At most 3% more than the file, where there is no half group to fill up.
            let file = blocks.len();
            assert!(made[0].size_bytes() <= file + 2 && made[0].size_bytes() >= file, "{block}");
        }
    }
}

#[test]
fn what_makes_no_weight_is_refused() {
    let gpu = exact_gpu();
    let q4_k = |shape, bytes| Weight::from_blocks(gpu, shape, BlockType::Q4_K, &vec![0; bytes]);
    assert_kind!(q4_k([1, 1, 128], 72), ErrorKind::Shape { .. });
    assert!(message(q4_k([1, 1, 128], 72)).contains("multiple of 256"));
    for (shape, bytes) in [([1, 1, 256], 145), ([2, 1, 256], 144), ([1, 0, 256], 0), ([0, 1, 256], 0), ([1, 1, 0], 0)] {
        assert_kind!(q4_k(shape, bytes), ErrorKind::Shape { .. });
    }
    assert_kind!(q4_k([usize::MAX, 2, 256], 144), ErrorKind::Shape { .. });
    assert_kind!(Weight::new(gpu, [1, 1, 256], &[0.0; 256], BlockType::Q4_K), ErrorKind::Unsupported { .. });
    assert_kind!(Weight::new(gpu, [1, 1, 33], &[0.0; 33], BlockType::Q8_0), ErrorKind::Shape { .. });
    let mut blocks = vec![0; 3 * 144];
    blocks[288..290].copy_from_slice(&0x7c00u16.to_le_bytes());
    let error = message(Weight::from_blocks(gpu, [1, 3, 256], BlockType::Q4_K, &blocks));
    assert!(error.contains("block 2 of q4_k"), "{error}");
}
