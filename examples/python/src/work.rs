//! Work away from the interpreter: by threads that hear of Ctrl-C, and are waited for before the program ends.

use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a wait looks for signals.
const LOOK: Duration = Duration::from_millis(20);
/// How long the end of the program waits for work that was told to stop: as long as a step may take.
const LAST_WAIT: Duration = Duration::from_secs(30);

/// Asks for the end of a piece of work, which looks at it between steps.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

static ENDING: AtomicBool = AtomicBool::new(false);
static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Stop {
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) || ENDING.load(Ordering::Relaxed)
    }
}

/// A lock whose owner's panic changes nothing for the others.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counted while it lives.
struct Counted;

impl Counted {
    fn new() -> Self {
        *locked(&RUNNING.0) += 1;
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *locked(&RUNNING.0) -= 1;
        RUNNING.1.notify_all();
    }
}

/// Runs `work` on a thread of its own, for which [`finish`] waits.
pub(crate) fn start(work: impl FnOnce() + Send + 'static) {
    let counted = Counted::new();
    thread::spawn(move || {
        let _counted = counted;
        work();
    });
}

/// What comes next, or none where the other side is gone. Other threads of Python run meanwhile, and Ctrl-C is an error.
pub(crate) fn receive<T: Send>(py: Python<'_>, receiver: &Mutex<Receiver<T>>) -> PyResult<Option<T>> {
    loop {
        match py.detach(|| locked(receiver).recv_timeout(LOOK)) {
            Ok(value) => return Ok(Some(value)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
        }
    }
}

/// What `work` gives. After Ctrl-C it is told to stop, and its result goes nowhere.
pub(crate) fn wait<T: Send + 'static>(py: Python<'_>, work: impl FnOnce(&Stop) -> T + Send + 'static) -> PyResult<T> {
    let (sender, receiver) = channel();
    let stop = Stop::default();
    let told = stop.clone();
    start(move || drop(sender.send(work(&told))));
    let result = receive(py, &Mutex::new(receiver));
    if result.is_err() {
        stop.ask();
    }
    result?.ok_or_else(|| crate::errors::exception(py, "LattenError", "the work ended without a result", &[]))
}

/// Ends all work that is under way: at the end of the program, before what the threads use goes away.
#[pyfunction]
#[pyo3(name = "_finish")]
pub(crate) fn finish(py: Python<'_>) {
    ENDING.store(true, Ordering::Relaxed);
    py.detach(|| {
        let (end, mut running) = (Instant::now() + LAST_WAIT, locked(&RUNNING.0));
        while *running > 0 && Instant::now() < end {
            running = RUNNING.1.wait_timeout(running, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    });
}
