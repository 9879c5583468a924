//! The loop: bytes between a transport and a machine of the protocol, whichever role it plays.
//!
//! The machine says what the next bytes of the stream are and what is to be sent, the [`Handler`] holds the data, and
//! the pump moves bytes so that each is copied as seldom as possible: many small messages come with one receive call,
//! the data of large requests goes straight to its destination, and as many replies as are ready leave with one
//! gathered call.

use core::ops::Range;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead, AsyncWrite};
use nbd_proto::{Command, Finished, Misuse, RecvBuffer, RequestId, Segment, Segments, Wants};

use crate::busy_poll::BusyPoll;
use crate::transport::Transport;

/// A machine of the protocol: the verbs that both roles have.
pub(crate) trait Machine {
    /// What it reports.
    type Event;

    /// See [`nbd_proto::server::Connection::next_event`].
    fn next_event(&mut self, input: &mut RecvBuffer) -> Option<Self::Event>;

    /// The next event that is due without any more input.
    fn due_event(&mut self) -> Option<Self::Event>;

    /// See [`nbd_proto::server::Connection::wants`].
    fn wants(&self) -> Wants;

    /// See [`nbd_proto::server::Connection::payload_received`].
    fn payload_received(&mut self, count: u64) -> Result<(), Misuse>;

    /// See [`nbd_proto::server::Connection::end_of_stream`].
    fn end_of_stream(&mut self);

    /// See [`nbd_proto::server::Connection::segments`].
    fn segments(&self) -> Segments<'_>;

    /// See [`nbd_proto::server::Connection::transmitted`].
    fn transmitted(&mut self, count: usize) -> Result<Finished<'_>, Misuse>;
}

/// Makes a connection of nbd-proto a [`Machine`].
macro_rules! machine {
    ($connection:ty, $event:ty) => {
        impl Machine for $connection {
            type Event = $event;

            fn next_event(&mut self, input: &mut RecvBuffer) -> Option<$event> {
                self.next_event(input)
            }

            fn due_event(&mut self) -> Option<$event> {
                self.next_event(&mut &[][..])
            }

            fn wants(&self) -> Wants {
                self.wants()
            }

            fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
                self.payload_received(count)
            }

            fn end_of_stream(&mut self) {
                self.end_of_stream();
            }

            fn segments(&self) -> Segments<'_> {
                self.segments()
            }

            fn transmitted(&mut self, count: usize) -> Result<Finished<'_>, Misuse> {
                self.transmitted(count)
            }
        }
    };
}

machine!(nbd_proto::client::Connection, nbd_proto::client::Event);
machine!(nbd_proto::server::Connection, nbd_proto::server::Event);

/// Data that is about to arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    /// The request that it belongs to.
    pub(crate) id: RequestId,
    /// What the request is.
    pub(crate) command: Command,
    /// Where the next byte belongs, counted from the request's own offset.
    pub(crate) offset: u64,
    /// Bytes that are still to come.
    pub(crate) remaining: u64,
}

impl Incoming {
    /// Whether so much data is received through the receive buffer, rather than straight to its destination.
    pub(crate) const fn is_short(remaining: u64) -> bool {
        remaining < DIRECT
    }
}

/// What becomes of data that is about to arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reception {
    /// It goes to the [room](Handler::room) that the handler has for it.
    Room,
    /// It has to be seen as a whole where it was received, if it was: the next event is about it.
    Staged,
    /// It is dropped.
    Drop,
    /// It is not received yet. The task is woken when it is worth asking again.
    Wait,
}

/// Who holds the data and acts on events.
pub(crate) trait Handler<M: Machine> {
    /// What ends the connection at once.
    type Error: From<io::Error> + From<Misuse>;

