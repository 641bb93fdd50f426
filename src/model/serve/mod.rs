//! Many requests at once.

mod handed_out;
mod request;
mod scheduler;
mod steps;
mod stops;

pub use request::{Event, Finished, Request, RequestId};
pub use scheduler::Scheduler;
pub use stops::StopStrings;
