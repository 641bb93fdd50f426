//! What all handlers share.

use crate::args::Args;
use crate::engine::Command;
use crate::errors::ApiError;
use crate::metrics::Metrics;
use crate::model::Served;
use axum::http::{header, HeaderMap, StatusCode};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

/// The server's state.
#[derive(Debug)]
pub struct App {
    pub args: Args,
    pub metrics: Metrics,
    /// Places for requests that run or wait.
    pub places: Arc<Semaphore>,
    /// Once the model is loaded: what it is, and who runs it.
    ready: OnceLock<(Arc<Served>, Sender<Command>)>,
    stopping: AtomicBool,
    salts: RandomState,
}

impl App {
    pub fn new(args: Args, metrics: Metrics) -> Self {
        let places =
            Arc::new(Semaphore::new(args.max_batch.saturating_add(args.max_queue).min(Semaphore::MAX_PERMITS)));
        let (ready, stopping, salts) = (OnceLock::new(), AtomicBool::new(false), RandomState::new());
        App { args, metrics, places, ready, stopping, salts }
    }

    /// From now on requests are taken.
    pub fn open(&self, served: Served, commands: Sender<Command>) {
        let _ = self.ready.set((Arc::new(served), commands)); // it is called once
    }

    /// From now on no more requests are taken.
    pub fn close(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What is served, and who runs it.
    ///
    /// Errors: 503 where that is not yet known, or is no more.
    pub fn ready(&self) -> Result<(&Arc<Served>, &Sender<Command>), ApiError> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable("shutting_down", "the server is going down"));
        }
        let ready = self.ready.get().map(|(served, commands)| (served, commands));
        ready.ok_or_else(|| ApiError::unavailable("loading", "the model is not loaded yet"))
    }

    /// Tells the thread that runs the model. Returns whether there is one.
    pub fn command(&self, command: Command) -> bool {
        // One that has ended need not be told.
        self.ready.get().map(|(_, commands)| drop(commands.send(command))).is_some()
    }

    /// Whether a client may ask: in a time that does not tell how much of its key is right.
    ///
    /// Errors: 401.
    pub fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(wanted) = &self.args.api_key else { return Ok(()) };
        let got = key(headers).unwrap_or_default();
        match bool::from(got.ct_eq(wanted.as_bytes())) {
            true => Ok(()),
            false => {
                let why = "no key, or a wrong one: the header \"Authorization: Bearer KEY\" is to have the server's";
                Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", why))
            }
        }
    }

    /// What keeps the caches of clients apart that have different keys.
    pub fn salt(&self, headers: &HeaderMap) -> u64 {
        key(headers).map_or(0, |key| self.salts.hash_one(key))
    }
}

/// The key that a client sends.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn keys_are_compared_and_keep_caches_apart() {
        let args = Args::parse_from(["latten-server", "--api-key", "right"]);
        let app = App::new(args, Metrics::new().unwrap());
        let headers = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            headers
        };
        for (value, right) in
            [("Bearer right", true), ("bearer right ", true), ("Bearer wrong", false), ("Bearer righ", false)]
        {
            assert_eq!(app.check_key(&headers(value)).is_ok(), right, "{value}");
        }
        for value in ["right", "Basic right", "Bearer", "Bearer ", ""] {
            assert!(app.check_key(&headers(value)).is_err(), "{value}");
        }
        assert!(app.check_key(&HeaderMap::new()).is_err());
        let salt = |value| app.salt(&headers(value));
        assert_eq!((salt("Bearer a"), app.salt(&HeaderMap::new())), (salt("Bearer a"), 0));
        assert_ne!(salt("Bearer a"), salt("Bearer b"));
    }
}
