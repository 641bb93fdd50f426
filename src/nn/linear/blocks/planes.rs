//! Blocks as they lie on the device: their integers in one plane, 32 elements to a word, their scales and upper bits in another.
//! `shaders/nn/block_planes.wgsl` and `shaders/nn/bits/` read them.

use super::dequantise::{k_scales, q3_scales};
use super::BlockType;
use crate::error::{ErrorKind, Result};
use crate::gpu::{number, part, Consts, ShaderPart};
use half::f16;

/// Elements of a word.
pub(crate) const WORD: usize = 32;

/// How a type's blocks lie in the two planes.
struct BlockLayout {
    /// Bits of an element's integer; its lower ones are 2, 4 or 8 in the plane of words.
    bits: usize,
    /// Words that share a header in the other plane.
    group: usize,
    /// u32s of that header, and of upper bits for each word.
    header: usize,
    high: usize,
    /// What is subtracted from the integers.
    zero: usize,
}

impl BlockType {
    fn layout(self) -> BlockLayout {
        let (bits, group, header, high, zero) = match self {
            BlockType::Q4_0 => (4, 2, 1, 0, 8),
            BlockType::Q4_1 => (4, 1, 1, 0, 0),
            BlockType::Q5_0 => (5, 2, 1, 1, 16),
            BlockType::Q5_1 => (5, 1, 1, 1, 0),
            BlockType::Q8_0 => (8, 2, 1, 0, 0),
            BlockType::Q2_K => (2, 8, 5, 0, 0),
            BlockType::Q3_K => (3, 8, 4, 1, 4),
            BlockType::Q4_K => (4, 8, 4, 0, 0),
            BlockType::Q5_K => (5, 8, 4, 1, 0),
            BlockType::Q6_K => (6, 8, 5, 2, 32),
            BlockType::IQ4_NL => (4, 2, 1, 0, 0),
            BlockType::IQ4_XS => (4, 8, 2, 0, 0),
            BlockType::MXFP4 => (4, 4, 1, 0, 0),
            BlockType::Q4_G32 => (4, 1, 1, 0, 0),
            BlockType::Q4_G128 => (4, 4, 1, 0, 0),
        };
        BlockLayout { bits, group, header, high, zero }
    }

    /// Bytes of a word in the plane of integers.
    pub(crate) fn word_bytes(self) -> usize {
        match self.layout().bits {
            2 | 3 => 8,
            8 => 32,
            _ => 16,
        }
    }

    /// Bytes of `words` words in the plane of scales.
    pub(crate) fn side_bytes(self, words: usize) -> usize {
        words.div_ceil(self.layout().group) * self.group_bytes()
    }

    fn group_bytes(self) -> usize {
        let BlockLayout { group, header, high, .. } = self.layout();
        4 * (header + group * high)
    }

    /// Blocks of a group.
    pub(crate) fn group_blocks(self) -> usize {
        (self.layout().group * WORD / self.elements()).max(1)
    }

    /// The slots that read them, and their constants.
    pub(crate) fn parts(self) -> (Vec<ShaderPart>, Consts) {
        let BlockLayout { bits, group, header, high, zero } = self.layout();
        let bits = match bits {
            2 => part!("nn/bits/2.wgsl"),
            3 => part!("nn/bits/3.wgsl"),
            5 => part!("nn/bits/5.wgsl"),
            6 => part!("nn/bits/6.wgsl"),
            8 => part!("nn/bits/8.wgsl"),
            _ => part!("nn/bits/4.wgsl"),
        };
        let codes = match self {
            BlockType::Q8_0 => part!("nn/codes/signed.wgsl"),
            BlockType::IQ4_NL | BlockType::IQ4_XS => part!("nn/codes/iq4.wgsl"),
            BlockType::MXFP4 => part!("nn/codes/mxfp4.wgsl"),
            _ => part!("nn/codes/whole.wgsl"),
        };
        let scales = match self {
            BlockType::Q4_1 | BlockType::Q5_1 => part!("nn/block_scales/pair.wgsl"),
            BlockType::Q2_K => part!("nn/block_scales/k2.wgsl"),
            BlockType::Q3_K => part!("nn/block_scales/k3.wgsl"),
            BlockType::Q4_K | BlockType::Q5_K => part!("nn/block_scales/k4.wgsl"),
            BlockType::Q6_K => part!("nn/block_scales/k6.wgsl"),
            BlockType::IQ4_XS => part!("nn/block_scales/iq4_xs.wgsl"),
            BlockType::MXFP4 => part!("nn/block_scales/power.wgsl"),
            BlockType::Q4_G32 | BlockType::Q4_G128 => part!("nn/block_scales/zero.wgsl"),
            _ => part!("nn/block_scales/half.wgsl"),
        };
        let consts =
            vec![("GROUP", number(group)), ("HEADER", number(header)), ("HIGH", number(high)), ("ZERO", number(zero))];
        (vec![part!("nn/block_planes.wgsl"), bits, codes, scales, part!("nn/weights/blocks.wgsl")], consts)
    }

