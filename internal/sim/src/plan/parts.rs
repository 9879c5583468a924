//! What can be left out of a plan.

use super::{Plan, ServerPlan};
use nbd_engine::client::Limits;

/// A part of a plan that a smaller plan can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are indices into the plan")]
pub enum Part {
    Client { client: usize },
    Lane { client: usize, lane: usize },
    Step { client: usize, lane: usize, step: usize },
    Cancellation { client: usize, lane: usize, step: usize },
    Death { client: usize },
    SeveralConnections { client: usize },
    RequestTimeout { client: usize },
    Outage { outage: usize },
    StreamFault { stream: usize, direction: usize },
    FailedAccepts,
    Splits,
    SmallWindow,
    DiskDelay,
    TornCommands,
    FailedReads,
    FailedWrites,
    FailedFlushes,
    Shutdowns,
    Destaging,
    ServerBounds,
}

impl Plan {
    /// All parts that it has, coarse ones first.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        use Part as P;
        let mut parts = Vec::new();
        let clients = || self.clients.iter().enumerate();
        parts.extend(clients().map(|(client, _)| P::Client { client }));
        parts.extend((0..self.outages.len()).map(|outage| P::Outage { outage }));
        for (stream, faults) in self.net.faults.iter().enumerate() {
            let some = (0..2).filter(|direction| faults[*direction].is_some());
            parts.extend(some.map(|direction| P::StreamFault { stream, direction }));
        }
        for (client, plan) in clients() {
            parts.extend((0..plan.lanes.len()).map(|lane| P::Lane { client, lane }));
            parts.extend(plan.dies_at.map(|_| P::Death { client }));
            parts.extend(plan.request_timeout.map(|_| P::RequestTimeout { client }));
            parts.extend((plan.connections > 1).then_some(P::SeveralConnections { client }));
        }
        parts.extend([
            P::FailedAccepts,
            P::Splits,
            P::SmallWindow,
            P::DiskDelay,
            P::TornCommands,
            P::FailedReads,
            P::FailedWrites,
            P::FailedFlushes,
            P::Shutdowns,
            P::Destaging,
            P::ServerBounds,
        ]);
        for (client, plan) in clients() {
            for (lane, steps) in plan.lanes.iter().enumerate() {
                for (step, details) in steps.iter().enumerate() {
                    parts.push(P::Step { client, lane, step });
                    if details.cancel_after.is_some() {
                        parts.push(P::Cancellation { client, lane, step });
                    }
                }
            }
        }
        parts
    }

    /// The plan without some of its [`parts`](Self::parts).
    #[must_use]
    pub fn without(&self, left_out: &[Part]) -> Self {
        let mut left_out = left_out.to_vec();
        // From the back, so that indices hold.
        left_out.sort_unstable_by(|one, other| other.cmp(one));
        let mut plan = self.clone();
        for part in &left_out {
            plan.clear(*part);
        }
        // Indices of what is removed from a list: last, and from the back.
        for part in &left_out {
            match *part {
                Part::Step { client, lane, step } => {
                    plan.clients[client].lanes[lane].remove(step);
                }
                Part::Outage { outage } => {
                    plan.outages.remove(outage);
                }
                _ => {}
            }
        }
        for part in &left_out {
            if let Part::Lane { client, lane } = *part {
                plan.clients[client].lanes[lane].clear();
            }
        }
        for part in &left_out {
            if let Part::Client { client } = *part {
                plan.clients[client].lanes.clear();
            }
        }
        plan
    }

    /// Takes out a part that is not an element of a list.
    fn clear(&mut self, part: Part) {
        let Self { net, disk, server, clients, .. } = self;
        match part {
            Part::Client { .. } | Part::Lane { .. } | Part::Step { .. } | Part::Outage { .. } => {}
            Part::Cancellation { client, lane, step } => {
                clients[client].lanes[lane][step].cancel_after = None;
            }
            Part::Death { client } => clients[client].dies_at = None,
            Part::SeveralConnections { client } => clients[client].connections = 1,
            Part::RequestTimeout { client } => clients[client].request_timeout = None,
            Part::StreamFault { stream, direction } => net.faults[stream][direction] = None,
            Part::FailedAccepts => net.accept_fails_one_in = 0,
            Part::Splits => net.split_one_in = 0,
            Part::SmallWindow => net.window = 1 << 20,
            Part::DiskDelay => disk.delay = 0,
            Part::TornCommands => disk.torn_one_in = 0,
            Part::FailedReads => disk.read_fails_one_in = 0,
            Part::FailedWrites => disk.write_fails_one_in = 0,
            Part::FailedFlushes => disk.flush_fails_one_in = 0,
            Part::Shutdowns => disk.shuts_down_one_in = 0,
            Part::Destaging => disk.destage_one_in = 0,
            Part::ServerBounds => {
                let ServerPlan { limits, buffer_memory, max_connections, .. } = server;
                (*limits, *buffer_memory, *max_connections) = (Limits::DEFAULT, 16 << 20, 1024);
            }
        }
    }
}
