//! Models: tokens, logits, losses, and texts that go on (`generate.rs`).

use crate::arrays::made;
use crate::cache::dtype;
use crate::device::{self, PyGpu};
use crate::errors::{argument, exception, raise, OrRaise};
use crate::generate::{begin, Generation, Wanted};
use crate::work::{self, Stop};
use latten::model::{GenerateOptions, Tokenizer};
use latten::nn::{BlockType, Penalties, Sampling, WeightType};
use latten::{DType, Decoder, Error, Gpu, Session, SessionOptions};
use numpy::PyArrayDyn;
use pyo3::prelude::*;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};

/// A cache holds so many tokens where nobody says more.
const CACHE_TOKENS: usize = 4096;

/// What a model's calls work on, by one thread at a time.
pub(crate) struct Loaded {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) session: Mutex<Session>,
    pub(crate) chunk: usize,
}

/// A decoder with its tokenizer and a cache.
#[pyclass(frozen, module = "latten", name = "Model")]
pub(crate) struct PyModel {
    loaded: Arc<Loaded>,
    decoder: Decoder,
    options: SessionOptions,
    name: String,
}

/// A prompt or text: a `str`, or tokens.
#[derive(FromPyObject)]
pub(crate) enum Text {
    Text(String),
    Tokens(Vec<u32>),
}

/// Why a piece of work has no result.
pub(crate) enum Ended {
    Failed(Error),
    /// Another call has the session.
    Busy,
    /// It was told to stop, and nobody waits for it.
    Stopped,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended::Failed(error)
    }
}

impl Ended {
    pub(crate) fn raise(&self, py: Python<'_>) -> PyErr {
        match self {
            Ended::Failed(error) => raise(py, error),
            Ended::Busy => {
                let text = "the model is at work for another call: read that generation to its end, or close it";
                exception(py, "BusyError", text, &[])
            }
            Ended::Stopped => exception(py, "LattenError", "the work was told to stop", &[]),
        }
    }
}

fn weights(py: Python<'_>, text: &str) -> PyResult<WeightType> {
    match text {
        "f16" => Ok(DType::F16.into()),
        "f32" => Ok(DType::F32.into()),
        "i8" => Ok(DType::I8.into()),
        "q8_0" => Ok(BlockType::Q8_0.into()),
        "q4_0" => Ok(BlockType::Q4_0.into()),
        other => Err(argument(py, "weights", &format!("{other:?} is not f16, f32, i8, q8_0 or q4_0"))),
    }
}

fn open(gpu: &Gpu, path: &Path, weights: WeightType, mut options: SessionOptions) -> latten::Result<PyModel> {
    let tokenizer = Tokenizer::from_folder(path)?;
    let decoder = Decoder::load(gpu, path, weights)?;
    if options.cache_tokens == 0 {
        options.cache_tokens = decoder.config().max_positions.min(CACHE_TOKENS);
    }
    let session = Mutex::new(Session::new(&decoder, options)?);
    let loaded = Arc::new(Loaded { tokenizer, session, chunk: options.chunk });
    Ok(PyModel { loaded, decoder, options, name: path.display().to_string() })
}

#[pymethods]
impl PyModel {
    #[staticmethod]
    #[pyo3(signature = (path, *, weights = "f16", cache = "f16", cache_tokens = None, chunk = 128, window = None, gpu = None))]
    #[allow(clippy::too_many_arguments)] // Python's are named
    fn load(
        py: Python<'_>,
        path: PathBuf,
        weights: &str,
        cache: &str,
        cache_tokens: Option<usize>,
        chunk: usize,
        window: Option<usize>,
        gpu: Option<&PyGpu>,
    ) -> PyResult<Self> {
        if cache_tokens == Some(0) {
            return Err(argument(py, "cache_tokens", "must not be 0"));
        }
        let (weights, kv_dtype) = (self::weights(py, weights)?, dtype(py, "cache", cache)?);
        let gpu = device::of(py, gpu)?;
        let cache_tokens = cache_tokens.unwrap_or(0);
        let options = SessionOptions { chunk, cache_tokens, kv_dtype, window, ..Default::default() };
        work::wait(py, move |_| open(&gpu, &path, weights, options))?.or_raise(py)
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn variant(&self) -> &'static str {
        self.decoder.config().variant()
    }

    #[getter]
    fn layers(&self) -> usize {
        self.decoder.config().layers
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab_size
    }

    #[getter]
    fn max_positions(&self) -> usize {
        self.decoder.config().max_positions
    }

    #[getter]
    fn cache_tokens(&self) -> usize {
        self.options.cache_tokens
    }

    #[getter]
    fn heads(&self, py: Python<'_>) -> PyResult<crate::heads::PyHeadLayout> {
        Ok(crate::heads::PyHeadLayout { heads: self.decoder.config().layout().or_raise(py)? })
    }

