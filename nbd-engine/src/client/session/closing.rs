//! The end of a connection: what was to be said leaves, and its transport is closed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};

use super::super::LostReason;
use super::super::connection_handle::{Closed, Disconnect};
use super::{MAX_ROUNDS, Session};
use crate::maybe_tls::MaybeTls;
use crate::runtime::BoxFuture;
use crate::transport::AnyTransport;

/// How long a connection that is not needed any more may take to get rid of what is still to be sent, if requests have no
/// deadline.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A transport that has yet to take the last bytes: those that TLS or a buffer holds, and `close_notify`.
pub(super) struct Closing {
    transport: MaybeTls<AnyTransport>,
    /// When it is dropped, whether or not the server took them.
    deadline: BoxFuture,
}

impl Closing {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { transport, deadline } = self;
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut buffer = [0; 4096];
        for _ in 0..MAX_ROUNDS {
            if Pin::new(&mut *transport).poll_close(cx).is_ready() {
                return Poll::Ready(());
            }
            // A server may read nothing before the replies are taken that nobody waits for.
            match Pin::new(&mut *transport).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(count)) if count > 0 => {}
                _ => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Session {
    /// Closes the transport; what a server does not take at once is sent beside what the session goes on with, if it is
    /// driven until then.
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
        if let Some(closing) = &mut self.closing {
            if closing.poll(cx).is_pending() {
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
        if self.hard_end.is_none() {
            self.hard_end = Some(self.time_to_end());
        }
        self.hard_end.as_mut().map_or(Poll::Pending, |due| due.as_mut().poll(cx))
    }

    fn time_to_end(&self) -> BoxFuture {
        self.deadlines.sleep(self.deadlines.limit().unwrap_or(DISCONNECT_TIMEOUT))
    }

    /// Nobody drives the connection any more: every waiter has its outcome.
    pub(in super::super) fn abandon(&mut self) {
        self.end(Closed::Lost(LostReason::Abandoned));
        self.closing = None;
        self.handle.ended();
    }
}
