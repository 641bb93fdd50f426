//! Numbers that were once taken unchecked, one by one: what is refused, and with which words.

use crate::device::{zeros, World};
use crate::tiny::Tiny;
use latten::attention::AttentionOptions;
use latten::kv::tables::{PageTables, Region};
use latten::kv::{KvBatch, SeqView};
use latten::model::{
    generate_speculative, AttentionConfig, Config, Drafter, ExplicitPrefill, GenerateOptions, PrefillPath,
    SpeculativeOptions, WeightBytes,
};
use latten::nn::{Linear, MatrixTile, NormShape, RmsNorm, RopeKernel, RopeShape, Span, Weight};
use latten::reference as r;
use latten::reference::Routing;
use latten::rope::Rope;
use latten::rope::RopeScaling;
use latten::{
    CacheOptions, DType, Decode, DecodeArgs, Decoder, ErrorKind, Gqa, Gta, HeadLayout, KvSource, Mla, PagedKvCache,
    Pages, Result, RopePairs, Session, SessionOptions, SplitPolicy, Tensor, Tier,
};
use safetensors::tensor::Dtype;
use std::ops::ControlFlow;

/// The error's kind, and words of it.
macro_rules! refused {
    ($call:expr, $kind:pat $(, $word:expr)* $(,)?) => {{
        let error = $call.err().expect(concat!("not refused: ", stringify!($call)));
        assert!(matches!(error.kind(), $kind), "{}: {error:?}", stringify!($call));
        $(assert!(error.to_string().contains(&$word.to_string()), "{}: {error} lacks {}", stringify!($call), $word);)*
    }};
}

use ErrorKind::{Argument, Shape};

const MAX: usize = usize::MAX;

struct Own {
    batch: KvBatch,
    page_size: usize,
}

impl KvSource for Own {
    type Id = u32;
    fn batch(&self, _: &[u32]) -> Result<KvBatch> {
        Ok(self.batch.clone())
    }
    fn page_size(&self) -> usize {
        self.page_size
    }
    fn generation(&self) -> u64 {
        self.batch.generation
    }
}

