//! The ranks that follow the first: they do as they are told, step by step.

use super::message::RankMessage;
use super::ranks::{message_fault, Ranks, Role};
use super::step::{RowsOfStep, StepEnds};
use super::Session;
use crate::cache::{Mirror, Save, SaveSequence};
#[cfg(doc)]
use crate::error::RankFault;
use crate::error::{ErrorKind, Result};
use crate::gpu::ready;
use crate::model::decoder::Decoder;
use crate::parallel::{Collective, Transfer};
use std::future::Future;

/// Does as rank 0 tells ([`Session::sharded`]), until its session is dropped. `decoder` is this rank's part of the model.
///
/// # Errors
///
/// As [`Session::sharded`]; those of a step, which end the work of all ranks.
pub fn follow(decoder: &Decoder, collective: Box<dyn Collective>) -> Result<()> {
    let ranks = Ranks::begin(decoder, collective, Transfer::F32, Role::Follows)?;
    let RankMessage::Begin { options, transfer } = ranks.heard()? else {
        return Err(ranks.abandon(ranks.error(message_fault("not the first"))));
    };
    ranks.set_transfer(transfer);
    let session = Session::of_part(decoder, options);
    let failed = ranks.outcome(session.as_ref().err())?;
    let mut session = session?;
    failed?;
    loop {
        let message = ranks.heard()?;
        match message {
            RankMessage::End => return Ok(()),
            RankMessage::Step { ids, policy, mirror } => {
                if session.decode.policy() != policy {
                    session = session.with_policy(policy);
                }
                if let Err(error) = session.follow_step(&ranks, &ids, &mirror) {
                    return Err(ranks.abandon(error));
                }
            }
            RankMessage::Save { path, tokens, mirror } => {
                let saved = session.follow_save(&ranks.own_path(&path), &tokens, &mirror);
                let _ = ranks.outcome(saved.as_ref().err())?; // rank 0 tells whoever called
            }
            RankMessage::Load { path, mirror } => {
                let loaded = session.follow_load(&ranks.own_path(&path), &mirror);
                let _ = ranks.outcome(loaded.as_ref().err())?;
            }
            RankMessage::Begin { .. } => return Err(ranks.abandon(ranks.error(message_fault("a second beginning")))),
        }
    }
}

/// The result of what waits for nothing but the device, which outside browsers it does by itself.
fn waited<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let browser = || Err(ErrorKind::Unsupported { what: "waiting in a browser".into() }.into());
    ready(future).unwrap_or_else(browser)
}

impl Session {
    fn follow_step(&mut self, ranks: &Ranks, ids: &[u32], mirror: &Mirror) -> Result<()> {
        let losses = self.decoder.gpu().losses();
        self.decoder.inner.embedding.check_ids(ids)?;
        let reserved = |(all, sequence): (usize, &crate::cache::MirroredSequence)| all + sequence.numbers[4] as usize;
        let rows = mirror.sequences.iter().fold(0, |all, sequence| reserved((all, sequence)));
        if rows != ids.len() || rows == 0 || rows > self.capacity() {
            let why = format!("{} tokens of {rows} reserved, in steps of {} at most", ids.len(), self.capacity());
            return Err(ErrorKind::argument("ids", why));
        }
        let sequences = self.cache.mirror(mirror)?;
        let id_rows = self.buffers.ids.view(&[rows])?;
        self.decoder.gpu().upload(&id_rows, ids)?;
        let step =
            RowsOfStep { rows, id_rows, sequences: &sequences, copies: &[], guesses: None, ends: StepEnds::default() };
        self.record_rows(step, Some(ranks))?;
        self.decoder.gpu().submit()?;
        self.decoder.gpu().expect_no_loss(losses, "this step")
    }

    fn follow_save(&mut self, path: &str, tokens: &[Vec<u32>], mirror: &Mirror) -> Result<()> {
        let ids = self.cache.mirror(mirror)?;
        let sequences: Vec<SaveSequence<'_>> =
            ids.iter().zip(tokens).map(|(id, tokens)| SaveSequence { id: *id, tokens }).collect();
        let fingerprint = self.fingerprint();
        waited(self.cache.save_file(Save { sequences: &sequences, fingerprint: &fingerprint }, path, |_| {}))
    }

    fn follow_load(&mut self, path: &str, mirror: &Mirror) -> Result<()> {
        let ids = self.cache.mirror(mirror)?;
        let fingerprint = self.fingerprint();
        waited(self.cache.load_file_into(&ids, &fingerprint, path))
    }
}
