//! The way of a request, from top to bottom: its data is received, it is carried out, its reply is made and sent, and its
//! buffers are free again.
//!
//! Two questions are answered for each request, independently of each other: where the payload of a write lies (in the
//! receive buffer, in the slot's own buffer, or in pages that the export takes over), and who carries the request out
//! (this task at once, a worker thread, or a future of the export).

use core::ops::Range;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::task::Context;

use nbd_proto::server::{Connection, Event};
use nbd_proto::wire::ErrorCode;
use nbd_proto::{Command, Misuse, RequestId};

use super::ConnectionError;
use super::budget::Account;
use super::dispatch::{self, AsyncRequest, Work};
use super::negotiation::Negotiation;
use super::payload::{Payload, Place, SparePages};
use super::slot_futures::SlotFutures;
use super::state::ServerState;
use super::status::{Source, Status};
use super::turn::Turn;
use super::watch::Activity;
use super::workers::{Completion, Completions, Job, Lane};
use crate::export::{Body, ExportError, Kind, Piece, Pool, Result as ExportResult};
use crate::pump::{Handler, Incoming, Reception};

/// What belongs to a request, beside what the machine keeps of it. Used again for later requests.
#[derive(Debug)]
struct Slot {
    id: Option<RequestId>,
    /// What was read, or the extents that were found.
    work: Work,
    /// What is to be written, unless it was received in one piece.
    payload: Payload,
    /// Bytes that are charged to the connection's account.
    charged: usize,
}

/// Where the payload of a request lies.
enum PayloadLocation<'a> {
    /// It has none, or one that was collected in the slot.
    Slot,
    /// In the receive buffer.
    Staged(&'a [u8]),
}

/// The requests of a connection, and what they need.
pub(super) struct Requests {
    pub(super) state: Arc<ServerState>,
    pub(super) negotiation: Negotiation,
    /// The metadata contexts that were selected, by number.
    contexts: Vec<(u32, Source)>,
    slots: Vec<Slot>,
    memory: Memory,
    /// A request that waits for the memory that it may need.
    waiting: Option<(RequestId, Command)>,
    /// Whether the payload of a write waits for memory to be received into.
    payload_waits: bool,
    /// Requests that are with the workers or in `futures`.
    offloaded: usize,
    lane: Option<Lane>,
    completions: Arc<Completions>,
    completed: Vec<Completion>,
    futures: SlotFutures<AsyncRequest, Completion>,
    pub(super) turn: Turn,
    pub(super) activity: Activity,
    /// Whether the export wants the connection to end as if the server shut down.
    pub(super) ending: bool,
    /// Whether the client has just closed its side.
    pub(super) hung_up: bool,
    /// Whether the connection was idle and has given its buffers back.
    rests: bool,
    /// Whether it did, and does not any more.
    pub(super) ended_rest: bool,
    pub(super) closed: Option<Result<nbd_proto::CloseReason, nbd_proto::Error>>,
}

/// The buffers of a connection, and who pays for them.
struct Memory {
    account: Account,
    pool: Arc<Pool>,
    spare_pages: SparePages,
}

/// Slots that an idle connection keeps room for.
const MAX_IDLE_SLOTS: usize = 16;

impl Requests {
    pub(super) fn new(state: Arc<ServerState>, negotiation: Negotiation, turn: Turn) -> Self {
        let memory = Memory {
            account: Account::new(Arc::clone(state.budget())),
            pool: Arc::default(),
            spare_pages: SparePages::default(),
        };
        Self {
            state,
            negotiation,
            contexts: Vec::new(),
            slots: Vec::new(),
            memory,
            waiting: None,
            payload_waits: false,
            offloaded: 0,
            lane: None,
            completions: Arc::default(),
            completed: Vec::new(),
            futures: SlotFutures::new(),
            turn,
            activity: Activity::default(),
            ending: false,
            hung_up: false,
            rests: false,
            ended_rest: false,
            closed: None,
        }
    }

    /// Transmission begins.
    pub(super) fn entered(&mut self, connection: &Connection) {
        let Some(view) = connection.export() else { return };
        let replies = match (view.extended, view.structured) {
            (true, _) => "extended",
            (false, true) => "structured",
            (false, false) => "simple",
        };
        self.contexts = self.negotiation.enter(view.contexts);
        tracing::debug!(replies, "a client entered transmission");
    }

    /// A new turn begins: what happens meanwhile wakes the task.
    pub(super) fn begin_turn(&mut self, cx: &Context<'_>) {
        self.completions.waker.register(cx.waker());
        self.turn.begin();
    }

    // Receiving.

