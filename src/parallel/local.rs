//! Ranks that are threads of one process, each with a device of its own.
//!
//! A rank leaves its values in a place that the others read, and comes to a barrier; then each sums its part of the values over all
//! ranks, and after a second barrier all take the parts. So a sum of `n` values reads `n` values on each rank, whatever their
//! number. A barrier is a counter for each rank: who waits looks at those of the others, first in a loop, since an exchange comes
//! every few hundred microseconds, then giving its core to others, then asleep.

use super::{check_gathered, Collective};
use crate::error::{Error, ErrorKind, RankFault, Result};
use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Looks at a counter before a rank gives its core to others, and how long it only does that before it sleeps.
const LOOKS: u32 = 2000;
const BEFORE_SLEEP: Duration = Duration::from_millis(2);
const SLEEP: Duration = Duration::from_micros(100);

/// One rank of a group of threads: made by [`ranks`] or [`run`]. Dropped, it is gone for the others.
pub struct LocalRank {
    shared: Arc<Shared>,
    rank: usize,
    /// Barriers that it has come to.
    barriers: u64,
}

struct Shared {
    places: Vec<RankPlace>,
    timeout: Duration,
    /// The first fault, after which nothing is exchanged any more.
    fault: Mutex<Option<RankFault>>,
    failed: AtomicBool,
}

/// What a rank leaves for the others.
#[derive(Default)]
struct RankPlace {
    barriers: AtomicU64,
    gone: AtomicBool,
    call: Mutex<(&'static str, usize)>,
    values: RwLock<Vec<f32>>,
    /// Of an all-reduce, its part of the sums.
    sums: RwLock<Vec<f32>>,
    bytes: RwLock<Vec<u8>>,
}

/// `size` ranks, one for each thread. A call fails where another rank does not come to it within `timeout`.
///
/// # Errors
///
/// [`ErrorKind::Argument`] for a `size` of 0 or above 1,024.
pub fn ranks(size: usize, timeout: Duration) -> Result<Vec<LocalRank>> {
    super::Shard::new(0, size)?;
    let places = (0..size).map(|_| RankPlace::default()).collect();
    let shared = Arc::new(Shared { places, timeout, fault: Mutex::default(), failed: AtomicBool::new(false) });
    Ok((0..size).map(|rank| LocalRank { shared: shared.clone(), rank, barriers: 0 }).collect())
}

/// Runs `work` as each of `size` ranks, in threads of their own, and returns what they return, in their order. A rank that panics is
/// gone for the others, and its own result is [`RankFault::Panicked`].
///
/// # Errors
///
/// As [`ranks`].
pub fn run<T: Send>(
    size: usize,
    timeout: Duration,
    work: impl Fn(LocalRank) -> Result<T> + Sync,
) -> Result<Vec<Result<T>>> {
    let all = ranks(size, timeout)?;
    let one = |rank: LocalRank| {
        let number = rank.rank;
        let done = catch_unwind(AssertUnwindSafe(|| work(rank)));
        done.unwrap_or_else(|panic| {
            let fault = RankFault::Panicked { message: words(&*panic) };
            Err(ErrorKind::Rank { rank: number, size, fault }.into())
        })
    };
    Ok(std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = all.into_iter().map(|rank| (rank.rank, scope.spawn(move || one(rank)))).collect();
        let joined = threads.into_iter().map(|(rank, thread)| {
            thread.join().unwrap_or_else(|panic| {
                let fault = RankFault::Panicked { message: words(&*panic) };
                Err(ErrorKind::Rank { rank, size, fault }.into())
            })
        });
        joined.collect()
    }))
}

