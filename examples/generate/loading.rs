//! A line on standard error while a model is loaded, where that is a terminal.

use latten::cache::Progress;
use latten::model::{Decoder, LoadOptions};
use latten::{DType, Gpu};
use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two lines; what is loaded sooner has none.
const PAUSE: Duration = Duration::from_millis(200);

/// [`Decoder::load`] with a line of how far it is.
pub(crate) fn load(gpu: &Gpu, folder: &str, dtype: DType) -> latten::Result<Decoder> {
    if !io::stderr().is_terminal() {
        return Decoder::load(gpu, folder, dtype);
    }
    let (last, shown) = (Cell::new(Instant::now()), Cell::new(false));
    let progress = |now: Progress| {
        if last.get().elapsed() >= PAUSE {
            last.set(Instant::now());
            shown.set(true);
            // Where nobody reads it, it is not missed.
            let _ = write!(io::stderr(), "\r{}", line(folder, now));
        }
    };
    let options = LoadOptions { dtype, progress: Some(&progress), ..Default::default() };
    let loaded = Decoder::load_with(gpu, folder, options);
    if shown.get() {
        let _ = writeln!(io::stderr());
    }
    loaded
}

/// `models/llama: 512 of 2048 MiB (25%)`, never shorter than one before.
pub(crate) fn line(folder: &str, now: Progress) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let percent = 100 * now.bytes / now.total_bytes.max(1);
    format!("{folder}: {:>5} of {} MiB ({percent:>3}%)", mib(now.bytes), mib(now.total_bytes))
}
