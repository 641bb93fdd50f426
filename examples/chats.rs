//! Many chats with one system prompt, and what sharing it saves: pages, bytes, and prompt tokens that are not computed
//! again.
//!
//! `cargo run --release --example chats -- --sequences 16` in a checkout of the repository, which has the models.

#[path = "shared/arguments.rs"]
mod arguments;
#[path = "shared/repository.rs"]
mod repository;
#[path = "shared/warnings.rs"]
mod warnings;

use arguments::{count, dtypes, CACHE_DTYPES, VARIANTS};
use clap::Parser;
use latten::model::{Decoder, Draw, Session, SessionOptions, SplitMix64};
use latten::nn::Sampling;
use latten::{DType, Gpu, SeqId};
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

/// The models read bytes and know one author.
const SYSTEM: &str = "\
THE TRAGEDY OF THE TWO HOUSES

The scene is laid in a town by the sea, and in the hills behind it. Two houses, both of them old and neither of them
rich, have sold wine to the same inn for a hundred years. Each says that the other waters it. Whoever enters speaks in
his turn, at no great length, of the matter that he came about; and when he has done he goes, as the players do who have
another part to dress for.

ACT I. The inn, at evening.

";
const NAMES: [&str; 8] = ["ROMEO", "KING", "CORIOLANUS", "DUKE", "PRINCE", "ANTONIO", "OLIVIA", "FIRST CITIZEN"];
/// Prompts of other users than these are not found, though their tokens are the same.
const SALT: u64 = 1;

/// Many chats with one system prompt, and what sharing it saves
#[derive(clap::Parser)]
#[command(name = "chats")]
pub(crate) struct Args {
    /// Of attention: one of the example models
    #[arg(long, value_name = "NAME", default_value = "gla", value_parser = VARIANTS)]
    variant: String,
    /// Where the folders of the variants are
    #[arg(long, value_name = "DIR", default_value = "examples/models")]
    models: String,
    /// Chats at a time
    #[arg(long, value_name = "N", default_value = "16", value_parser = count)]
    sequences: usize,
    /// Of an answer
    #[arg(long, value_name = "N", default_value = "40", value_parser = count)]
    tokens: usize,
    /// Tokens per page of the cache
    #[arg(long, value_name = "N", default_value = "32", value_parser = page_size)]
    page_size: usize,
    /// Of the cache
    #[arg(long, value_name = "DTYPE", default_value = "f16", value_parser = dtypes(CACHE_DTYPES))]
    kv_dtype: DType,
}

fn page_size(text: &str) -> Result<usize, String> {
    let size = count(text).ok().filter(|n| n.is_power_of_two() && *n <= 4096);
    size.ok_or_else(|| "not a power of two up to 4096".into())
}

/// Reads a command line without the program's name.
pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Args, clap::Error> {
    Args::try_parse_from(std::iter::once("chats".to_string()).chain(args))
}

/// A sequence, and its text so far; the last token is not in the cache yet.
struct Chat {
    id: SeqId,
    tokens: Vec<u32>,
    random: SplitMix64,
}

/// Tokens of the prompts of a chat, other ones each time. All begin with the system prompt.
fn prompt(chat: usize) -> Vec<u32> {
    let name = NAMES[chat % NAMES.len()];
    format!("{SYSTEM}[{} cups are on the table. Enter {name}.]\n\n{name}:\n", chat + 2).bytes().map(u32::from).collect()
}

/// The chats of a session, and what is counted beside the cache's own numbers.
struct Chats {
    session: Session,
    open: Vec<Chat>,
    prompt_tokens: usize,
    computed: usize,
}

impl Chats {
    /// Computes the system prompt, and keeps its full pages, whoever comes and goes.
    async fn pin_system(&mut self) -> latten::Result<()> {
        let tokens: Vec<u32> = SYSTEM.bytes().map(u32::from).collect();
        let id = self.session.match_prefix(&tokens, SALT);
        let rest = &tokens[self.session.len(id)?..];
        (self.prompt_tokens, self.computed) = (self.prompt_tokens + tokens.len(), self.computed + rest.len());
        self.session.logits(&[(id, rest)]).await?;
        self.session.pin(id)?;
        self.session.remove(id)
    }

