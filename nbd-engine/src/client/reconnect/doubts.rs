//! Changes that the server acknowledged and may have lost with its cache.

use std::sync::{Arc, Mutex, PoisonError};

/// How much was changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Tally {
    pub(in super::super) requests: u64,
    pub(in super::super) bytes: u64,
}

impl Tally {
    pub(in super::super) const fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    pub(in super::super) const fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }

    pub(in super::super) const fn is_empty(&self) -> bool {
        self.requests == 0
    }
}

/// All changes in doubt since the client was made. It only grows, and each handle of the client remembers how much of it it
/// has reported.
#[derive(Debug, Default)]
pub(in super::super) struct Doubts(Mutex<Tally>);

impl Doubts {
    pub(in super::super) fn add(&self, lost: Tally) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(lost);
    }

    pub(in super::super) fn total(&self) -> Tally {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one handle of a client has reported of the doubts: as a file descriptor has seen the errors of a file.
#[derive(Debug)]
pub(in super::super) struct Seen {
    doubts: Arc<Doubts>,
    reported: Mutex<Tally>,
}

impl Seen {
    pub(in super::super) fn new(doubts: &Arc<Doubts>) -> Self {
        Self { doubts: Arc::clone(doubts), reported: Mutex::default() }
    }

    /// For another handle of the client, which has reported as much.
    pub(in super::super) fn fork(&self) -> Self {
        let reported = *self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        Self { doubts: Arc::clone(&self.doubts), reported: Mutex::new(reported) }
    }

    /// What is in doubt and was not reported yet; it is from now on.
    pub(in super::super) fn report(&self) -> Option<Tally> {
        let total = self.doubts.total();
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let new = total.since(*reported);
        *reported = total;
        (!new.is_empty()).then_some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_handle_reports_once_what_was_lost_while_it_existed() {
        let doubts = Arc::new(Doubts::default());
        let lost = |requests| Tally { requests, bytes: requests * 512 };
        let first = Seen::new(&doubts);
        assert_eq!(first.report(), None);
        doubts.add(lost(1));
        let second = first.fork();
        assert_eq!(first.report(), Some(lost(1)));
        assert_eq!(first.report(), None);
        let third = first.fork();
        doubts.add(lost(2));
        assert_eq!(second.report(), Some(lost(3)));
        assert_eq!(third.report(), Some(lost(2)));
        assert_eq!((second.report(), third.report()), (None, None));
    }
}
