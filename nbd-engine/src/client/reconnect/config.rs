//! What a program chooses about reconnection.

use core::fmt;
use core::time::Duration;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::event::ConnectionEvent;

/// How a client reconnects: turned on by [`ClientConfig::with_reconnect`](super::super::ClientConfig::with_reconnect).
///
/// When a connection is lost, it is replaced by a new one to the same URI: after a delay that doubles with each failed
/// attempt, from [`min_delay`](Self::min_delay) up to [`max_delay`](Self::max_delay). A new connection has to lead to the
/// same export: with the same size, block sizes, metadata contexts, canonical name and description, at least the same
/// abilities, and the same protection by TLS. If it leads to another one, the client gives up at once.
///
/// The first connections are not covered: connecting a client fails at once if the server is not there. A program that
/// may start before its server connects again after a delay while the error
/// [is transient](super::super::Error::is_transient).
///
/// Requests wait meanwhile, each within its own
/// [deadline](super::super::ClientConfig::with_request_timeout). Then they are sent again:
///
/// | request | if not a byte of it was sent | if it may have been carried out |
/// | --- | --- | --- |
/// | read, block status, cache | sent | sent again |
/// | write, write zeroes, trim | sent | sent again, unless [`with_resent_writes`](Self::with_resent_writes) says otherwise |
/// | flush | sent | sent again |
/// | resize | sent | fails with [`Error::Lost`](super::super::Error::Lost), never sent twice |
///
/// A request whose caller has given it up is not sent again, nor is one that was sent
/// [`max_resends`](Self::with_max_resends) times without an answer.
///
/// # Durability
///
/// What was written and not flushed may have died with the server's cache. By default the next
/// [`flush`](super::super::Client::flush) fails with [`Error::InDoubt`](super::super::Error::InDoubt), which says how much
/// that may be; [`with_kept_writes`](Self::with_kept_writes) has the client keep it, and write it again.
///
/// ```
/// use nbd_engine::client::{ClientConfig, Reconnect};
/// use std::time::Duration;
///
/// let reconnect = Reconnect::new()
///     .with_delays(Duration::from_millis(50), Duration::from_secs(2))
///     .with_max_outage(Some(Duration::from_secs(120)))
///     .with_kept_writes(64 << 20)
///     .with_observer(|event| eprintln!("{event}"));
/// let config = ClientConfig::new().with_reconnect(reconnect);
/// ```
#[derive(Clone)]
pub struct Reconnect {
    min_delay: Duration,
    max_delay: Duration,
    jitter: f64,
    seed: u64,
    max_attempts: Option<u32>,
    max_outage: Option<Duration>,
    max_silence: Option<Duration>,
    max_resends: u32,
    resent_writes: bool,
    kept_writes: Option<u64>,
    observer: Option<Arc<Observer>>,
}

type Observer = dyn Fn(&ConnectionEvent) + Send + Sync;

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            min_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            jitter: 0.5,
            seed: RandomState::new().hash_one(0),
            max_attempts: None,
            max_outage: Some(Duration::from_secs(60)),
            max_silence: None,
            max_resends: 8,
            resent_writes: true,
            kept_writes: None,
            observer: None,
        }
    }
}

impl Reconnect {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait before the first attempt to reconnect, and before any at most: the delay doubles with each
    /// attempt. Default 100 milliseconds and 5 seconds. A maximum below the minimum means the minimum. Zero tries again
    /// at once, as often as attempts fail.
    #[must_use]
    pub const fn with_delays(mut self, min: Duration, max: Duration) -> Self {
        self.min_delay = min;
        self.max_delay = if max.as_nanos() < min.as_nanos() { min } else { max };
        self
    }

    /// The share of each delay that is random, from 0 to 1: with 0.5 a delay is between half of its length and all of
    /// it, so that the clients of a server do not come back all at once. Default 0.5; what is out of range means the
    /// nearer end, and what is no number 0.
    #[must_use]
    pub const fn with_jitter(mut self, share: f64) -> Self {
        // NaN means no jitter.
        self.jitter = if share > 1.0 {
            1.0
        } else if share > 0.0 {
            share
        } else {
            0.0
        };
        self
    }

    /// Where random delays begin. Default: another one for each value that [`new`](Self::new) makes.
    #[must_use]
    pub const fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Attempts in a row that may fail; `None` for any number. With 0 there is none, and the client gives the connection up at
    /// once. Default `None`.
    #[must_use]
    pub const fn with_max_attempts(mut self, attempts: Option<u32>) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// How long a connection may be lost before the client gives up on it; `None` for ever. Default 60 seconds. Its requests
    /// fail then, unless another connection of the client is up, by which they go on.
    ///
    /// Connections that break again before they have answered anything, and sooner than the maximal delay, do not end an
    /// outage.
    #[must_use]
    pub const fn with_max_outage(mut self, limit: Option<Duration>) -> Self {
        self.max_outage = limit;
        self
    }

