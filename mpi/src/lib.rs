//! Ranks that are processes: latten's [`Collective`] over MPI, for devices of one host or of several.
//!
//! ```no_run
//! use latten::model::{follow, Decoder, LoadOptions, Session, SessionOptions};
//! use latten::parallel::{Shard, Transfer};
//!
//! # async fn f(gpu: &latten::Gpu) -> latten::Result<()> {
//! let mpi = latten_mpi::Mpi::start()?; // kept to the end of the program, which mpiexec -n 2 runs twice
//! let rank = mpi.ranks(std::time::Duration::from_secs(60));
//! let shard = Shard::of(&rank)?;
//! let decoder = Decoder::load_with(gpu, "model", LoadOptions { shard, ..Default::default() })?;
//! if shard.rank() > 0 {
//!     return follow(&decoder, Box::new(rank));
//! }
//! let mut session = Session::sharded(&decoder, SessionOptions::default(), Box::new(rank), Transfer::F32)?;
//! # Ok(()) }
//! ```
//!
//! A rank sends what it has to each of the others and adds in the order of the ranks itself, since MPI's own sums may be formed in
//! another order on each rank. It looks for messages in a loop, so no core may have two ranks. A message is copied into MPI's memory
//! for sends ([`Mpi::start_with`]) and so is never waited for: who finds that another rank does not answer has nothing under way that
//! would have to be taken back.
//!
//! Whether a rank outlives another is a matter of `mpiexec`: that of Open MPI ends all ranks when one ends by a signal, unless it is
//! run with `--enable-recovery`.

use latten::parallel::{check_gathered, sum_in_order, Collective};
use latten::{Error, ErrorKind, RankFault, Result};
use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination, Source};
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::Threading;
use std::time::{Duration, Instant};

/// Of the messages of this crate in the world of all ranks.
const TAG: i32 = 0x6c61;
/// Bytes for messages that are on their way, unless someone asks for another number.
const SEND_BYTES: usize = 64 << 20;
/// Messages of a rank to another that may be on their way at once, with what MPI adds to each.
const UNDER_WAY: usize = 3;
/// How long a rank only looks for a message, before it sleeps between looks.
const BEFORE_SLEEP: Duration = Duration::from_millis(5);
const SLEEP: Duration = Duration::from_micros(100);

/// MPI, as long as it runs.
pub struct Mpi {
    _universe: Universe,
    send_bytes: usize,
}

/// This process among the ranks of `mpiexec`.
#[derive(Debug)]
pub struct MpiRank {
    rank: usize,
    size: usize,
    timeout: Duration,
    idle: Option<Duration>,
    send_bytes: usize,
    fault: Option<RankFault>,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mpi").field("send_bytes", &self.send_bytes).finish_non_exhaustive()
    }
}

impl Mpi {
    /// Starts MPI, once in a process. Dropped, it is over.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Rank`] with [`RankFault::Engine`] where it has been started before.
    pub fn start() -> Result<Self> {
        Self::start_with(SEND_BYTES)
    }

    /// [`Mpi::start`] with so many bytes for messages that are on their way, 64 MiB without. A third of them, divided by the ranks
    /// less one, is the largest message: 4 bytes for each number of a step's tokens times the model's hidden size.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn start_with(send_bytes: usize) -> Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let Some((mut universe, _)) = started else {
            return Err(error((0, 1), RankFault::Engine { message: "MPI was started before".into() }));
        };
        universe.set_buffer_size(send_bytes);
        Ok(Mpi { _universe: universe, send_bytes })
    }

    /// This process's rank. A call fails where another rank does not come to it within `timeout`.
    pub fn ranks(&self, timeout: Duration) -> MpiRank {
        let world = SimpleCommunicator::world();
        // Neither is negative.
        let [rank, size] = [world.rank(), world.size()].map(|n| usize::try_from(n).unwrap_or_default());
        MpiRank { rank, size, timeout, idle: None, send_bytes: self.send_bytes, fault: None }
    }
}

/// What a message is: the first word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    AllReduce,
    AllGather,
    Broadcast,
    Failed,
}

