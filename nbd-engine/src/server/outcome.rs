//! How a server ended, and what its log left out meanwhile.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::failures::Failures;
use crate::throttle::Throttle;

/// How a server ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Requests that were received and not wholly answered when
    /// [`ServerConfig::with_drain_timeout`](super::ServerConfig::with_drain_timeout) was over. What became of them is unknown to their
    /// clients, as after a lost connection.
    pub requests_cut_off: u64,
    /// Whether a listener ended by a fault, which shut the server down.
    pub listener_failed: bool,
}

/// The same while it is being counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    requests_cut_off: AtomicU64,
    listener_failed: AtomicBool,
}

impl Counted {
    pub(super) fn cut_off(&self, requests: usize) {
        self.requests_cut_off.fetch_add(requests as u64, Ordering::AcqRel);
    }

    pub(super) fn listener_failed(&self) {
        self.listener_failed.store(true, Ordering::Release);
    }

    pub(super) fn get(&self) -> Outcome {
        Outcome {
            requests_cut_off: self.requests_cut_off.load(Ordering::Acquire),
            listener_failed: self.listener_failed.load(Ordering::Acquire),
        }
    }
}

/// What clients can cause again and again, and is logged as a count.
#[derive(Debug, Default)]
pub(crate) struct Floods {
    /// Connections that could not be accepted.
    pub(crate) accept: Throttle,
    /// Connections of peers that may not connect.
    pub(crate) denied: Throttle,
    /// Connections that were refused, since there are as many as may be.
    pub(crate) full: Throttle,
    /// Connections that could not be served after all.
    pub(crate) unfit: Throttle,
    /// Requests that exports fail.
    pub(super) failures: Failures,
}

impl Floods {
    /// Reports at the end what was counted and not reported yet.
    pub(super) fn report_rest(&self) {
        for (throttle, what) in [
            (&self.accept, "further connections could not be accepted"),
            (&self.denied, "further connections were refused: their peers may not connect"),
            (&self.full, "further connections were refused: the server was full"),
            (&self.unfit, "further clients could not be served"),
        ] {
            let times = throttle.unreported();
            if times > 0 {
                tracing::warn!(times, "{what}");
            }
        }
        self.failures.report_rest();
    }
}
