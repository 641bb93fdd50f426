//! What ranks exchange: devices, each with its part of a model, that compute one step together.
//!
//! A rank is one device and the thread or process that drives it. wgpu has no transfer between devices, so what they exchange goes
//! through the host: this room knows numbers and bytes, no device. [`local`] is for threads of one process; other engines implement
//! [`Collective`] (`latten-mpi`, a package of its own, for processes).
//!
//! # What every engine promises
//!
//! - **Equal bits.** A sum is formed in the order of the ranks, whoever forms it: every rank gets the same bits. What follows from
//!   it, such as a residual stream, is the same on all of them.
//! - **No deadlock.** A rank that fails, is gone, or does not come in time makes the call of every other rank return
//!   [`ErrorKind::Rank`]. After that the ranks are not used again: each later call returns the error of the first.
//! - **Calls match.** All ranks call the same in the same order with the same sizes; what does not match is
//!   [`RankFault::Calls`] or [`RankFault::Sizes`] on every rank, not a wrong sum.

pub(crate) mod halves;
pub mod local;
pub(crate) mod merge;

pub use halves::Transfer;

#[cfg(doc)]
use crate::error::RankFault;
use crate::error::{ErrorKind, Result};

/// The ranks that a device computes with.
pub trait Collective: Send {
    /// The number of this one, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Each value becomes the sum of those of all ranks in its place, added in the order of the ranks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Rank`].
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<()>;

    /// Gives each rank the values of all, in the order of the ranks: `all` has `size` times as many as `own`. Bits are not changed,
    /// whatever numbers they are.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Rank`]; [`ErrorKind::Shape`] for an `all` of another length, which is found before anything is exchanged.
    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<()>;

    /// Gives every rank the bytes of rank 0, which may be any number. Another rank waits without a limit for rank 0 to come, as for a
    /// command that is asked for next, but not for a rank 0 that is gone.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Rank`].
    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<()>;

    /// Tells all ranks that this one cannot go on: their calls return [`RankFault::Failed`] with these words.
    fn abandon(&mut self, why: &str);
}

/// One of several equal parts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shard {
    rank: usize,
    size: usize,
    by_context: bool,
}

/// Ranks at most.
const MOST_RANKS: usize = 1 << 10;

impl Shard {
    /// Part `rank` of `size`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a `size` of 0 or above 1,024, and a `rank` that is not below it.
    pub fn new(rank: usize, size: usize) -> Result<Self> {
        if size == 0 || size > MOST_RANKS {
            return Err(ErrorKind::argument("size", format!("{size} ranks, wanted 1..={MOST_RANKS}")));
        }
        match rank < size {
            true => Ok(Shard { rank, size, by_context: false }),
            false => Err(ErrorKind::argument("rank", format!("{rank} is not below the {size} ranks"))),
        }
    }

    /// All of it: the only part of one.
    pub const fn whole() -> Self {
        Shard { rank: 0, size: 1, by_context: false }
    }

    /// That of a rank of these.
    ///
    /// # Errors
    ///
    /// As [`Shard::new`].
    pub fn of(ranks: &dyn Collective) -> Result<Self> {
        Self::new(ranks.rank(), ranks.size())
    }

    /// The same part, with attention divided by context and not by heads (decode context parallelism): each rank has the attention's
    /// weights of all heads, and of every sequence's cached tokens `1 / size`, dealt out in turns. What each rank attends over its
    /// tokens is merged exactly. The feed-forward part is divided as ever. For MLA and MQA, whose caches cannot be divided by heads.
    #[must_use]
    pub const fn by_context(self) -> Self {
        Shard { by_context: self.size > 1, ..self }
    }

    /// Whether it is one of several parts whose attention is divided by context ([`Shard::by_context`]).
    pub const fn is_by_context(&self) -> bool {
        self.by_context
    }

    /// Its number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many parts there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether it is the first: what is not divided but added, such as a bias, is its part.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// This part of `count` things, one behind the other; `name` is whose count it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where they cannot be divided equally.
    pub(crate) fn part(&self, name: &'static str, count: usize) -> Result<std::ops::Range<usize>> {
        match count.is_multiple_of(self.size) {
            true => Ok(self.rank * (count / self.size)..(self.rank + 1) * (count / self.size)),
            false => Err(self.indivisible(name, count)),
        }
    }

    pub(crate) fn indivisible(&self, name: &'static str, count: usize) -> crate::error::Error {
        ErrorKind::argument(name, format!("{count} cannot be divided among {} ranks", self.size))
    }
}

/// Sums `all`, the values of one rank after the other, into `sums`, in the order of the ranks: for engines, whose sums must have
/// the same bits everywhere. `sums` has the length of one rank's values.
pub fn sum_in_order(all: &[f32], sums: &mut [f32]) {
    let mut ranks = all.chunks_exact(sums.len().max(1));
    if let Some(first) = ranks.next() {
        sums.copy_from_slice(first);
    }
    for rank in ranks {
        sums.iter_mut().zip(rank).for_each(|(sum, value)| *sum += value);
    }
}

/// Fails unless `all` has room for the values of `size` ranks: for engines.
///
/// # Errors
///
/// [`ErrorKind::Shape`].
pub fn check_gathered(own: &[f32], all: &[f32], size: usize) -> Result<()> {
    match own.len().checked_mul(size) == Some(all.len()) {
        true => Ok(()),
        false => Err(ErrorKind::shape("all", &[all.len()], format!("({size} ranks of {})", own.len()))),
    }
}
