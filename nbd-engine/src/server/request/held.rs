//! Requests of a client that takes no more replies.
//!
//! Those that change something are received, and wait until it is known how the client has left. If it has disconnected in
//! order, they are carried out. If its connection was lost they are dropped: the client may have sent them
//! again by another one, and have written something newer since. There are never more than may be in flight, and what they
//! hold was charged before.

use std::collections::VecDeque;
use std::task::Context;

use nbd_proto::server::Connection;
use nbd_proto::wire::ErrorCode;
use nbd_proto::{Command, RequestId};

use super::Requests;

impl Requests {
    /// Requests are held from now on. Those that have begun go on.
    pub(in crate::server) fn hold(&mut self, connection: &mut Connection) {
        self.held.get_or_insert_with(VecDeque::new);
        // What is held may have the memory that they wait for.
        for (id, command) in core::mem::take(&mut self.waiting) {
            self.keep(connection, id, command, &[]);
        }
        self.memory.account.stop_waiting();
        self.memory.account.give_back_unused();
    }

    pub(super) fn keep(
        &mut self,
        connection: &mut Connection,
        id: RequestId,
        command: Command,
        staged: &[u8],
    ) {
        self.slot(id);
        if let Command::Read { .. } | Command::BlockStatus { .. } | Command::Cache { .. } = command
        {
            // It changes nothing, and nobody learns of what it finds.
            if let Ok(reply) = connection.reply(id) {
                reply.error(ErrorCode::ESHUTDOWN, "");
                self.count_failure(id, ErrorCode::ESHUTDOWN);
            }
            return;
        }
        self.keep_payload(id, command, staged);
        if let Some(held) = &mut self.held {
            held.push_back((id, command));
        }
    }

    /// The client has left in order: begins what was held. Gives whether there was anything.
    pub(in crate::server) fn release(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> bool {
        let mut progress = false;
        while !self.turn.is_over()
            && let Some((id, command)) = self.held.as_mut().and_then(VecDeque::pop_front)
        {
            self.begin(connection, id, command, &[], cx);
            progress = true;
        }
        progress
    }

    /// The client is lost: gives the memory of what was held back.
    pub(super) fn drop_held(&mut self) {
        for (id, _) in self.held.take().into_iter().flatten() {
            let slot = &mut self.slots[id.index()];
            slot.work.body.free();
            slot.payload.free();
            self.memory.settle(slot, 0);
        }
    }
}
