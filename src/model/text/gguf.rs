//! The tokenizer in a GGUF file's metadata, as a `tokenizer.json` that the crate `tokenizers` reads: byte-level BPE (`gpt2`), and
//! BPE by the scores of SentencePiece (`llama`).
//!
//! Source: github.com/ggml-org/llama.cpp, `src/llama-vocab.cpp`; the rules of words are those of the models' own `tokenizer.json`.

use super::json::Json;
use crate::error::Result;
use crate::io::gguf::Gguf;
use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const WORDS: &str = "tokenizer.ggml.pre";
/// SentencePiece's sign for a space.
const SPACE: &str = "\u{2581}";

/// Numbers of kinds of tokens.
const NORMAL: i128 = 1;
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

/// Ids that end a text, each one or a list.
const ENDS: [&str; 4] = ["eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids"];
/// What ends a turn, by its name: files of some models name the end of a text alone.
const END_NAMES: [&str; 8] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// A file's tokens.
struct Vocabulary<'a> {
    file: &'a Gguf,
    tokens: Vec<&'a str>,
    kinds: Vec<i128>,
    /// The first of each name.
    ids: HashMap<&'a str, usize>,
}

/// The tokenizer of a file, and the tokens that end a text.
///
/// Errors: [`ErrorKind::Config`](crate::ErrorKind::Config).
pub(crate) fn read(file: &Gguf) -> Result<(Json, Vec<u32>)> {
    let vocabulary = Vocabulary::of(file)?;
    let text = |key: &str| file.text(key).map(|text| text.unwrap_or("").to_string());
    let made = match text(MODEL)?.as_str() {
        "gpt2" => vocabulary.byte_level(&text(WORDS)?)?,
        "llama" => vocabulary.sentence_pieces()?,
        _ => {
            return Err(
                file.bad(MODEL, "is not among [\"gpt2\", \"llama\"], the tokenizers that latten reads in GGUF files")
            )
        }
    };
    let ends = vocabulary.ends()?;
    Ok((Json::of(Path::new(&file.path), made.to_string().as_bytes())?, ends))
}

