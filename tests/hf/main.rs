//! Published families against the transformers library, and the layers of GTA's and GLA's authors against the paper in
//! PyTorch: logits and greedy tokens of tiny random models, however the tokens are fed (`tests/vectors/hf`, made by
//! `training/hf_oracle.py` and `training/authors_oracle.py`).
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach

#[path = "../common/mod.rs"]
mod common;
mod folders;
mod foreign;
mod fp8;
mod gguf;
mod gguf_blocks;
mod groups;
mod model;
mod parts;
mod real;
mod unused;
mod window_pools;

use common::gpu;
use latten::model::Draw;
use latten::DType;
use model::{Logits, Model};
use pollster::block_on;

/// Relative to the root mean square of the logits.
const TOLERANCE: f32 = 2e-3;

/// The prompt and all greedy tokens but the last, in pieces of so many tokens.
fn in_pieces(model: &Model, piece: usize) -> Logits {
    let mut session = model.session(1, 64);
    let sequence = session.insert();
    let feed = |tokens| block_on(session.all_logits(&[(sequence, tokens)])).unwrap().concat();
    model.vectors.fed().chunks(piece).flat_map(feed).collect()
}

/// Steps of at most 7 tokens, beside two other sequences of other lengths.
fn batched(model: &Model) -> Logits {
    let mut session = model.session(3, 7);
    let tokens = model.vectors.fed();
    let others: [Vec<u32>; 2] = [tokens[3..14].to_vec(), tokens.iter().rev().copied().collect()];
    let batch = [(session.insert(), &others[0][..]), (session.insert(), &tokens), (session.insert(), &others[1])];
    block_on(session.all_logits(&batch)).unwrap().swap_remove(1)
}

/// Cut back from tokens that it was not to have, and fed again.
fn after_truncate(model: &Model) -> Logits {
    let mut session = model.session(1, 64);
    let sequence = session.insert();
    let tokens = model.vectors.fed();
    let feed = |session: &mut latten::Session, tokens: &[u32]| {
        block_on(session.all_logits(&[(sequence, tokens)])).unwrap().concat()
    };
    let mut logits = feed(&mut session, &tokens[..10]);
    // A window frees pages that a shorter sequence would see.
    let surplus = if model.config.window.is_some() { 2 } else { 13 };
    feed(&mut session, &tokens[20..20 + surplus]);
    session.truncate(sequence, 10).unwrap();
    logits.extend(feed(&mut session, &tokens[10..]));
    logits
}

/// A fork, whose origin then goes another way.
fn after_fork(model: &Model) -> Logits {
    let mut session = model.session(2, 64);
    let origin = session.insert();
    let tokens = model.vectors.fed();
    let mut logits = block_on(session.all_logits(&[(origin, &tokens[..11])])).unwrap().concat();
    let fork = session.fork(origin).unwrap();
    let batch = [(origin, &tokens[20..25]), (fork, &tokens[11..])];
    logits.extend(block_on(session.all_logits(&batch)).unwrap().swap_remove(1));
    logits
}

fn greedy(model: &Model, chunk: usize) -> Vec<u32> {
    let mut session = model.session(1, chunk);
    let sequence = session.insert();
    let mut made: Vec<u32> = Vec::new();
    while made.len() < model.vectors.greedy.len() {
        let input = made.last().map_or(&model.vectors.prompt[..], std::slice::from_ref);
        let fed = block_on(session.next_tokens(&[(sequence, input)], &[Draw::default()])).unwrap();
        made.extend(fed);
    }
    made
}

fn check(case: &str) {
    let model = Model::of(case, |_| {}, DType::F32).unwrap();
    // Gaps between a best logit and the second are far above what we may be off.
    assert!(model.vectors.min_gap > 8.0 * TOLERANCE, "{case}: {} decides nothing", model.vectors.min_gap);
    let ways = [
        ("at once", in_pieces(&model, 64)),
        ("in pieces of 5", in_pieces(&model, 5)),
        ("one by one", in_pieces(&model, 1)),
        ("batched", batched(&model)),
        ("after truncate", after_truncate(&model)),
        ("after fork", after_fork(&model)),
    ];
    for (way, logits) in &ways {
        let off = model.vectors.distance(logits);
        println!("{case}, {way}: {off:.1e} of the logits' rms off");
        assert!(off <= TOLERANCE, "{case}, {way}: {off:e} of the logits' rms off");
    }
    for chunk in [64, 3] {
        assert_eq!(greedy(&model, chunk), model.vectors.greedy, "{case}, chunks of {chunk}");
    }
}

