//! Decode over the shape table of the design: every variant, ragged batches, all policies.

use crate::support::{gpu, Case};
use latten::{DType, Gla, Gqa, Gta, HeadLayout, Mla, SplitPolicy};

fn variants() -> Vec<(&'static str, HeadLayout)> {
    vec![
        ("mha", HeadLayout::mha(3, 32).unwrap()),
        ("gqa", HeadLayout::gqa(Gqa { q_heads: 8, kv_heads: 2, head_dim: 64 }).unwrap()),
        ("mqa", HeadLayout::mqa(9, 48).unwrap()),
        ("gta", HeadLayout::gta(Gta { q_heads: 8, kv_heads: 4, head_dim: 64, rope_dim: 32 }).unwrap()),
        ("gla-2", HeadLayout::gla(Gla { q_heads: 16, latent_heads: 2, latent_dim: 128, rope_dim: 32 }).unwrap()),
        ("mla", HeadLayout::mla(Mla { q_heads: 16, latent_dim: 256, rope_dim: 64 }).unwrap()),
    ]
}

#[test]
fn every_variant_and_dtype_matches_the_reference() {
    for (name, heads) in variants() {
        for dtype in [DType::F32, DType::F16] {
            let lengths = vec![(1, 1), (37, 1), (200, 1), (64, 3), (65, 5)];
            let case = Case { heads, dtype, page_size: 16, lengths, policy: SplitPolicy::FixedTokens(64), seed: 7 };
            let e = case.check(gpu());
            println!("{name} {dtype}: nmse {:.1e}, out {:.1e}, lse {:.1e}", e.nmse, e.out, e.lse);
        }
    }
}

#[test]
#[ignore]
fn compile_times() {
    for (name, heads) in variants() {
        for dtype in [DType::F32, DType::F16] {
            let t = std::time::Instant::now();
            let d = latten::Decode::new(gpu(), heads, dtype).unwrap();
            println!("{name} {dtype} new {:?}", t.elapsed());
            let lengths = vec![(200, 1)];
            let case = Case { heads, dtype, page_size: 16, lengths, policy: SplitPolicy::FixedTokens(64), seed: 7 };
            for _ in 0..2 {
                let t = std::time::Instant::now();
                case.run_with(gpu(), &d, 0);
                println!("   run {:?}", t.elapsed());
            }
        }
    }
}
