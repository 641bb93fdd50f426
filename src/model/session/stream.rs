//! Tokens one after the other, each step with the device before the tokens of the one before are read.
//!
//! The token that a step draws is on the device already, so the next step can begin with it at once: what the host does for a
//! step (planning, recording, submitting) it does while the device works on the step before. At most two steps are under way.
//! A step's own tokens are known when the next one is recorded, and are committed then, as those of a call of several steps
//! are; what fails, or was computed for nothing, is rolled back to the last token that was handed out.

use super::feed::{Call, Fed, Undrawn, Want};
use super::ids::Ids;
use super::schedule::schedule;
use super::step::Submitted;
use super::Session;
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use crate::model::sampler::{Draw, DrawRow, Drawn, Sampler};

/// How the tokens of a [`TokenStream`] are drawn: a function that says it for each sequence and step, or [`Samplers`].
pub trait DrawSource: private::RowSource {}

impl<D: private::RowSource> DrawSource for D {}

/// The samplers of a [`TokenStream`], one per sequence.
#[derive(Debug)]
pub struct Samplers<S>(pub(crate) S);

mod private {
    use super::{Draw, DrawRow, Sampler, Samplers};

    pub trait RowSource {
        /// How the tokens of the next step to be read are drawn, or with 1 those of the one after it: one row per sequence.
        #[allow(private_interfaces)]
        fn rows(&mut self, after: usize, sequences: usize) -> Vec<DrawRow>;

        /// Whether rows are asked for once, and stay as they are when the step before is read.
        const ONCE: bool;

        /// Whether a step has to know the tokens of the one before.
        fn waits(&self) -> bool;

        /// The tokens of the step that was read.
        fn take(&mut self, tokens: &[u32]);
    }

    impl<D: FnMut(usize) -> Draw> RowSource for D {
        const ONCE: bool = true;

        #[allow(private_interfaces)]
        fn rows(&mut self, _: usize, sequences: usize) -> Vec<DrawRow> {
            (0..sequences).map(|sequence| self(sequence).into()).collect()
        }

        fn waits(&self) -> bool {
            false
        }

        fn take(&mut self, _: &[u32]) {}
    }

    impl<S: AsMut<[Sampler]> + AsRef<[Sampler]>> RowSource for Samplers<S> {
        const ONCE: bool = false;

        #[allow(private_interfaces)]
        fn rows(&mut self, after: usize, _: usize) -> Vec<DrawRow> {
            self.0.as_ref().iter().map(|sampler| sampler.row(after)).collect()
        }

        fn waits(&self) -> bool {
            self.0.as_ref().iter().any(Sampler::waits)
        }

        fn take(&mut self, tokens: &[u32]) {
            self.0.as_mut().iter_mut().zip(tokens).for_each(|(sampler, token)| sampler.take(*token));
        }
    }
}

/// Tokens that follow sequences, drawn one step after the other: made by [`Session::stream`] and [`Session::stream_with`].
///
/// Dropped, or where a future of [`TokenStream::next`] is dropped before it ends, it leaves each sequence as
/// [`Session::next_tokens`] would have: with its input, and all tokens that were handed out but the last.
pub struct TokenStream<'a, D> {
    session: &'a mut Session,
    draw: D,
    /// What the next step to be read feeds: the input, later the tokens that were handed out last.
    input: Vec<(SeqId, Vec<u32>)>,
    /// That step, if it is with the device. Its tokens are not committed, and a call that fails goes back to before it.
    ahead: Option<Submitted>,
    /// How that step's tokens are drawn, and those of the step after it, as far as that was asked.
    draws: [Option<Vec<DrawRow>>; 2],
}

