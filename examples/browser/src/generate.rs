//! `Model.generate`: how tokens are drawn, what ends a text, and what is told of it.

use super::{Inner, Taken};
use crate::error::{argument, Result};
use crate::options::{object, Options};
use js_sys::{Array, Function, Object, Uint32Array};
use latten::model::{Drawn, Sampler, Session, StopStrings, Utf8Stream};
use latten::nn::{Penalties, Sampling};
use latten::ErrorKind;
use std::rc::Rc;
use wasm_bindgen::prelude::*;

/// Of `Model.generate`.
pub(super) struct Generate {
    max_new_tokens: usize,
    sampler: Sampler,
    logprobs: bool,
    stop_tokens: Vec<u32>,
    stops: StopStrings,
    has_stops: bool,
}

const GENERATE: [&str; 15] = [
    "maxNewTokens",
    "temperature",
    "topP",
    "topK",
    "minP",
    "typicalP",
    "repetitionPenalty",
    "presencePenalty",
    "frequencyPenalty",
    "penaltyWindow",
    "logitBias",
    "logprobs",
    "stop",
    "stopTokens",
    "seed",
];

impl Generate {
    pub(super) fn new(value: &JsValue) -> Result<Self> {
        let o = Options::new("options", value, &GENERATE)?;
        let seed = o.number("seed", 0.0..=9_007_199_254_740_991.0)?.unwrap_or(0.0);
        if seed.fract() != 0.0 {
            return Err(o.bad("seed", format!("{seed} is no whole number")));
        }
        let mut sampler = Sampler::new(sampling(&o)?, seed as u64)?.with_bias(&bias(&o)?)?;
        let logprobs = o.size("logprobs", 0..=1 << 30)?;
        if let Some(most_likely) = logprobs {
            sampler = sampler.with_logprobs(most_likely)?;
        }
        let stops = stop_strings(&o)?;
        Ok(Generate {
            max_new_tokens: o.size("maxNewTokens", 0..=1 << 30)?.unwrap_or(100),
            sampler,
            logprobs: logprobs.is_some(),
            stop_tokens: tokens(&o, "stopTokens")?,
            stops: StopStrings::new(&stops)?,
            has_stops: !stops.is_empty(),
        })
    }
}

fn sampling(o: &Options) -> Result<Sampling> {
    let number = |key, default: f32| {
        let number = o.number(key, f64::MIN..=f64::MAX)?;
        Ok::<_, crate::error::Thrown>(number.map_or(default, |number| number as f32))
    };
    let (default, none) = (Sampling::default(), Penalties::default());
    Ok(Sampling {
        temperature: number("temperature", default.temperature)?,
        min_p: number("minP", default.min_p)?,
        top_k: o.size("topK", 0..=u32::MAX as usize)?.map_or(default.top_k, |k| k as u32),
        typical_p: number("typicalP", default.typical_p)?,
        top_p: number("topP", default.top_p)?,
        penalties: Penalties {
            repetition: number("repetitionPenalty", none.repetition)?,
            presence: number("presencePenalty", none.presence)?,
            frequency: number("frequencyPenalty", none.frequency)?,
            window: o.size("penaltyWindow", 0..=u32::MAX as usize)?.map_or(none.window, |window| window as u32),
        },
    })
}

/// `{ 65: -1000, 10: 2.5 }`, as the names of an object's fields are.
fn bias(o: &Options) -> Result<Vec<(u32, f32)>> {
    let Some(value) = o.get("logitBias") else { return Ok(Vec::new()) };
    let Some(fields) = value.dyn_ref::<Object>().filter(|_| !Array::is_array(&value)) else {
        return Err(o.bad("logitBias", "is no object of numbers by token"));
    };
    let field = |pair: JsValue| {
        let pair = Array::from(&pair);
        let (name, value) = (pair.get(0).as_string().unwrap_or_default(), pair.get(1).as_f64());
        let token = name.parse::<u32>().map_err(|_| o.bad("logitBias", format!("{name:?} is no token")))?;
        value.map(|value| (token, value as f32)).ok_or_else(|| o.bad("logitBias", format!("of {name} is no number")))
    };
    Object::entries(fields).iter().map(field).collect()
}

/// Token ids.
fn tokens(o: &Options, key: &'static str) -> Result<Vec<u32>> {
    let Some(value) = o.get(key) else { return Ok(Vec::new()) };
    if let Some(ids) = value.dyn_ref::<Uint32Array>() {
        return Ok(ids.to_vec());
    }
    let wrong = || o.bad(key, "is neither an Uint32Array nor an array of whole numbers");
    let id = |id: JsValue| {
        let number = id.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n));
        number.map(|n| n as u32).ok_or_else(wrong)
    };
    value.dyn_ref::<Array>().ok_or_else(wrong)?.iter().map(id).collect()
}

/// One string, or several.
fn stop_strings(o: &Options) -> Result<Vec<Vec<u8>>> {
    let Some(value) = o.get("stop") else { return Ok(Vec::new()) };
    if let Some(text) = value.as_string() {
        return Ok(vec![text.into_bytes()]);
    }
    let wrong = || o.bad("stop", "is neither a string nor an array of strings");
    let texts = value.dyn_ref::<Array>().ok_or_else(wrong)?.iter();
    texts.map(|text| text.as_string().map(String::into_bytes).ok_or_else(wrong)).collect()
}

