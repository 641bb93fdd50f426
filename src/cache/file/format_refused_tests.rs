//! Files whose checksums are right and whose numbers are not.

use super::*;

/// With right checksums: by a hostile hand, or a bug.
#[test]
fn numbers_that_cannot_be_are_refused() {
    for (at, values, name) in [
        (8, &[0][..], "version"),
        (12, &[0, 6, u32::MAX], "dtype"),
        (44, &[0], "number of frequencies"),
        (44, &[3, u32::MAX], "rotation"),
        (48, &[u32::MAX], "table entry"),
        (52, &[0, 3, 4097], "page size"),
        (56, &[0, u32::MAX], "layer count"),
        (60, &[0, 1, u32::MAX], "row size"),
        (64, &[0, u32::MAX], "block size"),
        (68, &[4, u32::MAX], "table entry"),
        (68, &[2], "table size"),
        (72, &[u32::MAX], "table entry"),
        (76, &[1], "wide channels"),
    ] {
        for &value in values {
            match fault(&with_u32(at, value)) {
                SavedFault::Malformed { name: got, .. } => assert_eq!(got, name, "{value} at {at}"),
                fault => panic!("{value} at {at}: {fault}"),
            }
        }
    }
    let with_frequencies = |count: usize| {
        resealed(|file| {
            let frequencies = 96 + 5..96 + 5 + 8;
            file.splice(frequencies, vec![0; 4 * count]);
            file[48..52].copy_from_slice(&(count as u32).to_le_bytes());
            let table = (file.len() - 96 - SUM_BYTES) as u64;
            file[80..88].copy_from_slice(&table.to_le_bytes());
        })
    };
    assert!(
        read(&with_frequencies(2)).unwrap_err().to_string().contains("ends at byte"),
        "only the blocks are missing"
    );
    for count in [0, 1, 3] {
        let fault = fault(&with_frequencies(count));
        assert!(matches!(fault, SavedFault::Malformed { name: "number of frequencies", .. }), "{count}: {fault}");
    }
    // A table of more than there is, up to all of memory.
    for bytes in [1000, u64::MAX] {
        let long = resealed(|file| file[80..88].copy_from_slice(&bytes.to_le_bytes()));
        assert!(matches!(fault(&long), SavedFault::Truncated { .. }));
    }
    let table = 96 + 5 + 8;
    for (at, value, name) in [(0, 1 << 32, "sequence length"), (0, 7, "token count"), (8, u64::MAX, "table entry")] {
        let bad = resealed(|file| file[table + at..table + at + 8].copy_from_slice(&value.to_le_bytes()));
        assert!(matches!(fault(&bad), SavedFault::Malformed { name: got, .. } if got == name), "{value} at {at}");
    }
}

/// A layout that no constructor makes: q_heads, groups, state_dim, nope_dim, rope_dim, v_offset, v_dim. Whatever the row's size
/// is said to be.
#[test]
fn layouts_that_no_constructor_makes_are_refused() {
    let good = [6, 2, 10, 10, 4, 0, 10];
    let read_as = |numbers: [u32; 7]| {
        let words = |words: u32| {
            resealed(|file| {
                for (i, number) in numbers.iter().enumerate() {
                    file[16 + 4 * i..20 + 4 * i].copy_from_slice(&number.to_le_bytes());
                }
                file[60..64].copy_from_slice(&words.to_le_bytes());
            })
        };
        let results: Vec<_> = (1..9).map(|n| saved_info(&words(n)[..])).collect();
        match results.iter().any(|result| result.is_ok()) {
            true => None,
            false => results
                .into_iter()
                .map(|result| match result.unwrap_err().kind() {
                    ErrorKind::Saved { fault, .. } => fault.clone(),
                    other => panic!("{other:?}"),
                })
                .next(),
        }
    };
    assert_eq!(read_as(good), None);
    for (i, values) in [
        &[0, 1, 3, 7, 1 << 15, u32::MAX][..],
        &[0, 4, 5, 7, u32::MAX],
        &[0, 9, 11, u32::MAX],
        &[0, 9, 11],
        &[1, 3, 5, u32::MAX],
        &[1, 10],
        &[0, 1, 9, 11, u32::MAX],
    ]
    .into_iter()
    .enumerate()
    {
        for &value in values {
            let mut numbers = good;
            numbers[i] = value;
            assert_eq!(read_as(numbers), Some(SavedFault::Layout { numbers }), "{value} at {i}");
        }
    }
    // A key that is neither half of a GQA state nor all of a tied one.
    for numbers in [[4, 2, 16, 8, 0, 8, 0], [4, 2, 16, 8, 4, 8, 8], [4, 2, 16, 6, 8, 0, 16], [4, 2, 16, 4, 0, 8, 8]] {
        assert_eq!(read_as(numbers), Some(SavedFault::Layout { numbers }));
    }
}
