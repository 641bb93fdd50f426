//! The scheduler's steps, one ahead of the tokens that are read.
//!
//! What a step draws is on the device already, so the next step is submitted behind it before its tokens are read: for all
//! requests that go on, as far as that is known. Who reaches its `max_new_tokens` is known; who is ended by a token or a string is
//! not, and has its part of the next step for nothing: the row is not looked at and the pages are given up with the sequence. A
//! request is admitted between steps alone: where one waits and has a place, the step under way is read first, as it was
//! without a step ahead, so that nobody finds pages by their tokens before it is known that these are computed.

use super::request::{Active, Finished, RequestId};
use super::scheduler::Scheduler;
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use crate::model::sampler::{DrawRow, Drawn};
use crate::model::session::feed::no_probabilities;
use crate::model::session::ids::Ids;
use crate::model::session::step::Submitted;
use crate::nn::Sample;
use std::time::Instant;

/// What one request does in a step.
pub(super) struct ScheduledRequest {
    request: RequestId,
    pub(super) sequence: SeqId,
    /// Those of its tokens that are fed, by their end. The last of them may be on the device alone.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Its tokens, that one among them: where they are all fed, the next one is drawn.
    of: usize,
}

impl ScheduledRequest {
    /// Whether a token is drawn for it. What comes after a part of a prompt is known.
    fn draws(&self) -> bool {
        self.to == self.of
    }
}

/// A step that is with the device.
pub(super) struct StepUnderWay {
    step: Submitted,
    parts: Vec<ScheduledRequest>,
}

impl StepUnderWay {
    /// The index of a request's part.
    fn part_of(&self, request: RequestId) -> Option<usize> {
        self.parts.binary_search_by_key(&request, |part| part.request).ok()
    }

    /// Which of the tokens that it draws is a request's.
    fn draws_for(&self, request: RequestId) -> Option<usize> {
        self.part_of(request).filter(|index| self.parts[*index].draws())
    }
}

/// The place of a part's request, if that goes on. They lie in the order in which they came.
fn place(requests: &[Active], part: &ScheduledRequest) -> Option<usize> {
    let place = requests.binary_search_by_key(&part.request, |request| request.id).ok()?;
    (requests[place].sequence == Some(part.sequence)).then_some(place)
}

/// The tokens of a part whose request goes on.
fn tokens<'a>(requests: &'a [Active], part: &ScheduledRequest) -> Option<&'a [u32]> {
    requests[place(requests, part)?].tokens.get(part.from..part.to)
}

/// The tokens of the parts whose requests go on.
fn fed<'a>(requests: &'a [Active], parts: &[ScheduledRequest]) -> Vec<(SeqId, &'a [u32])> {
    parts.iter().filter_map(|part| Some((part.sequence, tokens(requests, part)?))).collect()
}

impl Scheduler {
    /// A step, whose events are left in `events`.
    pub(super) async fn advance(&mut self) -> Result<()> {
        if std::mem::take(&mut self.handed_out) {
            self.give_up_step();
            self.check_requests();
            self.refused_at = None;
        }
        // Taken: a future that is dropped takes the steps with it, and the next begins again.
        let under_way = self.under_way.take();
        if under_way.is_none() {
            self.session.roll_back(); // what an earlier step left half done
        }
        self.end_late();
        if self.take_drawn() {
            self.under_way = under_way;
            return Ok(()); // of a step whose callback panicked
        }
        let mut first = match under_way {
            Some(step) => step,
            None => {
                self.admit();
                let parts = self.plan()?;
                if parts.is_empty() {
                    return Ok(());
                }
                // Once: what this step and those behind it need.
                let lengths: Vec<usize> = parts.iter().map(|part| part.of - part.from).collect();
                self.session.compile_stream(&lengths)?;
                self.submit(parts)?
            }
        };
        let second = self.submit_behind(&mut first);
        let read = self.read(first).await;
        if read.is_err() {
            self.session.roll_back();
            return read;
        }
        if let Some(StepUnderWay { parts, .. }) = &second {
            let batch: Vec<(SeqId, &[u32])> = parts.iter().map(|part| (part.sequence, &[][..])).collect();
            self.session.begin(&batch)?;
        }
        self.under_way = second;
        self.take_drawn();
        if self.under_way.as_ref().is_some_and(|step| !step.parts.iter().any(|part| self.place(part).is_some())) {
            self.give_up_step(); // all of it was for nothing
        }
        Ok(())
    }

    /// Rolls back the step that is under way.
    pub(super) fn give_up_step(&mut self) {
        self.under_way = None;
        self.session.roll_back();
    }

    /// The place of a part's request, if that goes on.
    fn place(&self, part: &ScheduledRequest) -> Option<usize> {
        place(&self.requests, part)
    }

