//! Chats: messages in, text out as it comes; what a prompt has in common with the one before is not computed again.

use super::sampler::Sampler;
use super::session::{Samplers, Session, TokenStream};
use super::text::{ChatTemplate, Message, TextStream, Tokenizer};
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use crate::nn::Sampling;
use std::fmt;

/// One chat of a model: a sequence of a [`Session`] that holds the last prompt and its answer. The next prompt that begins alike is
/// computed from where it differs on, which of a growing chat is its last message.
///
/// ```no_run
/// # async fn f(session: latten::Session, folder: &str) -> latten::Result<()> {
/// use latten::model::{Chat, ChatOptions, ChatTemplate, Message, Tokenizer};
/// let template = ChatTemplate::from_folder(folder)?;
/// let mut chat = Chat::new(session, Tokenizer::from_folder(folder)?, template);
/// let mut messages = vec![Message::user("What is a cache?")];
/// let mut said = String::new();
/// let mut answer = chat.answer(&messages, ChatOptions::default())?;
/// while let Some(text) = answer.next().await? {
///     print!("{text}");
///     said += &text;
/// }
/// drop(answer);
/// messages.push(Message::assistant(said)); // and the user's next
/// # Ok(()) }
/// ```
pub struct Chat {
    session: Session,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    sequence: SeqId,
    /// Of the last prompt and its answer: the sequence holds the first of them.
    tokens: Vec<u32>,
}

/// How an answer is made.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct ChatOptions {
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// Temperature and nucleus; the default is greedy.
    pub sampling: Sampling,
    /// Start of the random numbers: the same seed gives the same answer to the same prompt on the same device.
    pub seed: u64,
}

impl Default for ChatOptions {
    fn default() -> Self {
        ChatOptions { max_new_tokens: 1024, sampling: Sampling::default(), seed: 0 }
    }
}

/// Why an answer has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerEnd {
    /// The model ended it.
    Ended,
    /// It has [`ChatOptions::max_new_tokens`].
    Length,
    /// The cache, or the model's positions, have no room for more.
    Full,
}

impl Chat {
    /// A chat in a sequence of its own. Without a template only [`Chat::complete`] can be asked for.
    pub fn new(mut session: Session, tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        let sequence = session.insert();
        Chat { session, tokenizer, template, sequence, tokens: Vec::new() }
    }

    /// The model's answer to a chat: all messages so far, the last of them the user's. Nothing is computed yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where there is no template, where it refuses the messages, or where their text is longer than the
    /// model's positions or the cache. The chat is then as before.
    pub fn answer(&mut self, messages: &[Message], options: ChatOptions) -> Result<ChatAnswer<'_>> {
        let Some(template) = &self.template else {
            return Err(ErrorKind::argument(
                "messages",
                "the model has no chat template, which would make a text of them",
            ));
        };
        let text = template.render(messages, true)?;
        self.complete(&text, options)
    }

    /// How the model goes on after a text, as it is: without the template.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a text of no tokens, or one longer than the model's positions or the cache.
    pub fn complete(&mut self, text: &str, options: ChatOptions) -> Result<ChatAnswer<'_>> {
        let prompt = self.tokenizer.encode(text)?;
        let most = self.most_tokens();
        if prompt.is_empty() || prompt.len() > most {
            let why = format!("{} tokens, wanted 1 to {most}, the model's positions or the cache's room", prompt.len());
            return Err(ErrorKind::argument("messages", why));
        }
        let vocab = self.session.decoder().config().vocab_size;
        if let Some(token) = prompt.iter().find(|token| **token as usize >= vocab) {
            return Err(ErrorKind::argument("messages", format!("token {token} is past the model's {vocab}")));
        }
        let reused = self.rewind(&prompt)?;
        self.tokens = prompt;
        let mut sampler = Sampler::new(options.sampling, options.seed)?;
        sampler.see(&self.tokens);
        let input = self.tokens.get(reused..).unwrap_or_default();
        let (prompt_tokens, room) = (self.tokens.len(), (most + 1).saturating_sub(self.tokens.len()));
        let words = self.tokenizer.stream_after(&self.tokens);
        Ok(ChatAnswer {
            stream: self.session.stream_with(&[(self.sequence, input)], vec![sampler])?,
            words,
            ends: self.tokenizer.end_tokens(),
            all: &mut self.tokens,
            facts: AnswerFacts { prompt_tokens, reused_tokens: reused, tokens: 0 },
            most: options.max_new_tokens,
            room,
            end: (options.max_new_tokens == 0).then_some(AnswerEnd::Length),
        })
    }

    /// Cuts the sequence to what it has in common with a prompt, but for the prompt's last token. Returns how much that is.
    fn rewind(&mut self, prompt: &[u32]) -> Result<usize> {
        let held = self.tokens.get(..self.session.len(self.sequence)?).unwrap_or_default();
        let common = held.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len().saturating_sub(1));
        if self.session.truncate(self.sequence, common).is_ok() {
            return Ok(common);
        }
        // A window has freed what would be needed.
        self.clear()?;
        Ok(0)
    }

    /// Gives up what is cached.
    ///
    /// # Errors
    ///
    /// None that a chat by itself has; those of [`Session::remove`] if its sequence is gone.
    pub fn clear(&mut self) -> Result<()> {
        self.session.remove(self.sequence)?;
        self.sequence = self.session.insert();
        self.tokens.clear();
        Ok(())
    }

    /// Tokens that prompt and answer can have.
    fn most_tokens(&self) -> usize {
        let pages = self.session.cache().pages();
        self.session.max_positions().min(pages.count.saturating_mul(pages.size))
    }

    /// Whether messages can be answered.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The session, for its sizes and statistics.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The model's words.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

