//! Speculative decoding: several tokens are guessed cheaply, and the model judges them in one step.

use super::lookup::look_up;
use super::rejection::{check_sampling, verify, verify_most_likely, Distribution, Proposal};
use super::{check_positions, GenerateOptions};
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use crate::model::sampler::{random::SplitMix64, Draw};
use crate::model::session::feed::no_probabilities;
use crate::model::session::owned::{pause, Owned};
use crate::model::session::Session;
use std::ops::ControlFlow;

/// Rows by which vocabularies of the same tokens may differ: they are padded to multiples of up to this, as Qwen2.5's of
/// 151,665 tokens are to 151,936 and 152,064. Any difference would lose nothing ([`verify`]), but a model of other tokens
/// guesses in vain.
const MOST_PADDING: usize = 1024;

/// Who guesses the tokens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Drafter<'a> {
    /// A smaller model of the same tokens. Its sequence is the call's own. It draws with the same temperature and nucleus.
    /// Where one of the two vocabularies has more rows, as padding, up to 1024, tokens that only one of them has are never
    /// guessed, and where the text has one that the drafter lacks, the drafter sees its own last token in its place.
    Model(&'a mut Session),
    /// The text itself, without a second model: what followed where its last tokens stood before. For texts that quote
    /// or repeat, such as summaries, edits and code.
    Lookup {
        /// Most of the last tokens that must be the same; more are tried first.
        max_ngram: usize,
        /// Least of them, at least 1.
        min_ngram: usize,
    },
}

/// How [`generate_speculative`] goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct SpeculativeOptions {
    /// How many tokens, and how they are drawn.
    pub generate: GenerateOptions,
    /// Most tokens guessed per step. A step starts with so many, two more than the step before where all of those stood,
    /// and one less where one did not, but at least one. At most the chunk of the session less one.
    pub max_draft: usize,
}

impl Default for SpeculativeOptions {
    fn default() -> Self {
        SpeculativeOptions { generate: GenerateOptions::default(), max_draft: 4 }
    }
}

/// What [`generate_speculative`] made, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Speculated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Steps of the model, that of the prompt included. Plain generation has one per token.
    pub steps: usize,
    /// Tokens that were guessed.
    pub drafted: usize,
    /// Those of them that stood.
    pub accepted: usize,
}

