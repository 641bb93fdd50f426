//! Sessions of a model whose layers several ranks compute: what they tell each other.
//!
//! Rank 0 has the session: its sequences, its calls, what is drawn. The others follow: each has its share of the weights, its part of
//! the cache's rows under the same page numbers, and does what it is told. A step is told once, with the pages of its sequences; then
//! all ranks record the same layers, and after each half of a block they add what each has made of it.

use super::message::RankMessage;
use super::{Session, SessionOptions};
use crate::error::{Error, ErrorKind, RankFault, Result};
use crate::gpu::{Gpu, Tensor};
use crate::model::decoder::Decoder;
use crate::parallel::{halves, merge, Collective, Shard, Transfer};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The ranks of a session, as one of them sees them.
pub(super) struct Ranks {
    /// One call at a time, which holds it.
    inner: Mutex<RanksInner>,
}

struct RanksInner {
    collective: Box<dyn Collective>,
    transfer: Transfer,
    /// Of an exchange.
    values: Vec<f32>,
    /// The stream after the exchange before, in this step: the same on all ranks.
    stream: Vec<f32>,
    /// Of what each rank has found over its own tokens.
    all_lse: Vec<f32>,
    /// What goes out and comes in, in 16 bits.
    packed: [Vec<f32>; 2],
}

/// What a rank does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Leads,
    Follows,
}

/// Words of what ranks compare at the start.
const COMPARED: usize = 5;

impl Session {
    /// A session of a model that several ranks compute, each with a device and a decoder of its own part
    /// ([`LoadOptions::shard`](crate::model::LoadOptions)). This is rank 0; all others call [`follow`](crate::model::follow) at the same time, and follow until this
    /// session is dropped. It is used as any other: what it draws is drawn here. A step is then one submit for each half of a
    /// block, and no step is computed ahead of what is read.
    ///
    /// What differs: [`Session::save`] and [`Session::load`] are refused, since each rank has its own rows; [`Session::save_file`] writes
    /// a file on each, `path` here and `path.rankN` there. [`Session::rebuild`] and [`Session::measure_prefill`] are refused.
    ///
    /// # Errors
    ///
    /// As [`Session::new`], on whichever rank; [`ErrorKind::Argument`] for ranks among which this is not the first, or a decoder of
    /// another part; [`ErrorKind::Rank`] with [`RankFault::Other`] where a rank has another model, other options of loading or
    /// another version of this crate; [`ErrorKind::Unsupported`] in browsers, and for a window where the ranks divide sequences by
    /// context ([`Shard::by_context`]). After an error of the ranks, here or in a later call,
    /// all later steps fail with it: drop the session, and begin again on all ranks.
    pub fn sharded(
        decoder: &Decoder,
        options: SessionOptions,
        collective: Box<dyn Collective>,
        transfer: Transfer,
    ) -> Result<Session> {
        let ranks = Ranks::begin(decoder, collective, transfer, Role::Leads)?;
        ranks.tell(&RankMessage::Begin { options, transfer })?;
        let session = Session::of_part(decoder, options);
        let failed = ranks.outcome(session.as_ref().err())?;
        let mut session = session?;
        failed?;
        session.cache = session.cache.with_journal();
        session.ranks = Some(Arc::new(ranks));
        Ok(session)
    }
}

pub(super) fn message_fault(why: &str) -> RankFault {
    RankFault::Message { rank: 0, why: why.into() }
}

impl Ranks {
    /// After all have found that they belong together.
    pub(super) fn begin(
        decoder: &Decoder,
        collective: Box<dyn Collective>,
        transfer: Transfer,
        role: Role,
    ) -> Result<Self> {
        let (values, stream, all_lse) = (Vec::new(), Vec::new(), Vec::new());
        let inner = RanksInner { collective, transfer, values, stream, all_lse, packed: Default::default() };
        let ranks = Ranks { inner: Mutex::new(inner) };
        let own = ranks.check_own(decoder, role);
        ranks.abandoned_unless(own)?;
        ranks.compare(decoder)?;
        Ok(ranks)
    }

    /// As rank 0 has it.
    pub(super) fn set_transfer(&self, transfer: Transfer) {
        self.lock().transfer = transfer;
    }

