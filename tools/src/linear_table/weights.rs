//! Random weights of every type, and what they stand for.

use crate::common::timing::random;
use latten::nn::{quantise, BlockType, Weight, WeightType};
use latten::{DType, Gpu, Result};

/// A matrix (outputs, inputs) of numbers whose mean square is about that of `random`; of the `copy`th of several that differ, and
/// of the first also what the device holds.
pub fn weight(gpu: &Gpu, [outputs, inputs]: [usize; 2], kind: WeightType, copy: usize) -> Result<(Weight, Vec<f32>)> {
    let shape = [1, outputs, inputs];
    let mut values = random(outputs * inputs, 5);
    values.rotate_left(7 * copy * inputs % (outputs * inputs));
    let block = match kind {
        WeightType::Blocks(block @ (BlockType::Q8_0 | BlockType::Q4_0)) => {
            let blocks = block.quantise(&values)?;
            block.dequantise(&blocks, &mut values)?;
            return Ok((Weight::from_blocks(gpu, shape, block, &blocks)?, values));
        }
        WeightType::Blocks(block) => block,
        _ => {
            let weight = Weight::new(gpu, shape, &values, kind)?;
            let held = match kind {
                WeightType::Plain(DType::I8) => {
                    let (integers, scales) = quantise(&values, inputs)?;
                    let rows = integers.chunks_exact(inputs).zip(scales);
                    rows.flat_map(|(row, s)| row.iter().map(move |q| f32::from(*q) * s)).collect()
                }
                WeightType::Plain(DType::F16) => values.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect(),
                _ => values,
            };
            return Ok((weight, held));
        }
    };
    let blocks = random_blocks(block, outputs * inputs / block.elements(), copy);
    block.dequantise(&blocks, &mut values)?;
    Ok((Weight::from_blocks(gpu, shape, block, &blocks)?, values))
}

/// Random bits under scales that make numbers of about 0.5.
pub(crate) fn random_blocks(block: BlockType, count: usize, copy: usize) -> Vec<u8> {
    let mut state = copy as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    let mut blocks: Vec<u8> = (0..count * block.bytes()).map(|_| next()).collect();
    // Where the f16 numbers lie, and the largest that a scale is multiplied by.
    let (halves, largest): (&[usize], f32) = match block {
        BlockType::Q4_1 => (&[0, 2], 15.0),
        BlockType::Q5_1 => (&[0, 2], 31.0),
        BlockType::Q5_0 => (&[0], 16.0),
        BlockType::Q2_K => (&[80, 82], 45.0),
        BlockType::Q3_K => (&[108], 128.0),
        BlockType::Q4_K => (&[0, 2], 945.0),
        BlockType::Q5_K => (&[0, 2], 1953.0),
        BlockType::Q6_K => (&[208], 4096.0),
        BlockType::IQ4_XS => (&[0], 4064.0),
        BlockType::MXFP4 => (&[], 6.0),
        _ => (&[0], 127.0),
    };
    for bytes in blocks.chunks_exact_mut(block.bytes()) {
        if halves.is_empty() {
            bytes[0] = 125;
        }
        for at in halves {
            bytes[*at..at + 2].copy_from_slice(&half::f16::from_f32(1.0 / largest).to_le_bytes());
        }
    }
    blocks
}
