//! The fields of requests, and what they ask the scheduler for.

use crate::errors::ApiError;
use crate::model::Served;
use axum::http::StatusCode;
use latten::model::{GenerateOptions, Request};
use latten::nn::Sampling;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Instant;
use utoipa::ToSchema;

/// Continuations of a prompt at most, stop strings, and bytes of one of these.
const MOST_CHOICES: usize = 16;
const MOST_STOPS: usize = 16;
const MOST_STOP_BYTES: usize = 1024;

/// Both kinds of requests have these, and serde's `flatten` would forget the names of fields that are wrong.
macro_rules! request {
    ($(#[$of:meta])* struct $name:ident { $($(#[$own_of:meta])* $own:ident: $own_type:ty,)* }) => {
        $(#[$of])*
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$own_of])* pub $own: $own_type,)*
            /// The name that `/v1/models` gives; without it the model that is served.
            pub model: Option<String>,
            /// Tokens to make at most.
            #[schema(minimum = 1)]
            pub max_tokens: Option<usize>,
            /// Divides the logits: 0 takes the likeliest token, the default is 1.
            #[schema(minimum = 0, maximum = 2)]
            pub temperature: Option<f64>,
            /// Tokens are drawn from the likeliest ones that have so much probability together.
            #[schema(exclusive_minimum = 0, maximum = 1)]
            pub top_p: Option<f64>,
            /// Continuations of each prompt.
            #[schema(minimum = 1, maximum = 16)]
            pub n: Option<usize>,
            /// Texts that end it, which are not a part of the answer.
            pub stop: Option<Stop>,
            /// Tokens that end it.
            #[schema(max_items = 64)]
            pub stop_token_ids: Option<Vec<u32>>,
            /// Start of the random numbers: the same seed gives the same tokens; without it another answer each time.
            pub seed: Option<i64>,
            /// Whether the answer comes as it is made, as server-sent events.
            pub stream: Option<bool>,
            /// What a stream tells beside the answer.
            pub stream_options: Option<StreamOptions>,
            /// Whether tokens that end a text are tokens as any other.
            pub ignore_eos: Option<bool>,
            /// Only what changes nothing: 0.
            #[schema(minimum = 0, maximum = 0)]
            pub frequency_penalty: Option<f64>,
            /// Only what changes nothing: 0.
            #[schema(minimum = 0, maximum = 0)]
            pub presence_penalty: Option<f64>,
            /// Only what changes nothing: no tokens.
            pub logit_bias: Option<BTreeMap<String, f64>>,
            /// Who asks, for whom this server has no use.
            #[allow(dead_code)]
            pub user: Option<String>,
        }

        impl $name {
            /// What is asked for alike in both kinds.
            pub fn common(&self) -> Common<'_> {
                Common {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    n: self.n,
                    stop: self.stop.as_ref(),
                    stop_token_ids: self.stop_token_ids.as_deref().unwrap_or_default(),
                    seed: self.seed,
                    stream: self.stream.unwrap_or(false),
                    stream_options: self.stream_options.as_ref(),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    penalties: [
                        ("frequency_penalty", self.frequency_penalty),
                        ("presence_penalty", self.presence_penalty),
                    ],
                    biased: self.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty()),
                }
            }
        }
    };
}

request! {
    /// How a chat goes on.
    struct ChatRequest {
        /// All messages so far.
        #[schema(min_items = 1)]
        messages: Vec<ChatMessage>,
        /// The newer name of `max_tokens`; where both are given they must be equal.
        #[schema(minimum = 1)]
        max_completion_tokens: Option<usize>,
        /// Only what changes nothing: text.
        #[allow(dead_code)]
        response_format: Option<ResponseFormat>,
        /// Only what changes nothing: false.
        logprobs: Option<bool>,
    }
}

request! {
    /// How a text goes on.
    struct CompletionRequest {
        /// A text, or several, or tokens.
        prompt: Prompt,
        /// Whether the prompt is a part of the answer: only false.
        echo: Option<bool>,
    }
}

/// A message of a chat.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// Whose it is.
    pub role: Role,
    /// What it says.
    pub content: Content,
}

/// Whose a message is.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    /// The newer name of `system`.
    Developer,
    User,
    Assistant,
}

