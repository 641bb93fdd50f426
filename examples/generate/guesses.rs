//! `--draft` and `--lookup`: the same text in fewer steps, beside what it takes without.

use super::{loading, open, Args, Opened, Stop};
use latten::model::{generate, generate_speculative, Drafter, Session, SessionOptions, Speculated, SpeculativeOptions};
use latten::Gpu;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::Instant;

/// One model's line at the end.
pub(crate) struct Line {
    variant: &'static str,
    who: String,
    made: Speculated,
    /// Tokens per second after the first, with guesses and without.
    rates: [f64; 2],
    /// Whether the text without them is the same.
    same: bool,
}

/// Counts tokens from the first on.
struct Clock {
    first: Option<Instant>,
    last: Instant,
    tokens: usize,
}

impl Clock {
    fn new() -> Self {
        Clock { first: None, last: Instant::now(), tokens: 0 }
    }

    fn tick(&mut self) {
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
        self.tokens += 1;
    }

    fn rate(&self) -> f64 {
        (self.tokens as f64 - 1.0) / self.first.map_or(0.0, |first| (self.last - first).as_secs_f64())
    }
}

/// Writes the text of a model, and makes it again without guesses.
pub(crate) async fn run_model(gpu: &Gpu, folder: &str, args: &Args, out: &mut impl Write) -> Result<Line, Stop> {
    let Opened { mut session, sequence, tokens, tokenizer, .. } = open(gpu, folder, args).await?;
    session.remove(sequence)?; // the calls below have their own
    let config = session.decoder().config();
    let variant = config.variant();
    let mut draft = match &args.draft {
        Some(folder) => {
            let decoder = loading::load(gpu, folder, args.types().0, args.integer_dot)?;
            let kv_dtype = args.types().1;
            let cache_tokens = tokens.len() + args.options().max_new_tokens;
            let options = SessionOptions { kv_dtype, cache_tokens, ..Default::default() };
            let mut session = Session::new(&decoder, options)?;
            session.warm_up().await?;
            Some(session)
        }
        None => None,
    };
    let max_draft = args.guesses.unwrap_or(4);
    let options = SpeculativeOptions { generate: args.options(), max_draft };
    let who = if draft.is_some() { "--draft" } else { "--lookup" };
    let mut text = tokenizer.stream();
    writeln!(out, "--- {variant} ---")?;
    tokens.iter().try_for_each(|token| write!(out, "{}", text.push(*token)))?;
    let mut written = Ok(());
    let mut guessed = Clock::new();
    let on_token = |token| {
        guessed.tick();
        written = write!(out, "{}", text.push(token)).and_then(|()| out.flush());
        if written.is_ok() && !tokenizer.end_tokens().contains(&token) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    let drafter = match &mut draft {
        Some(draft) => Drafter::Model(draft),
        None => Drafter::Lookup { max_ngram: 6, min_ngram: 2 },
    };
    let made = generate_speculative(&mut session, drafter, &tokens, options, on_token).await?;
    written?;
    writeln!(out, "{}\n", text.finish())?;

    let mut plain = Clock::new();
    let on_token = |token| {
        plain.tick();
        match tokenizer.end_tokens().contains(&token) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let without = generate(&mut session, &tokens, args.options(), on_token).await?;
    let same = without == made.tokens;
    Ok(Line { variant, who: format!("{who}, {max_draft} guesses"), made, rates: [guessed.rate(), plain.rate()], same })
}

pub(crate) fn print(out: &mut impl Write, lines: &[Line]) -> io::Result<()> {
    for Line { variant, who, made, rates: [rate, plain], same } in lines {
        let Speculated { tokens, steps, drafted, accepted, .. } = made;
        let share = 100.0 * *accepted as f64 / (*drafted).max(1) as f64;
        writeln!(
            out,
            "{variant}  {who}: {} tokens in {steps} steps, {accepted} of {drafted} guesses stood ({share:.0}%)",
            tokens.len()
        )?;
        let text = if *same { "the same text" } else { "another text" };
        writeln!(out, "     {rate:.0} tok/s, {plain:.0} tok/s without: {:.2} times ({text})", rate / plain)?;
    }
    Ok(())
}
