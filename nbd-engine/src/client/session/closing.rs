//! The end of a connection: what was to be said leaves, and its transport is closed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_io::AsyncWrite;

use super::super::LostReason;
use super::super::connection_handle::{Closed, Disconnect};
use super::super::timer::Deadline;
use super::Session;
use crate::maybe_tls::MaybeTls;
use crate::pump::poll_close_and_drop_input;
use crate::transport::AnyTransport;

/// How long a connection that is not needed any more may take to get rid of what is still to be sent, if requests have no
/// deadline.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A transport that has yet to take the last bytes: those that TLS or a buffer holds, and `close_notify`.
pub(super) struct Closing {
    transport: MaybeTls<AnyTransport>,
    /// When it is dropped, whether or not the server took them.
    deadline: Deadline,
}

impl Session {
    /// Closes the transport; what a server does not take at once is sent beside what the session goes on with, if it is
    /// driven until then. One that is being closed already is given up.
    pub(super) fn begin_to_close(&mut self, cx: &mut Context<'_>) {
        let mut transport = core::mem::replace(&mut self.pump.transport, MaybeTls::Broken);
        let closed = Pin::new(&mut transport).poll_close(cx);
        if closed.is_pending() && self.handle.is_driven_to_the_end() {
            let deadline = self.hard_end.take().unwrap_or_else(|| self.time_to_end());
            self.closing = Some(Closing { transport, deadline });
        }
    }

    /// Ready when no transport is left to be closed.
    pub(super) fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(Closing { transport, deadline }) = &mut self.closing {
            // First, since a session may be polled late.
            let closed = poll_close_and_drop_input(transport, cx);
            if closed.is_pending() && deadline.poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.closing = None;
        }
        Poll::Ready(())
    }

    /// Ready when it is time to close the stream, whether or not the server took what was to be said.
    pub(super) fn hard_end_is_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.requests.disconnect != Disconnect::Hard {
            return Poll::Pending;
        }
        let mut deadline = self.hard_end.take().unwrap_or_else(|| self.time_to_end());
        let due = deadline.poll(cx);
        self.hard_end = due.is_pending().then_some(deadline);
        due
    }

    fn time_to_end(&self) -> Deadline {
        let limit = self.deadlines.limit().unwrap_or(DISCONNECT_TIMEOUT);
        let limit = match self.requests.disconnect {
            // The server ended the connection, and there may be another one by now.
            Disconnect::No => limit.min(DISCONNECT_TIMEOUT),
            Disconnect::Soft | Disconnect::Hard => limit,
        };
        self.deadlines.timer().deadline(limit)
    }

    /// Whether nothing is left but to close the transport.
    pub(in super::super) const fn is_over(&self) -> bool {
        self.over
    }

    /// Nobody drives the connection any more: every waiter has its outcome.
    pub(in super::super) fn abandon(&mut self) {
        self.end(Closed::Lost(LostReason::Abandoned));
        self.closing = None;
        self.handle.ended();
    }
}
