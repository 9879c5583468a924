//! One connection, driven: requests between a client and the core, bytes between the core and a transport.

mod deadlines;
mod inbound;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nbd_proto::Segment;
use nbd_proto::client::{Connection, SubmitError};
use nbd_proto::wire::{CompactRequest, ExtendedRequest};

use super::haggling::Entered;
use super::invalid::Terms;
use super::lead::{Drive, Until};
use super::link::{Closed, Leaving, Link};
use super::timer::Timer;
use super::transfer::Transfer;
use super::{Error, Invalid, LostReason, Options};
use crate::busy_poll::BusyPoll;
use crate::runtime::BoxFuture;
use crate::staging::Staging;
use crate::transport::Transport;

/// Slices that go into one gathered write.
const MOST_SLICES: usize = 128;

/// How long a connection that nobody needs any more may take to get rid of what is still to be sent, if requests have no
/// deadline.
const FAREWELL: Duration = Duration::from_secs(5);

/// Rounds of writing and reading before the runtime gets a turn.
const MOST_ROUNDS: usize = 64;

/// A request on the wire: which part of which transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    transfer: usize,
    /// Counted from the beginning of the transfer.
    start: u64,
}

pub(crate) struct Session<T> {
    connection: Connection<Piece>,
    transport: T,
    terms: Terms,
    contexts: Vec<(u32, Arc<str>)>,
    staging: Staging,
    /// Requests that wait for a place in flight.
    backlog: VecDeque<Transfer>,
    transfers: Vec<Option<Transfer>>,
    free: Vec<usize>,
    /// The transfer that is being cut into pieces.
    cutting: Option<usize>,
    most_in_flight: usize,
    /// Bytes of all that was ever submitted, and how many of them were sent.
    submitted: u64,
    sent: u64,
    busy_poll: BusyPoll,
    /// Somebody was told something in this turn, and may have more to ask for.
    told: bool,
    timeout: Option<Duration>,
    timer: Timer,
    alarm: Option<BoxFuture>,
    leaving: Leaving,
    /// When to leave without a word, since the server does not take it.
    farewell: Option<BoxFuture>,
    /// The transport takes no more bytes. What it has to give is still read.
    output_failed: Option<io::Error>,
    input_ended: bool,
    /// Why the connection is over once the last events were told.
    lost: Option<LostReason>,
    over: bool,
}

impl<T: Transport> Session<T> {
    pub(crate) fn new(
        entered: Entered<T>,
        terms: Terms,
        contexts: &[Arc<str>],
        timer: Timer,
        options: &Options,
    ) -> Self {
        let Entered { connection, transport, staging, .. } = entered;
        let selected = connection.export().map_or(&[][..], |export| export.contexts);
        let named = |name: &str| contexts.iter().find(|context| &***context == name).cloned();
        let contexts = selected
            .iter()
            .map(|selected| {
                let name = named(&selected.name).unwrap_or_else(|| selected.name.as_str().into());
                (selected.id, name)
            })
            .collect();
        Self {
            connection,
            transport,
            terms,
            contexts,
            staging,
            backlog: VecDeque::new(),
            transfers: Vec::new(),
            free: Vec::new(),
            cutting: None,
            most_in_flight: options.limits.max_in_flight.max(1) as usize,
            submitted: 0,
            sent: 0,
            busy_poll: BusyPoll::new(options.busy_wait),
            told: false,
            timeout: options.request_timeout,
            timer,
            alarm: None,
            leaving: Leaving::No,
            farewell: None,
            output_failed: None,
            input_ended: false,
            lost: None,
            over: false,
        }
    }

    /// Fails whatever is not answered, and tells everybody.
    pub(crate) fn end(&mut self, link: &Link, closed: Closed) {
        if core::mem::replace(&mut self.over, true) {
            return;
        }
        tracing::debug!(peer = &*link.peer, ?closed, "a connection is over");
        link.close(closed.clone());
        let in_flight = self.transfers.iter_mut().filter_map(Option::take);
        for mut transfer in in_flight.chain(self.backlog.drain(..)) {
            let sent = transfer.begins.is_some_and(|begins| begins < self.sent);
            transfer.fail(|| closed.error(&link.peer, sent));
            transfer.finish();
        }
        link.over(closed);
    }

