//! Models: configs whose fields are anything, sessions, and what generates with them.

use crate::device::World;
use crate::numbers::Gen;
use crate::pure::config;
use crate::tiny::Tiny;
use latten::model::{
    beam_search, best_of, generate, generate_speculative, Attention, BeamOptions, BestOfOptions, Config, Drafter, Draw,
    ExplicitPrefill, GenerateOptions, PrefillPath, Request, RequestId, Scheduler, SpeculativeOptions, WeightBytes,
};
use latten::nn::{Penalties, Sampling};
use latten::{
    CacheOptions, DType, Decode, Decoder, Gpu, KvSource, PagedKvCache, Pages, SeqId, Session, SessionOptions,
    SplitPolicy,
};
use pollster::block_on;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::OnceLock;

const VARIANTS: [&str; 3] = ["gqa", "gta", "gla"];

/// Config and weights of each variant.
fn files() -> &'static [(&'static str, Config, Vec<u8>)] {
    static FILES: OnceLock<Vec<(&str, Config, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let file = |variant| {
            let tiny = Tiny::new(variant, 5);
            (variant, Config::parse("config.json", &tiny.config_json()).unwrap(), tiny.bytes(Dtype::F32))
        };
        VARIANTS.map(file).into()
    })
}

pub fn decoders(gpu: &Gpu) -> Vec<(&'static str, Decoder)> {
    let load = |(variant, config, bytes): &(&'static str, Config, Vec<u8>)| {
        (*variant, Decoder::from_bytes(gpu, config.clone(), WeightBytes { name: variant, bytes }, DType::F16).unwrap())
    };
    files().iter().map(load).collect()
}

pub fn case(g: &mut Gen, world: &World) {
    match g.below(5) {
        0 | 1 => loaded(g, &world.gpu),
        2 => prefill(g, world),
        _ => sessions(g, world),
    }
    world.gpu.submit().unwrap();
}

fn loaded(g: &mut Gen, gpu: &Gpu) {
    let (name, valid, bytes) = &files()[g.below(VARIANTS.len())];
    let config = config(g, valid);
    let dtype = g.pick(&[DType::F16, DType::F32, DType::I8, DType::U32]);
    g.call(
        "Attention::from_bytes",
        Attention::from_bytes(gpu, &config, WeightBytes { name, bytes: &layer(bytes) }, dtype),
    );
    g.call("Decoder::from_bytes", Decoder::from_bytes(gpu, config, WeightBytes { name, bytes }, dtype));
}

/// The tensors of the first layer's attention by themselves.
fn layer(bytes: &[u8]) -> Vec<u8> {
    let all = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let prefix = "model.layers.0.self_attn.";
    let own = all.tensors().into_iter().filter_map(|(name, view)| Some((name.strip_prefix(prefix)?.to_string(), view)));
    safetensors::serialize(own, None).unwrap()
}

fn prefill(g: &mut Gen, world: &World) {
    let (_, valid, _) = &files()[g.pick(&[2, 2, 2, 0])];
    let config = config(g, valid);
    let Ok(heads) = config.layout() else { return };
    if heads.kv_dim() * heads.q_heads() > 1 << 10 {
        return;
    }
    let pages = Pages { count: 4, size: 4, layers: 1 };
    let cache = PagedKvCache::new(&world.gpu, heads, CacheOptions::new(DType::F16, pages)).unwrap();
    let decode = Decode::new(&world.gpu, heads, DType::F16).unwrap();
    let path = match g.below(4) {
        0 => PrefillPath::Auto,
        1 => PrefillPath::From(g.size()),
        _ => PrefillPath::Explicit,
    };
    let made = ExplicitPrefill::new(&world.gpu, &config, &cache, &decode, path);
    let Some(prefill) = g.call("ExplicitPrefill::new", made) else { return };
    let tokens = g.held(100, 200);
    g.call("ExplicitPrefill::with_scratch_tokens", prefill.with_scratch_tokens(&decode, tokens));
}