    #[getter]
    fn end_tokens(&self) -> Vec<u32> {
        self.loaded.tokenizer.end_tokens().to_vec()
    }

    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        self.loaded.tokenizer.encode(text).or_raise(py)
    }

    fn decode(&self, tokens: Vec<u32>) -> String {
        self.loaded.tokenizer.decode(&tokens)
    }

    #[pyo3(signature = (
        prompt, *, max_tokens = 100, temperature = 0.0, top_p = 1.0, top_k = 0, min_p = 0.0, typical_p = 1.0,
        repetition = 1.0, presence = 0.0, frequency = 0.0, seed = 0
    ))]
    #[allow(clippy::too_many_arguments)] // Python's are named
    fn generate(
        &self,
        py: Python<'_>,
        prompt: Text,
        max_tokens: usize,
        temperature: f32,
        top_p: f32,
        top_k: u32,
        min_p: f32,
        typical_p: f32,
        repetition: f32,
        presence: f32,
        frequency: f32,
        seed: u64,
    ) -> PyResult<Generation> {
        let penalties = Penalties { repetition, presence, frequency, ..Default::default() };
        let sampling = Sampling { temperature, min_p, top_k, typical_p, top_p, penalties };
        let prompt = self.tokens(py, prompt)?;
        begin(
            py,
            &self.loaded,
            Wanted { prompt, options: GenerateOptions { max_new_tokens: max_tokens, sampling, seed } },
        )
    }

    /// `(tokens, vocab_size)`: after each token.
    fn logits<'py>(&self, py: Python<'py>, text: Text) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let (tokens, vocab) = (self.tokens(py, text)?, self.vocab_size());
        let count = tokens.len();
        let all = self.with_session(py, move |session, chunk, stop| {
            let mut all = Vec::new();
            feed(session, &tokens, 0..tokens.len(), chunk, stop, |_, logits| all.extend(logits))?;
            Ok(all)
        })?;
        made(py, all, &[count, vocab])
    }

    /// `(tokens - 1,)`: minus the natural log of the probability of each token but the first.
    fn losses<'py>(&self, py: Python<'py>, text: Text) -> PyResult<Bound<'py, PyArrayDyn<f64>>> {
        let losses = self.token_losses(py, text)?;
        let count = losses.len();
        made(py, losses, &[count])
    }

    /// The exponential of the mean of `losses`.
    fn perplexity(&self, py: Python<'_>, text: Text) -> PyResult<f64> {
        let losses = self.token_losses(py, text)?;
        Ok((losses.iter().sum::<f64>() / losses.len() as f64).exp())
    }

    fn __repr__(&self) -> String {
        format!("<latten.Model {:?}: {}, {} layers>", self.name, self.variant(), self.layers())
    }
}

impl PyModel {
    fn tokens(&self, py: Python<'_>, text: Text) -> PyResult<Vec<u32>> {
        match text {
            Text::Text(text) => self.encode(py, &text),
            Text::Tokens(tokens) => Ok(tokens),
        }
    }

    /// Works on the session, unless another call has it.
    fn with_session<T: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Session, usize, &Stop) -> Result<T, Ended> + Send + 'static,
    ) -> PyResult<T> {
        let loaded = self.loaded.clone();
        let done = work::wait(py, move |stop| {
            let mut session = taken(&loaded.session)?;
            work(&mut session, loaded.chunk, stop)
        });
        done?.map_err(|ended| ended.raise(py))
    }

    fn token_losses(&self, py: Python<'_>, text: Text) -> PyResult<Vec<f64>> {
        let tokens = self.tokens(py, text)?;
        if tokens.len() < 2 {
            let why = format!("{} tokens, of which the first is never predicted", tokens.len());
            return Err(argument(py, "text", &why));
        }
        let (most, vocab) = (self.options.cache_tokens.min(self.max_positions()), self.vocab_size());
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
            return Err(argument(py, "text", &format!("token {token} is not among the {vocab} of the vocabulary")));
        }
        self.with_session(py, move |session, chunk, stop| {
            let mut losses = Vec::new();
            // The last token predicts nothing that is there. A later window begins with the last token of the one before.
            for first in (0..tokens.len() - 1).step_by(most) {
                let window = first..(first + most).min(tokens.len() - 1);
                feed(session, &tokens, window, chunk, stop, |at, logits| {
                    let next = &tokens[at + 1..];
                    losses.extend(logits.chunks_exact(vocab).zip(next).map(|(row, token)| loss(row, *token)));
                })?;
            }
            Ok(losses)
        })
    }
}

/// The session, if no other call has it.
pub(crate) fn taken(session: &Mutex<Session>) -> Result<std::sync::MutexGuard<'_, Session>, Ended> {
    match session.try_lock() {
        Ok(session) => Ok(session),
        Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => Err(Ended::Busy),
    }
}

/// Feeds tokens of this range to a sequence of their own, which is gone at the end. `each` gets the place of a piece's first token, and
/// the logits after its tokens.
fn feed(
    session: &mut Session,
    tokens: &[u32],
    range: Range<usize>,
    chunk: usize,
    stop: &Stop,
    mut each: impl FnMut(usize, Vec<f32>),
) -> Result<(), Ended> {
    let sequence = session.insert();
    let mut fed = || {
        for at in range.clone().step_by(chunk.max(1)) {
            if stop.is_asked() {
                return Err(Ended::Stopped);
            }
            let piece = &tokens[at..(at + chunk.max(1)).min(range.end)];
            let logits = pollster::block_on(session.all_logits(&[(sequence, piece)]))?;
            logits.into_iter().for_each(|logits| each(at, logits));
        }
        Ok(())
    };
    let done = match range.is_empty() {
        // What is empty is refused in latten's words.
        true => pollster::block_on(session.all_logits(&[(sequence, &[])])).map(drop).map_err(Ended::from),
        false => fed(),
    };
    session.remove(sequence)?;
    done
}

/// Minus the log of a token's probability, by logits.
fn loss(logits: &[f32], token: u32) -> f64 {
    let most = logits.iter().fold(f64::NEG_INFINITY, |most, logit| most.max(f64::from(*logit)));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
    let own = logits.get(token as usize).map_or(f64::NAN, |logit| f64::from(*logit));
    most + sum.ln() - own
}