    /// Appends whole blocks to both planes. Blocks that are no whole group at the end are filled up with zeros, in the plane of
    /// scales alone.
    pub(crate) fn repack(self, blocks: &[u8], words: &mut Vec<u8>, side: &mut Vec<u8>) {
        // Where a block is what it says of itself, then its integers in their order.
        match self {
            BlockType::Q4_0 | BlockType::IQ4_NL => parted::<2, 16>(blocks, words, side),
            BlockType::Q4_1 | BlockType::Q4_G32 => parted::<4, 16>(blocks, words, side),
            BlockType::Q4_G128 => parted::<4, 64>(blocks, words, side),
            BlockType::Q8_0 => parted::<2, 32>(blocks, words, side),
            BlockType::IQ4_XS => parted::<8, 128>(blocks, words, side),
            BlockType::MXFP4 => parted::<1, 16>(blocks, words, side),
            _ => return self.repack_groups(blocks, words, side),
        }
        side.resize(side.len().next_multiple_of(4), 0);
    }

    fn repack_groups(self, blocks: &[u8], words: &mut Vec<u8>, side: &mut Vec<u8>) {
        let mut groups = blocks.chunks_exact(self.group_blocks() * self.bytes());
        for group in &mut groups {
            self.repack_group(group, words, side);
        }
        let rest = groups.remainder();
        if !rest.is_empty() {
            let end = words.len() + rest.len() / self.bytes() * (self.elements() / WORD) * self.word_bytes();
            let mut filled = rest.to_vec();
            filled.resize(self.group_blocks() * self.bytes(), 0);
            self.repack_group(&filled, words, side);
            words.truncate(end);
        }
    }

    /// Of types whose upper bits lie apart.
    fn repack_group(self, group: &[u8], words: &mut Vec<u8>, side: &mut Vec<u8>) {
        let blocks = || group.chunks_exact(self.bytes());
        let lead = |side: &mut Vec<u8>, bytes: usize| blocks().for_each(|b| side.extend_from_slice(&b[..bytes]));
        match self {
            BlockType::Q5_0 => {
                lead(side, 2);
                for block in blocks() {
                    words.extend_from_slice(&block[6..]);
                    push(side, &[spread(u32_at(block, 2))]);
                }
            }
            BlockType::Q5_1 => {
                words.extend_from_slice(&group[8..]);
                lead(side, 4);
                push(side, &[spread(u32_at(group, 4))]);
            }
            BlockType::Q2_K => {
                push(words, &pairs(&group[16..80]));
                side.extend_from_slice(&group[80..]);
                side.extend_from_slice(&group[..16]);
            }
            BlockType::Q3_K => {
                push(words, &pairs(&group[32..96]));
                side.extend_from_slice(&group[108..]);
                side.extend_from_slice(&[0; 2]);
                push(side, &q3_header(&group[96..108]));
                push(side, &singles(&group[..32]));
            }
            BlockType::Q4_K => {
                nibbles(words, &group[16..], 32);
                side.extend_from_slice(&group[..4]);
                push(side, &k_header(&group[4..16]));
            }
            BlockType::Q5_K => {
                nibbles(words, &group[48..], 32);
                side.extend_from_slice(&group[..4]);
                push(side, &k_header(&group[4..16]));
                push(side, &singles(&group[16..48]));
            }
            BlockType::Q6_K => {
                nibbles(words, &group[..128], 64);
                side.extend_from_slice(&group[208..]);
                side.extend_from_slice(&[0; 2]);
                side.extend_from_slice(&group[192..208]);
                push(side, &pairs(&group[128..192]));
            }
            // `repack` knows the others.
            _ => {}
        }
    }

