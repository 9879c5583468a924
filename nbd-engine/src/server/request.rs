//! The way of a request, from top to bottom: its data is received, it is carried out, its reply is made and sent, and
//! its buffers are free again.
//!
//! Two questions are answered for each request, independently of each other: where the payload of a write lies (in the
//! receive buffer, in the slot's own buffer, or in pages that the export takes over), and who carries the request out
//! (this task at once, a worker thread, or a future of the export).
//!
//! The [`Handler`] is what the pump calls, in that order; the methods after it are what it takes. Beside the way lie
//! the [memory](slot) of the requests, the [beginning and the end](lifecycle) of all, the [content](reply) of replies,
//! and those that are [held](held) until it is known whether their client has left in order.

use core::ops::Range;
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use nbd_proto::server::{Connection, Event};
use nbd_proto::wire::ErrorCode;
use nbd_proto::{Command, Misuse, RequestId, Wants};

use super::ConnectionError;
use super::dispatch::{self, AsyncRequest};
use super::metrics::Recorder;
use super::negotiation::Negotiation;
use super::payload::Destination;
use super::slot_futures::SlotFutures;
use super::state::ServerState;
use super::status::Source;
use super::turn::Turn;
use super::watch::Activity;
use super::workers::{Completion, Completions, Job, Lane};
use crate::command_text::CommandText;
use crate::export::{Body, ExportError, Kind, Result as ExportResult};
use crate::pump::{Handler, Incoming, Reception};
use admission::Admission;
use slot::{Memory, Slot};

mod admission;
mod held;
mod lifecycle;
mod reply;
mod slot;

/// Where the payload of a request lies.
enum PayloadLocation<'a> {
    /// It has none, or one that was collected in the slot.
    Slot,
    /// In the receive buffer.
    Staged(&'a [u8]),
}

/// Gives the runtime's time.
pub(super) type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

/// The requests of a connection, and what they need.
pub(super) struct Requests {
    pub(super) state: Arc<ServerState>,
    pub(super) negotiation: Negotiation,
    /// The metadata contexts that were selected, by number.
    contexts: Vec<(u32, Source)>,
    slots: Vec<Slot>,
    memory: Memory,
    /// What waits for the export's layers, if they are asked about each request.
    admission: Option<Admission>,
    /// The runtime's time.
    clock: Clock,
    /// Those of a client that takes no more replies, once it is known to be one.
    held: Option<VecDeque<(RequestId, Command)>>,
    /// Requests that wait for the memory that they may need. The layers of the export have let them pass.
    waiting: VecDeque<(RequestId, Command)>,
    /// Whether the payload of a write waits for memory to be received into.
    payload_waits: bool,
    /// Requests that are with the workers or in `futures`.
    offloaded: usize,
    lane: Option<Lane>,
    completions: Arc<Completions>,
    completed: Vec<Completion>,
    futures: SlotFutures<AsyncRequest, Completion>,
    pub(super) turn: Turn,
    /// What is counted for others to see, if anything is.
    pub(super) recorder: Option<Recorder>,
    pub(super) activity: Activity,
    /// Whether the export wants the connection to end as if the server shut down.
    pub(super) ending: bool,
    /// Whether the client has just closed its side.
    pub(super) hung_up: bool,
    /// Whether the connection was idle and has given its buffers back.
    rests: bool,
    /// Whether it did, and does not any more.
    pub(super) ended_rest: bool,
    pub(super) closed: Option<Result<nbd_proto::OrderlyEnd, nbd_proto::Error>>,
}

impl Handler<Connection> for Requests {
    type Error = ConnectionError;

    fn may_receive(&self) -> bool {
        self.waiting.is_empty()
            && self.closed.is_none()
            && !self.turn.is_over()
            && (!self.is_held_back() || self.held.is_some())
    }

    fn received(&mut self, connection: &mut Connection, count: usize) {
        self.activity.received += count as u64;
        if let Some(recorder) = &mut self.recorder {
            recorder.received();
        }
        self.memory.account.credit(count);
        self.turn.spend(count as u64);
        self.end_rest();
        // More of a payload is not looked at before the rest is there.
        let is_part = match connection.wants() {
            Wants::Payload { remaining, .. } => (count as u64) < remaining,
            _ => false,
        };
        if !is_part {
            self.follow_size(connection);
        }
    }

