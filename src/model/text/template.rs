//! Chat templates: from messages to the text that a model was trained to read, by Jinja as transformers has it.

use super::clock::strftime_now;
use super::tokenizer::{bad, object};
use crate::error::{ErrorKind, Result};
use crate::io::gguf::Gguf;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::Environment;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Bytes of a template at most; those of models have some tens of thousands.
const MOST_BYTES: usize = 1 << 20;
/// What a rendering may take: instructions, and each 64 bytes of what it makes.
const FUEL: u64 = 1 << 21;
const RECURSION: usize = 100;
const NAME: &str = "chat template";

/// A message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Message::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Message::new("assistant", content)
    }

    /// What the model is told about its part.
    pub fn system(content: impl Into<String>) -> Self {
        Message::new("system", content)
    }
}

/// How a model wants a chat to be written.
///
/// Jinja as transformers runs it: `trim_blocks`, `lstrip_blocks`, Python's methods of strings and dictionaries, `raise_exception`,
/// `strftime_now` (of the time in UTC) and `tojson`. What a template may take of time and memory is bounded.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its like.
    tokens: BTreeMap<String, String>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// A template by its text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for what is no template, or more than 1 MiB.
    pub fn new(text: &str) -> Result<Self> {
        Self::of_text(text, BTreeMap::new()).map_err(|why| bad(Path::new(NAME), why))
    }

    /// That of a model's folder: `chat_template.jinja`, or the `chat_template` of `tokenizer_config.json` (of several the one named
    /// `default`). Of a GGUF file, or a folder with one: `tokenizer.chat_template`. None where there is none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`], [`ErrorKind::Weights`] for what is no GGUF file, [`ErrorKind::Config`] for what is no template.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        if let Some(file) = Gguf::of_model(folder)? {
            let (gguf, ..) = Gguf::open(&file)?;
            let Some(text) = gguf.text("tokenizer.chat_template")? else { return Ok(None) };
            let made = Self::of_text(text, super::gguf::special_texts(&gguf)?);
            return made.map(Some).map_err(|why| bad(&file, format!("key tokenizer.chat_template: {why}")));
        }
        let (own, config) = (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
        let keys = if config.exists() { object(&config)? } else { serde_json::Value::Null };
        let tokens = special_texts(&keys);
        if own.exists() {
            let text = std::fs::read_to_string(&own).map_err(|e| ErrorKind::io(&own, e))?;
            return Self::of_text(&text, tokens).map(Some).map_err(|why| bad(&own, why));
        }
        let text = match keys.get("chat_template") {
            None | Some(serde_json::Value::Null) => return Ok(None),
            Some(serde_json::Value::String(text)) => Some(text.as_str()),
            Some(serde_json::Value::Array(all)) => {
                let default = all.iter().find(|one| one.get("name").is_some_and(|name| name == "default"));
                default.or(all.first()).and_then(|one| one.get("template")).and_then(serde_json::Value::as_str)
            }
            Some(_) => None,
        };
        let text = text.ok_or_else(|| bad(&config, "chat_template: neither a text nor a list of named ones".into()))?;
        Self::of_text(text, tokens).map(Some).map_err(|why| bad(&config, format!("chat_template: {why}")))
    }

    fn of_text(text: &str, tokens: BTreeMap<String, String>) -> Result<Self, String> {
        if text.len() > MOST_BYTES {
            return Err(format!("{} bytes, a chat template has at most {MOST_BYTES}", text.len()));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_recursion_limit(RECURSION);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("strftime_now", strftime_now);
        environment.add_function("raise_exception", |why: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, why))
        });
        let text = without_generation(text);
        environment.add_template_owned(NAME, text).map_err(|e| format!("not a template: {}", words(&e)))?;
        Ok(ChatTemplate { environment, tokens })
    }

    /// The text of a chat; with `answer` the beginning of the model's next message behind it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where the template refuses the messages, fails, or takes too long or too much memory.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String> {
        let failed = |e: minijinja::Error| ErrorKind::argument("messages", format!("{NAME}: {}", words(&e)));
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        context.extend(self.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))));
        context.insert("messages", Value::from(Serde(messages)));
        context.insert("add_generation_prompt", Value::from(answer));
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render(Value::from(Serde(context))).map_err(failed)
    }
}

