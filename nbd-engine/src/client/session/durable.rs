//! Changes that the server acknowledged on a connection and that are not flushed yet.

use std::sync::Arc;

use bytes::Bytes;

use super::super::Flags;
use super::super::buffer::Buffer;
use super::super::reconnect::{Doubts, Kept, Tally};
use super::super::request_state::RequestState;

/// What a connection that may be replaced knows about them.
pub(super) struct Durable {
    pub(super) doubts: Arc<Doubts>,
    pub(super) mode: Mode,
}

pub(super) enum Mode {
    /// They are counted; a loss puts them in doubt.
    Report { acknowledged: Tally, flushed: Tally },
    /// They are kept, together with those of the client's other connections.
    Keep { kept: Arc<Kept>, index: usize },
}

impl Durable {
    pub(super) fn new(doubts: &Arc<Doubts>, kept: Option<&Arc<Kept>>, index: usize) -> Self {
        let mode = match kept {
            Some(kept) => Mode::Keep { kept: Arc::clone(kept), index },
            None => Mode::Report { acknowledged: Tally::default(), flushed: Tally::default() },
        };
        Self { doubts: Arc::clone(doubts), mode }
    }

    /// What a flush covers that is submitted now.
    pub(super) fn mark(&self) -> Tally {
        match &self.mode {
            Mode::Report { acknowledged, .. } => *acknowledged,
            Mode::Keep { kept, .. } => kept.mark(),
        }
    }

    /// A request succeeded; if it is a flush, `covered` is what was acknowledged when it was submitted. Said before its waiter
    /// learns it.
    pub(super) fn succeeded(&mut self, request: &RequestState, covered: Tally) {
        let command = &request.command;
        match &mut self.mode {
            Mode::Report { flushed, .. } if *command == nbd_proto::Command::Flush => {
                if covered.requests > flushed.requests {
                    *flushed = covered;
                }
            }
            Mode::Report { acknowledged, .. } => {
                if command.is_write() && !command.flags().contains(Flags::FUA) {
                    acknowledged.add(Tally { requests: 1, bytes: command.length() });
                }
            }
            Mode::Keep { kept, .. } if *command == nbd_proto::Command::Flush => {
                kept.flushed(covered);
            }
            Mode::Keep { kept, .. } => {
                if command.is_write() {
                    let length = usize::try_from(command.payload_length()).unwrap_or(usize::MAX);
                    kept.acknowledge(command, || match &request.buffer {
                        Buffer::Shared(data) => data.slice(..data.len().min(length)),
                        // It goes back to the program.
                        _ => Bytes::copy_from_slice(request.data(0, length)),
                    });
                }
            }
        }
    }

    /// The connection is lost.
    pub(super) fn lost(&mut self) {
        match &mut self.mode {
            Mode::Report { acknowledged, flushed } => {
                self.doubts.add(acknowledged.since(*flushed));
                *flushed = *acknowledged;
            }
            Mode::Keep { kept, index } => kept.ended(*index),
        }
    }

    /// The client has disconnected.
    pub(super) fn disconnected(&self) {
        if let Mode::Keep { kept, index } = &self.mode {
            kept.ended(*index);
        }
    }

    /// There is a new connection.
    pub(super) fn connected(&self) {
        if let Mode::Keep { kept, index } = &self.mode {
            kept.connected(*index);
        }
    }
}
