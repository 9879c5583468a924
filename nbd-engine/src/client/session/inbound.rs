//! What arrives: replies, and the data in them.

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nbd_proto::RequestId;
use nbd_proto::client::{Event, Incoming};

use super::super::link::Link;
use super::super::{ContextExtents, Error, LostReason};
use super::{Piece, Session};
use crate::transport::Transport;

/// Payloads from this size on are read straight into their buffer rather than through the staging buffer.
const DIRECT: u64 = 32 << 10;

/// What is read along with the end of a large payload: the header that follows, and small replies.
const BEHIND: usize = 4 << 10;

impl<T: Transport> Session<T> {
    /// Takes in replies. Gives whether anything happened.
    pub(super) fn read(&mut self, link: &Link, cx: &mut Context<'_>) -> Result<bool, LostReason> {
        let mut progress = false;
        let mut may_read = true;
        loop {
            let filled = match self.connection.incoming() {
                Incoming::Control { need } => {
                    if need == 0 || !self.staging.is_empty() {
                        let mut input = self.staging.bytes();
                        let event = self.connection.next_event(&mut input)?;
                        let rest = input.len();
                        let eaten = self.staging.bytes().len() - rest;
                        self.staging.consume(eaten);
                        progress |= eaten > 0 || event.is_some();
                        if let Some(event) = event {
                            self.handle(link, event);
                        }
                        if eaten > 0 || need == 0 {
                            continue;
                        }
                    }
                    self.fill_staging(cx, &mut may_read)?
                }
                Incoming::Payload { request, offset, remaining } => {
                    if !self.staging.is_empty() {
                        self.payload_from_staging(request, offset, remaining)?;
                        progress = true;
                        continue;
                    }
                    if remaining >= DIRECT {
                        self.fill_payload(cx, request, offset, remaining, &mut may_read)?
                    } else {
                        self.fill_staging(cx, &mut may_read)?
                    }
                }
                Incoming::Discard { remaining } => {
                    if !self.staging.is_empty() {
                        let count = remaining.min(self.staging.bytes().len() as u64);
                        self.staging.consume(count as usize);
                        self.connection.payload_received(count)?;
                        progress = true;
                        continue;
                    }
                    self.fill_staging(cx, &mut may_read)?
                }
                _ => return Ok(progress),
            };
            if !filled {
                return Ok(progress);
            }
            progress = true;
        }
    }

    /// Reads into the staging buffer, once a call of `read`: requests go out before more is taken in.
    fn fill_staging(
        &mut self,
        cx: &mut Context<'_>,
        may_read: &mut bool,
    ) -> Result<bool, LostReason> {
        if !core::mem::take(may_read) || self.input_ended {
            return Ok(false);
        }
        let Poll::Ready(count) = Pin::new(&mut self.transport).poll_read(cx, self.staging.room())
        else {
            return Ok(false);
        };
        self.busy_poll.on_wakeup();
        self.received(count?);
        Ok(true)
    }

    /// The staging buffer was read into; with nothing if the stream has ended.
    fn received(&mut self, count: usize) {
        self.staging.filled(count);
        if count == 0 {
            self.input_ended = true;
            self.lost = self.connection.end_of_stream().err().map(Into::into);
        }
    }

    /// Asks a few times more for the next reply before going to sleep.
    pub(super) fn wait_a_moment(&mut self) -> Result<bool, LostReason> {
        let awaiting = self.connection.requests_in_flight() > 0
            && matches!(self.connection.incoming(), Incoming::Control { need: 1.. })
            && self.staging.is_empty()
            && self.is_silent();
        if !awaiting || self.told || self.input_ended {
            return Ok(false);
        }
        let (transport, room) = (&mut self.transport, self.staging.room());
        let found = self.busy_poll.spin(|| match transport.try_read(room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            result => Some(result),
        });
        let Some(count) = found else { return Ok(false) };
        self.received(count?);
        Ok(true)
    }

    /// Reads payload straight to its place, and a little of what follows it into the staging buffer.
    fn fill_payload(
        &mut self,
        cx: &mut Context<'_>,
        request: RequestId,
        offset: u64,
        remaining: u64,
        may_read: &mut bool,
    ) -> Result<bool, LostReason> {
        if self.input_ended {
            return Ok(false);
        }
        let piece = self.connection.context(request).copied();
        let place = piece.and_then(|piece| {
            self.transfers[piece.transfer].as_mut()?.place(piece.start + offset, remaining)
        });
        let Some(place) = place else {
            // Nobody wants it any more.
            return self.fill_staging(cx, may_read);
        };
        let behind = &mut self.staging.room()[..BEHIND];
        let mut slices = [IoSliceMut::new(place), IoSliceMut::new(behind)];
        let read = Pin::new(&mut self.transport).poll_read_vectored(cx, &mut slices);
        let Poll::Ready(read) = read else { return Ok(false) };
        let read = read?;
        if read == 0 {
            self.received(0);
            return Ok(true);
        }
        let payload = (read as u64).min(remaining);
        self.staging.filled(read - payload as usize);
        self.connection.payload_received(payload)?;
        // A whole payload has arrived: reading on is fair.
        *may_read |= payload == remaining;
        Ok(true)
    }

    fn payload_from_staging(
        &mut self,
        request: RequestId,
        offset: u64,
        remaining: u64,
    ) -> Result<(), LostReason> {
        let staged = self.staging.bytes();
        let count = (staged.len() as u64).min(remaining);
        let staged = &staged[..count as usize];
        if let Some(&Piece { transfer, start }) = self.connection.context(request)
            && let Some(transfer) = &mut self.transfers[transfer]
            && let Some(place) = transfer.place(start + offset, count)
        {
            place.copy_from_slice(staged);
        }
        self.staging.consume(count as usize);
        self.connection.payload_received(count)?;
        Ok(())
    }

    fn handle(&mut self, link: &Link, event: Event<Piece>) {
        match event {
            Event::Hole { request, offset, length } => {
                if let Some(&Piece { transfer, start }) = self.connection.context(request)
                    && let Some(transfer) = &mut self.transfers[transfer]
                    && let Some(place) = transfer.place(start + offset, length)
                {
                    place.fill(0);
                }
            }
            Event::Extents { request, context, mut extents } => {
                let named = self.contexts.iter().find(|(id, _)| *id == context);
                if let Some((_, name)) = named
                    && let Some(&Piece { transfer, .. }) = self.connection.context(request)
                    && let Some(transfer) = &mut self.transfers[transfer]
                {
                    match transfer.extents.iter_mut().find(|known| known.context == *name) {
                        Some(known) => known.extents.append(&mut extents),
                        None => {
                            let context = Arc::clone(name);
                            transfer.extents.push(ContextExtents { context, extents });
                        }
                    }
                }
            }
            Event::Completed { context: Piece { transfer: at, .. }, result, .. } => {
                if let Some(transfer) = &mut self.transfers[at] {
                    transfer.in_flight -= 1;
                    if transfer.operation.changes_export() {
                        link.changed();
                    }
                    if let Err(error) = result {
                        let operation = transfer.operation;
                        transfer.fail(|| Error::Command {
                            peer: Arc::clone(&link.peer),
                            command: operation.command,
                            offset: operation.offset,
                            length: operation.length,
                            error,
                        });
                    }
                }
                self.finish_if_done(at);
            }
            _ => {}
        }
    }
}
