//! The thread that owns the scheduler: requests come in through a channel, and what they give goes out through one each.

use crate::errors::ApiError;
use crate::metrics::Metrics;
use latten::model::{Event, Finished, Grammar, Request, RequestId, Sampler, Scheduler};
use latten::ErrorKind;
use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{error, info};

/// What an HTTP request asks the model for.
#[derive(Debug)]
pub struct Job {
    /// For the log, and for the client.
    pub id: String,
    /// Prompts, with how often each is to be continued. Continuations of one prompt differ by their seeds.
    pub prompts: Vec<(Request, usize)>,
    /// How the tokens of all of them are drawn, beside what the requests say.
    pub drawing: Drawing,
    /// Where what they give goes. When nobody is there any more, the requests are cancelled.
    pub pieces: UnboundedSender<Piece>,
    pub received: Instant,
    /// Its places in the queue, which are free again when it is gone.
    pub _places: OwnedSemaphorePermit,
    /// When it is given up if no token has come by then.
    pub first_token_by: Instant,
}

/// How tokens are drawn, beside a request's sampling and seed.
#[derive(Debug, Clone, Default)]
pub struct Drawing {
    pub bias: Vec<(u32, f32)>,
    /// Whether log-probabilities are told, and of how many likely tokens beside the drawn one.
    pub logprobs: Option<usize>,
    /// What texts may be.
    pub grammar: Option<Grammar>,
}

impl Drawing {
    /// For one request.
    ///
    /// Errors: those of the library, for numbers that it does not take.
    fn sampler(&self, request: &Request) -> Result<Sampler, latten::Error> {
        let mut sampler = Sampler::new(request.generate.sampling, request.generate.seed)?;
        if !self.bias.is_empty() {
            sampler = sampler.with_bias(&self.bias)?;
        }
        if let Some(count) = self.logprobs {
            sampler = sampler.with_logprobs(count)?;
        }
        Ok(match &self.grammar {
            Some(grammar) => sampler.with_constraint(grammar.clone()),
            None => sampler,
        })
    }
}

/// A token, and how likely it and others were.
#[derive(Debug, Clone)]
pub struct Token {
    pub token: u32,
    /// None where it was not asked for.
    pub log_probability: Option<f32>,
    pub most_likely: Vec<(u32, f32)>,
}

/// What a job gets.
#[derive(Debug)]
pub enum Piece {
    /// None of it can be answered.
    Refused(ApiError),
    /// Of one choice, in the order of prompts and then of their continuations: what is new of its text.
    Part { choice: usize, text: String, token: Option<Token>, end: Option<End> },
}

/// Why a choice ended.
#[derive(Debug, Clone)]
pub enum End {
    Stop,
    Length,
    /// The server goes down.
    Abort,
    /// Its time is up.
    Timeout,
    Failed(ApiError),
}

/// What the thread is told.
#[derive(Debug)]
pub enum Command {
    Job(Box<Job>),
    /// Ends all that runs, and then the thread.
    Stop,
}

/// A choice that is under way.
struct Choice {
    job: u64,
    index: usize,
    last_token: Option<Instant>,
}

/// A job that is under way.
struct Live {
    job: Job,
    /// Choices that have not ended.
    left: usize,
    tokens: usize,
    first: Option<Instant>,
    /// Continuations that wait until the first of their prompt has a token: then its pages are there to be shared.
    later: BTreeMap<usize, Vec<(usize, Request)>>,
    ends: Option<End>,
    /// Whether its client went away before the end.
    gone: bool,
}

/// The scheduler and whose requests it runs.
pub struct Engine {
    scheduler: Scheduler,
    commands: Receiver<Command>,
    metrics: Metrics,
    jobs: HashMap<u64, Live>,
    choices: HashMap<RequestId, Choice>,
    next: u64,
    stopping: bool,
}

impl Engine {
    pub fn new(scheduler: Scheduler, commands: Receiver<Command>, metrics: Metrics) -> Self {
        let (jobs, choices) = (HashMap::new(), HashMap::new());
        Engine { scheduler, commands, metrics, jobs, choices, next: 0, stopping: false }
    }

