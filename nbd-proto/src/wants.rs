//! What a machine wants next, and how a connection ends.

use crate::{Command, RequestId};

/// What the next bytes of the stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wants {
    /// Bytes that go to `next_event`: of the protocol, or of a payload that the core drops. Reading further ahead is
    /// welcome.
    Bytes {
        /// How many more bytes the next message takes at least. Never zero.
        at_least: usize,
    },
    /// Data of a request: move up to `remaining` bytes where they belong, then say how many by `payload_received`. What
    /// the receive buffer holds comes first, by [`copy_to`](crate::RecvBuffer::copy_to), whether or not the stream has
    /// more.
    #[non_exhaustive]
    Payload {
        /// Whose data.
        id: RequestId,
        /// What the request is, so that room for the data can be made only now.
        command: Command,
        /// Where the next byte belongs, counted from the request's own offset.
        offset: u64,
        /// Bytes that are still to come: of the whole payload on a server, of this chunk on a client. Never zero.
        remaining: u64,
    },
    /// Don't read now: something else has to happen first. Where that is neither an event nor a transmission, don't
    /// have the stream polled either: a hang-up would be reported again and again.
    Nothing(PauseReason),
    /// The stream belongs to a TLS handshake now.
    Tls,
    /// The connection is over: its last event, `Closed`, was raised.
    Closed,
}

impl Wants {
    /// The rest of a message of `size` bytes of which `have` have arrived: one byte at least, since the message would
    /// have been handled otherwise.
    pub(crate) const fn missing(size: usize, have: usize) -> Self {
        let missing = size.saturating_sub(have);
        Self::Bytes { at_least: if missing == 0 { 1 } else { missing } }
    }

    /// Bytes that are dropped as they come.
    pub(crate) fn dropping(remaining: u64) -> Self {
        Self::missing(usize::try_from(remaining).unwrap_or(usize::MAX), 0)
    }
}

/// Why nothing should be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PauseReason {
    /// An event is ready: call `next_event`. Not seen by an embedder that asks for events first, as it should.
    EventDue,
    /// On a server: a question, which was raised as an event, awaits your answer.
    AwaitingAnswer,
    /// On a client: it is your turn to send an option, to enter an export, or to disconnect.
    YourTurn,
    /// On a server: as many requests are in flight as the limits allow. Answer requests and transmit replies.
    TooManyRequests,
    /// On a server: the requests in flight take as many bytes as the limits allow. Answer requests and transmit
    /// replies.
    TooManyBytes,
    /// What is queued must be transmitted first.
    Unsent,
    /// The peer sends no more, or is not listened to any more. The connection closes once what is queued has been sent,
    /// and unless it failed, what is in flight has been answered.
    Closing,
}

/// How a connection ended without anybody's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrderlyEnd {
    /// The client ended the negotiation by `NBD_OPT_ABORT`.
    Aborted,
    /// The client ended the transmission by `NBD_CMD_DISC`.
    Disconnected,
    /// The peer closed its side of the stream between two messages, without a word.
    EndOfStream,
    /// The server ended the transmission, since it was to [hang up](crate::server::Connection::hang_up).
    HungUp,
}

impl core::fmt::Display for OrderlyEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Aborted => "the client aborted the negotiation",
            Self::Disconnected => "the client disconnected",
            Self::EndOfStream => "the peer closed the stream",
            Self::HungUp => "the server hung up",
        })
    }
}
