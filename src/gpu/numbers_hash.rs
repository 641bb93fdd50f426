//! A hash of numbers that are ours: ids of buffers and blocks of parameters, a few hundred of each, looked up for every dispatch.
//! Nobody chooses them to collide, so they need none of what the standard library's hash is slow for. Pure.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps whose keys are such numbers.
pub(super) type BuildNumbersHash = BuildHasherDefault<NumbersHash>;

/// Multiplies and rotates, a word of 8 bytes at a time.
#[derive(Default)]
pub(super) struct NumbersHash(u64);

/// 2^64 over the golden ratio, made odd.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for NumbersHash {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(26) ^ word).wrapping_mul(FACTOR);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        // Tables look at both ends of it, and a product mixes upwards alone.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    /// Of keys as they are, in the bits that tables use: the upper 7, and the lower ones.
    #[test]
    fn hashes_of_small_numbers_differ() {
        let build = BuildNumbersHash::default();
        let ids: Vec<Vec<u64>> = (0..4096).map(|i| vec![3, 9, 40 + i % 16, 100 + i / 16, 7]).collect();
        let blocks: Vec<[u8; 64]> =
            (0..4096u32).map(|i| std::array::from_fn(|byte| (i >> (byte % 3 * 4)) as u8)).collect();
        let blocks: HashSet<[u8; 64]> = blocks.into_iter().collect();
        let of_ids: Vec<u64> = ids.iter().map(|key| build.hash_one(key)).collect();
        let of_blocks: Vec<u64> = blocks.iter().map(|key| build.hash_one(key)).collect();
        for hashes in [of_ids, of_blocks] {
            let count = hashes.len() as f64;
            for places in [
                hashes.iter().map(|hash| hash % 8192).collect::<HashSet<_>>(),
                hashes.iter().map(|hash| hash >> 51).collect(),
            ] {
                // Of a random hash: 8192 (1 - e^-(count / 8192)).
                let random = 8192.0 * (1.0 - (-count / 8192.0).exp());
                assert!(
                    places.len() as f64 > 0.9 * random,
                    "{} places of {count}, {random:.0} at random",
                    places.len()
                );
            }
        }
    }
}