    fn reception(&mut self, data: Incoming, received: usize, cx: &mut Context<'_>) -> Reception {
        let Incoming { id, command, offset, remaining } = data;
        if !self.slot(id).payload.is_decided() {
            let cost = Body::cost(command.length() as usize);
            self.payload_waits = !self.charge(id, cost, cx);
            if self.payload_waits {
                return Reception::Wait;
            }
            if received as u64 >= remaining || Incoming::is_short(remaining) && received == 0 {
                return Reception::Staged;
            }
            self.decide(id, command);
        }
        let Slot { payload, .. } = &mut self.slots[id.index()];
        payload.provide_pages(offset as usize, remaining as usize, &mut self.memory.spare_pages);
        match payload.destination {
            Destination::Dropped(_) => Reception::Drop,
            _ => Reception::Room,
        }
    }

    fn room<'a>(&'a mut self, data: Incoming, visit: impl FnMut(IoSliceMut<'a>) -> bool) {
        let Slot { work, payload, .. } = &mut self.slots[data.id.index()];
        payload.room(&mut work.body, data.offset as usize, data.remaining as usize, visit);
    }

    fn event(
        &mut self,
        connection: &mut Connection,
        event: Event,
        staged: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(), ConnectionError> {
        match event {
            Event::Request { id, command } if self.held.is_some() => {
                self.keep(connection, id, command, staged);
            }
            Event::Request { id, command } => self.begin(connection, id, command, staged, cx),
            Event::List => self.negotiation.list(&self.state),
            Event::Lookup(lookup) => self.negotiation.look_up(&self.state, lookup),
            Event::Closed(result) => self.closed = Some(result),
            _ => {}
        }
        Ok(())
    }

    fn body<'a>(
        &'a self,
        id: RequestId,
        range: Range<usize>,
        visit: impl FnMut(IoSlice<'a>) -> bool,
    ) {
        self.slots[id.index()].work.body.slices(range, visit);
    }

    fn may_send(&self) -> bool {
        !self.turn.is_over()
    }

    fn sent(&mut self, count: usize, drained: bool) {
        self.activity.sent += count as u64;
        if let Some(recorder) = &mut self.recorder {
            recorder.sent();
        }
        self.memory.account.credit(count);
        self.activity.drained += u64::from(drained);
        self.turn.spend(count as u64);
    }

    fn discarded(&mut self, count: usize) {
        if let Some(recorder) = &mut self.recorder {
            recorder.sent();
        }
        self.memory.account.credit(count);
        self.turn.spend(count as u64);
    }

    fn finished(&mut self, id: RequestId) {
        if let Some(slot) = self.slots.get_mut(id.index()) {
            if let (Some(started), Some(recorder)) = (slot.started.take(), &mut self.recorder) {
                recorder.finished(started);
            }
            slot.assign(None);
            self.memory.recycle(slot);
        }
    }

    fn hung_up(&mut self) {
        self.hung_up = true;
    }
}

impl Requests {
    // Receiving.

    fn slot(&mut self, id: RequestId) -> &mut Slot {
        let index = id.index();
        if index >= self.slots.len() {
            let pool = &self.memory.pool;
            self.slots.resize_with(index + 1, || Slot::new(pool));
        }
        let slot = &mut self.slots[index];
        match slot.id {
            // It was cleared when its last request was finished.
            None => slot.id = Some(id),
            Some(other) if other != id => slot.assign(Some(id)),
            Some(_) => {}
        }
        slot
    }

    /// Decides where the payload of a write goes, once memory was charged for it.
    fn decide(&mut self, id: RequestId, command: Command) {
        let mut page_size = None;
        if let Some(Kind::Blocking(export)) = self.negotiation.kind() {
            page_size = dispatch::page_size(&**export, command);
            if page_size.is_some() {
                self.memory.spare_pages.export.get_or_insert_with(|| Arc::clone(export));
            }
        }
        let Slot { work, payload, .. } = &mut self.slots[id.index()];
        payload.decide(&mut work.body, command.length() as usize, page_size);
    }

    // Carrying out.

    /// A request is complete.
    fn begin(
        &mut self,
        connection: &mut Connection,
        id: RequestId,
        command: Command,
        staged: &[u8],
        cx: &mut Context<'_>,
    ) {
        self.activity.requests += 1;
        let started = self.recorder.as_mut().and_then(|recorder| recorder.started(&command));
        self.slot(id).started = started;
        if self.admission.is_some() && !self.admit(connection, id, command, staged) {
            return;
        }
        self.carry_out(connection, id, command, staged, cx);
    }

