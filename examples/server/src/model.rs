//! The model that is served: its weights on the device, its words, and how large a request may be.

use crate::args::Args;
use crate::errors::ApiError;
use crate::random_models::Weights;
use crate::shared_repository;
use latten::cache::Pages;
use latten::model::{
    ChatTemplate, Decoder, Grammar, GrammarCompiler, LoadOptions, Message, Scheduler, Session, SessionOptions,
    Tokenizer,
};
use latten::{DType, Gpu, SplitPolicy};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// For models of bytes, which have none: they were trained on texts, and answer nobody.
const PLAIN_TEMPLATE: &str = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
/// Bytes of a cache for which nobody asked.
const CACHE_BYTES: u64 = 1 << 30;
/// Positions of a model of random weights.
const RANDOM_POSITIONS: usize = 65_536;

/// What handlers need to know of the model.
#[derive(Debug)]
pub struct Served {
    pub name: String,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    pub fingerprint: String,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<ChatTemplate>,
    pub vocab: usize,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
    /// Made when it is first asked for.
    grammars: OnceLock<Result<GrammarCompiler, ApiError>>,
}

impl Served {
    /// A grammar that `compile` makes, which takes its time.
    ///
    /// Errors: those of the grammar.
    pub fn grammar(
        &self,
        compile: impl FnOnce(&GrammarCompiler) -> Result<Grammar, latten::Error>,
    ) -> Result<Grammar, ApiError> {
        let made = self
            .grammars
            .get_or_init(|| GrammarCompiler::new(&self.tokenizer, self.vocab).map_err(|error| ApiError::of(&error)));
        let compiler = made.as_ref().map_err(Clone::clone)?;
        compile(compiler).map_err(|error| ApiError::of(&error))
    }

    /// The text of a chat, if there is a template.
    ///
    /// Errors: what the template says of the messages.
    pub fn render(&self, messages: &[Message]) -> Result<String, latten::Error> {
        match &self.template {
            Some(template) => template.render(messages, true),
            None => Ok(String::new()),
        }
    }
}

/// Loads what the arguments name, and makes room for its requests.
///
/// Errors: in words, for whoever started the server.
pub fn load(args: &Args) -> Result<(Served, Scheduler), String> {
    let words = |e: latten::Error| e.to_string();
    let gpu = pollster::block_on(Gpu::new()).map_err(words)?;
    let (decoder, tokenizer, template) = match args.random_weights {
        Some(shape) => {
            let config = shape.size.config(shape.variant, RANDOM_POSITIONS).map_err(words)?;
            let dtype = match args.weights.to_string().as_str() {
                "f32" => DType::F32,
                "i8" => DType::I8,
                "f16" => DType::F16,
                other => return Err(format!("random weights are f16, f32 or i8, not {other}")),
            };
            let (decoder, _) = Weights::new(&shape.size).decoder(&gpu, &shape.size, &config, dtype)?;
            (decoder, Tokenizer::bytes(), None)
        }
        None => {
            let path = args.model_path();
            shared_repository::here(&path)?;
            let tokenizer = Tokenizer::from_folder(&path).map_err(words)?;
            let template = ChatTemplate::from_folder(&path).map_err(words)?;
            let decoder = Decoder::load_with(&gpu, &path, LoadOptions::of(args.weights)).map_err(words)?;
            (decoder, tokenizer, template)
        }
    };
    let template = match &args.chat_template {
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
            Some(ChatTemplate::new(&text).map_err(words)?)
        }
        None if template.is_none() && tokenizer.is_bytes() => Some(ChatTemplate::new(PLAIN_TEMPLATE).map_err(words)?),
        None => template,
    };
    let context = args.context.unwrap_or(decoder.config().max_positions);
    let session = session(args, &decoder, context)?;
    let context = match session.cache().pages() {
        pages if args.window.is_none() => context.min(session.max_positions()).min(pages.count * pages.size),
        _ => context.min(session.max_positions()),
    };
    let tokenizer = Arc::new(tokenizer);
    let served = Served {
        name: args.name(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        fingerprint: format!("latten-{:016x}", decoder.fingerprint()),
        tokenizer: tokenizer.clone(),
        template,
        vocab: decoder.config().vocab_size,
        context,
        grammars: OnceLock::new(),
    };
    Ok((served, Scheduler::new(session).with_tokenizer(tokenizer)))
}

/// Room for the requests: as many pages as the bytes allow.
fn session(args: &Args, decoder: &Decoder, context: usize) -> Result<Session, String> {
    let words = |e: latten::Error| e.to_string();
    let config = decoder.config();
    let heads = config.layout().map_err(words)?;
    let within = |bytes| Pages::within(bytes, &heads, args.kv_dtype, args.page_size, config.layers).map_err(words);
    let pages = match args.cache_bytes {
        Some(bytes) => within(bytes)?.count,
        None => {
            let visible = args.window.map_or(context, |window| context.min(window + args.keep_first + args.chunk));
            let wanted = args.max_batch.saturating_mul(visible.div_ceil(args.page_size) + 1).saturating_mul(2);
            within(CACHE_BYTES)?.count.min(wanted)
        }
    };
    let options = SessionOptions {
        max_batch: args.max_batch,
        chunk: args.chunk,
        cache_tokens: pages.saturating_mul(args.page_size),
        page_size: args.page_size,
        kv_dtype: args.kv_dtype,
        window: args.window,
        keep_first: args.keep_first,
        ..SessionOptions::default()
    };
    let mut session = Session::new(decoder, options).map_err(words)?;
    if let Some(tokens) = args.fixed_split {
        session = session.with_policy(SplitPolicy::FixedTokens(tokens));
    }
    if !args.no_warm_up {
        pollster::block_on(session.warm_up()).map_err(words)?;
    }
    Ok(session)
}
