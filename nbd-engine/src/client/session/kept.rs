//! Requests of a connection whose client keeps acknowledged changes: they wait for room, and for other connections.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use nbd_proto::Command;
use nbd_proto::client::Connection;

use super::super::reconnect::{Kept, Next, Room, Tally};
use super::super::request_state::{Internal, RequestState};
use super::durable::{Durable, Mode};
use super::submission::Requests;

impl Requests {
    pub(super) fn kept(&self) -> Option<(&Arc<Kept>, usize)> {
        match &self.durable {
            Some(Durable { mode: Mode::Keep { kept, index }, .. }) => Some((kept, *index)),
            _ => None,
        }
    }

    /// The next request to be submitted, if one may be.
    #[inline]
    pub(super) fn next_request(&mut self, machine: &Connection) -> Option<RequestState> {
        match self.durable {
            None => self.backlog.pop_front(),
            Some(_) => self.next_durable(machine),
        }
    }

    /// The same where lost connections are replaced.
    fn next_durable(&mut self, machine: &Connection) -> Option<RequestState> {
        let Some((kept, index)) = self.kept() else { return self.backlog.pop_front() };
        let kept = Arc::clone(kept);
        if let Some(own) = self.own.pop_front() {
            return Some(own);
        }
        // A request of which a part is still to be submitted is under way, whatever is in flight.
        let idle = machine.requests_in_flight() == 0 && self.splitting.is_empty();
        match kept.next(index, idle, self.size.load(Ordering::Acquire)) {
            Next::Submit => {}
            Next::Hold => return None,
            Next::Replay(pieces) => {
                self.replaying = pieces.len();
                let replay =
                    |(command, data)| RequestState::internal(Internal::Replay, command, data);
                self.own.extend(pieces.into_iter().map(replay));
                return self.own.pop_front();
            }
        }
        while self.backlog.front().is_some_and(RequestState::is_abandoned) {
            self.backlog.pop_front();
        }
        let front = self.backlog.front_mut()?;
        if front.command.is_write() {
            match kept.reserve(index, &front.command) {
                Room::Reserved(room) => front.reservation = Some(room),
                Room::Wait => return None,
                Room::Flush => {
                    return Some(RequestState::internal(
                        Internal::Flush,
                        Command::flush(),
                        Bytes::new(),
                    ));
                }
            }
        }
        self.backlog.pop_front()
    }

    /// A request of the client's own was answered.
    #[cold]
    pub(super) fn own_request_ended(
        &mut self,
        purpose: Internal,
        request: &RequestState,
        covered: Tally,
    ) {
        let Some((kept, _)) = self.kept() else { return };
        let succeeded = request.failure.is_none();
        if let Some(error) = &request.failure {
            let peer = &*self.handle.peer;
            tracing::warn!(peer, %error, "kept changes could not be made durable");
        }
        let in_doubt = match purpose {
            Internal::Flush => kept.flush_ended(covered, succeeded),
            Internal::ReplayFlush => {
                let in_doubt = kept.recovered(succeeded);
                self.replaying = 0;
                in_doubt
            }
            Internal::Replay => {
                self.replaying -= 1;
                if self.replaying == 0 {
                    self.replaying = 1;
                    let (flush, none) = (Command::flush(), Bytes::new());
                    self.own.push_back(RequestState::internal(Internal::ReplayFlush, flush, none));
                }
                match request.failure {
                    None => Tally::default(),
                    Some(_) => Tally { requests: 1, bytes: request.command.length() },
                }
            }
        };
        if let Some(durable) = &self.durable {
            durable.doubts.add(in_doubt);
        }
    }

    /// The connection is lost: requests of the client's own are begun anew, on this one or another.
    pub(super) fn drop_own_requests(&mut self) {
        self.own.clear();
        self.replaying = 0;
    }
}
