//! What clients are answered.

use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// By itself, or at one of the stop strings.
    Stop,
    /// It has the tokens that were asked for, or there is no room for more.
    Length,
    /// The server went down.
    Abort,
    /// Its time was up.
    Timeout,
}

/// A server-sent event.
#[derive(Debug, Serialize, ToSchema)]
pub struct StreamEvent {
    /// A ChatChunk or Completion in JSON, an ErrorBody, or at the end [DONE].
    pub data: String,
}

/// How many tokens there were.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

impl Usage {
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// An answer to a chat.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
}

/// One of its continuations.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AnswerMessage,
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: FinishReason,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnswerMessage {
    pub role: &'static str,
    pub content: String,
}

/// An event of a stream that answers a chat.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    /// One; none in the event that tells of the tokens.
    pub choices: Vec<ChunkChoice>,
    /// Where it was asked for: in the last event alone, else null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// What is new of a continuation.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    pub index: usize,
    pub delta: Delta,
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    #[schema(required)]
    pub finish_reason: Option<FinishReason>,
}

/// What is new of a message.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Delta {
    /// In a continuation's first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// A text that goes on; also an event of a stream of one.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One of its continuations, or what is new of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    #[schema(required)]
    pub logprobs: Option<TextLogprobs>,
    #[schema(required)]
    pub finish_reason: Option<FinishReason>,
}

/// How likely the tokens of a chat's answer were.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<TokenLogprob>,
}

/// How likely a token was, by the model's logits as they are.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    /// The likeliest tokens in its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// How likely another token was.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// How likely the tokens of a text were.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct TextLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<f32>,
    /// The likeliest tokens in each place; of those with one text the likeliest.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Characters of the answer that were given out before the token.
    pub text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// One more token, after so many characters.
    pub fn push(&mut self, token: TokenLogprob, offset: usize) {
        let mut likely = BTreeMap::new();
        for TopLogprob { token, logprob, .. } in token.top_logprobs {
            likely.entry(token).or_insert(logprob);
        }
        self.tokens.push(token.token);
        self.token_logprobs.push(token.logprob);
        self.top_logprobs.push(likely);
        self.text_offset.push(offset);
    }
}

/// The models that are served.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    pub object: &'static str,
    pub data: Vec<ModelCard>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelCard {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub owned_by: &'static str,
    /// Tokens that prompt and answer may have together.
    pub max_model_len: usize,
}

/// That all is well.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    pub status: &'static str,
    pub model: String,
}
