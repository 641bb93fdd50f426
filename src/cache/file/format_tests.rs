//! Saved caches as bytes alone: what is written is read, and whatever else is read is an error, never a panic.

use super::*;
use crate::kv::{Gla, Gqa};
use crate::{Error, ErrorKind};
use proptest::prelude::*;

fn info() -> SavedInfo {
    let heads = HeadLayout::gla(Gla { q_heads: 6, latent_heads: 2, latent_dim: 10, rope_dim: 4 }).unwrap();
    SavedInfo {
        heads,
        dtype: DType::I8,
        rotation: RopePairs::Interleaved,
        inv_freq: vec![1.0, 0.01],
        wide: None,
        page_size: 16,
        layers: 2,
        fingerprint: b"model".to_vec(),
        sequences: vec![
            SavedSequence { len: 5, tokens: vec![1, 2, 3, 4, 5, 6], ..Default::default() },
            SavedSequence { len: 0, tokens: vec![9], ..Default::default() },
            SavedSequence { len: 3, ..Default::default() },
        ],
        block_tokens: 2,
        share: None,
    }
}

/// The same with windows: one that has freed pages, one that has not yet.
fn windowed() -> SavedInfo {
    let mut info = info();
    (info.page_size, info.sequences[1].window) = (2, 7);
    let cut = SavedSequence { len: 15, window: 6, keep_first: 4, gap: 4..10, tokens: vec![3; 15] };
    info.sequences[2] = cut;
    info
}

/// A whole file, its rows a pattern.
fn file(info: &SavedInfo) -> Vec<u8> {
    let (mut bytes, seed) = info.encode();
    for (index, block) in info.blocks().enumerate() {
        let rows: Vec<u8> = (0..block.tokens * info.row_bytes()).map(|i| (i * 7 + index) as u8).collect();
        let sum = xxh64(&rows, seed.wrapping_add(index as u64));
        bytes.extend(rows);
        bytes.extend(sum.to_le_bytes());
    }
    bytes
}

/// All of a file, as load reads it.
fn read(bytes: &[u8]) -> Result<(SavedInfo, Vec<u8>), Error> {
    let mut input = Input::new(bytes, "f");
    let (info, seed) = SavedInfo::read(&mut input)?;
    let mut all = Vec::new();
    for (index, block) in info.blocks().enumerate() {
        let mut bytes = vec![0; block.tokens * info.row_bytes() + SUM_BYTES];
        all.extend(input.block(&block, &mut bytes, seed.wrapping_add(index as u64))?);
    }
    input.end()?;
    Ok((info, all))
}

fn fault(bytes: &[u8]) -> SavedFault {
    match read(bytes).unwrap_err().kind() {
        ErrorKind::Saved { path, fault } if path == "f" => fault.clone(),
        other => panic!("{other:?}"),
    }
}

/// The file with its head and table changed, and their checksums made right again.
fn resealed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    resealed_of(&info(), change)
}

fn resealed_of(info: &SavedInfo, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = info.encode().0;
    change(&mut bytes);
    let sum = xxh64(&bytes[..88], 0);
    bytes[88..96].copy_from_slice(&sum.to_le_bytes());
    let end = bytes.len() - SUM_BYTES;
    let seal = xxh64(&bytes[96..end], sum);
    bytes[end..].copy_from_slice(&seal.to_le_bytes());
    bytes
}

fn with_u32(at: usize, value: u32) -> Vec<u8> {
    resealed(|bytes| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()))
}

#[test]
fn what_is_written_is_read() {
    let bytes = file(&info());
    let (got, rows) = read(&bytes).unwrap();
    assert_eq!(got, info());
    assert_eq!(rows.len(), (5 + 3) * 2 * info().row_bytes());
    let (head, _) = info().encode();
    assert_eq!(bytes.len() as u64, head.len() as u64 + info().blocks_bytes().unwrap());
    assert_eq!(saved_info(&bytes[..]).unwrap(), info());
    // Five tokens in blocks of two are three blocks, and three are two, for each layer.
    let blocks: Vec<RowBlock> = info().blocks().collect();
    assert_eq!(blocks.len(), 2 * 3 + 2 * 2);
    assert_eq!(blocks[5], RowBlock { sequence: 0, layer: 1, first: 4, tokens: 1 });
    assert_eq!(blocks[6], RowBlock { sequence: 2, layer: 0, first: 0, tokens: 2 });
    let rotation = RopePairs::None;
    let none = SavedInfo { sequences: vec![], fingerprint: vec![], rotation, inv_freq: vec![], ..info() };
    assert_eq!(read(&file(&none)).unwrap(), (none, vec![]));
}

