//! The command line.

use super::arguments_of_all::{count, dtypes, forms, weight_types, CACHE_DTYPES, VARIANTS, WEIGHT_TYPES};
use super::repository::MODELS;
use super::several::Several;
use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser};
use latten::model::{BeamOptions, BestOfOptions, GenerateOptions, PrefillPath};
use latten::nn::{Penalties, Sampling, WeightType};
use latten::DType;

/// Text from the example models, one per variant of attention, with what each costs
#[derive(Parser)]
#[command(name = "generate")]
#[command(group = ArgGroup::new("one model").args(["variant", "model"]))]
#[command(group = ArgGroup::new("several texts").args(["beams", "best_of"]))]
#[command(group = ArgGroup::new("who guesses").args(["draft", "lookup"])
    .conflicts_with_all(["several texts", "profile", "save_session", "load_session"]))]
pub(crate) struct Args {
    /// One of the example models; without it all four in turn
    #[arg(long, value_name = "NAME", value_parser = VARIANTS)]
    variant: Option<String>,
    /// A model folder instead
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Where the folders of the variants are
    #[arg(long, value_name = "DIR", default_value = MODELS)]
    models: String,
    /// What the text begins with; without it "ROMEO:" and a new line, or nothing after --load-session
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Tokens to make
    #[arg(long, value_name = "N", default_value = "200", value_parser = count)]
    tokens: usize,
    /// Of the random numbers
    #[arg(long, value_name = "N", default_value = "0", conflicts_with = "beams")]
    seed: u64,
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value = "0.8", conflicts_with = "beams")]
    temperature: f32,
    /// Draw from the most probable tokens whose probabilities add up to P
    #[arg(long, value_name = "P", default_value = "0.95", conflicts_with = "beams")]
    top_p: f32,
    /// Draw from the N most probable tokens; 0 for all
    #[arg(long, value_name = "N", default_value = "0", conflicts_with = "beams")]
    top_k: u32,
    /// Draw from tokens with at least this share of the largest probability
    #[arg(long, value_name = "P", default_value = "0", conflicts_with = "beams")]
    min_p: f32,
    /// Draw from the tokens whose information is closest to its mean and whose probabilities add up to P
    #[arg(long, value_name = "P", default_value = "1", conflicts_with = "beams")]
    typical_p: f32,
    /// Divides the logits of tokens that were there, the prompt's included; 1 for none
    #[arg(long, value_name = "R", default_value = "1", conflicts_with = "beams")]
    repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were drawn
    #[arg(long, value_name = "P", default_value = "0", conflicts_with = "beams", allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtracted as often as a token was drawn
    #[arg(long, value_name = "P", default_value = "0", conflicts_with = "beams", allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// The last N tokens count for the penalties; without it all
    #[arg(long, value_name = "N", conflicts_with = "beams")]
    penalty_window: Option<u32>,
    /// Of weights and KV cache
    #[arg(long, default_value = "f16", value_parser = dtypes(["f16", "f32"]))]
    pub(crate) dtype: DType,
    /// Of weights alone; without it as --dtype
    #[arg(long, value_name = "TYPE", value_parser = weight_types(WEIGHT_TYPES))]
    weights: Option<WeightType>,
    /// Products of few rows by dot products of bytes, where weights are i8 or blocks: faster on many GPUs, less exact
    #[arg(long)]
    pub(crate) integer_dot: bool,
    /// Of the KV cache alone; without it as --dtype
    #[arg(long, value_name = "DTYPE", value_parser = dtypes(CACHE_DTYPES))]
    kv_dtype: Option<DType>,
    /// Beam search: the N most probable texts found, instead of drawing
    #[arg(long, value_name = "N", conflicts_with_all = ["save_session", "profile"], value_parser = count)]
    beams: Option<usize>,
    /// Draw N texts, the most probable first
    #[arg(long, value_name = "N", conflicts_with_all = ["save_session", "profile"], value_parser = count)]
    best_of: Option<usize>,
    /// With these: texts are ordered by log-probability / length^P; without it 1
    #[arg(long, value_name = "P", requires = "several texts")]
    length_penalty: Option<f64>,
    /// With these: a text ends with this token, as 10, the end of a line; may be given several times; without it those that
    /// end the model's texts
    #[arg(long, value_name = "N", requires = "several texts")]
    pub(crate) stop: Vec<u32>,
    /// A token sees the last N tokens alone, and the cache holds no more
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// And the first N, with --window
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) keep_first: usize,
    /// Form of prompts, of GLA and MLA
    #[arg(long, value_name = "FORM", default_value = "auto", value_parser = forms())]
    pub(crate) prefill: PrefillPath,
    /// Guess tokens ahead with this smaller model, as examples/models/draft: the text is no other
    #[arg(long, value_name = "DIR")]
    pub(crate) draft: Option<String>,
    /// Guess them from the text itself
    #[arg(long)]
    pub(crate) lookup: bool,
    /// With these: most guesses per step; without it 4
    #[arg(long, value_name = "N", requires = "who guesses", value_parser = count)]
    pub(crate) guesses: Option<usize>,
    /// Devices that have a part of the model each; adapters, or where there are too few several devices of one
    #[arg(long, value_name = "N", default_value = "1", conflicts_with = "profile", value_parser = count)]
    pub(crate) ranks: usize,
    /// Divide attention among them by the tokens of a sequence, not by heads
    #[arg(long)]
    pub(crate) by_context: bool,
    /// Dispatches, submits and microseconds per token, what each kernel takes of it, and the time from loading to the first token
    #[arg(long)]
    pub(crate) profile: bool,
    /// Keep the model's state there at the end
    #[arg(long, value_name = "FILE", requires = "one model")]
    pub(crate) save_session: Option<String>,
    /// Go on from there, before the prompt
    #[arg(long, value_name = "FILE", requires = "one model")]
    pub(crate) load_session: Option<String>,
    /// Keep compiled pipelines there, for the next start
    #[arg(long, value_name = "FILE")]
    pub(crate) pipelines: Option<String>,
    /// Take the GPU whose description contains this
    #[arg(long, value_name = "NAME")]
    pub(crate) adapter: Option<String>,
}

