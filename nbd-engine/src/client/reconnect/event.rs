//! What can be observed of a client's connections.

use crate::counted;
use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use super::super::{Error, LostReason};

/// What happened to one of a client's connections, which are numbered from 0 on. Its text is for people.
///
/// See [`Reconnect::with_observer`](super::Reconnect::with_observer).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// It was lost; the client tries to reconnect.
    #[non_exhaustive]
    Lost {
        /// The server and the export.
        peer: Arc<str>,
        /// Which connection.
        connection: usize,
        /// Why.
        reason: LostReason,
        /// Requests that wait for the new connection.
        waiting: usize,
    },
    /// An attempt to reconnect failed.
    #[non_exhaustive]
    AttemptFailed {
        /// The server and the export.
        peer: Arc<str>,
        /// Which connection.
        connection: usize,
        /// How many attempts have failed in a row.
        attempts: u32,
        /// Why.
        error: Error,
    },
    /// It was replaced by a new one, to the same export.
    #[non_exhaustive]
    Reconnected {
        /// The server and the export.
        peer: Arc<str>,
        /// Which connection.
        connection: usize,
        /// How long it was lost.
        outage: Duration,
        /// Requests that are sent, or sent again.
        waiting: usize,
    },
    /// It is lost for good: the client reconnects no more.
    #[non_exhaustive]
    GaveUp {
        /// The server and the export.
        peer: Arc<str>,
        /// Which connection.
        connection: usize,
        /// Why.
        reason: LostReason,
    },
}

impl ConnectionEvent {
    pub(super) fn log(&self) {
        match self {
            Self::Lost { .. } | Self::GaveUp { .. } => tracing::warn!("{self}"),
            Self::AttemptFailed { .. } => tracing::debug!("{self}"),
            Self::Reconnected { .. } => tracing::info!("{self}"),
        }
    }
}

impl fmt::Display for ConnectionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { peer, reason, waiting, .. } => {
                write!(f, "lost the connection to {peer}: {reason}; reconnecting")?;
                if *waiting > 0 {
                    write!(f, " for {}", counted(*waiting, "request"))?;
                }
                Ok(())
            }
            Self::AttemptFailed { attempts, error, .. } => {
                write!(f, "attempt {attempts} to reconnect failed: {error}")
            }
            Self::Reconnected { peer, outage, .. } => {
                write!(f, "reconnected to {peer} after {:.1} s", outage.as_secs_f64())
            }
            Self::GaveUp { peer, reason, .. } => {
                write!(f, "gave up the connection to {peer}: {reason}")
            }
        }
    }
}

/// Why a client reconnects no more.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum GaveUp {
    /// So many attempts in a row failed.
    #[non_exhaustive]
    Attempts {
        /// How many.
        attempts: u32,
        /// How the last one failed.
        last: Option<Box<Error>>,
    },
    /// The connection was lost for longer than the limit.
    #[non_exhaustive]
    Outage {
        /// The limit, see [`Reconnect::with_max_outage`](super::Reconnect::with_max_outage).
        limit: Duration,
        /// How the last attempt failed, if one did.
        last: Option<Box<Error>>,
    },
    /// The server has another export now: requests must not be sent to it.
    #[non_exhaustive]
    Changed {
        /// What is different, for people.
        what: Arc<str>,
    },
    /// The request was sent again as often as it may be, and its connection was lost each time. Others go on.
    #[non_exhaustive]
    Resends {
        /// How many times it was sent. The bound is [`Reconnect::with_max_resends`](super::Reconnect::with_max_resends).
        times: u32,
    },
    /// No attempt can succeed.
    #[non_exhaustive]
    Hopeless {
        /// Why.
        error: Box<Error>,
    },
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = match self {
            Self::Attempts { attempts, last } => {
                write!(f, "{} to reconnect failed", counted(*attempts, "attempt"))?;
                last
            }
            Self::Outage { limit, last } => {
                write!(f, "no new connection in {limit:?}")?;
                last
            }
            Self::Changed { what } => {
                return write!(f, "the server has another export now: {what}");
            }
            Self::Resends { times } => {
                return write!(
                    f,
                    "the request was sent {times} times, and its connection was lost each time"
                );
            }
            Self::Hopeless { error } => return error.fmt(f),
        };
        match last {
            Some(error) => write!(f, ", the last attempt: {error}"),
            None => Ok(()),
        }
    }
}
