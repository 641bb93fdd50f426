//! What the server is asked for.

use crate::random_models::{Size, SIZES, VARIANTS as RANDOM_VARIANTS};
use crate::shared_arguments::{count, dtypes, weight_types, CACHE_DTYPES, VARIANTS, WEIGHT_TYPES};
use latten::nn::WeightType;
use latten::DType;
use std::path::PathBuf;
use std::time::Duration;

/// A server of latten's models over HTTP, with the endpoints and fields that clients of OpenAI's interface know
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "latten-server", version, args_override_self = true)]
pub struct Args {
    /// A GGUF file, a folder of a model, or gqa, gta, gla, mla: the small models of the repository, of bytes
    #[arg(long, value_name = "FILE|FOLDER|NAME", default_value = "gla")]
    pub model: String,
    /// A model of random weights in its place, as SIZE/VARIANT (1471m/gla-2): for measurements
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", value_parser = shape)]
    pub random_weights: Option<Shape>,
    /// The name that clients call the model by; that of the file or folder otherwise
    #[arg(long, value_name = "NAME")]
    pub served_name: Option<String>,
    /// A chat template in Jinja, in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// How weights are kept on the device, whatever they are in the file
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = weight_types(WEIGHT_TYPES))]
    pub weights: WeightType,

    /// Devices that have a part of the model each; adapters, or where there are too few several devices of one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    pub ranks: usize,
    /// Divide attention among them by the tokens of a sequence, not by heads
    #[arg(long)]
    pub by_context: bool,

    /// The address to listen at; another than this computer's own lets others in
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// The port; 0 takes a free one, which is told in the log
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// The key that clients must send; any is taken without one
    #[arg(long, value_name = "KEY", env = "LATTEN_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// An origin whose pages may call this server (`*` for all); may be given several times
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,

    /// Bytes of the cache on each device, as 4GiB; without it what --max-batch requests of --context tokens need twice, up to 1 GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub cache_bytes: Option<u64>,
    /// Element type of the cache
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = dtypes(CACHE_DTYPES))]
    pub kv_dtype: DType,
    /// Tokens per page of the cache, a power of two
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count)]
    pub page_size: usize,
    /// Tokens that prompt and answer may have together; without it what the model was made for
    #[arg(long, value_name = "N", value_parser = count)]
    pub context: Option<usize>,
    /// Tokens that a token sees; all without it
    #[arg(long, value_name = "N", value_parser = count)]
    pub window: Option<usize>,
    /// And the first so many tokens
    #[arg(long, value_name = "N", default_value_t = 0, requires = "window")]
    pub keep_first: usize,
    /// Requests that run at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count)]
    pub max_batch: usize,
    /// Tokens of a step at most: no answer waits longer than that for its next token
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count)]
    pub chunk: usize,
    /// Requests that wait at most, beside those that run; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_queue: usize,
    /// Cut attention by so many tokens, so that no request's depends on those beside it
    #[arg(long, value_name = "N", value_parser = count)]
    pub fixed_split: Option<usize>,
    /// Answer the first requests slowly rather than compile all kernels first
    #[arg(long)]
    pub no_warm_up: bool,

    /// Bytes of a request's body at most
    #[arg(long, value_name = "BYTES", default_value = "4MiB", value_parser = bytes)]
    pub max_body_bytes: u64,
    /// Connections at once; more wait to be accepted
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = count)]
    pub max_connections: usize,
    /// Seconds that the head of a request may take to come, and then its body
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    pub read_timeout: Duration,
    /// Seconds until the first token at most
    #[arg(long, value_name = "S", default_value = "300", value_parser = seconds)]
    pub first_token_timeout: Duration,
    /// Seconds of a request at most
    #[arg(long, value_name = "S", default_value = "3600", value_parser = seconds)]
    pub request_timeout: Duration,
    /// Seconds that answers may go on after SIGTERM
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub grace: Duration,
    /// The form of the log, whose level RUST_LOG sets
    #[arg(long, value_name = "FORM", default_value = "text", value_parser = ["text", "json"])]
    pub log_format: String,
}

/// A model of the paper's table, in one variant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Its numbers.
    pub size: Size,
    /// `gqa-4` and so on.
    pub variant: &'static str,
}

impl Args {
    /// The folder or file of the model.
    pub fn model_path(&self) -> PathBuf {
        match VARIANTS.contains(&self.model.as_str()) {
            true => PathBuf::from(crate::shared_repository::MODELS).join(&self.model),
            false => PathBuf::from(&self.model),
        }
    }

    /// What clients call the model.
    pub fn name(&self) -> String {
        if let Some(name) = &self.served_name {
            return name.clone();
        }
        if let Some(shape) = self.random_weights {
            return format!("random-{}-{}", shape.size.name, shape.variant);
        }
        let path = self.model_path();
        let name = path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "gguf")).or(path.file_name());
        name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
    }
}

fn shape(text: &str) -> Result<Shape, String> {
    let (size, variant) = text.split_once('/').unwrap_or((text, "gla-2"));
    let found = SIZES.into_iter().find(|known| known.name == size);
    let variant = RANDOM_VARIANTS.into_iter().find(|known| *known == variant);
    match (found, variant) {
        (Some(size), Some(variant)) => Ok(Shape { size, variant }),
        _ => {
            let sizes: Vec<&str> = SIZES.iter().map(|size| size.name).collect();
            Err(format!("not SIZE/VARIANT, of {} and {}", sizes.join(", "), RANDOM_VARIANTS.join(", ")))
        }
    }
}

/// A number of bytes, with KiB, MiB or GiB behind it, or nothing.
fn bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1_u64)];
    let found = units.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (number, size) = found.unwrap_or((text, 1));
    let bytes = number.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(size)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "not a number of bytes from 1 on, as 1000000, 64KiB, 512MiB or 4GiB".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.0..=1e6).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "not a number of seconds from 0 to 1000000".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn arguments_are_those_of_clap() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn bytes_seconds_and_shapes_are_read() {
        for (text, want) in [("7", Some(7)), ("64KiB", Some(65_536)), ("2 GiB", Some(2 << 30)), ("0", None)] {
            assert_eq!(bytes(text).ok(), want, "{text}");
        }
        for text in ["", "-1", "1.5GiB", "GiB", "99999999999GiB", "4gb"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["-1", "NaN", "inf", "1e9", "x"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(shape("1471m/gta-4").map(|s| (s.size.name, s.variant)), Ok(("1471m", "gta-4")));
        assert!(shape("1471m/gqa").is_err() && shape("7b/gla-2").is_err());
    }

    #[test]
    fn names_are_those_of_files_and_folders() {
        let name =
            |args: &[&str]| Args::try_parse_from([&["latten-server"], args].concat()).map(|args| args.name()).ok();
        assert_eq!(name(&[]).as_deref(), Some("gla"));
        assert_eq!(name(&["--model", "/a/SmolLM2.q4_1.gguf"]).as_deref(), Some("SmolLM2.q4_1"));
        assert_eq!(name(&["--model", "some/folder-1.5/"]).as_deref(), Some("folder-1.5"));
        assert_eq!(name(&["--model", "x", "--served-name", "y"]).as_deref(), Some("y"));
        assert_eq!(name(&["--random-weights", "183m/mla"]).as_deref(), Some("random-183m-mla"));
        assert_eq!(name(&["--random-weights", "183m/mla", "--model", "x"]), None);
    }
}