    /// Carries out a request, now or when there is memory for it.
    fn carry_out(
        &mut self,
        connection: &mut Connection,
        id: RequestId,
        command: Command,
        staged: &[u8],
        cx: &mut Context<'_>,
    ) {
        let slot = &mut self.slots[id.index()];
        if let Command::Write { .. } = command {
            // Its memory was charged before it was received.
            let payload = if slot.payload.is_decided() {
                PayloadLocation::Slot
            } else {
                PayloadLocation::Staged(staged)
            };
            return self.execute(connection, id, command, payload);
        }
        if let Command::BlockStatus { .. } = command {
            let slot = &mut self.slots[id.index()];
            if let Ok(reply) = connection.reply(id) {
                for (context, source) in &self.contexts {
                    if let Ok(query) = reply.status_query(*context) {
                        slot.work.status.add(*context, source, query);
                    }
                }
            }
        }
        if self.afford(id, command, cx) {
            self.execute(connection, id, command, PayloadLocation::Slot);
        } else {
            self.waiting.push_back((id, command));
        }
    }

    /// Charges what a request needs, unless it has to wait for others.
    fn afford(&mut self, id: RequestId, command: Command, cx: &mut Context<'_>) -> bool {
        let cost = match command {
            Command::Read { length, .. } => Body::cost(length as usize),
            Command::BlockStatus { .. } => self.slots[id.index()].work.status.cost(),
            // What needs nothing waits for nobody: it may have the memory that others wait for.
            _ => return true,
        };
        self.waiting.is_empty() && self.charge(id, cost, cx)
    }