fn sessions(g: &mut Gen, world: &World) {
    let (_, decoder) = &world.decoders[g.below(world.decoders.len())];
    let options = SessionOptions {
        max_batch: g.held(2, 8),
        chunk: g.held(8, 20),
        cache_tokens: g.held(48, 100),
        page_size: g.held(4, 8),
        kv_dtype: if g.one_in(20) { DType::U32 } else { DType::F16 },
        window: g.pick(&[None, None, None, Some(8), Some(0), Some(usize::MAX)]),
        keep_first: if g.one_in(12) { g.size() } else { 0 },
        max_tokens: if g.one_in(12) { Some(g.size()) } else { None },
        window_pools: true,
        prefill: g.pick(&[PrefillPath::Auto, PrefillPath::Auto, PrefillPath::Absorbed, PrefillPath::Explicit]),
    };
    let Some(session) = g.call("Session::new", Session::new(decoder, options)) else { return };
    let policy = g.pick(&[SplitPolicy::Auto, SplitPolicy::FixedTokens(16), SplitPolicy::Count(usize::MAX)]);
    let mut session = session.with_policy(policy);
    if g.one_in(3) {
        return scheduled(g, session);
    }
    if g.one_in(4) {
        let other = Session::new(decoder, options).unwrap().with_policy(policy);
        return ahead(g, [session, other]);
    }
    let mut ids = vec![session.insert()];
    for _ in 0..1 + g.below(3) {
        step(g, &mut session, &mut ids, decoder);
    }
}

fn tokens(g: &mut Gen, most: usize) -> Vec<u32> {
    let len = if g.one_in(12) { 0 } else { 1 + g.below(most) };
    (0..len).map(|_| if g.one_in(60) { g.word() } else { 1 }).collect()
}

fn sampling(g: &mut Gen) -> Sampling {
    let plain = Sampling::new(g.float(0.7) as f32, g.float(0.9) as f32);
    if g.one_in(2) {
        return plain;
    }
    let penalties = Penalties {
        repetition: g.float(1.2) as f32,
        presence: g.float(0.5) as f32,
        frequency: g.float(0.1) as f32,
        window: g.near(8) as u32,
    };
    Sampling { min_p: g.float(0.1) as f32, top_k: g.near(3) as u32, typical_p: g.float(0.9) as f32, penalties, ..plain }
}

fn generating(g: &mut Gen) -> GenerateOptions {
    GenerateOptions { max_new_tokens: g.near(3), sampling: sampling(g), seed: g.bits() }
}

fn step(g: &mut Gen, session: &mut Session, ids: &mut Vec<SeqId>, decoder: &Decoder) {
    let (id, input) = (g.pick(ids), tokens(g, 14));
    let stop_tokens: Vec<u32> = (0..g.below(3)).map(|_| g.near(7) as u32).collect();
    let stop_tokens = &stop_tokens[..];
    let length_penalty = g.float(1.0);
    let go_on = |_| ControlFlow::Continue(());
    match g.below(15) {
        10..=14 => streamed(g, session, ids),
        0..=2 => {
            let draws = vec![Draw { sampling: sampling(g), u: g.float(0.5) as f32 }; g.len(1)];
            let batch: [(SeqId, &[u32]); 1] = [(id, &input)];
            match g.below(4) {
                0 => drop(g.call("Session::next_tokens", block_on(session.next_tokens(&batch, &draws)))),
                1 => drop(g.call("Session::logits", block_on(session.logits(&batch)))),
                2 => {
                    let both = block_on(session.next_tokens_and_logits(&batch, &draws));
                    g.call("Session::next_tokens_and_logits", both);
                }
                _ => drop(g.call("Session::all_logits", block_on(session.all_logits(&batch)))),
            }
        }
        3 => ids.extend(g.call("Session::fork", session.fork(id))),
        4 => {
            let len = g.near(session.len(id).unwrap_or(0));
            g.call("Session::truncate", session.truncate(id, len));
        }
        5 => {
            g.call("Session::remove", session.remove(id));
        }
        6 => {
            let options = generating(g);
            g.call("generate", block_on(generate(session, &input, options, go_on)));
        }
        7 => {
            let options = BeamOptions { beams: g.near(2), max_new_tokens: g.near(3), stop_tokens, length_penalty };
            g.call("beam_search", block_on(beam_search(session, id, &input, options)));
        }
        8 => {
            let options = BestOfOptions { samples: g.near(2), generate: generating(g), stop_tokens, length_penalty };
            g.call("best_of", block_on(best_of(session, id, &input, options)));
        }
        _ => {
            let options = SpeculativeOptions { generate: generating(g), max_draft: g.near(2) };
            let mut draft =
                Session::new(decoder, SessionOptions { cache_tokens: 32, page_size: 4, ..Default::default() }).unwrap();
            let drafter = match g.one_in(2) {
                true => Drafter::Model(&mut draft),
                false => Drafter::Lookup { max_ngram: g.near(3), min_ngram: g.near(1) },
            };
            let made = block_on(generate_speculative(session, drafter, &input, options, go_on));
            g.call("generate_speculative", made);
        }
    }
    let bytes = g.bits() >> g.below(64);
    g.call("Session::set_byte_budget", session.set_byte_budget(bytes));
    session.set_byte_budget(u64::MAX).unwrap();
}

