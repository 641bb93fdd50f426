//! One step of a call: its commands are submitted, and later its results are read. Between the two the host is free.

use super::buffers::Buffers;
use super::draws::{record_draws, DrawKinds, StepDraws};
use super::feed::{no_probabilities, Call, Fed, Undrawn};
use super::ids::{id_copy, joined, Ids};
use super::message::RankMessage;
use super::ranks::Ranks;
use super::schedule::TokenRun;
use super::Session;
use crate::cache::SeqId;
use crate::error::{ErrorKind, Result};
use crate::gpu::{elements, DType, Download, HostPart, Run, Tensor};
use crate::model::decoder::DecoderInner;
use crate::model::layers::attention::{AttentionStep, StepPlans};
use crate::model::layers::block::Exchange;
use crate::nn::{LinearArgs, Sample, Span};

/// A step that is with the device: its pages are reserved, not committed.
pub(crate) struct Submitted {
    pub(super) parts: Vec<TokenRun>,
    /// Whether the tokens that it feeds are committed, as they are where the next step is under way, too.
    pub(crate) committed: bool,
    /// Batches that were lost before it was recorded.
    pub(super) losses: u64,
    /// Of each row of log-probabilities, where there are any: the tokens beside the drawn one.
    logprobs: Option<usize>,
    /// Whether it has guesses that the host does not know.
    guessed: bool,
    /// Sequences that get no token, and why.
    faults: Vec<(usize, ErrorKind)>,
    /// Tokens first, then log-probabilities, then logits, or else the most likely tokens, and all that it fed where it has guesses, as far as the call wants them; none where the step ends no sequence and nothing of it is
    /// wanted.
    results: Option<Download>,
}

impl Session {
    /// Reserves, uploads, records and submits one step, with copies of the results that are wanted: one submit.
    pub(super) fn submit_step(&mut self, call: &Call<'_>, parts: Vec<TokenRun>) -> Result<Submitted> {
        self.submit_step_of(call, parts, Ids::Host)
    }

    /// [`Session::submit_step`] of tokens from where `ids` says.
    pub(super) fn submit_step_of(&mut self, call: &Call<'_>, parts: Vec<TokenRun>, ids: Ids<'_>) -> Result<Submitted> {
        let rows = call.want.draws().unwrap_or_default();
        let ending = parts.iter().filter(|p| p.last);
        let rows = ending.filter_map(|p| Some((p.sequence, rows.get(p.sequence)?))).collect();
        let mut draws = StepDraws::new(rows, |sequence| ids.drawn(sequence));
        let (losses, clock) = (self.decoder.gpu().losses(), self.decoder.gpu().clock());
        let rows = match draws.is_constrained() {
            false => self.record_step(call, &parts, Some(&draws), ids)?,
            true => self.record_constrained(call, &parts, &mut draws, ids)?,
        };
        let guessed = ids.guesses().is_some();
        let (gpu, b) = (self.decoder.gpu(), &self.buffers);
        gpu.stop(clock, HostPart::Record);
        let ending = parts.iter().filter(|p| p.last).count();
        let logprobs = draws.kinds().and_then(|kinds| kinds.logprobs());
        let all = call.want.all();
        let mut wanted = Vec::with_capacity(3);
        if call.want.tokens() && ending > 0 {
            wanted.push(b.tokens.view(&[ending])?);
        }
        if let Some(count) = logprobs {
            wanted.extend(b.shaped.logprobs_of(ending, count)?);
        }
        if call.want.logits() && (ending > 0 || all) {
            wanted.push(b.logits.view(&[if all { rows } else { ending }, self.decoder.config().vocab_size])?);
        }
        if let (true, Some(most_likely)) = (call.want.all_tokens(), &b.most_likely) {
            wanted.push(most_likely.tokens.view(&[rows])?);
        }
        if guessed {
            wanted.push(b.ids.view(&[rows])?);
        }
        let results = match wanted.as_slice() {
            [] => gpu.submit().map(|()| None)?,
            wanted => Some(gpu.start_download(&wanted.iter().collect::<Vec<_>>())?),
        };
        Ok(Submitted { parts, committed: false, losses, logprobs, guessed, faults: draws.into_faults(), results })
    }

