//! What both kinds of requests ask for alike, and what that is for the scheduler.

use super::fields::{ResponseFormat, Stop, StreamOptions};
use crate::errors::ApiError;
use crate::model::Served;
use axum::http::StatusCode;
use latten::model::{GenerateOptions, Request};
use latten::nn::{Penalties, Sampling};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Instant;

/// Continuations of a prompt at most, stop strings, and bytes of one of these.
const MOST_CHOICES: usize = 16;
const MOST_STOPS: usize = 16;
const MOST_STOP_BYTES: usize = 1024;

/// Which of a stream's events tell of the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageTold {
    Never,
    AtTheEnd,
    Always,
}

/// What both kinds of requests ask for alike.
#[derive(Debug)]
pub struct Common<'a> {
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) n: Option<usize>,
    pub(super) stop: Option<&'a Stop>,
    pub(super) stop_token_ids: &'a [u32],
    pub(super) seed: Option<i64>,
    pub stream: bool,
    pub(super) stream_options: Option<&'a StreamOptions>,
    pub(super) ignore_eos: bool,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f64>,
    pub(super) typical_p: Option<f64>,
    /// Frequency, presence, repetition.
    pub(super) penalties: [Option<f64>; 3],
    pub(super) logit_bias: Option<&'a BTreeMap<String, f64>>,
    pub response_format: Option<&'a ResponseFormat>,
}