/// Pinned: a change of the format is a change of its version.
#[test]
fn the_bytes_of_version_1() {
    let (bytes, seed) = info().encode();
    assert_eq!((bytes.len(), seed), (96 + 5 + 8 + 3 * 16 + 7 * 4 + 8, 14998433803098683842));
    assert_eq!(xxh64(&file(&info()), 0), 10674980697078172967);
}

#[test]
fn the_bytes_of_version_2() {
    let (bytes, seed) = windowed().encode();
    assert_eq!((bytes[8], bytes.len(), seed), (2, 96 + 5 + 8 + 3 * 40 + 22 * 4 + 8, 10189909322456912312));
    assert_eq!(xxh64(&file(&windowed()), 0), 18343096138742651815);
}

/// Rows of the gap are not in the file; all others are, and the numbers of the window.
#[test]
fn windowed_sequences_are_written_and_read() {
    let bytes = file(&windowed());
    let (got, rows) = read(&bytes).unwrap();
    assert_eq!((got, rows.len()), (windowed(), (5 + 9) * 2 * info().row_bytes()));
    assert_eq!(saved_info(&bytes[..]).unwrap().sequences[2].gap, 4..10);
    let lengths: Vec<usize> = windowed().blocks().filter(|b| b.sequence == 2).map(|b| b.tokens).collect();
    assert_eq!(lengths, [2, 2, 2, 2, 1, 2, 2, 2, 2, 1]);
    // Where none is windowed, older programs can read it.
    assert_eq!((file(&info())[8], bytes[8]), (1, 2));
}

#[test]
fn windows_that_cannot_be_are_refused() {
    // Of the third sequence, behind the numbers and tokens of two: its length, window, first tokens, end of the gap.
    let third = 96 + 5 + 8 + 2 * 40 + 7 * 4;
    let most = u64::from(u32::MAX);
    for (at, value, name) in [
        (0, most + 1, "sequence length"),
        (0, 14, "gap"),
        (1, 0, "first tokens"),
        (1, 7, "gap"),
        (1, u64::MAX, "gap"),
        (2, most + 1, "first tokens"),
        (2, 10, "gap"),
        (2, 11, "gap"),
        (3, 4, "gap"),
        (3, 11, "gap"),
        (3, most + 1, "gap"),
        (3, u64::MAX, "gap"),
    ] {
        let place = third + 8 * at;
        let bad = resealed_of(&windowed(), |file| file[place..place + 8].copy_from_slice(&value.to_le_bytes()));
        match fault(&bad) {
            SavedFault::Malformed { name: got, .. } => assert_eq!(got, name, "{value} at {at}"),
            fault => panic!("{value} at {at}: {fault}"),
        }
    }
    // A file that says it has windows, and has none; and one that has them and does not say so.
    let mut unsaid = windowed();
    unsaid.sequences.clear();
    let none = resealed_of(&unsaid, |file| file[8] = 2);
    assert!(matches!(fault(&none), SavedFault::Malformed { name: "version", value: 2, .. }));
    let old = resealed_of(&windowed(), |file| file[8] = 1);
    assert!(matches!(fault(&old), SavedFault::Malformed { .. }));
}

#[test]
fn every_flipped_bit_is_refused() {
    every_flipped_bit_of(file(&info()));
    every_flipped_bit_of(file(&windowed()));
}

