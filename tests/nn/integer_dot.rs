//! Products of few rows by dot products of bytes: exact where the input is whole numbers of such units, within the stated bound elsewhere.

use crate::common::{download, exact_gpu, f64s, Rng};
use latten::nn::{quantise, BlockType, Linear, LinearTuning, Weight};
use latten::{DType, ErrorKind, Tensor};

const IN_DIM: usize = 1280; // whole blocks of every type
const OUT_DIM: usize = 24;

/// A weight, and its numbers as the device holds them.
fn weight(kind: Option<BlockType>, rng: &mut Rng) -> (Weight, Vec<f64>) {
    let (gpu, shape, values) = (exact_gpu(), [1, OUT_DIM, IN_DIM], rng.normals(OUT_DIM * IN_DIM, 0.3));
    let Some(block) = kind else {
        let (integers, scales) = quantise(&values, IN_DIM).unwrap();
        let held = integers
            .chunks(IN_DIM)
            .zip(&scales)
            .flat_map(|(row, scale)| row.iter().map(|q| f64::from(*q) * f64::from(*scale)).collect::<Vec<_>>());
        return (Weight::new(gpu, shape, &values, DType::I8).unwrap(), held.collect());
    };
    let blocks = match block.quantise(&values) {
        Ok(blocks) => blocks,
        // Types that are not made here: any bits are numbers, if their scales are small ones.
        Err(_) => random_blocks(block, rng),
    };
    let mut held = vec![0.0; OUT_DIM * IN_DIM];
    block.dequantise(&blocks, &mut held).unwrap();
    let held = f64s(&held);
    (Weight::from_blocks(gpu, shape, block, &blocks).unwrap(), held)
}

/// Blocks of random bits whose f16 scales are near 0.01.
fn random_blocks(block: BlockType, rng: &mut Rng) -> Vec<u8> {
    let count = OUT_DIM * IN_DIM / block.elements() * block.bytes();
    let mut bytes: Vec<u8> = (0..count).map(|_| rng.normals(1, 100.0)[0] as i32 as u8).collect();
    let scale = half::f16::from_f32(0.01).to_bits().to_le_bytes();
    for one in bytes.chunks_mut(block.bytes()) {
        let last = one.len();
        match block {
            BlockType::MXFP4 => one[0] = 120,
            BlockType::Q6_K | BlockType::Q3_K => one[last - 2..].copy_from_slice(&scale),
            BlockType::Q2_K => one[last - 4..].copy_from_slice(&[scale, scale].concat()),
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => {
                one[..4].copy_from_slice(&[scale, scale].concat());
            }
            _ => one[..2].copy_from_slice(&scale),
        }
    }
    bytes
}

fn kinds() -> impl Iterator<Item = Option<BlockType>> {
    [None].into_iter().chain(BlockType::ALL.map(Some))
}

fn tunings() -> [LinearTuning; 3] {
    let wide = LinearTuning { in_lanes: 32, outs: 4, steps: 2, max_rows: 16, out_lanes: 1, subgroups: false };
    [
        wide,
        LinearTuning { in_lanes: 8, outs: 1, steps: 1, out_lanes: 4, ..wide },
        LinearTuning { in_lanes: 128, outs: 2, ..wide },
    ]
}

fn product(weight: &Weight, tuning: LinearTuning, x: &[f32], integers: bool) -> Vec<f32> {
    let gpu = exact_gpu();
    let linear = Linear::new(gpu, weight, None).unwrap().with_tuning(tuning).unwrap();
    let linear = if integers { linear.with_integer_dot().unwrap() } else { linear };
    let x = Tensor::from_slice(gpu, &[x.len() / IN_DIM, IN_DIM], x, DType::F32).unwrap();
    download(gpu, &linear.forward(&x).unwrap())
}

/// Whole numbers whose groups all have a 127 among them are not rounded at all.
#[test]
fn whole_numbers_are_exact() {
    let mut rng = Rng(21);
    for kind in kinds() {
        let (weight, held) = weight(kind, &mut rng);
        for (i, tuning) in tunings().into_iter().enumerate() {
            let rows = [1, 3, 8][i];
            let mut x: Vec<f32> =
                rng.normals(rows * IN_DIM, 60.0).iter().map(|v| v.round().clamp(-127.0, 127.0)).collect();
            x.iter_mut().step_by(4).for_each(|v| *v = 127.0);
            let got = product(&weight, tuning, &x, true);
            let want = latten::reference::linear(&f64s(&x), &held, None, IN_DIM).unwrap();
            let size = want.iter().fold(0.0f64, |most, v| most.max(v.abs()));
            for (got, want) in got.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() < 3e-6 * size, "{kind:?} {tuning:?}: {got}, not {want}");
            }
        }
    }
}

/// An element is off by at most 1/254 of the largest of its group; and it is rounded, so bytes were multiplied.
#[test]
fn errors_are_within_the_bound_and_there() {
    let mut rng = Rng(22);
    for kind in kinds() {
        let (weight, held) = weight(kind, &mut rng);
        let tuning = tunings()[0];
        let mut x = rng.normals(2 * IN_DIM, 1.0);
        // One row has a group that is larger than all others, and one of zeros.
        x[64..80].iter_mut().for_each(|v| *v *= 1e4);
        x[128..192].fill(0.0);
        let (got, exact) = (product(&weight, tuning, &x, true), product(&weight, tuning, &x, false));
        assert_ne!(got, exact, "{kind:?}");
        let group = |i: usize| match kind {
            None => i / 16 * 16..i / 16 * 16 + 16,
            Some(_) => i / 32 * 32..i / 32 * 32 + 32, // eight of these
        };
        for (row, x) in x.chunks(IN_DIM).enumerate() {
            let off: Vec<f64> = (0..IN_DIM)
                .map(|i| x[group(i)].iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs()))) / 254.0)
                .collect();
            for out in 0..OUT_DIM {
                let weights = &held[out * IN_DIM..(out + 1) * IN_DIM];
                let bound: f64 = weights.iter().zip(&off).map(|(w, off)| w.abs() * off).sum();
                let want: f64 = weights.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum();
                let got = f64::from(got[row * OUT_DIM + out]);
                assert!((got - want).abs() <= 1.001 * bound, "{kind:?}: {got}, not {want} to {bound}");
            }
        }
    }
}

#[test]
fn other_weights_are_refused_and_lone_lanes_multiply_as_before() {
    let gpu = exact_gpu();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let weight = Weight::new(gpu, [1, 4, 8], &[1.0; 32], dtype).unwrap();
        let error = Linear::new(gpu, &weight, None).unwrap().with_integer_dot().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(&dtype.to_string()), "{error}");
    }
    let mut rng = Rng(23);
    let lone = LinearTuning { in_lanes: 1, outs: 2, steps: 1, max_rows: 8, out_lanes: 16, subgroups: false };
    for kind in [None, Some(BlockType::Q4_0)] {
        let (weight, _) = weight(kind, &mut rng);
        let x = rng.normals(IN_DIM, 1.0);
        assert_eq!(product(&weight, lone, &x, true), product(&weight, lone, &x, false));
    }
}
