//! XXH64 is the checksum of saved files (Yann Collet, github.com/Cyan4973/xxHash, doc/xxhash_spec.md): whatever computes it
//! must give the published sums, or files of earlier versions are refused. It is against damage, not against malice.

use super::xxh64;

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