#[test]
fn a_source_of_an_apps_own_is_checked() {
    let World { gpu, heads: [heads, ..], .. } = World::new();
    let view = SeqView { page_table_first: 0, q_token_first: 0, q_len: 1, kv_len: 9, gap_first: 0, gap_last: 4 };
    let batch = |sequences: &[SeqView]| KvBatch {
        sequences: sequences.to_vec(),
        page_table: vec![0, 1],
        slots: vec![0; sequences.len()],
        positions: vec![0; sequences.len()],
        ..KvBatch::default()
    };
    let own = |view: SeqView| Own { batch: batch(&[view]), page_size: 4 };
    for options in [
        AttentionOptions { window: Some(4), ..Default::default() },
        AttentionOptions { window: Some(4), tree: true, ..Default::default() },
    ] {
        let decode = Decode::with_options(&gpu, heads, DType::F16, options).unwrap();
        let plan = |own: &Own| decode.plan(own, &[0]).map(|plan| plan.items());
        assert_eq!(plan(&own(view)).unwrap(), 1);
        // Of one that adds nothing in this step the table is not read, wherever it is.
        let idle = SeqView { q_len: 0, page_table_first: u32::MAX, q_token_first: 77, ..view };
        let two = Own { batch: KvBatch { slots: vec![0], positions: vec![0], ..batch(&[idle, view]) }, page_size: 4 };
        assert_eq!(plan(&two).unwrap(), 1);
        refused!(plan(&own(SeqView { q_token_first: 5, ..view })), Argument { name: "q_token_first", .. }, 5);
        refused!(plan(&own(SeqView { q_token_first: u32::MAX, ..view })), Argument { .. }, u32::MAX);
        refused!(plan(&own(SeqView { q_len: 2, ..view })), Argument { name: "q_token_first", .. }, 2, "1 slots");
        refused!(plan(&own(SeqView { q_len: 10, ..view })), Argument { name: "kv_len", .. }, 10, 9);
        refused!(plan(&own(SeqView { kv_len: u32::MAX, ..view })), Argument { name: "page_table", .. }, "of 2 entries");
        refused!(plan(&own(SeqView { page_table_first: 1, ..view })), Argument { name: "page_table", .. }, "1..3");
        refused!(plan(&own(SeqView { gap_last: 6, ..view })), Argument { name: "gap_last", .. }, "0..6");
        refused!(plan(&own(SeqView { gap_first: 8, ..view })), Argument { name: "gap_last", .. }, "8..4");
        refused!(plan(&own(SeqView { gap_last: 12, ..view })), Argument { name: "gap_last", .. }, "first 8 tokens");
        let overlapping = Own { batch: batch(&[view, view]), page_size: 4 };
        refused!(plan(&overlapping), Argument { name: "q_token_first", .. }, "begins at query token 0", "ends at 1");
        for page_size in [0, 3, 8192, MAX] {
            refused!(plan(&Own { page_size, ..own(view) }), Argument { name: "page_size", .. }, page_size);
        }
        let mut short = own(view);
        short.batch.positions.clear();
        refused!(plan(&short), Argument { name: "positions", .. }, "0 of 1");
    }
    // Pages of another size than the plan's would be read as if they were its.
    let cache =
        PagedKvCache::new(&gpu, heads, CacheOptions::new(DType::F16, Pages { count: 8, size: 8, layers: 1 })).unwrap();
    let decode = Decode::new(&gpu, heads, DType::F16).unwrap().with_target_workgroups(MAX);
    let mut own = own(SeqView { gap_last: 0, kv_len: 5, ..view });
    own.batch.generation = cache.generation();
    let plan = decode.plan(&own, &[0]).unwrap();
    let q = zeros(&gpu, &[1, heads.q_heads(), heads.q_dim()], DType::F32);
    refused!(
        decode.run(DecodeArgs::new(&plan, &cache.layer(0).unwrap(), &q, 1.0)),
        Argument { name: "layer", .. },
        8,
        4
    );
    // A number of workgroups is taken into what can be counted with.
    for policy in [SplitPolicy::Auto, SplitPolicy::Count(MAX), SplitPolicy::FixedTokens(MAX)] {
        let decode = Decode::new(&gpu, heads, DType::F16).unwrap().with_policy(policy).with_target_workgroups(MAX);
        decode.plan(&own, &[0]).unwrap();
    }
}

#[test]
fn regions_of_another_array_of_page_tables_are_refused() {
    let (mut one, mut other) = (PageTables::default(), PageTables::default());
    let mut region = Region::default();
    one.write(&mut region, &[1; 100], 0).unwrap();
    assert_eq!(other.write(&mut region, &[2; 100], 0), None);
    assert!(other.words().is_empty() && one.words()[..100] == [1; 100]);
}

#[test]
fn frequencies_are_of_widths_that_layouts_have() {
    for width in [MAX, MAX - 1, 1 << 44, (1 << 14) + 2, 7] {
        refused!(Rope::new(width, 1e4, RopePairs::Half), Argument { name: "rope_dim", .. }, width);
        refused!(RopeScaling::None.inv_freq(width, 1e4), Argument { name: "rope_dim", .. }, width);
    }
    for width in [MAX, 1 << 44] {
        refused!(r::inv_freq(1e4, width), Shape { .. }, width);
        refused!(r::Rope::new(1e4, width, r::RopePairs::Half), Shape { .. }, width);
    }
    for theta in [f64::NAN, 0.0, -2.0] {
        refused!(Rope::new(8, theta, RopePairs::Half), Argument { name: "theta", .. }, theta);
    }
    assert!(Rope::new(0, 1e4, RopePairs::Half).unwrap().inv_freq.is_empty());
}

