//! Requests of a [`Scheduler`](crate::model::Scheduler), and what comes of them.
#![warn(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use super::stops::StopStrings;
use crate::cache::SeqId;
use crate::error::{Error, ErrorKind, Result};
use crate::model::generate::GenerateOptions;
use crate::model::sampler::{DrawRow, Drawn, Sampler};
use crate::model::session::Session;
use crate::model::text::words::Words;
use std::time::Instant;

/// A prompt to continue, and where to stop.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Request {
    /// Tokens, at least one.
    pub prompt: Vec<u32>,
    /// How many tokens, how they are drawn, and the seed of this request.
    pub generate: GenerateOptions,
    /// Tokens that end it.
    pub stop_tokens: Vec<u32>,
    /// Bytes that end it, wherever they begin and end in the bytes of its tokens.
    pub stop_strings: Vec<Vec<u8>>,
    /// Requests of the same salt share the cache of what their tokens begin with. See [`Session::match_prefix`].
    pub salt: u64,
    /// When it ends, whatever it has by then ([`Finished::Deadline`]): the first step that begins at this time or later ends it, also
    /// where it still waits. None where it may take its time; browsers have no such clock.
    pub deadline: Option<Instant>,
}

/// Names a request of one [`Scheduler`](crate::model::Scheduler); later ones are larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

/// What a step gave to one request.
#[derive(Debug)]
#[non_exhaustive]
pub struct Event {
    /// Whose it is.
    pub id: RequestId,
    /// The token that was drawn, stop tokens included; none where the request was cancelled or failed.
    pub token: Option<u32>,
    /// Its log-probability, where the request's [`Sampler`] asks for it ([`Scheduler::add_with`](crate::model::Scheduler::add_with)).
    pub log_probability: Option<f32>,
    /// The most likely tokens with theirs, the more likely first, where the sampler asks for them.
    pub most_likely: Vec<(u32, f32)>,
    /// The bytes that are now known to come before any stop string, maybe none. All of a request's, one after the other,
    /// are its text, without what ended it.
    pub bytes: Vec<u8>,
    /// Whether, and why, this is its last.
    pub finished: Option<Finished>,
}

/// Why a request ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Finished {
    /// One of its stop tokens was drawn.
    StopToken,
    /// Its text has come to this one of its stop strings.
    StopString(usize),
    /// The constraint of its [`Sampler`] is met, and allows nothing more.
    Complete,
    /// It has its `max_new_tokens`.
    Length,
    /// [`Scheduler::cancel`](crate::model::Scheduler::cancel).
    Cancelled,
    /// Its [`Request::deadline`] has passed.
    Deadline,
    /// It cannot go on, alone as it is. The others do. [`ErrorKind::CacheFull`] where other sequences of the session, pins
    /// or a lower byte budget leave it no room; [`ErrorKind::Argument`] named `logits` where its logits give no
    /// probabilities, as in [`Session::next_tokens`]; [`ErrorKind::Grammar`], or what else its constraint fails with, where that
    /// allows no token; [`ErrorKind::UnknownSequence`] and [`ErrorKind::Argument`] named `sequence`
    /// where its sequence was removed, or given other tokens, through
    /// [`Scheduler::session_mut`](crate::model::Scheduler::session_mut); [`ErrorKind::Argument`] named `token_bytes` where that
    /// function has panicked twice for one token; and what [`Scheduler::add`](crate::model::Scheduler::add) would say of it, where
    /// another session has taken the place of the first.
    Failed(Error),
}

impl Request {
    /// Errors: [`ErrorKind::Argument`], and [`ErrorKind::CacheFull`] for what the cache could never hold.
    pub(crate) fn check(&self, session: &Session) -> Result<()> {
        let (config, pages) = (session.decoder().config(), session.cache().pages());
        let max_new_tokens = self.generate.max_new_tokens;
        self.generate.sampling.check()?;
        if self.prompt.is_empty() || max_new_tokens == 0 {
            let why = format!("{} tokens and {max_new_tokens} to make, wanted 1 of each", self.prompt.len());
            return Err(ErrorKind::argument("prompt", why));
        }
        for (name, tokens) in [("prompt", &self.prompt), ("stop_tokens", &self.stop_tokens)] {
            let vocab = config.vocab_size;
            if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
                return Err(ErrorKind::argument(name, format!("{token} is not in the vocabulary of {vocab}")));
            }
        }
        StopStrings::new(&self.stop_strings)?;
        let fed = self.most_fed();
        let most = session.max_positions();
        if fed > most {
            let (before, what) = (self.prompt.len(), session.what_is_most());
            let why = format!("{max_new_tokens} after a prompt of {before} exceed {what}, {most}");
            return Err(ErrorKind::argument("max_new_tokens", why));
        }
        let needed = session.most_pages(self.prompt.len(), fed);
        match needed > pages.count {
            true => Err(ErrorKind::CacheFull { needed, free: pages.count }.into()),
            false => Ok(()),
        }
    }

    /// Tokens that its sequence comes to have, if it is not stopped: the last one is not fed.
    fn most_fed(&self) -> usize {
        self.prompt.len().saturating_add(self.generate.max_new_tokens.saturating_sub(1))
    }
}