    /// Records and submits what gives the logits while masks are made, and then records the draws.
    fn record_constrained(
        &mut self,
        call: &Call<'_>,
        parts: &[TokenRun],
        draws: &mut StepDraws<'_>,
        ids: Ids<'_>,
    ) -> Result<usize> {
        let vocab = self.decoder.config().vocab_size;
        let rows = draws.with_masks(vocab, || {
            let rows = self.record_step(call, parts, None, ids)?;
            self.decoder.gpu().submit().map(|()| rows)
        })?;
        self.write_draws(draws)?;
        if let Some(kinds) = draws.kinds() {
            let (model, ending) = (&*self.decoder.inner, parts.iter().filter(|p| p.last).count());
            model.gpu.together(|| record_draws(model, &self.buffers, ending, kinds))?;
        }
        Ok(rows)
    }

    /// Waits for a step, adds its results to those of the call, and commits its tokens.
    pub(super) async fn read_step(&mut self, call: &Call<'_>, step: Submitted, fed: &mut Fed) -> Result<()> {
        let parts = self.read_results(call, step, fed).await?;
        let tokens = |part: &TokenRun| {
            let (id, tokens) = call.batch[part.sequence];
            // What no token came of is not kept.
            let kept = if call.undrawn.spoils(part, &fed.tokens) { 0..0 } else { part.tokens.clone() };
            (id, &tokens[kept])
        };
        self.cache.commit_tokens(&parts.iter().map(tokens).collect::<Vec<_>>())
    }

    /// Commits the tokens of a step's parts.
    pub(super) fn commit_parts(&mut self, batch: &[(SeqId, &[u32])], parts: &[TokenRun]) -> Result<()> {
        let tokens = parts.iter().map(|part| (batch[part.sequence].0, &batch[part.sequence].1[part.tokens.clone()]));
        self.cache.commit_tokens(&tokens.collect::<Vec<_>>())
    }

    /// Waits for a step and adds its results to those of the call. Returns its parts, which are still to be committed.
    pub(super) async fn read_results(&self, call: &Call<'_>, step: Submitted, fed: &mut Fed) -> Result<Vec<TokenRun>> {
        let Submitted { parts, committed, losses, logprobs, guessed, faults, results } = step;
        let (gpu, vocab) = (self.decoder.gpu(), self.decoder.config().vocab_size);
        let mut read = match results {
            Some(results) => gpu.finish_download(results).await?.into_iter(),
            // In browsers errors come late.
            None => gpu.answered().await.map(|()| Vec::new().into_iter())?,
        };
        let ending: Vec<&TokenRun> = parts.iter().filter(|p| p.last).collect();
        if call.want.tokens() && !ending.is_empty() {
            let tokens: Vec<u32> = elements(DType::U32, &read.next().unwrap_or_default());
            ending.iter().zip(tokens).for_each(|(p, token)| fed.tokens[p.sequence] = token);
            faults.iter().for_each(|(sequence, _)| fed.tokens[*sequence] = Sample::NO_TOKEN);
            fed.faults.extend(faults);
            self.check_drawn(call, (&ending, committed), fed)?;
        }
        if let Some(count) = logprobs {
            let words: Vec<u32> = elements(DType::U32, &read.next().unwrap_or_default());
            let pairs: Vec<(u32, f32)> = words.chunks_exact(2).map(|pair| (pair[0], f32::from_bits(pair[1]))).collect();
            for (part, row) in ending.iter().zip(pairs.chunks_exact(1 + count)) {
                fed.logprobs[part.sequence] = row.to_vec();
            }
        }
        if call.want.all_tokens() {
            let mut tokens = elements::<u32>(DType::U32, &read.next().unwrap_or_default()).into_iter();
            for part in &parts {
                fed.all_tokens[part.sequence].extend(tokens.by_ref().take(part.tokens.len()));
            }
        }
        if guessed {
            fed.ids = elements(DType::U32, &read.next().unwrap_or_default());
        }
        let mut values = elements::<f32>(DType::F32, &read.next().unwrap_or_default()).into_iter();
        let all = call.want.all();
        for part in parts.iter().filter(|p| call.want.logits() && (all || p.last)) {
            let rows = if all { part.tokens.len() } else { 1 };
            fed.logits[part.sequence].extend(values.by_ref().take(rows * vocab));
        }
        // Whoever lost them: nothing of this step counts.
        gpu.expect_no_loss(losses, "this step")?;
        Ok(parts)
    }

    /// Fails where no token was drawn for one of the parts that end, if that is to fail.
    fn check_drawn(&self, call: &Call<'_>, (ending, committed): (&[&TokenRun], bool), fed: &Fed) -> Result<()> {
        let fails = matches!(call.undrawn, Undrawn::Fails);
        match ending.iter().find(|part| fails && call.undrawn.spoils(part, &fed.tokens)) {
            Some(part) => {
                if let Some(fault) = fed.fault(part.sequence) {
                    return Err(fault.clone().into());
                }
                let id = call.batch[part.sequence].0;
                let new = if committed { 0 } else { part.tokens.len() };
                let last = (self.len(id)? + new).saturating_sub(1);
                Err(no_probabilities(id, last))
            }
            None => Ok(()),
        }
    }