/// The loop of the README, with its `Rope`, for every variant.
#[test]
fn a_layout_says_what_it_rotates() {
    let gpu = World::new().gpu;
    let gqa = HeadLayout::gqa(Gqa { q_heads: 4, kv_heads: 2, head_dim: 8 }).unwrap();
    let gta = |rope_dim| HeadLayout::gta(Gta { q_heads: 4, kv_heads: 2, head_dim: 8, rope_dim }).unwrap();
    let mla = |rope_dim| HeadLayout::mla(Mla { q_heads: 4, latent_dim: 8, rope_dim }).unwrap();
    let options = CacheOptions::new(DType::F16, Pages { count: 2, size: 4, layers: 1 });
    for (heads, rotated) in [(gqa, 8), (gta(4), 4), (gta(0), 0), (mla(2), 2), (mla(0), 0)] {
        assert_eq!(heads.rotated_dim(), rotated, "{heads:?}");
        let rope = Some(Rope::new(heads.rotated_dim(), 1e4, RopePairs::Half).unwrap());
        PagedKvCache::new(&gpu, heads, CacheOptions { rope, ..options.clone() }).unwrap();
    }
    let error = |heads: HeadLayout, pairs| {
        let rope = Some(Rope { inv_freq: vec![1.0; 3], pairs });
        PagedKvCache::new(&gpu, heads, CacheOptions { rope, ..options.clone() }).err().unwrap().to_string()
    };
    assert_eq!(
        error(gqa, RopePairs::Half),
        "inv_freq has shape (3), wanted (4), half of head_dim 8: GQA rotates the whole key of a head; \
         HeadLayout::rotated_dim() is what Rope::new takes"
    );
    assert!(error(gta(4), RopePairs::Half).contains("wanted (2), half of rope_dim 4"));
    assert!(error(gta(0), RopePairs::Half).contains("wanted (0), none: this layout has no rope key"));
    assert!(error(gqa, RopePairs::None).contains("wanted (0), none with RopePairs::None"));
}

#[test]
fn the_reference_counts_before_it_reads() {
    refused!(r::pages_rows(&[4], 0, &[0], 1, &[0.0; 4]), Shape { .. });
    refused!(r::pages_rows(&[0], MAX, &[0], MAX, &[0.0; 4]), Shape { .. });
    refused!(r::pages_rows(&[MAX, 2], 1, &[0], 1, &[0.0; 4]), Shape { .. });
    refused!(r::pages_rows(&[2], MAX, &[0], 1, &[0.0; 4]), Shape { .. });
    refused!(r::pages_rows(&[2], 2, &[1], 1, &[0.0; 4]), Argument { name: "pages", .. }, 1);
    assert_eq!(r::pages_rows(&[1, 1], 2, &[0], 2, &[1.0, 2.0, 3.0, 4.0]).unwrap(), [1.0, 3.0, 2.0, 4.0]);
    refused!(r::merge(&[], 1 << 61, 1), Shape { name: "rows", .. });
    refused!(r::merge(&[], 1, MAX), Shape { name: "rows", .. });
    assert_eq!(r::merge(&[], 2, 3).unwrap().out, [0.0; 6]);
    refused!(r::attend(&[], &[], MAX), Shape { name: "v_dim", .. });
    let (groups, factor) = (5, 1.0);
    let none = Routing { top: 0, groups, top_groups: 1, group_best: 1, sigmoid: false, normalise: false, factor };
    refused!(r::route(&[], &[], &none), Shape { name: "logits", .. }, groups);
}