impl Role {
    /// As templates call it.
    pub fn name(self) -> &'static str {
        match self {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A text, or the parts of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a text, or a list of {\"type\": \"text\", \"text\": ..}")]
pub enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContentPart {
    #[serde(rename = "type")]
    #[allow(dead_code)] // there is one
    pub kind: TextKind,
    pub text: String,
}

/// Messages have text alone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TextKind {
    Text,
}

impl Content {
    pub fn into_text(self) -> String {
        match self {
            Content::Text(text) => text,
            Content::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }
}

/// What is to be continued.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a text, a list of texts, a list of tokens, or a list of lists of tokens")]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    Several(Vec<Vec<u32>>),
}

/// One text, or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a text or a list of texts")]
pub enum Stop {
    One(String),
    Several(Vec<String>),
}

/// What a stream tells beside the answer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// Whether a last event tells how many tokens prompt and answer have.
    pub include_usage: Option<bool>,
}

/// What an answer is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    #[allow(dead_code)] // there is one
    pub kind: FormatKind,
}

/// Any text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    Text,
}

/// What both kinds of requests ask for alike.
#[derive(Debug)]
pub struct Common<'a> {
    temperature: Option<f64>,
    top_p: Option<f64>,
    n: Option<usize>,
    stop: Option<&'a Stop>,
    stop_token_ids: &'a [u32],
    seed: Option<i64>,
    pub stream: bool,
    stream_options: Option<&'a StreamOptions>,
    ignore_eos: bool,
    penalties: [(&'static str, Option<f64>); 2],
    biased: bool,
}

impl Common<'_> {
    /// Continuations of each prompt.
    ///
    /// Errors: those of the field.
    pub fn choices(&self) -> Result<usize, ApiError> {
        within("n", self.n.unwrap_or(1), 1, MOST_CHOICES)
    }

    /// Whether a stream's last event tells of the tokens.
    ///
    /// Errors: those of the fields.
    pub fn include_usage(&self) -> Result<bool, ApiError> {
        match self.stream_options {
            Some(_) if !self.stream => Err(ApiError::field("stream_options", "only where \"stream\" is true")),
            Some(options) => Ok(options.include_usage.unwrap_or(false)),
            None => Ok(false),
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
        if self.biased {
            return Err(ApiError::unsupported("logit_bias"));
        }
        if let Some((name, _)) = self.penalties.into_iter().find(|(_, penalty)| penalty.is_some_and(|p| p != 0.0)) {
            return Err(ApiError::unsupported(name));
        }
        let temperature = self.temperature.unwrap_or(1.0);
        if !(0.0..=2.0).contains(&temperature) {
            return Err(ApiError::field("temperature", format!("{temperature} is not in 0 to 2")));
        }
        let top_p = self.top_p.unwrap_or(1.0);
        // As f32: what is above 0 and too small for it is the likeliest token alone.
        let as_f32 = (top_p as f32).max(f32::MIN_POSITIVE);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(ApiError::field("top_p", format!("{top_p} is not above 0 and at most 1")));
        }
        let sampling = Sampling::new(temperature as f32, as_f32);
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

/// A number in a range.
pub fn within(name: &str, value: usize, least: usize, most: usize) -> Result<usize, ApiError> {
    match (least..=most).contains(&value) {
        true => Ok(value),
        false => Err(ApiError::field(name, format!("{value} is not in {least} to {most}"))),
    }
}

impl ChatRequest {
    /// Tokens to make at most, and the name of the field that says so.
    ///
    /// Errors: those of the fields.
    pub fn most(&self) -> Result<(&'static str, Option<usize>), ApiError> {
        match (self.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                let why = format!("{new}, but max_tokens says {old}");
                Err(ApiError::field("max_completion_tokens", why))
            }
            (_, Some(0)) => Err(ApiError::field("max_completion_tokens", "0 is not a number from 1 on")),
            (Some(0), None) => Err(ApiError::field("max_tokens", "0 is not a number from 1 on")),
            (_, Some(new)) => Ok(("max_completion_tokens", Some(new))),
            (old, None) => Ok(("max_tokens", old)),
        }
    }
}