/// A stream that begins, is asked for some tokens, perhaps not to the end, and is dropped: what the plain loop leaves.
fn streamed(g: &mut Gen, session: &mut Session, ids: &[SeqId]) {
    let input = tokens(g, 14);
    let mut named = vec![g.pick(ids), g.pick(ids)];
    if !g.one_in(20) {
        named.dedup();
    }
    let batch: Vec<(SeqId, &[u32])> = named.into_iter().map(|id| (id, &input[..])).collect();
    let draw = Draw { sampling: sampling(g), u: g.float(0.5) as f32 };
    let before: Vec<Option<usize>> = batch.iter().map(|(id, _)| session.len(*id).ok()).collect();
    let mut taken = 0;
    if let Some(mut stream) = g.call("Session::stream", session.stream(&batch, |_| draw)) {
        for _ in 0..g.below(8) {
            if g.one_in(4) {
                drop(stream.next(true)); // not polled
            }
            let drawn = block_on(stream.next(!g.one_in(3)));
            match g.call("TokenStream::next", drawn) {
                Some(drawn) => taken += usize::from(drawn.len() == batch.len()),
                None if g.one_in(2) => break,
                None => {}
            }
        }
    }
    for ((id, _), before) in batch.iter().zip(before) {
        // The input, and all that was handed out but the last.
        let fed = if taken > 0 { input.len() + taken - 1 } else { 0 };
        assert_eq!(session.len(*id).ok(), before.map(|len| len + fed), "after {taken} tokens of {}", input.len());
        assert_eq!(session.cache().batch(&[*id]).map_or(0, |batch| batch.tokens()), 0, "reserved");
    }
}

/// Two schedulers with the same requests: one is a step ahead, the other waits for each, since its session is taken in hand before.
/// Each request gets the same, and so does the session.
fn ahead(g: &mut Gen, sessions: [Session; 2]) {
    let mut both = sessions.map(Scheduler::new);
    let mut results: [BTreeMap<RequestId, String>; 2] = Default::default();
    let mut ids = Vec::new();
    // What one that is cancelled has by then may be a token more.
    let cancelled = g.below(60);
    for step in 0..40 {
        if step % 2 == 0 && step < 2 * (1 + g.below(5)) {
            let request = Request {
                prompt: tokens(g, 14),
                generate: GenerateOptions { max_new_tokens: 1 + g.below(8), ..generating(g) },
                // What a device that computes nothing draws.
                stop_tokens: if g.one_in(4) { vec![0] } else { Vec::new() },
                salt: g.bits() % 2,
                ..Default::default()
            };
            let added = both.each_mut().map(|s| g.call("Scheduler::add", s.add(request.clone())));
            assert_eq!(added[0], added[1]);
            ids.extend(added[0]);
        }
        if let Some(id) = ids.first().filter(|_| step == cancelled) {
            both.iter_mut().for_each(|s| drop(s.cancel(*id)));
        }
        let _ = both[1].session_mut();
        if g.one_in(5) {
            drop(both[0].step());
        }
        for (scheduler, results) in both.iter_mut().zip(&mut results) {
            for event in g.call("Scheduler::step", block_on(scheduler.step())).into_iter().flatten() {
                let (tokens, finished) = (event.token.map(|token| format!("{token} ")), event.finished);
                let text = results.entry(event.id).or_default();
                *text += &tokens.unwrap_or_default();
                *text += &finished.map(|why| format!("{why:?}")).unwrap_or_default();
            }
        }
    }
    let ended = both.each_ref().map(Scheduler::is_idle);
    if ended == [true; 2] && ids.first().is_none_or(|_| cancelled >= 40) {
        assert_eq!(results[0], results[1]);
    }
    for (scheduler, ended) in both.into_iter().zip(ended) {
        let used = scheduler.into_session().unwrap().stats().used;
        assert!(!ended || used == 0, "{used} pages");
    }
}

fn scheduled(g: &mut Gen, session: Session) {
    let mut scheduler = Scheduler::new(session);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let request = Request {
            prompt: tokens(g, 14),
            generate: generating(g),
            stop_tokens: (0..g.below(2)).map(|_| g.near(7) as u32).collect(),
            stop_strings: (0..g.below(2)).map(|_| vec![1; g.len(1)]).collect(),
            salt: g.bits() % 2,
            ..Default::default()
        };
        ids.extend(g.call("Scheduler::add", scheduler.add(request)));
    }
    // Before a step while it is under way, or after all of them, when it may have ended.
    let cancelled = g.below(8);
    for step in 0..=6 {
        if let Some(id) = ids.first().filter(|_| step == cancelled || step == 6) {
            g.call("Scheduler::cancel", scheduler.cancel(*id));
        }
        g.call("Scheduler::step", block_on(scheduler.step()));
    }
}
