//! What must not matter, bit for bit: memory that nobody owns, repetition, and (with FixedTokens) the rest of the batch.

use crate::case::{Case, Sequence};
use crate::common::{bits, gpu, layouts, narrow_layouts, small, wait, Rng};
use crate::integers::INTEGERS;
use latten::{CacheOptions, DType, Decode, DecodeArgs, PagedKvCache, Pages, SplitPolicy, Tensor};

fn result_bits(s: &Sequence) -> (Vec<u32>, Vec<u32>) {
    (bits(&s.out), bits(&s.lse))
}

/// Every layout and dtype, all classes in one batch, members with nothing to ask and with nothing at all: within the
/// bounds of the reference, and bit-equal whether unowned memory holds NaN, infinities, or zeros.
#[test]
fn unowned_memory_does_not_matter() {
    for (i, heads) in layouts().into_iter().enumerate() {
        // i8, i4: states of two spans, whose scales take more than a word, and states with a rope key.
        let dtypes = [DType::F32, DType::F16, DType::I8, DType::I4];
        for dtype in dtypes.into_iter().filter(|d| !INTEGERS.contains(d) || [0, 3].contains(&i)) {
            let lengths = vec![(1, 1), (37, 1), (5, 0), (200, 1), (0, 0), (64, 3), (65, 5), (20, 16), (16, 16)];
            let case = Case { heads, dtype, page_size: 16, lengths, policy: SplitPolicy::FixedTokens(64), seed: 7 };
            let clean = case.run_poisoned(gpu(), 0);
            let e = case.compare_all(&clean);
            println!("{heads:?} {dtype}: {e:?}");
            // 0xff: NaN in all floats, scales among them. 0x7c: 5e36 in f32, NaN in f16, 124 in i8, 7 and -4 in i4.
            for poison in [0xff, 0x7c] {
                let poisoned = case.run_poisoned(gpu(), poison);
                for (i, (a, b)) in clean.iter().zip(&poisoned).enumerate() {
                    assert!(result_bits(a) == result_bits(b), "{case:?} sequence {i}: differs under {poison:#x}");
                }
            }
        }
    }
}

#[test]
fn a_thousand_repeats_give_the_same_bits() {
    let gpu = gpu();
    let (heads, size) = (small(), 8);
    let mut rng = Rng(11);
    let mut cache =
        PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F16, Pages { count: 64, size, layers: 1 })).unwrap();
    let ids = [cache.insert(), cache.insert(), cache.insert()];
    for (id, n) in ids.iter().zip([150, 3, 41]) {
        cache.reserve(&[*id], n).unwrap();
        let kv = Tensor::from_slice(gpu, &[n, heads.kv_dim()], &rng.values(n * heads.kv_dim()), DType::F32).unwrap();
        cache.append(0, &[*id], &kv).unwrap();
        cache.commit(&[*id], n - 1).unwrap();
        cache.reserve(&[*id], 1).unwrap();
    }
    let tokens = ids.len();
    let decode = Decode::new(gpu, heads, DType::F16).unwrap().with_policy(SplitPolicy::Count(3));
    let plan = decode.plan(&cache, &ids).unwrap();
    assert!(plan.is_split());
    let q = rng.values(tokens * heads.q_heads() * heads.q_dim());
    let q = Tensor::from_slice(gpu, &[tokens, heads.q_heads(), heads.q_dim()], &q, DType::F32).unwrap();
    let layer = cache.layer(0).unwrap();
    let mut first = None;
    for repeat in 0..1000 {
        let result = decode.run(DecodeArgs::new(&plan, &layer, &q, 0.3)).unwrap();
        let got = (bits(&wait(gpu.download(&result.out)).unwrap()), bits(&wait(gpu.download(&result.lse)).unwrap()));
        assert!(*first.get_or_insert_with(|| got.clone()) == got, "repeat {repeat} differs from the first");
    }
}

/// FixedTokens promises a result that does not depend on the batch: alone, among others, in another order, and with
/// others whose rows are of another class.
#[test]
fn fixed_tokens_does_not_see_the_batch() {
    let heads = narrow_layouts()[4];
    for dtype in [DType::F32, DType::F16, DType::I8, DType::I4] {
        let sequence = |kv_len: usize, q_len: usize| {
            let mut rng = Rng(kv_len as u64 * 31 + q_len as u64);
            let rows = rng.values(kv_len * heads.kv_dim());
            let q = rng.values(q_len * heads.q_heads() * heads.q_dim());
            Sequence { rows, q, ..Default::default() }
        };
        let decode = Decode::new(gpu(), heads, dtype).unwrap().with_policy(SplitPolicy::FixedTokens(64));
        let run = |lengths: &[(usize, usize)], page_size| {
            let inputs = lengths.iter().map(|&(kv, q)| sequence(kv, q)).collect();
            let case = Case {
                heads,
                dtype,
                page_size,
                lengths: lengths.to_vec(),
                policy: SplitPolicy::FixedTokens(64),
                seed: 5,
            };
            case.run(gpu(), &decode, inputs, 0xff)
        };
        for target in [(300, 1), (130, 3), (64, 1), (97, 16)] {
            let alone = run(&[target], 16).remove(0);
            let batches = [
                vec![target, (50, 1), (511, 1)],
                vec![(511, 1), (50, 1), target],
                vec![(77, 16), target, (9, 3), (5, 0)],
                vec![(1, 1), (640, 2), (33, 16), target, (12, 12)],
            ];
            for batch in batches {
                let at = batch.iter().position(|l| *l == target).unwrap();
                let among = run(&batch, 16).swap_remove(at);
                assert!(result_bits(&alone) == result_bits(&among), "{heads:?} {dtype} {target:?} in {batch:?}");
            }
            // Nor where its pages lie, nor how large they are.
            let paged = run(&[target], 1).remove(0);
            assert!(result_bits(&alone) == result_bits(&paged), "{heads:?} {dtype} {target:?} with pages of 1");
        }
    }
}
