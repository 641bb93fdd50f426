//! The model that is served: its weights on the device, its words, and how large a request may be.

use crate::args::Args;
use crate::errors::ApiError;
use crate::random_models::Weights;
use crate::ranks::{self, Followers};
use crate::shared_repository;
use latten::cache::Pages;
use latten::model::{
    ChatTemplate, Decoder, Grammar, GrammarCompiler, LoadOptions, Message, Scheduler, Session, SessionOptions,
    Tokenizer,
};
use latten::parallel::local::LocalRank;
use latten::parallel::Shard;
use latten::{ErrorKind, Gpu, GpuOptions, SplitPolicy};
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

/// A part of the model that the arguments name.
fn part(args: &Args, gpu: &Gpu, shard: Shard) -> latten::Result<Decoder> {
    let options = LoadOptions { shard, ..LoadOptions::of(args.weights) };
    match args.random_weights {
        Some(shape) => {
            let config = shape.size.config(shape.variant, RANDOM_POSITIONS)?;
            let loaded = Weights::new(&shape.size).decoder_with(gpu, &shape.size, &config, options);
            let refused = |message| ErrorKind::Config { path: "random weights".into(), message }.into();
            loaded.map(|(decoder, _)| decoder).map_err(refused)
        }
        None => Decoder::load_with(gpu, args.model_path(), options),
    }
}

/// This process's rank, and what part of the model it has.
fn first_rank(args: &Args) -> latten::Result<(Option<LocalRank>, Shard, Option<Followers>)> {
    if args.ranks == 1 {
        return Ok((None, Shard::whole(), None));
    }
    let of_others = args.clone();
    let load = move |gpu: &Gpu, shard| part(&of_others, gpu, shard);
    let (rank, shard, followers) = ranks::start(args.ranks, args.by_context, &GpuOptions::default(), Arc::new(load))?;
    Ok((Some(rank), shard, Some(followers)))
}

/// Loads what the arguments name, and makes room for its requests. What comes first is to be dropped last: the ranks that follow this one,
/// if there are any.
///
/// Errors: in words, for whoever started the server.
pub fn load(args: &Args) -> Result<(Option<Followers>, Served, Scheduler), String> {
    let words = |e: latten::Error| e.to_string();
    let gpu = pollster::block_on(Gpu::new()).map_err(words)?;
    let (tokenizer, template) = match args.random_weights {
        Some(_) if !["f32", "i8", "f16"].contains(&args.weights.to_string().as_str()) => {
            return Err(format!("random weights are f16, f32 or i8, not {}", args.weights));
        }
        Some(_) => (Tokenizer::bytes(), None),
        None => {
            let path = args.model_path();
            shared_repository::here(&path)?;
            let template = ChatTemplate::from_folder(&path).map_err(words)?;
            (Tokenizer::from_folder(&path).map_err(words)?, template)
        }
    };
    let (rank, shard, followers) = first_rank(args).map_err(words)?;
    // Where this fails the others hear of it: the rank goes, and they end.
    let decoder = part(args, &gpu, shard).map_err(words)?;
    let template = match &args.chat_template {
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
            Some(ChatTemplate::new(&text).map_err(words)?)
        }
        None if template.is_none() && tokenizer.is_bytes() => Some(ChatTemplate::new(PLAIN_TEMPLATE).map_err(words)?),
        None => template,
    };
    let context = args.context.unwrap_or(decoder.config().max_positions);
    let session = session(args, &decoder, context, rank)?;
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
    Ok((followers, served, Scheduler::new(session).with_tokenizer(tokenizer)))
}

/// Room for the requests: as many pages as the bytes allow.
fn session(args: &Args, decoder: &Decoder, context: usize, rank: Option<LocalRank>) -> Result<Session, String> {
    let words = |e: latten::Error| e.to_string();
    let (config, shard) = (decoder.config(), decoder.shard());
    let heads = config.layout().and_then(|heads| heads.shard(shard)).map_err(words)?.layout;
    // By context, a page is as many bytes of each rank less.
    let parts = if shard.is_by_context() { shard.size() as u64 } else { 1 };
    let within = |bytes: u64| {
        let bytes = bytes.saturating_mul(parts);
        Pages::within(bytes, &heads, args.kv_dtype, args.page_size, config.layers).map_err(words)
    };
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
    let mut session = ranks::session(decoder, options, rank).map_err(words)?;
    if let Some(tokens) = args.fixed_split {
        session = session.with_policy(SplitPolicy::FixedTokens(tokens));
    }
    if !args.no_warm_up {
        pollster::block_on(session.warm_up()).map_err(words)?;
    }
    Ok(session)
}