    /// How many times a request may be sent again, so that one that kills the server does not do so for ever; then it
    /// fails with [`Error::Lost`](super::super::Error::Lost). Default 8.
    #[must_use]
    pub const fn with_max_resends(mut self, resends: u32) -> Self {
        self.max_resends = resends;
        self
    }

    /// Whether writes, write zeroes and trims are sent again that may have been carried out. Default `true`.
    ///
    /// The protocol has no way to fence off a server's earlier connection: a server that is only cut off, and carries a
    /// request out after the client has sent it again, been answered, and changed the same bytes by another request, undoes
    /// that other one. That can't happen with a server that died. Where it could, `false` has such requests fail with
    /// [`Error::Lost`](super::super::Error::Lost) instead.
    #[must_use]
    pub const fn with_resent_writes(mut self, resent: bool) -> Self {
        self.resent_writes = resent;
        self
    }

    /// How long a server that owes replies may send nothing, and take in nothing of what is being sent to it, before its
    /// connection counts as lost and is replaced. A client notices after half as long again at the latest. A time in which
    /// the client itself did not run does not count.
    ///
    /// What the system has taken to send counts as sent, some MiB at most, whether or not the server has it: so the limit has
    /// to be longer than these take on a slow line.
    ///
    /// Without it the system notices that the server's machine is gone, within two minutes on an idle TCP connection and
    /// within five on one with requests in flight, but not that a server hangs. Choose a time that no request takes, a flush
    /// in particular: a server that was only slow may carry out what it had received *after* the client has sent it again
    /// elsewhere. Default: `None`, no limit. Zero means the shortest limit that there is, a millisecond.
    #[must_use]
    pub const fn with_max_silence(mut self, limit: Option<Duration>) -> Self {
        self.max_silence = match limit {
            Some(Duration::ZERO) => Some(Duration::from_millis(1)),
            limit => limit,
        };
        self
    }

    /// Keeps acknowledged writes in memory until they are flushed, and writes them again after a lost connection, before
    /// anything else is sent on any connection; so that what was acknowledged is there again, and a flush fails only if the
    /// server fails.
    ///
    /// `max_bytes` bounds the memory of each client: what was acknowledged, and the writes in flight. When it is used up, the
    /// client flushes by itself; meanwhile further writes wait. A single write may exceed it, so that 0 has each write
    /// flushed.
    ///
    /// It has no effect on exports that can't be [flushed](super::super::ExportDetails::can_flush), which promise nothing.
    /// Default: nothing is kept, and [`Error::InDoubt`](super::super::Error::InDoubt) reports what may be lost.
    #[must_use]
    pub const fn with_kept_writes(mut self, max_bytes: u64) -> Self {
        self.kept_writes = Some(max_bytes);
        self
    }

    /// Calls a function with each [`ConnectionEvent`]. It is called where the connection is driven: it must not block, nor
    /// wait for requests of the same client.
    #[must_use]
    pub fn with_observer(
        mut self,
        observer: impl Fn(&ConnectionEvent) + Send + Sync + 'static,
    ) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// See [`with_delays`](Self::with_delays).
    #[must_use]
    pub const fn min_delay(&self) -> Duration {
        self.min_delay
    }

    /// See [`with_delays`](Self::with_delays).
    #[must_use]
    pub const fn max_delay(&self) -> Duration {
        self.max_delay
    }

    /// See [`with_max_attempts`](Self::with_max_attempts).
    #[must_use]
    pub const fn max_attempts(&self) -> Option<u32> {
        self.max_attempts
    }

    /// See [`with_max_outage`](Self::with_max_outage).
    #[must_use]
    pub const fn max_outage(&self) -> Option<Duration> {
        self.max_outage
    }

    /// See [`with_max_silence`](Self::with_max_silence).
    #[must_use]
    pub const fn max_silence(&self) -> Option<Duration> {
        self.max_silence
    }

    /// See [`with_kept_writes`](Self::with_kept_writes).
    #[must_use]
    pub const fn kept_writes(&self) -> Option<u64> {
        self.kept_writes
    }

    pub(super) const fn jitter(&self) -> f64 {
        self.jitter
    }

    pub(super) const fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) const fn max_resends(&self) -> u32 {
        self.max_resends
    }

    pub(super) const fn resent_writes(&self) -> bool {
        self.resent_writes
    }

    /// Reports an event, to the observer and to the log.
    pub(in super::super) fn observe(&self, event: &ConnectionEvent) {
        event.log();
        if let Some(observer) = &self.observer {
            observer(event);
        }
    }
}

impl fmt::Debug for Reconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconnect")
            .field("min_delay", &self.min_delay)
            .field("max_delay", &self.max_delay)
            .field("max_attempts", &self.max_attempts)
            .field("max_outage", &self.max_outage)
            .field("max_silence", &self.max_silence)
            .field("kept_writes", &self.kept_writes)
            .finish_non_exhaustive()
    }
}
