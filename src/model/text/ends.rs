//! Which tokens end a text, by all files of a model's folder that say so.

use super::tokenizer::{bad, object};
use crate::error::Result;
use serde_json::Value;
use std::path::Path;

/// The ids of `generation_config.json`, or where that has no such key of `config.json`; after them those of the names in
/// `tokenizer_config.json` and `special_tokens_map.json`, which `token` knows. All of them end a text: a chat's end often
/// stands in one of these files alone.
pub(crate) fn ends(folder: &Path, config: &Value, token: impl Fn(&str) -> Option<u32>) -> Result<Vec<u32>> {
    let (own, generation) = (folder.join("config.json"), folder.join("generation_config.json"));
    let said = match generation.exists() {
        true => object(&generation)?.get("eos_token_id").cloned(),
        false => None,
    };
    let (path, key) = match said {
        Some(key) => (&generation, key),
        None => (&own, config.get("eos_token_id").cloned().unwrap_or(Value::Null)),
    };
    let mut all = Vec::new();
    let mut add = |token| {
        if !all.contains(&token) {
            all.push(token);
        }
    };
    let ids = ids(&key).ok_or_else(|| bad(path, "eos_token_id: no token, nor a list of tokens".into()))?;
    ids.into_iter().for_each(&mut add);
    for file in ["tokenizer_config.json", "special_tokens_map.json"].map(|name| folder.join(name)) {
        if !file.exists() {
            continue;
        }
        let Some(name) = name(&object(&file)?).map_err(|why| bad(&file, why))? else { continue };
        match token(&name) {
            Some(id) => add(id),
            None => {
                log::warn!("{}: eos_token {name:?} is no token of the tokenizer, so nothing ends there", file.display())
            }
        }
    }
    Ok(all)
}

/// The tokens of an `eos_token_id`; none for what is neither a token nor a list of them nor null.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(all) => all.iter().map(token).collect(),
        one => token(one).map(|token| vec![token]),
    }
}

/// The name in an `eos_token`: a string, or an object that has it as its `content`.
fn name(file: &Value) -> std::result::Result<Option<String>, String> {
    let key = file.get("eos_token").unwrap_or(&Value::Null);
    match key {
        Value::Null => Ok(None),
        Value::String(name) => Ok(Some(name.clone())),
        other => match other.get("content").and_then(Value::as_str) {
            Some(name) => Ok(Some(name.to_string())),
            None => Err(format!("eos_token: {other} is neither a string nor an object with a string \"content\"")),
        },
    }
}