/// What templates call `bos_token` and the like.
pub(crate) fn special_texts(file: &Gguf) -> Result<BTreeMap<String, String>> {
    let Some(tokens) = file.list(TOKENS)? else { return Ok(BTreeMap::new()) };
    let names = [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")];
    let mut all = BTreeMap::new();
    for (own, name) in names {
        let Some(id) = file.count(&format!("tokenizer.ggml.{own}_token_id"), 0..=u32::MAX as usize)? else { continue };
        let token = tokens.texts().and_then(|mut texts| texts.nth(id));
        all.extend(token.map(|token| (format!("{name}_token"), String::from_utf8_lossy(token).into_owned())));
    }
    Ok(all)
}

impl<'a> Vocabulary<'a> {
    fn of(file: &'a Gguf) -> Result<Self> {
        let texts = file.list(TOKENS)?.ok_or_else(|| file.bad(TOKENS, ""))?.texts();
        let texts = texts.ok_or_else(|| file.bad(TOKENS, "are no strings"))?.enumerate();
        let text = |(i, text)| {
            std::str::from_utf8(text)
                .map_err(|e| file.bad(TOKENS, &format!(": the one of number {i} is no UTF-8: {e}")))
        };
        let tokens = texts.map(text).collect::<Result<Vec<_>>>()?;
        let kinds = match file.list(TYPES)?.map(|list| list.values()) {
            None => vec![NORMAL; tokens.len()],
            Some(kinds) => kinds.into_iter().flatten().filter_map(|kind| kind.whole()).collect(),
        };
        if kinds.len() != tokens.len() {
            return Err(file.bad(TYPES, &format!("and there are {} tokens", tokens.len())));
        }
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate() {
            let first = *ids.entry(*token).or_insert(id);
            if first != id {
                log::warn!("{}: tokens {first} and {id} are both {token:?}, so the second is never made", file.path);
            }
        }
        Ok(Vocabulary { file, tokens, kinds, ids })
    }

    /// A token's id, if the file names one.
    fn id(&self, name: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        // What is there, and no token, is the writer's way to say that there is none.
        Ok(self.file.count(&key, 0..=u32::MAX as usize)?.filter(|id| *id < self.tokens.len()))
    }

    fn flag(&self, name: &str, absent: bool) -> Result<bool> {
        Ok(self.file.flag(&format!("tokenizer.ggml.{name}"))?.unwrap_or(absent))
    }

    fn ends(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for key in ENDS.map(|name| format!("tokenizer.ggml.{name}")) {
            let ids: Vec<Option<i128>> = match self.file.get(&key) {
                None => continue,
                Some(crate::io::gguf::value::MetadataValue::List(list)) => {
                    list.values().into_iter().flatten().map(|id| id.whole()).collect()
                }
                Some(one) => vec![one.whole()],
            };
            for id in ids {
                let id = id.and_then(|id| u32::try_from(id).ok());
                all.push(id.ok_or_else(|| self.file.bad(&key, "is no token, nor a list of tokens"))?);
            }
        }
        let named = END_NAMES.iter().filter_map(|name| self.ids.get(name));
        all.extend(named.filter(|id| self.kinds.get(**id) == Some(&CONTROL)).filter_map(|id| u32::try_from(*id).ok()));
        let mut seen = Vec::new();
        all.into_iter().for_each(|id| {
            if !seen.contains(&id) {
                seen.push(id)
            }
        });
        Ok(seen)
    }

    /// All names; of two of one name the first.
    fn vocab(&self) -> Map<String, Value> {
        self.ids.iter().map(|(token, id)| ((*token).to_string(), json!(id))).collect()
    }

    /// Tokens that are found in a text before it is cut into words.
    fn added(&self) -> Vec<Value> {
        let kinds = self.kinds.iter().enumerate();
        let added = kinds.filter(|(_, kind)| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        let first = added.filter(|(id, _)| self.ids.get(self.tokens[*id]) == Some(id));
        let one = |(id, kind): (usize, &i128)| {
            json!({ "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != USER_DEFINED })
        };
        first.map(one).collect()
    }

    /// What is put around a text.
    fn around(&self, bos_absent: bool) -> Result<Value> {
        let (mut template, mut tokens) = (vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })], Map::new());
        let mut special = |id: usize| {
            let token = self.tokens[id];
            tokens.insert(token.into(), json!({ "id": token, "ids": [id], "tokens": [token] }));
            json!({ "SpecialToken": { "id": token, "type_id": 0 } })
        };
        if let Some(bos) = self.id("bos")? {
            if self.flag("add_bos_token", bos_absent)? {
                template.insert(0, special(bos));
            }
        }
        if let Some(eos) = self.id("eos")? {
            if self.flag("add_eos_token", false)? {
                template.push(special(eos));
            }
        }
        if tokens.is_empty() {
            return Ok(Value::Null);
        }
        let pair = [&template[..], &[json!({ "Sequence": { "id": "B", "type_id": 0 } })]].concat();
        Ok(json!({ "type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": tokens }))
    }

    fn byte_level(&self, words: &str) -> Result<Value> {
        let rule = words_of(words).ok_or_else(|| {
            self.file.bad(WORDS, &format!("is not among {KNOWN_WORDS:?}, the rules of words that latten knows"))
        })?;
        let merges = self.file.list(MERGES)?.ok_or_else(|| self.file.bad(MERGES, ""))?;
        let merges = merges.texts().ok_or_else(|| self.file.bad(MERGES, "are no strings"))?;
        let merges: Vec<_> = merges.map(String::from_utf8_lossy).collect();
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        let steps = rule.patterns.iter().map(|pattern| match *pattern {
            DIGITS => json!({ "type": "Digits", "individual_digits": true }),
            pattern => {
                json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
            }
        });
        let steps: Vec<Value> = steps.chain([bytes.clone()]).collect();
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added(), "normalizer": null,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
            "post_processor": self.around(rule.begins)?, "decoder": bytes,
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                       "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                       "ignore_merges": rule.whole_words, "vocab": self.vocab(), "merges": merges },
        }))
    }

    fn sentence_pieces(&self) -> Result<Value> {
        let prefix = self.flag("add_space_prefix", true)?;
        let unknown = self.id("unknown")?.map(|id| self.tokens[id]);
        let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
        let first = json!({ "type": "Prepend", "prepend": SPACE });
        let normalizers = if prefix { vec![first, spaces] } else { vec![spaces] };
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if prefix {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added(),
            "normalizer": { "type": "Sequence", "normalizers": normalizers }, "pre_tokenizer": null,
            "post_processor": self.around(true)?, "decoder": { "type": "Sequence", "decoders": decoders },
            "model": { "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                       "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                       "vocab": self.vocab(), "merges": self.merges_by_score()? },
        }))
    }

    /// Which pieces become one, the best score first: as transformers makes them of a SentencePiece model.
    fn merges_by_score(&self) -> Result<Vec<Value>> {
        let scores = self.file.list(SCORES)?.ok_or_else(|| self.file.bad(SCORES, ""))?.values();
        let scores: Vec<f64> = scores.into_iter().flatten().filter_map(|score| score.number()).collect();
        if scores.len() != self.tokens.len() || scores.iter().any(|score| score.is_nan()) {
            return Err(self.file.bad(SCORES, &format!(": wanted {} numbers, one for each token", self.tokens.len())));
        }
        let mut merges = Vec::new();
        let pieces = self.tokens.iter().zip(&self.kinds).zip(&scores).filter(|((_, kind), _)| **kind == NORMAL);
        for ((piece, _), score) in pieces {
            // Longer ones would be pairs of pieces of the square of their length.
            let cuts = piece.char_indices().map(|(at, _)| at).skip(1).take(MOST_CHARACTERS);
            let parts = cuts.map(|at| piece.split_at(at));
            merges.extend(parts.filter_map(|(left, right)| Some((*score, self.ids.get(left)?, self.ids.get(right)?))));
        }
        merges.sort_by(|(a, left_a, right_a), (b, left_b, right_b)| {
            b.total_cmp(a).then_with(|| (left_a, right_a).cmp(&(left_b, right_b)))
        });
        Ok(merges.into_iter().map(|(_, left, right)| json!([self.tokens[*left], self.tokens[*right]])).collect())
    }
}

