//! A scheduler whose session was in other hands: which requests can go on.

use super::request::{Active, Finished};
use super::scheduler::Scheduler;
use crate::error::{Error, ErrorKind};

impl Scheduler {
    /// Ends requests that the session as it is now cannot go on with, and lets wait what is too much for one call.
    pub(crate) fn check_requests(&mut self) {
        let mut place = 0;
        while let Some(request) = self.requests.get(place) {
            match self.fault(request) {
                Some(error) => self.end(place, Finished::Failed(error)),
                None => place += 1,
            }
        }
        while self.running() > self.session.max_batch() {
            self.give_up(self.running() - 1);
        }
    }

    /// Why a request cannot go on, if it cannot.
    fn fault(&self, request: &Active) -> Option<Error> {
        if let Err(error) = request.check(&self.session) {
            return Some(error);
        }
        let (id, cache) = (request.sequence?, self.session.cache());
        let committed_at = match cache.committed_at(id) {
            Ok(committed_at) => committed_at,
            Err(error) => return Some(error),
        };
        // Nothing was added: it holds what it had, or the beginning of that.
        if committed_at == request.committed_at {
            return None;
        }
        // After a rebuild others may have fed it what is its own. One token at least is to be fed here.
        let known = cache.tokens(id).ok().flatten();
        let own = known.is_some_and(|known| known.len() < request.tokens.len() && request.tokens.starts_with(&known));
        let why = || {
            let len = cache.len(id).unwrap_or(0);
            format!(
                "{id} of request {} has {len} tokens, which others gave it: they are not known to be of its {}",
                request.id.0,
                request.tokens.len()
            )
        };
        (!own).then(|| ErrorKind::argument("sequence", why()))
    }
}