/// Reads a command line without the program's name.
pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Args, clap::Error> {
    let args = Args::try_parse_from(std::iter::once("generate".to_string()).chain(args))?;
    let why = match (args.best_of, args.prompt().is_empty() && args.load_session.is_none()) {
        (_, true) => "the prompt is empty".to_string(),
        (Some(n), _) if n > 1 && args.temperature == 0.0 => {
            format!("--best-of {n} at --temperature 0 are {n} times the same")
        }
        _ => return Ok(args),
    };
    Err(Args::command().error(ErrorKind::ValueValidation, why))
}

impl Args {
    /// The folders of the models.
    pub(crate) fn folders(&self) -> Vec<String> {
        match (&self.model, &self.variant) {
            (Some(model), _) => vec![model.clone()],
            (None, Some(variant)) => vec![format!("{}/{variant}", self.models)],
            (None, None) => VARIANTS.map(|variant| format!("{}/{variant}", self.models)).to_vec(),
        }
    }

    pub(crate) fn prompt(&self) -> &str {
        match (&self.prompt, &self.load_session) {
            (Some(prompt), _) => prompt,
            (None, Some(_)) => "",
            (None, None) => "ROMEO:\n",
        }
    }

    /// How a text is drawn.
    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_new_tokens: self.tokens,
            seed: self.seed,
            sampling: Sampling {
                temperature: self.temperature,
                min_p: self.min_p,
                top_k: self.top_k,
                typical_p: self.typical_p,
                top_p: self.top_p,
                penalties: Penalties {
                    repetition: self.repetition_penalty,
                    presence: self.presence_penalty,
                    frequency: self.frequency_penalty,
                    window: self.penalty_window.unwrap_or(u32::MAX),
                },
            },
        }
    }

    /// The types of weights and of the KV cache.
    pub(crate) fn types(&self) -> (WeightType, DType) {
        (self.weights.unwrap_or(self.dtype.into()), self.kv_dtype.unwrap_or(self.dtype))
    }

    /// Whether somebody guesses.
    pub(crate) fn guesses_ahead(&self) -> bool {
        self.draft.is_some() || self.lookup
    }

    /// Several texts of a prompt, if they are asked for.
    pub(crate) fn several(&self) -> Option<Several> {
        let length_penalty = self.length_penalty.unwrap_or(1.0);
        let beams = self.beams.map(|beams| {
            let max_new_tokens = self.tokens;
            Several::Beams(BeamOptions { beams, max_new_tokens, length_penalty, ..Default::default() })
        });
        beams.or(self.best_of.map(|samples| {
            let generate = self.options();
            Several::BestOf(BestOfOptions { samples, generate, length_penalty, ..Default::default() })
        }))
    }
}