    /// Refuses blocks that stand for what is no number, or is beyond f16, in which some kernels multiply. `first` is the number of
    /// the first block.
    pub(crate) fn check(self, blocks: &[u8], first: usize) -> Result<()> {
        let (most, halves): (f32, &[usize]) = match self {
            BlockType::Q4_0 | BlockType::Q5_0 => (16.0, &[0]),
            BlockType::Q4_1 | BlockType::Q5_1 => (31.0, &[0, 2]),
            BlockType::Q8_0 | BlockType::IQ4_NL => (128.0, &[0]),
            BlockType::Q2_K => (45.0, &[80, 82]),
            BlockType::Q3_K => (128.0, &[108]),
            BlockType::Q4_K | BlockType::Q5_K => (63.0 * 31.0, &[0, 2]),
            BlockType::Q6_K => (4096.0, &[208]),
            BlockType::IQ4_XS => (4064.0, &[0]),
            BlockType::MXFP4 => (12.0, &[]),
            BlockType::Q4_G32 | BlockType::Q4_G128 => (255.0, &[0]),
        };
        // Magnitudes of f16 are in the order of their bits.
        let small = f16::from_f32(0.99 * LARGEST / (most * halves.len().max(1) as f32)).to_bits();
        for (i, block) in blocks.chunks_exact(self.bytes()).enumerate() {
            // Nearly always by far; what is no number is not.
            let fits = match halves {
                [] => super::dequantise::power(block[0]) * most < LARGEST,
                _ => halves.iter().all(|at| u16::from_le_bytes([block[*at], block[at + 1]]) & 0x7fff < small),
            };
            if fits {
                continue;
            }
            let mut values = vec![0.0; self.elements()];
            self.dequantise(block, &mut values)?;
            if let Some(odd) = values.iter().find(|v| v.is_nan() || v.abs() >= LARGEST) {
                let why = format!("block {} of {self} holds {odd}, no number that f16 has", first + i);
                return Err(ErrorKind::argument("blocks", why));
            }
        }
        Ok(())
    }
}

/// No number below it rounds to one that f16 lacks.
const LARGEST: f32 = 65520.0;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Of blocks of `LEAD` + `CODES` bytes the first ones to `side`, the others to `words`.
fn parted<const LEAD: usize, const CODES: usize>(blocks: &[u8], words: &mut Vec<u8>, side: &mut Vec<u8>) {
    let (at, side_at, count) = (words.len(), side.len(), blocks.len() / (LEAD + CODES));
    words.resize(at + count * CODES, 0);
    side.resize(side_at + count * LEAD, 0);
    let planes = words[at..].chunks_exact_mut(CODES).zip(side[side_at..].chunks_exact_mut(LEAD));
    for ((words, side), block) in planes.zip(blocks.chunks_exact(LEAD + CODES)) {
        side.copy_from_slice(&block[..LEAD]);
        words.copy_from_slice(&block[LEAD..]);
    }
}

fn push(bytes: &mut Vec<u8>, numbers: &[u32]) {
    numbers.iter().for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()));
}

/// Of bit `i`, of element `i`, bit `8 (i % 4) + i / 4`.
fn spread(bits: u32) -> u32 {
    (0..8).fold(0, |all, quad| all | ((bits >> (4 * quad) & 15).wrapping_mul(0x0020_4081) & 0x0101_0101) << quad)
}

/// Of 32 bytes, a bit for each of 8 words of 32 elements, the u32s of those words: bit `8 e + q` of element e of quad q.
fn singles(bytes: &[u8]) -> [u32; 8] {
    let quads: [u32; 8] = std::array::from_fn(|i| u32_at(bytes, 4 * i));
    let mut all = [0; 8];
    for (quad, bits) in quads.into_iter().enumerate() {
        all.iter_mut().enumerate().for_each(|(word, own)| *own |= (bits >> word & 0x0101_0101) << quad);
    }
    all
}

