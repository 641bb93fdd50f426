//! The model's thread: it loads, reads prompts in short steps, and draws tokens, and tells the window of each.

use crate::pace::Pace;
use latten::model::{ChatTemplate, Draw, LoadOptions, Message, Sampler, TextStream, Tokenizer};
use latten::nn::Sampling;
use latten::{Decoder, Error, ErrorKind, Gpu, SeqId, Session, SessionOptions};
use std::path::{Path, PathBuf};
use std::slice::from_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Most tokens of a step; what fits the budget is less on most devices.
const MOST: usize = 512;
/// Tokens that the cache holds, where the model has as many positions.
const CACHE_TOKENS: usize = 8192;

/// What the window asks for.
pub(crate) enum Command {
    Load(PathBuf),
    /// A message, or a text to go on with.
    Say {
        text: String,
        temperature: f32,
    },
    /// A prompt of so many tokens, for measurements.
    Read(usize),
    Forget,
}

/// What happens, in order.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Loading(f32),
    Loaded(Facts),
    /// Tokens that were read of those of the prompt.
    Read {
        read: usize,
        of: usize,
        cached: usize,
        cached_bytes: u64,
    },
    Text {
        text: String,
        cached: usize,
        cached_bytes: u64,
    },
    Done(Answer),
    Forgotten,
    Failed(String),
}

/// What the window shows of a model.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) variant: &'static str,
    pub(crate) q_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) layers: usize,
    pub(crate) token_bytes: usize,
    pub(crate) chats: bool,
    pub(crate) kernels: String,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) prompt: usize,
    pub(crate) prompt_time: Duration,
    pub(crate) tokens: usize,
    pub(crate) time: Duration,
    pub(crate) stopped: bool,
}

/// How the engine works, whatever model it has.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) budget: Duration,
    pub(crate) window: Option<usize>,
    pub(crate) max_tokens: usize,
}

/// The window's side of the thread.
pub(crate) struct Engine {
    commands: Sender<Command>,
    pub(crate) events: Receiver<Event>,
    stop: Arc<AtomicBool>,
}

impl Engine {
    /// `wake` is called after each event.
    pub(crate) fn start(gpu: Gpu, settings: Settings, wake: impl Fn() + Send + 'static) -> Self {
        let (commands, wanted) = channel();
        let (told, events) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let worker =
            Worker { gpu, settings, told, wake: Box::new(wake), stop: stop.clone(), loaded: None, tested: false };
        thread::spawn(move || worker.run(wanted));
        Engine { commands, events, stop }
    }

    /// The thread ends with the window alone.
    pub(crate) fn ask(&self, command: Command) {
        self.stop.store(false, Ordering::Relaxed);
        let _ = self.commands.send(command);
    }

    /// Ends an answer, or the reading of a prompt, after the step that is under way.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A model and its one text.
struct Loaded {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    session: Session,
    sequence: SeqId,
    /// The tokens in the cache.
    cached: Vec<u32>,
    /// All of the text, where the model does not chat: what it wrote last is not in the cache.
    text: Vec<u32>,
    messages: Vec<Message>,
    pace: Pace,
}

struct Worker {
    gpu: Gpu,
    settings: Settings,
    told: Sender<Event>,
    wake: Box<dyn Fn() + Send>,
    stop: Arc<AtomicBool>,
    loaded: Option<Loaded>,
    tested: bool,
}

impl Worker {
    fn run(mut self, wanted: Receiver<Command>) {
        for command in wanted {
            let done = match command {
                Command::Load(path) => self.load(&path).map(Event::Loaded),
                Command::Say { text, temperature } => self.say(&text, temperature).map(Event::Done),
                Command::Read(tokens) => self.read(tokens).map(Event::Done),
                Command::Forget => self.forget().map(|()| Event::Forgotten),
            };
            self.tell(done.unwrap_or_else(|error| Event::Failed(error.to_string())));
        }
    }

    fn tell(&self, event: Event) {
        let _ = self.told.send(event);
        (self.wake)();
    }