macro_rules! cases {
    ($($case:ident),*) => {
        /// Every case of the folder is tested.
        #[test]
        fn no_case_is_left_out() {
            let mut tested = vec![$(stringify!($case).to_string()),*];
            tested.sort();
            assert_eq!(Model::cases(), tested);
        }

        mod logits_and_greedy_tokens {$(
            #[test]
            fn $case() {
                super::check(stringify!($case));
            }
        )*}
    };
}
cases!(
    authors_gta,
    authors_gta_plain,
    authors_gla,
    authors_gla_biased,
    llama,
    llama_linear,
    llama_llama3,
    llama_yarn,
    mistral,
    mistral_window,
    qwen2,
    qwen2_window,
    qwen3,
    qwen3_window,
    qwen3_moe,
    mixtral,
    phi3,
    phi3_longrope,
    phi3_longrope_long,
    granite,
    smollm3,
    llama_dynamic,
    olmo2,
    glm,
    glm4,
    glm4_moe_lite,
    gemma2,
    gemma3,
    qwen2_some_windows,
    gpt_oss,
    gpt_oss_mxfp4,
    deepseek_v2,
    deepseek_v2_lite,
    deepseek_v2_greedy,
    deepseek_v2_groups,
    deepseek_v3,
    deepseek_v3_experts,
    deepseek_v3_halves
);

/// The vectors tell numbers of a config apart that a wrong reading would mix up: with any of these changed they are
/// missed.
#[test]
fn vectors_tell_wrong_readings_apart() {
    let cases = [
        ("llama", "/rms_norm_eps", "0.01"),
        ("llama", "/rope_parameters/rope_theta", "5000.0"),
        ("llama", "/attention_bias", "false"),
        ("llama", "/mlp_bias", "false"),
        ("deepseek_v2", "/attention_bias", "false"),
        ("authors_gta", "/attention_bias", "false"),
        ("authors_gta", "/rope_theta", "1000.0"),
        ("authors_gla", "/rms_norm_eps", "1e-6"),
        ("authors_gla_biased", "/attention_bias", "false"),
        ("authors_gla_biased", "/mlp_bias", "false"),
        ("llama_linear", "/rope_theta", "10000.0"),
        ("llama_linear", "/rope_scaling/factor", "3.0"),
        ("llama_llama3", "/rope_parameters/factor", "4.0"),
        ("llama_llama3", "/rope_parameters/low_freq_factor", "2.0"),
        ("llama_llama3", "/rope_parameters/high_freq_factor", "8.0"),
        ("llama_llama3", "/rope_parameters/original_max_position_embeddings", "32"),
        ("llama_yarn", "/rope_scaling/factor", "4.0"),
        ("llama_yarn", "/rope_scaling/original_max_position_embeddings", "64"),
        ("mistral_window", "/sliding_window", "7"),
        ("mistral_window", "/sliding_window", "9"),
        ("mistral_window", "/sliding_window", "null"),
        ("qwen2_window", "/sliding_window", "9"),
        ("qwen3", "/rms_norm_eps", "1e-6"),
        ("qwen3", "/model_type", "\"llama\""),
        ("qwen2", "/rope_parameters/attention_factor", "1.2"),
        ("qwen2", "/rope_parameters/beta_fast", "2.0"),
        ("qwen2", "/rope_parameters/beta_slow", "0.1"),
        ("qwen2", "/rope_parameters/truncate", "true"),
        ("phi3_longrope", "/rope_parameters/short_factor", "[1.0, 1.8, 1.3, 1.7, 2.0, 2.5]"),
        ("phi3_longrope", "/original_max_position_embeddings", "32"),
        ("phi3_longrope_long", "/rope_parameters/long_factor", "[1.0, 4.0, 4.0, 6.0, 8.0, 9.0]"),
        ("granite", "/embedding_multiplier", "2.0"),
        ("granite", "/residual_multiplier", "1.0"),
        ("granite", "/attention_multiplier", "0.4"),
        ("granite", "/logits_scaling", "0.49"),
        ("smollm3", "/no_rope_layers", "[1, 1, 0, 1]"),
        ("glm4", "/rope_parameters/partial_rotary_factor", "0.25"),
        ("glm4", "/model_type", "\"glm\""),
        ("glm4_moe_lite", "/routed_scaling_factor", "1.0"),
        ("glm4_moe_lite", "/rope_interleave", "false"),
        ("gemma2", "/sliding_window", "9"),
        ("gemma2", "/layer_types", "[\"full_attention\", \"sliding_attention\", \"sliding_attention\"]"),
        ("gemma2", "/query_pre_attn_scalar", "16"),
        ("gemma2", "/attn_logit_softcapping", "null"),
        ("gemma2", "/final_logit_softcapping", "6.5"),
        ("gemma3", "/sliding_window", "7"),
        ("gemma3", "/rope_parameters/sliding_attention/rope_theta", "1000.0"),
        ("gemma3", "/rope_parameters/full_attention/factor", "4.0"),
        ("qwen2_some_windows", "/layer_types", "[\"sliding_attention\", \"full_attention\"]"),
        ("gpt_oss", "/sliding_window", "7"),
        ("gpt_oss", "/layer_types", "[\"full_attention\", \"sliding_attention\"]"),
        ("gpt_oss", "/swiglu_limit", "0.8"),
        ("gpt_oss", "/swiglu_alpha", "1.6"),
        ("gpt_oss", "/num_experts_per_tok", "1"),
        ("gpt_oss", "/rope_parameters/truncate", "true"),
        ("gpt_oss", "/rope_parameters/factor", "8.0"),
        ("gpt_oss_mxfp4", "/swiglu_limit", "7.0"),
        ("deepseek_v2", "/rope_parameters/mscale", "0.5"),
        ("deepseek_v2", "/rope_parameters/mscale_all_dim", "1.0"),
        ("deepseek_v2_lite", "/rms_norm_eps", "1e-6"),
        ("deepseek_v2_lite", "/rope_parameters/mscale_all_dim", "0.5"),
        ("deepseek_v3", "/rms_norm_eps", "1e-6"),
        ("deepseek_v3", "/rope_interleave", "false"),
        ("deepseek_v3", "/rope_scaling/factor", "4"),
        ("deepseek_v3_halves", "/rope_interleave", "true"),
        ("deepseek_v2_greedy", "/num_experts_per_tok", "2"),
        ("deepseek_v2_greedy", "/routed_scaling_factor", "1.1"),
        ("deepseek_v2_groups", "/n_group", "3"),
        ("deepseek_v2_groups", "/topk_group", "1"),
        ("deepseek_v2_groups", "/topk_method", "\"greedy\""),
        ("deepseek_v3_experts", "/n_group", "2"),
        ("deepseek_v3_experts", "/topk_group", "4"),
        ("deepseek_v3_experts", "/norm_topk_prob", "false"),
        ("deepseek_v3_experts", "/routed_scaling_factor", "2.4"),
    ];
    for (case, key, value) in cases {
        let change = |config: &mut serde_json::Value| {
            let found = config.pointer_mut(key).unwrap_or_else(|| panic!("{case} has no {key}"));
            *found = serde_json::from_str(value).unwrap();
        };
        let model = Model::of(case, change, DType::F32).unwrap();
        let off = model.vectors.distance(&in_pieces(&model, 64));
        assert!(off > 2.0 * TOLERANCE, "{case} with {key} = {value}: only {off:e} off");
    }
}

