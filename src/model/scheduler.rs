//! Continuous batching: requests that come and go between steps, and share them.

use super::request::{Active, Event, Finished, Request, RequestId};
use super::session::{Draw, Session, Want};
use super::tokenizer::Tokenizer;
use super::words::Words;
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The bytes of a token.
type TokenBytes = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// Requests over one [`Session`], as many at a time as its `max_batch`.
///
/// A step is one [`Session::feed`] of at most the session's chunk of tokens: one of each request that is past its prompt,
/// and of the prompts as much as there is room for, the oldest first. Requests are taken up in the order they came. Where
/// the cache is full, the youngest gives up its part and waits; later it is computed again, from what it had. A request
/// alone gives the tokens of [`generate()`](super::generate()) with its seed. Among others, and after it was
/// computed again, its logits may differ in their last bits, as they do wherever steps are of another size.
///
/// Dropping a step half way, and an error of one, change nothing: call it again. After a lost device
/// [`Session::rebuild`] the session, and go on.
pub struct Scheduler {
    session: Session,
    /// The oldest first. Those with a sequence come before those without.
    requests: Vec<Active>,
    next_id: u64,
    /// Of requests that ended between steps.
    events: Vec<Event>,
    token_bytes: TokenBytes,
    tokenizer: Option<Arc<Tokenizer>>,
    preemptions: u64,
    /// Pages that could be had when the first that waits was last refused.
    refused_at: Option<usize>,
}

/// What one request does in a step.
struct Part {
    request: usize,
    sequence: SeqId,
    /// Those of its tokens that are fed, by their end.
    from: usize,
    to: usize,
}

impl Scheduler {
    /// Takes a session; other sequences in it stay as they are, and what they hold is not given to requests. Tokens
    /// below 256 are bytes, others have none: see [`Scheduler::with_tokenizer`] and
    /// [`Scheduler::with_token_bytes`].
    pub fn new(session: Session) -> Self {
        let token_bytes: TokenBytes = Box::new(|token| u8::try_from(token).into_iter().collect());
        Scheduler {
            session,
            requests: Vec::new(),
            next_id: 0,
            events: Vec::new(),
            token_bytes,
            tokenizer: None,
            preemptions: 0,
            refused_at: None,
        }
    }

    /// The bytes of each token, for stop strings and events.
    pub fn with_token_bytes(self, bytes: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Scheduler { token_bytes: Box::new(bytes), ..self }
    }

    /// Texts by a tokenizer, for stop strings and events of requests added from now on: those of
    /// [`Tokenizer::stream_after`] the prompt. So stop strings are found wherever tokens begin and end, and the space
    /// before a first word is there where the prompt has a word before it. Bytes come in whole characters.
    pub fn with_tokenizer(self, tokenizer: impl Into<Arc<Tokenizer>>) -> Self {
        Scheduler { tokenizer: Some(tokenizer.into()), ..self }
    }

    /// Adds a request; the next steps take it up.
    ///
    /// Errors: [`ErrorKind::Argument`] for an empty prompt, no tokens to make, a token not in the vocabulary, an empty stop
    /// string, a bad sampling, or more tokens than the model has positions for; [`ErrorKind::CacheFull`] where the whole
    /// cache could not hold it.
    pub fn add(&mut self, request: Request) -> Result<RequestId> {
        request.check(&self.session)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let words = self.tokenizer.as_ref().map(|tokenizer| Words::after(tokenizer, &request.prompt));
        self.requests.push(Active::new(id, request).with_words(words));
        Ok(id)
    }

    /// Ends a request. Its last event, with the text that was held back, comes with the next step.
    ///
    /// Errors: [`ErrorKind::Argument`] for one that has ended.
    pub fn cancel(&mut self, id: RequestId) -> Result<()> {
        let Some(place) = self.requests.iter().position(|request| request.id == id) else {
            return Err(ErrorKind::argument("id", format!("request {} is not under way", id.0)));
        };
        self.session.roll_back();
        let event = self.requests[place].end(Finished::Cancelled);
        self.remove(place)?;
        self.events.push(event);
        Ok(())
    }