    fn slot(&mut self, id: RequestId) -> &mut Slot {
        let index = id.index();
        if index >= self.slots.len() {
            let pool = &self.memory.pool;
            self.slots.resize_with(index + 1, || Slot {
                id: None,
                work: Work { body: Body::with_pool(Arc::clone(pool)), status: Status::default() },
                payload: Payload::default(),
                charged: 0,
            });
        }
        let slot = &mut self.slots[index];
        if slot.id != Some(id) {
            slot.id = Some(id);
            slot.work.clear();
            slot.payload.clear();
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
        let slot = self.slot(id);
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
        self.execute_when_affordable(connection, id, command, cx);
    }

    /// Carries out a request that waits for memory, if there is enough by now. Gives whether there is.
    pub(super) fn execute_waiting(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some((id, command)) = self.waiting else { return false };
        self.execute_when_affordable(connection, id, command, cx);
        self.waiting.is_none()
    }

    fn execute_when_affordable(
        &mut self,
        connection: &mut Connection,
        id: RequestId,
        command: Command,
        cx: &mut Context<'_>,
    ) {
        let slot = &mut self.slots[id.index()];
        let cost = match command {
            Command::Read { length, .. } => Body::cost(length as usize),
            Command::BlockStatus { .. } => slot.work.status.cost(),
            _ => 0,
        };
        if self.charge(id, cost, cx) {
            self.waiting = None;
            self.execute(connection, id, command, PayloadLocation::Slot);
        } else {
            self.waiting = Some((id, command));
        }
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
        let result = match (self.negotiation.kind(), &payload, &collected.place) {
            (_, PayloadLocation::Slot, Place::Dropped(error)) => Some(Err(error.clone())),
            (Some(Kind::Blocking(export)), PayloadLocation::Slot, Place::Pages(_)) => {
                let spare = &mut self.memory.spare_pages;
                let pages = &mut collected.pages;
                let result = dispatch::write_pages(&**export, command, pages, &mut spare.returned);
                spare.sort();
                Some(result)
            }
            (Some(Kind::Blocking(export)), PayloadLocation::Slot, Place::Buffer) => {
                // The payload is lent by the body, which a write does not touch otherwise.
                let buffer = work.body.take_buffer();
                let result = dispatch::try_execute(&**export, command, buffer.bytes(), work);
                work.body.return_buffer(buffer);
                result
            }
            (Some(Kind::Blocking(export)), PayloadLocation::Slot, Place::Undecided) => {
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
        let Slot { work, .. } = &self.slots[id.index()];
        let answered = match (result, command) {
            (Err(error), _) => self.answer_error(connection, id, command, error),
            (Ok(()), Command::Read { offset, .. }) => {
                answer_read(connection, id, offset, &work.body)
            }
            (Ok(()), Command::BlockStatus { offset, .. }) => {
                answer_status(connection, id, offset, &work.status)
            }
            (Ok(()), Command::Resize { .. }) => {
                self.follow_size(connection);
                connection.reply(id).and_then(nbd_proto::server::Reply::finish)
            }
            (Ok(()), _) => connection.reply(id).and_then(nbd_proto::server::Reply::finish),
        };
        if let Err(misuse) = answered {
            // Only an export that gives too little gets here.
            tracing::warn!(?command, %misuse, "an export's answer makes no sense");
            if let Ok(reply) = connection.reply(id) {
                reply.error(ErrorCode::EIO, "the export's answer makes no sense");
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
        tracing::debug!(?command, %error, "a request failed");
        connection.reply(id)?.error(error.code(), error.text());
        Ok(())
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

    /// Gives back all memory that an idle connection does not need.
    pub(super) fn free_buffers(&mut self) {
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

    /// Whether others wait for buffers that this connection holds.
    pub(super) fn is_in_the_way(&self) -> bool {
        self.memory.account.is_in_the_way()
    }

    /// Whether a request waits for memory, so that nothing is received.
    pub(super) const fn is_waiting(&self) -> bool {
        self.waiting.is_some() || self.payload_waits
    }

    /// Drops what still works for the client.
    pub(super) fn abandon(&mut self) {
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

impl Handler<Connection> for Requests {
    type Error = ConnectionError;

    fn event(
        &mut self,
        connection: &mut Connection,
        event: Event,
        staged: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(), ConnectionError> {
        match event {
            Event::Request { id, command } => self.begin(connection, id, command, staged, cx),
            Event::List => self.negotiation.list(&self.state),
            Event::Lookup(lookup) => self.negotiation.look_up(&self.state, lookup),
            Event::Closed(result) => self.closed = Some(result),
            _ => {}
        }
        Ok(())
    }

    fn may_receive(&self) -> bool {
        self.waiting.is_none() && self.closed.is_none() && !self.turn.is_over()
    }

    fn may_send(&self) -> bool {
        !self.turn.is_over()
    }

    fn received(&mut self, connection: &mut Connection, count: usize) {
        self.activity.received += count as u64;
        self.memory.account.credit(count);
        self.turn.spend(count as u64);
        self.ended_rest |= core::mem::replace(&mut self.rests, false);
        self.follow_size(connection);
    }

    fn sent(&mut self, count: usize, drained: bool) {
        self.activity.sent += count as u64;
        self.memory.account.credit(count);
        self.activity.drained += u64::from(drained);
        self.turn.spend(count as u64);
    }

    fn hung_up(&mut self) {
        self.hung_up = true;
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
        match payload.place {
            Place::Dropped(_) => Reception::Drop,
            _ => Reception::Room,
        }
    }

    fn room<'a>(&'a mut self, data: Incoming, visit: impl FnMut(IoSliceMut<'a>) -> bool) {
        let Slot { work, payload, .. } = &mut self.slots[data.id.index()];
        payload.room(&mut work.body, data.offset as usize, data.remaining as usize, visit);
    }

    fn body<'a>(
        &'a self,
        id: RequestId,
        range: Range<usize>,
        visit: impl FnMut(IoSlice<'a>) -> bool,
    ) {
        self.slots[id.index()].work.body.slices(range, visit);
    }

    fn finished(&mut self, id: RequestId) {
        if let Some(slot) = self.slots.get_mut(id.index()) {
            slot.id = None;
            slot.work.clear();
            slot.payload.clear();
            self.memory.recycle(slot);
        }
    }
}

impl Memory {
    /// Charges what a request may need to the account. `false` if it has to wait for others; the task is woken when
    /// it is worth trying again.
    fn charge(&mut self, slot: &mut Slot, bytes: usize, cx: &mut Context<'_>) -> bool {
        let bytes = self.account.cap(bytes);
        let missing = bytes.saturating_sub(slot.charged);
        if missing == 0 {
            return true;
        }
        if !self.account.charge(missing, cx.waker()) {
            self.free_cached();
            return false;
        }
        slot.charged += missing;
        // What is kept is to be paid for, too, apart from what this request makes use of.
        let useful = self.pool.kept() == 0 || self.pool.has_fitting(bytes);
        let surplus = self.cached().saturating_sub(if useful { bytes } else { 0 });
        if !self.account.extend(surplus) {
            self.free_cached();
        }
        true
    }

    /// Lowers what is charged for a slot to what it holds.
    fn settle(&mut self, slot: &mut Slot, held: usize) {
        if held < slot.charged {
            self.account.release(slot.charged - held);
            slot.charged = held;
        }
    }

    /// A slot is free; what it keeps for the next request is kept only while nobody else needs it.
    fn recycle(&mut self, slot: &mut Slot) {
        let crowded = self.account.is_in_the_way();
        if crowded {
            slot.work.body.free();
            slot.work.status.free();
            slot.payload.free();
        }
        self.settle(slot, slot.work.body.buffer_size());
        if crowded || !self.account.extend(self.cached()) {
            self.free_cached();
            self.account.give_back_unused();
        }
    }

    /// Bytes of buffers that wait to be used again.
    fn cached(&self) -> usize {
        self.pool.kept() + self.spare_pages.kept()
    }

    fn free_cached(&mut self) {
        self.pool.clear();
        self.spare_pages.clear();
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

/// Turns the pieces of a body into content: neighbours that are data become one chunk.
fn answer_read(
    connection: &mut Connection,
    id: RequestId,
    offset: u64,
    body: &Body,
) -> Result<(), Misuse> {
    let mut reply = connection.reply(id)?;
    let (mut position, mut data) = (offset, 0);
    for piece in body.pieces().iter().filter(|piece| !piece.is_empty()) {
        let length = piece.len() as u64;
        if !matches!(piece, Piece::Hole(_)) {
            data += length;
            continue;
        }
        if data > 0 {
            reply.data(position, data)?;
            position += core::mem::take(&mut data);
        }
        reply.hole(position, length)?;
        position += length;
    }
    if data > 0 {
        reply.data(position, data)?;
    }
    reply.finish()
}

/// Reports the extents of each context.
fn answer_status(
    connection: &mut Connection,
    id: RequestId,
    offset: u64,
    found: &Status,
) -> Result<(), Misuse> {
    let cut_off = connection.export().is_none_or(|export| export.size <= offset);
    let mut reply = connection.reply(id)?;
    if cut_off {
        // By a resize, since it was asked for.
        reply.error(ErrorCode::EINVAL, "the range is not inside of the export");
        return Ok(());
    }
    for (context, extents) in found.answers() {
        reply.extents(context, extents)?;
    }
    reply.finish()
}
