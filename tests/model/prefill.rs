//! Prompts in the explicit form: the same as absorbed, and as the reference; whole models say the same either way.

use crate::assert_kind;
use crate::common::checkout::checkout;
use crate::common::*;
use latten::model::{
    generate, Attention, AttentionArgs, AttentionConfig, Config, Decoder, ExplicitPrefill, GenerateOptions,
    LoadOptions, PrefillPath, Session, SessionOptions, WeightBytes,
};
use latten::reference;
use latten::reference::{Angles, Form, GlaWeights, LayerConfig, RopePairs};
use latten::{
    AttentionOptions, CacheOptions, DType, Decode, ErrorKind, KvSource, PagedKvCache, Pages, SeqId, SequenceOptions,
    SplitPolicy, Tensor, Tier,
};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const HIDDEN: usize = 24;
const Q_LATENT: usize = 20;

/// The numbers of a layer.
#[derive(Clone, Copy)]
struct Shape {
    q_heads: usize,
    groups: usize,
    latent: usize,
    head: usize,
    v_head: usize,
    rope: usize,
    interleaved: bool,
    q_latent: bool,
    biases: bool,
}

const GLA_2: Shape = Shape {
    q_heads: 4,
    groups: 2,
    latent: 20,
    head: 10,
    v_head: 10,
    rope: 4,
    interleaved: false,
    q_latent: true,
    biases: true,
};
const MLA: Shape = Shape { q_heads: 3, groups: 1, latent: 42, interleaved: true, ..GLA_2 };
const GLA_4: Shape = Shape { groups: 4, latent: 12, biases: false, ..GLA_2 };
/// As DeepSeek-V2-Lite: queries without a latent, values of another width. Multiples of 16, for matrix units.
const LITE: Shape = Shape {
    q_heads: 2,
    groups: 1,
    latent: 64,
    head: 32,
    v_head: 128,
    rope: 16,
    interleaved: true,
    q_latent: false,
    biases: false,
};

struct Layer {
    config: Config,
    tensors: BTreeMap<&'static str, (Vec<usize>, Vec<f32>)>,
}

impl Shape {
    fn layer(&self, seed: u64) -> Layer {
        let Shape { q_heads, groups, latent, head, v_head, rope, .. } = *self;
        let attention = AttentionConfig::Latent {
            latent_heads: groups,
            latent_dim: latent,
            q_latent_dim: self.q_latent.then_some(Q_LATENT),
            rope_dim: rope,
        };
        let mut config = Config::new(attention, HIDDEN, q_heads, head);
        (config.v_head_dim, config.rope_interleaved, config.max_positions) = (v_head, self.interleaved, 4096);
        let mut rng = Rng(seed);
        let mut tensors = BTreeMap::new();
        let mut add = |name, shape: &[usize]| {
            let count = shape.iter().product();
            let values = match shape.len() {
                1 if name == "q_a_layernorm.weight" => rng.normals(count, 0.2).iter().map(|v| 1.0 + v).collect(),
                1 => rng.normals(count, 0.5),
                _ if name == "kv_a_layernorm.weight" => rng.normals(count, 0.2).iter().map(|v| 1.0 + v).collect(),
                // Scores of some size, so that softmaxes are not flat.
                _ => rng.normals(count, 1.5 / (shape[1] as f32).sqrt()),
            };
            tensors.insert(name, (shape.to_vec(), values));
        };
        let (q_width, kv_width, up) = (q_heads * (head + rope), groups * latent + rope, q_heads * (head + v_head));
        match self.q_latent {
            true => {
                add("q_a_proj.weight", &[Q_LATENT, HIDDEN]);
                add("q_a_layernorm.weight", &[Q_LATENT]);
                add("q_b_proj.weight", &[q_width, Q_LATENT]);
            }
            false => add("q_proj.weight", &[q_width, HIDDEN]),
        }
        add("kv_a_proj_with_mqa.weight", &[kv_width, HIDDEN]);
        add("kv_a_layernorm.weight", &[groups, latent]);
        add("kv_b_proj.weight", &[up, latent]);
        add("o_proj.weight", &[HIDDEN, q_heads * v_head]);
        if self.biases {
            add("q_a_proj.bias", &[Q_LATENT]);
            add("q_b_proj.bias", &[q_width]);
            add("kv_a_proj_with_mqa.bias", &[kv_width]);
            add("kv_b_proj.bias", &[up]);
        }
        Layer { config, tensors }
    }
}

