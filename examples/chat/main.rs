//! A chat in the terminal, with a GGUF file or a folder of a published model.
//!
//! `cargo run --release --features tokenizers --example chat -- model.gguf`; `./dev chat` in a checkout of the repository fetches a
//! small model where none is given. `--prompt TEXT` answers once and prints the answer alone.

use clap::Parser;
use latten::model::{
    AnswerEnd, Chat, ChatAnswer, ChatOptions, ChatTemplate, Message, Session, SessionOptions, Tokenizer,
};
use latten::Gpu;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

mod arguments;
#[path = "../shared/arguments.rs"]
mod arguments_of_all;
#[path = "../generate/loading.rs"]
mod loading;
#[path = "../shared/warnings.rs"]
mod warnings;

pub(crate) use arguments::Args;

const HELP: &str = "\
/help         this text
/reset        forget all that was said, but not --system's text
/save FILE    write what was said, as JSON
/load FILE    go on from what was saved
/exit         leave; so does the end of the input
Ctrl-C stops an answer; where none is under way it leaves.";

/// Set by Ctrl-C: the answer under way ends.
static STOPPED: AtomicBool = AtomicBool::new(false);
static ANSWERING: AtomicBool = AtomicBool::new(false);

/// What the user reads: answers, and everything else.
pub(crate) struct Screen<'a> {
    pub(crate) out: &'a mut dyn Write,
    pub(crate) notes: &'a mut dyn Write,
}

/// A chat under way.
pub(crate) struct Talk {
    chat: Chat,
    messages: Vec<Message>,
    /// Without a template: all that was written.
    text: String,
    raw: bool,
    system: Option<String>,
    options: ChatOptions,
}

/// What a line of the user's asks for.
enum Asked {
    Leave,
    GoOn,
}

impl Talk {
    /// Loads the model.
    pub(crate) async fn open(args: &Args) -> Result<Talk, String> {
        let words = |e: latten::Error| e.to_string();
        let Some(model) = &args.model else {
            return Err(
                "no model: give a GGUF file, or a folder with one or with config.json and model.safetensors".into()
            );
        };
        let tokenizer = Tokenizer::from_folder(model).map_err(words)?;
        let template = if args.raw { None } else { ChatTemplate::from_folder(model).map_err(words)? };
        if template.is_none() && !args.raw {
            return Err(format!("{model} has no chat template: --raw lets the model go on after a text as it is"));
        }
        let gpu = Gpu::new().await.map_err(words)?;
        let decoder = loading::load(&gpu, model, args.weights, args.integer_dot).map_err(words)?;
        let cache_tokens = args.context.min(decoder.config().max_positions);
        let session = Session::new(&decoder, SessionOptions { cache_tokens, ..Default::default() }).map_err(words)?;
        let sampling = latten::nn::Sampling::new(args.temperature, args.top_p);
        let options = ChatOptions { max_new_tokens: args.tokens, sampling, seed: args.seed };
        let chat = Chat::new(session, tokenizer, template);
        let mut talk = Talk {
            chat,
            messages: Vec::new(),
            text: String::new(),
            raw: args.raw,
            system: args.system.clone(),
            options,
        };
        talk.reset();
        Ok(talk)
    }

    fn reset(&mut self) {
        self.text.clear();
        self.messages = self.system.iter().map(Message::system).collect();
    }

    /// Answers a text, and keeps both. After an error what was said is as before.
    pub(crate) async fn say(&mut self, text: &str, screen: &mut Screen<'_>, facts: bool) -> Result<(), String> {
        let before = (self.messages.len(), self.text.len());
        if self.raw {
            self.text += text;
        } else {
            self.messages.push(Message::user(text));
        }
        let answered = {
            let Talk { chat, messages, text, options, .. } = self;
            let made = if self.raw { chat.complete(text, *options) } else { chat.answer(messages, *options) };
            match made {
                Ok(answer) => show(answer, screen, facts).await,
                Err(e) => Err(e.to_string()),
            }
        };
        match answered {
            Ok(said) if self.raw => self.text += &said,
            Ok(said) => self.messages.push(Message::assistant(said)),
            Err(e) => {
                self.messages.truncate(before.0);
                self.text.truncate(before.1);
                return Err(e);
            }
        }
        Ok(())
    }

    fn save(&self, path: &str) -> Result<String, String> {
        let json = serde_json::to_string_pretty(&self.messages).map_err(|e| e.to_string())?;
        std::fs::write(path, json + "\n").map_err(|e| format!("{path}: {e}"))?;
        Ok(format!("{} messages saved in {path}", self.messages.len()))
    }

    fn load(&mut self, path: &str) -> Result<String, String> {
        let json = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
        self.messages = serde_json::from_str(&json).map_err(|e| format!("{path}: not a saved chat: {e}"))?;
        Ok(format!("{} messages, the next answer goes on from them", self.messages.len()))
    }