impl Kind {
    const ALL: [(Kind, &'static str); 4] = [
        (Kind::AllReduce, "all_reduce"),
        (Kind::AllGather, "all_gather"),
        (Kind::Broadcast, "broadcast"),
        (Kind::Failed, "abandon"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

const HEAD: usize = 4;

fn error((rank, size): (usize, usize), fault: RankFault) -> Error {
    ErrorKind::Rank { rank, size, fault }.into()
}

impl MpiRank {
    /// The same with a limit on how long this rank waits for the next command of rank 0, which is without: for programs that
    /// outlive rank 0.
    pub fn with_idle_limit(mut self, idle: Duration) -> Self {
        self.idle = Some(idle);
        self
    }

    fn error(&self, fault: RankFault) -> Error {
        error((self.rank, self.size), fault)
    }

    fn check(&self) -> Result<()> {
        self.fault.clone().map_or(Ok(()), |fault| Err(self.error(fault)))
    }

    /// Nothing is exchanged any more: with this fault, of which the others are told.
    fn fail(&mut self, fault: RankFault) -> Error {
        if self.fault.is_none() {
            // Of another's failure, too: others may wait for this rank and not for that one.
            self.tell_all(fault.to_string().as_bytes());
            self.fault = Some(fault.clone());
        }
        self.error(self.fault.clone().unwrap_or(fault))
    }

    fn tell_all(&self, why: &[u8]) {
        let why = &why[..why.len().min(1 << 10)];
        self.others().for_each(|rank| send(rank, Kind::Failed, why));
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let own = self.rank;
        (0..self.size).filter(move |rank| *rank != own)
    }

    /// Sends bytes to another rank.
    fn send(&mut self, to: usize, kind: Kind, bytes: &[u8]) -> Result<()> {
        let most = self.send_bytes / UNDER_WAY / (self.size - 1).max(1);
        if bytes.len() + HEAD > most {
            let message = format!("a message of {} bytes, with room for {most}: see Mpi::start_with", bytes.len());
            return Err(self.fail(RankFault::Engine { message }));
        }
        send(to, kind, bytes);
        Ok(())
    }

    /// The next message of a rank, which is to be of this kind, without its head.
    fn receive(&mut self, from: usize, kind: Kind, limit: Option<Duration>) -> Result<Vec<u8>> {
        let world = SimpleCommunicator::world();
        let process = world.process_at_rank(from as i32); // ranks are i32
        let start = Instant::now();
        loop {
            if let Some((message, status)) = process.immediate_matched_probe_with_tag(TAG) {
                let count = usize::try_from(status.count(u8::equivalent_datatype())).unwrap_or_default();
                let mut bytes = vec![0u8; count];
                message.matched_receive_into(&mut bytes[..]);
                return self.opened(from, kind, bytes);
            }
            let waited = start.elapsed();
            if limit.is_some_and(|limit| waited > limit) {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                return Err(self.fail(RankFault::Timeout { call: kind.name(), rank: from, waited_ms }));
            }
            if waited > BEFORE_SLEEP {
                std::thread::sleep(SLEEP);
            }
        }
    }

    /// What a message says, if it is of the kind that is due.
    fn opened(&mut self, from: usize, kind: Kind, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let head = bytes.first_chunk().map(|head| u32::from_le_bytes(*head) as usize);
        let Some((theirs, name)) = head.and_then(|head| Kind::ALL.get(head).copied()) else {
            return Err(self.fail(RankFault::Message { rank: from, why: format!("no message, {} bytes", bytes.len()) }));
        };
        bytes.drain(..HEAD);
        if theirs == Kind::Failed {
            let message = String::from_utf8_lossy(&bytes).into_owned();
            return Err(self.fail(RankFault::Failed { rank: from, message }));
        }
        if theirs != kind {
            let (rank, theirs, first) = match from {
                0 => (self.rank, kind.name(), name),
                other => (other, name, kind.name()),
            };
            return Err(self.fail(RankFault::Calls { rank, theirs, first }));
        }
        Ok(bytes)
    }

    /// The numbers of all ranks, in their order.
    fn gather(&mut self, kind: Kind, own: &[f32], all: &mut [f32]) -> Result<()> {
        self.check()?;
        for rank in self.others() {
            self.send(rank, kind, bytemuck::cast_slice(own))?;
        }
        let mut places: Vec<&mut [f32]> = all.chunks_exact_mut(own.len().max(1)).collect();
        for rank in 0..self.size {
            let mut received = Vec::new();
            if rank != self.rank {
                received = self.receive(rank, kind, Some(self.timeout))?;
            }
            let place = places.get_mut(rank).map(|place| &mut **place).unwrap_or_default();
            if rank == self.rank {
                place.copy_from_slice(&own[..place.len()]);
                continue;
            }
            if received.len() != 4 * own.len() {
                let (mine, theirs) = (own.len(), received.len() / 4);
                // By rank 0, as all see it.
                let (rank, theirs, first) = if rank == 0 { (self.rank, mine, theirs) } else { (rank, theirs, mine) };
                return Err(self.fail(RankFault::Sizes { call: kind.name(), rank, theirs, first }));
            }
            let numbers = received.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            place.iter_mut().zip(numbers).for_each(|(place, number)| *place = number);
        }
        Ok(())
    }
}

/// Sends a message, which is copied: this waits for nobody.
fn send(to: usize, kind: Kind, bytes: &[u8]) {
    let mut message = Vec::with_capacity(HEAD + bytes.len());
    message.extend_from_slice(&(kind as u32).to_le_bytes());
    message.extend_from_slice(bytes);
    SimpleCommunicator::world().process_at_rank(to as i32).buffered_send_with_tag(&message[..], TAG);
    // ranks are i32
}

impl Collective for MpiRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<()> {
        let mut all = vec![0.0; values.len() * self.size];
        self.gather(Kind::AllReduce, values, &mut all)?;
        sum_in_order(&all, values);
        Ok(())
    }

    fn all_gather(&mut self, own: &[f32], all: &mut [f32]) -> Result<()> {
        check_gathered(own, all, self.size)?;
        self.gather(Kind::AllGather, own, all)
    }

    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<()> {
        self.check()?;
        if self.rank > 0 {
            *bytes = self.receive(0, Kind::Broadcast, self.idle)?;
            return Ok(());
        }
        for rank in self.others() {
            self.send(rank, Kind::Broadcast, bytes)?;
        }
        Ok(())
    }

    fn abandon(&mut self, why: &str) {
        if self.fault.is_none() {
            self.tell_all(why.as_bytes());
            self.fault = Some(RankFault::Failed { rank: self.rank, message: why.into() });
        }
    }
}

impl Drop for MpiRank {
    fn drop(&mut self) {
        if std::thread::panicking() && self.fault.is_none() {
            self.tell_all(b"panicked");
        }
    }
}