    /// Reserves, uploads and records one step, with the results that are wanted, and with the draws that are given. Returns its
    /// rows.
    pub(super) fn record_step(
        &mut self,
        call: &Call<'_>,
        parts: &[TokenRun],
        draws: Option<&StepDraws<'_>>,
        from: Ids<'_>,
    ) -> Result<usize> {
        let (all, most_likely) = (call.want.all(), call.want.all_tokens());
        let model = &*self.decoder.inner;
        let gpu = &model.gpu;
        let (mut ids, mut sequences, mut last_rows, mut wanted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut rows, mut copies) = (0, Vec::new());
        for part in parts {
            let (id, tokens) = call.batch[part.sequence];
            wanted.push((id, part.tokens.len()));
            sequences.push(id);
            if let Ids::Some(_) = from {
                copies.extend(from.drawn(part.sequence).map(|token| id_copy(token, rows)));
            }
            ids.extend_from_slice(&tokens[part.tokens.clone()]);
            rows += part.tokens.len();
            if part.last {
                last_rows.push(rows as u32 - 1);
            }
        }
        let guesses = from.guesses().map(|(guesses, count)| {
            copies.push(Run { from: 0, to: 4 * (rows - count) as u64, size: 4 * count as u64 });
            guesses
        });
        self.cache.reserve_each(&wanted)?;
        // All writes come before all commands, so that the step is one submit.
        let (ending, b) = (last_rows.len(), &mut self.buffers);
        let id_rows = match from {
            Ids::Drawn => b.tokens.view(&[rows])?,
            _ => b.ids.view(&[rows])?,
        };
        if !matches!(from, Ids::Drawn) && copies.len() < rows {
            gpu.upload(&id_rows, &ids)?;
        }
        if ending > 0 && !all {
            if ending < rows {
                gpu.upload(&b.last_rows.view(&[ending])?, &last_rows)?;
            }
            if let Some(draws) = draws {
                self.write_draws(draws)?;
            }
        }
        let ends = StepEnds { ending, all, most_likely, draws: draws.and_then(StepDraws::kinds) };
        let step = RowsOfStep { rows, id_rows, sequences: &sequences, copies: &joined(copies), guesses, ends };
        match self.ranks.clone() {
            Some(ranks) => self.record_with_ranks(step, &ranks, ids)?,
            None => self.record_rows(step, None)?,
        }
        Ok(rows)
    }

    /// Tells the other ranks of a step and records this one's part. Once they are told, an error here is the end for all.
    fn record_with_ranks(&mut self, step: RowsOfStep<'_>, ranks: &Ranks, ids: Vec<u32>) -> Result<()> {
        if self.decoder.gpu().only_names() {
            return self.record_rows(step, None); // whoever names kernels exchanges nothing
        }
        let (policy, mirror) = (self.decode.policy(), self.cache.told(step.sequences)?);
        ranks.tell(&RankMessage::Step { ids, policy, mirror })?;
        ranks.abandoned_unless(self.record_rows(step, Some(ranks)))
    }