    /// One line of the user's.
    async fn line(&mut self, line: &str, screen: &mut Screen<'_>) -> Result<Asked, String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let path = rest.trim();
        let note = match word {
            "" => String::new(),
            "/exit" | "/quit" => return Ok(Asked::Leave),
            "/help" => HELP.into(),
            "/reset" => {
                self.reset();
                "all is forgotten".into()
            }
            "/save" | "/load" if path.is_empty() || self.raw => {
                format!("{word} wants the name of a file, and a chat that is not --raw")
            }
            "/save" => self.save(path).unwrap_or_else(|e| e),
            "/load" => self.load(path).unwrap_or_else(|e| e),
            other if other.starts_with('/') => format!("{other} is not known, /help says what is"),
            _ => {
                let said = self.say(line, screen, true).await;
                said.err().unwrap_or_default()
            }
        };
        if !note.is_empty() {
            writeln!(screen.notes, "{note}").map_err(|e| e.to_string())?;
        }
        Ok(Asked::GoOn)
    }

    /// Lines until there are no more.
    pub(crate) async fn lines(&mut self, input: &mut dyn BufRead, screen: &mut Screen<'_>) -> Result<(), String> {
        loop {
            write!(screen.notes, "> ").and_then(|()| screen.notes.flush()).map_err(|e| e.to_string())?;
            let mut line = String::new();
            let read = input.read_line(&mut line).map_err(|e| format!("the input: {e}"))?;
            if read == 0 || matches!(self.line(line.trim_end_matches(['\r', '\n']), screen).await?, Asked::Leave) {
                return Ok(());
            }
        }
    }
}

/// Writes an answer as it comes, and with `facts` what it took. Returns it.
async fn show(mut answer: ChatAnswer<'_>, screen: &mut Screen<'_>, facts: bool) -> Result<String, String> {
    let (start, mut said, mut first) = (Instant::now(), String::new(), None);
    STOPPED.store(false, Ordering::Relaxed);
    ANSWERING.store(true, Ordering::Relaxed);
    let done = loop {
        match answer.next().await {
            Ok(Some(text)) => {
                first.get_or_insert_with(|| (start.elapsed(), answer.facts().tokens));
                said += &text;
                if let Err(e) = write!(screen.out, "{text}").and_then(|()| screen.out.flush()) {
                    break Err(format!("writing the answer: {e}"));
                }
            }
            Ok(None) => break Ok(()),
            Err(e) => break Err(e.to_string()),
        }
        if STOPPED.load(Ordering::Relaxed) {
            break Ok(());
        }
    };
    ANSWERING.store(false, Ordering::Relaxed);
    done?;
    writeln!(screen.out).map_err(|e| e.to_string())?;
    if facts {
        let (made, end) = (answer.facts(), answer.end());
        let (to_first, before) = first.unwrap_or((start.elapsed(), made.tokens));
        let seconds = (start.elapsed() - to_first).as_secs_f64();
        let rate = (made.tokens - before) as f64 / seconds.max(1e-9);
        let rate = if made.tokens > before { format!("{rate:.1} tokens/s") } else { "one part".into() };
        let why = match end {
            None => ", stopped",
            Some(AnswerEnd::Length) => ", cut at --tokens",
            Some(AnswerEnd::Full) => ", cut: --context is full",
            Some(_) => "",
        };
        let (ms, bytes) = (to_first.as_millis(), answer.session().stats().bytes as f64 / 1e6);
        let note = format!(
            "[{} tokens, {rate}{why}; prompt {} tokens, {} of them cached, {ms} ms; cache {bytes:.1} MB]",
            made.tokens, made.prompt_tokens, made.reused_tokens
        );
        writeln!(screen.notes, "{note}").map_err(|e| e.to_string())?;
    }
    Ok(said)
}

pub(crate) async fn run(args: Args, input: &mut dyn BufRead, screen: &mut Screen<'_>) -> Result<(), String> {
    let start = Instant::now();
    let mut talk = Talk::open(&args).await?;
    if let Some(prompt) = &args.prompt {
        return talk.say(prompt, screen, false).await;
    }
    let (config, gpu) = (talk.chat.session().decoder().config(), talk.chat.session().decoder().gpu());
    let note = format!(
        "{} ({} layers of {}, {}), {}; loaded in {:.1} s; /help",
        args.model.as_deref().unwrap_or_default(),
        config.layers,
        config.hidden_size,
        args.weights,
        gpu.capabilities().adapter,
        start.elapsed().as_secs_f64()
    );
    writeln!(screen.notes, "{note}").map_err(|e| e.to_string())?;
    talk.lines(input, screen).await
}

/// From now on Ctrl-C ends the answer under way, or where there is none the program.
pub(crate) fn handle_ctrl_c() {
    let handled = ctrlc::set_handler(|| match ANSWERING.load(Ordering::Relaxed) {
        true => STOPPED.store(true, Ordering::Relaxed),
        false => std::process::exit(130),
    });
    if let Err(e) = handled {
        eprintln!("Ctrl-C will end the program: {e}");
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    warnings::print_warnings();
    handle_ctrl_c();
    let mut screen = Screen { out: &mut io::stdout(), notes: &mut io::stderr() };
    match pollster::block_on(run(args, &mut io::stdin().lock(), &mut screen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("chat: {e}");
            ExitCode::FAILURE
        }
    }
}
