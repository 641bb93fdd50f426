//! Texts that come token by token: an iterator over what a thread computes.

use crate::errors::raise;
use crate::model::{taken, Ended, Loaded};
use crate::work::{self, locked, Stop};
use latten::model::{continue_sequence, GenerateOptions};
use latten::{SeqId, Session};
use pyo3::prelude::*;
use std::ops::ControlFlow;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex};

/// Tokens that wait to be taken, at most: the device need not wait for Python, nor run far ahead of who may stop.
const AHEAD: usize = 4;

/// A token and the text that is complete with it, maybe none.
#[pyclass(frozen, module = "latten")]
pub(crate) struct Token {
    #[pyo3(get)]
    id: u32,
    #[pyo3(get)]
    text: String,
}

#[pymethods]
impl Token {
    fn __repr__(&self) -> String {
        format!("Token(id={}, text={:?})", self.id, self.text)
    }
}

pub(crate) struct Wanted {
    pub(crate) prompt: Vec<u32>,
    pub(crate) options: GenerateOptions,
}

enum Said {
    Token(u32, String),
    /// What was left of the text, as of an unfinished character.
    Rest(String),
    Ended(Ended),
}

/// The tokens that follow a prompt, as they are computed.
#[pyclass(frozen, module = "latten")]
pub(crate) struct Generation {
    said: Mutex<Receiver<Said>>,
    stop: Stop,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    text: String,
    tokens: Vec<u32>,
    done: bool,
}

/// Begins to continue a prompt. The model is busy until the end, or until it has heard of a stop.
pub(crate) fn begin(py: Python<'_>, loaded: &Arc<Loaded>, wanted: Wanted) -> PyResult<Generation> {
    wanted.options.sampling.check().map_err(|error| raise(py, &error))?;
    let (sender, receiver) = sync_channel(AHEAD);
    let (started, begun) = sync_channel(1);
    let stop = Stop::default();
    let (told, loaded) = (stop.clone(), loaded.clone());
    work::start(move || {
        let mut session = match taken(&loaded.session) {
            Ok(session) => session,
            Err(busy) => return drop(started.send(Err(busy))),
        };
        let _ = started.send(Ok(()));
        let last = match run(&mut session, &loaded, &wanted, &told, &sender) {
            Ok(rest) => Said::Rest(rest),
            Err(ended) => Said::Ended(ended),
        };
        // Who hears of the end finds the model free.
        drop(session);
        let _ = sender.send(last);
    });
    match work::receive(py, &Mutex::new(begun)) {
        Ok(Some(Err(busy))) => Err(busy.raise(py)),
        Ok(_) => Ok(Generation { said: Mutex::new(receiver), stop, state: Mutex::default() }),
        Err(interrupted) => {
            stop.ask();
            Err(interrupted)
        }
    }
}

fn run(
    session: &mut Session,
    loaded: &Loaded,
    wanted: &Wanted,
    stop: &Stop,
    to: &SyncSender<Said>,
) -> Result<String, Ended> {
    let sequence = session.insert();
    let done = follow(session, sequence, loaded, wanted, stop, to);
    session.remove(sequence)?;
    done
}

fn follow(
    session: &mut Session,
    sequence: SeqId,
    loaded: &Loaded,
    wanted: &Wanted,
    stop: &Stop,
    to: &SyncSender<Said>,
) -> Result<String, Ended> {
    let Wanted { prompt, options } = wanted;
    let mut text = loaded.tokenizer.stream();
    let on_token = |token: u32| {
        let gone = to.send(Said::Token(token, text.push(token))).is_err();
        match gone || stop.is_asked() || loaded.tokenizer.end_tokens().contains(&token) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    pollster::block_on(continue_sequence(session, sequence, prompt, *options, on_token))?;
    Ok(text.finish())
}

#[pymethods]
impl Generation {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Token>> {
        if locked(&self.state).done {
            return Ok(None);
        }
        let said = work::receive(py, &self.said).inspect_err(|_| self.stop.ask())?;
        let mut state = locked(&self.state);
        match said {
            Some(Said::Token(id, text)) => {
                state.text.push_str(&text);
                state.tokens.push(id);
                Ok(Some(Token { id, text }))
            }
            Some(Said::Rest(text)) => {
                state.text.push_str(&text);
                state.done = true;
                Ok(None)
            }
            Some(Said::Ended(ended)) => {
                state.done = true;
                Err(ended.raise(py))
            }
            None => {
                state.done = true;
                Ok(None)
            }
        }
    }

    /// Reads to the end: all of the text.
    fn read(&self, py: Python<'_>) -> PyResult<String> {
        while self.__next__(py)?.is_some() {}
        Ok(locked(&self.state).text.clone())
    }

    /// Stops, and waits until the model is free for other calls. What was computed and not taken is lost.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.stop.ask();
        while work::receive(py, &self.said)?.is_some() {}
        locked(&self.state).done = true;
        Ok(())
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    /// The text of the tokens that were taken.
    #[getter]
    fn text(&self) -> String {
        locked(&self.state).text.clone()
    }

    /// The tokens that were taken.
    #[getter]
    fn tokens(&self) -> Vec<u32> {
        locked(&self.state).tokens.clone()
    }

    fn __repr__(&self) -> String {
        let state = locked(&self.state);
        format!("<latten.Generation: {} tokens{}>", state.tokens.len(), if state.done { ", at its end" } else { "" })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.stop.ask();
    }
}