    fn load(&mut self, path: &Path) -> latten::Result<Facts> {
        self.loaded = None; // two models may be more than the device holds
        if !self.tested {
            self.gpu = pollster::block_on(self.gpu.clone().with_matrix_kernels())?;
            self.tested = true;
        }
        let tokenizer = Tokenizer::from_folder(path)?;
        let template = ChatTemplate::from_folder(path)?;
        let progress = |now: latten::cache::Progress| {
            self.tell(Event::Loading(now.bytes as f32 / now.total_bytes.max(1) as f32));
        };
        let decoder =
            Decoder::load_with(&self.gpu, path, LoadOptions { progress: Some(&progress), ..Default::default() })?;
        let config = decoder.config().clone();
        let options = SessionOptions {
            chunk: MOST,
            cache_tokens: CACHE_TOKENS
                .min(config.max_positions)
                .min(self.settings.window.map_or(usize::MAX, |w| w + 2 * MOST)),
            window: self.settings.window,
            ..Default::default()
        };
        let mut session = Session::new(&decoder, options)?;
        let heads = config.layout()?;
        let facts = Facts {
            name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            variant: config.variant(),
            q_heads: heads.q_heads(),
            head_dim: config.head_dim,
            layers: config.layers,
            token_bytes: session.cache().token_bytes(),
            chats: template.is_some(),
            kernels: self.gpu.capabilities().tier.to_string(),
        };
        let sequence = session.insert();
        let pace = Pace::new(self.settings.budget, MOST);
        let (cached, text, messages) = Default::default();
        self.loaded = Some(Loaded { tokenizer, template, session, sequence, cached, text, messages, pace });
        Ok(facts)
    }

    fn forget(&mut self) -> latten::Result<()> {
        let loaded = self.loaded.as_mut().ok_or_else(nothing_loaded)?;
        loaded.restart()?;
        loaded.messages.clear();
        loaded.text.clear();
        Ok(())
    }

    fn say(&mut self, text: &str, temperature: f32) -> latten::Result<Answer> {
        let mut loaded = self.loaded.take().ok_or_else(nothing_loaded)?;
        let before = loaded.messages.len();
        let done = loaded.prompt(text).and_then(|prompt| self.answer(&mut loaded, prompt, temperature));
        if done.is_err() {
            loaded.messages.truncate(before);
        }
        self.loaded = Some(loaded);
        done
    }

    fn read(&mut self, tokens: usize) -> latten::Result<Answer> {
        let mut loaded = self.loaded.take().ok_or_else(nothing_loaded)?;
        let words = loaded.tokenizer.encode("But soft, what light through yonder window breaks? It is the east. ");
        let done = words.and_then(|words| {
            let prompt = words.iter().copied().cycle().take(tokens).collect();
            self.answer(&mut loaded, prompt, 0.0)
        });
        self.loaded = Some(loaded);
        done
    }

    /// Reads what of a prompt is not in the cache, and goes on from there.
    fn answer(&self, loaded: &mut Loaded, prompt: Vec<u32>, temperature: f32) -> latten::Result<Answer> {
        let mut answer = Answer::default();
        let start = Instant::now();
        let common = loaded.keep_common(&prompt)?;
        answer.prompt = prompt.len() - common;
        let Some((last, before)) = prompt.split_last() else { return Ok(answer) };
        while loaded.cached.len() < before.len() {
            loaded.feed(before)?;
            let (cached, cached_bytes) = loaded.held();
            self.tell(Event::Read { read: cached, of: before.len(), cached, cached_bytes });
            if self.stop.load(Ordering::Relaxed) {
                answer.stopped = true;
                loaded.text = loaded.cached.clone();
                return Ok(answer);
            }
        }
        answer.prompt_time = start.elapsed();
        self.draw(loaded, prompt.clone(), *last, temperature, &mut answer)?;
        Ok(answer)
    }