fn every_flipped_bit_of(mut bytes: Vec<u8>) {
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (at, fault) = (bit / 8, fault(&bytes));
        let wanted = match at {
            0..8 => matches!(fault, SavedFault::Foreign { .. }),
            // A known version by another name: then the checksum says it.
            8 if (1..=3).contains(&bytes[8]) => matches!(fault, SavedFault::Damaged { .. }),
            8..12 => matches!(fault, SavedFault::Newer { .. } | SavedFault::Malformed { .. }),
            _ => matches!(fault, SavedFault::Damaged { .. }),
        };
        assert!(wanted, "bit {bit}: {fault}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(read(&bytes).is_ok());
}

#[test]
fn every_truncation_is_refused_with_its_end() {
    let bytes = file(&info());
    for len in 0..bytes.len() {
        match fault(&bytes[..len]) {
            SavedFault::Truncated { end, missing, .. } => {
                assert!(end == len as u64 && missing > 0 && missing <= (bytes.len() - len) as u64, "{len} bytes");
            }
            fault => panic!("{len} bytes: {fault}"),
        }
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(fault(&longer), SavedFault::TooLong { size: bytes.len() as u64 });
}

#[test]
fn blocks_belong_to_their_place_and_file() {
    let bytes = file(&info());
    let (start, size) = (info().encode().0.len(), 2 * info().row_bytes() + SUM_BYTES);
    let mut swapped = bytes.clone();
    swapped[start..start + 2 * size].rotate_left(size);
    assert!(matches!(fault(&swapped), SavedFault::Damaged { .. }));
    let other = file(&SavedInfo { fingerprint: b"other".to_vec(), ..info() });
    let mixed = [&other[..start], &bytes[start..]].concat();
    assert!(matches!(fault(&mixed), SavedFault::Damaged { first, .. } if first == start as u64));
}

#[test]
fn messages_have_names_and_numbers() {
    let bytes = file(&info());
    let text = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert_eq!(text(b"#!/bin/sh\n# not a cache"), "saved cache f: not a saved cache, its first bytes are \"#!/bin/s\"");
    assert_eq!(text(&with_u32(8, 7)), "saved cache f: its format is version 7, this program knows up to 3");
    let end = bytes.len() - 1;
    assert_eq!(
        text(&bytes[..end]),
        format!(
            "saved cache f: ends at byte {end}, 1 bytes before the end of its block of sequence 2, layer 1, tokens 2..3"
        )
    );
    let mut damaged = bytes.clone();
    damaged[end - 10] ^= 1;
    assert!(text(&damaged).starts_with("saved cache f: its block of sequence 2, layer 1, tokens 2..3, from byte "));
}

/// Layout, number and channels of what has wide channels; such a file is of version 2, all others of version 1.
#[test]
fn wide_channels_are_written_and_checked() {
    let heads = HeadLayout::gqa_wide(Gqa { q_heads: 4, kv_heads: 2, head_dim: 6 }, 2).unwrap();
    let wide = WideChannels::new(&heads, &[vec![vec![5, 2], vec![1, 4]], vec![vec![0, 3], vec![2, 5]]]).unwrap();
    // One frequency for each pair of the key.
    let wide = SavedInfo { heads, wide: Some(wide), inv_freq: vec![1.0, 0.1, 0.01], ..info() };
    let bytes = file(&wide);
    assert_eq!(read(&bytes).unwrap().0, wide);
    assert_eq!((u32_at(bytes.first_chunk().unwrap(), 8), u32_at(file(&info()).first_chunk().unwrap(), 8)), (2, 1));
    // Behind fingerprint and frequencies.
    let first = 96 + 5 + 12;
    assert_eq!(bytes[first..first + 8], [5, 0, 0, 0, 2, 0, 0, 0]);
    let changed =
        |at: usize, value: u32| resealed_of(&wide, |bytes| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()));
    let cases = [(8, 1), (12, 2), (16, 3), (28, 5), (32, 6), (76, 0), (76, 4), (76, u32::MAX), (first, 2), (first, 6)];
    for (at, value) in cases {
        let fault = fault(&changed(at, value));
        assert!(
            matches!(fault, SavedFault::Malformed { .. } | SavedFault::Layout { .. }),
            "{value} at {at}: {fault:?}"
        );
    }
    assert!(matches!(fault(&changed(8, 4)), SavedFault::Newer { version: 4, known: 3 }));
}

/// A rank's part of sequences: their lengths, and the rows of its own tokens alone.
#[test]
fn a_ranks_part_is_written_and_checked() {
    let share = TokenShare::of_numbers([1, 2, 2]).unwrap();
    let part = SavedInfo { share: Some(share), ..info() };
    let bytes = file(&part);
    assert_eq!(read(&bytes).unwrap().0, part);
    assert_eq!(u32_at(bytes.first_chunk().unwrap(), 8), 3);
    // Of each sequence the tokens 2, 3, 6, 7, ..
    for (sequence, all) in part.sequences.iter().enumerate() {
        let rows: usize = part.blocks().filter(|b| (b.sequence, b.layer) == (sequence, 0)).map(|b| b.tokens).sum();
        assert_eq!(rows, (0..all.len).filter(|token| token / 2 % 2 == 1).count());
    }
    // Behind fingerprint and frequencies: rank, ranks, tokens of a turn.
    let first = 96 + 5 + 4 * info().inv_freq.len();
    assert_eq!(bytes[first..first + 12], [1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0]);
    let changed =
        |at: usize, value: u32| resealed_of(&part, |bytes| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()));
    for (at, value) in [(first, 2), (first, u32::MAX), (first + 4, 1), (first + 4, 0), (first + 8, 0), (8, 2), (8, 1)] {
        assert!(matches!(fault(&changed(at, value)), SavedFault::Malformed { .. }), "{value} at {at}");
    }
}