#[test]
fn shapes_of_nn_fit_32_bits() {
    let gpu = World::new().gpu;
    let gain = zeros(&gpu, &[1, 4], DType::F32);
    for tail in [MAX - 3, MAX, 1 << 32] {
        let shape = NormShape { groups: 1, dim: 4, tail, eps: 1e-5 };
        refused!(RmsNorm::new(&gpu, &gain, shape), Argument { name: "shape", .. }, tail, "1 * 4");
    }
    for (heads, copy_dim, rope_dim) in [(4, MAX, 4), (MAX, 4, 4), (4, 4, MAX - 1), (1 << 31, 1, 2)] {
        let shape = RopeShape { heads, copy_dim, rope_dim, pairs: RopePairs::Half };
        refused!(RopeKernel::new(&gpu, shape), Argument { name: "shape", .. });
    }
    let weight = Weight::new(&gpu, [1, 4, 4], &[1.0; 16], DType::F32).unwrap();
    let linear = Linear::new(&gpu, &weight, None).unwrap();
    refused!(linear.clone().with_tail(MAX - 1, RopePairs::Half), Argument { name: "rope_dim", .. }, MAX - 1);
    assert_eq!(linear.clone().with_tail(2, RopePairs::Half).unwrap().outputs(), 6);
    let tile = MatrixTile { row_tiles: 1, out_tiles: 2, row_groups: 1, out_groups: 4, step_words: 8, ahead: 1 << 63 };
    refused!(linear.with_matrix_tile(tile), Argument { name: "tile", .. });
    for shape in [[1, 1, MAX], [1, MAX, 1], [MAX, 1, 1]] {
        refused!(Weight::from_heads(&gpu, shape, DType::F32, |_| Ok(vec![])), Argument { name: "shape", .. }, MAX);
    }
    // What was written past its rows: two of four, and a tail that wrapped.
    let (x, y) = (zeros(&gpu, &[4, 8], DType::F32), zeros(&gpu, &[4, 8], DType::F32));
    let norm = RmsNorm::new(&gpu, &gain, NormShape { groups: 1, dim: 4, tail: 5, eps: 1e-5 }).unwrap();
    refused!(norm.run(2, Span::of(&x), Span::of(&y)), Argument { name: "y", .. }, "overlaps itself");
}

/// A config with a change.
fn with(config: &Config, change: impl FnOnce(&mut Config)) -> Config {
    let mut changed = config.clone();
    change(&mut changed);
    changed
}

fn tiny(variant: &str) -> (Config, Vec<u8>) {
    let tiny = Tiny::new(variant, 5);
    (Config::parse("config.json", &tiny.config_json()).unwrap(), tiny.bytes(Dtype::F32))
}

#[test]
fn fields_of_a_config_are_those_that_a_file_could_have() {
    let gpu = World::new().gpu;
    let (gta, bytes) = tiny("gta");
    let (gla, _) = tiny("gla");
    let AttentionConfig::Latent { latent_heads, latent_dim, q_latent_dim, rope_dim } = gla.attention else { panic!() };
    let latent = |latent_dim| AttentionConfig::Latent { latent_heads, latent_dim, q_latent_dim, rope_dim };
    assert!(latent(latent_dim) == gla.attention);
    for (words, config) in [
        ("rope_dim: 8 exceeds", with(&gta, |c| c.attention = AttentionConfig::Gta { kv_heads: 2, rope_dim: 8 })),
        ("q_heads: 9223372036854775808", with(&gta, |c| c.q_heads = 1 << 63)),
        (
            "head_dim: 9223372036854775808",
            with(&gta, |c| (c.attention, c.head_dim) = (AttentionConfig::Gqa { kv_heads: 2 }, 1 << 63)),
        ),
        ("latent_dim: 18446744073709551615", with(&gla, |c| c.attention = latent(MAX))),
        ("head_dim: 18446744073709551615", with(&gla, |c| c.head_dim = MAX)),
        ("v_head_dim: 18446744073709551615", with(&gla, |c| c.v_head_dim = MAX)),
        ("v_head_dim: 4, of gta it is head_dim, 6", with(&gta, |c| c.v_head_dim = 4)),
        ("hidden_size: 18446744073709551612", with(&gta, |c| c.hidden_size = MAX - 3)),
        ("hidden_size: 18 is not a multiple of 4", with(&gta, |c| c.hidden_size = 18)),
        ("intermediate_size: 0", with(&gta, |c| c.intermediate_size = 0)),
        ("layers: 18446744073709551615", with(&gta, |c| c.layers = MAX)),
        ("vocab_size: 0", with(&gta, |c| c.vocab_size = 0)),
        ("max_positions: 0", with(&gta, |c| c.max_positions = 0)),
        ("theta: ", with(&gta, |c| c.rope_theta = f64::NAN)),
    ] {
        let _ = (config.softmax_scale(), config.prefill_break_even(), config.rope_dim());
        refused!(
            Decoder::from_bytes(&gpu, config, WeightBytes { name: "w", bytes: &bytes }, DType::F16),
            Argument { .. },
            words
        );
    }
}

