//! What can go wrong, by who is to blame.

use crate::wire::{CommandType, DecodeError, OptionCode};

/// Why a connection cannot go on. Sticky: once returned, it is returned by every later call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent something that cannot be parsed, so the stream has lost its sync.
    #[error("the peer sent a malformed message: {0}")]
    Malformed(#[from] DecodeError),
    /// The peer broke a rule of the protocol in a message that could be parsed.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// The peer asked for more than [`Limits`](crate::Limits) allow.
    #[error("the peer exceeded a limit: {0}")]
    LimitExceeded(#[from] LimitExceeded),
    /// The stream ended in the middle of something.
    #[error("the peer closed the connection in the middle of {0}")]
    UnexpectedEnd(&'static str),
}

/// Rules that a peer can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// Client flags with bits that were not offered (S-HS-04, S-HS-05).
    #[error("client flags {0:#x} hold a bit that was not offered")]
    UnknownClientFlags(u32),
    /// `NBD_OPT_EXPORT_NAME` for an export that cannot be served, which cannot be answered (S-OPT-EN-02).
    #[error("NBD_OPT_EXPORT_NAME asked for an export that cannot be served to it")]
    ExportNameRefused,
    /// `NBD_OPT_EXPORT_NAME` once extended headers were agreed (S-OPT-EH-06).
    #[error("NBD_OPT_EXPORT_NAME was used after extended headers were agreed")]
    ExportNameAfterExtendedHeaders,
    /// Bytes that came after STARTTLS and before the TLS handshake: somebody injects plain text (S-TLS-09).
    #[error("plain text followed STARTTLS")]
    PlaintextAfterStartTls,
}

/// Bounds that a peer can exceed beyond what could be refused politely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitExceeded {
    /// An option announced more data than would even be skipped.
    #[error("{code} announced {length} bytes of data")]
    OptionData {
        /// Which option.
        code: OptionCode,
        /// The announced length in bytes.
        length: u32,
    },
    /// More options than any honest client sends.
    #[error("more than {0} options on one connection")]
    Options(u32),
    /// A request announced more payload than would even be skipped.
    #[error("{command} announced {length} bytes of payload")]
    Payload {
        /// Which command.
        command: CommandType,
        /// The announced length in bytes.
        length: u64,
    },
}

/// A mistake of the embedder. The connection is unharmed and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// No such request is in flight, or it has been answered.
    #[error("no such request awaits an answer")]
    NoSuchRequest,
    /// The request's payload has not arrived wholly.
    #[error("the request's payload has not been received yet")]
    PayloadPending,
    /// More bytes were reported than there were.
    #[error("more bytes were reported than there were")]
    TooManyBytes,
    /// An answer to a question that was not asked.
    #[error("no such question is open")]
    NoSuchQuestion,
    /// This kind of answer does not fit the command.
    #[error("this answer does not fit the command")]
    WrongAnswer,
    /// Data or holes that overlap, or lie outside of the request.
    #[error("the content overlaps or lies outside of the request")]
    BadContent,
    /// A read was finished with a part missing, or a block status without its extents.
    #[error("the answer was finished with a part missing")]
    Incomplete,
    /// A metadata context that was not asked for.
    #[error("the metadata context was not asked for")]
    NoSuchContext,
    /// The connection is not in the phase in which this makes sense.
    #[error("the connection is not in the phase for this")]
    WrongPhase,
}
