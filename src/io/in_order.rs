//! Jobs done by several threads, whose results come in the order of the jobs.

use crate::error::{ErrorKind, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel, Receiver, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread::{available_parallelism, Builder};

/// Threads at most: a few are as fast as memory is.
const MOST_THREADS: usize = 8;
/// Jobs under way or done beside one for each thread, so that none of them waits for the caller.
const AHEAD: usize = 2;

/// A job, and where its result goes.
type Asked<J, R> = (J, SyncSender<R>);

/// How many threads work beside the caller. Two on a single core as well: one waits for the disk while the other converts. None
/// where files cannot be read by several threads, as in browsers.
fn threads() -> usize {
    match cfg!(any(unix, windows)) {
        true => available_parallelism().map_or(2, usize::from).clamp(2, MOST_THREADS),
        false => 0,
    }
}

/// Does `jobs` by `work`, and gives what each made to `each`, on the caller's thread and in order. A thread's `Vec` is its memory
/// from one job to the next. At most [`MOST_THREADS`] + [`AHEAD`] jobs are begun and not yet given to `each`.
///
/// Errors: the first of `each`.
pub(crate) fn in_order<J: Send, R: Send>(
    jobs: Vec<J>,
    work: impl Fn(&mut Vec<u8>, J) -> R + Sync,
    mut each: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let wanted = threads().min(jobs.len());
    let (mut jobs, mut memory) = (jobs.into_iter(), Vec::new());
    if wanted < 2 {
        return jobs.try_for_each(|job| each(work(&mut memory, job)));
    }
    let (to_do, asked) = channel::<Asked<J, R>>();
    let (asked, stopped) = (Mutex::new(asked), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Dropped at the end, which ends the threads.
        let to_do = to_do;
        let (mut threads, mut waiting) = (0, VecDeque::new());
        loop {
            while waiting.len() < wanted + AHEAD {
                let Some(job) = jobs.next() else { break };
                let thread = || work_on(&asked, &stopped, &work);
                if threads < wanted && Builder::new().spawn_scoped(scope, thread).is_ok() {
                    threads += 1;
                }
                if threads == 0 {
                    each(work(&mut memory, job))?;
                    continue;
                }
                let (result, made) = sync_channel(1);
                // Threads take jobs until there are no more.
                let _ = to_do.send((job, result));
                waiting.push_back(made);
            }
            let Some(next) = waiting.pop_front() else { return Ok(()) };
            let made = next.recv().map_err(|_| ErrorKind::argument("weights", "a thread that reads them has ended"));
            if let Err(e) = made.and_then(&mut each) {
                stopped.store(true, Ordering::Relaxed);
                return Err(e);
            }
        }
    })
}

/// What a thread does until there are no more jobs, or nobody wants them.
fn work_on<J, R>(asked: &Mutex<Receiver<Asked<J, R>>>, stopped: &AtomicBool, work: impl Fn(&mut Vec<u8>, J) -> R) {
    let mut memory = Vec::new();
    loop {
        let next = asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((job, result)) = next else { return };
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        // Nobody takes it where the caller has given up.
        let _ = result.send(work(&mut memory, job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    #[test]
    fn results_come_in_order_and_few_are_ahead() {
        for count in [0, 1, 2, 7, 100] {
            let (begun, mut got) = (AtomicUsize::new(0), Vec::new());
            let work = |memory: &mut Vec<u8>, job: usize| {
                begun.fetch_add(1, Ordering::SeqCst);
                memory.push(0);
                // Later ones are often ready sooner.
                std::thread::sleep(Duration::from_micros(u64::from(job.is_multiple_of(3)) * 300));
                job * job
            };
            in_order((0..count).collect(), work, |made| {
                assert!(begun.load(Ordering::SeqCst) <= got.len() + MOST_THREADS + AHEAD);
                got.push(made);
                Ok(())
            })
            .unwrap();
            assert_eq!(got, (0..count).map(|job| job * job).collect::<Vec<_>>());
        }
    }

    #[test]
    fn whoever_fails_ends_it() {
        for (count, last) in [(1, 0), (3, 1), (500, 5)] {
            let (begun, mut given) = (AtomicUsize::new(0), 0);
            let ended = in_order(
                (0..count).collect(),
                |_, job: usize| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    job
                },
                |job| {
                    given += 1;
                    match job == last {
                        true => Err(ErrorKind::argument("job", "enough")),
                        false => Ok(()),
                    }
                },
            );
            assert!(ended.is_err() && given == last + 1, "{given} of {count}");
            assert!(begun.into_inner() <= given + MOST_THREADS + AHEAD);
        }
    }

    /// Several threads are at work at once: each of two jobs waits for the other.
    #[test]
    fn jobs_are_done_side_by_side() {
        let both = std::sync::Barrier::new(2);
        let work = |_: &mut Vec<u8>, job: usize| {
            both.wait();
            job
        };
        if threads() > 1 {
            in_order(vec![0, 1], work, |_| Ok(())).unwrap();
        }
    }
}
