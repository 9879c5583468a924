//! Trying again when a server can't be reached, or is gone.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nbd_blocking::client::{ClientConfig, ConnectionEvent, Error, Reconnect};

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
    /// flight is sent again, each request as many times, and 8 at least [default: none]
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

    /// How many times a request is sent again: those that wait behind others may be lost as often as the connection is, which
    /// is no fault of theirs.
    fn resends(&self) -> u32 {
        const LEAST: u32 = 8;
        self.retries.max(LEAST)
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
            .with_max_resends(self.resends())
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

    /// Connects, and tries again if that fails in a way that is transient.
    pub(crate) fn connect<R>(
        &self,
        mut attempt: impl FnMut() -> Result<R, Error>,
    ) -> Result<R, Error> {
        for delay in self.delays() {
            match attempt() {
                Err(error) if error.is_transient() => {
                    tracing::warn!("{error}; trying again in {delay:?}");
                }
                result => return result,
            }
            thread::sleep(delay);
        }
        attempt()
    }

    /// How long to wait before each further attempt.
    fn delays(&self) -> impl Iterator<Item = Duration> {
        let max = MAX_DELAY.max(self.retry_delay);
        let mut next = self.retry_delay;
        (0..self.retries).map(move |_| {
            let delay = next;
            next = delay.saturating_mul(2).min(max);
            delay
        })
    }
}

#[cfg(test)]
mod tests {
    use nbd_blocking::export::{ExportMap, Memory};
    use nbd_blocking::{Client, Server};
    use nbd_testkit::process::wait_until;

    use super::*;

    #[test]
    fn what_is_transient_is_tried_as_often_as_is_asked_for() {
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
    fn delays_double_up_to_a_minute_or_the_first_one() {
        let delays = |first, retries| -> Vec<u64> {
            let retry_delay = Duration::from_secs(first);
            let wanted = Retries { retries, retry_delay, ..Retries::default() };
            wanted.delays().map(|delay| delay.as_secs()).collect()
        };
        assert_eq!(delays(1, 0), [0; 0]);
        assert_eq!(delays(1, 9), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(delays(90, 3), [90, 90, 90]);
        assert_eq!(delays(u64::MAX, 2), [u64::MAX; 2]);
    }

    #[test]
    fn a_request_outlives_the_reconnection_that_may_help_it() {
        let timeout = Some(Duration::from_secs(5));
        let configured = |retries, first| {
            let retry_delay = Duration::from_secs(first);
            let wanted = Retries { retries, retry_delay, ..Retries::default() };
            assert_eq!(wanted.are_wanted(), retries > 0);
            wanted.apply(ClientConfig::new(), false, timeout)
        };
        let config = configured(0, 1);
        assert_eq!((config.request_timeout(), config.reconnect().is_some()), (timeout, false));
        // Twice the timeout for the silence, and for each attempt a timeout and the longest delay.
        for (first, max, patience) in [(1, 60, 10 + 3 * 65), (90, 90, 10 + 3 * 95)] {
            let config = configured(3, first);
            assert_eq!(config.request_timeout(), Some(Duration::from_secs(patience)));
            let reconnect = config.reconnect().unwrap();
            assert_eq!(reconnect.max_attempts(), Some(3));
            assert_eq!(reconnect.min_delay(), Duration::from_secs(first));
            assert_eq!(reconnect.max_delay().as_secs(), max);
            assert_eq!((reconnect.max_silence(), reconnect.max_outage()), (timeout, None));
            assert_eq!(reconnect.kept_writes(), Some(67_108_864));
        }
    }

    #[test]
    fn retries_for_another_server_know_nothing_of_the_outages_of_the_first() {
        let wanted =
            Retries { retries: 3, retry_delay: Duration::from_secs(7), ..Retries::default() };
        let other = wanted.for_another();
        assert_eq!((other.retries, other.retry_delay), (3, wanted.retry_delay));
        wanted.lost.store(true, Ordering::Relaxed);
        assert!(wanted.have_replaced() && !other.have_replaced());
        assert!(wanted.clone().have_replaced(), "these are of the same server");
        assert!(!Arc::ptr_eq(&wanted.outages, &other.outages));
    }

    #[test]
    fn an_outage_lasts_until_there_is_another_connection() {
        const LIMIT: Duration = Duration::from_secs(60);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let serve = || {
            let server = Server::new(ExportMap::new().with("", Memory::new(512).unwrap()).unwrap());
            server.listen_unix(&socket).unwrap();
            server
        };
        let stop = |server: Server| {
            server.shut_down();
            server.wait();
        };
        let retry_delay = Duration::from_millis(1);
        let wanted = Retries { retries: u32::MAX, retry_delay, ..Retries::default() };
        let config = wanted.apply(ClientConfig::new(), false, None);
        let uri = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
        let server = serve();
        let client = Client::connect_with(&uri, &config).unwrap();
        assert!(!wanted.have_replaced());
        stop(server);
        let reading = thread::spawn({
            let client = client.clone();
            move || client.read_exact_at(&mut [0; 512], 0)
        });
        let failed_attempts = || {
            let outages = wanted.outages.lock().unwrap();
            outages.get(&0).map(|outage| outage.failed_attempts.load(Ordering::Relaxed))
        };
        wait_until("some attempts fail", LIMIT, || {
            failed_attempts().is_some_and(|count| count > 2)
        });
        assert!(wanted.have_replaced());
        let server = serve();
        reading.join().unwrap().unwrap();
        wait_until("the outage is over", LIMIT, || failed_attempts().is_none());
        client.disconnect();
        stop(server);
    }

    #[test]
    fn what_is_not_transient_is_tried_once() {
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
