//! Chats and texts that go on.

use super::answers::{
    AnswerMessage, ChatChoice, ChatCompletion, Completion, CompletionChoice, FinishReason, StreamEvent, Usage,
};
use super::body::Fields;
use super::fields::{within, ChatRequest, Common, CompletionRequest, Prompt};
use super::stream::stream;
use super::words;
use crate::app::App;
use crate::engine::{Command, End, Job, Piece};
use crate::errors::{ApiError, ErrorBody};
use crate::model::Served;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};
use tokio::sync::OwnedSemaphorePermit;

/// Prompts of a request at most.
const MOST_PROMPTS: usize = 128;
/// Tokens of a text that goes on, where nobody says how many.
const DEFAULT_TOKENS: usize = 16;
/// For so long a stream waits for its first token before it begins without one.
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
    /// Whether a stream's last event tells of the tokens.
    pub include_usage: bool,
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
    if request.logprobs == Some(true) {
        return Err(ApiError::unsupported("logprobs"));
    }
    let prompts = vec![words::chat_prompt(served, std::mem::take(&mut request.messages)).await?];
    let asked = Asked { form: Form::Chat, prompts, most: request.most()?, received, salt: app.salt(&headers) };
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
    let asked = Asked { form: Form::Text, prompts, most, received, salt: app.salt(&headers) };
    answer(&app, asked, &request.common()).await
}

/// What a request is about, beside the fields that both kinds have.
struct Asked {
    form: Form,
    prompts: Vec<Vec<u32>>,
    /// Tokens to make at most, and the name of the field that says so.
    most: (&'static str, Option<usize>),
    received: Instant,
    salt: u64,
}

/// Puts a request into the queue, and answers with what comes.
async fn answer(app: &Arc<App>, asked: Asked, common: &Common<'_>) -> Result<Response, ApiError> {
    let (served, commands) = app.ready()?;
    let Asked { form, prompts, most, received, salt } = asked;
    within("prompt", prompts.len(), 1, MOST_PROMPTS)?;
    let (times, include_usage) = (common.choices()?, common.include_usage()?);
    let choices = times * prompts.len();
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let requests = common.requests(served, prompts, most, (salt, received + app.args.request_timeout))?;
    let _places = take_places(app, choices)?;
    let head = Head::new(form, served, prompt_tokens, choices, include_usage);
    let (pieces, mut got) = unbounded_channel();
    let job = Job {
        id: head.id.clone(),
        prompts: requests.into_iter().map(|request| (request, times)).collect(),
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

/// Waits for all of the answer.
async fn whole(head: Head, mut got: UnboundedReceiver<Piece>) -> Result<Response, ApiError> {
    let mut texts = vec![String::new(); head.choices];
    let (mut ends, mut tokens, mut left) = (vec![None; head.choices], vec![0; head.choices], head.choices);
    while left > 0 {
        match got.recv().await {
            None => return Err(ApiError::unavailable("shutting_down", "the server ended before the answer")),
            Some(Piece::Refused(error)) => return Err(error),
            Some(Piece::Part { choice, text, token, end }) => {
                texts[choice] += &text;
                tokens[choice] += usize::from(token.is_some());
                if let Some(end) = end {
                    left -= 1;
                    ends[choice] = Some(reason(end, tokens[choice])?);
                }
            }
        }
    }
    let usage = Usage::new(head.prompt_tokens, tokens.iter().sum());
    let parts = texts.into_iter().zip(ends).enumerate();
    Ok(match head.form {
        Form::Chat => {
            let choice = |(index, (content, end)): (usize, (String, Option<FinishReason>))| ChatChoice {
                index,
                message: AnswerMessage { role: "assistant", content },
                logprobs: None,
                finish_reason: end.unwrap_or(FinishReason::Abort),
            };
            let choices = parts.map(choice).collect();
            let Head { id, created, model, system_fingerprint, .. } = head;
            let object = "chat.completion";
            Json(ChatCompletion { id, object, created, model, system_fingerprint, choices, usage }).into_response()
        }
        Form::Text => {
            let choice =
                |(index, (text, finish_reason))| CompletionChoice { index, text, logprobs: None, finish_reason };
            let choices = parts.map(choice).collect();
            let Head { id, created, model, system_fingerprint, .. } = head;
            let (object, usage) = ("text_completion", Some(Some(usage)));
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
    fn new(form: Form, served: &Served, prompt_tokens: usize, choices: usize, include_usage: bool) -> Self {
        let kind = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        Head {
            form,
            id: format!("{kind}-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            model: served.name.clone(),
            system_fingerprint: served.fingerprint.clone(),
            prompt_tokens,
            choices,
            include_usage,
        }
    }
}
