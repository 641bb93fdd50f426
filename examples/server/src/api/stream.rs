//! Answers as they are made: server-sent events.

use super::answers::{
    ChatChunk, ChatLogprobs, ChunkChoice, Completion, CompletionChoice, Delta, FinishReason, TextLogprobs, Usage,
};
use super::common::UsageTold;
use super::generation::{reason, Form, Head};
use crate::engine::Piece;
use crate::errors::ApiError;
use axum::http::{header, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;

/// After so long without an event a comment shows that the server is there.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A stream of what comes. When it is dropped, as it is when its client goes away, so are the requests.
pub fn stream(head: Head, first: Option<Piece>, mut got: UnboundedReceiver<Piece>) -> Response {
    let events = async_stream::stream! {
        let mut answer = Answer::new(head);
        let mut next = first;
        while answer.left > 0 {
            let piece = match next.take() {
                Some(piece) => Some(piece),
                None => got.recv().await,
            };
            for event in answer.events(piece) {
                yield Ok::<Event, Infallible>(event);
            }
        }
        for event in answer.end() {
            yield Ok(event);
        }
    };
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // For proxies that would collect the events.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// An answer under way.
struct Answer {
    head: Head,
    /// By choice: tokens so far, and whether its first event was sent.
    tokens: Vec<usize>,
    /// Characters so far.
    characters: Vec<usize>,
    begun: Vec<bool>,
    left: usize,
    failed: bool,
}

impl Answer {
    fn new(head: Head) -> Self {
        let n = head.choices;
        Answer { tokens: vec![0; n], characters: vec![0; n], begun: vec![false; n], left: n, failed: false, head }
    }

    /// What a piece is to the client; with none the server ended.
    fn events(&mut self, piece: Option<Piece>) -> Vec<Event> {
        let (choice, text, token, end) = match piece {
            Some(Piece::Part { choice, text, token, end }) => (choice, text, token, end),
            Some(Piece::Refused(error)) => return self.fail(&error),
            None => return self.fail(&ApiError::unavailable("shutting_down", "the server ended before the answer")),
        };
        self.tokens[choice] += usize::from(token.is_some());
        let mut events = Vec::new();
        if self.head.form == Form::Chat && !std::mem::replace(&mut self.begun[choice], true) {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            events.push(self.chat_event((choice, delta), None, None));
        }
        let told = token.and_then(|token| self.head.told(&token));
        let offset = self.characters[choice];
        self.characters[choice] += text.chars().count();
        let end = match end.map(|end| reason(end, self.tokens[choice].max(1))) {
            Some(Err(error)) => {
                events.extend(self.fail(&error));
                return events;
            }
            Some(Ok(why)) => {
                self.left -= 1;
                Some(why)
            }
            None => None,
        };
        match self.head.form {
            Form::Chat => {
                if !text.is_empty() || told.is_some() {
                    let delta = Delta { role: None, content: Some(text) };
                    let logprobs = told.map(|told| ChatLogprobs { content: vec![told] });
                    events.push(self.chat_event((choice, delta), logprobs, None));
                }
                if end.is_some() {
                    events.push(self.chat_event((choice, Delta::default()), None, end));
                }
            }
            Form::Text if !text.is_empty() || told.is_some() || end.is_some() => {
                let logprobs = told.map(|told| {
                    let mut logprobs = TextLogprobs::default();
                    logprobs.push(told, offset);
                    logprobs
                });
                let choice = CompletionChoice { index: choice, text, logprobs, finish_reason: end };
                events.push(self.text_event(vec![choice], None));
            }
            Form::Text => {}
        }
        events
    }

    /// What comes after all parts.
    fn end(&self) -> Vec<Event> {
        let mut events = Vec::new();
        if self.head.usage != UsageTold::Never && !self.failed {
            let usage = Usage::new(self.head.prompt_tokens, self.tokens.iter().sum());
            events.push(match self.head.form {
                Form::Chat => self.chunk(Vec::new(), Some(usage)),
                Form::Text => self.text_event(Vec::new(), Some(usage)),
            });
        }
        events.push(Event::default().data("[DONE]"));
        events
    }

    /// The stream ends with an error: its status was sent long ago.
    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        (self.left, self.failed) = (0, true);
        vec![json(&error.body())]
    }

    fn chat_event(
        &self,
        (index, delta): (usize, Delta),
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<FinishReason>,
    ) -> Event {
        self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason }], None)
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> Event {
        let Head { id, created, model, system_fingerprint, .. } = self.head.clone();
        let (object, usage) = ("chat.completion.chunk", self.usage(usage));
        json(&ChatChunk { id, object, created, model, system_fingerprint, choices, usage })
    }

    /// What an event tells of the tokens: where it was asked for, the last one all, the others null or what there is so far.
    fn usage(&self, all: Option<Usage>) -> Option<Option<Usage>> {
        match self.head.usage {
            UsageTold::Never => None,
            UsageTold::AtTheEnd => Some(all),
            UsageTold::Always => Some(Some(Usage::new(self.head.prompt_tokens, self.tokens.iter().sum()))),
        }
    }

    fn text_event(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Event {
        let Head { id, created, model, system_fingerprint, .. } = self.head.clone();
        let (object, usage) = ("text_completion", self.usage(usage));
        json(&Completion { id, object, created, model, system_fingerprint, choices, usage })
    }
}

fn json<T: serde::Serialize>(value: &T) -> Event {
    // A struct of texts and numbers has no JSON that fails.
    Event::default().data(serde_json::to_string(value).unwrap_or_default())
}
