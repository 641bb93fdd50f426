//! Continuous batching: requests that come and go between steps, and share them.

use super::request::{Active, Event, Finished, Request, RequestId};
use super::steps::{ScheduledRequest, StepUnderWay};
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use crate::model::sampler::Sampler;
use crate::model::session::Session;
use crate::model::text::tokenizer::Tokenizer;
use crate::model::text::words::Words;
use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The bytes of a token.
type TokenBytes = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// Requests over one [`Session`], as many at a time as its `max_batch`.
///
/// A step is one [`Session::next_tokens`] of at most the session's chunk of tokens: one of each request that is past its prompt,
/// and of the prompts as much as there is room for: half of it is for the oldest prompt, the other half for those that are done with
/// least. So no request waits longer than a step of one chunk for its next token, a short prompt does not wait for a long one, and
/// none is put off for ever. Requests are taken up in the order they came. Where the cache is full, the youngest gives up its part and waits; later it is computed again, from what it had. A request
/// alone gives the tokens of [`generate()`](crate::model::generate()) with its seed. Among others, and after it was
/// computed again, its logits may differ in their last bits, as they do wherever steps are of another size.
///
/// In a session with a window, its own or the model's, requests give back what it hides, and need no more than that:
/// prompts and texts may be longer than the cache. Those that come to be so long that pages are given back do not share
/// what their tokens begin with; shorter ones do.
///
/// The next step is with the device before the tokens of one are read, for those that go on as far as that is known; what was
/// computed for nothing is dropped. So a request that comes later, or waits for the place of one that a token or a string ends,
/// is taken up at most a step later than it could be. In a session with a window a step waits for the one before
/// where that gives a page back to the window.
///
/// Dropping a step half way, an error of one, and a panic of a callback change nothing: call it again. After a lost device
/// [`Session::rebuild`] the session, and go on. What concerns one request alone ends that one ([`Finished::Failed`]).
pub struct Scheduler {
    pub(crate) session: Session,
    /// The oldest first. Those with a sequence come before those without.
    pub(crate) requests: Vec<Active>,
    next_id: u64,
    /// A step that is with the device, and was submitted before the tokens of the last one were read.
    pub(super) under_way: Option<StepUnderWay>,
    /// What was not yet told.
    pub(super) events: VecDeque<Event>,
    pub(super) token_bytes: TokenBytes,
    tokenizer: Option<Arc<Tokenizer>>,
    preemptions: u64,
    /// Pages to spare when the first that waits was last refused.
    pub(super) refused_at: Option<usize>,
    /// Whether others may have changed the session's sequences.
    pub(super) handed_out: bool,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scheduler { session, requests, preemptions, .. } = self;
        let mut fields = f.debug_struct("Scheduler");
        fields.field("requests", &requests.len()).field("preemptions", preemptions).field("session", session);
        fields.finish_non_exhaustive()
    }
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
            under_way: None,
            events: VecDeque::new(),
            token_bytes,
            tokenizer: None,
            preemptions: 0,
            refused_at: None,
            handed_out: false,
        }
    }

    /// The bytes of each token, for stop strings and events. A step in which it panics can be repeated, and asks again;
    /// a request for which it panics twice at one token fails.
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
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for an empty prompt, no tokens to make, a token not in the vocabulary, an empty stop
    /// string, a bad sampling, or more tokens than [`Session::max_positions`]; [`ErrorKind::CacheFull`] where the whole
    /// cache could not hold it, or what the session's window shows of it.
    pub fn add(&mut self, request: Request) -> Result<RequestId> {
        let sampler = Sampler::new(request.generate.sampling, request.generate.seed)?;
        self.add_with(request, sampler)
    }

    /// Adds a request whose tokens this sampler draws, in place of the sampling and the seed of its
    /// [`GenerateOptions`](crate::model::GenerateOptions): with biases, log-probabilities and a constraint of its own. It is told of
    /// the prompt. A request with a constraint has its next token drawn when the one before it is known, so it has one in every second
    /// step where others go on ahead; it ends where the constraint is complete ([`Finished::Complete`]).
    ///
    /// # Errors
    ///
    /// As [`Scheduler::add`]; [`ErrorKind::Argument`] for a bias of a token that is not in the vocabulary.
    pub fn add_with(&mut self, request: Request, sampler: Sampler) -> Result<RequestId> {
        let id = RequestId(self.next_id);
        let words = self.tokenizer.as_ref().map(|tokenizer| Words::after(tokenizer, &request.prompt));
        let request = Active::new(id, request, sampler).with_words(words);
        request.check(&self.session)?;
        self.next_id += 1;
        self.requests.push(request);
        Ok(id)
    }

    /// Ends a request. Its last event, with the text that was held back, comes with the next step.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for one that has ended.
    pub fn cancel(&mut self, id: RequestId) -> Result<()> {
        let Some(place) = self.requests.iter().position(|request| request.id == id) else {
            return Err(ErrorKind::argument("id", format!("request {} is not under way", id.0)));
        };
        if self.under_way.is_none() {
            self.session.roll_back(); // a step that was dropped half way
        }
        self.end(place, Finished::Cancelled);
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

    /// The session. Pages of a step that is under way count as used.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, for sequences of the caller's own, pins, and [`Session::rebuild`]. A step that is under way is given up, and
    /// computed again. The requests' own are better left
    /// alone, but no harm comes to other requests: one whose sequence is cut or emptied is computed again, one whose
    /// sequence is removed or has tokens that are not its own fails at the next step.
    pub fn session_mut(&mut self) -> &mut Session {
        self.give_up_step();
        self.handed_out = true;
        &mut self.session
    }

    /// The session without the requests, which end without an event.
    ///
    /// # Errors
    ///
    /// None today: the session comes back whatever its requests are at.
    pub fn into_session(mut self) -> Result<Session> {
        self.give_up_step();
        while !self.requests.is_empty() {
            self.take_out(self.requests.len() - 1);
        }
        Ok(self.session)
    }

    /// One step of all requests that there is room for, at least of one. Returns what it gave: an event for each that
    /// got a token or ended, by age of the request, after those of requests that were cancelled. Steps that only feed parts
    /// of prompts give none.
    ///
    /// # Errors
    ///
    /// Those of the device, as [`Session::next_tokens`].
    pub async fn step(&mut self) -> Result<Vec<Event>> {
        self.advance().await?;
        Ok(self.events.drain(..).collect())
    }

    /// Steps until all requests have ended, or `on_event` stops, after which more steps go on.
    ///
    /// # Errors
    ///
    /// Those of [`Scheduler::step`].
    pub async fn run(&mut self, mut on_event: impl FnMut(Event) -> ControlFlow<()>) -> Result<()> {
        while !self.is_idle() {
            if self.events.is_empty() {
                self.advance().await?;
            }
            // One by one: those that were not seen are still there, also where the callback panics.
            while let Some(event) = self.events.pop_front() {
                if on_event(event).is_break() {
                    return Ok(());
                }
            }
            crate::model::session::owned::pause().await;
        }
        Ok(())
    }

    /// Pages that a request needs beside those it has, with one token more.
    fn needed(&self, request: &Active) -> usize {
        let len = request.sequence.and_then(|id| self.session.len(id).ok()).unwrap_or(0);
        self.session.pages_to_go(len, request.tokens.len(), request.frees(&self.session))
    }

    /// Gives sequences to those that wait, as long as there is room for all of their tokens beside those that run, or for
    /// what a window shows of them.
    pub(super) fn admit(&mut self) {
        loop {
            let running = self.running();
            if running == self.requests.len() || running >= self.session.max_batch() {
                return;
            }
            let available = |session: &Session| session.stats().available();
            let needed: usize = self.requests[..running].iter().map(|request| self.needed(request)).sum();
            let spare = available(&self.session).saturating_sub(needed);
            if running > 0 && self.refused_at.is_some_and(|before| spare <= before) {
                return;
            }
            let next = &self.requests[running];
            let id = match next.frees(&self.session) {
                true => self.session.insert(),
                false => self.session.match_prefix(&next.tokens, next.salt()),
            };
            self.requests[running].sequence = Some(id);
            let needed = needed.saturating_add(self.needed(&self.requests[running]));
            if running > 0 && needed > available(&self.session) {
                self.give_up(running);
                self.refused_at = Some(spare);
                return;
            }
            self.requests[running].committed_at = self.session.cache().committed_at(id).unwrap_or(0);
            self.refused_at = None;
        }
    }

    /// What the step feeds: what fits the cache, once the youngest have given up as much as is needed.
    pub(super) fn plan(&mut self) -> Result<Vec<ScheduledRequest>> {
        let mut room = self.session.capacity();
        loop {
            let parts = self.parts(room)?;
            let wanted: Vec<(SeqId, usize)> = parts.iter().map(|p| (p.sequence, p.to - p.from)).collect();
            let full = match self.session.cache().check_reserve(&wanted) {
                Ok(()) => return Ok(parts),
                Err(full) => full,
            };
            let youngest = self.running().saturating_sub(1);
            let tokens = wanted.first().map_or(0, |(_, tokens)| *tokens);
            if youngest > 0 {
                self.give_up(youngest);
                self.preemptions += 1;
            } else if parts.is_empty() {
                return Err(full);
            } else if tokens > 1 && self.session.window().is_some() {
                // It is alone. What a window frees after a smaller step may do for the next.
                room = tokens / 2;
            } else {
                // No other can make room.
                self.end(0, Finished::Failed(full));
                return Ok(Vec::new());
            }
        }
    }
}
