//! What the program is asked for.

use super::arguments_of_all::{count, weight_types, WEIGHT_TYPES};
use latten::nn::WeightType;

/// A chat in the terminal, with a GGUF file or a folder of a published model
#[derive(Debug, clap::Parser)]
#[command(name = "chat")]
pub(crate) struct Args {
    /// A GGUF file, or a folder with one, or with config.json, model.safetensors and tokenizer.json
    pub(crate) model: Option<String>,
    /// Answer this once, print the answer alone, and end
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// What the model is told about its part
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = count)]
    pub(crate) tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub(crate) temperature: f32,
    /// Tokens are drawn from the likeliest ones, of so much probability together
    #[arg(long, value_name = "P", default_value_t = 0.9)]
    pub(crate) top_p: f32,
    /// Start of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Tokens of all messages and answers at most
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = count)]
    pub(crate) context: usize,
    /// Without the chat template: the model goes on after the text as it is
    #[arg(long)]
    pub(crate) raw: bool,
    /// How weights are kept on the device, whatever they are in the file
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = weight_types(WEIGHT_TYPES))]
    pub(crate) weights: WeightType,
    /// Products of few rows by dot products of bytes, where weights are i8 or blocks: faster on many GPUs, less exact
    #[arg(long)]
    pub(crate) integer_dot: bool,
}