    fn turn(&mut self, link: &Link, cx: &mut Context<'_>) -> Result<bool, LostReason> {
        self.take(link);
        let written = self.write(cx)?;
        let read = self.read(link, cx)?;
        if self.connection.server_is_shutting_down() {
            self.shut_down(link);
        }
        Ok(written || read)
    }

    /// Takes over what was queued, and submits as much of it as may be in flight.
    fn take(&mut self, link: &Link) {
        self.leaving = link.take(&mut self.backlog);
        if self.leaving == Leaving::Softly && self.nobody_waits() {
            self.leaving = Leaving::Now;
        }
        while self.connection.requests_in_flight() < self.most_in_flight {
            let at = match self.cutting {
                Some(at) => at,
                None => match self.backlog.pop_front() {
                    // Nobody would miss it.
                    Some(transfer) if is_abandoned(&transfer) => continue,
                    Some(transfer) => self.admit(transfer),
                    None => break,
                },
            };
            self.cut(link, at);
        }
        if self.leaving != Leaving::No && self.backlog.is_empty() && self.cutting.is_none() {
            self.connection.disconnect();
        }
        if self.leaving == Leaving::Now {
            self.connection.disconnect_now();
        }
    }

    /// All that is in flight has timed out. (What was only abandoned is waited for, as long as it may take.)
    fn nobody_waits(&self) -> bool {
        let told = |transfer: &Transfer| transfer.ticket.is_none();
        self.backlog.is_empty() && self.transfers.iter().flatten().all(told)
    }

    fn admit(&mut self, transfer: Transfer) -> usize {
        let at = self.free.pop().unwrap_or_else(|| {
            self.transfers.push(None);
            self.transfers.len() - 1
        });
        self.transfers[at] = Some(transfer);
        self.cutting = Some(at);
        at
    }

    /// Submits the next piece of a transfer.
    fn cut(&mut self, link: &Link, at: usize) {
        let Some(transfer) = &mut self.transfers[at] else {
            self.cutting = None;
            return;
        };
        if !transfer.submitted {
            let start = transfer.cut;
            let length = self.terms.piece_length(&transfer.operation, start);
            let command = transfer.operation.piece(start, length);
            match self.connection.submit(command, Piece { transfer: at, start }) {
                Ok(_) => {
                    transfer.begins.get_or_insert(self.submitted);
                    transfer.cut += length;
                    transfer.in_flight += 1;
                    transfer.submitted =
                        transfer.cut == transfer.operation.length || transfer.operation.is_single();
                    let header = if self.terms.extended {
                        ExtendedRequest::SIZE
                    } else {
                        CompactRequest::SIZE
                    };
                    let body = if transfer.operation.is_write() { length } else { 0 };
                    self.submitted += header as u64 + body;
                }
                Err((error, _)) => transfer.fail(|| refused(link, error)),
            }
        }
        if transfer.submitted {
            self.cutting = None;
            self.finish_if_done(at);
        }
    }

    fn finish_if_done(&mut self, at: usize) {
        if let Some(transfer) =
            self.transfers[at].take_if(|transfer| transfer.submitted && transfer.in_flight == 0)
        {
            self.free.push(at);
            self.told = true;
            transfer.finish();
        }
    }

    /// The server takes no more requests: what is in flight is finished, what is not fails.
    #[cold]
    fn shut_down(&mut self, link: &Link) {
        let closed = Closed::Lost(LostReason::ShuttingDown);
        link.close(closed.clone());
        // Those that were made before that, too, by somebody who was told a moment ago.
        self.leaving = link.take(&mut self.backlog);
        for mut transfer in self.backlog.drain(..) {
            transfer.fail(|| closed.error(&link.peer, false));
            transfer.finish();
        }
        if let Some(at) = self.cutting.take()
            && let Some(transfer) = &mut self.transfers[at]
        {
            let sent = transfer.begins.is_some();
            transfer.fail(|| closed.error(&link.peer, sent));
            self.finish_if_done(at);
        }
        self.connection.disconnect();
    }

