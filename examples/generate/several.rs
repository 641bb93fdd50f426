//! `--beams` and `--best-of`: several texts of one prompt, the best first.

use super::{open, Args, Opened, Stop};
use latten::model::{beam_search, best_of, BeamOptions, BestOfOptions, Continuation};
use latten::Gpu;
use std::io::Write;
use std::time::Instant;

/// What is to be looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Several {
    Beams(BeamOptions<'static>),
    BestOf(BestOfOptions<'static>),
}

impl Several {
    pub(crate) fn count(&self) -> usize {
        match self {
            Several::Beams(options) => options.beams,
            Several::BestOf(options) => options.samples,
        }
    }
}

/// One model's line at the end.
pub(crate) struct Line {
    variant: &'static str,
    several: Several,
    prefill_ms: f64,
    /// Of the texts that were found.
    tokens: usize,
    longest: usize,
    seconds: f64,
}

/// Writes the texts of a model.
pub(crate) async fn run_model(
    gpu: &Gpu,
    folder: &str,
    args: &Args,
    several: Several,
    out: &mut impl Write,
) -> Result<Line, Stop> {
    let Opened { mut session, sequence, tokens, tokenizer, .. } = open(gpu, folder, args).await?;
    let variant = session.decoder().config().variant();
    let held = session.len(sequence)?;
    let input = tokens.get(held..).unwrap_or_default();
    let start = Instant::now();
    // All but the last token ahead, so that the search is timed without the prompt.
    let (before, last) = input.split_at(input.len().saturating_sub(1));
    if !before.is_empty() {
        session.logits(&[(sequence, before)]).await?;
    }
    let stop_tokens = if args.stop.is_empty() { tokenizer.end_tokens() } else { &args.stop };
    let prefilled = Instant::now();
    let found = match several {
        Several::Beams(options) => {
            beam_search(&mut session, sequence, last, BeamOptions { stop_tokens, ..options }).await?
        }
        Several::BestOf(options) => {
            best_of(&mut session, sequence, last, BestOfOptions { stop_tokens, ..options }).await?
        }
    };
    let seconds = prefilled.elapsed().as_secs_f64();

    writeln!(out, "--- {variant} ---\n{}", tokenizer.decode(&tokens))?;
    for (i, continuation) in found.iter().enumerate() {
        let Continuation { tokens: made, log_probability, score, stopped, .. } = continuation;
        let end = if *stopped { ", stopped" } else { "" };
        writeln!(
            out,
            "[{}: score {score:.4}, log-probability {log_probability:.2}, {} tokens{end}]",
            i + 1,
            made.len()
        )?;
        writeln!(out, "{}", tokenizer.decode_after(&tokens, made))?;
    }
    writeln!(out)?;
    let lengths = || found.iter().map(|continuation| continuation.tokens.len());
    let (tokens, longest) = (lengths().sum(), lengths().max().unwrap_or(0));
    Ok(Line { variant, several, prefill_ms: 1e3 * (prefilled - start).as_secs_f64(), tokens, longest, seconds })
}

pub(crate) fn print(out: &mut impl Write, lines: &[Line]) -> std::io::Result<()> {
    for line in lines {
        let what = match line.several {
            Several::Beams(options) => format!("{} beams", options.beams),
            Several::BestOf(options) => format!("best of {}", options.samples),
        };
        let (each, all) = (line.longest as f64 / line.seconds, line.tokens as f64 / line.seconds);
        writeln!(
            out,
            "{}  {what}: prefill {:.0} ms, then {:.2} s: {each:.0} tok/s for the longest text, {all:.0} tok/s for all",
            line.variant, line.prefill_ms, line.seconds
        )?;
    }
    Ok(())
}
