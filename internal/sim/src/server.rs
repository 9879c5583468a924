//! Servers, one after the other, on one disk.

use core::time::Duration;
use std::sync::Arc;

use futures_util::future::{Either, select};
use nbd_engine::export::{ExportEntry, ExportMap};
use nbd_engine::net::LocalAddr;
use nbd_engine::server::{Accepted, Listen, ServerConfig, ServerState, listen};

use crate::client::{ADDRESS, Surroundings};
use crate::disk::Served;
use crate::meddler::Meddler;
use crate::net::{Death, Listener};
use crate::plan::{Outage, OutageKind, ServerPlan};
use crate::world::{Process, note};

/// How long a server may take to shut down, beyond its own deadline for that.
const SHUTDOWN_SLACK: Duration = Duration::from_secs(2);

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    process: Process,
    state: Arc<ServerState>,
}

impl Running {
    /// Starts a server in a process of its own.
    #[must_use]
    pub fn start(around: &Surroundings) -> Self {
        let process = around.world.process();
        let plan = &around.server_plan;
        let disk = Served(around.disk.clone());
        let entry = ExportEntry::new("disk", nbd_engine::export::AnyExport::new_async(disk));
        let entry = entry.expect("the name is short");
        let exports = ExportMap::new().with_entry(entry);
        let state = ServerState::new(exports, config(plan));
        let mut runtime = around.world.runtime(process);
        if plan.threads_of_its_own {
            runtime = runtime.with_threads_of_its_own();
        }
        let listener = around.net.listen(process, ADDRESS);
        let listener = MeddlingListener { listener, around: around.clone() };
        let address = LocalAddr::Tcp(ADDRESS);
        let spawn = |task| {
            around.world.spawn(process, task);
            Ok(())
        };
        listen(&state, [(address, listener)], &runtime, spawn).expect("there is a socket");
        note(&around.world, || format!("server {process:?}: starts"));
        Self { process, state }
    }

    /// Ends it as an outage says.
    pub async fn end(self, around: &Surroundings, outage: &Outage) {
        note(&around.world, || format!("server {:?}: {:?}", self.process, outage.kind));
        around.begin_outage();
        if outage.kind == OutageKind::Orderly {
            self.shut_down(around).await;
        }
        let death =
            outage.silent.map_or(Death::Closed, |time| Death::Silent(Duration::from_nanos(time)));
        around.net.sever(self.process, death);
        around.world.kill(self.process);
        let power_cut = outage.kind == OutageKind::PowerCut;
        if power_cut {
            around.disk.cut_power();
        }
        around.disk.reopen();
        around.oracle.server_ended(power_cut);
    }

    /// Shuts it down, which has to end in time.
    pub async fn shut_down(&self, around: &Surroundings) {
        self.state.shut_down();
        let limit = self.state.config().drain_timeout() + SHUTDOWN_SLACK;
        let ended = Box::pin(self.state.ended());
        if let Either::Right(_) = select(ended, around.world.sleep(limit)).await {
            around.oracle.violation("a server did not shut down in time".to_owned());
        }
    }

    /// Connections that it has.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.connections()
    }

    /// Ends its tasks.
    pub fn kill(&self, around: &Surroundings) {
        around.world.kill(self.process);
    }
}

fn config(plan: &ServerPlan) -> ServerConfig {
    ServerConfig::new()
        .with_limits(plan.limits)
        .with_structured_replies(plan.structured_replies)
        .with_extended_headers(plan.extended_headers)
        .with_max_connections(plan.max_connections)
        .with_max_buffer_memory(Some(plan.buffer_memory))
        .with_hang_up(plan.hangs_up)
        // The network may be much slower than a real one.
        .with_min_transfer_rate(1)
        .with_busy_poll(Some(Duration::ZERO))
        .with_resize(true)
}

/// Puts something between the server and its streams.
struct MeddlingListener {
    listener: Listener,
    around: Surroundings,
}

impl Listen for MeddlingListener {
    type Transport = Meddler;

    async fn accept(&mut self) -> std::io::Result<Accepted<Meddler>> {
        let accepted = self.listener.accept().await?;
        let transport = Meddler::new(accepted.transport, self.around.mutation);
        Ok(Accepted::new(transport, accepted.peer))
    }
}