impl Common<'_> {
    /// Continuations of each prompt.
    ///
    /// Errors: those of the field.
    pub fn choices(&self) -> Result<usize, ApiError> {
        within("n", self.n.unwrap_or(1), 1, MOST_CHOICES)
    }

    /// Which of a stream's events tell of the tokens.
    ///
    /// Errors: those of the fields.
    pub fn usage(&self) -> Result<UsageTold, ApiError> {
        match self.stream_options {
            Some(_) if !self.stream => Err(ApiError::field("stream_options", "only where \"stream\" is true")),
            Some(options) => Ok(match (options.include_usage, options.continuous_usage_stats) {
                (_, Some(true)) => UsageTold::Always,
                (Some(true), _) => UsageTold::AtTheEnd,
                _ => UsageTold::Never,
            }),
            None => Ok(UsageTold::Never),
        }
    }

    /// A request of the scheduler for each prompt.
    ///
    /// Errors: those of the fields, with their names.
    pub fn requests(
        &self,
        served: &Served,
        prompts: Vec<Vec<u32>>,
        (param, max_tokens): (&str, Option<usize>),
        (salt, deadline): (u64, Instant),
    ) -> Result<Vec<Request>, ApiError> {
        let sampling = self.sampling()?;
        let seed = self.seed.map_or_else(|| fastrand::u64(..), |seed| seed as u64);
        let (stop_strings, stop_tokens) = (self.stop_strings()?, self.stop_tokens(served)?);
        prompts
            .into_iter()
            .map(|prompt| {
                let room = (served.context + 1).saturating_sub(prompt.len());
                if prompt.is_empty() {
                    return Err(ApiError::field("prompt", "has no tokens"));
                }
                if room == 0 || max_tokens.is_some_and(|most| most > room) {
                    let asked = max_tokens.map_or_else(String::new, |most| format!(" and {most} to make"));
                    let why = format!(
                        "{} tokens of the prompt{asked} are more than the {} that this server has room for",
                        prompt.len(),
                        served.context
                    );
                    let about = if room == 0 { "prompt" } else { param };
                    return Err(ApiError::new(StatusCode::BAD_REQUEST, "context_length_exceeded", why).about(about));
                }
                let max_new_tokens = max_tokens.unwrap_or(room);
                Ok(Request {
                    prompt,
                    generate: GenerateOptions { max_new_tokens, sampling, seed },
                    stop_tokens: stop_tokens.clone(),
                    stop_strings: stop_strings.clone(),
                    salt,
                    deadline: Some(deadline),
                })
            })
            .collect()
    }

    /// How tokens are drawn.
    ///
    /// Errors: those of the fields, with their names.
    fn sampling(&self) -> Result<Sampling, ApiError> {
        let temperature = number("temperature", self.temperature, 1.0, 0.0..=2.0)?;
        // What is above 0 and too small for an f32 keeps the likeliest token alone.
        let share = |name: &str, value: Option<f64>| match value {
            Some(value) if value <= 0.0 => Err(ApiError::field(name, format!("{value} is not above 0"))),
            value => Ok(number(name, value, 1.0, 0.0..=1.0)?.max(f32::MIN_POSITIVE)),
        };
        let [frequency, presence, repetition] = self.penalties;
        let penalties = Penalties {
            frequency: number("frequency_penalty", frequency, 0.0, -2.0..=2.0)?,
            presence: number("presence_penalty", presence, 0.0, -2.0..=2.0)?,
            repetition: match repetition {
                Some(value) if value <= 0.0 => {
                    return Err(ApiError::field("repetition_penalty", format!("{value} is not above 0")));
                }
                value => number("repetition_penalty", value, 1.0, 0.0..=100.0)?.max(f32::MIN_POSITIVE),
            },
            ..Penalties::default()
        };
        let top_k = match self.top_k.unwrap_or(0) {
            -1 => 0,
            k if k < -1 => return Err(ApiError::field("top_k", format!("{k} is not a number from -1 on"))),
            k => u32::try_from(k).unwrap_or(u32::MAX),
        };
        let min_p = number("min_p", self.min_p, 0.0, 0.0..=1.0)?;
        let (top_p, typical_p) = (share("top_p", self.top_p)?, share("typical_p", self.typical_p)?);
        Ok(Sampling { min_p, top_k, typical_p, penalties, ..Sampling::new(temperature, top_p) })
    }

    /// Tokens and what is added to their logits.
    ///
    /// Errors: those of the field.
    pub fn bias(&self, served: &Served) -> Result<Vec<(u32, f32)>, ApiError> {
        let wrong = |why: String| ApiError::field("logit_bias", why);
        let mut all = BTreeMap::new();
        for (key, bias) in self.logit_bias.into_iter().flatten() {
            let token = key.parse::<u32>().ok().filter(|token| (*token as usize) < served.vocab);
            let token =
                token.ok_or_else(|| wrong(format!("{key:?} is no token of the vocabulary of {}", served.vocab)))?;
            if !(-100.0..=100.0).contains(bias) {
                return Err(wrong(format!("{bias} for token {token} is not in -100 to 100")));
            }
            if all.insert(token, *bias as f32).is_some() {
                return Err(wrong(format!("token {token} is named twice")));
            }
        }
        Ok(all.into_iter().collect())
    }

    fn stop_strings(&self) -> Result<Vec<Vec<u8>>, ApiError> {
        let all: Vec<&String> = match self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text],
            Some(Stop::Several(texts)) => texts.iter().collect(),
        };
        within("stop", all.len(), 0, MOST_STOPS)?;
        for text in &all {
            if text.is_empty() || text.len() > MOST_STOP_BYTES {
                return Err(ApiError::field(
                    "stop",
                    format!("a text of {} bytes, not 1 to {MOST_STOP_BYTES}", text.len()),
                ));
            }
        }
        Ok(all.into_iter().map(|text| text.as_bytes().to_vec()).collect())
    }

    fn stop_tokens(&self, served: &Served) -> Result<Vec<u32>, ApiError> {
        within("stop_token_ids", self.stop_token_ids.len(), 0, 64)?;
        if let Some(token) = self.stop_token_ids.iter().find(|token| **token as usize >= served.vocab) {
            return Err(ApiError::field(
                "stop_token_ids",
                format!("{token} is not in the vocabulary of {}", served.vocab),
            ));
        }
        let mut all = self.stop_token_ids.to_vec();
        if !self.ignore_eos {
            all.extend(served.tokenizer.end_tokens().iter().filter(|token| (**token as usize) < served.vocab));
        }
        Ok(all)
    }
}

/// A number in a range, or what it is where it is not given.
fn number(name: &str, value: Option<f64>, default: f64, range: RangeInclusive<f64>) -> Result<f32, ApiError> {
    let value = value.unwrap_or(default);
    match range.contains(&value) {
        true => Ok(value as f32),
        false => Err(ApiError::field(name, format!("{value} is not in {} to {}", range.start(), range.end()))),
    }
}

/// A whole number in a range.
pub fn within(name: &str, value: usize, least: usize, most: usize) -> Result<usize, ApiError> {
    match (least..=most).contains(&value) {
        true => Ok(value),
        false => Err(ApiError::field(name, format!("{value} is not in {least} to {most}"))),
    }
}