    /// What needs no other rank.
    fn check_own(&self, decoder: &Decoder, role: Role) -> Result<()> {
        if cfg!(target_arch = "wasm32") {
            return Err(
                ErrorKind::Unsupported { what: "several ranks in a browser, where no call waits".into() }.into()
            );
        }
        let shard = Shard::of(&*self.lock().collective)?;
        if (role == Role::Leads) != shard.is_first() {
            let wanted =
                if role == Role::Leads { "Session::sharded is for rank 0" } else { "follow is for the others" };
            let why = format!("this is rank {} of {}: {wanted}", shard.rank(), shard.size());
            return Err(ErrorKind::argument("collective", why));
        }
        let here = decoder.shard();
        if (here.rank(), here.size()) != (shard.rank(), shard.size()) {
            let why = format!(
                "holds part {} of {}, this is rank {} of {}",
                here.rank(),
                here.size(),
                shard.rank(),
                shard.size()
            );
            return Err(ErrorKind::argument("decoder", why));
        }
        Ok(())
    }

    /// Fails, on every rank, where one has another model.
    fn compare(&self, decoder: &Decoder) -> Result<()> {
        let version = crate::io::xxh64(env!("CARGO_PKG_VERSION").as_bytes(), 0);
        let identity = decoder.inner.identity;
        let halves = |n: u64| [n as u32, (n >> 32) as u32]; // both halves of it
        let words = [halves(version), halves(identity)].concat();
        let own: Vec<f32> = words.into_iter().chain([decoder.keeps_explicit().into()]).map(f32::from_bits).collect();
        let mut inner = self.lock();
        let mut all = vec![0.0; COMPARED * inner.collective.size()];
        inner.collective.all_gather(&own, &mut all)?;
        drop(inner);
        let number = |words: &[f32]| words.iter().rev().fold(0u64, |n, word| n << 32 | u64::from(word.to_bits()));
        let first = all[..COMPARED].to_vec();
        for (rank, words) in all.chunks_exact(COMPARED).enumerate() {
            let parts = [("version", 0..2), ("model, its config or how it is loaded", 2..4), ("explicit form", 4..5)];
            for (what, part) in parts {
                let (theirs, first) = (number(&words[part.clone()]), number(&first[part]));
                if theirs != first {
                    let (theirs, first) = (format!("{theirs:016x}"), format!("{first:016x}"));
                    return Err(self.error(RankFault::Other { what, rank, theirs, first }));
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, RanksInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn error(&self, fault: RankFault) -> Error {
        let inner = self.lock();
        ErrorKind::Rank { rank: inner.collective.rank(), size: inner.collective.size(), fault }.into()
    }

    /// Tells the others that there is no going on, because of this error, which it returns.
    pub(super) fn abandon(&self, error: Error) -> Error {
        self.lock().collective.abandon(&error.to_string());
        error
    }

    /// The same where there is an error.
    pub(super) fn abandoned_unless<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.abandon(error))
    }

    /// Rank 0's.
    pub(super) fn tell(&self, message: &RankMessage) -> Result<()> {
        self.lock().collective.broadcast(&mut message.encode())
    }

    /// What rank 0 tells next.
    pub(super) fn heard(&self) -> Result<RankMessage> {
        let mut bytes = Vec::new();
        self.lock().collective.broadcast(&mut bytes)?;
        match RankMessage::decode(&bytes) {
            Some(message) => Ok(message),
            None => {
                Err(self.abandon(self.error(message_fault(&format!("none of this version, {} bytes", bytes.len())))))
            }
        }
    }

    /// How each rank has fared with what all did at once, and may do again: the first error of another rank, if there is one.
    ///
    /// Errors: of the exchange.
    pub(super) fn outcome(&self, own: Option<&Error>) -> Result<Result<()>> {
        const WORDS: usize = 65;
        let mut inner = self.lock();
        let text = own.map(Error::to_string).unwrap_or_default();
        let bytes = &text.as_bytes()[..text.len().min(4 * (WORDS - 1))];
        let mut words = vec![0u32; WORDS];
        words[0] = if own.is_some() { 1 + bytes.len() as u32 } else { 0 };
        for (word, bytes) in words[1..].iter_mut().zip(bytes.chunks(4)) {
            let mut four = [0; 4];
            four[..bytes.len()].copy_from_slice(bytes);
            *word = u32::from_le_bytes(four);
        }
        let (rank, size) = (inner.collective.rank(), inner.collective.size());
        let own: Vec<f32> = words.into_iter().map(f32::from_bits).collect();
        let mut all = vec![0.0; WORDS * size];
        inner.collective.all_gather(&own, &mut all)?;
        for (other, words) in all.chunks_exact(WORDS).enumerate().filter(|(other, _)| *other != rank) {
            if let Some(len) = words[0].to_bits().checked_sub(1) {
                let bytes: Vec<u8> = words[1..].iter().flat_map(|word| word.to_bits().to_le_bytes()).collect();
                let text = &bytes[..bytes.len().min(len as usize)];
                let message = String::from_utf8_lossy(text).into_owned();
                return Ok(Err(
                    ErrorKind::Rank { rank, size, fault: RankFault::Failed { rank: other, message } }.into()
                ));
            }
        }
        Ok(Ok(()))
    }

    /// The file of a rank's rows, where that of rank 0 is `path`.
    pub(super) fn own_path(&self, path: &str) -> String {
        format!("{path}.rank{}", self.lock().collective.rank())
    }

    /// A step begins: its first exchange is of all of the stream.
    pub(super) fn begin_step(&self) {
        self.lock().stream.clear();
    }

    /// What each rank has found over its own tokens, (rows, heads, width) and the log-sum-exp, (rows, heads): the first becomes on all what
    /// attention over the tokens of all finds.
    pub(super) fn merge(&self, gpu: &Gpu, [found, lse]: [&Tensor; 2]) -> Result<()> {
        let mut inner = self.lock();
        let RanksInner { collective, transfer, values, all_lse, packed, .. } = &mut *inner;
        let width = found.shape().last().copied().unwrap_or(1);
        gpu.exchange_beside(&[found, lse], values, |values| {
            let (values, own) = values.split_at_mut(found.len());
            all_lse.resize(own.len() * collective.size(), 0.0);
            collective.all_gather(own, all_lse)?;
            merge::weigh(values, width, own, all_lse);
            match transfer {
                Transfer::F32 => collective.all_reduce(values),
                Transfer::F16 => sum_in_halves(&mut **collective, (values, width), None, packed),
            }
        })
    }

    /// What a half of a block made, (rows, hidden): of rank 0 the stream with what it adds, of the others what they add. Becomes
    /// the stream on all.
    pub(super) fn exchange(&self, gpu: &Gpu, x: &Tensor) -> Result<()> {
        let mut inner = self.lock();
        let RanksInner { collective, transfer, values, stream, packed, .. } = &mut *inner;
        let width = x.shape().last().copied().unwrap_or(1);
        gpu.exchange(x, values, |values| {
            // The stream itself is never rounded: before the first exchange only the device has it.
            if *transfer == Transfer::F32 || stream.len() != values.len() {
                collective.all_reduce(values)?;
            } else {
                sum_in_halves(&mut **collective, (values, width), Some(stream), packed)?;
            }
            if *transfer != Transfer::F32 {
                stream.clear();
                stream.extend_from_slice(values);
            }
            Ok(())
        })
    }
}

/// The sum of what all ranks have, in 16 bits. Of rank 0 the values are the stream of before, where there is one, and what it adds.
fn sum_in_halves(
    collective: &mut dyn Collective,
    (values, width): (&mut [f32], usize),
    stream: Option<&[f32]>,
    [own, all]: &mut [Vec<f32>; 2],
) -> Result<()> {
    if let Some(stream) = stream.filter(|_| collective.rank() == 0) {
        values.iter_mut().zip(stream).for_each(|(value, before)| *value -= before);
    }
    own.clear();
    halves::pack(values, width, own);
    all.resize(own.len() * collective.size(), 0.0);
    collective.all_gather(own, all)?;
    match stream {
        Some(stream) => values.copy_from_slice(stream),
        None => values.fill(0.0),
    }
    // Rounded on every rank, its own, too: the sums have the same bits.
    all.chunks_exact(own.len().max(1)).for_each(|rank| halves::add(rank, width, values));
    Ok(())
}

impl Drop for Ranks {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if inner.collective.rank() == 0 {
            // Where this fails the others have heard of it, or are gone.
            let _ = inner.collective.broadcast(&mut RankMessage::End.encode());
        }
    }
}