impl Layer {
    fn attention(&self) -> Attention {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let tensors: Vec<_> = self.tensors.iter().map(|(name, (shape, v))| (name, shape.clone(), bytes(v))).collect();
        let views = tensors.iter().map(|(n, shape, b)| (n, TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
        let file = safetensors::serialize(views, None).unwrap();
        Attention::from_bytes(gpu(), &self.config, WeightBytes { name: "layer", bytes: &file }, DType::F32).unwrap()
    }

    fn get(&self, name: &str, len: usize) -> Vec<f64> {
        self.tensors.get(name).map_or(vec![0.0; len], |(_, values)| f64s(values))
    }

    /// `y` of the last of these tokens by the reference; for layers that it has.
    fn reference(&self, x: &[f32]) -> Vec<f64> {
        let Config { q_heads, head_dim, .. } = self.config;
        let AttentionConfig::Latent { latent_heads: groups, latent_dim, rope_dim, .. } = self.config.attention else {
            panic!()
        };
        let (q_width, kv_width) = (q_heads * (head_dim + rope_dim), groups * latent_dim + rope_dim);
        let pairs = if self.config.rope_interleaved { RopePairs::Interleaved } else { RopePairs::Half };
        let config = LayerConfig {
            model_dim: HIDDEN,
            q_heads,
            groups,
            head_dim,
            rope_dim,
            state_dim: latent_dim,
            q_latent_dim: Q_LATENT,
            eps: 1e-6f32.into(),
            rotation: reference::Rope {
                inv_freq: self.config.rope().unwrap().inv_freq.iter().map(|f| f64::from(*f)).collect(),
                pairs,
                angles: Angles::F32,
            },
        };
        let weights = GlaWeights {
            w_dq: self.get("q_a_proj.weight", 0),
            b_dq: self.get("q_a_proj.bias", Q_LATENT),
            q_gain: self.get("q_a_layernorm.weight", 0),
            w_uq: self.get("q_b_proj.weight", 0),
            b_uq: self.get("q_b_proj.bias", q_width),
            w_dkv: self.get("kv_a_proj_with_mqa.weight", 0),
            b_dkv: self.get("kv_a_proj_with_mqa.bias", kv_width),
            c_gain: self.get("kv_a_layernorm.weight", 0),
            w_ukv: self.get("kv_b_proj.weight", 0),
            b_ukv: self.get("kv_b_proj.bias", q_heads * 2 * head_dim),
            w_o: self.get("o_proj.weight", 0),
        };
        reference::gla_layer(&config, &weights, &f64s(x), Form::Explicit).unwrap()
    }
}

/// Sequences of these (tokens before, new tokens), with a step of the new ones reserved.
struct Batch {
    cache: PagedKvCache,
    decode: Decode,
    ids: Vec<SeqId>,
    lengths: Vec<(usize, usize)>,
    /// Of each sequence all inputs.
    inputs: Vec<Vec<f32>>,
    /// Of the new tokens, sequence after sequence.
    x: Tensor,
}

impl Batch {
    fn new(
        layer: &Layer,
        attention: &Attention,
        (dtype, page_size): (DType, usize),
        options: AttentionOptions,
        lengths: &[(usize, usize)],
    ) -> Batch {
        let gpu = gpu();
        let heads = layer.config.layout().unwrap();
        let count = lengths.iter().map(|(before, new)| (before + new).div_ceil(page_size) + 1).sum::<usize>() + 3;
        let rope = Some(layer.config.rope().unwrap());
        let fixed = CacheOptions::new(dtype, Pages { count, size: page_size, layers: 1 });
        let mut cache = PagedKvCache::new(gpu, heads, CacheOptions { rope, ..fixed }).unwrap();
        poison(&cache);
        let decode = Decode::with_options(gpu, heads, dtype, options).unwrap();
        let mut rng = Rng(7);
        let ids: Vec<SeqId> = match options.window {
            Some(window) => lengths
                .iter()
                .map(|_| cache.insert_with(SequenceOptions { window: Some(window), keep_first: 0 }).unwrap())
                .collect(),
            None => lengths.iter().map(|_| cache.insert()).collect(),
        };
        let inputs: Vec<Vec<f32>> = lengths.iter().map(|(b, n)| rng.normals((b + n) * HIDDEN, 1.0)).collect();
        // A few tokens of each in turn, so that no sequence's pages are in one run.
        let longest = lengths.iter().map(|l| l.0).max().unwrap_or(0);
        for first in (0..longest).step_by(50) {
            for ((id, (before, _)), input) in ids.iter().zip(lengths).zip(&inputs) {
                let last = (first + 50).min(*before);
                if first < last {
                    cache.reserve(&[*id], last - first).unwrap();
                    let x = tensor(gpu, &[last - first, HIDDEN], &input[first * HIDDEN..last * HIDDEN]);
                    let (cache, decode) = (&mut cache, &decode);
                    let args = AttentionArgs { x: &x, cache, layer: 0, decode, sequences: &[*id], prefill: None };
                    attention.forward(args).unwrap();
                    cache.commit(&[*id], last - first).unwrap();
                }
            }
        }
        let mut x = Vec::new();
        for ((id, (before, new)), input) in ids.iter().zip(lengths).zip(&inputs) {
            cache.reserve(&[*id], *new).unwrap();
            x.extend_from_slice(&input[before * HIDDEN..]);
        }
        let x = tensor(gpu, &[x.len() / HIDDEN, HIDDEN], &x);
        Batch { cache, decode, ids, lengths: lengths.to_vec(), inputs, x }
    }

    fn absorbed(&mut self, attention: &Attention) -> Vec<f32> {
        download(gpu(), &attention.forward(self.args(None)).unwrap())
    }

    fn prefill(&self, layer: &Layer, path: PrefillPath, scratch: usize) -> ExplicitPrefill {
        let prefill = ExplicitPrefill::new(gpu(), &layer.config, &self.cache, &self.decode, path).unwrap();
        prefill.with_scratch_tokens(&self.decode, scratch).unwrap()
    }

    fn by(&mut self, attention: &Attention, prefill: &mut ExplicitPrefill) -> Vec<f32> {
        download(gpu(), &attention.forward(self.args(Some(prefill))).unwrap())
    }

    fn args<'a>(&'a mut self, prefill: Option<&'a mut ExplicitPrefill>) -> AttentionArgs<'a> {
        let Batch { x, cache, decode, ids, .. } = self;
        AttentionArgs { x, cache, layer: 0, decode, sequences: ids, prefill }
    }
}

/// NaN in all pages: of a sequence's own every row is written before it is read.
fn poison(cache: &PagedKvCache) {
    for pages in cache.layer(0).unwrap().wgpu_buffers() {
        let nan = vec![0xffu8; pages.size() as usize];
        gpu().queue().write_buffer(&pages, 0, &nan);
    }
}

/// Both forms read the same cached rows, whatever their dtype; on matrix units keys and values are rounded to f16.
fn bounds(dtype: DType) -> (f64, f64) {
    match (gpu().capabilities().tier, dtype) {
        (Tier::Matrix, DType::F16 | DType::I8 | DType::I4) => (1e-2, 1e-6),
        (_, DType::F32) => (2e-5, 1e-10),
        _ => (2e-5, 1e-9),
    }
}

/// Contexts of none, a few, and several parts of 64 tokens; prompts of one token, few, and more than a tile.
const LENGTHS: [(usize, usize); 5] = [(0, 70), (5, 3), (131, 90), (64, 1), (0, 1)];

#[test]
fn explicit_is_absorbed_is_the_reference() {
    let cases = [
        (GLA_2, DType::F32, 16, 64),
        (GLA_2, DType::I8, 1, 4096),
        (MLA, DType::F32, 64, 128),
        (GLA_4, DType::F16, 16, 192),
        (LITE, DType::I4, 64, 64),
    ];
    for (seed, (shape, dtype, page_size, scratch)) in cases.into_iter().enumerate() {
        let layer = shape.layer(seed as u64);
        let attention = layer.attention();
        let mut batch = Batch::new(&layer, &attention, (dtype, page_size), AttentionOptions::default(), &LENGTHS);
        // So that a sequence's bits do not depend on who else is absorbed.
        batch.decode = batch.decode.with_policy(SplitPolicy::FixedTokens(64));
        let case = format!("{:?} {dtype} page {page_size} parts of {scratch}", layer.config.attention);
        let absorbed = batch.absorbed(&attention);
        let mut prefill = batch.prefill(&layer, PrefillPath::Explicit, scratch);
        let explicit = batch.by(&attention, &mut prefill);
        let (tolerance, nmse) = bounds(dtype);
        assert_close(&case, &explicit, &f64s(&absorbed), tolerance, nmse);
        assert_ne!(explicit, absorbed, "{case}: the same bits, so the same form");
        // Sequences of one token are absorbed, and so the same bits.
        let single = |y: &[f32]| y[y.len() - 2 * HIDDEN..].to_vec();
        assert_eq!(single(&explicit), single(&absorbed), "{case}");
        // Again, over what the scratch memory holds by now.
        assert_eq!(batch.by(&attention, &mut prefill), explicit, "{case}");
        if dtype == DType::F32 && shape.q_latent {
            let mut row = 0;
            for ((before, new), input) in batch.lengths.iter().zip(&batch.inputs) {
                for token in [0, new / 2, new - 1] {
                    let want = layer.reference(&input[..(before + token + 1) * HIDDEN]);
                    let got = &explicit[(row + token) * HIDDEN..][..HIDDEN];
                    assert_close(&format!("{case}: {before} + {token}"), got, &want, tolerance, nmse);
                }
                row += new;
            }
        }
    }
}

/// Windows shorter than a part, across several, with their pages gone; softcap; every policy.
#[test]
fn options_hold_in_both_forms() {
    let cases = [
        (Some(20), None, SplitPolicy::Auto),
        (Some(100), Some(1.5), SplitPolicy::FixedTokens(16)),
        (None, Some(1.5), SplitPolicy::Count(3)),
    ];
    let layer = GLA_2.layer(11);
    let attention = layer.attention();
    for (window, softcap, policy) in cases {
        let options = AttentionOptions { window, softcap, ..Default::default() };
        let mut batch = Batch::new(&layer, &attention, (DType::F32, 4), options, &[(300, 80), (0, 33), (150, 2)]);
        batch.decode = batch.decode.with_policy(policy);
        let absorbed = batch.absorbed(&attention);
        let mut prefill = batch.prefill(&layer, PrefillPath::Explicit, 64);
        let explicit = batch.by(&attention, &mut prefill);
        assert_close(&format!("{options:?} {policy:?}"), &explicit, &f64s(&absorbed), 2e-5, 1e-10);
        assert_ne!(explicit, absorbed);
    }
}

/// Of a step's sequences each takes the form that the path gives it by itself.
#[test]
fn sequences_of_a_step_take_their_own_forms() {
    let layer = MLA.layer(12);
    let attention = layer.attention();
    let lengths = [(40, 5), (0, 64), (130, 63), (3, 70)];
    let mut batch = Batch::new(&layer, &attention, (DType::F32, 16), AttentionOptions::default(), &lengths);
    batch.decode = batch.decode.with_policy(SplitPolicy::FixedTokens(64));
    let absorbed = batch.absorbed(&attention);
    let mut all = batch.prefill(&layer, PrefillPath::Explicit, 4096);
    let explicit = batch.by(&attention, &mut all);
    for (path, wanted) in [
        (PrefillPath::From(64), [false, true, false, true]),
        (PrefillPath::From(5), [true; 4]),
        (PrefillPath::From(71), [false; 4]),
        // Below 64 new tokens a tile is not full.
        (PrefillPath::Auto, [false, true, false, true]),
    ] {
        let mut prefill = batch.prefill(&layer, path, 4096);
        let got = batch.by(&attention, &mut prefill);
        let mut first = 0;
        for (index, ((_, new), is_explicit)) in lengths.iter().zip(wanted).enumerate() {
            let rows = first * HIDDEN..(first + new) * HIDDEN;
            let want = if is_explicit { &explicit } else { &absorbed };
            assert_eq!(got[rows.clone()], want[rows], "{path:?}: sequence {index}");
            first += new;
        }
    }
}

#[test]
fn what_has_no_explicit_form_is_refused() {
    let layer = GLA_2.layer(13);
    let attention = layer.attention();
    let batch = |options| Batch::new(&layer, &attention, (DType::F32, 16), options, &[(0, 3)]);
    let plain = batch(AttentionOptions::default());
    let new = |batch: &Batch, config: &Config, path| {
        ExplicitPrefill::new(gpu(), config, &batch.cache, &batch.decode, path).map(drop)
    };
    assert_kind!(new(&plain, &layer.config, PrefillPath::Absorbed), ErrorKind::Argument { name: "path", .. });
    let mut gqa = layer.config.clone();
    gqa.attention = AttentionConfig::Gqa { kv_heads: 2 };
    assert_kind!(new(&plain, &gqa, PrefillPath::Explicit), ErrorKind::Argument { name: "path", .. });
    let options = AttentionOptions { window: Some(8), keep_first: 2, ..Default::default() };
    let kept = batch(options);
    assert_kind!(new(&kept, &layer.config, PrefillPath::Explicit), ErrorKind::Argument { name: "options", .. });
    // A cache of another dtype than the prefill was made for.
    let mut prefill = plain.prefill(&layer, PrefillPath::Explicit, 64);
    let mut other = Batch::new(&layer, &attention, (DType::F16, 16), AttentionOptions::default(), &[(0, 3)]);
    let refused = attention.forward(other.args(Some(&mut prefill)));
    assert_kind!(refused, ErrorKind::Argument { name: "layer", .. });
    assert_eq!(other.cache.batch(&other.ids).unwrap().tokens(), 3);
}

fn shipped(variant: &str, options: LoadOptions<'_>) -> Decoder {
    let folder = checkout(&format!("examples/models/{variant}"));
    Decoder::load_with(gpu(), folder, options).unwrap()
}

const PROMPT: &[u8] =
    b"ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n\
    Arise, fair sun, and kill the envious moon,\nWho is already sick and pale with grief,\n";

/// The prompt explicit, in chunks whose later ones have a context; token by token; and whichever form Auto takes.
#[test]
fn a_prompt_in_the_explicit_form_goes_on_as_one_fed_token_by_token() {
    for variant in ["gla", "mla"] {
        let decoder = shipped(variant, LoadOptions::default());
        let prompt: Vec<u32> = PROMPT.iter().map(|byte| u32::from(*byte)).collect();
        let session = |prefill, chunk| {
            let options = SessionOptions { prefill, chunk, page_size: 16, max_batch: 2, ..Default::default() };
            Session::new(&decoder, options).unwrap()
        };
        let greedy = |session: &mut Session| {
            let options = GenerateOptions { max_new_tokens: 24, ..Default::default() };
            pollster::block_on(generate(session, &prompt, options, |_| ControlFlow::Continue(()))).unwrap()
        };
        let want = greedy(&mut session(PrefillPath::Absorbed, 1));
        for (path, chunk) in [(PrefillPath::Explicit, 100), (PrefillPath::Auto, 200), (PrefillPath::From(64), 64)] {
            assert_eq!(greedy(&mut session(path, chunk)), want, "{variant} {path:?}, steps of {chunk}");
        }
        // The logits, too: the other form's, but not its bits.
        let logits = |session: &mut Session| {
            let id = session.insert();
            pollster::block_on(session.logits(&[(id, &prompt)])).unwrap().remove(0)
        };
        let absorbed = logits(&mut session(PrefillPath::Absorbed, 200));
        let explicit = logits(&mut session(PrefillPath::Explicit, 200));
        assert_ne!(explicit, absorbed, "{variant}");
        let error = explicit.iter().zip(&absorbed).map(|(e, a)| f64::from(e - a).powi(2)).sum::<f64>();
        println!("{variant}: {:e}", error / absorbed.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>());
        // Cached rows are f16, as far as they differ by the rounding of what came before them.
        assert_close(variant, &explicit, &f64s(&absorbed), 2e-2, 1e-5);
        assert_eq!(
            logits(&mut session(PrefillPath::Auto, 200)),
            explicit,
            "{variant}: Auto is explicit without a context"
        );
        // A policy that comes later is that of both forms.
        let mut split = session(PrefillPath::Explicit, 200).with_policy(SplitPolicy::FixedTokens(32));
        assert_close(variant, &logits(&mut split), &f64s(&absorbed), 2e-2, 1e-5);
    }
}

#[test]
fn sessions_refuse_a_form_that_is_not_there() {
    let lean = shipped("mla", LoadOptions { explicit: false, ..Default::default() });
    let full = shipped("mla", LoadOptions::default());
    assert_eq!((lean.keeps_explicit(), full.keeps_explicit(), lean.fingerprint()), (false, true, full.fingerprint()));
    let gqa = shipped("gqa", LoadOptions::default());
    assert!(!gqa.keeps_explicit());
    let options = |prefill| SessionOptions { prefill, ..Default::default() };
    for decoder in [&lean, &gqa] {
        for path in [PrefillPath::Explicit, PrefillPath::From(100)] {
            assert_kind!(Session::new(decoder, options(path)).map(drop), ErrorKind::Argument { name: "prefill", .. });
        }
        for path in [PrefillPath::Auto, PrefillPath::Absorbed] {
            Session::new(decoder, options(path)).unwrap();
        }
    }
    let kept = SessionOptions { window: Some(64), keep_first: 4, ..options(PrefillPath::Explicit) };
    assert_kind!(Session::new(&full, kept).map(drop), ErrorKind::Argument { name: "prefill", .. });
    Session::new(&full, SessionOptions { prefill: PrefillPath::Auto, ..kept }).unwrap();
}

/// What is measured is a number of tokens or none, and the session goes on as if nothing had been.
#[test]
fn the_break_even_is_measured() {
    let decoder = shipped("mla", LoadOptions::default());
    let options = SessionOptions { page_size: 16, chunk: 100, cache_tokens: 320, ..Default::default() };
    let mut session = Session::new(&decoder, options).unwrap();
    let id = session.insert();
    let feed =
        |session: &mut Session, tokens: &[u32]| pollster::block_on(session.logits(&[(id, tokens)])).unwrap().remove(0);
    feed(&mut session, &[1, 2, 3]);
    let stats = session.stats();
    let measured = pollster::block_on(session.measure_prefill()).unwrap();
    println!("explicit from {measured:?} tokens on");
    assert!(measured.is_none_or(|new| [16, 32, 64, 96].contains(&new)), "{measured:?}");
    assert_eq!((session.stats(), session.len(id).unwrap()), (stats, 3));
    let mut other = Session::new(&decoder, options).unwrap();
    let same = other.insert();
    pollster::block_on(other.logits(&[(same, &[1, 2, 3])])).unwrap();
    let want = pollster::block_on(other.logits(&[(same, &[4])])).unwrap().remove(0);
    assert_eq!(feed(&mut session, &[4]), want);
    // Nothing to choose from.
    let gqa = shipped("gqa", LoadOptions::default());
    let mut session = Session::new(&gqa, options).unwrap();
    assert_eq!(pollster::block_on(session.measure_prefill()).unwrap(), None);
}
