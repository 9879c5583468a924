//! One connection, driven: bytes between a transport and the core, requests between the core and an export.

mod inbound;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::stream::{FuturesUnordered, StreamExt};
use nbd_proto::server::{Connection, Event, Listing, LookupOutcome, LookupRefusal, Request};
use nbd_proto::{Command, RequestId, Segment};

use super::ConnectionError;
use super::answer;
use super::dispatch::{self, Work};
use super::payload::{Payload, SparePages};
use super::service::Service;
use super::status::{Source, Status};
use super::workers::{Completion, Completions, Job};
use crate::export::{Body, ExportError, Found, Handle, Pool};
use crate::patience::Patience;
use crate::runtime::BoxFuture;
use crate::staging::Staging;
use crate::transport::Transport;

/// Slices that go into one gathered write.
const MOST_SLICES: usize = 128;

/// Rounds of reading and writing before the runtime gets a turn.
const MOST_ROUNDS: usize = 16;

/// A place in flight, beside the core's own.
#[derive(Debug)]
struct Slot {
    command: Option<Command>,
    work: Work,
    payload: Payload,
}

pub(crate) struct Session<T> {
    connection: Connection,
    transport: T,
    service: Arc<Service>,
    /// The export that a client looked at last, and that it uses once it entered.
    export: Option<Found>,
    /// The metadata contexts that were selected for it, by number.
    contexts: Vec<(u32, Source)>,
    staging: Staging,
    slots: Vec<Slot>,
    pool: Arc<Pool>,
    spare_pages: SparePages,
    /// Requests that are with the workers or wait in `futures`.
    elsewhere: usize,
    /// Requests that wait for a worker.
    queued: VecDeque<RequestId>,
    patience: Patience,
    completions: Arc<Completions>,
    completed: Vec<Completion>,
    futures: FuturesUnordered<BoxFuture<Completion>>,
    /// The transport has no more bytes to give.
    input_ended: bool,
}

impl<T: Transport> Session<T> {
    /// A connection that was just accepted. Fails when an oldstyle client can't be given its export.
    pub(crate) fn new(service: Arc<Service>, transport: T) -> Result<Self, ConnectionError> {
        let settings = service.settings();
        let (connection, export) = match service.oldstyle_export() {
            None => (Connection::new(settings.config.clone()), None),
            Some(name) => {
                let found = service.exports().find(name);
                let found = found.ok_or_else(|| ConnectionError::NoSuchExport(name.into()))?;
                let info = dispatch::describe(&found, settings, core::iter::empty());
                (Connection::oldstyle(settings.config.clone(), &info)?, Some(found))
            }
        };
        Ok(Self {
            connection,
            transport,
            patience: Patience::new(settings.busy_wait),
            service,
            export,
            contexts: Vec::new(),
            staging: Staging::new(),
            slots: Vec::new(),
            pool: Arc::default(),
            spare_pages: SparePages::default(),
            elsewhere: 0,
            queued: VecDeque::new(),
            completions: Arc::default(),
            completed: Vec::new(),
            futures: FuturesUnordered::new(),
            input_ended: false,
        })
    }

    pub(crate) const fn is_transmitting(&self) -> bool {
        self.connection.is_transmitting()
    }

