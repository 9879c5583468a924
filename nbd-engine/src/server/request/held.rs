//! Requests of a client that takes no more replies.
//!
//! They are received, and wait until it is known how the client has left. If it has disconnected in order, they are
//! carried out (S-CMD-DISC-01). If its connection was lost they are dropped: the client may have sent them again by another
//! one, and have written something newer since. There are never more than may be in flight, and their memory counts like
//! that of others.

use std::collections::VecDeque;
use std::task::Context;

use nbd_proto::server::Connection;
use nbd_proto::{Command, RequestId};

use super::Requests;

impl Requests {
    /// Requests are held from now on. Those that have begun go on.
    pub(in crate::server) fn hold(&mut self) {
        self.held.get_or_insert_with(VecDeque::new);
    }

    pub(super) fn keep(&mut self, id: RequestId, command: Command, staged: &[u8]) {
        self.slot(id);
        self.keep_payload(id, command, staged);
        if let Some(held) = &mut self.held {
            held.push_back((id, command));
        }
    }

    /// The client has left in order: begins what was held, as far as there is memory for it. Gives whether there was
    /// anything.
    pub(in crate::server) fn release(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> bool {
        let mut progress = false;
        while self.waiting.is_none()
            && !self.turn.is_over()
            && let Some((id, command)) = self.held.as_mut().and_then(VecDeque::pop_front)
        {
            self.begin(connection, id, command, &[], cx);
            progress = true;
        }
        progress
    }
}
