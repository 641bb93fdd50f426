//! A model on several devices: rank 0 is whoever calls, each other rank a thread of this program that follows.

use latten::model::{follow, Decoder, Session, SessionOptions};
use latten::parallel::{local, Collective, Shard, Transfer};
use latten::{ErrorKind, Gpu, GpuOptions, Result};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than a software GPU compiles the kernels of a step.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Loads a rank's part on its device.
pub type LoadPart = dyn Fn(&Gpu, Shard) -> Result<Decoder> + Send + Sync;

/// The ranks behind the first. Dropped, it waits for their end, which comes with that of the session: drop that before.
#[derive(Debug)]
pub struct Followers {
    threads: Vec<JoinHandle<()>>,
}

/// A session, with what follows it, if it is one of several ranks.
pub struct Led {
    // In this order they are dropped.
    session: Session,
    _followers: Option<Followers>,
}

impl Led {
    /// What [`session`] makes, with the ranks that follow it.
    #[allow(dead_code)] // of a scheduler's session, which is the scheduler's
    pub fn new(session: Session, followers: Option<Followers>) -> Self {
        Led { session, _followers: followers }
    }
}

impl Deref for Led {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Led {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// The first rank, and those that follow it.
///
/// Errors: [`ErrorKind::Argument`] for numbers of ranks that there cannot be.
pub fn start(
    ranks: usize,
    by_context: bool,
    options: &GpuOptions,
    load: Arc<LoadPart>,
) -> Result<(local::LocalRank, Shard, Followers)> {
    let part = |shard: Shard| if by_context { shard.by_context() } else { shard };
    let mut all = local::ranks(ranks, TIMEOUT)?;
    let first = all.remove(0); // no ranks were refused
    let shard = part(Shard::of(&first)?);
    let mut threads = Vec::new();
    for mut rank in all {
        let (shard, options, load) = (part(Shard::of(&rank)?), options.clone(), load.clone());
        threads.push(std::thread::spawn(move || {
            let made = device(&options, shard.rank()).and_then(|gpu| load(&gpu, shard));
            let ended = match made {
                Ok(decoder) => follow(&decoder, Box::new(rank)),
                // Rank 0 hears why, and tells whoever waits for it.
                Err(error) => {
                    rank.abandon(&error.to_string());
                    Err(error)
                }
            };
            if let Err(error) = ended {
                log::error!(target: "latten", "rank {}: {error}", shard.rank());
            }
        }));
    }
    Ok((first, shard, Followers { threads }))
}

/// A session that `rank` leads, or of one device.
///
/// Errors: those of the library.
pub fn session(decoder: &Decoder, options: SessionOptions, rank: Option<local::LocalRank>) -> Result<Session> {
    match rank {
        Some(rank) => Session::sharded(decoder, options, Box::new(rank), Transfer::F32),
        None => Session::new(decoder, options),
    }
}

/// A rank's device: an adapter of its own, if there are as many; else another device of the first.
fn device(options: &GpuOptions, rank: usize) -> Result<Gpu> {
    let with = |number| pollster::block_on(Gpu::with_options(GpuOptions { number, ..options.clone() }));
    match with(options.number + rank) {
        Err(error) if matches!(error.kind(), ErrorKind::NoAdapter { .. }) => {
            let what = "shares the first adapter, as there are too few: that is slower than one rank";
            log::warn!(target: "latten", "rank {rank} {what}");
            with(options.number)
        }
        device => device,
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
