//! From a lost connection to a new one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use nbd_proto::Uri;

use super::super::connection_handle::ConnectionHandle;
use super::super::ready::ReadyConnection;
use super::super::request_state::RequestState;
use super::super::timer::Timer;
use super::super::{
    ClientConfig, Connector, Error, ExportDetails, Negotiation, NoSession, OptionCode,
};
use super::same::difference;
use super::{Backoff, ConnectionEvent, GaveUp, Reconnect};
use crate::runtime::BoxFuture;

/// Where the connections of a client lead: all but the first are made by it.
#[derive(Clone, Debug)]
pub(in super::super) struct Target<C> {
    connector: C,
    uri: Uri,
    export: String,
    config: ClientConfig,
}

impl<C: Connector> Target<C> {
    /// That of the first connection, with whatever was negotiated by hand on it.
    pub(in super::super) fn of_first(
        connector: &C,
        uri: &Uri,
        config: &ClientConfig,
        details: &ExportDetails,
    ) -> Self {
        let config = config
            .clone()
            .with_contexts(details.contexts().iter().map(|context| &**context))
            .with_structured_replies(details.is_structured())
            .with_extended_headers(details.is_extended());
        let (connector, export) = (connector.clone(), details.name().to_owned());
        Self { connector, uri: uri.clone(), export, config }
    }

    /// One more connection, on which the export is entered.
    pub(in super::super) async fn connect(&self) -> Result<ReadyConnection, Error> {
        let connector = self.connector.clone();
        let mut negotiation = Negotiation::connect_by(connector, &self.uri, &self.config).await?;
        let ready = negotiation.enter_ready(&self.export).await?;
        // The first connection has them. A server that is just starting may not have the export yet, and then have it.
        match ready.details.contexts_refused() {
            None => Ok(ready),
            Some(refused) => Err(Error::Refused {
                peer: Arc::clone(&ready.peer),
                export: Some(self.export.clone()),
                refusal: NoSession::Option {
                    code: OptionCode::SET_META_CONTEXT,
                    reply: refused.reply,
                },
                text: refused.message.clone(),
            }),
        }
    }
}

/// Makes new connections in place of lost ones: whatever the connector, behind a pointer.
pub(in super::super) struct Reconnector {
    connect: Box<dyn Fn() -> BoxFuture<Result<ReadyConnection, Error>> + Send + Sync>,
    pub(in super::super) config: Reconnect,
    /// As the client sees the export.
    expected: ExportDetails,
    pub(in super::super) peer: Arc<str>,
    timer: Timer,
    /// Those of all of the client's connections.
    handles: Vec<Arc<ConnectionHandle>>,
}

/// What became of an outage, and the delays for the next one.
pub(in super::super) type Outage = (Result<ReadyConnection, GaveUp>, Backoff);

impl Reconnector {
    pub(in super::super) fn new<C: Connector>(
        target: Target<C>,
        config: Reconnect,
        first: &ReadyConnection,
        timer: Timer,
        handles: Vec<Arc<ConnectionHandle>>,
    ) -> Self {
        let target = Arc::new(target);
        let connect = move || -> BoxFuture<Result<ReadyConnection, Error>> {
            let target = Arc::clone(&target);
            Box::pin(async move { target.connect().await })
        };
        let (expected, peer) = (first.details.clone(), Arc::clone(&first.peer));
        Self { connect: Box::new(connect), config, expected, peer, timer, handles }
    }

    /// Whether a connection is being replaced: its requests may go on by another one at any moment, so that a waiter has to
    /// drive all of them.
    pub(in super::super) fn is_replacing(&self) -> bool {
        self.handles.len() > 1 && self.handles.iter().any(|handle| handle.is_down())
    }

    /// Has requests that wait for a lost connection go on by those that are up, as far as there are any.
    pub(in super::super) fn hand_over(&self, index: usize, requests: &mut VecDeque<RequestState>) {
        let Some(from) = self.handles.get(index) else { return };
        let mut up = self.handles.iter().filter(|handle| handle.is_up()).cycle();
        let count = requests.len();
        while let Some(request) = requests.pop_front() {
            let refused = match up.next() {
                Some(other) => other.adopt(request, from),
                None => Some(request),
            };
            if let Some(request) = refused {
                requests.push_front(request);
                break;
            }
        }
        let moved = count - requests.len();
        if moved > 0 {
            let peer = &*self.peer;
            tracing::debug!(peer, connection = index, moved, "requests go on by other connections");
        }
    }

    /// A connection is there again: those that are not look whether their requests can go on by it.
    pub(in super::super) fn wake_others(&self) {
        for handle in self.handles.iter().filter(|handle| handle.is_down()) {
            handle.waker.wake();
        }
    }

    pub(in super::super) const fn timer(&self) -> &Timer {
        &self.timer
    }

    pub(in super::super) fn now(&self) -> Instant {
        self.timer.now()
    }