/// What a panic says.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without words".into())
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(of: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    of.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(of: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    of.write().unwrap_or_else(PoisonError::into_inner)
}

impl LocalRank {
    fn own(&self) -> &RankPlace {
        &self.shared.places[self.rank]
    }

    /// Nothing is exchanged any more: with this fault, unless there was one.
    fn fail(&self, fault: RankFault) -> Error {
        let first = lock(&self.shared.fault).get_or_insert(fault).clone();
        self.shared.failed.store(true, Ordering::Release);
        self.error(first)
    }

    fn error(&self, fault: RankFault) -> Error {
        ErrorKind::Rank { rank: self.rank, size: self.size(), fault }.into()
    }

    /// Fails where there was a fault.
    fn check(&self) -> Result<()> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let fault = lock(&self.shared.fault).clone();
        fault.map_or(Ok(()), |fault| Err(self.error(fault)))
    }

    /// Comes to the first barrier of a call, where all say what they call.
    fn begin(&mut self, call: &'static str, len: usize) -> Result<()> {
        self.check()?;
        *lock(&self.own().call) = (call, len);
        self.come();
        if call == BROADCAST && self.rank > 0 {
            self.wait_for(0, call, None)?;
        }
        self.wait_for_all(call)?;
        let calls: Vec<_> = self.shared.places.iter().map(|place| *lock(&place.call)).collect();
        let (first, wanted) = calls[0];
        for (rank, (other, len)) in calls.into_iter().enumerate() {
            if other != first {
                return Err(self.fail(RankFault::Calls { rank, theirs: other, first }));
            }
            if len != wanted && call != BROADCAST {
                return Err(self.fail(RankFault::Sizes { call, rank, theirs: len, first: wanted }));
            }
        }
        Ok(())
    }

    fn come(&mut self) {
        self.barriers += 1;
        self.own().barriers.store(self.barriers, Ordering::Release);
    }

    /// Comes to the next barrier, and goes on when all have.
    fn meet(&mut self, call: &'static str) -> Result<()> {
        self.come();
        self.wait_for_all(call)
    }

    fn wait_for_all(&self, call: &'static str) -> Result<()> {
        let end = Some(self.shared.timeout);
        (0..self.size()).try_for_each(|rank| self.wait_for(rank, call, end))
    }

    /// Until a rank has come to the barrier that this one is at.
    fn wait_for(&self, rank: usize, call: &'static str, timeout: Option<Duration>) -> Result<()> {
        let place = &self.shared.places[rank];
        let there = || place.barriers.load(Ordering::Acquire) >= self.barriers;
        for _ in 0..LOOKS {
            if there() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        loop {
            // Whether it is gone before whether it came: it may have come and gone since.
            let gone = place.gone.load(Ordering::Acquire);
            if there() {
                return Ok(());
            }
            self.check()?;
            if gone {
                return Err(self.fail(RankFault::Gone { rank }));
            }
            let waited = start.elapsed();
            if timeout.is_some_and(|timeout| waited > timeout) {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                return Err(self.fail(RankFault::Timeout { call, rank, waited_ms }));
            }
            match waited < BEFORE_SLEEP {
                true => std::thread::yield_now(),
                false => std::thread::sleep(SLEEP),
            }
        }
    }
}

const ALL_REDUCE: &str = "all_reduce";
const ALL_GATHER: &str = "all_gather";
const BROADCAST: &str = "broadcast";

impl Collective for LocalRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.shared.places.len()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<()> {
        leave(&self.own().values, values);
        self.begin(ALL_REDUCE, values.len())?;
        let shared = self.shared.clone();
        let (len, step) = (values.len(), values.len().div_ceil(self.size()).max(1));
        let part = |rank: usize| len.min(rank * step)..len.min((rank + 1) * step);
        let (mut sums, own) = (write(&self.own().sums), part(self.rank));
        sums.clear();
        sums.extend_from_slice(&read(&shared.places[0].values)[own.clone()]);
        for place in &shared.places[1..] {
            let others = read(&place.values);
            sums.iter_mut().zip(&others[own.clone()]).for_each(|(sum, value)| *sum += value);
        }
        drop(sums);
        self.meet(ALL_REDUCE)?;
        for (rank, place) in shared.places.iter().enumerate() {
            values[part(rank)].copy_from_slice(&read(&place.sums));
        }
        Ok(())
    }

    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<()> {
        check_gathered(own, all, self.size())?;
        leave(&self.own().values, own);
        self.begin(ALL_GATHER, own.len())?;
        for (place, all) in self.shared.places.iter().zip(all.chunks_exact_mut(own.len().max(1))) {
            all.copy_from_slice(&read(&place.values));
        }
        // Who comes to the next call first would change what others still read.
        self.meet(ALL_GATHER)
    }

    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        if self.rank == 0 {
            write(&self.own().bytes).clone_from(bytes);
        }
        self.begin(BROADCAST, 0)?;
        if self.rank > 0 {
            bytes.clone_from(&read(&self.shared.places[0].bytes));
        }
        self.meet(BROADCAST)
    }

    fn abandon(&mut self, why: &str) {
        self.fail(RankFault::Failed { rank: self.rank, message: why.into() });
    }
}

/// Leaves values for the others. Nobody reads them before all have come to the next barrier, nor after the last of a call.
fn leave(place: &RwLock<Vec<f32>>, values: &[f32]) {
    let mut place = write(place);
    place.clear();
    place.extend_from_slice(values);
}

impl Drop for LocalRank {
    fn drop(&mut self) {
        self.own().gone.store(true, Ordering::Release);
    }
}

impl std::fmt::Debug for LocalRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rank, size, fault) = (self.rank, self.size(), &*lock(&self.shared.fault));
        f.debug_struct("LocalRank").field("rank", &rank).field("size", &size).field("fault", fault).finish()
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