/// A request that has not ended.
pub(crate) struct Active {
    pub(crate) id: RequestId,
    request: Request,
    /// The prompt, and what was drawn: all that is needed to compute it again.
    pub(crate) tokens: Vec<u32>,
    sampler: Sampler,
    stops: StopStrings,
    /// Its text, where a tokenizer makes it.
    words: Option<Words>,
    /// None while it waits.
    pub(crate) sequence: Option<SeqId>,
    /// When that sequence last got tokens from here.
    pub(crate) committed_at: u64,
    /// What the last step drew, until [`Active::take`] takes it; and how often its bytes were asked for.
    pub(crate) drawn: Option<Drawn>,
    pub(crate) tries: u32,
    /// Why it drew no token, where that is not for the logits.
    pub(crate) undrawn: Option<ErrorKind>,
}

impl Active {
    /// The sampler draws its tokens, and has not seen its prompt.
    pub(crate) fn new(id: RequestId, request: Request, mut sampler: Sampler) -> Self {
        sampler.see(&request.prompt);
        Active {
            id,
            tokens: request.prompt.clone(),
            sampler,
            stops: StopStrings::of(&request.stop_strings),
            words: None,
            sequence: None,
            committed_at: 0,
            drawn: None,
            tries: 0,
            undrawn: None,
            request,
        }
    }

    /// Errors: as [`Request::check`]; [`ErrorKind::Argument`] for a sampler of another vocabulary.
    pub(crate) fn check(&self, session: &Session) -> Result<()> {
        self.request.check(session)?;
        self.sampler.row(0).check(session.decoder().config().vocab_size)
    }

    /// Whether its sequence comes to give pages back to the session's window.
    pub(crate) fn frees(&self, session: &Session) -> bool {
        session.frees(self.request.most_fed())
    }

    /// With what makes its text of its tokens, if anything does.
    pub(crate) fn with_words(self, words: Option<Words>) -> Self {
        Active { words, ..self }
    }

    pub(crate) fn salt(&self) -> u64 {
        self.request.salt
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.request.deadline
    }

    /// How the next token is drawn, or with 1 the one after it. Random numbers are used up by [`Active::take`].
    pub(crate) fn draw(&self, after: usize) -> DrawRow {
        self.sampler.row(after)
    }

    /// How many of the most likely tokens are told, if any log-probability is.
    pub(crate) fn logprobs(&self) -> Option<usize> {
        self.sampler.logprobs()
    }

    /// Whether its next token can only be drawn when the one before it is known.
    pub(crate) fn waits(&self) -> bool {
        self.sampler.waits()
    }

    /// Whether the next token is its last, whatever it is.
    pub(crate) fn ends_with_next(&self) -> bool {
        let made = self.tokens.len().saturating_sub(self.request.prompt.len());
        made.saturating_add(1) >= self.request.generate.max_new_tokens
    }

    /// Takes the token that was drawn, of these bytes, where no tokenizer knows better.
    pub(crate) fn take(&mut self, drawn: Drawn, token_bytes: &[u8]) -> Event {
        (self.drawn, self.tries) = (None, 0);
        let Drawn { token, log_probability, most_likely } = drawn;
        self.sampler.take(token);
        self.tokens.push(token);
        let mut bytes = Vec::new();
        let finished = if self.request.stop_tokens.contains(&token) {
            Some(Finished::StopToken)
        } else if let Some(which) = self.push_text(token, token_bytes, &mut bytes) {
            Some(Finished::StopString(which))
        } else if self.sampler.is_complete() {
            Some(Finished::Complete)
        } else {
            let made = self.tokens.len().saturating_sub(self.request.prompt.len());
            (made >= self.request.generate.max_new_tokens).then_some(Finished::Length)
        };
        let finished = match finished {
            None | Some(Finished::StopString(_)) => finished,
            Some(why) => Some(match (self.finish_text(&mut bytes), why) {
                (Some(which), Finished::Length | Finished::Complete) => Finished::StopString(which),
                (_, why) => why,
            }),
        };
        Event { id: self.id, token: Some(token), log_probability, most_likely, bytes, finished }
    }

    /// Appends to `text` what is now known to come before any stop string. Returns the one that is complete.
    fn push_text(&mut self, token: u32, token_bytes: &[u8], text: &mut Vec<u8>) -> Option<usize> {
        match &mut self.words {
            Some(words) => self.stops.push(words.push(token).as_bytes(), text),
            None => self.stops.push(token_bytes, text),
        }
    }

    /// The same of what is held back, where no token is to come.
    fn finish_text(&mut self, text: &mut Vec<u8>) -> Option<usize> {
        let rest = self.words.as_mut().map(Words::finish).unwrap_or_default();
        let complete = self.stops.push(rest.as_bytes(), text);
        self.stops.finish(text);
        complete
    }

    /// Its last event, without a token.
    pub(crate) fn end(&mut self, why: Finished) -> Event {
        let mut bytes = Vec::new();
        self.finish_text(&mut bytes);
        let (token, log_probability, most_likely) = (None, None, Vec::new());
        Event { id: self.id, token, log_probability, most_likely, bytes, finished: Some(why) }
    }
}