    /// Carries out requests that wait for memory, as far as there is enough by now. Gives whether there were any.
    pub(super) fn execute_waiting(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> bool {
        let mut progress = false;
        while !self.turn.is_over()
            && let Some((id, command)) = self.waiting.pop_front()
        {
            let others = core::mem::take(&mut self.waiting);
            let affordable = self.afford(id, command, cx);
            self.waiting = others;
            if !affordable {
                self.waiting.push_front((id, command));
                break;
            }
            self.execute(connection, id, command, PayloadLocation::Slot);
            progress = true;
        }
        progress
    }

    /// Carries out a request at once if that can be done, or hands it over.
    fn execute(
        &mut self,
        connection: &mut Connection,
        id: RequestId,
        command: Command,
        payload: PayloadLocation<'_>,
    ) {
        let Slot { work, payload: collected, .. } = &mut self.slots[id.index()];
        let result = match (self.negotiation.kind(), &payload, &collected.destination) {
            (_, PayloadLocation::Slot, Destination::Dropped(error)) => Some(Err(error.clone())),
            (Some(Kind::Blocking(export)), PayloadLocation::Slot, Destination::Pages(_)) => {
                let spare = &mut self.memory.spare_pages;
                let pages = &mut collected.pages;
                let result = dispatch::write_pages(&**export, command, pages, &mut spare.returned);
                spare.sort();
                Some(result)
            }
            (Some(Kind::Blocking(export)), PayloadLocation::Slot, Destination::Buffer) => {
                // The payload is lent by the body, which a write does not touch otherwise.
                let buffer = work.body.take_buffer();
                let result = dispatch::try_execute(&**export, command, buffer.bytes(), work);
                work.body.return_buffer(buffer);
                result
            }
            (Some(Kind::Blocking(export)), PayloadLocation::Slot, Destination::Undecided) => {
                dispatch::try_execute(&**export, command, &[], work)
            }
            (Some(Kind::Blocking(export)), PayloadLocation::Staged(bytes), _) => {
                dispatch::try_execute(&**export, command, bytes, work)
            }
            (Some(Kind::Async(_)) | None, ..) => None,
        };
        if let Some(result) = result {
            self.turn.spend(cost_of(command));
            return self.answer(connection, id, command, &result);
        }
        if let PayloadLocation::Staged(bytes) = payload {
            // It won't stay where it was received.
            match work.body.fill(bytes.len()) {
                Ok(room) => room.copy_from_slice(bytes),
                Err(error) => return self.answer(connection, id, command, &Err(error)),
            }
        }
        self.offload(id, command);
    }

    /// Hands over a request that may take its time.
    fn offload(&mut self, id: RequestId, command: Command) {
        let Some(kind) = self.negotiation.kind() else { return };
        let slot = id.index();
        let work = core::mem::take(&mut self.slots[slot].work);
        self.offloaded += 1;
        match kind {
            Kind::Blocking(export) => {
                let state = &self.state;
                let lane = self.lane.get_or_insert_with(|| state.workers().lane(export));
                let (export, done) = (Arc::clone(export), Arc::clone(&self.completions));
                let visit = self.negotiation.visit();
                lane.submit(Job::new(slot, command, export, work, done, visit));
            }
            Kind::Async(export) => {
                let request = AsyncRequest { slot, command, work };
                self.futures.start(slot, request, |mailbox| Arc::clone(export).serve(mailbox));
            }
        }
    }

    /// Answers what has been carried out elsewhere.
    pub(super) fn collect(&mut self, connection: &mut Connection, cx: &Context<'_>) {
        if self.offloaded == 0 {
            return;
        }
        let mut completed = core::mem::take(&mut self.completed);
        self.completions.take(&mut completed);
        self.futures.poll(cx, |completion| completed.push(completion));
        for Completion { slot, command, work, result } in completed.drain(..) {
            self.offloaded -= 1;
            self.slots[slot].work = work;
            if let Some(id) = self.slots[slot].id {
                self.answer(connection, id, command, &result);
            }
        }
        self.completed = completed;
    }

    // Answering.

    /// Queues the reply to a request that was carried out.
    fn answer(
        &mut self,
        connection: &mut Connection,
        id: RequestId,
        command: Command,
        result: &ExportResult<()>,
    ) {
        if self.admission.is_some() {
            self.report(id, command, result);
        }
        let Slot { work, .. } = &self.slots[id.index()];
        let answered = match (result, command) {
            (Err(error), _) => self.answer_error(connection, id, command, error),
            (Ok(()), Command::Read { offset, .. }) => {
                reply::read(connection, id, offset, &work.body)
            }
            (Ok(()), Command::BlockStatus { offset, .. })
                if connection.export().is_none_or(|export| export.size <= offset) =>
            {
                // By a resize, since it was asked for.
                let error =
                    ExportError::new(ErrorCode::EINVAL, "the range is not inside of the export");
                self.answer_error(connection, id, command, &error)
            }
            (Ok(()), Command::BlockStatus { .. }) => reply::status(connection, id, &work.status),
            (Ok(()), Command::Resize { .. }) => {
                self.follow_size(connection);
                connection.reply(id).and_then(nbd_proto::server::Reply::finish)
            }
            (Ok(()), _) => connection.reply(id).and_then(nbd_proto::server::Reply::finish),
        };
        if let Err(misuse) = answered {
            // Only an export that gives too little gets here.
            tracing::warn!(command = %CommandText(command), %misuse, "an export's answer makes no sense");
            if let Ok(reply) = connection.reply(id) {
                reply.error(ErrorCode::EIO, "the export's answer makes no sense");
                self.count_failure(id, ErrorCode::EIO);
            }
        }
        // What it holds from now on, until the reply is sent, is known.
        let slot = &mut self.slots[id.index()];
        match command {
            Command::Read { .. } | Command::Write { .. } => {
                let held = slot.work.body.held();
                self.memory.settle(slot, held);
            }
            Command::BlockStatus { .. } => slot.work.status.clear(),
            _ => {}
        }
    }

    fn answer_error(
        &mut self,
        connection: &mut Connection,
        id: RequestId,
        command: Command,
        error: &ExportError,
    ) -> Result<(), Misuse> {
        if error.code() == ErrorCode::ESHUTDOWN {
            connection.shut_down();
            self.ending = true;
        }
        let export = self.negotiation.export_name().unwrap_or_default();
        self.state.floods().failures.report(export, command, error);
        let reply = connection.reply(id)?;
        self.count_failure(id, reply.allowed(error.code()));
        reply.error(error.code(), error.text());
        Ok(())
    }

    /// A request is answered with an error.
    fn count_failure(&mut self, id: RequestId, code: ErrorCode) {
        let started = self.slots[id.index()].started.as_mut();
        if let (Some(started), Some(recorder)) = (started, &self.recorder) {
            recorder.failed(started, code);
        }
    }

    /// The export may have been resized, by another connection even. A client that knew so before it sent what has just
    /// been received must find the new size.
    fn follow_size(&self, connection: &mut Connection) {
        if let Some(export) = self.negotiation.export() {
            // Not before transmission.
            let _in_use = connection.set_size(export.size());
        }
    }

    // Memory.

    /// Charges what a request may need. `false` if it has to wait for others; the task is woken when it is worth trying
    /// again.
    fn charge(&mut self, id: RequestId, bytes: usize, cx: &mut Context<'_>) -> bool {
        let index = id.index();
        if self.memory.charge(&mut self.slots[index], bytes, cx) {
            return true;
        }
        // What slots keep for later requests counts as in use: the connection would wait for itself.
        for (other, slot) in self.slots.iter_mut().enumerate() {
            if slot.id.is_none() || other == index {
                slot.work.body.free();
                slot.payload.free();
                self.memory.settle(slot, slot.work.body.buffer_size());
            }
        }
        self.memory.charge(&mut self.slots[index], bytes, cx)
    }
}

/// What it takes to carry out a command at once, in bytes that are copied or zeroed.
const fn cost_of(command: Command) -> u64 {
    match command {
        Command::Read { length, .. }
        | Command::Write { length, .. }
        | Command::WriteZeroes { length, .. } => length,
        _ => 0,
    }
}
