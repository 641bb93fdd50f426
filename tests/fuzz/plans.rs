//! Plans of a cache manager of the app's own, whose numbers may be anything.

use crate::device::{zeros, World};
use crate::numbers::Gen;
use latten::attention::AttentionOptions;
use latten::kv::{KvBatch, SeqView};
use latten::{CacheOptions, DType, Decode, DecodeArgs, KvSource, PagedKvCache, Pages, Result, SplitPolicy};

struct Own {
    batch: KvBatch,
    page_size: usize,
}

impl KvSource for Own {
    type Id = ();
    fn batch(&self, _: &[()]) -> Result<KvBatch> {
        Ok(self.batch.clone())
    }
    fn page_size(&self) -> usize {
        self.page_size
    }
    fn generation(&self) -> u64 {
        self.batch.generation
    }
}

/// A batch that fits.
fn batch(g: &mut Gen, page_size: usize, most_new: usize) -> KvBatch {
    let mut batch = KvBatch::default();
    for _ in 0..1 + g.below(3) {
        let q_len = g.below(most_new) + usize::from(g.below(8) > 0);
        let before = match g.below(6) {
            0 => 0,
            1 => g.below(4000),
            2 if page_size >= 64 => g.below(200_000),
            _ => g.below(100),
        };
        let gap_last = if g.one_in(4) { before / page_size * page_size } else { 0 };
        let gap_first = if g.one_in(2) { gap_last } else { 0 };
        let pages = (before + q_len - (gap_last - gap_first)).div_ceil(page_size);
        batch.sequences.push(SeqView {
            page_table_first: batch.page_table.len() as u32,
            q_token_first: batch.slots.len() as u32,
            q_len: q_len as u32,
            kv_len: (before + q_len) as u32,
            gap_first: gap_first as u32,
            gap_last: gap_last as u32,
        });
        batch.page_table.extend((0..pages).map(|page| page as u32 % 8));
        batch.slots.extend((0..q_len).map(|_| 0));
    }
    batch.positions = batch.slots.clone();
    batch
}

/// One number of it that does not.
fn change(g: &mut Gen, own: &mut Own) {
    let (which, word) = (g.below(own.batch.sequences.len()), g.word());
    let view = &mut own.batch.sequences[which];
    match g.below(11) {
        0 => view.page_table_first = word,
        1 => view.q_token_first = word,
        2 => view.q_len = word,
        3 => view.kv_len = word,
        4 => view.gap_first = word,
        5 => view.gap_last = word,
        6 => own.page_size = g.size(),
        7 => {
            let left = own.batch.page_table.len().saturating_sub(1);
            own.batch.page_table.truncate(left);
        }
        8 => own.batch.slots.push(word),
        9 => own.batch.positions.push(word),
        _ => own.batch.page_table.fill(word),
    }
}

fn options(g: &mut Gen) -> AttentionOptions {
    let none = AttentionOptions::default();
    // Windows are constants of kernels, so that each of them is compiled.
    match g.below(10) {
        0..=2 => none,
        3 => AttentionOptions { window: Some(8), ..none },
        4 => AttentionOptions { window: Some(8), keep_first: 4, ..none },
        5 => AttentionOptions { window: Some(usize::MAX), keep_first: usize::MAX, ..none },
        6 => AttentionOptions { tree: true, ..none },
        7 => AttentionOptions { tree: true, window: Some(8), keep_first: 4, ..none },
        8 => AttentionOptions { softcap: Some(g.pick(&[f32::NAN, 0.0, f32::INFINITY, 50.0])), ..none },
        _ => AttentionOptions { window: g.pick(&[None, Some(0)]), keep_first: g.size(), ..none },
    }
}

fn policy(g: &mut Gen) -> SplitPolicy {
    match g.below(4) {
        0 => SplitPolicy::Off,
        1 => SplitPolicy::FixedTokens(g.size()),
        2 => SplitPolicy::Count(g.size()),
        _ => SplitPolicy::Auto,
    }
}

pub fn case(g: &mut Gen, world: &World) {
    let (gpu, heads) = (&world.gpu, g.pick(&world.heads));
    let options = options(g);
    let made = Decode::with_options(gpu, heads, DType::F16, options);
    let Some(decode) = g.call("Decode::with_options", made) else { return };
    let (policy, workgroups) = (policy(g), g.near(64));
    let decode = decode.with_policy(policy).with_target_workgroups(workgroups);
    let cache =
        PagedKvCache::new(gpu, heads, CacheOptions::new(DType::F16, Pages { count: 8, size: 4, layers: 1 })).unwrap();
    let page_size = g.pick(&[1, 4, 4, 64, 4096]);
    let mut own = Own { batch: batch(g, page_size, if options.tree { 60 } else { 90 }), page_size };
    own.batch.generation = cache.generation();
    if g.one_in(2) {
        change(g, &mut own);
    }
    let tokens = own.batch.tokens();
    let plan = if g.one_in(if options.tree { 2 } else { 20 }) {
        let chain = own.batch.sequences.iter().flat_map(|s| (0..s.q_len.min(99)).map(|m| u64::MAX >> (63 - m.min(63))));
        let mut masks: Vec<u64> = chain.take(tokens).collect();
        if g.one_in(4) {
            let at = g.below(masks.len().max(1));
            masks.get_mut(at).into_iter().for_each(|mask| *mask = g.bits());
            masks.truncate(g.len(tokens));
        }
        g.call("Decode::plan_tree", decode.plan_tree(&own, &[], &masks))
    } else {
        g.call("Decode::plan of an own source", decode.plan(&own, &[]))
    };
    let Some(plan) = plan else { return };
    assert!(plan.tokens() == tokens && plan.items() <= plan.workgroups());
    let layer = cache.layer(0).unwrap();
    let q = zeros(gpu, &[g.len(tokens).max(1), heads.q_heads(), heads.q_dim()], DType::F32);
    g.call("Decode::run of an own source", decode.run(DecodeArgs::new(&plan, &layer, &q, 0.5)));
    gpu.submit().unwrap();
}