    /// Records what is reserved and uploaded, with what the ranks exchange.
    pub(super) fn record_rows(&mut self, step: RowsOfStep<'_>, ranks: Option<&Ranks>) -> Result<()> {
        let RowsOfStep { rows, id_rows, sequences, copies, guesses, ends } = step;
        let model = &*self.decoder.inner;
        let gpu = &model.gpu;
        let plans = StepPlans::new(&self.decode, &self.cache, sequences, self.prefill.as_mut())?;
        let further = self.further.plans(&self.cache, sequences)?;
        let slots = self.cache.slots(sequences)?; // and angles
        let from = guesses.unwrap_or(&self.buffers.tokens);
        gpu.record_copies(&from.buffer, &self.buffers.ids.buffer, copies)?;
        let step = AttentionStep {
            rows,
            cache: &mut self.cache,
            decode: &self.decode,
            plan: plans.absorbed.as_ref(),
            kinds: Some((&self.further, &further)),
            explicit: plans.explicit(),
            sequences,
            appending: self.buffers.appending.as_deref(),
            wide: self.buffers.rotate_wide.as_ref(),
        };
        let x = self.buffers.scratch.x.view(&[rows, model.config.hidden_size])?;
        if let Some(ranks) = ranks {
            ranks.begin_step();
        }
        let share = &model.share;
        let found = match share.shard.is_by_context() {
            true => Some(self.buffers.scratch.found(&share.config, rows)?),
            false => None,
        };
        let mut halves = 0; // of blocks; attention is the first of each
        let mut exchange = || {
            halves += 1;
            match (ranks, &found) {
                (Some(ranks), Some([found, lse])) if halves % 2 == 1 => ranks.merge(gpu, [found, lse]),
                (Some(ranks), _) => ranks.exchange(gpu, &x),
                (None, _) => Ok(()),
            }
        };
        let plan = match (&plans.absorbed, plans.explicit()) {
            (Some(plan), None) if rows == sequences.len() => plan,
            _ => return record_commands(model, &self.buffers, (&id_rows, ends), (step, &mut exchange)),
        };
        // Steps of a token for each sequence repeat: this, and the buffers, is all that their commands hang on.
        let StepEnds { ending, all, most_likely, draws } = ends;
        let mut key: Vec<u64> = vec![rows as u64, ending as u64, u64::from(all) + u64::from(most_likely)];
        self.buffers.shaped.extend_key(draws, &mut key);
        key.extend([id_rows.buffer.id(), self.buffers.logits.buffer.id(), slots.buffer.id()]);
        self.decode.extend_key(plan, &mut key);
        self.further.extend_key(&further, &mut key);
        let ends = (&id_rows, ends);
        match ranks {
            Some(_) => gpu.record_again_cut(&key, &mut exchange, |exchange| {
                record_commands(model, &self.buffers, ends, (step, exchange))
            }),
            None => gpu.record_again(&key, || record_commands(model, &self.buffers, ends, (step, &mut exchange))),
        }
    }
}

/// A step whose pages are reserved, and whose tokens are on the device or will be.
pub(super) struct RowsOfStep<'a> {
    pub(super) rows: usize,
    /// (rows) U32
    pub(super) id_rows: Tensor,
    pub(super) sequences: &'a [SeqId],
    /// Of drawn tokens, or guesses, to where ids are read.
    pub(super) copies: &'a [Run],
    pub(super) guesses: Option<&'a Tensor>,
    pub(super) ends: StepEnds,
}

/// What is made of the rows at the end of a step.
#[derive(Clone, Copy, Default)]
pub(super) struct StepEnds {
    /// Rows that are their sequence's last.
    ending: usize,
    /// Whether of all rows, not of the last ones alone.
    all: bool,
    /// Whether the most likely tokens are found.
    most_likely: bool,
    /// How tokens are drawn, if they are.
    draws: Option<DrawKinds>,
}

/// Records the commands of a step, once all that they read from the host is written. Kernels that are not there yet are
/// compiled together.
fn record_commands(
    model: &DecoderInner,
    b: &Buffers,
    ends: (&Tensor, StepEnds),
    step: (AttentionStep<'_>, Exchange<'_>),
) -> Result<()> {
    model.gpu.together(|| record_blocks(model, b, ends, step))
}

fn record_blocks(
    model: &DecoderInner,
    b: &Buffers,
    (id_rows, ends): (&Tensor, StepEnds),
    (mut step, exchange): (AttentionStep<'_>, Exchange<'_>),
) -> Result<()> {
    let (rows, StepEnds { ending, all, most_likely, draws }) = (step.rows, ends);
    let scratch = b.scratch.first(rows)?;
    model.embedding.run(id_rows, &scratch.x)?;
    for (i, block) in model.blocks.iter().enumerate() {
        block.run(i, &scratch, &mut step, exchange)?;
    }
    let logits = Span::of(&b.logits);
    if all {
        model.head.run(LinearArgs::new(rows, Span::of(&scratch.x), logits))?;
        if let (true, Some(most_likely)) = (most_likely, &b.most_likely) {
            model.sample.run(logits, &most_likely.samplers.view(&[rows, 4])?, &most_likely.tokens.view(&[rows])?)?;
        }
    } else if ending > 0 {
        // Where every row is a last one (plain decode), there is nothing to gather.
        let last = if ending == rows { &scratch.x } else { &b.last };
        if ending < rows {
            b.gather.run(&b.last_rows.view(&[ending])?, &b.last.view(&[ending, model.config.hidden_size])?)?;
        }
        model.head.run(LinearArgs::new(ending, Span::of(last), logits))?;
        if let Some(kinds) = draws {
            record_draws(model, b, ending, kinds)?;
        }
    }
    Ok(())
}
