//! How a client behaves.

use core::time::Duration;

use nbd_proto::Limits;
use nbd_proto::client::{Config, Goal};
use nbd_proto::wire::InfoType;

/// Choices and deadlines of a client, with defaults that suit most.
///
/// ```
/// let mut options = nbd_engine::client::Options::default();
/// options.contexts.push("base:allocation".into());
/// options.connections = 4;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The export to enter instead of the one that the URI names.
    pub export: Option<String>,
    /// The metadata contexts to select, for [`Client::block_status`](super::Client::block_status). Those that the server
    /// has not are missing from [`Negotiated::contexts`](super::Negotiated::contexts).
    pub contexts: Vec<String>,
    /// Ask for extended headers. Default true; servers that don't have them are used without.
    pub extended_headers: bool,
    /// Ask for structured replies, which metadata contexts need. Default true; servers that don't have them are used
    /// without.
    pub structured_replies: bool,
    /// Whether servers that only speak the oldstyle handshake will do. Default true.
    pub oldstyle: bool,
    /// Connections to spread requests over, if the server
    /// [says that it can](nbd_proto::wire::TransmissionFlags::CAN_MULTI_CONN), else one is all there is. Default 1.
    pub connections: usize,
    /// How long connecting and haggling may take together. Default 30 seconds.
    pub connect_timeout: Duration,
    /// How long the answer to a request may take. None by default: a disk may take its time.
    pub request_timeout: Option<Duration>,
    /// How long a connection whose server is quick asks for the next reply before it goes to sleep, which spares both
    /// sides the cost of waking it. It never happens on a single processor, nor for more connections at a time than half
    /// of the processors. Default 30 microseconds; zero turns it off.
    pub busy_wait: Duration,
    /// Bounds on what the server can make a connection hold, and on the requests in flight on it.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            export: None,
            contexts: Vec::new(),
            extended_headers: true,
            structured_replies: true,
            oldstyle: true,
            connections: 1,
            connect_timeout: Duration::from_secs(30),
            request_timeout: None,
            busy_wait: Duration::from_micros(30),
            limits: Limits::DEFAULT,
        }
    }
}

/// What is asked about an export, by those who look as by those who enter.
pub(crate) const INFO: [InfoType; 3] =
    [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];

impl Options {
    /// The configuration of the protocol's machine: it prepares, and leaves the choice of the export to the engine.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::default();
        config.limits = self.limits;
        config.goal = Goal::Prepare;
        config.extended_headers = self.extended_headers;
        config.structured_replies = self.structured_replies;
        config.oldstyle = self.oldstyle;
        config.info = INFO.into();
        config
    }
}
