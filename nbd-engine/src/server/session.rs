//! One connection, driven: bytes between a transport and the core, requests between the core and an export.

mod inbound;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use nbd_proto::server::{
    Connection, Event, Incoming, Listing, LookupOutcome, LookupRefusal, Request,
};
use nbd_proto::wire::{CompactRequest, ExtendedRequest};
use nbd_proto::{Command, RequestId, Segment};

use super::ConnectionError;
use super::answer;
use super::budget::Account;
use super::dispatch::{self, Work};
use super::payload::{Payload, SparePages};
use super::state::ServerState;
use super::status::{Source, Status};
use super::turn::Turn;
use super::watch::Activity;
use super::workers::{Completion, Completions, Job, Lane};
use crate::busy_poll::BusyPoll;
use crate::export::{Body, ExportError, Found, Handle, Pool};
use crate::runtime::{BoxFuture, Runtime};
use crate::staging::Staging;
use crate::transport::Transport;

/// Slices that go into one gathered write.
const MAX_SLICES: usize = 128;

/// A place in flight, beside the core's own.
#[derive(Debug)]
struct Slot {
    id: Option<RequestId>,
    command: Option<Command>,
    work: Work,
    payload: Payload,
    /// Bytes that are charged to the connection's account for this slot.
    charged: usize,
    /// Whether a write's payload was charged.
    payload_charged: bool,
}

pub(crate) struct Session<T> {
    connection: Connection,
    transport: T,
    state: Arc<ServerState>,
    account: Account,
    /// A request that waits for the memory that it may need.
    waiting: Option<RequestId>,
    turn: Turn,
    activity: Activity,
    /// Whether the connection was idle and has given its buffers back.
    rests: bool,
    /// Whether it was, and is not any more.
    ended_rest: bool,
    /// The export that a client looked at last, and that it uses once it entered.
    export: Option<Found>,
    /// The metadata contexts that were selected for it, by number.
    contexts: Vec<(u32, Source)>,
    staging: Staging,
    slots: Vec<Slot>,
    pool: Arc<Pool>,
    spare_pages: SparePages,
    /// Requests that are with the workers or in `futures`.
    offloaded: usize,
    /// The way to the workers, for exports that may block.
    lane: Option<Lane>,
    busy_poll: BusyPoll,
    completions: Arc<Completions>,
    completed: Vec<Completion>,
    futures: FuturesUnordered<BoxFuture<Completion>>,
    /// The transport has no more bytes to give.
    input_ended: bool,
    /// It has ended just now.
    hung_up: bool,
}

impl<T: Transport> Session<T> {
    /// A connection that was just accepted. Fails when an oldstyle client can't be given its export.
    pub(crate) fn new(
        state: Arc<ServerState>,
        transport: T,
        runtime: &impl Runtime,
    ) -> Result<Self, ConnectionError> {
        let config = state.config();
        let (connection, export) = match state.oldstyle_export() {
            None => (Connection::new(config.protocol().clone()), None),
            Some(name) => {
                let found = state.exports().find(name);
                let found = found.ok_or_else(|| ConnectionError::NoSuchExport(name.into()))?;
                let info = dispatch::describe(&found, config, core::iter::empty());
                (Connection::oldstyle(config.protocol().clone(), &info)?, Some(found))
            }
        };
        let shares_thread = runtime.shares_threads();
        let busy_poll = if shares_thread { Duration::ZERO } else { BUSY_POLL };
        let session = Self {
            connection,
            transport,
            busy_poll: BusyPoll::new(config.busy_poll(busy_poll)),
            account: Account::new(Arc::clone(state.budget())),
            waiting: None,
            turn: Turn::new(shares_thread),
            activity: Activity::default(),
            rests: false,
            ended_rest: false,
            state,
            export,
            contexts: Vec::new(),
            staging: Staging::new(),
            slots: Vec::new(),
            pool: Arc::default(),
            spare_pages: SparePages::default(),
            offloaded: 0,
            lane: None,
            completions: Arc::default(),
            completed: Vec::new(),
            futures: FuturesUnordered::new(),
            input_ended: false,
            hung_up: false,
        };
        session.record_export();
        Ok(session)
    }

