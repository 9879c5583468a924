//! What a server connection tells its embedder.

use alloc::string::String;

use crate::{Command, RequestId};

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The client wants to know the exports: answer with
    /// [`answer_list`](super::Connection::answer_list). Reading is paused until then.
    List,
    /// The client names an export: answer with [`answer_lookup`](super::Connection::answer_lookup). Reading is paused
    /// until then.
    Lookup(Lookup),
    /// The client wants TLS. The answer is queued; once [`Incoming::Tls`](super::Incoming::Tls) shows, do the
    /// handshake and call [`tls_established`](super::Connection::tls_established).
    StartTls,
    /// A valid request. If it is a write, its payload is what comes next.
    Request(Request),
    /// The client left during haggling. Send what is queued, then close.
    Aborted,
    /// The client left by `NBD_CMD_DISC`. Answer what is in flight, send it, then close.
    Disconnected,
}

/// A client asks about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The name as the client gave it; empty for the default export. A valid string.
    pub name: String,
    /// What for.
    pub purpose: Purpose,
}

/// Why a client names an export. The answer is the same for each; policies and logs may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To learn about it (`NBD_OPT_INFO`).
    Info,
    /// To use it (`NBD_OPT_GO` or `NBD_OPT_EXPORT_NAME`).
    Enter,
    /// To list or select metadata contexts.
    MetaContext,
}

/// A request that was found valid: the command is known and negotiated, its flags too, its range lies inside of the
/// export and is aligned, nothing writes on a read-only export, and there is room in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request until its reply is wholly transmitted.
    pub id: RequestId,
    /// What to do.
    pub command: Command,
}

/// What the next bytes of the stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incoming {
    /// Protocol bytes: give what you have to [`next_event`](super::Connection::next_event). At least `need` more are
    /// necessary for the next event; reading further ahead is welcome. With a `need` of 0 an event is ready.
    Control {
        /// Bytes.
        need: usize,
    },
    /// The payload of a write: move `remaining` bytes where they belong and report them with
    /// [`payload_received`](super::Connection::payload_received).
    Payload {
        /// Whose payload.
        request: RequestId,
        /// Where the next byte belongs, counted from the request's own offset.
        offset: u64,
        /// Bytes that are still to come.
        remaining: u64,
    },
    /// The payload of a request that was refused: drop `remaining` bytes and report them in the same way.
    Discard {
        /// Bytes that are still to come.
        remaining: u64,
    },
    /// Don't read now.
    Paused(PauseReason),
    /// The stream belongs to a TLS handshake now.
    Tls,
    /// Nothing more will be read.
    Terminated,
}

/// Why nothing should be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PauseReason {
    /// An option awaits your answer.
    AwaitingAnswer,
    /// As many requests are in flight as the limits allow: transmit replies.
    TooManyRequests,
    /// The requests in flight take as many bytes as the limits allow: transmit replies.
    TooManyBytes,
    /// The client does not read its option replies: transmit them.
    Unsent,
}
