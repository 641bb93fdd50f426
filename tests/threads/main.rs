//! Public types may be shared by threads and printed, and futures of public functions may be spawned by executors of several
//! threads. The compiler checks it: what is not so does not compile. Needs no GPU.

use latten::attention::{DecodeArgs, SplitPolicy};
use latten::cache::{LoadedSequence, SaveSequence};
use latten::model::{
    beam_search, best_of, continue_sequence, generate, generate_speculative, Attention, AttentionArgs, BeamOptions,
    BestOfOptions, Config, Continuation, Decoder, Drafter, Draw, Event, ExplicitPrefill, Finished, GenerateOptions,
    LoadOptions, PrefillPath, Request, RequestId, Scheduler, Session, SessionOptions, Speculated, SpeculativeOptions,
    SplitMix64, TextStream, TokenStream, Tokenizer, TokensAndLogits, Utf8Stream, WeightBytes,
};
use latten::{
    nn, AttentionOptions, CacheStats, Capabilities, DType, Decode, DecodeOutput, Error, ErrorKind, Gpu, GpuOptions,
    HeadLayout, PagedKvCache, Plan, SeqId, Tensor, Tier,
};
use std::fmt::Debug;
use std::ops::ControlFlow;

fn printed<T: Send + Sync + Debug>() {}

#[test]
fn types_of_the_model_are_shared_and_printed() {
    printed::<(Decoder, Session, SessionOptions, Scheduler, Request, RequestId, Event, Finished)>();
    printed::<(Config, Attention, AttentionArgs<'_>, ExplicitPrefill, PrefillPath, WeightBytes<'_>)>();
    printed::<(Tokenizer, TextStream<'_>, Utf8Stream, SplitMix64, Draw, TokensAndLogits)>();
    printed::<(TokenStream<'_, fn(usize) -> Draw>, GenerateOptions, BeamOptions<'_>, BestOfOptions<'_>, Continuation)>(
    );
    printed::<(SpeculativeOptions, Speculated, Drafter<'_>)>();
}

#[test]
fn types_of_attention_and_cache_are_shared_and_printed() {
    printed::<(Gpu, Tensor, Capabilities, GpuOptions, DType, Tier, Error, ErrorKind)>();
    printed::<(HeadLayout, Decode, DecodeArgs<'_>, DecodeOutput, Plan, AttentionOptions, SplitPolicy)>();
    printed::<(PagedKvCache, SeqId, CacheStats, LoadedSequence, SaveSequence<'_>)>();
    printed::<(nn::Linear, nn::Weight, nn::RmsNorm, nn::RopeKernel, nn::Embedding, nn::Sample, nn::SwiGlu, nn::Experts)>(
    );
}

fn spawned<T: Send>(_future: T) {}

/// Never called: a device that is not there is enough for the compiler.
#[allow(dead_code)]
fn futures_are_send(gpu: &Gpu, [a, b]: [&mut Session; 2], cache: &mut PagedKvCache, scheduler: &mut Scheduler) {
    let (id, tokens, on_token) = (a.insert(), [1u32], |_: u32| ControlFlow::<()>::Continue(()));
    let batch: [(SeqId, &[u32]); 1] = [(id, &tokens)];
    let draws = [Draw::default()];
    spawned(Gpu::new());
    spawned(Gpu::with_options(GpuOptions::default()));
    spawned(gpu.clone().with_matrix_kernels());
    spawned(gpu.take_profile());
    spawned(gpu.take_submit_times());
    spawned(gpu.measure_parallelism());
    spawned(nn::measure_dispatch_flop(gpu));
    spawned(cache.load(b"", std::io::empty(), |_| ()));
    spawned(async { a.stream(&batch, |_| Draw::default())?.next(true).await });
    spawned(a.next_tokens(&batch, &draws));
    spawned(a.logits(&batch));
    spawned(a.all_logits(&batch));
    spawned(a.next_tokens_and_logits(&batch, &draws));
    spawned(a.warm_up());
    spawned(a.measure_prefill());
    spawned(a.save(&[], std::io::sink(), |_| ()));
    spawned(a.save_file(&[], "file", |_| ()));
    spawned(a.load(std::io::empty(), |_| ()));
    spawned(a.load_file("file", |_| ()));
    spawned(generate(a, &tokens, GenerateOptions::default(), on_token));
    spawned(continue_sequence(a, id, &tokens, GenerateOptions::default(), on_token));
    spawned(beam_search(a, id, &tokens, BeamOptions::default()));
    spawned(best_of(a, id, &tokens, BestOfOptions::default()));
    spawned(generate_speculative(a, Drafter::Model(b), &tokens, SpeculativeOptions::default(), on_token));
    spawned(scheduler.step());
    spawned(scheduler.run(|_| ControlFlow::Continue(())));
}

/// Options of a load hold a callback that need not be shared, so they are not.
#[test]
fn options_of_a_load_are_printed() {
    let text = format!("{:?}", LoadOptions { progress: Some(&|_| ()), ..Default::default() });
    assert!(text.starts_with("LoadOptions { dtype: F16") && text.contains("progress: Some"), "{text}");
}