    /// Draws until the text ends, or the window stops it.
    fn draw(
        &self,
        loaded: &mut Loaded,
        mut all: Vec<u32>,
        mut last: u32,
        temperature: f32,
        answer: &mut Answer,
    ) -> latten::Result<()> {
        let mut sampler = Sampler::new(Sampling::new(temperature, 0.95), seed())?;
        let Loaded { tokenizer, session, sequence, cached, .. } = loaded;
        let mut text: TextStream<'_> = tokenizer.stream_after(&all);
        let (start, mut written, mut failed) = (Instant::now(), String::new(), None);
        while answer.tokens < self.settings.max_tokens {
            let drawn = match pollster::block_on(session.draw(&[(*sequence, &[last])], from_mut(&mut sampler))) {
                Ok(drawn) => drawn,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            cached.push(last);
            let Some(drawn) = drawn.first() else { break };
            last = drawn.token;
            answer.tokens += 1;
            if tokenizer.end_tokens().contains(&last) {
                break;
            }
            all.push(last);
            let piece = text.push(last);
            written.push_str(&piece);
            let cached_bytes = session.stats().bytes;
            self.tell(Event::Text { text: piece, cached: cached.len(), cached_bytes });
            if self.stop.load(Ordering::Relaxed) {
                answer.stopped = true;
                break;
            }
        }
        let rest = text.finish();
        written.push_str(&rest);
        answer.time = start.elapsed();
        let cached_bytes = session.stats().bytes;
        self.tell(Event::Text { text: rest, cached: cached.len(), cached_bytes });
        loaded.messages.push(Message::assistant(written));
        loaded.text = all;
        failed.map_or(Ok(()), Err)
    }
}

impl Loaded {
    /// All tokens of the text with a message, or with more of it.
    fn prompt(&mut self, text: &str) -> latten::Result<Vec<u32>> {
        if text.is_empty() {
            return Err(refused("text", "is empty"));
        }
        match &self.template {
            Some(template) => {
                self.messages.push(Message::user(text));
                self.tokenizer.encode(template.render(&self.messages, true)?)
            }
            None if self.text.is_empty() => self.tokenizer.encode(text),
            None => {
                let more = self.tokenizer.encode_after(&self.text, text)?;
                Ok([self.text.as_slice(), &more].concat())
            }
        }
    }

    /// Feeds the next tokens, as many as fit the budget, and waits for them: none but this step is then with the device.
    fn feed(&mut self, tokens: &[u32]) -> latten::Result<()> {
        let at = self.cached.len();
        let piece = &tokens[at..tokens.len().min(at + self.pace.tokens())];
        let start = Instant::now();
        // What is drawn goes nowhere; four bytes come back, and with them the end of the step.
        pollster::block_on(self.session.next_tokens(&[(self.sequence, piece)], &[Draw::default()]))?;
        self.pace.took(piece.len(), start.elapsed());
        self.cached.extend(piece);
        Ok(())
    }

    /// Cuts the cache to what it has in common with a prompt, whose last token is to be computed in any case. Returns how much that is.
    fn keep_common(&mut self, prompt: &[u32]) -> latten::Result<usize> {
        let most = prompt.len().saturating_sub(1);
        let common = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(most);
        if common < self.cached.len() {
            // A window may have freed what would be seen.
            if self.session.truncate(self.sequence, common).is_err() {
                self.restart()?;
                return Ok(0);
            }
            self.cached.truncate(common);
        }
        Ok(common)
    }

    fn restart(&mut self) -> latten::Result<()> {
        self.session.remove(self.sequence)?;
        self.sequence = self.session.insert();
        self.cached.clear();
        Ok(())
    }

    /// Tokens in the cache, and the bytes of their pages.
    fn held(&self) -> (usize, u64) {
        (self.cached.len(), self.session.stats().bytes)
    }
}

fn nothing_loaded() -> Error {
    refused("model", "none is loaded")
}

fn refused(name: &'static str, why: &str) -> Error {
    ErrorKind::Argument { name, why: why.into() }.into()
}

/// Another text each time.
fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy.toml does not reach
#[path = "engine_tests.rs"]
mod tests;