    /// Opens chats, and computes what is not cached of their prompts, all in one call.
    async fn open(&mut self, numbers: std::ops::Range<usize>) -> latten::Result<()> {
        for number in numbers {
            let tokens = prompt(number);
            let id = self.session.match_prefix(&tokens, SALT);
            self.prompt_tokens += tokens.len();
            self.computed += tokens.len() - self.session.len(id)?;
            self.open.push(Chat { id, tokens, random: SplitMix64::new(number as u64) });
        }
        self.step().await
    }

    /// Feeds every chat what it has not in the cache, and draws its next token.
    async fn step(&mut self) -> latten::Result<()> {
        let sampling = Sampling::new(0.8, 0.95);
        let draws: Vec<Draw> = self.open.iter_mut().map(|c| Draw { sampling, u: c.random.uniform() }).collect();
        let mut batch = Vec::new();
        for chat in &self.open {
            batch.push((chat.id, &chat.tokens[self.session.len(chat.id)?..]));
        }
        let drawn = self.session.next_tokens(&batch, &draws).await?;
        self.open.iter_mut().zip(drawn).for_each(|(chat, token)| chat.tokens.push(token));
        Ok(())
    }

    async fn speak(&mut self, tokens: usize) -> latten::Result<()> {
        for _ in 0..tokens {
            self.step().await?;
        }
        Ok(())
    }

    /// Forks the first chats, so that each can go on in two ways.
    fn fork(&mut self, count: usize) -> latten::Result<()> {
        for i in 0..count {
            let (id, tokens) = (self.session.fork(self.open[i].id)?, self.open[i].tokens.clone());
            self.open.push(Chat { id, tokens, random: SplitMix64::new(!(i as u64)) });
        }
        Ok(())
    }

    fn close(&mut self) -> latten::Result<()> {
        self.open.drain(..).try_for_each(|chat| self.session.remove(chat.id))
    }

    /// A line of the table.
    fn report(&self, out: &mut impl Write, what: &str) -> Result<(), Box<dyn Error>> {
        let (stats, page) = (self.session.stats(), self.session.cache().page_bytes());
        let (mut tokens, mut own_pages) = (0, 0);
        for chat in &self.open {
            let len = self.session.len(chat.id)?;
            (tokens, own_pages) = (tokens + len, own_pages + len.div_ceil(self.session.cache().pages().size));
        }
        let (held, unshared) = (stats.bytes - stats.evictable as u64 * page, own_pages as u64 * page);
        let saved = match unshared {
            0 => "-".into(),
            _ => format!("{:.1}%", 100.0 * (1.0 - held as f64 / unshared as f64)),
        };
        let numbers = [self.open.len(), tokens, stats.used, stats.shared, stats.evictable].map(|n| n.to_string());
        let bytes = [held.to_string(), unshared.to_string(), saved];
        let counts =
            [stats.hits, stats.evictions, self.prompt_tokens as u64, self.computed as u64].map(|n| n.to_string());
        line(out, what, numbers.iter().chain(&bytes).chain(&counts).map(String::as_str))
    }
}

/// Names and widths.
const COLUMNS: [(&str, usize); 12] = [
    ("chats", 6),
    ("tokens", 7),
    ("used", 6),
    ("shared", 7),
    ("kept", 5),
    ("bytes held", 11),
    ("unshared", 10),
    ("saved", 7),
    ("hits", 6),
    ("evicted", 8),
    ("prompts", 8),
    ("computed", 9),
];

fn line<'a>(out: &mut impl Write, what: &str, columns: impl Iterator<Item = &'a str>) -> Result<(), Box<dyn Error>> {
    write!(out, "{what:<22}")?;
    COLUMNS.iter().zip(columns).try_for_each(|((_, width), text)| write!(out, "{text:>width$}"))?;
    Ok(writeln!(out)?)
}

