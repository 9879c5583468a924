//! Trying again when a server can't be reached, or is gone.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nbd_blocking::client::{
    ClientConfig, ConnectionEvent, Error, OptionReplyType, Reconnect, Refusal,
};

use crate::waiting::Watched;
use crate::{quantity, stderr, waiting};

/// The longest delay between two attempts, unless the first one is longer.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// Bytes of writes that each connection keeps until they are flushed, to write them again.
const KEPT: u64 = 64 << 20;

/// How often to try again.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Retries {
    /// How many attempts in a row may fail to reach the server, at first and when a connection to it is lost: then what was in
    /// flight is sent again [default: none]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        value_parser = quantity::number_of::<u32>
    )]
    retries: u32,

    /// How long to wait before such an attempt: seconds, or a number with a suffix such as 500ms; twice as long before each
    /// further one, up to a minute
    #[arg(
        long,
        value_name = "T",
        default_value = "1",
        value_parser = quantity::duration,
        requires = "retries"
    )]
    retry_delay: Duration,

    /// Whether a connection was lost that was made with these.
    #[arg(skip)]
    lost: Arc<AtomicBool>,

    /// The connections that are lost at the moment, by their index, as reported while they are.
    #[arg(skip)]
    outages: Arc<Mutex<HashMap<usize, Outage>>>,
}

/// A lost connection. What takes long is reported beside the progress bar.
#[derive(Debug)]
struct Outage {
    failed_attempts: Arc<AtomicU32>,
    _reported: Watched,
}

impl Outage {
    fn new(peer: &Arc<str>, max_attempts: u32) -> Self {
        let failed_attempts = Arc::new(AtomicU32::new(0));
        let (peer, failed) = (Arc::clone(peer), Arc::clone(&failed_attempts));
        let reported = waiting::on(move |seconds| {
            let attempt = failed.load(Ordering::Relaxed) + 1;
            format!(
                "reconnecting to {peer}, attempt {attempt} of {max_attempts}: the connection was lost {seconds} s ago"
            )
        });
        Self { failed_attempts, _reported: reported }
    }
}

impl Retries {
    /// The same for another server.
    pub(crate) fn for_another(&self) -> Self {
        Self { lost: Arc::default(), outages: Arc::default(), ..self.clone() }
    }

    /// Whether a connection was lost after it had been made.
    pub(crate) fn have_replaced(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether there are any.
    pub(crate) const fn are_wanted(&self) -> bool {
        self.retries > 0
    }

    /// Has a client reconnect, and write again what a server may have lost. `says` is whether that is reported on standard
    /// error, rather than logged. With a `timeout`, a server that owes an answer and sends nothing for so long counts as
    /// lost, and a request fails only when reconnecting can't have helped it any more.
    pub(crate) fn apply(
        &self,
        config: ClientConfig,
        says: bool,
        timeout: Option<Duration>,
    ) -> ClientConfig {
        if !self.are_wanted() {
            return config.with_request_timeout(timeout);
        }
        let reconnect = Reconnect::new()
            .with_max_attempts(Some(self.retries))
            .with_max_outage(None)
            .with_delays(self.retry_delay, MAX_DELAY)
            .with_max_silence(timeout)
            .with_kept_writes(KEPT);
        let (lost, outages) = (Arc::clone(&self.lost), Arc::clone(&self.outages));
        let max_attempts = self.retries;
        let reconnect = reconnect.with_observer(move |event| {
            let mut outages = outages.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                ConnectionEvent::Lost { peer, connection, .. } => {
                    lost.store(true, Ordering::Relaxed);
                    outages.insert(*connection, Outage::new(peer, max_attempts));
                }
                ConnectionEvent::AttemptFailed { connection, attempts, .. } => {
                    if let Some(outage) = outages.get(connection) {
                        outage.failed_attempts.store(*attempts, Ordering::Relaxed);
                    }
                }
                ConnectionEvent::Reconnected { connection, .. }
                | ConnectionEvent::GaveUp { connection, .. } => {
                    outages.remove(connection);
                }
                _ => {}
            }
            // A request that fails says so itself.
            let tells =
                matches!(event, ConnectionEvent::Lost { .. } | ConnectionEvent::Reconnected { .. });
            if says && tells {
                stderr::say(&event.to_string());
            }
        });
        let patience = timeout.map(|timeout| self.patience(timeout));
        config.with_reconnect(reconnect).with_request_timeout(patience)
    }

    /// How long a request may take if its server falls silent and as many attempts to reconnect fail as may.
    fn patience(&self, timeout: Duration) -> Duration {
        // Silence is noticed after half as long again at the latest.
        let attempt = timeout.saturating_add(MAX_DELAY.max(self.retry_delay));
        timeout.saturating_mul(2).saturating_add(attempt.saturating_mul(self.retries))
    }

    /// Connects, and tries again if that fails in a way that may pass.
    pub(crate) fn connect<R>(
        &self,
        mut attempt: impl FnMut() -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut delay = self.retry_delay;
        for _ in 0..self.retries {
            match attempt() {
                Err(error) if may_pass(&error) => tracing::warn!("{error}; trying again"),
                result => return result,
            }
            thread::sleep(delay);
            delay = (delay * 2).min(MAX_DELAY.max(self.retry_delay));
        }
        attempt()
    }
}

/// Whether another attempt may succeed: the server is away, or about to be.
pub(crate) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Connect { .. }
        | Error::TimedOut { .. }
        | Error::Lost { .. }
        | Error::Disconnected { .. } => true,
        // The stream broke in the handshake, which says nothing of certificates and keys.
        #[cfg(feature = "tls")]
        Error::Tls { source, .. } => matches!(
            source.kind(),
            std::io::ErrorKind::UnexpectedEof
                | std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::BrokenPipe
        ),
        Error::Protocol { source, .. } => {
            matches!(source, nbd_engine::proto::Error::UnexpectedEnd(_))
        }
        Error::Refused { refusal: Refusal::Option { reply, .. }, .. } => {
            *reply == OptionReplyType::ERR_SHUTDOWN
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_tried_as_often_as_is_asked_for() {
        for retries in [0, 1, 3] {
            let wanted = Retries { retries, ..Retries::default() };
            let mut attempts = 0;
            let peer: Arc<str> = "peer".into();
            let result: Result<(), _> = wanted.connect(|| {
                attempts += 1;
                Err(Error::Disconnected { peer: peer.clone() })
            });
            assert!(result.is_err());
            assert_eq!(attempts, retries + 1);
        }
    }

    #[test]
    fn what_does_not_pass_is_tried_once() {
        let wanted = Retries { retries: 3, ..Retries::default() };
        let mut attempts = 0;
        let unsupported = Error::Unsupported { address: "here".into(), what: "that" };
        let result: Result<(), _> = wanted.connect(|| {
            attempts += 1;
            Err(unsupported.clone())
        });
        assert!(result.is_err() && attempts == 1);
    }
}
