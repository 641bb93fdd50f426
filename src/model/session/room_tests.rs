use crate::cache::{SeqTable, SequenceOptions};
use crate::model::SplitMix64;

/// What is counted before is what a sequence then holds, at every step.
#[test]
fn pages_are_counted_as_they_are_held() {
    let mut random = SplitMix64::new(3);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    let mut freed = 0;
    for _ in 0..300 {
        let (size, window, keep_first) = (1 << below(4), 1 + below(30), below(12));
        let seen = SequenceOptions { window: Some(window), keep_first };
        let mut table = SeqTable::new(400, size).unwrap();
        let id = table.insert_with(seen).unwrap();
        let mut len = 0;
        while len < 100 {
            let n = 1 + below(9);
            table.reserve(&[id], n).unwrap();
            let (got, want) = (table.page_table(id).unwrap().len(), table.pages_held(seen, len, len + n));
            assert_eq!(got, want, "{len} and {n} tokens, window {window}, {keep_first} first, pages of {size}");
            table.commit(&[id], n).unwrap();
            len += n;
            assert_eq!(table.page_table(id).unwrap().len(), table.pages_held(seen, len, len));
        }
        freed += table.gap(id).unwrap().len();
        assert_eq!(table.pages_held(SequenceOptions { window: None, ..seen }, len, len), len.div_ceil(size));
    }
    assert!(freed > 1000);
}