    /// Whether no request is under way and no event is left.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.events.is_empty()
    }

    /// Requests with a part of the cache.
    pub fn running(&self) -> usize {
        self.requests.iter().filter(|request| request.sequence.is_some()).count()
    }

    /// Requests without: those that no step has taken up yet, and those that gave up their part.
    pub fn waiting(&self) -> usize {
        self.requests.len() - self.running()
    }

    /// How often a request gave up its part of the cache.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, for sequences of the caller's own, pins, and [`Session::rebuild`].
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The session without the requests, which end without an event.
    pub fn into_session(mut self) -> Result<Session> {
        self.session.roll_back();
        while !self.requests.is_empty() {
            self.remove(self.requests.len() - 1)?;
        }
        Ok(self.session)
    }

    /// One step of all requests that there is room for, at least of one. Returns what it gave: an event for each that
    /// got a token or ended, by age of the request, after those of requests that were cancelled. Steps that only feed parts of prompts give none.
    ///
    /// Errors: those of the device, as [`Session::feed`].
    pub async fn step(&mut self) -> Result<Vec<Event>> {
        // What an earlier step left half done.
        self.session.roll_back();
        self.admit()?;
        let parts = self.plan()?;
        if !parts.is_empty() {
            let batch = parts.iter().map(|p| (p.sequence, &self.requests[p.request].tokens[p.from..p.to]));
            let batch: Vec<(SeqId, &[u32])> = batch.collect();
            let ends = |part: &Part| part.to == self.requests[part.request].tokens.len();
            // What comes after a part of a prompt is known.
            let draw = |part: &Part| if ends(part) { self.requests[part.request].draw() } else { Draw::default() };
            let draws: Vec<Draw> = parts.iter().map(draw).collect();
            let drawn: Vec<bool> = parts.iter().map(ends).collect();
            let fed = self.session.feed(&batch, Want::Token(&draws)).await?;
            for ((part, token), _) in parts.iter().zip(fed.tokens).zip(drawn).filter(|(_, drawn)| *drawn) {
                let event = self.requests[part.request].take(token, &(self.token_bytes)(token));
                self.events.push(event);
            }
        }
        let events = std::mem::take(&mut self.events);
        for event in events.iter().filter(|event| event.finished.is_some()) {
            if let Some(place) = self.requests.iter().position(|request| request.id == event.id) {
                self.remove(place)?;
            }
        }
        Ok(events)
    }

    /// Steps until all requests have ended, or `on_event` stops, after which more steps go on.
    ///
    /// Errors: those of [`Scheduler::step`].
    pub async fn run(&mut self, mut on_event: impl FnMut(Event) -> ControlFlow<()>) -> Result<()> {
        while !self.is_idle() {
            let mut events = self.step().await?.into_iter();
            if events.by_ref().any(|event| on_event(event).is_break()) {
                // Those that were not seen come first in the next step.
                self.events.extend(events);
                break;
            }
            super::owned::pause().await;
        }
        Ok(())
    }

    fn remove(&mut self, place: usize) -> Result<()> {
        let request = self.requests.remove(place);
        self.refused_at = None;
        request.sequence.map_or(Ok(()), |id| self.session.remove(id))
    }

    /// Pages that requests of these tokens still need, one token more included.
    fn pages_for(&self, tokens: usize, held: usize) -> usize {
        let size = self.session.cache().pages().size;
        (tokens + 1).div_ceil(size).saturating_sub(held.div_ceil(size))
    }

    /// Gives sequences to those that wait, as long as there is room for all of their tokens beside those that run.
    fn admit(&mut self) -> Result<()> {
        loop {
            let running = self.running();
            if running == self.requests.len() || running == self.session.max_batch() {
                return Ok(());
            }
            let available = |session: &Session| session.stats().available();
            if running > 0 && self.refused_at.is_some_and(|before| available(&self.session) <= before) {
                return Ok(());
            }
            let mut needed = 0;
            for request in &self.requests[..running] {
                let held = request.sequence.map_or(Ok(0), |id| self.session.len(id))?;
                needed += self.pages_for(request.tokens.len(), held);
            }
            let next = &self.requests[running];
            let (tokens, before) = (next.tokens.len(), available(&self.session));
            let id = self.session.match_prefix(&next.tokens, next.salt());
            needed += self.pages_for(tokens, self.session.len(id)?);
            if running > 0 && needed > available(&self.session) {
                self.session.remove(id)?;
                self.refused_at = Some(before);
                return Ok(());
            }
            self.requests[running].sequence = Some(id);
            self.refused_at = None;
        }
    }

    /// What the step feeds: what fits the cache, once the youngest have given up as much as is needed.
    fn plan(&mut self) -> Result<Vec<Part>> {
        loop {
            let parts = self.parts()?;
            let wanted: Vec<(SeqId, usize)> = parts.iter().map(|p| (p.sequence, p.to - p.from)).collect();
            let full = match self.session.cache().check_reserve(&wanted) {
                Ok(()) => return Ok(parts),
                Err(full) => full,
            };
            let youngest = self.running().saturating_sub(1);
            if youngest > 0 {
                if let Some(id) = self.requests[youngest].sequence.take() {
                    self.session.remove(id)?;
                }
                self.preemptions += 1;
                self.refused_at = None;
            } else if parts.is_empty() {
                return Err(full);
            } else {
                // It is alone, and no other can make room.
                let event = self.requests[0].end(Finished::Failed(full));
                self.remove(0)?;
                self.events.push(event);
                return Ok(Vec::new());
            }
        }
    }

    /// What the step feeds, if the cache has room: a token of each that decodes, then prompts by age.
    fn parts(&self) -> Result<Vec<Part>> {
        let mut room = self.session.capacity();
        let mut parts = Vec::new();
        let mut left = Vec::new();
        for (i, request) in self.requests.iter().enumerate() {
            let Some(sequence) = request.sequence else { continue };
            let part = Part { request: i, sequence, from: self.session.len(sequence)?, to: request.tokens.len() };
            if part.to - part.from == 1 {
                room -= 1; // there are at most as many as the capacity
                parts.push(part);
            } else {
                left.push(part);
            }
        }
        for mut part in left {
            part.to = part.to.min(part.from + room);
            if part.from < part.to {
                room -= part.to - part.from;
                parts.push(part);
            }
        }
        parts.sort_by_key(|part| part.request);
        Ok(parts)
    }
}