/// Norms inside DeepSeek's attention have an eps of their own.
#[test]
fn the_norm_of_latents_keeps_its_eps() {
    for case in ["deepseek_v2_lite", "deepseek_v3"] {
        let mut model = Model::of(case, |_| {}, DType::F32).unwrap();
        assert_eq!(model.config.latent_norm_eps, 1e-6);
        model.config.latent_norm_eps = model.config.rms_norm_eps;
        let off =
            model.reload(DType::F32).unwrap().vectors.distance(&in_pieces(&model.reload(DType::F32).unwrap(), 64));
        assert!(off > 2.0 * TOLERANCE, "{case}: only {off:e} off");
    }
}

/// What is beside the matrices of gpt-oss counts: sinks, and the biases of router and experts.
#[test]
fn vectors_tell_sinks_and_biases_apart() {
    for part in ["self_attn.sinks", "mlp.router.bias", "experts.gate_up_proj_bias", "experts.down_proj_bias"] {
        let model = Model::without("gpt_oss", part);
        let off = model.vectors.distance(&in_pieces(&model, 64));
        assert!(off > 2.0 * TOLERANCE, "gpt_oss without {part}: only {off:e} off");
    }
}

/// The weights of the vectors are exact in f16; as 8-bit integers they are off by what those are.
#[test]
fn weights_in_f16_and_i8() {
    for case in ["llama_yarn", "deepseek_v2", "deepseek_v2_lite", "deepseek_v2_greedy"] {
        let off = |dtype| {
            let model = Model::of(case, |_| {}, dtype).unwrap();
            model.vectors.distance(&in_pieces(&model, 64))
        };
        let (f16, i8) = (off(DType::F16), off(DType::I8));
        println!("{case}: f16 {f16:.1e}, i8 {i8:.1e} of the logits' rms off");
        // What the loader multiplies (yarn's gain, into queries) is rounded to f16.
        let bound = if gpu().capabilities().tier == latten::Tier::Matrix { 2e-2 } else { 2.0 * TOLERANCE };
        assert!(f16 <= bound, "{case}: f16 weights are {f16:e} off");
        assert!(i8 <= 0.15 && i8 > f16, "{case}: i8 weights are {i8:e} off");
    }
}

/// Experts in MXFP4 stay so on the device: their numbers are exact there, and the others' in f16.
#[test]
fn experts_in_mxfp4_are_the_numbers_that_they_stand_for() {
    let model = Model::of("gpt_oss_mxfp4", |_| {}, DType::F16).unwrap();
    for piece in [64, 1] {
        let off = model.vectors.distance(&in_pieces(&model, piece));
        let bound = if gpu().capabilities().tier == latten::Tier::Matrix { 2e-2 } else { 2.0 * TOLERANCE };
        assert!(off <= bound, "pieces of {piece}: {off:e} of the logits' rms off");
    }
}
