//! The beginning, the rests and the end of a connection's requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use nbd_proto::server::{Connection, SelfAnswered};

use super::admission::Admission;
use super::slot::Memory;
use super::{Clock, Requests};
use crate::export::AnyExport;
use crate::server::metrics::{Progress, Recorder};
use crate::server::negotiation::Negotiation;
use crate::server::slot_futures::SlotFutures;
use crate::server::state::ServerState;
use crate::server::turn::Turn;
use crate::server::watch::Activity;

/// Slots that an idle connection keeps room for.
const MAX_IDLE_SLOTS: usize = 16;

impl Requests {
    pub(in crate::server) fn new(
        state: Arc<ServerState>,
        negotiation: Negotiation,
        recorder: Option<Recorder>,
        turn: Turn,
        clock: Clock,
    ) -> Self {
        let memory = Memory::new(state.budget());
        Self {
            state,
            negotiation,
            contexts: Vec::new(),
            slots: Vec::new(),
            memory,
            admission: None,
            clock,
            held: None,
            waiting: VecDeque::new(),
            payload_waits: false,
            offloaded: 0,
            lane: None,
            completions: Arc::default(),
            completed: Vec::new(),
            futures: SlotFutures::new(),
            turn,
            recorder,
            activity: Activity::default(),
            ending: false,
            hung_up: false,
            rests: false,
            ended_rest: false,
            closed: None,
        }
    }

    /// The runtime's time.
    pub(in crate::server) fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Transmission begins.
    pub(in crate::server) fn entered(&mut self, connection: &Connection) {
        let Some(view) = connection.export() else { return };
        let replies = match (view.extended, view.structured) {
            (true, _) => "extended",
            (false, true) => "structured",
            (false, false) => "simple",
        };
        self.contexts = self.negotiation.enter(view.contexts);
        if let (Some(recorder), Some(name)) = (&self.recorder, self.negotiation.export_name()) {
            recorder.entered(name);
        }
        let admits = self.negotiation.export().is_some_and(AnyExport::admits);
        self.admission = admits.then(Admission::default);
        tracing::debug!(replies, "a client entered transmission");
    }

    /// A new turn begins: what happens meanwhile wakes the task.
    pub(in crate::server) fn begin_turn(&mut self, cx: &Context<'_>) {
        self.completions.waker.register(cx.waker());
        self.turn.begin();
    }
    /// Gives back all memory that an idle connection does not need.
    pub(in crate::server) fn free_buffers(&mut self) {
        if self.offloaded > 0 {
            return;
        }
        self.rests = true;
        self.memory.free_cached();
        for slot in self.slots.drain(..) {
            self.memory.account.release(slot.charged);
        }
        self.slots.shrink_to(MAX_IDLE_SLOTS);
        self.completed = Vec::new();
        self.completions.shrink();
        self.futures = SlotFutures::new();
        self.memory.account.give_back_unused();
    }

    /// Shows others how far the connection is, which has so many requests in flight, and of which the core has answered
    /// these.
    pub(in crate::server) fn publish(&mut self, in_flight: usize, answered: &[SelfAnswered]) {
        if let Some(recorder) = &mut self.recorder {
            let progress = Progress {
                received: self.activity.received,
                sent: self.activity.sent,
                in_flight,
                buffers: self.memory.account.used(),
            };
            recorder.publish(&progress, answered);
        }
    }

    /// The connection does something again.
    pub(in crate::server) const fn end_rest(&mut self) {
        self.ended_rest |= core::mem::replace(&mut self.rests, false);
    }

    /// Whether others wait for buffers that this connection holds.
    pub(in crate::server) fn is_in_the_way(&self) -> bool {
        self.memory.account.is_in_the_way()
    }

    /// Whether a request waits for memory, or many wait for the export's layers, so that nothing is received.
    pub(in crate::server) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.payload_waits || self.is_held_back()
    }

    /// Drops what still works for the client.
    pub(in crate::server) fn abandon(&mut self) {
        self.drop_held();
        // Threads that hang keep their buffers.
        let running =
            if self.offloaded > 0 { self.slots.iter().map(|slot| slot.charged).sum() } else { 0 };
        self.completions.abandon(self.memory.account.split_off(running));
        self.lane = None;
        self.futures = SlotFutures::new();
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        if self.lane.is_some() {
            self.abandon();
        }
    }
}