    /// Submits a step whose tokens are all here.
    fn submit(&mut self, parts: Vec<ScheduledRequest>) -> Result<StepUnderWay> {
        let draws: Vec<DrawRow> = parts.iter().map(|part| self.draw(part, 0)).collect();
        let step = self.session.submit_call(&fed(&self.requests, &parts), &draws)?;
        Ok(StepUnderWay { step, parts })
    }

    /// How a part's token is drawn, after so many others.
    fn draw(&self, part: &ScheduledRequest, after: usize) -> DrawRow {
        match self.place(part).filter(|_| part.draws()) {
            Some(place) => self.requests[place].draw(after),
            None => DrawRow::default(),
        }
    }

    /// Submits the step after `first`, whose tokens `first` draws, for those that go on, if there is one that can be submitted
    /// now.
    fn submit_behind(&mut self, first: &mut StepUnderWay) -> Option<StepUnderWay> {
        let parts = self.parts_behind(first)?;
        // Whose next token the first draws feeds that one alone.
        let drawn: Vec<Option<usize>> = parts.iter().map(|part| first.draws_for(part.request)).collect();
        let in_order = drawn.iter().enumerate().all(|(row, token)| *token == Some(row));
        let ids = if in_order { Ids::Drawn } else { Ids::Some(&drawn) };
        let draw = |(part, drawn): (_, &Option<usize>)| self.draw(part, usize::from(drawn.is_some()));
        let draws: Vec<DrawRow> = parts.iter().zip(&drawn).map(draw).collect();
        let batch = parts.iter().zip(&drawn).map(|(part, drawn)| match drawn {
            // Their count is all that is needed.
            Some(_) => Some((part.sequence, &[0][..])),
            None => tokens(&self.requests, part).map(|tokens| (part.sequence, tokens)),
        });
        let batch: Vec<(SeqId, &[u32])> = batch.collect::<Option<_>>()?;
        let fed = fed(&self.requests, &first.parts);
        let submitted = self.session.submit_behind((&mut first.step, &fed), (&batch, &draws), ids);
        if first.step.committed {
            self.note_committed(&first.parts);
        }
        submitted.map(|step| StepUnderWay { step, parts })
    }

    /// What the step after `first` feeds. None where it has to wait.
    fn parts_behind(&self, first: &StepUnderWay) -> Option<Vec<ScheduledRequest>> {
        let (mut left, mut ended) = (Vec::new(), false);
        for request in &self.requests {
            let Some(sequence) = request.sequence else { continue };
            let before = first.part_of(request.id).map(|index| &first.parts[index]);
            let before = before.filter(|part| part.sequence == sequence);
            let draws = before.is_some_and(ScheduledRequest::draws);
            if draws && request.ends_with_next() {
                ended = true;
                continue;
            }
            // What it may draw after that token is not known before the token is.
            if draws && request.waits() {
                continue;
            }
            let from = match before {
                Some(part) => part.to,
                None => self.session.len(sequence).ok()?,
            };
            let of = request.tokens.len() + usize::from(draws);
            left.push(ScheduledRequest { request: request.id, sequence, from, to: of, of });
        }
        let has_place = ended || (self.running() < self.session.max_batch() && self.refused_at.is_none());
        let waits = left.is_empty() || (has_place && self.waiting() > 0);
        (!waits).then(|| share(self.session.capacity(), left))
    }

    /// Waits for a step, commits what it fed and gives the tokens to the requests that go on.
    async fn read(&mut self, first: StepUnderWay) -> Result<()> {
        let StepUnderWay { step, parts } = first;
        let committed = step.committed;
        let batch: Vec<(SeqId, &[u32])> = parts.iter().map(|part| (part.sequence, &[][..])).collect();
        let read = self.session.read_call(&batch, step).await?;
        let drawn = parts.iter().enumerate().map(|(row, part)| {
            let logprobs = self.place(part).and_then(|place| self.requests[place].logprobs());
            (read.drawn(row, logprobs), read.fault(row).cloned())
        });
        let drawn: Vec<(Drawn, Option<ErrorKind>)> = drawn.collect();
        let (parts, drawn): (Vec<_>, Vec<_>) =
            parts.into_iter().zip(drawn).filter(|(part, _)| self.place(part).is_some()).unzip();
        if !committed {
            let mut fed = fed(&self.requests, &parts);
            // What no token came of is not kept.
            for ((part, (drawn, _)), (_, fed)) in parts.iter().zip(&drawn).zip(&mut fed) {
                if part.draws() && drawn.token == Sample::NO_TOKEN {
                    *fed = &[];
                }
            }
            self.session.commit_fed(&fed)?;
            self.note_committed(&parts);
        }
        self.session.finish();
        // All of it first, then the callback, which may panic.
        for (part, (drawn, fault)) in parts.iter().zip(drawn).filter(|(part, _)| part.draws()) {
            if let Some(place) = self.place(part) {
                (self.requests[place].drawn, self.requests[place].undrawn) = (Some(drawn), fault);
            }
        }
        Ok(())
    }