    /// Something happened. `staged` is the payload that was received in one piece and is gone after this call, if
    /// [`reception`](Self::reception) asked for it.
    fn event(
        &mut self,
        machine: &mut M,
        event: M::Event,
        staged: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<(), Self::Error>;

    /// Whether more may be received and handled now.
    fn may_receive(&self) -> bool {
        true
    }

    /// Whether more may be sent now.
    fn may_send(&self) -> bool {
        true
    }

    /// So many bytes were received.
    fn received(&mut self, machine: &mut M, count: usize);

    /// So many bytes were sent; `drained` if none are left.
    fn sent(&mut self, count: usize, drained: bool);

    /// So many bytes were dropped in place of being sent.
    fn discarded(&mut self, _count: usize) {}

    /// The peer sends no more.
    fn hung_up(&mut self) {}

    /// Data is about to arrive, of which so many bytes have been received already.
    fn reception(&mut self, data: Incoming, received: usize, cx: &mut Context<'_>) -> Reception;

    /// Shows the room for data that is about to arrive, in order, until `visit` gives `false`. Need not be all of it,
    /// but some of it.
    fn room<'a>(&'a mut self, data: Incoming, visit: impl FnMut(IoSliceMut<'a>) -> bool);

    /// Shows the bytes of a request in that range, counted from the request's own offset, until `visit` gives `false`.
    fn body<'a>(
        &'a self,
        id: RequestId,
        range: Range<usize>,
        visit: impl FnMut(IoSlice<'a>) -> bool,
    );

    /// A request is over: its buffers are free.
    fn finished(&mut self, id: RequestId);
}

/// Slices of one gathered write, where there are few to be sent.
const FEW_SLICES: usize = 16;

/// Slices of one gathered write at most.
const MAX_SLICES: usize = 128;

/// Slices of one scattered read at most.
pub(crate) const MAX_ROOM: usize = 64;

/// Data from this size on is read straight to its destination rather than through the receive buffer.
const DIRECT: u64 = 32 << 10;

/// A machine and the transport that it talks over.
#[derive(Debug)]
pub(crate) struct Pump<M, T> {
    pub(crate) machine: M,
    pub(crate) transport: T,
    recv: RecvBuffer,
    input_ended: bool,
    /// Whether the transport may hold back what it was given.
    unflushed: bool,
}

impl<M: Machine, T: Transport> Pump<M, T> {
    pub(crate) const fn new(machine: M, transport: T) -> Self {
        Self { machine, transport, recv: RecvBuffer::new(), input_ended: false, unflushed: false }
    }

    /// Whether the peer has closed its side.
    pub(crate) const fn has_input_ended(&self) -> bool {
        self.input_ended
    }

    /// Whether everything that was received was used, and everything that there is to send was sent.
    pub(crate) fn is_idle(&self) -> bool {
        let mut segments = self.machine.segments();
        self.recv.is_empty() && !self.unflushed && segments.next().is_none()
    }

    /// Gives back the memory of the receive buffer, if it is empty.
    pub(crate) fn shrink(&mut self) {
        self.recv.shrink();
    }

    /// Handles what was received, and receives as much as one call brings. Gives whether anything happened.
    pub(crate) fn receive<H: Handler<M>>(
        &mut self,
        handler: &mut H,
        cx: &mut Context<'_>,
    ) -> Result<bool, H::Error> {
        let mut progress = false;
        // Once a call: replies go out before more is taken in.
        let mut may_read = true;
        while handler.may_receive() {
            if let Some(event) = self.machine.next_event(&mut self.recv) {
                handler.event(&mut self.machine, event, &[], cx)?;
                progress = true;
                continue;
            }
            let happened = match self.machine.wants() {
                Wants::Bytes { .. } => self.fill(handler, &mut may_read, cx)?,
                Wants::Payload { id, command, offset, remaining, .. } => {
                    let data = Incoming { id, command, offset, remaining };
                    self.receive_data(handler, data, &mut may_read, cx)?
                }
                _ => false,
            };
            if !happened {
                break;
            }
            progress = true;
        }
        Ok(progress)
    }

    /// Reads into the receive buffer.
    fn fill<H: Handler<M>>(
        &mut self,
        handler: &mut H,
        may_read: &mut bool,
        cx: &mut Context<'_>,
    ) -> Result<bool, H::Error> {
        if !core::mem::take(may_read) || self.input_ended {
            return Ok(false);
        }
        let read = Pin::new(&mut self.transport).poll_read(cx, self.recv.spare_capacity_mut());
        let Poll::Ready(count) = read else { return Ok(false) };
        self.filled(handler, count?);
        Ok(true)
    }

    /// So many bytes were read into the receive buffer; none if the stream has ended.
    fn filled<H: Handler<M>>(&mut self, handler: &mut H, count: usize) {
        if count == 0 {
            self.input_ended = true;
            self.machine.end_of_stream();
            handler.hung_up();
        } else {
            self.recv.advance(count);
            handler.received(&mut self.machine, count);
        }
    }

    /// Brings data to its destination. Gives whether anything happened.
    fn receive_data<H: Handler<M>>(
        &mut self,
        handler: &mut H,
        data: Incoming,
        may_read: &mut bool,
        cx: &mut Context<'_>,
    ) -> Result<bool, H::Error> {
        let unread = self.recv.unread().len();
        let count = data.remaining.min(unread as u64);
        match handler.reception(data, unread, cx) {
            Reception::Wait => Ok(false),
            _ if unread == 0 && Incoming::is_short(data.remaining) => {
                self.fill(handler, may_read, cx)
            }
            Reception::Drop if unread == 0 => self.fill(handler, may_read, cx),
            Reception::Drop => {
                self.recv.consume(count as usize);
                self.machine.payload_received(count)?;
                Ok(true)
            }
            Reception::Staged if count == data.remaining => {
                self.machine.payload_received(count)?;
                // The request can be carried out while its payload still lies in the receive buffer.
                if let Some(event) = self.machine.due_event() {
                    let staged = &self.recv.unread()[..count as usize];
                    handler.event(&mut self.machine, event, staged, cx)?;
                }
                self.recv.consume(count as usize);
                Ok(true)
            }
            Reception::Room | Reception::Staged if unread > 0 => {
                let mut moved = 0;
                let recv = &mut self.recv;
                handler.room(data, |mut room| {
                    moved += recv.copy_to(&mut room);
                    !recv.is_empty()
                });
                self.machine.payload_received(moved as u64)?;
                Ok(moved > 0)
            }
            Reception::Room | Reception::Staged => {
                self.receive_directly(handler, data, may_read, cx)
            }
        }
    }

    /// Reads data straight to its destination, and what follows it into the receive buffer.
    fn receive_directly<H: Handler<M>>(
        &mut self,
        handler: &mut H,
        data: Incoming,
        may_read: &mut bool,
        cx: &mut Context<'_>,
    ) -> Result<bool, H::Error> {
        if self.input_ended {
            return Ok(false);
        }
        let mut slices: [IoSliceMut<'_>; MAX_ROOM] =
            core::array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut used, mut wanted) = (0, 0);
        handler.room(data, |room| {
            wanted += room.len();
            slices[used] = room;
            used += 1;
            used < MAX_ROOM - 1
        });
        if wanted as u64 == data.remaining {
            slices[used] = IoSliceMut::new(self.recv.spare_capacity_mut());
            used += 1;
        }
        if used == 0 {
            return Ok(false);
        }
        let read = Pin::new(&mut self.transport).poll_read_vectored(cx, &mut slices[..used]);
        let Poll::Ready(count) = read else { return Ok(false) };
        let count = count?;
        if count == 0 {
            self.filled(handler, 0);
            return Ok(true);
        }
        let moved = count.min(wanted);
        self.recv.advance(count - moved);
        handler.received(&mut self.machine, count);
        self.machine.payload_received(moved as u64)?;
        // Once all of it has arrived, reading on is fair.
        *may_read |= moved as u64 == data.remaining;
        Ok(true)
    }

    /// Asks for more input for a moment longer, where nothing else is to be done. Gives whether some came.
    pub(crate) fn spin<H: Handler<M>>(
        &mut self,
        handler: &mut H,
        busy_poll: &mut BusyPoll,
    ) -> Result<bool, H::Error> {
        if self.input_ended || !self.recv.is_empty() {
            return Ok(false);
        }
        let (transport, recv) = (&mut self.transport, &mut self.recv);
        let found = busy_poll.spin(|| match transport.try_read(recv.spare_capacity_mut()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            result => Some(result),
        });
        let Some(count) = found else { return Ok(false) };
        self.filled(handler, count?);
        Ok(true)
    }

    /// Sends what is queued, as far as the transport takes it. Gives whether anything was sent.
    pub(crate) fn send<H: Handler<M>>(
        &mut self,
        handler: &mut H,
        cx: &mut Context<'_>,
    ) -> Result<bool, H::Error> {
        let mut progress = false;
        while handler.may_send() && self.machine.segments().next().is_some() {
            let written = {
                let mut slices = [IoSlice::new(&[]); FEW_SLICES];
                let count = gather(&self.machine, handler, &mut slices);
                if count < FEW_SLICES {
                    let slices = &slices[..count];
                    Pin::new(&mut self.transport).poll_write_vectored(cx, slices)
                } else {
                    self.send_many(handler, cx)
                }
            };
            match written {
                Poll::Ready(Ok(0)) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(Ok(count)) => {
                    for id in self.machine.transmitted(count)? {
                        handler.finished(id);
                    }
                    handler.sent(count, self.machine.segments().next().is_none());
                    self.unflushed = true;
                    progress = true;
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => break,
            }
        }
        if self.unflushed {
            let flushed = Pin::new(&mut self.transport).poll_flush(cx);
            self.unflushed = flushed.is_pending();
            if let Poll::Ready(Err(error)) = flushed {
                return Err(error.into());
            }
        }
        Ok(progress)
    }

    /// Drops what is queued as if it had been sent, for a peer that takes no more. Gives whether there was anything.
    pub(crate) fn discard<H: Handler<M>>(&mut self, handler: &mut H) -> Result<bool, H::Error> {
        self.unflushed = false;
        let mut progress = false;
        loop {
            let count = self.machine.segments().map(|segment| segment.len()).sum();
            if count == 0 {
                return Ok(progress);
            }
            for id in self.machine.transmitted(count)? {
                handler.finished(id);
            }
            handler.discarded(count);
            progress = true;
        }
    }

    /// Whether the transport still holds back something that it was given.
    pub(crate) const fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// One gathered write of many slices. Kept apart, since most need few.
    #[inline(never)]
    fn send_many<H: Handler<M>>(
        &mut self,
        handler: &H,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = gather(&self.machine, handler, &mut slices);
        Pin::new(&mut self.transport).poll_write_vectored(cx, &slices[..count])
    }

    /// Sends what the transport holds, and closes the writing side.
    pub(crate) fn poll_close_writing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_close_and_drop_input(&mut self.transport, cx)
    }

    /// Closes the writing side, then reads what still comes, so that what was sent last isn't lost to a reset.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_close_writing(cx))?;
        poll_drop_input(&mut self.transport, cx)
    }
}

/// Receive calls for what is dropped, before others have their turn.
const MAX_DROPS: usize = 64;

/// Closes the writing side, and drops what is received meanwhile: the peer may read nothing before what it sends is taken.
pub(crate) fn poll_close_and_drop_input<T>(
    transport: &mut T,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let closed = Pin::new(&mut *transport).poll_close(cx);
    if closed.is_pending() {
        // Its end, too, is for the other side to say.
        let _ended = poll_drop_input(transport, cx);
        // What was received may be what the transport waited for.
        return Pin::new(transport).poll_close(cx);
    }
    closed
}

/// Reads what comes, until the end.
fn poll_drop_input<T>(transport: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>>
where
    T: AsyncRead + Unpin,
{
    let mut buffer = [0; 4096];
    for _ in 0..MAX_DROPS {
        if ready!(Pin::new(&mut *transport).poll_read(cx, &mut buffer))? == 0 {
            return Poll::Ready(Ok(()));
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Fills `slices` with what is to be sent next; gives how many there are.
fn gather<'a, M: Machine, H: Handler<M>>(
    machine: &'a M,
    handler: &'a H,
    slices: &mut [IoSlice<'a>],
) -> usize {
    let mut count = 0;
    for segment in machine.segments() {
        match segment {
            Segment::Control(bytes) => {
                slices[count] = IoSlice::new(bytes);
                count += 1;
            }
            Segment::Body { id, offset, length } => {
                let range = offset as usize..offset as usize + length;
                let max = slices.len();
                handler.body(id, range, |slice| {
                    slices[count] = slice;
                    count += 1;
                    count < max
                });
            }
        }
        if count == slices.len() {
            break;
        }
    }
    count
}