/// What a reader may do: give little at a time, or nothing now; or fail.
#[test]
fn readers_may_be_slow_or_fail() {
    struct Slow<'a>(&'a [u8], u64);
    impl Read for Slow<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            self.1 += 1;
            match self.1 % 3 {
                0 => Err(std::io::ErrorKind::Interrupted.into()),
                _ if self.0.len() < 300 => Err(std::io::Error::other("the cable is out")),
                n => {
                    let most = bytes.len().min(n as usize);
                    self.0.read(&mut bytes[..most])
                }
            }
        }
    }
    let (bytes, _) = info().encode();
    let long = [&bytes[..], &[0; 400]].concat();
    assert_eq!(saved_info(Slow(&long, 0)).unwrap(), info());
    let failed = saved_info(Slow(&bytes, 0)).unwrap_err();
    assert_eq!(*failed.kind(), ErrorKind::Io { path: "".into(), message: "the cable is out".into() });
}

#[test]
fn blocks_are_a_mebibyte_or_a_row() {
    assert_eq!((block_tokens(16), block_tokens(1152), block_tokens(2 << 20)), (65536, 910, 1));
    let heads = HeadLayout::gqa(Gqa { q_heads: 1024, kv_heads: 1024, head_dim: 8192 }).unwrap();
    let (rotation, inv_freq) = (RopePairs::None, vec![]);
    let large =
        SavedInfo { heads, dtype: DType::F32, rotation, inv_freq, block_tokens: 1, sequences: vec![], ..info() };
    assert_eq!(saved_info(&large.encode().0[..]).unwrap(), large);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn random_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
        // As such and behind a good start.
        let good = file(&info());
        let start = bytes.len().min(good.len() - 1);
        prop_assert!(read(&[&good[..start], &bytes[..]].concat()).is_err());
    }

    #[test]
    fn random_numbers_with_right_checksums_do_not_panic(
        changes in prop::collection::vec((12usize..184, any::<u8>()), 1..12)
    ) {
        let bytes = resealed(|file| changes.iter().for_each(|(at, value)| if *at < file.len() { file[*at] = *value }));
        // The file may be right by chance; then it reads back as what it says.
        if let Ok((info, _)) = SavedInfo::read(&mut Input::new(&bytes[..], "f")) {
            prop_assert_eq!(&info.encode().0[..88], &bytes[..88]);
        }
    }

    #[test]
    fn random_numbers_of_windows_with_right_checksums_do_not_panic(
        changes in prop::collection::vec((8usize..325, prop_oneof![any::<u8>(), 0u8..16]), 1..6)
    ) {
        let change = |file: &mut Vec<u8>| changes.iter().for_each(|(at, value)| if *at < file.len() { file[*at] = *value });
        let bytes = resealed_of(&windowed(), change);
        if let Ok((info, _)) = SavedInfo::read(&mut Input::new(&bytes[..], "f")) {
            prop_assert_eq!(&info.encode().0[..], &bytes[..]);
            for s in &info.sequences {
                prop_assert!(s.gap.end <= s.len && s.rows() + s.gap.len() == s.len);
            }
        }
    }
}

#[path = "format_refused_tests.rs"]
mod refused;
