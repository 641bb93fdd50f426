//! A bar on standard error while a model is loaded, where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use latten::cache::Progress;
use latten::model::{Decoder, LoadOptions};
use latten::nn::WeightType;
use latten::Gpu;
use std::time::{Duration, Instant};

/// What is loaded sooner has no bar.
const PAUSE: Duration = Duration::from_millis(200);

/// [`Decoder::load`] with a bar of how far it is; with dot products of bytes, if so wanted.
pub(crate) fn load(gpu: &Gpu, folder: &str, kind: impl Into<WeightType>, integer_dot: bool) -> latten::Result<Decoder> {
    load_part(gpu, folder, LoadOptions { integer_dot, ..LoadOptions::of(kind) })
}

/// The same of a rank's part, and with other options.
pub(crate) fn load_part(gpu: &Gpu, folder: &str, options: LoadOptions<'_>) -> latten::Result<Decoder> {
    let (start, bar) = (Instant::now(), bar(folder));
    let progress = |now: Progress| {
        if start.elapsed() >= PAUSE {
            show(&bar, now);
        }
    };
    let loaded = Decoder::load_with(gpu, folder, LoadOptions { progress: Some(&progress), ..options });
    bar.finish_and_clear();
    loaded
}

/// Shows nothing where standard error is no terminal.
pub(crate) fn bar(folder: &str) -> ProgressBar {
    let line = ProgressStyle::with_template("{msg}: {bytes} of {total_bytes} ({percent}%) {bar:24}");
    let bar = ProgressBar::no_length().with_message(folder.to_string());
    match line {
        Ok(line) => bar.with_style(line),
        Err(_) => bar,
    }
}

pub(crate) fn show(bar: &ProgressBar, now: Progress) {
    bar.set_length(now.total_bytes);
    bar.set_position(now.bytes);
}
