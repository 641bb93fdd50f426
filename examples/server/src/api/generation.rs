//! Chats and texts that go on.

use super::answers::{
    AnswerMessage, ChatChoice, ChatCompletion, ChatLogprobs, Completion, CompletionChoice, FinishReason, StreamEvent,
    TextLogprobs, TokenLogprob, TopLogprob, Usage,
};
use super::body::Fields;
use super::common::{within, Common, UsageTold};
use super::fields::{ChatRequest, CompletionRequest, Prompt};
use super::stream::stream;
use super::words;
use crate::app::App;
use crate::engine::{Command, Drawing, End, Job, Piece, Token};
use crate::errors::{ApiError, ErrorBody};
use crate::model::Served;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use latten::nn::Logprobs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};
use tokio::sync::OwnedSemaphorePermit;

/// Prompts of a request at most.
const MOST_PROMPTS: usize = 128;
/// Tokens of a text that goes on, where nobody says how many.
const DEFAULT_TOKENS: usize = 16;
/// For so long a stream waits for its first token before it begins without one.
/// What a token has that cannot be: JSON has no infinity.
const LEAST_LOGPROB: f32 = -9999.0;
const PATIENCE: Duration = Duration::from_secs(1);

/// The two forms of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Chat,
    Text,
}

/// What all parts of an answer say.
#[derive(Debug, Clone)]
pub struct Head {
    pub form: Form,
    pub id: String,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub prompt_tokens: usize,
    pub choices: usize,
    /// Which of a stream's events tell of the tokens.
    pub usage: UsageTold,
    /// Whether log-probabilities are told.
    pub logprobs: bool,
    served: Arc<Served>,
}

/// How a chat goes on.
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest, security((), ("key" = [])), responses(
    (status = 200, description = "The answer, or with `stream` events of ChatChunk, the last of which is [DONE]",
        content((ChatCompletion = "application/json"), (StreamEvent = "text/event-stream"))),
    (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 408, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 429, body = ErrorBody), (status = 500, body = ErrorBody), (status = 503, body = ErrorBody)
))]
pub async fn chat(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Fields(mut request): Fields<ChatRequest>,
) -> Result<Response, ApiError> {
    let (received, (served, _)) = (Instant::now(), app.ready()?);
    words::check_model(served, request.model.as_deref())?;
    let prompts = vec![words::chat_prompt(served, std::mem::take(&mut request.messages)).await?];
    let (most, logprobs) = (request.most()?, request.told()?);
    let asked = Asked { form: Form::Chat, prompts, most, logprobs, received, salt: app.salt(&headers) };
    answer(&app, asked, &request.common()).await
}

/// How a text goes on.
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest, security((), ("key" = [])), responses(
    (status = 200, description = "The answer, or with `stream` events of Completion, the last of which is [DONE]",
        content((Completion = "application/json"), (StreamEvent = "text/event-stream"))),
    (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 408, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 429, body = ErrorBody), (status = 500, body = ErrorBody), (status = 503, body = ErrorBody)
))]
pub async fn complete(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Fields(mut request): Fields<CompletionRequest>,
) -> Result<Response, ApiError> {
    let (received, (served, _)) = (Instant::now(), app.ready()?);
    words::check_model(served, request.model.as_deref())?;
    if request.echo == Some(true) {
        return Err(ApiError::unsupported("echo"));
    }
    let most = ("max_tokens", Some(request.max_tokens.unwrap_or(DEFAULT_TOKENS)));
    within("max_tokens", most.1.unwrap_or(DEFAULT_TOKENS), 1, usize::MAX)?;
    let prompt = std::mem::replace(&mut request.prompt, Prompt::Text(String::new()));
    let prompts = words::prompts(served, prompt).await?;
    let logprobs = request.logprobs.map(|count| within("logprobs", count, 0, Logprobs::MOST)).transpose()?;
    let asked = Asked { form: Form::Text, prompts, most, logprobs, received, salt: app.salt(&headers) };
    answer(&app, asked, &request.common()).await
}

