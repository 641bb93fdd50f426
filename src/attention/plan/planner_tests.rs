//! What only the crate can reach: the plan buffer's tail, the scratch's size, and the cost of a check.

use super::*;
use crate::attention::decode::DecodeArgs;
use crate::attention::plan::work::plan;
use crate::cache::{CacheOptions, PagedKvCache, Pages, SeqId};
use crate::gpu::{DType, Gpu, Tensor};
use crate::kv::{Gta, HeadLayout, KvBatch};
use proptest::prelude::*;

fn small() -> HeadLayout {
    HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 16, rope_dim: 8 }).unwrap()
}

/// A source whose page tables do not stay.
struct Own<'a>(&'a PagedKvCache);

impl KvSource for Own<'_> {
    type Id = SeqId;
    fn batch(&self, ids: &[SeqId]) -> Result<KvBatch> {
        self.0.batch(ids)
    }
    fn page_size(&self) -> usize {
        self.0.page_size()
    }
    fn generation(&self) -> u64 {
        self.0.generation()
    }
}

/// Beyond its last page-table entry a plan buffer holds what an earlier plan left, at worst 0x7fffffff everywhere; and before
/// page tables that stay, behind the plan's other words.
#[test]
fn the_tail_of_a_plan_buffer_does_not_matter() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    let heads = small();
    let mut cache =
        PagedKvCache::new(&gpu, heads, CacheOptions::new(DType::F32, Pages { count: 64, size: 8, layers: 1 })).unwrap();
    let ids = [cache.insert(), cache.insert(), cache.insert()];
    for (id, n) in ids.iter().zip([200, 5, 33]) {
        cache.reserve(&[*id], n).unwrap();
        let rows: Vec<f32> = (0..n * heads.kv_dim()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let kv = Tensor::from_slice(&gpu, &[n, heads.kv_dim()], &rows, DType::F32).unwrap();
        cache.append(0, &[*id], &kv).unwrap();
        cache.commit(&[*id], n - 1).unwrap();
        cache.reserve(&[*id], 1).unwrap();
    }
    let q: Vec<f32> = (0..3 * 4 * heads.q_dim()).map(|i| (i % 17) as f32 / 16.0).collect();
    let q = Tensor::from_slice(&gpu, &[3, 4, heads.q_dim()], &q, DType::F32).unwrap();
    let run = |tail: u32, policy, stay: bool| {
        let decode = Decode::new(&gpu, heads, DType::F32).unwrap().with_policy(policy);
        let used = decode.plan(&Own(&cache), &ids).unwrap();
        let buffer = used.buffer.as_ref().unwrap().buffer.clone();
        gpu.write(&buffer, 0, &tail.to_le_bytes().repeat(buffer.size_bytes() as usize / 4)).unwrap();
        drop(used);
        let plan = if stay { decode.plan(&cache, &ids) } else { decode.plan(&Own(&cache), &ids) }.unwrap();
        assert_eq!(plan.buffer.as_ref().unwrap().buffer.id(), buffer.id(), "another buffer");
        let got = decode.run(DecodeArgs::new(&plan, &cache.layer(0).unwrap(), &q, 0.25)).unwrap();
        let values = pollster::block_on(gpu.download::<f32>(&got.out)).unwrap();
        values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    for policy in [SplitPolicy::Off, SplitPolicy::FixedTokens(32)] {
        let clean = run(0, policy, false);
        for stay in [false, true] {
            for tail in [0, 0x7fff_ffff, u32::MAX] {
                assert!(clean == run(tail, policy, stay), "{policy:?} {tail:x} {stay}");
            }
        }
    }
}

/// The host checks page tables; should one be overwritten all the same, the kernel stays in the pool's last page.
#[test]
fn a_corrupted_page_table_stays_inside_the_pool() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    let heads = small();
    let mut cache =
        PagedKvCache::new(&gpu, heads, CacheOptions::new(DType::F32, Pages { count: 6, size: 8, layers: 1 })).unwrap();
    let id = cache.insert();
    cache.reserve(&[id], 41).unwrap();
    let rows: Vec<f32> = (0..41 * heads.kv_dim()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    let kv = Tensor::from_slice(&gpu, &[41, heads.kv_dim()], &rows, DType::F32).unwrap();
    cache.append(0, &[id], &kv).unwrap();
    cache.commit(&[id], 40).unwrap();
    cache.reserve(&[id], 1).unwrap();
    let q = Tensor::from_slice(&gpu, &[1, 4, heads.q_dim()], &vec![0.5; 4 * heads.q_dim()], DType::F32).unwrap();
    let decode = Decode::new(&gpu, heads, DType::F32).unwrap().with_policy(SplitPolicy::Off);
    let run = |page: u32| {
        let plan = decode.plan(&cache, &[id]).unwrap();
        let buffer = plan.buffer.as_ref().unwrap();
        let second_page = 4 * (buffer.pages_first as u64 + 1); // of the only table
        gpu.write(&buffer.buffer, second_page, &page.to_le_bytes()).unwrap();
        let got = decode.run(DecodeArgs::new(&plan, &cache.layer(0).unwrap(), &q, 0.25)).unwrap();
        pollster::block_on(gpu.download::<f32>(&got.out)).unwrap()
    };
    let last = run(5);
    assert_ne!(last, run(1));
    for page in [6, 1 << 20, 0x7fff_ffff, u32::MAX] {
        assert_eq!(run(page), last, "page {page}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Auto never needs more scratch than the first step of a batch reserves.
    #[test]
    fn auto_fits_its_first_reservation(
        lengths in prop::collection::vec((1u32..200_000, 0u32..6), 1..40),
        target in 1usize..2000,
        groups in 1usize..9,
        per_group in 1usize..70,
    ) {
        let sequences: Vec<SeqView> = lengths
            .iter()
            .map(|&(kv_len, q_len)| {
                let q_len = q_len.min(kv_len);
                SeqView { page_table_first: 0, q_token_first: 0, q_len, kv_len, gap_first: 0, gap_last: 0 }
            })
            .collect();
        let shape = PlanShape {
            heads_per_group: per_group,
            groups,
            v_dim: 64,
            bytes_per_token: 256,
            rope_bytes: 0,
            row_tiles: vec![per_group.min(64), (4 * per_group).min(64) + 1, 66],
            groups_per_workgroup: vec![groups, if groups.is_multiple_of(2) { 2 } else { 1 }, 1],
            room: vec![groups, 1, 8],
            squads: vec![1; 3],
            short_tokens: vec![0; 3],
            short_workgroups: vec![1; 3],
            most_tokens: vec![u64::MAX; 3],
            target_workgroups: target,
            token_tile: 32,
            window: 0,
            keep_first: 0,
        };
        let list = plan(&sequences, &shape, SplitPolicy::Auto).unwrap();
        prop_assert!(list.partial_rows <= most_partial_rows(&list, &shape), "{} rows", list.partial_rows);
    }
}
