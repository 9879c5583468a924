//! What arrives: replies, and the data in them.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;

use nbd_proto::client::{CommandError, Connection, Event};
use nbd_proto::wire::ErrorCode;
use nbd_proto::{Command, RequestId};

use super::super::request_state::RequestState;
use super::super::{Error, LostReason};
use super::submission::{Part, Requests};
use crate::pump::{Handler, Incoming, Reception};

impl Requests {
    fn part(&self, id: RequestId) -> Option<Part> {
        self.parts.get(id.index()).copied().flatten()
    }

    /// The part of a request that is over.
    fn take_part(&mut self, id: RequestId) -> Option<Part> {
        self.parts.get_mut(id.index())?.take()
    }

    /// The request that a part belongs to, and where the part begins in it.
    fn request(&mut self, id: RequestId) -> Option<(&mut RequestState, u64)> {
        let part = self.part(id)?;
        Some((self.states.get_mut(part.request)?.as_mut()?, part.start))
    }

    pub(super) fn handle_event(&mut self, machine: &mut Connection, event: Event) {
        match event {
            Event::Hole { id, offset, length } => {
                if let Some((request, start)) = self.request(id) {
                    let start = start + offset;
                    if let Some(room) = request.room(start, length) {
                        room.fill(0);
                    }
                    if let Some(chunks) = request.chunks() {
                        chunks.hole(start..start + length);
                    }
                }
            }
            Event::Extents { id, context, extents } => {
                let named = self.contexts.iter().find(|(number, _)| *number == context);
                if let Some(name) = named.map(|(_, name)| Arc::clone(name))
                    && let Some((request, _)) = self.request(id)
                {
                    request.extents(&name, extents);
                }
            }
            Event::ErrorChunk { id, error } => {
                if let Some((request, _)) = self.request(id)
                    && let Some(chunks) = request.chunks()
                {
                    chunks.error(error);
                    if let Some(Some(part)) = self.parts.get_mut(id.index()) {
                        part.has_error = true;
                    }
                }
            }
            Event::Completed { id, result } => self.completed(machine, id, result),
            Event::Abandoned { id, sent } => {
                if let Some(part) = self.take_part(id)
                    && let Some(request) = &mut self.states[part.request]
                {
                    request.abandoned = true;
                    request.sent |= sent;
                    request.unanswered |= sent;
                }
            }
            Event::Closed(result) => self.closed = Some(result),
            _ => {}
        }
    }

    fn completed(&mut self, machine: &Connection, id: RequestId, result: Result<(), CommandError>) {
        let Some(part) = self.take_part(id) else { return };
        let Some(request) = &mut self.states[part.request] else { return };
        request.in_flight -= 1;
        request.sent = true;
        if let (Err(error), Some(_)) = (&result, &self.durable)
            && error.code == ErrorCode::ESHUTDOWN
            && !matches!(request.command, Command::Resize { .. })
        {
            // The server's successor carries it out. This one may have done so in part: a write with FUA, for example,
            // whose flush failed.
            (request.submitted, request.abandoned) = (true, true);
            return;
        }
        self.answered = true;
        if request.command.is_write() {
            self.handle.changed();
        }
        if let (Command::Resize { .. }, Some(rules)) = (request.command, machine.rules()) {
            self.size.store(rules.size, Ordering::Release);
        }
        if let Err(error) = result {
            let (peer, command) = (Arc::clone(&self.handle.peer), request.command);
            match request.chunks() {
                Some(chunks) => {
                    if !part.has_error {
                        chunks.error(error.clone());
                    }
                    chunks.failed(|| Error::Command { peer, command, error });
                }
                None => request.fail(|| Error::Command { peer, command, error }),
            }
        }
        self.finish_if_done(part.request);
    }
}

impl Handler<Connection> for Requests {
    type Error = LostReason;

    fn event(
        &mut self,
        machine: &mut Connection,
        event: Event,
        _: &[u8],
        _: &mut Context<'_>,
    ) -> Result<(), LostReason> {
        self.handle_event(machine, event);
        Ok(())
    }

    fn may_send(&self) -> bool {
        self.output_failed.is_none()
    }

    fn received(&mut self, _: &mut Connection, _: usize) {
        self.received = true;
    }

    fn sent(&mut self, _: usize, _: bool) {}

    fn reception(&mut self, data: Incoming, _: usize, _: &mut Context<'_>) -> Reception {
        let Incoming { id, offset, remaining, .. } = data;
        let Some((request, start)) = self.request(id) else { return Reception::Drop };
        let start = start + offset;
        // The buffer of a request that has timed out is gone.
        if request.room(start, remaining).is_none() {
            return Reception::Drop;
        }
        if let Some(chunks) = request.chunks() {
            chunks.data(start..start + remaining);
        }
        Reception::Room
    }

    fn room<'a>(&'a mut self, data: Incoming, mut visit: impl FnMut(IoSliceMut<'a>) -> bool) {
        let Incoming { id, offset, remaining, .. } = data;
        if let Some((request, start)) = self.request(id)
            && let Some(room) = request.room(start + offset, remaining)
        {
            visit(IoSliceMut::new(room));
        }
    }

    fn body<'a>(
        &'a self,
        id: RequestId,
        range: Range<usize>,
        mut visit: impl FnMut(IoSlice<'a>) -> bool,
    ) {
        let request = self
            .part(id)
            .and_then(|part| Some((self.states.get(part.request)?.as_ref()?, part.start)));
        if let Some((request, start)) = request {
            let data = request.data(start + range.start as u64, range.len());
            visit(IoSlice::new(data));
        }
    }

    fn finished(&mut self, _: RequestId) {}
}