/// What a request is about, beside the fields that both kinds have.
struct Asked {
    form: Form,
    prompts: Vec<Vec<u32>>,
    /// Tokens to make at most, and the name of the field that says so.
    most: (&'static str, Option<usize>),
    /// Whether log-probabilities are told, and of how many likely tokens beside the answer's.
    logprobs: Option<usize>,
    received: Instant,
    salt: u64,
}

/// Puts a request into the queue, and answers with what comes.
async fn answer(app: &Arc<App>, asked: Asked, common: &Common<'_>) -> Result<Response, ApiError> {
    let (served, commands) = app.ready()?;
    let Asked { form, prompts, most, logprobs, received, salt } = asked;
    within("prompt", prompts.len(), 1, MOST_PROMPTS)?;
    let (times, usage) = (common.choices()?, common.usage()?);
    let choices = times * prompts.len();
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let requests = common.requests(served, prompts, most, (salt, received + app.args.request_timeout))?;
    let drawing = Drawing { bias: common.bias(served)?, logprobs, grammar: words::grammar(served, common).await? };
    let _places = take_places(app, choices)?;
    let head = Head::new((form, served), prompt_tokens, choices, (usage, logprobs.is_some()));
    let (pieces, mut got) = unbounded_channel();
    let job = Job {
        id: head.id.clone(),
        prompts: requests.into_iter().map(|request| (request, times)).collect(),
        drawing,
        pieces,
        received,
        _places,
        first_token_by: received + app.args.first_token_timeout,
    };
    let gone = || ApiError::unavailable("shutting_down", "the server runs no more requests");
    commands.send(Command::Job(Box::new(job))).map_err(|_| gone())?;
    if !common.stream {
        return whole(head, got).await;
    }
    // What is refused is so at once, with a status of its own. Whoever waits for a place is told that the answer begins.
    let first = tokio::time::timeout(PATIENCE, got.recv()).await;
    match first {
        Ok(None) => Err(gone()),
        Ok(Some(Piece::Refused(error))) => Err(error),
        Ok(Some(piece)) => Ok(stream(head, Some(piece), got)),
        Err(_) => Ok(stream(head, None, got)),
    }
}

/// Places in the queue for so many choices.
fn take_places(app: &App, choices: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let all = app.args.max_batch.saturating_add(app.args.max_queue);
    let wanted = u32::try_from(choices).ok().filter(|_| choices <= all);
    let Some(wanted) = wanted else {
        return Err(ApiError::field("n", format!("{choices} answers are more than the {all} that have room at all")));
    };
    app.places.clone().try_acquire_many_owned(wanted).map_err(|_| {
        app.metrics.ended.with_label_values(&["queue_full"]).inc();
        let why = format!("{all} requests run or wait already");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", why).retry(1)
    })
}

/// One continuation of an answer.
#[derive(Debug, Default)]
struct Whole {
    text: String,
    tokens: usize,
    /// By token, with the characters before it.
    told: Vec<(TokenLogprob, usize)>,
    end: Option<FinishReason>,
}

/// Waits for all of the answer.
async fn whole(head: Head, mut got: UnboundedReceiver<Piece>) -> Result<Response, ApiError> {
    let mut all: Vec<Whole> = (0..head.choices).map(|_| Whole::default()).collect();
    while all.iter().any(|one| one.end.is_none()) {
        match got.recv().await {
            None => return Err(ApiError::unavailable("shutting_down", "the server ended before the answer")),
            Some(Piece::Refused(error)) => return Err(error),
            Some(Piece::Part { choice, text, token, end }) => {
                let one = &mut all[choice];
                one.tokens += usize::from(token.is_some());
                let offset = one.text.chars().count();
                one.told.extend(token.and_then(|token| head.told(&token)).map(|told| (told, offset)));
                one.text += &text;
                if let Some(end) = end {
                    one.end = Some(reason(end, one.tokens)?);
                }
            }
        }
    }
    let usage = Usage::new(head.prompt_tokens, all.iter().map(|one| one.tokens).sum());
    let all = all.into_iter().enumerate();
    let Head { id, created, model, system_fingerprint, logprobs, .. } = head;
    Ok(match head.form {
        Form::Chat => {
            let choice = |(index, one): (usize, Whole)| ChatChoice {
                index,
                message: AnswerMessage { role: "assistant", content: one.text },
                logprobs: logprobs
                    .then(|| ChatLogprobs { content: one.told.into_iter().map(|(told, _)| told).collect() }),
                finish_reason: one.end.unwrap_or(FinishReason::Abort),
            };
            let (object, choices) = ("chat.completion", all.map(choice).collect());
            Json(ChatCompletion { id, object, created, model, system_fingerprint, choices, usage }).into_response()
        }
        Form::Text => {
            let choice = |(index, one): (usize, Whole)| {
                let mut told = TextLogprobs::default();
                one.told.into_iter().for_each(|(token, offset)| told.push(token, offset));
                let logprobs = logprobs.then_some(told);
                CompletionChoice { index, text: one.text, logprobs, finish_reason: one.end }
            };
            let (object, usage, choices) = ("text_completion", Some(Some(usage)), all.map(choice).collect());
            Json(Completion { id, object, created, model, system_fingerprint, choices, usage }).into_response()
        }
    })
}

/// The word for an end.
///
/// Errors: what has no answer at all.
pub fn reason(end: End, tokens: usize) -> Result<FinishReason, ApiError> {
    match end {
        End::Stop => Ok(FinishReason::Stop),
        End::Length => Ok(FinishReason::Length),
        End::Abort if tokens == 0 => Err(ApiError::unavailable("shutting_down", "the server is going down")),
        End::Abort => Ok(FinishReason::Abort),
        End::Timeout if tokens == 0 => {
            Err(ApiError::unavailable("timeout", "no token came in the time that requests have"))
        }
        End::Timeout => Ok(FinishReason::Timeout),
        End::Failed(error) => Err(error),
    }
}

impl Head {
    fn new(
        (form, served): (Form, &Arc<Served>),
        prompt_tokens: usize,
        choices: usize,
        (usage, logprobs): (UsageTold, bool),
    ) -> Self {
        let kind = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        Head {
            form,
            id: format!("{kind}-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            model: served.name.clone(),
            system_fingerprint: served.fingerprint.clone(),
            prompt_tokens,
            choices,
            usage,
            logprobs,
            served: served.clone(),
        }
    }

    /// How likely a token was, where that is told.
    pub fn told(&self, token: &Token) -> Option<TokenLogprob> {
        let logprob = |value: f32| value.max(LEAST_LOGPROB);
        let words = |token: u32| {
            let bytes = self.served.tokenizer.token_bytes(token);
            (String::from_utf8_lossy(&bytes).into_owned(), bytes)
        };
        let top = token.most_likely.iter().map(|(token, value)| {
            let (token, bytes) = words(*token);
            TopLogprob { token, logprob: logprob(*value), bytes }
        });
        let value = logprob(token.log_probability?);
        let top_logprobs = top.collect();
        let (token, bytes) = words(token.token);
        Some(TokenLogprob { token, logprob: value, bytes, top_logprobs })
    }
}
