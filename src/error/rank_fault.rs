//! What goes wrong among ranks.

/// What ends the work of ranks.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RankFault {
    /// A rank did not come to a call in time.
    #[error("rank {rank} did not come to {call} within {waited_ms} ms")]
    Timeout {
        /// What was called.
        call: &'static str,
        /// Who did not come.
        rank: usize,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// A rank has ended.
    #[error("rank {rank} is gone")]
    Gone {
        /// Which.
        rank: usize,
    },
    /// A rank cannot go on, and said so.
    #[error("rank {rank} failed: {message}")]
    Failed {
        /// Which.
        rank: usize,
        /// Its error.
        message: String,
    },
    /// This rank's own thread panicked.
    #[error("panicked: {message}")]
    Panicked {
        /// Its words.
        message: String,
    },
    /// Ranks call something else at the same time.
    #[error("rank {rank} called {theirs}, rank 0 {first}")]
    Calls {
        /// Who differs from rank 0.
        rank: usize,
        /// Its call.
        theirs: &'static str,
        /// That of rank 0.
        first: &'static str,
    },
    /// Ranks call the same with other sizes.
    #[error("rank {rank} has {theirs} values in {call}, rank 0 {first}")]
    Sizes {
        /// What was called.
        call: &'static str,
        /// Who differs from rank 0.
        rank: usize,
        /// Its size.
        theirs: usize,
        /// That of rank 0.
        first: usize,
    },
    /// A rank has another model, or cuts it otherwise.
    #[error("the {what} of rank {rank} is {theirs}, that of rank 0 is {first}")]
    Other {
        /// What differs.
        what: &'static str,
        /// Who differs from rank 0.
        rank: usize,
        /// What it has.
        theirs: String,
        /// What rank 0 has.
        first: String,
    },
    /// A message that no rank of this version sends.
    #[error("a message of rank {rank} is {why}")]
    Message {
        /// Who sent it.
        rank: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The engine below failed.
    #[error("{message}")]
    Engine {
        /// Its words.
        message: String,
    },
}