    /// Sends what is queued. Gives whether anything was.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, LostReason> {
        let mut progress = false;
        while self.output_failed.is_none() {
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            let count = gather(&self.connection, &self.transfers, &mut slices);
            if count == 0 {
                break;
            }
            match Pin::new(&mut self.transport).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => {
                    self.output_failed = Some(io::ErrorKind::WriteZero.into());
                }
                Poll::Ready(Ok(written)) => {
                    self.connection.transmitted(written)?;
                    self.sent += written as u64;
                    progress = true;
                }
                Poll::Ready(Err(error)) => self.output_failed = Some(error),
                Poll::Pending => break,
            }
        }
        Ok(progress)
    }

    /// Ready when it is time to hang up, whether or not the server took what was to be said.
    fn farewell_is_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.leaving != Leaving::Now {
            return Poll::Pending;
        }
        let limit = self.timeout.unwrap_or(FAREWELL);
        self.farewell.get_or_insert_with(|| self.timer.sleep(limit)).as_mut().poll(cx)
    }

    /// Whether everything that was to be said has left.
    fn is_silent(&self) -> bool {
        self.connection.segments().next().is_none()
    }
}

impl<T: Transport> Session<T> {
    /// Drives the connection until nothing is left to do at the moment; gives how it ended if it did.
    fn drive(
        &mut self,
        link: &Link,
        cx: &mut Context<'_>,
        until: Until<'_>,
    ) -> Result<Option<Closed>, LostReason> {
        for _ in 0..MOST_ROUNDS {
            let progress = self.turn(link, cx)?;
            if self.connection.is_finished() || self.leaving == Leaving::Now && self.is_silent() {
                return Ok(Some(self.lost.take().map_or(Closed::Left, Closed::Lost)));
            }
            if until.is_some_and(|until| until()) {
                return Ok(None);
            }
            if progress {
                continue;
            }
            if let Some(error) = self.output_failed.take() {
                return Err(error.into());
            }
            if !self.wait_a_moment()? {
                return Ok(None);
            }
        }
        cx.waker().wake_by_ref();
        Ok(None)
    }
}

impl<T: Transport> Drive for Session<T> {
    fn poll(&mut self, link: &Link, cx: &mut Context<'_>, until: Until<'_>) -> Poll<()> {
        if self.over {
            return Poll::Ready(());
        }
        link.waker.register(cx.waker());
        self.told = false;
        let closed = match self.drive(link, cx, until) {
            Ok(None) => {
                self.expire(link, cx);
                if self.farewell_is_due(cx).is_pending() {
                    return Poll::Pending;
                }
                Closed::Left
            }
            Ok(Some(closed)) => {
                // Whether or not the server takes note.
                let _closed = Pin::new(&mut self.transport).poll_close(cx);
                closed
            }
            Err(reason) => Closed::Lost(reason),
        };
        self.end(link, closed);
        Poll::Ready(())
    }

    fn push(&mut self, link: &Link, cx: &mut Context<'_>) -> bool {
        self.take(link);
        // An error shows again to whoever leads. So does a deadline that nobody watches yet.
        let written = self.write(cx).is_ok() && self.output_failed.is_none();
        written && self.is_silent() && (self.timeout.is_none() || self.alarm.is_some())
    }
}

fn is_abandoned(transfer: &Transfer) -> bool {
    transfer.ticket.as_ref().is_none_or(|ticket| ticket.is_abandoned())
}

/// Why the core did not take a request that had been found valid.
fn refused(link: &Link, error: SubmitError) -> Error {
    let peer = Arc::clone(&link.peer);
    match error {
        SubmitError::Disconnecting | SubmitError::NotTransmitting => Error::Disconnected { peer },
        SubmitError::ServerShuttingDown => {
            Error::Lost { peer, sent: false, reason: LostReason::ShuttingDown }
        }
        error => Error::Invalid(Invalid::Rule(error)),
    }
}

/// Fills `slices` with what is to be sent next; gives how many there are.
fn gather<'a>(
    connection: &'a Connection<Piece>,
    transfers: &'a [Option<Transfer>],
    slices: &mut [IoSlice<'a>; MOST_SLICES],
) -> usize {
    let mut count = 0;
    for (slice, segment) in slices.iter_mut().zip(connection.segments()) {
        let bytes = match segment {
            Segment::Control(bytes) => bytes,
            Segment::Body { id: request, offset, length } => {
                let piece = connection.context(request);
                let transfer = piece.and_then(|piece| transfers[piece.transfer].as_ref());
                let (Some(piece), Some(transfer)) = (piece, transfer) else { break };
                transfer.data(piece.start + offset, length)
            }
        };
        *slice = IoSlice::new(bytes);
        count += 1;
    }
    count
}