/// Continues a prompt as [`generate()`](crate::model::generate()) does, in fewer steps: the drafter guesses some tokens, one step
/// of `target` gives the logits after each of them, and those that stand are kept, with one more that the step itself
/// gives. The others are cut off both caches.
///
/// Nothing is lost by it. Greedy tokens are those of `generate`, as far as logits do not depend on how many tokens a
/// step has, which is their last bits. Drawn tokens have the probabilities that `generate` draws with (the rule of
/// Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318), but are others for the same seed. The same
/// seed gives the same tokens again.
///
/// `on_token` gets each token that stands, in order, and may stop. Where the positions of the drafter's model, or one of
/// the caches, have no room for guesses, the step is without. Sequences are gone at the end, after an error, and where
/// the future is dropped, which it can be between steps.
///
/// It is faster only where a step of several tokens costs about as much as one of a single token, as on GPUs that wait
/// for memory, and the drafter costs little.
///
/// # Errors
///
/// [`ErrorKind::Argument`] for a drafter whose vocabulary is of another size, by more than padding, a session with a window, its own or the model's, a
/// `max_draft` of 0, a `min_ngram` of 0 or above `max_ngram`, a bad sampling, or one with penalties, which are not for guesses, or where the model's logits are no numbers;
/// else as `generate`.
pub async fn generate_speculative(
    target: &mut Session,
    drafter: Drafter<'_>,
    prompt: &[u32],
    options: SpeculativeOptions,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Speculated> {
    check(target, &drafter, options)?;
    if prompt.is_empty() {
        return Err(ErrorKind::argument("prompt", "0 tokens, wanted at least 1"));
    }
    let mut own = Owned::new(target);
    let sequence = own.insert();
    check_positions(own.session, sequence, prompt, options.generate.max_new_tokens)?;
    let vocab = own.session.decoder().config().vocab_size;
    let mut drafts = Drafts::new(drafter, options, vocab);
    let mut random = SplitMix64::new(options.generate.seed);
    let most = options.max_draft.min(own.session.capacity() - 1);
    // All that the loop needs, so that nothing is allocated in it.
    own.session.reserve_all(most + 1, is_greedy(options))?;
    let mut made = Speculated::default();
    let (mut tokens, mut k) = (prompt.to_vec(), most);
    while made.tokens.len() < options.generate.max_new_tokens {
        // The step gives one more than it is asked about. That of the prompt is as `generate` has it.
        let left = options.generate.max_new_tokens - made.tokens.len() - 1;
        let ask = made.steps > 0 && has_room(own.session, sequence, &tokens, k.min(left))?;
        let wanted = if ask { k.min(left) } else { 0 };
        let (proposals, stand, next) = match drafts.guess_unread((&mut own, sequence), &tokens, wanted).await? {
            Some(judged) => judged,
            None => {
                let proposals = drafts.propose(&tokens, wanted, &mut random).await?;
                let (stand, next) = judge(&mut own, sequence, (&tokens, &proposals), options, &mut random).await?;
                (proposals, stand, next)
            }
        };
        made.steps += 1;
        made.drafted += proposals.len();
        made.accepted += stand;
        if !proposals.is_empty() {
            k = if stand == proposals.len() { (k + 2).min(most) } else { (k - 1).max(1) };
        }
        own.session.truncate(sequence, tokens.len() + stand)?;
        let stood = proposals[..stand].iter().map(|proposal| proposal.token);
        for token in stood.chain([next]) {
            tokens.push(token);
            made.tokens.push(token);
            if on_token(token).is_break() {
                return Ok(made);
            }
        }
        pause().await;
    }
    Ok(made)
}

fn check(target: &Session, drafter: &Drafter<'_>, options: SpeculativeOptions) -> Result<()> {
    check_sampling(&options.generate.sampling)?;
    if options.max_draft == 0 {
        return Err(ErrorKind::argument("max_draft", "0, wanted at least 1"));
    }
    let drafts = match drafter {
        Drafter::Model(session) => Some(&**session),
        Drafter::Lookup { .. } => None,
    };
    for session in [Some(target), drafts].into_iter().flatten() {
        if let Some((window, _)) = session.window() {
            let whose = session.what_is_window();
            let why = format!(
                "{window} tokens, {whose}: guesses that do not stand are cut off, to where pages may be gone by then"
            );
            return Err(ErrorKind::argument("window", why));
        }
    }
    match drafter {
        Drafter::Model(session) => {
            let [draft, vocab] = [session, target].map(|session| session.decoder().config().vocab_size);
            if draft.abs_diff(vocab) > MOST_PADDING {
                let why = format!(
                    "its model has a vocabulary of {draft}, the target's has {vocab}: more apart than padding, {MOST_PADDING}"
                );
                return Err(ErrorKind::argument("drafter", why));
            }
        }
        Drafter::Lookup { max_ngram, min_ngram } => {
            if *min_ngram == 0 || min_ngram > max_ngram {
                return Err(ErrorKind::argument("min_ngram", format!("{min_ngram} is not in 1..={max_ngram}")));
            }
        }
    }
    Ok(())
}

/// Whether these tokens, and `k` guesses after them, can be fed.
fn has_room(session: &Session, sequence: SeqId, tokens: &[u32], k: usize) -> Result<bool> {
    let all = tokens.len() + k;
    let new = all - session.len(sequence)?;
    let fits = all <= session.max_positions();
    Ok(fits && session.cache().check_reserve(&[(sequence, new)]).is_ok())
}

/// Feeds the target what it has not yet, and the proposals, and asks the rule.
async fn judge(
    own: &mut Owned<'_>,
    sequence: SeqId,
    (tokens, proposals): (&[u32], &[Proposal]),
    options: SpeculativeOptions,
    random: &mut SplitMix64,
) -> Result<(usize, u32)> {
    let mut input = tokens.get(own.session.len(sequence)?..).unwrap_or_default().to_vec();
    input.extend(proposals.iter().map(|proposal| proposal.token));
    let vocab = own.session.decoder().config().vocab_size;
    // Of a prompt, the last row alone.
    let batch: [(SeqId, &[u32]); 1] = [(sequence, &input)];
    if is_greedy(options) {
        let most_likely = match proposals {
            [] => own.session.next_tokens(&batch, &[Draw::default()]).await?,
            _ => own.session.all_tokens(&batch).await?.pop().unwrap_or_default(),
        };
        let first = most_likely.len().saturating_sub(proposals.len() + 1);
        let position = |stand: usize| tokens.len() + stand - 1;
        return verify_most_likely(&most_likely[first..], proposals, |stand| {
            no_probabilities(sequence, position(stand))
        });
    }
    let logits = match proposals {
        [] => own.session.logits(&batch).await?,
        _ => own.session.all_logits(&batch).await?,
    };
    let logits = logits.into_iter().next().unwrap_or_default();
    let first = (logits.len() / vocab).saturating_sub(proposals.len() + 1);
    let rows = logits.chunks_exact(vocab).skip(first);
    verify(rows.map(|row| Distribution::new(row, options.generate.sampling)), proposals, random)
}

/// Cuts the drafter's sequence to what it has of the tokens. Returns those that it lacks, and `k`, or 0 without room for so many
/// guesses.
fn catch_up(own: &mut Owned<'_>, sequence: SeqId, tokens: &[u32], k: usize) -> Result<(Vec<u32>, usize)> {
    // What was guessed before and did not stand.
    let same = own.session.len(sequence)?.min(tokens.len() - 1);
    own.session.truncate(sequence, same)?;
    // The last guess is not fed.
    let k = if k > 0 && has_room(own.session, sequence, tokens, k - 1)? { k } else { 0 };
    let last = (own.session.decoder().config().vocab_size as u32).saturating_sub(1); // no truncation: tokens are u32
    Ok((tokens[same..].iter().map(|token| last.min(*token)).collect(), k))
}

/// Whether nothing is drawn: then tokens are all that either model is asked for.
fn is_greedy(options: SpeculativeOptions) -> bool {
    options.generate.sampling.divisor() == 0.0
}

/// The drafter, with what it needs.
enum Drafts<'a> {
    Model { own: Owned<'a>, sequence: SeqId, options: SpeculativeOptions, vocab: usize },
    Lookup { max_ngram: usize, min_ngram: usize },
}

impl<'a> Drafts<'a> {
    /// For a target of this vocabulary.
    fn new(drafter: Drafter<'a>, options: SpeculativeOptions, vocab: usize) -> Self {
        match drafter {
            Drafter::Model(session) => {
                let mut own = Owned::new(session);
                let sequence = own.insert();
                Drafts::Model { own, sequence, options, vocab }
            }
            Drafter::Lookup { max_ngram, min_ngram } => Drafts::Lookup { max_ngram, min_ngram },
        }
    }

    /// Guesses `k` tokens and judges them, where neither needs the host: what the target gave after those that stand. None where
    /// the host is needed, or there is no room for guesses.
    async fn guess_unread(
        &mut self,
        (target, id): (&mut Owned<'_>, SeqId),
        tokens: &[u32],
        k: usize,
    ) -> Result<Option<(Vec<Proposal>, usize, u32)>> {
        let Drafts::Model { own, sequence, options, vocab } = self else { return Ok(None) };
        // The device does not know which of its tokens the target lacks.
        let knows = own.session.decoder().config().vocab_size <= *vocab;
        if k == 0 || !knows || !is_greedy(*options) || !target.session.judges_unread(own.session) {
            return Ok(None);
        }
        let (input, k) = catch_up(own, *sequence, tokens, k)?;
        let unfed = tokens.get(target.session.len(id)?..).unwrap_or_default();
        if k == 0 || unfed.is_empty() || unfed.len() + k > target.session.capacity() {
            return Ok(None);
        }
        let guesses = own.session.submit_guesses(*sequence, &input, k).await?;
        let judged = target.session.judge_guesses((id, unfed), guesses).await?;
        let proposals: Vec<Proposal> = judged.guesses.into_iter().map(Proposal::certain).collect();
        let first = unfed.len() - 1;
        let fault = |stand: usize| no_probabilities(id, tokens.len() + stand - 1);
        let (stand, next) = verify_most_likely(&judged.most_likely[first..], &proposals, fault)?;
        Ok(Some((proposals, stand, next)))
    }

    /// At most `k` tokens that may follow.
    async fn propose(&mut self, tokens: &[u32], k: usize, random: &mut SplitMix64) -> Result<Vec<Proposal>> {
        let (own, sequence, options, vocab) = match self {
            Drafts::Lookup { max_ngram, min_ngram } => {
                let found = look_up(tokens, *max_ngram, *min_ngram, k);
                return Ok(found.into_iter().map(Proposal::certain).collect());
            }
            Drafts::Model { own, sequence, options, vocab } => (own, *sequence, options, *vocab),
        };
        let (mut input, k) = catch_up(own, sequence, tokens, k)?;
        let mut proposals: Vec<Proposal> = Vec::with_capacity(k);
        // The device does not know which of its tokens the target lacks.
        if k > 0 && is_greedy(*options) && own.session.decoder().config().vocab_size <= vocab {
            // Each guess is with the device before the one before it is read.
            let mut stream = own.session.stream(&[(sequence, &input)], |_| Draw::default())?;
            for guess in 1..=k {
                let token = stream.next(guess < k).await?[0];
                proposals.push(Proposal::certain(token));
            }
            return Ok(proposals);
        }
        for _ in 0..k {
            let logits = own.session.logits(&[(sequence, &input)]).await?.pop().unwrap_or_default();
            // What the target does not have has no probability here.
            let q = Distribution::new(logits.get(..vocab).unwrap_or(&logits), options.generate.sampling)?;
            let token = q.draw(random);
            proposals.push(Proposal { token, drawn_from: Some(q) });
            input = vec![token];
        }
        Ok(proposals)
    }
}
