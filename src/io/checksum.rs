//! XXH64, the checksum of saved caches. Pure.
//!
//! Why this one: no crate in the dependency tree has a checksum. A CRC by tables, in plain Rust, is slower than the disks
//! of desktops; XXH64 is a few lines, several bytes per cycle without instructions of one processor, and has published
//! test vectors. It is against damage, not against malice.
//!
//! Source: Yann Collet, github.com/Cyan4973/xxHash, doc/xxhash_spec.md.

const PRIMES: [u64; 5] =
    [0x9e37_79b1_85eb_ca87, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x85eb_ca77_c2b2_ae63, 0x27d4_eb2f_1656_67c5];

/// The XXH64 of `bytes`.
pub(crate) fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let stripes = bytes.chunks_exact(32);
    let rest = stripes.remainder();
    let mut sum = if bytes.len() < 32 { seed.wrapping_add(PRIMES[4]) } else { by_stripes(stripes, seed) };
    sum = sum.wrapping_add(bytes.len() as u64);

    let words = rest.chunks_exact(8);
    let mut rest = words.remainder();
    for word in words {
        sum = (sum ^ round(0, u64_at(word))).rotate_left(27).wrapping_mul(PRIMES[0]).wrapping_add(PRIMES[3]);
    }
    if let Some((half, after)) = rest.split_first_chunk::<4>() {
        let half = u64::from(u32::from_le_bytes(*half));
        sum = (sum ^ half.wrapping_mul(PRIMES[0])).rotate_left(23).wrapping_mul(PRIMES[1]).wrapping_add(PRIMES[2]);
        rest = after;
    }
    for byte in rest {
        sum = (sum ^ u64::from(*byte).wrapping_mul(PRIMES[4])).rotate_left(11).wrapping_mul(PRIMES[0]);
    }
    sum = (sum ^ (sum >> 33)).wrapping_mul(PRIMES[1]);
    sum = (sum ^ (sum >> 29)).wrapping_mul(PRIMES[2]);
    sum ^ (sum >> 32)
}

/// Four sums side by side, which is where the speed is, and what they come to.
fn by_stripes(stripes: std::slice::ChunksExact<'_, u8>, seed: u64) -> u64 {
    let mut lanes = [
        seed.wrapping_add(PRIMES[0]).wrapping_add(PRIMES[1]),
        seed.wrapping_add(PRIMES[1]),
        seed,
        seed.wrapping_sub(PRIMES[0]),
    ];
    for stripe in stripes {
        for (lane, word) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
            *lane = round(*lane, u64_at(word));
        }
    }
    let turns = [1, 7, 12, 18];
    let sum = lanes.iter().zip(turns).fold(0u64, |sum, (lane, turn)| sum.wrapping_add(lane.rotate_left(turn)));
    lanes.iter().fold(sum, |sum, lane| (sum ^ round(0, *lane)).wrapping_mul(PRIMES[0]).wrapping_add(PRIMES[3]))
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
}

/// Of eight bytes.
fn u64_at(word: &[u8]) -> u64 {
    word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors() {
        for (text, want) in [
            ("", 0xef46_db37_51d8_e999),
            ("a", 0xd24e_c4f1_a98c_6e5b),
            ("abc", 0x44bc_2cf5_ad77_0999),
            ("Nobody inspects the spammish repetition", 0xfbce_a83c_8a37_8bf1),
        ] {
            assert_eq!(xxh64(text.as_bytes(), 0), want, "{text}");
        }
    }

    /// xxHash's own sanity check: a generated buffer, with and without a seed.
    #[test]
    fn vectors_of_the_sanity_check() {
        const SEED: u64 = 2_654_435_761;
        let mut state = SEED;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            let byte = (state >> 56) as u8;
            state = state.wrapping_mul(11_400_714_785_074_694_797);
            byte
        })
        .take(222)
        .collect();
        for (len, plain, seeded) in [
            (0, 0xef46_db37_51d8_e999, 0xac75_fda2_929b_17ef),
            (1, 0xe934_a84a_db05_2768, 0x5014_6076_43a9_b4c3),
            (4, 0x9136_a0dc_a574_57ee, 0xcaab_286b_d8e9_fdb5),
            (14, 0x8282_dcc4_994e_35c8, 0xc3bd_6bf6_3deb_6df0),
            (222, 0xb641_ae8c_b691_c174, 0x20cb_8ab7_ae10_c14a),
        ] {
            assert_eq!((xxh64(&bytes[..len], 0), xxh64(&bytes[..len], SEED)), (plain, seeded), "{len} bytes");
        }
    }

    #[test]
    fn every_bit_counts() {
        let mut bytes: Vec<u8> = (0..100).collect();
        let sum = xxh64(&bytes, 7);
        for bit in 0..800 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(xxh64(&bytes, 7), sum, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