impl Session {
    /// Tokens that follow the sequences of `batch` after their tokens there, as [`Session::next_tokens`] in a loop that feeds
    /// what was drawn would return them, bit for bit; but the host's work for a step is done while the device computes the one
    /// before. `draw` says how the next token of a sequence, by its index in the batch, is drawn: it is asked one step ahead.
    ///
    /// In a session with a window a step waits for the one before where that gives a page back to the window.
    ///
    /// ```no_run
    /// # async fn f(session: &mut latten::Session, prompt: &[u32]) -> latten::Result<()> {
    /// use latten::model::Draw;
    /// let id = session.insert();
    /// let mut stream = session.stream(&[(id, prompt)], |_| Draw::default())?;
    /// for _ in 0..100 {
    ///     let token = stream.next(true).await?[0]; // with another step on its way to the device
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Session::next_tokens`], but for what only the device can say; nothing is submitted yet.
    pub fn stream<D: FnMut(usize) -> Draw>(
        &mut self,
        batch: &[(SeqId, &[u32])],
        draw: D,
    ) -> Result<TokenStream<'_, D>> {
        self.stream_of(batch, draw)
    }

    /// [`Session::stream`] by samplers, one per sequence, with all that these have: a `Vec` of them or a slice. Its tokens are those
    /// of [`Session::draw`] in a loop. Penalties count the token of a step that is under way on the device, so nothing waits for
    /// them; with a [`Constraint`](crate::model::Constraint) each step waits for the one before.
    ///
    /// # Errors
    ///
    /// As [`Session::stream`]; [`ErrorKind::Shape`] for another number of samplers than of sequences.
    pub fn stream_with<S: AsMut<[Sampler]> + AsRef<[Sampler]>>(
        &mut self,
        batch: &[(SeqId, &[u32])],
        samplers: S,
    ) -> Result<TokenStream<'_, Samplers<S>>> {
        let count = samplers.as_ref().len();
        if count != batch.len() {
            return Err(ErrorKind::shape("samplers", &[count], format!("({})", batch.len())));
        }
        self.stream_of(batch, Samplers(samplers))
    }

    fn stream_of<D>(&mut self, batch: &[(SeqId, &[u32])], draw: D) -> Result<TokenStream<'_, D>> {
        self.roll_back();
        self.check(batch, &Want::Tokens(&vec![DrawRow::default(); batch.len()]))?;
        let input = batch.iter().map(|(id, tokens)| (*id, tokens.to_vec())).collect();
        Ok(TokenStream { session: self, draw, input, ahead: None, draws: [None, None] })
    }
}

/// A call's batch.
type Batch<'a> = Vec<(SeqId, &'a [u32])>;

fn batch(input: &[(SeqId, Vec<u32>)]) -> Batch<'_> {
    input.iter().map(|(id, tokens)| (*id, &tokens[..])).collect()
}

impl<D: DrawSource> TokenStream<'_, D> {
    /// The next token of each sequence, in the order of the batch. `more`: whether another call will follow, so that its step
    /// is worth computing ahead. Where it is and none follows, that step is rolled back; where it is not and one follows, the
    /// device waits for the host once.
    ///
    /// # Errors
    ///
    /// As [`Session::next_tokens`] of the step. The sequences are as they were before it, so that it may be asked for again.
    pub async fn next(&mut self, more: bool) -> Result<Vec<u32>> {
        Ok(self.next_fed(more).await?.1.tokens)
    }

    /// [`TokenStream::next`], with the log-probabilities that samplers ask for.
    ///
    /// # Errors
    ///
    /// As [`TokenStream::next`].
    pub async fn next_drawn(&mut self, more: bool) -> Result<Vec<Drawn>> {
        let (rows, fed) = self.next_fed(more).await?;
        Ok(rows.iter().enumerate().map(|(sequence, row)| fed.drawn(sequence, row.logprobs)).collect())
    }

    async fn next_fed(&mut self, more: bool) -> Result<(Vec<DrawRow>, Fed)> {
        let fed = self.step(more).await;
        if fed.is_err() {
            self.session.roll_back();
        }
        fed
    }

    /// The session, for its sizes and statistics. The page of a step under way counts as used.
    pub fn session(&self) -> &Session {
        self.session
    }

    async fn step(&mut self, more: bool) -> Result<(Vec<DrawRow>, Fed)> {
        // Taken: a future that is dropped takes the steps with it, and the next begins again.
        let mut read = Fed::of_tokens(self.input.len());
        let mut first = match self.ahead.take() {
            Some(step) => step,
            None => self.submit_first(&mut read).await?,
        };
        let second = if more { self.submit_second(&mut first) } else { None };
        let (input, parts, committed) = (batch(&self.input), first.parts.clone(), first.committed);
        let call = Call { batch: &input, want: Want::Tokens(&[]), undrawn: Undrawn::Fails };
        self.session.read_results(&call, first, &mut read).await?;
        if !committed {
            self.session.commit_parts(&input, &parts)?;
        }
        self.session.finish();
        self.input = self.input.iter().zip(&read.tokens).map(|((id, _), token)| (*id, vec![*token])).collect();
        self.draw.take(&read.tokens);
        let next = self.draws[1].take().filter(|_| D::ONCE || second.is_some());
        let rows = std::mem::replace(&mut self.draws, [next, None])[0].take().unwrap_or_default();
        if second.is_some() {
            self.session.begin(&batch(&self.input))?;
            self.ahead = second;
        }
        Ok((rows, read))
    }

    /// How the tokens of the next step to be read are drawn (0), or those of the one after it (1).
    fn draws(&mut self, step: usize) -> Vec<DrawRow> {
        let count = self.input.len();
        if !D::ONCE {
            self.draws[step] = None; // they may hang on tokens that have come since
        }
        self.draws[step].get_or_insert_with(|| self.draw.rows(step, count)).clone()
    }

    /// Submits the step whose tokens are next; of an input in several steps the last, after the others are done and what they
    /// drew is in `read`.
    async fn submit_first(&mut self, read: &mut Fed) -> Result<Submitted> {
        self.session.roll_back();
        let draws = self.draws(0);
        let (input, want) = (batch(&self.input), Want::Tokens(&draws));
        self.session.check(&input, &want)?;
        let lengths: Vec<usize> = input.iter().map(|(_, tokens)| tokens.len()).collect();
        self.session.compile_stream(&lengths)?;
        self.session.begin(&input)?;
        let call = Call { batch: &input, want, undrawn: Undrawn::Fails };
        let mut steps = schedule(&lengths, self.session.capacity());
        let last = steps.pop().unwrap_or_default();
        for parts in steps {
            let step = self.session.submit_step(&call, parts)?;
            self.session.read_step(&call, step, read).await?;
        }
        self.session.submit_step(&call, last)
    }

    /// Commits the tokens that `first` feeds and submits the step after it, with the tokens that it draws, if that can be done
    /// before they are read.
    fn submit_second(&mut self, first: &mut Submitted) -> Option<Submitted> {
        if self.draw.waits() {
            return None;
        }
        let draws = self.draws(1);
        // Whoever ends in an earlier step of the input has its token in no row of this one.
        if first.parts.len() != self.input.len() || !first.parts.iter().all(|part| part.last) {
            return None;
        }
        let fed = self.input.iter().zip(&first.parts).map(|((id, tokens), part)| (*id, &tokens[part.tokens.clone()]));
        let fed: Batch<'_> = fed.collect();
        // The host does not have the tokens, and needs their count alone.
        let unknown: Batch<'_> = self.input.iter().map(|(id, _)| (*id, &[0][..])).collect();
        self.session.submit_behind((first, &fed), (&unknown, &draws), Ids::Drawn)
    }
}

impl<S: AsRef<[Sampler]>> TokenStream<'_, Samplers<S>> {
    /// Whether the constraint of any sampler is complete: no token can follow.
    pub fn is_complete(&self) -> bool {
        self.draw.0.as_ref().iter().any(Sampler::is_complete)
    }
}

impl<D> std::fmt::Debug for TokenStream<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { session, input, ahead, .. } = self;
        let ahead = ahead.is_some();
        f.debug_struct("TokenStream").field("session", session).field("input", input).field("ahead", &ahead).finish()
    }
}

impl<D> Drop for TokenStream<'_, D> {
    fn drop(&mut self) {
        self.session.roll_back();
    }
}