impl fmt::Debug for Chat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Chat { session, tokenizer, template, tokens, .. } = self;
        f.debug_struct("Chat")
            .field("session", session)
            .field("tokenizer", tokenizer)
            .field("template", template)
            .field("tokens", &tokens.len())
            .finish_non_exhaustive()
    }
}

/// How large an answer is, and its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnswerFacts {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens that were in the cache from before.
    pub reused_tokens: usize,
    /// Tokens made so far, the one that ends the answer included.
    pub tokens: usize,
}

/// An answer as it comes. Dropped before its end it stays as far as it was given out, and the next one goes on from there.
pub struct ChatAnswer<'a> {
    stream: TokenStream<'a, Samplers<Vec<Sampler>>>,
    words: TextStream<'a>,
    ends: &'a [u32],
    all: &'a mut Vec<u32>,
    facts: AnswerFacts,
    most: usize,
    /// Tokens for which there is room, the last of which is not fed.
    room: usize,
    end: Option<AnswerEnd>,
}

impl ChatAnswer<'_> {
    /// The next part of the text, never less than whole characters; none at its end.
    ///
    /// # Errors
    ///
    /// As [`Session::next_tokens`]; it may be asked again.
    pub async fn next(&mut self) -> Result<Option<String>> {
        while self.end.is_none() {
            let last = self.facts.tokens + 1 >= self.most.min(self.room);
            let token = match self.stream.next(!last).await {
                Ok(tokens) => tokens.first().copied().unwrap_or_default(),
                Err(e) if matches!(e.kind(), ErrorKind::CacheFull { .. }) && self.facts.tokens > 0 => {
                    self.end = Some(AnswerEnd::Full);
                    break;
                }
                Err(e) => return Err(e),
            };
            self.all.push(token);
            self.facts.tokens += 1;
            let ended = self.ends.contains(&token);
            self.end = match (ended, last) {
                (true, _) => Some(AnswerEnd::Ended),
                (_, true) if self.facts.tokens >= self.most => Some(AnswerEnd::Length),
                (_, true) => Some(AnswerEnd::Full),
                (_, false) => None,
            };
            let text = if ended { String::new() } else { self.words.push(token) };
            if !text.is_empty() {
                return Ok(Some(text));
            }
        }
        let rest = self.words.finish();
        Ok((!rest.is_empty()).then_some(rest))
    }

    /// How large it is.
    pub fn facts(&self) -> AnswerFacts {
        self.facts
    }

    /// Why it has ended, where it has.
    pub fn end(&self) -> Option<AnswerEnd> {
        self.end
    }

    /// The session, for its statistics.
    pub fn session(&self) -> &Session {
        self.stream.session()
    }
}

impl fmt::Debug for ChatAnswer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatAnswer").field("facts", &self.facts).field("end", &self.end).finish_non_exhaustive()
    }
}