/// A session with room for the chats and the forks of some of them.
fn no_chats(gpu: &Gpu, args: &Args, forks: usize) -> Result<Chats, Box<dyn Error>> {
    let folder = format!("{}/{}", args.models, args.variant);
    repository::here(&folder)?;
    let decoder = Decoder::load(gpu, folder, DType::F16)?;
    let longest = (0..2 * NAMES.len()).map(|i| prompt(i).len()).max().unwrap_or(0) + 6; // more digits
    let (len, most) = (longest.saturating_add(args.tokens.saturating_mul(2)), decoder.config().max_positions);
    if len > most {
        let why = format!("a prompt of {longest} and two answers exceed the model's max_position_embeddings, {most}");
        return Err(format!("--tokens {}: {why}", args.tokens).into());
    }
    // The system prompt's full pages once, and what each chat adds to them: a second round of chats needs the room of
    // the first.
    let (page, together) = (args.page_size, args.sequences.saturating_add(forks));
    let own = (SYSTEM.len() % page + len - SYSTEM.len()).div_ceil(page);
    let options = SessionOptions {
        max_batch: together,
        cache_tokens: (SYSTEM.len() / page).saturating_add(together.saturating_mul(own)).saturating_mul(page),
        page_size: page,
        kv_dtype: args.kv_dtype,
        ..Default::default()
    };
    Ok(Chats { session: Session::new(&decoder, options)?, open: Vec::new(), prompt_tokens: 0, computed: 0 })
}

pub(crate) async fn run(args: &Args, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::new().await?;
    let forks = args.sequences.div_ceil(4);
    let mut chats = no_chats(&gpu, args, forks)?;
    let cache = chats.session.cache();
    let (pages, page_bytes) = (cache.pages(), cache.page_bytes());
    writeln!(out, "{}, {}, {} cache", gpu.capabilities().adapter, args.variant, args.kv_dtype)?;
    writeln!(out, "{} pages of {} tokens, {page_bytes} bytes each", pages.count, pages.size)?;
    writeln!(out, "a system prompt of {} tokens, answers of {}\n", SYSTEM.len(), args.tokens)?;
    line(out, "", COLUMNS.into_iter().map(|(name, _)| name))?;
    chats.pin_system().await?;
    chats.report(out, "system prompt, pinned")?;
    chats.open(0..args.sequences).await?;
    chats.report(out, "chats opened")?;
    chats.speak(args.tokens - 1).await?;
    chats.report(out, "an answer each")?;
    chats.fork(forks)?;
    chats.report(out, "some forked")?;
    chats.speak(args.tokens).await?;
    chats.report(out, "another answer each")?;
    let texts: Vec<Vec<u32>> = [0, args.sequences].map(|i| chats.open[i].tokens[SYSTEM.len()..].to_vec()).into();
    chats.close()?;
    chats.report(out, "all closed")?;
    chats.open(0..args.sequences).await?;
    chats.report(out, "the same prompts again")?;
    chats.close()?;
    chats.open(args.sequences..2 * args.sequences).await?;
    chats.speak(args.tokens - 1).await?;
    chats.report(out, "other chats, answered")?;

    writeln!(out, "\nused, shared, kept: pages; kept ones are held by no one, and evicted when their room is needed")?;
    writeln!(
        out,
        "unshared: bytes if each chat had pages of its own; prompts: tokens, of which so many were computed"
    )?;
    for (text, name) in texts.iter().zip(["the first chat", "a fork of it"]) {
        let bytes: Vec<u8> = text.iter().map(|token| *token as u8).collect();
        writeln!(out, "\n{name}:\n{}", String::from_utf8_lossy(&bytes))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    warnings::print_warnings();
    let args = parse(std::env::args().skip(1)).unwrap_or_else(|error| error.exit());
    match pollster::block_on(run(&args, &mut std::io::stdout())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("chats: {message}");
            ExitCode::FAILURE
        }
    }
}
