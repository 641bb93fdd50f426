//! Texts to tokens and back.

use super::body::Fields;
use super::common::Common;
use super::fields::{ChatMessage, Prompt, ResponseFormat};
use crate::app::App;
use crate::errors::{ApiError, ErrorBody};
use crate::model::Served;
use axum::extract::State;
use axum::http::StatusCode;
use axum::Json;
use latten::model::{Grammar, GrammarCompiler, Message};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::sync::Arc;
use utoipa::ToSchema;

/// A text, or a chat.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    pub prompt: Option<String>,
    /// In place of a prompt: the tokens are those of the text that the chat template makes.
    #[schema(min_items = 1)]
    pub messages: Option<Vec<ChatMessage>>,
    /// The name of the model.
    pub model: Option<String>,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tokenized {
    pub count: usize,
    pub max_model_len: usize,
    pub tokens: Vec<u32>,
}

/// Tokens whose text is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    pub tokens: Vec<u32>,
    /// The name of the model.
    pub model: Option<String>,
}

/// The text of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct Detokenized {
    pub prompt: String,
}

/// The tokens of a text, with those that the model wants around it.
#[utoipa::path(post, path = "/tokenize", request_body = TokenizeRequest, security((), ("key" = [])), responses(
    (status = 200, body = Tokenized), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 408, body = ErrorBody), (status = 413, body = ErrorBody),
    (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)
))]
pub async fn tokenize(
    State(app): State<Arc<App>>,
    Fields(request): Fields<TokenizeRequest>,
) -> Result<Json<Tokenized>, ApiError> {
    let (served, _) = app.ready()?;
    check_model(served, request.model.as_deref())?;
    let tokens = match (request.prompt, request.messages) {
        (Some(text), None) => prompts(served, Prompt::Text(text)).await?,
        (None, Some(messages)) => vec![chat_prompt(served, messages).await?],
        _ => return Err(ApiError::field("prompt", "one of prompt and messages is wanted")),
    };
    let tokens = tokens.into_iter().next().unwrap_or_default();
    Ok(Json(Tokenized { count: tokens.len(), max_model_len: served.context, tokens }))
}

/// The text of tokens.
#[utoipa::path(post, path = "/detokenize", request_body = DetokenizeRequest, security((), ("key" = [])), responses(
    (status = 200, body = Detokenized), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 408, body = ErrorBody), (status = 413, body = ErrorBody),
    (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)
))]
pub async fn detokenize(
    State(app): State<Arc<App>>,
    Fields(request): Fields<DetokenizeRequest>,
) -> Result<Json<Detokenized>, ApiError> {
    let (served, _) = app.ready()?;
    check_model(served, request.model.as_deref())?;
    check_tokens(served, "tokens", &request.tokens)?;
    let served = served.clone();
    let prompt = apart(move || Ok(served.tokenizer.decode(&request.tokens))).await?;
    Ok(Json(Detokenized { prompt }))
}

/// Errors: 404 for another model than the one that is served.
pub fn check_model(served: &Served, name: Option<&str>) -> Result<(), ApiError> {
    match name.filter(|name| *name != served.name) {
        None => Ok(()),
        Some(name) => {
            let why = format!("the model {name:?} is not here, {:?} is", served.name);
            Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", why).about("model"))
        }
    }
}

fn check_tokens(served: &Served, name: &str, tokens: &[u32]) -> Result<(), ApiError> {
    match tokens.iter().find(|token| **token as usize >= served.vocab) {
        None => Ok(()),
        Some(token) => Err(ApiError::field(name, format!("{token} is not in the vocabulary of {}", served.vocab))),
    }
}

/// The tokens of prompts.
///
/// Errors: 400 for what is no token, or what the tokenizer refuses.
pub async fn prompts(served: &Arc<Served>, prompt: Prompt) -> Result<Vec<Vec<u32>>, ApiError> {
    let all = match prompt {
        Prompt::Text(text) => return encode(served, "prompt", vec![text]).await,
        Prompt::Texts(texts) => return encode(served, "prompt", texts).await,
        Prompt::Tokens(tokens) => vec![tokens],
        Prompt::Several(all) => all,
    };
    all.iter().try_for_each(|tokens| check_tokens(served, "prompt", tokens))?;
    Ok(all)
}

/// The tokens of a chat.
///
/// Errors: 400 where there is no template, or where it refuses the messages.
pub async fn chat_prompt(served: &Arc<Served>, messages: Vec<ChatMessage>) -> Result<Vec<u32>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "there are none"));
    }
    if served.template.is_none() {
        let why = "the model has no chat template, which would make a text of them: /v1/completions takes a text";
        return Err(ApiError::field("messages", why));
    }
    let messages: Vec<Message> =
        messages.into_iter().map(|message| Message::new(message.role.name(), message.content.into_text())).collect();
    let own = served.clone();
    let text = apart(move || own.render(&messages).map_err(|error| ApiError::of(&error).about("messages"))).await?;
    Ok(encode(served, "messages", vec![text]).await?.into_iter().next().unwrap_or_default())
}

async fn encode(served: &Arc<Served>, param: &'static str, texts: Vec<String>) -> Result<Vec<Vec<u32>>, ApiError> {
    let own = served.clone();
    let encoded = apart(move || {
        let encode = |text: String| own.tokenizer.encode(text).map_err(|error| ApiError::of(&error).about(param));
        texts.into_iter().map(encode).collect::<Result<Vec<_>, _>>()
    });
    let encoded = encoded.await?;
    encoded.iter().try_for_each(|tokens| check_tokens(served, param, tokens))?;
    Ok(encoded)
}

/// How a grammar is made of its text.
type Compile = fn(&GrammarCompiler, &str) -> latten::Result<Grammar>;

/// What the answer is to be.
///
/// Errors: 400 for a schema, an expression or a grammar that is none.
pub async fn grammar(served: &Arc<Served>, common: &Common<'_>) -> Result<Option<Grammar>, ApiError> {
    let own = served.clone();
    let (text, compile): (String, Compile) = match common.response_format {
        None | Some(ResponseFormat::Text {}) => return Ok(None),
        Some(ResponseFormat::JsonObject {}) => {
            (on_one_line(&json!({ "type": "object" })), GrammarCompiler::json_schema)
        }
        Some(ResponseFormat::JsonSchema { json_schema }) => {
            (on_one_line(&json_schema.schema), GrammarCompiler::json_schema)
        }
        Some(ResponseFormat::Regex { regex }) => (regex.clone(), GrammarCompiler::regex),
        Some(ResponseFormat::Lark { lark }) => (lark.clone(), GrammarCompiler::lark),
    };
    apart(move || own.grammar(|compiler| compile(compiler, &text))).await.map(Some)
}

/// A schema whose JSON has no more spaces than Python's: models that may write any number of them sometimes write nothing else.
fn on_one_line(schema: &Value) -> String {
    let mut schema = schema.clone();
    if let Some(keys) = schema.as_object_mut() {
        let spaces = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        keys.entry("x-guidance").or_insert(spaces);
    }
    schema.to_string()
}

/// Long texts take their time, in which others are served.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", error.to_string())),
    }
}
