//! The fields of requests.

use super::common::{within, Common};
use crate::errors::ApiError;
use latten::nn::Logprobs;
use serde::Deserialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

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
            /// Keep so many of the likeliest tokens; 0 and -1 keep all.
            #[schema(minimum = -1)]
            pub top_k: Option<i64>,
            /// Keep the tokens whose probability is at least this share of the largest.
            #[schema(minimum = 0, maximum = 1)]
            pub min_p: Option<f64>,
            /// Keep the tokens whose information is closest to its mean, of so much probability together.
            #[schema(exclusive_minimum = 0, maximum = 1)]
            pub typical_p: Option<f64>,
            /// Subtracted from the logits of tokens that were drawn, as often as they were.
            #[schema(minimum = -2, maximum = 2)]
            pub frequency_penalty: Option<f64>,
            /// Subtracted from the logits of tokens that were drawn.
            #[schema(minimum = -2, maximum = 2)]
            pub presence_penalty: Option<f64>,
            /// Divides the positive logits of tokens of prompt and answer, and multiplies the others.
            #[schema(exclusive_minimum = 0, maximum = 100)]
            pub repetition_penalty: Option<f64>,
            /// Added to the logits of tokens, which are the keys: -100 to 100.
            pub logit_bias: Option<BTreeMap<String, f64>>,
            /// What the answer is to be; any text without it.
            pub response_format: Option<ResponseFormat>,
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
                    top_k: self.top_k,
                    min_p: self.min_p,
                    typical_p: self.typical_p,
                    penalties: [self.frequency_penalty, self.presence_penalty, self.repetition_penalty],
                    logit_bias: self.logit_bias.as_ref(),
                    response_format: self.response_format.as_ref(),
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
        /// Whether the log-probabilities of the answer's tokens are told.
        logprobs: Option<bool>,
        /// And of so many of the likeliest tokens in each place.
        #[schema(minimum = 0, maximum = 20)]
        top_logprobs: Option<usize>,
    }
}

request! {
    /// How a text goes on.
    struct CompletionRequest {
        /// A text, or several, or tokens.
        prompt: Prompt,
        /// Whether the prompt is a part of the answer: only false.
        echo: Option<bool>,
        /// The log-probabilities of the answer's tokens, and of so many of the likeliest in each place.
        #[schema(minimum = 0, maximum = 20)]
        logprobs: Option<usize>,
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
    /// Whether each event tells how many there are so far.
    pub continuous_usage_stats: Option<bool>,
}

/// What an answer is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    /// Any text.
    Text {},
    /// An object in JSON.
    JsonObject {},
    /// JSON by a schema.
    JsonSchema { json_schema: JsonSchema },
    /// Text that a regular expression matches as a whole.
    Regex { regex: String },
    /// Text of a grammar in llguidance's variant of Lark.
    Lark { lark: String },
}

/// JSON by a schema.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonSchema {
    #[schema(value_type = Object)]
    pub schema: serde_json::Value,
    /// What it is called, for which this server has no use.
    #[allow(dead_code)]
    pub name: Option<String>,
    /// Another for which it has none.
    #[allow(dead_code)]
    pub description: Option<String>,
    /// Schemas are always kept to the letter.
    #[allow(dead_code)]
    pub strict: Option<bool>,
}

impl ChatRequest {
    /// Whether log-probabilities are told, and of how many likely tokens beside the answer's.
    ///
    /// Errors: those of the fields.
    pub fn told(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (false, Some(_)) => Err(ApiError::field("top_logprobs", "only where \"logprobs\" is true")),
            (false, None) => Ok(None),
            (true, count) => within("top_logprobs", count.unwrap_or(0), 0, Logprobs::MOST).map(Some),
        }
    }

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