/// Of 64 bytes, two bits for each of 8 words of 32 elements, the two u32s of each: bits `8 e + 2 q` of element e of quad q of four.
fn pairs(bytes: &[u8]) -> [u32; 16] {
    let quads: [u32; 16] = std::array::from_fn(|i| u32_at(bytes, 4 * i));
    let mut all = [0; 16];
    for (i, four) in quads.chunks_exact(4).enumerate() {
        for word in 0..4 {
            let bits = |q: usize| (four[q] >> (2 * word) & 0x0303_0303) << (2 * q);
            all[(i / 2 * 4 + word) * 2 + i % 2] = bits(0) | bits(1) | bits(2) | bits(3);
        }
    }
    all
}

/// Runs of 32 elements in the lower or the upper halves of 32 bytes become words: 16 elements in lower halves, 16 in upper ones.
/// The lower halves of `stretch` bytes come before the upper ones.
fn nibbles(words: &mut Vec<u8>, bytes: &[u8], stretch: usize) {
    const LOW: u128 = u128::from_ne_bytes([15; 16]);
    let sixteen = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes));
    for stretch in bytes.chunks_exact(stretch) {
        for shift in [0, 4] {
            for run in stretch.chunks_exact(32) {
                let (first, last) = (sixteen(run) >> shift & LOW, sixteen(&run[16..]) >> shift & LOW);
                words.extend_from_slice(&(first | last << 4).to_le_bytes());
            }
        }
    }
}

/// Of the 12 bytes of Q4_K and Q5_K: as `shaders/nn/block_scales/k4.wgsl` has them.
fn k_header(scales: &[u8]) -> [u32; 3] {
    let mut header = [0; 3];
    for (word, (scale, offset)) in k_scales(scales).into_iter().enumerate() {
        header[word / 4] |= (u32::from(scale) | u32::from(offset & 3) << 6) << (word % 4 * 8);
        header[2] |= u32::from(offset >> 2) << (word * 4);
    }
    header
}

/// Of the 12 bytes of Q3_K: as `shaders/nn/block_scales/k3.wgsl` has them.
fn q3_header(scales: &[u8]) -> [u32; 3] {
    let mut header = [0; 3];
    for (run, scale) in q3_scales(scales).into_iter().enumerate() {
        header[run / 8] |= u32::from(scale & 15) << (run % 8 * 4);
        header[2] |= u32::from(scale >> 4) << (run * 2);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_hardly_larger_than_the_file() {
        for block in BlockType::ALL {
            for in_dim in [1024, 2048, 14336] {
                let (rows, words) = (64, 64 * in_dim / WORD);
                let device = words * block.word_bytes() + block.side_bytes(words);
                let file = rows * block.row_bytes(in_dim).unwrap();
                assert!(device * 100 <= file * 103, "{block}: {device} of {file}");
                let (mut plane, mut side) = (Vec::new(), Vec::new());
                block.repack(&vec![0xa5; file], &mut plane, &mut side);
                assert_eq!((plane.len(), side.len()), (words * block.word_bytes(), block.side_bytes(words)), "{block}");
            }
        }
    }

    #[test]
    fn what_has_no_f16_is_refused_and_its_block_named() {
        let mut blocks = vec![0; 3 * 18];
        BlockType::Q4_0.check(&blocks, 0).unwrap();
        // The largest f16: alone it is a number, times -8 it is not.
        blocks[36..38].copy_from_slice(&0x7bffu16.to_le_bytes());
        blocks[38..].fill(0x99);
        BlockType::Q4_0.check(&blocks, 0).unwrap();
        blocks[53] = 0x90;
        for scale in [0x7bffu16, 0x7c00, 0x7e00, 0xfc00] {
            blocks[36..38].copy_from_slice(&scale.to_le_bytes());
            let error = BlockType::Q4_0.check(&blocks, 5).unwrap_err().to_string();
            assert!(error.contains("block 7 of q4_0"), "{error}");
        }
        for e in [0, 127 + 13] {
            BlockType::MXFP4.check(&[&[e], &[0x77; 16][..]].concat(), 0).unwrap();
        }
        for e in [127 + 14, 254, 255] {
            BlockType::MXFP4.check(&[&[e], &[0x77; 16][..]].concat(), 0).unwrap_err();
        }
    }
}
