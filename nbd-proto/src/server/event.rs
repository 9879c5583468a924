//! What a server connection reports to its embedder.

use alloc::string::String;

use crate::{Command, Error, OrderlyEnd, RequestId};

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The client wants to know the exports: answer by [`answer_list`](super::Connection::answer_list). Nothing is read
    /// until then.
    List,
    /// The client names an export: answer by [`answer_lookup`](super::Connection::answer_lookup). Nothing is read until
    /// then.
    Lookup(LookupQuestion),
    /// The client wants TLS. The answer is queued; once [`Wants::Tls`](crate::Wants::Tls) shows, do the handshake and
    /// call [`tls_established`](super::Connection::tls_established).
    StartTls,
    /// Carry this out now, and answer by [`reply`](super::Connection::reply), at once or later and in any order. The
    /// payload of a write is complete.
    ///
    /// The request is valid: the command is known and negotiated, its flags too, its range lies inside of the export
    /// and is aligned, nothing writes on a read-only export, and there is room in flight. Its range is not empty:
    /// requests about no bytes are answered by the core. All this holds at the time of the event; if you carry it out
    /// later, see [`set_size`](super::Connection::set_size).
    Request {
        /// Names the request until [`transmitted`](super::Connection::transmitted) gives it back.
        id: RequestId,
        /// What to do.
        command: Command,
    },
    /// The connection is over: the last event, with the reason. Close the stream. All buffers of requests are yours.
    ///
    /// It comes once all that was queued has been sent, and in peace (or after an [`Error::UnexpectedEnd`]) once all
    /// requests in flight have been answered.
    Closed(Result<OrderlyEnd, Error>),
}

/// A client asks about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookupQuestion {
    /// The name as the client gave it, of at most 4096 bytes without NUL; empty for the default export.
    pub name: String,
    /// What for.
    pub purpose: Purpose,
}

/// Why a client names an export. The answer is the same for each; policies and logs may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// To learn about it (`NBD_OPT_INFO`).
    Info,
    /// To use it (`NBD_OPT_GO` or `NBD_OPT_EXPORT_NAME`).
    Enter,
    /// To list or select metadata contexts.
    MetaContext,
}