    /// Whether nothing is in flight or queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.connection.is_idle()
    }

    /// Exports about which the client may want to ask before it enters one.
    pub(crate) const fn listed_exports(&self) -> u32 {
        self.connection.listed_exports()
    }

    /// Requests whose reply is not wholly sent.
    pub(crate) const fn requests_in_flight(&self) -> usize {
        self.connection.requests_in_flight()
    }

    pub(crate) const fn shut_down(&mut self) {
        self.connection.shut_down();
    }

    /// The export in use, for the log.
    pub(crate) fn export_name(&self) -> Option<&str> {
        self.export.as_ref().map(|found| found.name.as_str())
    }

    /// Drives the connection until it is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.completions.waker.register(cx.waker());
        for _ in 0..MOST_ROUNDS {
            self.collect(cx);
            let read = self.read(cx)?;
            let written = self.write(cx)?;
            if self.connection.is_finished() {
                return Poll::Ready(Ok(()));
            }
            if !read && !written && !self.wait_a_moment()? {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
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

    fn handle(&mut self, event: Event) -> Result<(), ConnectionError> {
        match event {
            Event::Request(request) => self.begin(request),
            Event::List => {
                let exports = self.service.exports().list();
                let listings =
                    exports.iter().map(|(name, description)| Listing { name, description });
                self.connection.answer_list(listings)?;
            }
            Event::Lookup(lookup) => {
                let found = self.service.exports().find(&lookup.name);
                let info = found.as_ref().map(|found| {
                    dispatch::describe(found, self.service.settings(), self.connection.queries())
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
        tracing::debug!(export = self.export_name(), replies, "a client entered transmission");
        if let (Some(view), Some(found)) = (view, &self.export) {
            let selected = view.contexts.iter();
            self.contexts =
                selected.map(|one| (one.id, dispatch::source(found, &one.name))).collect();
        }
    }

    /// A request was raised. Writes wait for their payload.
    fn begin(&mut self, request: Request) {
        let index = request.id.index();
        if index >= self.slots.len() {
            let pool = &self.pool;
            self.slots.resize_with(index + 1, || Slot {
                command: None,
                work: Work { body: Body::with_pool(Arc::clone(pool)), status: Status::default() },
                payload: Payload::default(),
            });
        }
        let slot = &mut self.slots[index];
        slot.command = Some(request.command);
        slot.work.clear();
        match request.command {
            Command::Write { .. } => return,
            Command::BlockStatus { .. } => {
                let most = self.service.settings().config.limits.max_extents;
                let awaited = self.connection.awaited_contexts(request.id);
                slot.work.status.begin(most as usize);
                for (id, source) in self.contexts.iter().filter(|(id, _)| awaited.contains(id)) {
                    slot.work.status.add(*id, source.clone());
                }
            }
            _ => {}
        }
        self.start(request.id);
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
                self.answer(id, &result);
                return;
            }
        }
        self.start_elsewhere(id);
    }

    /// Carries out a request that may take its time.
    fn start_elsewhere(&mut self, id: RequestId) {
        let slot = &mut self.slots[id.index()];
        let (Some(command), Some(found)) = (slot.command, &self.export) else { return };
        match &found.export {
            Handle::Blocking(_) => {
                self.queued.push_back(id);
                self.submit_queued();
            }
            Handle::Async(export) => {
                self.elsewhere += 1;
                let mut work = core::mem::take(&mut slot.work);
                let export = Arc::clone(export);
                self.futures.push(Box::pin(async move {
                    let result = dispatch::execute_async(export, command, &mut work).await;
                    Completion { id, work, result }
                }));
            }
        }
    }

    /// Hands requests to the workers, no more at a time than this connection's share: the others need some, too.
    fn submit_queued(&mut self) {
        let share = (self.service.settings().max_workers * 3).div_ceil(4);
        while self.elsewhere < share
            && let Some(id) = self.queued.pop_front()
        {
            let slot = &mut self.slots[id.index()];
            let (Some(command), Some(found)) = (slot.command, &self.export) else { continue };
            if let Handle::Blocking(export) = &found.export {
                let work = core::mem::take(&mut slot.work);
                let (export, done) = (Arc::clone(export), Arc::clone(&self.completions));
                self.elsewhere += 1;
                self.service.workers().submit(Job { id, command, export, work, done });
            }
        }
    }

    /// Replies to what has been carried out elsewhere.
    fn collect(&mut self, cx: &mut Context<'_>) {
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

    fn finish(&mut self, Completion { id, work, result }: Completion) {
        self.elsewhere -= 1;
        self.slots[id.index()].work = work;
        self.answer(id, &result);
        self.submit_queued();
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
        if let Err(misuse) = answered {
            // Only an export that gives too little gets here.
            tracing::warn!(?command, %misuse, "an export's answer makes no sense");
            if let Ok(reply) = self.connection.reply(id) {
                reply.error(nbd_proto::wire::ErrorCode::EIO, "the export's answer makes no sense");
            }
        }
    }

    /// Sends what is queued. Gives whether anything was.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, ConnectionError> {
        let mut progress = false;
        loop {
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            let count = gather(&self.connection, &self.slots, &mut slices);
            if count == 0 {
                return Ok(progress);
            }
            match Pin::new(&mut self.transport).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(written)) => {
                    self.connection.transmitted(written)?;
                    self.release_finished();
                    progress = true;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => return Ok(progress),
            }
        }
    }

    fn release_finished(&mut self) {
        while let Some(id) = self.connection.next_finished() {
            if let Some(slot) = self.slots.get_mut(id.index()) {
                slot.work.clear();
                slot.payload.clear();
                slot.command = None;
            }
        }
    }
}

impl<T> Drop for Session<T> {
    fn drop(&mut self) {
        self.completions.abandon();
    }
}

/// Fills `slices` with what is to be sent next; gives how many there are.
fn gather<'a>(
    connection: &'a Connection,
    slots: &'a [Slot],
    slices: &mut [IoSlice<'a>; MOST_SLICES],
) -> usize {
    let mut count = 0;
    for segment in connection.segments() {
        if count == MOST_SLICES {
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
                    count < MOST_SLICES
                });
            }
        }
    }
    count
}