    pub(crate) const fn is_transmitting(&self) -> bool {
        self.connection.is_transmitting()
    }

    /// Whether nothing is in flight or queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.connection.is_idle()
    }

    /// Requests whose reply is not wholly sent.
    pub(crate) const fn requests_in_flight(&self) -> usize {
        self.connection.requests_in_flight()
    }

    pub(crate) const fn shut_down(&mut self) {
        self.connection.shut_down();
    }

    /// Names the export in use in what is logged about this connection.
    fn record_export(&self) {
        if let Some(found) = &self.export {
            tracing::Span::current().record("export", found.name.as_str());
        }
    }

    /// Whether the client is gone for good while its requests are being carried out.
    pub(crate) fn is_peer_gone(&self) -> bool {
        self.input_ended && !self.connection.is_idle() && self.transport.is_peer_gone()
    }

    /// What the connection is doing.
    pub(crate) fn activity(&self) -> Activity {
        Activity {
            receiving: self.awaits_rest_of_request(),
            sending: self.connection.segments().next().is_some(),
            closing: self.input_ended || self.connection.incoming() == Incoming::Terminated,
            in_the_way: self.account.is_in_the_way(),
            idle: self.connection.is_idle(),
            ..self.activity
        }
    }

    /// Whether a part of a request was received, and the client is to send the rest.
    fn awaits_rest_of_request(&self) -> bool {
        if self.input_ended || self.waiting.is_some() {
            return false;
        }
        let extended = self.connection.export().is_some_and(|export| export.extended);
        let header = if extended { ExtendedRequest::SIZE } else { CompactRequest::SIZE };
        match self.connection.incoming() {
            Incoming::Control { need } => need > 0 && need < header,
            Incoming::Payload { .. } | Incoming::Discard { .. } => true,
            _ => false,
        }
    }

    /// Whether the connection has been idle and is not any more, since this was asked last.
    pub(crate) const fn has_ended_rest(&mut self) -> bool {
        core::mem::replace(&mut self.ended_rest, false)
    }

    /// Gives back all memory that an idle connection does not need.
    pub(crate) fn free_buffers(&mut self) {
        if !self.connection.is_idle() || self.offloaded > 0 {
            return;
        }
        self.rests = true;
        self.staging.shrink();
        self.free_cached();
        for slot in self.slots.drain(..) {
            self.account.release(slot.charged);
        }
        self.slots.shrink_to(MAX_IDLE_SLOTS);
        self.completed = Vec::new();
        self.completions.shrink();
        self.account.give_back_unused();
    }

    /// Frees buffers that wait to be used again.
    fn free_cached(&mut self) {
        self.pool.clear();
        self.spare_pages.clear();
    }

    /// Bytes of buffers that wait to be used again.
    fn cached(&self) -> usize {
        self.pool.kept() + self.spare_pages.kept()
    }

    /// Charges what a request may need to the account. `false` if it has to wait for others; the task is woken when
    /// it is worth trying again.
    fn charge(&mut self, index: usize, bytes: usize, cx: &mut Context<'_>) -> bool {
        let bytes = self.account.cap(bytes);
        let slot = &mut self.slots[index];
        let missing = bytes.saturating_sub(slot.charged);
        if missing > 0 && !self.account.charge(missing, cx.waker()) {
            self.pool.clear();
            self.spare_pages.clear();
            return false;
        }
        slot.charged += missing;
        let (cached, free) = (self.cached(), self.account.free());
        if cached > free {
            // What is kept is in nobody's account, unless this request makes use of it.
            let useful = self.pool.has_fitting(bytes) || self.spare_pages.kept() > 0;
            if !useful || cached > free + bytes {
                self.free_cached();
            }
        }
        true
    }

    /// Lowers what is charged for a slot to what it holds.
    fn settle(&mut self, index: usize, held: usize) {
        let slot = &mut self.slots[index];
        if held < slot.charged {
            let surplus = slot.charged - held;
            slot.charged = held;
            self.account.release(surplus);
        }
    }

    /// Drives the connection until it is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.completions.waker.register(cx.waker());
        self.turn.begin();
        loop {
            self.collect(cx);
            let read = self.read(cx)?;
            let written = self.write(cx)?;
            if self.connection.is_finished() {
                return Poll::Ready(Ok(()));
            }
            if core::mem::replace(&mut self.hung_up, false) && self.is_peer_gone() {
                return Poll::Ready(Err(ConnectionError::PeerGone));
            }
            if self.turn.is_over() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !read && !written && !self.wait_a_moment()? {
                return Poll::Pending;
            }
        }
    }

    /// Closes the writing side, then reads what still comes, so that the last replies aren't lost to a reset.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.transport).poll_close(cx))?;
        loop {
            if ready!(Pin::new(&mut self.transport).poll_read(cx, self.staging.scratch()))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn handle(&mut self, event: Event, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        match event {
            Event::Request(request) => self.begin(request, cx),
            Event::List => {
                let exports = self.state.exports().list();
                let listings =
                    exports.iter().map(|(name, description)| Listing { name, description });
                self.connection.answer_list(listings)?;
            }
            Event::Lookup(lookup) => {
                let found = self.state.exports().find(&lookup.name);
                let info = found.as_ref().map(|found| {
                    dispatch::describe(found, self.state.config(), self.connection.queries())
                });
                let answer = info.as_ref().ok_or(LookupRefusal::Unknown);
                let outcome = self.connection.answer_lookup(answer)?;
                self.export = found;
                if outcome == LookupOutcome::Entered {
                    self.entered();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Transmission begins.
    fn entered(&mut self) {
        let view = self.connection.export();
        let replies = match view {
            Some(view) if view.extended => "extended",
            Some(view) if view.structured => "structured",
            _ => "simple",
        };
        self.record_export();
        tracing::debug!(replies, "a client entered transmission");
        if let (Some(view), Some(found)) = (view, &self.export) {
            let selected = view.contexts.iter();
            self.contexts =
                selected.map(|one| (one.id, dispatch::source(found, &one.name))).collect();
        }
    }

    /// A request was raised. Writes wait for their payload, others for the memory that they may need.
    fn begin(&mut self, request: Request, cx: &mut Context<'_>) {
        let index = request.id.index();
        if index >= self.slots.len() {
            let pool = &self.pool;
            self.slots.resize_with(index + 1, || Slot {
                id: None,
                command: None,
                work: Work { body: Body::with_pool(Arc::clone(pool)), status: Status::default() },
                payload: Payload::default(),
                charged: 0,
                payload_charged: false,
            });
        }
        self.activity.requests += 1;
        let slot = &mut self.slots[index];
        slot.id = Some(request.id);
        slot.command = Some(request.command);
        slot.payload_charged = false;
        slot.work.clear();
        if let Command::BlockStatus { .. } = request.command {
            let max = self.state.config().limits().max_extents;
            let awaited = self.connection.awaited_contexts(request.id);
            slot.work.status.begin(max as usize);
            for (id, source) in self.contexts.iter().filter(|(id, _)| awaited.contains(id)) {
                slot.work.status.add(*id, source.clone());
            }
        }
        if !matches!(request.command, Command::Write { .. }) {
            self.start_when_affordable(request.id, cx);
        }
    }

    /// Carries out a request, or has it wait for memory.
    fn start_when_affordable(&mut self, id: RequestId, cx: &mut Context<'_>) {
        let slot = &self.slots[id.index()];
        let cost = match slot.command {
            Some(Command::Read { length, .. }) => Body::cost(length as usize),
            Some(Command::BlockStatus { one, .. }) => slot.work.status.cost(one),
            _ => 0,
        };
        if self.charge(id.index(), cost, cx) {
            self.waiting = None;
            self.start(id);
        } else {
            self.waiting = Some(id);
        }
    }

    /// Carries out a request whose payload, if any, lies in its slot.
    fn start(&mut self, id: RequestId) {
        let slot = &mut self.slots[id.index()];
        let Some(command) = slot.command else { return };
        if let Some(Found { export: Handle::Blocking(export), .. }) = &self.export {
            let attempt = if slot.payload.in_pages() {
                let (pages, returned) = (&mut slot.payload.pages, &mut self.spare_pages.returned);
                let result = dispatch::write_pages(&**export, command, pages, returned);
                self.spare_pages.sort();
                Some(result)
            } else if matches!(command, Command::Write { .. }) {
                // The payload is lent by the body, which a write does not touch otherwise.
                let payload = slot.work.body.take_buffer();
                let attempt =
                    dispatch::try_execute(&**export, command, payload.bytes(), &mut slot.work);
                slot.work.body.return_buffer(payload);
                attempt
            } else {
                dispatch::try_execute(&**export, command, &[], &mut slot.work)
            };
            if let Some(result) = attempt {
                self.turn.spend(cost_of(command));
                self.answer(id, &result);
                return;
            }
        }
        self.offload(id);
    }

    /// Carries out a request that may take its time.
    fn offload(&mut self, id: RequestId) {
        let slot = &mut self.slots[id.index()];
        let (Some(command), Some(found)) = (slot.command, &self.export) else { return };
        self.offloaded += 1;
        let mut work = core::mem::take(&mut slot.work);
        let slot = id.index();
        match &found.export {
            Handle::Blocking(export) => {
                let lane = self.lane.get_or_insert_with(|| self.state.workers().lane(export));
                let (export, done) = (Arc::clone(export), Arc::clone(&self.completions));
                lane.submit(Job::new(slot, command, export, work, done));
            }
            Handle::Async(export) => {
                let export = Arc::clone(export);
                self.futures.push(Box::pin(async move {
                    let result = dispatch::execute_async(export, command, &mut work).await;
                    Completion { slot, work, result }
                }));
            }
        }
    }

    /// Replies to what has been carried out elsewhere.
    fn collect(&mut self, cx: &mut Context<'_>) {
        if self.offloaded == 0 {
            return;
        }
        self.completions.take(&mut self.completed);
        let mut completed = core::mem::take(&mut self.completed);
        for completion in completed.drain(..) {
            self.finish(completion);
        }
        self.completed = completed;
        while let Poll::Ready(Some(completion)) = self.futures.poll_next_unpin(cx) {
            self.finish(completion);
        }
    }

    fn finish(&mut self, Completion { slot, work, result }: Completion) {
        self.offloaded -= 1;
        let slot = &mut self.slots[slot];
        slot.work = work;
        if let Some(id) = slot.id {
            self.answer(id, &result);
        }
    }

    /// Queues the reply to a request that was carried out.
    fn answer(&mut self, id: RequestId, result: &Result<(), ExportError>) {
        let slot = &self.slots[id.index()];
        let Some(command) = slot.command else { return };
        let answered = match (result, command) {
            (Err(error), _) => self.connection.reply(id).map(|reply| {
                tracing::debug!(?command, %error, "a request failed");
                reply.error(error.code(), error.text());
            }),
            (Ok(()), Command::Read { offset, .. }) => {
                answer::read(&mut self.connection, id, offset, &slot.work.body)
            }
            (Ok(()), Command::BlockStatus { offset, .. }) => {
                let answered = answer::status(&mut self.connection, id, offset, &slot.work.status);
                // It is in the queue now, and may take long to be sent.
                self.slots[id.index()].work.status.clear();
                answered
            }
            (Ok(()), Command::Resize { .. }) => {
                self.follow_size();
                self.connection.reply(id).and_then(nbd_proto::server::Reply::done)
            }
            (Ok(()), _) => self.connection.reply(id).and_then(nbd_proto::server::Reply::done),
        };
        self.settle_answered(id.index());
        if let Err(misuse) = answered {
            // Only an export that gives too little gets here.
            tracing::warn!(?command, %misuse, "an export's answer makes no sense");
            if let Ok(reply) = self.connection.reply(id) {
                reply.error(nbd_proto::wire::ErrorCode::EIO, "the export's answer makes no sense");
            }
        }
    }

    /// A request was answered: what it holds from now on, until the reply is sent, is known.
    fn settle_answered(&mut self, index: usize) {
        let slot = &self.slots[index];
        if matches!(slot.command, Some(Command::Read { .. } | Command::Write { .. })) {
            let held = slot.work.body.held();
            self.settle(index, held);
        }
    }

    /// Sends what is queued. Gives whether anything was.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, ConnectionError> {
        let mut progress = false;
        while !self.turn.is_over() {
            if self.connection.segments().next().is_none() {
                self.activity.drained += u64::from(progress);
                break;
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = gather(&self.connection, &self.slots, &mut slices);
            match Pin::new(&mut self.transport).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(written)) => {
                    self.activity.sent += written as u64;
                    self.turn.spend(written as u64);
                    self.connection.transmitted(written)?;
                    self.release_finished();
                    progress = true;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => break,
            }
        }
        Ok(progress)
    }

    fn release_finished(&mut self) {
        let crowded = self.state.budget().is_crowded();
        while let Some(id) = self.connection.next_finished() {
            if let Some(slot) = self.slots.get_mut(id.index()) {
                slot.work.clear();
                slot.payload.clear();
                slot.command = None;
                slot.id = None;
                if crowded {
                    slot.work.body.free();
                }
                let held = slot.work.body.buffer_size();
                self.settle(id.index(), held);
            }
        }
        if crowded || self.cached() > self.account.free() {
            self.free_cached();
            self.account.give_back_unused();
        }
    }
}

/// Slots that an idle connection keeps room for.
const MAX_IDLE_SLOTS: usize = 16;

/// How long to poll for the next request where that holds up no other task.
const BUSY_POLL: Duration = Duration::from_micros(30);

/// What it takes to carry out a command at once, in bytes that are copied or zeroed.
fn cost_of(command: Command) -> u64 {
    match command {
        Command::Read { .. } | Command::Write { .. } | Command::WriteZeroes { .. } => {
            command.length()
        }
        _ => 0,
    }
}

impl<T> Drop for Session<T> {
    fn drop(&mut self) {
        // The lane, which is dropped after this, forgets what has not begun; what runs keeps its buffers.
        let running =
            if self.offloaded > 0 { self.slots.iter().map(|slot| slot.charged).sum() } else { 0 };
        self.completions.abandon(self.account.split_off(running));
    }
}

/// Fills `slices` with what is to be sent next; gives how many there are.
fn gather<'a>(
    connection: &'a Connection,
    slots: &'a [Slot],
    slices: &mut [IoSlice<'a>; MAX_SLICES],
) -> usize {
    let mut count = 0;
    for segment in connection.segments() {
        if count == MAX_SLICES {
            break;
        }
        match segment {
            Segment::Control(bytes) => {
                slices[count] = IoSlice::new(bytes);
                count += 1;
            }
            Segment::Body { request, offset, length } => {
                let range = offset as usize..offset as usize + length;
                slots[request.index()].work.body.slices(range, |slice| {
                    slices[count] = slice;
                    count += 1;
                    count < MAX_SLICES
                });
            }
        }
    }
    count
}
