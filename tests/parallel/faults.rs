//! A rank that ends, hangs or panics in the middle of a step: the others hear of it in time, with a typed error, and nothing hangs.

use crate::tiny::Tiny;
use crate::{devices, SMALL as OPTIONS};
use latten::model::{follow, Decoder, LoadOptions, Session};
use latten::parallel::{local, Collective, Shard, Transfer};
use latten::{Error, ErrorKind, RankFault, Result};
use pollster::block_on;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(60);

/// What a rank does at one of its sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mishap {
    None,
    Panics,
    Fails,
    Sleeps(Duration),
}

/// A rank to which something happens at its sum of this number.
struct Unlucky {
    rank: local::LocalRank,
    sums: AtomicUsize,
    at: usize,
    mishap: Mishap,
}

impl Collective for Unlucky {
    fn rank(&self) -> usize {
        self.rank.rank()
    }
    fn size(&self) -> usize {
        self.rank.size()
    }
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<()> {
        if self.sums.fetch_add(1, Ordering::Relaxed) == self.at {
            match self.mishap {
                Mishap::None => {}
                Mishap::Panics => panic!("an unlucky rank"),
                Mishap::Fails => return Err(ErrorKind::DeviceLost { message: "unplugged".into() }.into()),
                Mishap::Sleeps(time) => std::thread::sleep(time),
            }
        }
        self.rank.all_reduce(values)
    }
    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<()> {
        self.rank.all_gather(own, all)
    }
    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        self.rank.broadcast(bytes)
    }
    fn abandon(&mut self, why: &str) {
        self.rank.abandon(why);
    }
}

/// Steps of two ranks, of which `unlucky` has a mishap in the second step: what becomes of them, and of a call after that.
fn run(unlucky: usize, mishap: Mishap, timeout: Duration) -> Vec<Result<()>> {
    let devices = devices();
    let folder = Tiny::new("gqa", 1).write(&format!("sharded-unlucky-{unlucky}"));
    local::run(2, timeout, |rank| {
        let shard = Shard::of(&rank)?;
        let gpu = &devices.gpus[rank.rank()];
        let decoder = Decoder::load_with(gpu, folder.path(), LoadOptions { shard, ..Default::default() })?;
        let mishap = if rank.rank() == unlucky { mishap } else { Mishap::None };
        // Two layers of two sums: the second step's third.
        let number = rank.rank();
        let rank = Box::new(Unlucky { rank, sums: AtomicUsize::new(0), at: 6, mishap });
        if number > 0 {
            return follow(&decoder, rank);
        }
        let mut session = Session::sharded(&decoder, OPTIONS, rank, Transfer::F32)?;
        let id = session.insert();
        block_on(session.logits(&[(id, &[1, 2, 3])]))?;
        let failed = block_on(session.logits(&[(id, &[4])])).unwrap_err();
        // It is as it was, and says the same again, at once.
        assert_eq!((session.len(id)?, session.stats().used), (3, 1));
        let start = Instant::now();
        let again = block_on(session.logits(&[(id, &[4])])).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5));
        if matches!(failed.kind(), ErrorKind::Rank { .. }) {
            assert_eq!(again.to_string(), failed.to_string());
        }
        Err(failed)
    })
    .unwrap()
}

fn fault(error: &Error) -> RankFault {
    match error.kind() {
        ErrorKind::Rank { fault, .. } => fault.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rank_that_panics_in_a_step() {
    for unlucky in [0, 1] {
        let results = run(unlucky, Mishap::Panics, TIMEOUT);
        let own = fault(results[unlucky].as_ref().unwrap_err());
        assert_eq!(own, RankFault::Panicked { message: "an unlucky rank".into() });
        // Rank 0 says that it ends while it unwinds: that is not the call the other is in. Or it is gone by then.
        let other = fault(results[1 - unlucky].as_ref().unwrap_err());
        assert!(matches!(other, RankFault::Gone { .. } | RankFault::Calls { .. }), "{other:?}");
    }
}

#[test]
fn a_rank_whose_device_fails_in_a_step() {
    for unlucky in [0, 1] {
        let results = run(unlucky, Mishap::Fails, TIMEOUT);
        let own = results[unlucky].as_ref().unwrap_err();
        assert!(matches!(own.kind(), ErrorKind::DeviceLost { .. }), "{own}");
        let other = fault(results[1 - unlucky].as_ref().unwrap_err());
        let message = "the GPU device is lost: unplugged".to_string();
        assert_eq!(other, RankFault::Failed { rank: unlucky, message });
    }
}

#[test]
fn a_rank_that_hangs_in_a_step() {
    // What is compiled in the first step, which takes longer than this timeout, is compiled then.
    run(1, Mishap::Panics, TIMEOUT);
    let timeout = Duration::from_secs(8);
    let start = Instant::now();
    let results = run(1, Mishap::Sleeps(Duration::from_secs(12)), timeout);
    for result in &results {
        let fault = fault(result.as_ref().unwrap_err());
        assert!(matches!(fault, RankFault::Timeout { call: "all_reduce", rank: 1, .. }), "{fault:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(120));
}