/// What is made so far.
#[derive(Default)]
struct Made {
    text: String,
    tokens: Vec<u32>,
    /// Of each token, where they are asked for.
    logprobs: Vec<JsValue>,
}

/// The loop of [`latten::model::generate`], which tells the cache's statistics besides.
pub(super) async fn generate(
    inner: Rc<Inner>,
    prompt: Vec<u32>,
    g: Generate,
    on_token: Option<Function>,
) -> Result<JsValue> {
    let vocab = inner.config.vocab_size;
    if g.has_stops && vocab != 256 {
        let why = format!("is text, but tokens of a model with {vocab} are no bytes: give stopTokens");
        return Err(argument("options.stop", why));
    }
    if let Some(token) = g.stop_tokens.iter().find(|token| **token as usize >= vocab) {
        return Err(argument("options.stopTokens", format!("{token} is not in the vocabulary of {vocab}")));
    }
    let mut taken = Taken::from(&inner)?;
    let session = taken.session()?;
    let most = session.max_positions();
    if prompt.len().saturating_add(g.max_new_tokens) > most + 1 {
        let why =
            format!("{} after a prompt of {} exceed the model's {most} positions", g.max_new_tokens, prompt.len());
        return Err(ErrorKind::Argument { name: "max_new_tokens", why }.into());
    }
    let sequence = session.insert();
    let logprobs = g.logprobs;
    let made = continued(&inner, session, sequence, &prompt, g, on_token.as_ref()).await;
    session.remove(sequence)?;
    let (made, finished) = made?;
    let logprobs = if logprobs { made.logprobs.into_iter().collect::<Array>().into() } else { JsValue::UNDEFINED };
    Ok(object([
        ("text", made.text.into()),
        ("tokens", Uint32Array::from(&made.tokens[..]).into()),
        ("finished", finished.into()),
        ("logprobs", logprobs),
    ]))
}

/// What was made, and what ended it.
async fn continued(
    inner: &Inner,
    session: &mut Session,
    sequence: latten::SeqId,
    prompt: &[u32],
    g: Generate,
    on_token: Option<&Function>,
) -> Result<(Made, &'static str)> {
    let Generate { max_new_tokens, mut sampler, stop_tokens, mut stops, .. } = g;
    let (mut made, mut utf8, mut finished) = (Made::default(), Utf8Stream::default(), "length");
    if max_new_tokens == 0 {
        return Ok((made, finished));
    }
    let bytes = inner.config.vocab_size == 256;
    sampler.see(prompt);
    let mut stream = session.stream_with(&[(sequence, prompt)], [sampler])?;
    while made.tokens.len() < max_new_tokens && finished == "length" {
        let drawn = stream.next_drawn(made.tokens.len() + 1 < max_new_tokens).await?;
        inner.stats.set(stream.session().stats());
        for drawn in drawn {
            let (token, mut known) = (drawn.token, Vec::new());
            made.tokens.push(token);
            made.logprobs.extend(logprobs(&drawn));
            let last = made.tokens.len() == max_new_tokens;
            if stop_tokens.contains(&token) {
                finished = "stop";
                stops.finish(&mut known); // the token has no text, and nothing follows
            } else if let (true, Ok(byte)) = (bytes, u8::try_from(token)) {
                if stops.push(&[byte], &mut known).is_some() {
                    finished = "stop";
                }
            }
            if last && finished == "length" {
                stops.finish(&mut known);
            }
            let complete: String = known.into_iter().map(|byte| utf8.push(byte.into())).collect();
            made.text.push_str(&complete);
            if !told(on_token, &complete, token)? && finished == "length" {
                finished = "callback";
            }
        }
    }
    drop(stream); // what was computed ahead goes with it
    inner.stats.set(session.stats());
    let mut held = Vec::new();
    if finished == "callback" {
        stops.finish(&mut held);
    }
    held.into_iter().for_each(|byte| made.text.push_str(&utf8.push(byte.into())));
    made.text.push_str(&utf8.finish());
    Ok((made, finished))
}

/// `{ logprob, mostLikely: [[token, logprob], ..] }`
fn logprobs(drawn: &Drawn) -> Option<JsValue> {
    let logprob = drawn.log_probability?;
    let pair = |(token, logprob): &(u32, f32)| Array::of2(&JsValue::from(*token), &JsValue::from(*logprob));
    let most_likely: Array = drawn.most_likely.iter().map(pair).collect();
    Some(object([("logprob", logprob.into()), ("mostLikely", most_likely.into())]))
}

/// Calls back for one token; false where that is to be the last.
fn told(on_token: Option<&Function>, text: &str, token: u32) -> Result<bool> {
    let Some(on_token) = on_token else { return Ok(true) };
    let answer = on_token.call2(&JsValue::UNDEFINED, &text.into(), &token.into())?;
    Ok(answer.as_bool() != Some(false))
}
