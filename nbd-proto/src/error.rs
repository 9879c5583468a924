//! What can go wrong, by whose fault it is.

use crate::InvalidBlockSize;
use crate::wire::{CommandType, DecodeError, OptionCode, OptionReplyType, ReplyType};

/// Why a connection can't go on. Arrives with the last event, `Closed`.
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
    /// One side does not want what the other asks for or insists on. Nobody broke a rule.
    #[error("no session: {0}")]
    Refused(#[from] NoSession),
    /// The stream ended in the middle of something.
    #[error("the peer closed the connection in the middle of {0}")]
    UnexpectedEnd(&'static str),
    /// A fault in this crate, which is named, so that it can be reported. It is never hidden by a made-up value.
    #[error("a fault in nbd-proto, please report it: {0}")]
    Internal(&'static str),
}

/// Rules that a peer can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// Client flags with bits that were not offered.
    // S-HS-04, S-HS-05
    #[error("client flags {0:#x} hold a bit that was not offered")]
    UnknownClientFlags(u32),
    /// A TLS handshake in place of client flags. NBD begins in the clear, and turns to TLS by `NBD_OPT_STARTTLS`.
    #[error(
        "the client began with TLS: NBD begins in the clear and turns to TLS by NBD_OPT_STARTTLS, as clients do for nbds:// \
         URIs"
    )]
    TlsAtOnce,
    /// A request by HTTP in place of client flags.
    #[error("the client began with a request by HTTP, which is another protocol")]
    Http,
    /// `NBD_OPT_EXPORT_NAME` once extended headers were agreed.
    // S-OPT-EH-06
    #[error("NBD_OPT_EXPORT_NAME was used after extended headers were agreed")]
    ExportNameAfterExtendedHeaders,
    /// Bytes that came after STARTTLS (or its acknowledgement) and before the TLS handshake: a sign of
    /// injected plain text.
    // S-TLS-09, C-TLS-27
    #[error("plain text followed STARTTLS")]
    PlaintextAfterStartTls,
    /// A reply to another option than the one that was sent.
    // C-OPT-16
    #[error("{found} was answered instead of {sent}")]
    WrongOption {
        /// The option that was sent.
        sent: OptionCode,
        /// The option that the reply names.
        found: OptionCode,
    },
    /// A reply that this option does not have.
    #[error("{code} was answered by {reply}")]
    UnexpectedOptionReply {
        /// Which option.
        code: OptionCode,
        /// The reply's type.
        reply: OptionReplyType,
    },
    /// `NBD_OPT_INFO` or `NBD_OPT_GO` was acknowledged without `NBD_INFO_EXPORT`.
    // C-OPT-GO-23
    #[error("{0} was acknowledged without a size")]
    NoExportInfo(OptionCode),
    /// Size constraints that can't be obeyed.
    // C-OPT-GO-25
    #[error("size constraints that make no sense: {0}")]
    BadBlockSize(InvalidBlockSize),
    /// Two selected metadata contexts with the same number.
    // S-OPT-SM-04
    #[error("two metadata contexts have the number {0}")]
    DuplicateContext(u32),
    /// A reply to a request that is not in flight.
    // C-REP-STRUCT-07
    #[error("a reply has the cookie {0:#x}, which no request in flight has")]
    UnknownCookie(u64),
    /// A simple reply where only a structured one is allowed.
    // C-REP-STRUCT-08
    #[error("{0} was answered by a simple reply")]
    SimpleReply(CommandType),
    /// A chunk that this command does not have, or an unknown one.
    // C-REP-STRUCT-01
    #[error("{command} was answered by {reply}")]
    UnexpectedReply {
        /// Which command.
        command: CommandType,
        /// The chunk's type.
        reply: ReplyType,
    },
    /// An extended reply whose offset is not the request's.
    // C-EH-17
    #[error("a reply has the offset {found}, its request {sent}")]
    WrongReplyOffset {
        /// The request's offset.
        sent: u64,
        /// The reply's offset.
        found: u64,
    },
    /// `NBD_REPLY_TYPE_NONE` that is not the last chunk (section "Structured reply types").
    #[error("NBD_REPLY_TYPE_NONE without NBD_REPLY_FLAG_DONE")]
    NotFinal,
    /// Data or a hole outside of what was read.
    // C-REP-STRUCT-05
    #[error("content at offset {0} lies outside the request")]
    ContentOutOfRange(u64),
    /// Data or a hole over earlier content or an earlier error.
    // C-REP-STRUCT-05
    #[error("content at offset {0} overlaps an earlier chunk")]
    ContentOverlaps(u64),
    /// A second content chunk though `NBD_CMD_FLAG_DF` was set.
    #[error("an unfragmented read was answered in fragments")]
    Fragmented,
    /// An error chunk that points outside of the request.
    #[error("an error at offset {0} lies outside of the request")]
    ErrorOutOfRange(u64),
    /// Extents of a metadata context that was not asked about, or a second time.
    // C-CMD-BS-14
    #[error("unexpected extents of the metadata context {0}")]
    UnexpectedContext(u32),
    /// More than one extent, or one that is too long, though `NBD_CMD_FLAG_REQ_ONE` was set.
    // C-CMD-BS-14
    #[error("one extent was asked for, more were sent")]
    MoreThanOneExtent,
}

