//! What counts what the server does, and shows it.

use std::sync::Arc;

use nbd_engine::server::Metrics;
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use super::http::{self, Listening, Shown};
use super::{MetricsAddress, summary};
use crate::exit::Failure;
use crate::serve::predecessor::Predecessor;
use crate::serve::sockets::{Bound, Role, Sockets};

/// The metrics of a server, which are shown as long as the process lives.
#[derive(Debug)]
pub(in crate::serve) struct Monitor {
    metrics: Metrics,
    /// The sockets that metrics are served on. A path goes with its socket.
    listening: Vec<(Bound, Listening)>,
}

impl Monitor {
    /// Logs a summary at each SIGUSR1 from now on, and serves metrics if there is an address: on the socket that a
    /// predecessor has there, or on a new one. `exports` gives the names of those that there are.
    pub(in crate::serve) fn start(
        address: Option<&MetricsAddress>,
        predecessor: Option<&mut Predecessor>,
        exports: impl Fn() -> Vec<String> + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        let metrics = Metrics::new();
        let mut signals = Signals::new([SIGUSR1])
            .map_err(|error| Failure::failed(format!("cannot watch for SIGUSR1: {error}")))?;
        let counted = metrics.clone();
        let report = move || signals.forever().for_each(|_| summary::log(&counted));
        let thread = std::thread::Builder::new().name("nbd-report".into());
        thread.spawn(report).map_err(|error| {
            Failure::failed(format!("cannot start the thread that reports metrics: {error}"))
        })?;
        let listening = match address {
            Some(address) => {
                let shown = Shown { metrics: metrics.clone(), exports: Arc::new(exports) };
                http::listen(address, predecessor, &shown)?
            }
            None => Vec::new(),
        };
        Ok(Self { metrics, listening })
    }

    /// Puts the sockets among those that a successor gets.
    pub(in crate::serve) fn keep_in(&mut self, sockets: &Sockets) -> std::io::Result<()> {
        for (bound, listening) in self.listening.drain(..) {
            sockets.keep(Role::Metrics, bound)?;
            sockets.accepting(Role::Metrics, listening);
        }
        Ok(())
    }

    /// What counts.
    pub(in crate::serve) const fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}
