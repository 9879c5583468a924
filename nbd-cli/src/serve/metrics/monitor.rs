//! What counts what the server does, and shows it.

use nbd_engine::net::SocketPath;
use nbd_engine::server::Metrics;
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use super::{MetricsAddress, http, summary};
use crate::exit::Failure;

/// The metrics of a server, which are shown as long as the process lives.
#[derive(Debug)]
pub(in crate::serve) struct Monitor {
    metrics: Metrics,
    /// The socket that metrics are served on, if it has a path. It is removed when this is dropped.
    _socket: Option<SocketPath>,
}

impl Monitor {
    /// Logs a summary at each SIGUSR1 from now on, and serves metrics if there is an address.
    pub(in crate::serve) fn start(address: Option<&MetricsAddress>) -> Result<Self, Failure> {
        let metrics = Metrics::new();
        let mut signals = Signals::new([SIGUSR1])
            .map_err(|error| Failure::failed(format!("cannot watch for SIGUSR1: {error}")))?;
        let counted = metrics.clone();
        let report = move || signals.forever().for_each(|_| summary::log(&counted));
        let thread = std::thread::Builder::new().name("nbd-report".into());
        thread.spawn(report).map_err(|error| {
            Failure::failed(format!("cannot start the thread that reports metrics: {error}"))
        })?;
        let socket = match address {
            Some(address) => http::listen(address, &metrics)?,
            None => None,
        };
        Ok(Self { metrics, _socket: socket })
    }

    /// What counts.
    pub(in crate::serve) const fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
