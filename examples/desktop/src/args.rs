//! The program's arguments.

use std::path::PathBuf;
use std::time::Duration;

/// A window that writes with a model
#[derive(clap::Parser, Debug, Clone)]
#[command(version)]
pub(crate) struct Args {
    /// A GGUF file, or a folder of a model; without it one is chosen in the window
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// Where the shipped models are
    #[arg(long, value_name = "DIR", default_value = "examples/models")]
    pub(crate) models: PathBuf,
    /// Time of a step between two frames, in milliseconds
    #[arg(long, value_name = "MS", default_value = "6", value_parser = budget)]
    pub(crate) budget: Duration,
    /// Tokens that a token sees; longer texts then need no more cache
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value = "400")]
    pub(crate) max_tokens: usize,
    /// Read a prompt of N tokens, answer, print the times of the frames, and end
    #[arg(long, value_name = "N", requires = "model")]
    pub(crate) measure: Option<usize>,
    /// Keep the window for so long after that, for who looks at it
    #[arg(long, value_name = "S", default_value = "0")]
    pub(crate) hold: u64,
}

fn budget(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(ms) if (0.1..=1000.0).contains(&ms) => Ok(Duration::from_secs_f64(ms / 1e3)),
        _ => Err(format!("{text:?} is not a number of milliseconds in 0.1..=1000")),
    }
}