    /// Takes down that the parts' tokens were committed just now.
    fn note_committed(&mut self, parts: &[ScheduledRequest]) {
        for part in parts {
            // Those that go on have their sequences.
            if let (Some(place), Ok(at)) = (self.place(part), self.session.cache().committed_at(part.sequence)) {
                self.requests[place].committed_at = at;
            }
        }
    }

    /// What a step feeds of the requests that run, in `room` tokens at most, if the cache has room.
    pub(super) fn parts(&self, room: usize) -> Result<Vec<ScheduledRequest>> {
        let mut left = Vec::new();
        for request in &self.requests {
            let Some(sequence) = request.sequence else { continue };
            let (from, of) = (self.session.len(sequence)?, request.tokens.len());
            left.push(ScheduledRequest { request: request.id, sequence, from, to: of, of });
        }
        Ok(share(room, left))
    }

    /// Gives requests what was drawn for them, and ends those that it ends. Returns whether there was any.
    fn take_drawn(&mut self) -> bool {
        let (mut place, mut any) = (0, false);
        while let Some(request) = self.requests.get_mut(place) {
            let Some(token) = request.drawn.as_ref().map(|drawn| drawn.token) else {
                place += 1;
                continue;
            };
            any = true;
            let error = match request.sequence {
                // Others have taken its sequence since: it is computed again.
                None if token == Sample::NO_TOKEN => {
                    request.drawn = None;
                    continue;
                }
                Some(id) if token == Sample::NO_TOKEN => {
                    let last = request.tokens.len().saturating_sub(1);
                    // What led to it is not for others to find.
                    let _ = self.session.cache_mut().discard(id, 0); // it is there, or has nothing to give up
                    match request.undrawn.take() {
                        Some(fault) => fault.into(),
                        None => no_probabilities(id, last),
                    }
                }
                _ if request.tries >= 2 => {
                    let why = format!("panicked twice for token {token} of request {}", request.id.0);
                    ErrorKind::argument("token_bytes", why)
                }
                _ => {
                    request.tries += 1;
                    let bytes = (self.token_bytes)(token);
                    let Some(drawn) = request.drawn.take() else { continue };
                    let event = request.take(drawn, &bytes);
                    let ended = event.finished.is_some();
                    self.events.push_back(event);
                    if ended {
                        self.take_out(place);
                    } else {
                        place += 1;
                    }
                    continue;
                }
            };
            self.end(place, Finished::Failed(error));
        }
        any
    }

    /// Ends those whose time is up. Nobody looks at a clock where there is none.
    fn end_late(&mut self) {
        if self.requests.iter().all(|request| request.deadline().is_none()) {
            return;
        }
        let now = Instant::now();
        while let Some(place) = self.requests.iter().position(|r| r.deadline().is_some_and(|deadline| deadline <= now))
        {
            self.end(place, Finished::Deadline);
        }
    }

    /// Ends a request without a token.
    pub(crate) fn end(&mut self, place: usize, why: Finished) {
        let event = self.take_out(place).end(why);
        self.events.push_back(event);
    }

    /// Takes a request out, and gives up its part of the cache.
    pub(super) fn take_out(&mut self, place: usize) -> Active {
        self.give_up(place);
        self.requests.remove(place)
    }

    /// Lets a request give up its part of the cache.
    pub(crate) fn give_up(&mut self, place: usize) {
        self.refused_at = None;
        if let Some(id) = self.requests[place].sequence.take() {
            let _ = self.session.remove_alone(id); // where others have removed it, that is done
        }
    }
}

/// What so many tokens have room for: a token of each that decodes, then prompts. The oldest prompt has half of what is left, the
/// other half is for those that are done with least, the older of equals first; what one half does not need is the other's. So a
/// short prompt waits for no long one, and a long one is never put off: it comes to be the oldest.
fn share(room: usize, all: Vec<ScheduledRequest>) -> Vec<ScheduledRequest> {
    let (mut parts, mut prompts): (Vec<_>, Vec<_>) = all.into_iter().partition(|part| part.to - part.from == 1);
    let room = room - parts.len(); // there are at most as many as the capacity
    let wanted = |part: &ScheduledRequest| part.of - part.from;
    let half = prompts.first().map_or(0, |oldest| wanted(oldest).min(room.div_ceil(2)));
    let mut left = room - half;
    if let Some((oldest, others)) = prompts.split_first_mut() {
        others.sort_by_key(|part| (wanted(part), part.request));
        for part in others {
            part.to = part.from + wanted(part).min(left);
            left -= part.to - part.from;
        }
        oldest.to = oldest.from + wanted(oldest).min(half + left);
    }
    parts.extend(prompts.into_iter().filter(|part| part.from < part.to));
    parts.sort_by_key(|part| part.request); // by age
    parts
}