#[test]
fn a_prompt_of_nothing_and_scratch_for_everything() {
    let gpu = World::new().gpu;
    let (config, bytes) = tiny("gla");
    let decoder =
        Decoder::from_bytes(&gpu, config.clone(), WeightBytes { name: "w", bytes: &bytes }, DType::F16).unwrap();
    let session = || Session::new(&decoder, SessionOptions::default()).unwrap();
    let (mut target, mut draft) = (session(), session());
    let options =
        SpeculativeOptions { generate: GenerateOptions { max_new_tokens: 5, ..Default::default() }, max_draft: 2 };
    for drafter in [Drafter::Model(&mut draft), Drafter::Lookup { max_ngram: 2, min_ngram: 1 }] {
        let made = generate_speculative(&mut target, drafter, &[], options, |_| ControlFlow::Continue(()));
        refused!(pollster::block_on(made), Argument { name: "prompt", .. }, 0);
    }
    let heads = config.layout().unwrap();
    let cache =
        PagedKvCache::new(&gpu, heads, CacheOptions::new(DType::F16, Pages { count: 8, size: 4, layers: 1 })).unwrap();
    let decode = Decode::new(&gpu, heads, DType::F16).unwrap();
    let prefill = || ExplicitPrefill::new(&gpu, &config, &cache, &decode, PrefillPath::Explicit).unwrap();
    for tokens in [MAX, MAX / 2, (1 << 24) + 1] {
        refused!(prefill().with_scratch_tokens(&decode, tokens), Argument { name: "tokens", .. }, tokens);
    }
    prefill().with_scratch_tokens(&decode, 70).unwrap();
    refused!(Tensor::zeros(&gpu, &[MAX, 2], DType::F32), Shape { .. });
}

/// What an app writes into its settings it can read from them.
#[test]
fn names_of_dtypes_and_tiers_are_read_back() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4, DType::U32] {
        assert_eq!(dtype.to_string().parse::<DType>().unwrap(), dtype);
    }
    for tier in [Tier::Portable, Tier::Subgroup, Tier::Matrix] {
        assert_eq!(tier.to_string().parse::<Tier>().unwrap(), tier);
    }
    refused!("F16".parse::<DType>(), Argument { name: "dtype", .. }, "\"F16\"", "f16");
    refused!("".parse::<Tier>(), Argument { name: "tier", .. }, "portable");
}

/// Kernels and caches say what they are of, and not all that they hold.
#[test]
fn what_holds_much_prints_little() {
    let gpu = World::new().gpu;
    let heads = HeadLayout::gqa(Gqa { q_heads: 4, kv_heads: 2, head_dim: 8 }).unwrap();
    let options = CacheOptions::new(DType::F16, Pages { count: 500, size: 4, layers: 1 });
    let mut cache = PagedKvCache::new(&gpu, heads, options).unwrap();
    let ids: Vec<_> = (0..400).map(|_| cache.insert()).collect();
    cache.reserve(&ids, 1).unwrap();
    let texts = [format!("{cache:?}"), format!("{:?}", Decode::new(&gpu, heads, DType::F16).unwrap())];
    assert!(texts.iter().all(|text| text.contains("F16") && text.len() < 1000), "{texts:?}");
}
