//! Text to tokens and back.

#[cfg(feature = "tokenizers")]
mod clock;
#[cfg(feature = "tokenizers")]
mod decoding;
#[cfg(feature = "tokenizers")]
mod dummy;
mod ends;
#[cfg(feature = "tokenizers")]
mod gguf;
#[cfg(feature = "tokenizers")]
mod joined;
#[cfg(feature = "tokenizers")]
mod json;
#[cfg(feature = "tokenizers")]
mod pieces;
#[cfg(feature = "tokenizers")]
mod template;
pub(crate) mod tokenizer;
pub(crate) mod utf8;
pub(crate) mod words;

#[cfg(feature = "tokenizers")]
pub use template::{ChatTemplate, Message};
pub use tokenizer::{TextStream, Tokenizer};
pub use utf8::Utf8Stream;