/// An error and where it is, in one line.
fn words(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// The tags that mark for training what the model says: they change nothing here.
fn without_generation(text: &str) -> String {
    let mut text = text.to_string();
    for tag in ["generation", "endgeneration"] {
        for (begin, end) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            // Of a tag no more is left than what it trims.
            let left = format!("{begin} set _ = 0 {end}");
            text = text.replace(&format!("{begin} {tag} {end}"), &left);
        }
    }
    text
}

/// As `json.dumps` writes it, with `ensure_ascii` off.
fn to_json(value: &Value, indent: Option<usize>, keys: Kwargs) -> Result<Value, minijinja::Error> {
    let failed =
        |e: serde_json::Error| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, format!("tojson: {e}"));
    let indent = match indent {
        Some(indent) => Some(indent),
        None => keys.get::<Option<usize>>("indent")?,
    };
    let _ = (keys.get::<Option<bool>>("ensure_ascii")?, keys.get::<Option<bool>>("sort_keys")?);
    keys.assert_all_used()?;
    let mut text = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, pretty)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)).map_err(failed)?;
        }
    }
    Ok(Value::from(String::from_utf8_lossy(&text).into_owned()))
}

/// Python's separators.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The special tokens of a `tokenizer_config.json`: strings, or objects with `content`.
fn special_texts(keys: &serde_json::Value) -> BTreeMap<String, String> {
    let Some(keys) = keys.as_object() else { return BTreeMap::new() };
    let text = |value: &serde_json::Value| {
        let value = value.get("content").unwrap_or(value);
        value.as_str().map(str::to_string)
    };
    keys.iter()
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, v)| Some((key.clone(), text(v)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str, messages: &[Message]) -> String {
        ChatTemplate::new(template).unwrap().render(messages, true).unwrap()
    }

    fn refused(template: &str) -> String {
        let made = ChatTemplate::new(template).and_then(|template| template.render(&[Message::user("x")], true));
        made.unwrap_err().to_string()
    }

    #[test]
    fn templates_do_what_transformers_lets_them() {
        let messages = [Message::system("be <b>"), Message::user(" hi \u{20ac} ")];
        let chat = "{%- for m in messages %}\n    <{{ m['role'] }}>{{ m.content.strip() }}\n{%- endfor %}\n{% if \
                    add_generation_prompt %}<assistant>{% endif %}\n";
        assert_eq!(rendered(chat, &messages), "    <system>be <b>    <user>hi \u{20ac}<assistant>");
        for (template, want) in [
            ("{{ messages[1] | tojson }}", "{\"role\": \"user\", \"content\": \" hi \u{20ac} \"}"),
            ("{{ [1, 'a'] | tojson(indent=2) }}", "[\n  1,\n  \"a\"\n]"),
            ("{{ '<&>' | tojson }}", "\"<&>\""),
            ("{{ messages[0].content.startswith('be') }}", "True"),
            ("{{ bos_token }}{{ undefined_name }}.", "."),
            ("{{ messages[-1].content.split()[0].upper() }}", "HI"),
            ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user"),
            ("{% generation %}a{% endgeneration %}b", "ab"),
            ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages | length) }}", "[2]"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "2",
            ),
        ] {
            let made = rendered(template, &messages);
            assert_eq!(made, want, "{template}");
        }
        let year = rendered("{{ strftime_now('%Y') }}", &[]);
        assert!(year.len() == 4 && year.as_str() >= "2024", "{year}");
    }

    #[test]
    fn what_fails_says_why_and_what_would_not_end_does() {
        assert!(refused("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
        assert!(refused("{% for %}").contains("not a template"));
        assert!(refused("{{ messages.x.y }}").contains("chat template"));
        let long = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(refused(long).contains("fuel"));
        let doubled =
            "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
        assert!(refused(doubled).contains("fuel"));
        assert!(refused("{{ 'x' * 999999999999 }}").contains("chat template"));
        assert!(refused("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}").contains("recursion"));
        assert!(refused(&"x".repeat(MOST_BYTES + 1)).contains("at most 1048576"));
    }
}