    /// Runs until it is told to stop, or nobody is left who could tell it.
    ///
    /// Errors: a device that gives no more answers. All requests have ended with that error.
    pub fn run(mut self) -> Result<(), latten::Error> {
        self.metrics.observe(&self.scheduler);
        let mut since = Instant::now();
        loop {
            if self.scheduler.is_idle() && !self.stopping {
                let command = self.commands.recv();
                since = Instant::now();
                match command {
                    Ok(command) => self.take(command),
                    Err(_) => return Ok(()),
                }
            }
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.stop();
                        break;
                    }
                }
            }
            self.give_up_lost();
            if self.scheduler.is_idle() {
                self.metrics.observe(&self.scheduler);
                match self.stopping {
                    true => return Ok(()),
                    false => continue,
                }
            }
            let start = Instant::now();
            self.metrics.between_steps.inc_by((start - since).as_secs_f64());
            let stepped = pollster::block_on(self.scheduler.step());
            since = Instant::now();
            match stepped {
                Ok(events) => {
                    self.metrics.steps.inc();
                    self.metrics.step_seconds.observe((since - start).as_secs_f64());
                    events.into_iter().for_each(|event| self.give(event));
                }
                Err(error) => self.fail_all(error)?,
            }
            self.metrics.observe(&self.scheduler);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Job(job) if self.stopping => {
                let _ =
                    job.pieces.send(Piece::Refused(ApiError::unavailable("shutting_down", "the server is going down")));
            }
            Command::Job(job) => self.begin(*job),
            Command::Stop => self.stop(),
        }
    }

    /// Adds the first continuation of every prompt; or refuses all.
    fn begin(&mut self, job: Job) {
        let (id, mut index) = (self.next, 0);
        self.next += 1;
        let (mut added, mut later) = (Vec::new(), BTreeMap::new());
        let page = self.scheduler.session().cache().pages().size;
        for (request, times) in &job.prompts {
            let first = index;
            let mut rest = Vec::new();
            for nth in 0..*times {
                let mut request = request.clone();
                request.generate.seed = request.generate.seed.wrapping_add(nth as u64);
                // Without a whole page there is nothing to share.
                if nth > 0 && request.prompt.len() > page {
                    rest.push((index, request));
                } else {
                    match add(&mut self.scheduler, &job.drawing, request) {
                        Ok(request) => added.push((request, index)),
                        Err(error) => {
                            added.iter().for_each(|(request, _)| drop(self.scheduler.cancel(*request)));
                            self.metrics.ended.with_label_values(&["refused"]).inc();
                            let _ = job.pieces.send(Piece::Refused(ApiError::of(&error)));
                            return;
                        }
                    }
                }
                index += 1;
            }
            if !rest.is_empty() {
                later.insert(first, rest);
            }
            self.metrics.prompt_tokens.inc_by(request.prompt.len() as u64);
        }
        for (request, index) in added {
            self.choices.insert(request, Choice { job: id, index, last_token: None });
        }
        self.jobs.insert(id, Live { job, left: index, tokens: 0, first: None, later, ends: None, gone: false });
    }

    /// Cancels the requests of clients that have gone, and of those whose first token takes too long.
    fn give_up_lost(&mut self) {
        let now = Instant::now();
        let gone = |live: &Live| live.job.pieces.is_closed();
        let late = |live: &Live| live.first.is_none() && live.job.first_token_by <= now && live.ends.is_none();
        let lost: Vec<u64> = self.jobs.iter().filter(|(_, live)| gone(live) || late(live)).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(live) = self.jobs.get_mut(&id) {
                live.gone = live.gone || live.job.pieces.is_closed();
            }
            self.end_job(id, End::Timeout);
        }
    }

    /// Ends a job early: its choices end for this reason, with what they have.
    fn end_job(&mut self, id: u64, why: End) {
        let Some(live) = self.jobs.get_mut(&id) else { return };
        live.ends = Some(why.clone());
        let later: Vec<usize> =
            std::mem::take(&mut live.later).into_values().flatten().map(|(index, _)| index).collect();
        live.left -= later.len();
        for choice in later {
            let _ =
                live.job.pieces.send(Piece::Part { choice, text: String::new(), token: None, end: Some(why.clone()) });
        }
        let requests: Vec<RequestId> = self.choices.iter().filter(|(_, c)| c.job == id).map(|(id, _)| *id).collect();
        for request in requests {
            // Its last event comes with the next step.
            let _ = self.scheduler.cancel(request);
        }
    }

    fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopping, true) {
            let all: Vec<u64> = self.jobs.keys().copied().collect();
            all.into_iter().for_each(|id| self.end_job(id, End::Abort));
        }
    }

    /// What a step gave to one request.
    fn give(&mut self, mut event: Event) {
        let now = Instant::now();
        let Some(choice) = self.choices.get_mut(&event.id) else { return };
        let (id, index) = (choice.job, choice.index);
        let Some(live) = self.jobs.get_mut(&id) else { return };
        let mut later = Vec::new();
        if event.token.is_some() {
            self.metrics.generated_tokens.inc();
            live.tokens += 1;
            if let Some(before) = choice.last_token.replace(now) {
                self.metrics.inter_token.observe((now - before).as_secs_f64());
            }
            if live.first.replace(live.first.unwrap_or(now)).is_none() {
                self.metrics.first_token.observe((now - live.job.received).as_secs_f64());
            }
        }
        if event.token.is_some() || event.finished.is_some() {
            later = live.later.remove(&index).unwrap_or_default();
        }
        let ended = event.finished.is_some();
        let end = event.finished.take().map(|why| end_of(why, live.ends.as_ref()));
        let text = String::from_utf8_lossy(&event.bytes).into_owned();
        let Event { log_probability, most_likely, .. } = event;
        let token = event.token.map(|token| Token { token, log_probability, most_likely });
        let _ = live.job.pieces.send(Piece::Part { choice: index, text, token, end: end.clone() });
        if ended {
            self.choices.remove(&event.id);
            live.left -= 1;
        }
        for (index, request) in later {
            match add(&mut self.scheduler, &live.job.drawing, request) {
                Ok(request) => drop(self.choices.insert(request, Choice { job: id, index, last_token: None })),
                Err(error) => {
                    let end = Some(End::Failed(ApiError::of(&error)));
                    live.left -= 1;
                    let _ = live.job.pieces.send(Piece::Part { choice: index, text: String::new(), token: None, end });
                }
            }
        }
        if live.left == 0 {
            self.end(id, end.as_ref(), now);
        }
    }

    /// Takes down how a job ended.
    fn end(&mut self, id: u64, end: Option<&End>, now: Instant) {
        let Some(live) = self.jobs.remove(&id) else { return };
        let outcome = match end {
            _ if live.gone => "gone",
            Some(End::Stop) => "stop",
            Some(End::Length) => "length",
            Some(End::Abort) => "abort",
            Some(End::Timeout) => "timeout",
            Some(End::Failed(_)) | None => "error",
        };
        let seconds = (now - live.job.received).as_secs_f64();
        self.metrics.ended.with_label_values(&[outcome]).inc();
        self.metrics.request_seconds.observe(seconds);
        let prompt_tokens: usize = live.job.prompts.iter().map(|(request, _)| request.prompt.len()).sum();
        let first_ms = live.first.map_or(-1, |first| (first - live.job.received).as_millis() as i64);
        info!(
            id = live.job.id,
            outcome,
            prompt_tokens,
            tokens = live.tokens,
            first_token_ms = first_ms,
            total_ms = (1e3 * seconds) as u64,
            "request ended"
        );
    }

    /// After a step that failed: a device or a rank that is lost gives no more answers; whatever else it is, the requests of that step are
    /// ended, and others may come.
    fn fail_all(&mut self, error: latten::Error) -> Result<(), latten::Error> {
        error!(%error, "a step failed");
        let api = match error.kind() {
            ErrorKind::DeviceLost { .. } => ApiError::unavailable("device_lost", "the GPU is lost; the server ends"),
            ErrorKind::Rank { .. } => ApiError::unavailable("device_lost", "one of the GPUs is lost; the server ends"),
            _ => ApiError::of(&error),
        };
        let all: Vec<u64> = self.jobs.keys().copied().collect();
        all.into_iter().for_each(|id| self.end_job(id, End::Failed(api.clone())));
        if !matches!(error.kind(), ErrorKind::DeviceLost { .. } | ErrorKind::Rank { .. }) {
            return Ok(());
        }
        // No step tells of their end.
        for choice in std::mem::take(&mut self.choices).into_values() {
            let Some(live) = self.jobs.get(&choice.job) else { continue };
            let end = Some(End::Failed(api.clone()));
            let _ = live.job.pieces.send(Piece::Part { choice: choice.index, text: String::new(), token: None, end });
        }
        self.jobs.clear();
        Err(error)
    }
}

/// Errors: those of a request, or of how its tokens are to be drawn.
fn add(scheduler: &mut Scheduler, drawing: &Drawing, request: Request) -> Result<RequestId, latten::Error> {
    let sampler = drawing.sampler(&request)?;
    scheduler.add_with(request, sampler)
}

fn end_of(finished: Finished, early: Option<&End>) -> End {
    match finished {
        Finished::StopToken | Finished::StopString(_) | Finished::Complete => End::Stop,
        Finished::Length => End::Length,
        Finished::Deadline => End::Timeout,
        Finished::Cancelled => early.cloned().unwrap_or(End::Abort),
        Finished::Failed(error) => End::Failed(ApiError::of(&error)),
        _ => End::Failed(ApiError::new(
            axum::http::StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "ended in a way that this server does not know",
        )),
    }
}