    /// Tries until there is a new connection, or until it gives up. `since` is when the connection was lost, and `resized`
    /// the size that the export may have instead of the one that is known.
    pub(in super::super) async fn reconnect(
        self: Arc<Self>,
        connection: usize,
        since: Instant,
        resized: Option<u64>,
        mut backoff: Backoff,
    ) -> Outage {
        let mut last = None;
        let attempts = self.attempts(connection, resized, &mut backoff, &mut last);
        let connected = match self.config.max_outage() {
            None => Some(attempts.await),
            Some(limit) => {
                let left = limit.saturating_sub(self.now().saturating_duration_since(since));
                self.timer.within(left, attempts).await
            }
        };
        let gave_up = |limit| GaveUp::Outage { limit, last: last.map(Box::new) };
        let limit = self.config.max_outage().unwrap_or_default();
        (connected.unwrap_or_else(|| Err(gave_up(limit))), backoff)
    }

    async fn attempts(
        &self,
        connection: usize,
        resized: Option<u64>,
        backoff: &mut Backoff,
        last: &mut Option<Error>,
    ) -> Result<ReadyConnection, GaveUp> {
        let size = self.expected.size();
        loop {
            let attempts = backoff.attempts();
            if self.config.max_attempts().is_some_and(|max| attempts >= max) {
                return Err(GaveUp::Attempts { attempts, last: last.take().map(Box::new) });
            }
            self.timer.sleep(backoff.next()).await;
            match (self.connect)().await {
                Ok(ready) => {
                    let sizes = [size, resized.unwrap_or(size)];
                    return match difference(&self.expected, sizes, &ready.details) {
                        None => Ok(ready),
                        Some(what) => Err(GaveUp::Changed { what }),
                    };
                }
                Err(error) if is_hopeless(&error) => {
                    return Err(GaveUp::Hopeless { error: Box::new(error) });
                }
                Err(error) => {
                    let (peer, attempts) = (Arc::clone(&self.peer), backoff.attempts());
                    *last = Some(error.clone());
                    if let Some(handle) = self.handles.get(connection) {
                        handle.set_failing();
                    }
                    self.config.observe(&ConnectionEvent::AttemptFailed {
                        peer,
                        connection,
                        attempts,
                        error,
                    });
                }
            }
        }
    }
}

/// Whether trying again is of no use: the fault is on this side. Whatever a server does, another one may come.
fn is_hopeless(error: &Error) -> bool {
    match error {
        Error::Unsupported { .. } | Error::InvalidOption(_) | Error::Invalid(_) => true,
        #[cfg(feature = "tls")]
        Error::TlsSetup(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use nbd_proto::InvalidRequest;
    use nbd_proto::client::OptionError;

    use super::*;
    use crate::client::manual::{Called, SECOND, Said};
    use crate::runtime::Runtime;

    #[test]
    fn what_no_server_can_mend_is_not_tried_again() {
        let (address, peer) = ("nbd://host/".to_owned(), Arc::<str>::from("nbd://host/"));
        let refused = std::io::ErrorKind::ConnectionRefused;
        let errors = [
            (Error::Unsupported { address: address.clone(), what: "it is not built in" }, true),
            (Error::InvalidOption(OptionError::NeedsFixedNewstyle), true),
            (Error::Invalid(InvalidRequest::NoContexts), true),
            #[cfg(feature = "tls")]
            (Error::TlsSetup(Arc::new(crate::tls::TlsError::NoRoots)), true),
            (Error::Connect { address, source: Arc::new(refused.into()) }, false),
            (Error::Disconnected { peer: Arc::clone(&peer) }, false),
            (
                Error::TimedOut { peer: Arc::clone(&peer), what: "x", limit: SECOND, sent: true },
                false,
            ),
        ];
        for (error, is_hopeless) in errors {
            let net = Called::new(Said::default());
            let expected = net.connect(&ClientConfig::new()).export().clone();
            let fails = error.clone();
            let connect = move || -> BoxFuture<Result<ReadyConnection, Error>> {
                let error = fails.clone();
                Box::pin(async move { Err(error) })
            };
            let config = net.reconnect().with_max_attempts(Some(3));
            let backoff = Backoff::new(&config, 0);
            let (peer, timer) = (Arc::clone(&peer), Timer::new(net.clone()));
            let (connect, handles) = (Box::new(connect), Vec::new());
            let reconnector = Reconnector { connect, config, expected, peer, timer, handles };
            let reconnector = Arc::new(reconnector);
            let since = Runtime::now(&net);
            let outage = Box::pin(reconnector.reconnect(0, since, None, backoff));
            match net.wait(outage, Duration::from_millis(500)).0 {
                Err(GaveUp::Hopeless { error: found }) => {
                    assert!(is_hopeless, "{found}");
                    assert_eq!(found.to_string(), error.to_string());
                }
                Err(GaveUp::Attempts { attempts: 3, last: Some(last) }) => {
                    assert!(!is_hopeless, "{last}");
                    assert_eq!(last.to_string(), error.to_string());
                }
                Err(gave_up) => panic!("{gave_up}"),
                Ok(_) => panic!("there is no server"),
            }
        }
    }
}
