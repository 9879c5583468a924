//! What arrives: requests, and the payloads of writes.

use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nbd_proto::RequestId;
use nbd_proto::server::Incoming;

use super::super::ConnectionError;
use super::super::dispatch;
use super::super::payload;
use super::{Session, Slot};
use crate::export::{Body, Found, Handle};
use crate::transport::Transport;

/// Payloads from this size on are read straight into their buffer rather than through the staging buffer.
const DIRECT: u64 = 32 << 10;

impl<T: Transport> Session<T> {
    /// Takes in what the core has to be told: bytes, and payloads. Gives whether anything happened.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, ConnectionError> {
        let mut progress = false;
        let mut may_read = true;
        if let Some(id) = self.waiting {
            self.start_when_affordable(id, cx);
            progress = self.waiting.is_none();
        }
        while self.waiting.is_none() && !self.turn.is_over() {
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
                            self.handle(event, cx)?;
                        }
                        if eaten > 0 || need == 0 {
                            continue;
                        }
                    }
                    self.fill_staging(cx, &mut may_read)?
                }
                Incoming::Payload { request, offset, remaining } => {
                    if !self.afford_payload(request, remaining, cx) {
                        return Ok(progress);
                    }
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
        Ok(progress)
    }

    /// Charges the memory that a write's payload needs, before any of it is received.
    fn afford_payload(&mut self, id: RequestId, remaining: u64, cx: &mut Context<'_>) -> bool {
        let slot = &self.slots[id.index()];
        if slot.payload_charged {
            return true;
        }
        let affordable = self.charge(id.index(), Body::cost(remaining as usize), cx);
        self.slots[id.index()].payload_charged = affordable;
        affordable
    }

    /// Reads into the staging buffer, once a call of `read`: replies go out before more is taken in.
    fn fill_staging(&mut self, cx: &mut Context<'_>, may_read: &mut bool) -> io::Result<bool> {
        if !core::mem::take(may_read) || self.input_ended {
            return Ok(false);
        }
        let Poll::Ready(count) = Pin::new(&mut self.transport).poll_read(cx, self.staging.room())
        else {
            return Ok(false);
        };
        self.busy_poll.on_wakeup();
        Ok(self.received(count?))
    }

    /// The staging buffer was read into; with nothing if the stream has ended. Gives whether there is more to do.
    fn received(&mut self, count: usize) -> bool {
        self.follow_size();
        self.count_received(count);
        self.staging.filled(count);
        if count == 0 {
            self.end_of_stream();
        }
        count > 0
    }

    fn count_received(&mut self, count: usize) {
        self.activity.received += count as u64;
        self.turn.spend(count as u64);
        self.ended_rest |= core::mem::replace(&mut self.rests, false);
    }

    /// The export may have been resized, by another connection even. A client who was told so before it sent what has
    /// just been received must find the new size.
    pub(super) fn follow_size(&mut self) {
        if let (true, Some(found)) = (self.connection.is_transmitting(), &self.export) {
            // An export is in use, so that this can't fail.
            let _in_use = self.connection.set_size(dispatch::size(found));
        }
    }

    /// Asks a few times more for the next request before going to sleep.
    pub(super) fn wait_a_moment(&mut self) -> io::Result<bool> {
        let quiet = self.offloaded == 0 && self.connection.is_idle() && self.staging.is_empty();
        if !quiet || self.input_ended || !self.connection.is_transmitting() {
            return Ok(false);
        }
        let (transport, room) = (&mut self.transport, self.staging.room());
        let found = self.busy_poll.spin(|| match transport.try_read(room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            result => Some(result),
        });
        found.map_or(Ok(false), |count| {
            self.received(count?);
            Ok(true)
        })
    }

    /// Reads payload straight to its place, and what follows it into the staging buffer.
    fn fill_payload(
        &mut self,
        cx: &mut Context<'_>,
        request: RequestId,
        offset: u64,
        remaining: u64,
        may_read: &mut bool,
    ) -> Result<bool, ConnectionError> {
        if self.input_ended {
            return Ok(false);
        }
        if offset == 0 {
            self.prepare(request);
        }
        if self.slots[request.index()].payload.failure().is_some() {
            return Ok(self.fill_staging(cx, may_read)?);
        }
        let Slot { work, payload, .. } = &mut self.slots[request.index()];
        let mut slices: [IoSliceMut<'_>; payload::MAX_SLICES] =
            core::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut count = 0;
        let mut wanted = 0;
        let spare = &mut self.spare_pages;
        payload.room(work, offset as usize, remaining as usize, spare, |room| {
            wanted += room.len();
            slices[count] = room;
            count += 1;
            count < payload::MAX_SLICES - 1
        });
        if wanted as u64 == remaining {
            slices[count] = IoSliceMut::new(self.staging.room());
            count += 1;
        }
        let read = Pin::new(&mut self.transport).poll_read_vectored(cx, &mut slices[..count]);
        let Poll::Ready(read) = read else { return Ok(false) };
        let read = read?;
        self.count_received(read);
        self.follow_size();
        if read == 0 {
            self.end_of_stream();
            return Ok(false);
        }
        if read > wanted {
            self.staging.filled(read - wanted);
        }
        self.connection.payload_received(read.min(wanted) as u64)?;
        if read as u64 >= remaining {
            // A whole payload has arrived: reading on is fair.
            *may_read = true;
            self.start(request);
        }
        Ok(true)
    }

    /// Makes room for a payload that does not lie in the staging buffer as a whole.
    fn prepare(&mut self, id: RequestId) {
        let Slot { command, work, payload, .. } = &mut self.slots[id.index()];
        let (Some(command), Some(found)) = (*command, &self.export) else { return };
        let page_size = match &found.export {
            Handle::Blocking(export) => dispatch::page_size(&**export, command),
            Handle::Async(_) => None,
        };
        if let (Some(_), Handle::Blocking(export)) = (page_size, &found.export) {
            self.spare_pages.export.get_or_insert_with(|| Arc::clone(export));
        }
        payload.prepare(work, command.length() as usize, page_size);
    }

    fn payload_from_staging(
        &mut self,
        request: RequestId,
        offset: u64,
        remaining: u64,
    ) -> Result<(), ConnectionError> {
        if offset == 0 && self.staging.bytes().len() as u64 >= remaining {
            // The whole payload is here: if the export takes it at once, this is its only copy.
            let slot = &mut self.slots[request.index()];
            let staged = &self.staging.bytes()[..remaining as usize];
            let attempt = match (&self.export, slot.command) {
                (Some(Found { export: Handle::Blocking(export), .. }), Some(command)) => {
                    dispatch::try_execute(&**export, command, staged, &mut slot.work)
                }
                _ => None,
            };
            self.connection.payload_received(remaining)?;
            match attempt {
                Some(result) => {
                    self.turn.spend(remaining);
                    self.answer(request, &result);
                }
                None => match slot.work.body.fill(staged.len()) {
                    Ok(room) => {
                        room.copy_from_slice(staged);
                        self.offload(request);
                    }
                    Err(error) => self.answer(request, &Err(error)),
                },
            }
            self.staging.consume(remaining as usize);
            return Ok(());
        }
        if offset == 0 {
            self.prepare(request);
        }
        let count = self.staging.bytes().len().min(remaining as usize);
        if let Some(error) = self.slots[request.index()].payload.failure().cloned() {
            self.staging.consume(count);
            self.connection.payload_received(count as u64)?;
            if count as u64 == remaining {
                self.answer(request, &Err(error));
            }
            return Ok(());
        }
        let Slot { work, payload, .. } = &mut self.slots[request.index()];
        let staged = &self.staging.bytes()[..count];
        payload.put(work, offset as usize, staged, &mut self.spare_pages);
        self.staging.consume(count);
        self.connection.payload_received(count as u64)?;
        if count as u64 == remaining {
            self.start(request);
        }
        Ok(())
    }

    fn end_of_stream(&mut self) {
        self.input_ended = true;
        self.hung_up = true;
        if let Err(error) = self.connection.end_of_stream() {
            tracing::debug!(%error, "a client hung up");
        }
        self.release_finished();
    }
}