/// Cuts of a piece that are looked at.
const MOST_CHARACTERS: usize = 256;

/// How a text is cut into words before their bytes are merged.
struct WordRule {
    /// Of expressions, one after the other.
    patterns: &'static [&'static str],
    /// A word that is a token is taken as it is.
    whole_words: bool,
    /// Whether a text begins with the first token where the file does not say it.
    begins: bool,
}

const KNOWN_WORDS: [&str; 11] = [
    "default",
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "smollm",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "starcoder",
    "tekken",
    "gpt-4o",
];

/// Not an expression: each digit by itself.
const DIGITS: &str = "digits";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Tekken's, with contractions at a word's end and numbers of up to three digits (gpt-oss).
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const CJK: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const SIGNS: &str = "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const DEEPSEEK3: &str =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| \
                         ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

fn words_of(name: &str) -> Option<WordRule> {
    let plain = |patterns| WordRule { patterns, whole_words: false, begins: false };
    Some(match name {
        // A file without a name is one of before there were any.
        "" | "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]),
        "gpt-2" => plain(&[GPT2]),
        "llama-bpe" => WordRule { patterns: &[LLAMA3], whole_words: true, begins: true },
        "qwen2" => plain(&[QWEN2]),
        "smollm" | "starcoder" => plain(&[DIGITS, GPT2]),
        "deepseek-llm" => plain(&[r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", SIGNS, r"\s+$", CJK, r"\p{N}+"]),
        "deepseek-coder" => plain(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"]),
        "deepseek-v3" => plain(&[r"\p{N}{1,3}", "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+", DEEPSEEK3]),
        "gpt-4o" => plain(&[GPT4O]),
        "tekken" => WordRule { patterns: &[TEKKEN], whole_words: true, begins: true },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_that_is_named_is_known() {
        assert!(KNOWN_WORDS.iter().all(|name| words_of(name).is_some()));
        assert!(words_of("falcon").is_none() && words_of("").is_some());
    }
}