/// Why there is no session although neither side broke a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoSession {
    /// An option without which there is no session failed.
    #[error("{code} was answered by {reply}")]
    Option {
        /// Which option.
        code: OptionCode,
        /// How it failed.
        reply: OptionReplyType,
    },
    /// On a server: the client named an export by `NBD_OPT_EXPORT_NAME` and can't have it. This option has no answer
    /// for that but the end of the connection.
    #[error("the client asked by NBD_OPT_EXPORT_NAME for an export that it can't have: {0}")]
    NotServed(NotServed),
    /// The server hung up on `NBD_OPT_EXPORT_NAME`, which is how it refuses an export.
    // S-OPT-EN-02
    #[error("the server hung up when the export was named")]
    ExportName,
    /// TLS is required, and the handshake of the server has none.
    // C-TLS-20
    #[error("TLS is required, and the server cannot do TLS")]
    NoTls,
    /// The server speaks the oldstyle handshake, and the client's configuration rules that out.
    // C-HS-20
    #[error("the server speaks the oldstyle handshake")]
    Oldstyle,
}

/// Why a client can't have the export that it named by `NBD_OPT_EXPORT_NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotServed {
    /// There is no such export.
    #[error("there is no such export")]
    Unknown,
    /// The name is longer than 4096 bytes, contains NUL, or is not UTF-8.
    #[error("no export can have such a name")]
    BadName,
    /// The embedder refused it.
    #[error("it is refused by policy")]
    Policy,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// TLS is required.
    #[error("TLS is required")]
    TlsRequired,
    /// The export insists on its size constraints, which this option has no way to ask for.
    #[error("the export needs a client that asks for its size constraints")]
    BlockSizeRequired,
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
    /// An option reply announced more data than any that is defined.
    // C-OPT-17
    #[error("a reply to {code} announced {length} bytes of data")]
    OptionReply {
        /// Which option.
        code: OptionCode,
        /// The announced length in bytes.
        length: u32,
    },
    /// More replies to one option than any honest server sends.
    #[error("more than {limit} replies to {code}")]
    OptionReplies {
        /// Which option.
        code: OptionCode,
        /// How many are allowed.
        limit: u32,
    },
    /// More bytes of replies to one option than its embedder collects.
    #[error("more than {limit} bytes of replies to {code}")]
    OptionReplyBytes {
        /// Which option.
        code: OptionCode,
        /// How many bytes are allowed.
        limit: u64,
    },
    /// More metadata contexts were selected than were asked for, and than the limits allow.
    #[error("more than {0} metadata contexts")]
    Contexts(u32),
    /// A reply in more pieces than the limits allow.
    #[error("a reply in more than {0} pieces")]
    Fragments(u32),
    /// A reply chunk announced more payload than its type can need.
    // C-SZ-19
    #[error("{reply} announced {length} bytes of payload")]
    Chunk {
        /// The chunk's type.
        reply: ReplyType,
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
