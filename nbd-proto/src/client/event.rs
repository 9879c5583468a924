//! What a client connection reports to its embedder.

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::{
    BlockSizeInfo, ErrorCode, MAX_STRING, OptionCode, OptionReplyType, TransmissionFlags,
};
use crate::{Error, Extent, OrderlyEnd, RequestId};

/// Something happened.
///
/// Offsets in [`Hole`](Self::Hole) count from the request's own offset, as in
/// [`Wants::Payload`](crate::Wants::Payload): they are offsets into your buffer. Offsets of errors are offsets into the
/// export. All are in bytes.
///
/// Names are valid strings, of at most 4096 bytes without NUL. Texts for people are cut to 4096 bytes, and whatever is
/// no UTF-8, or a control character other than a line feed, is replaced in them by U+FFFD.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It is your turn to send an option, or to [`enter`](super::Connection::enter) an export. Not repeated: after
    /// [`OptionDone`](Self::OptionDone) or [`OptionFailed`](Self::OptionFailed), and after a TLS handshake that you
    /// asked for, it is your turn again.
    YourTurn,
    /// The server agreed to TLS. Once [`Wants::Tls`](crate::Wants::Tls) shows, do the handshake and call
    /// [`tls_established`](super::Connection::tls_established).
    StartTls,
    /// An export, in reply to [`list`](super::Connection::list).
    Listed {
        /// The name to ask for it by.
        name: String,
        /// A text for people; empty for none.
        description: String,
    },
    /// An information item, in reply to [`info`](super::Connection::info) or [`go`](super::Connection::go).
    Info(Info),
    /// A metadata context, in reply to [`list_meta_context`](super::Connection::list_meta_context) or
    /// [`set_meta_context`](super::Connection::set_meta_context). Void if the option fails after all.
    MetaContext {
        /// Its id on this connection; 0 when it was only listed.
        id: u32,
        /// Namespace, colon, leaf.
        name: String,
    },
    /// A reply to an option that this crate does not know, sent by [`option`](super::Connection::option).
    OptionReply {
        /// Which option.
        code: OptionCode,
        /// The reply's type, neither an acknowledgement nor an error.
        reply: OptionReplyType,
        /// The reply's data, of at most [`Limits::max_option_reply`](crate::Limits::max_option_reply) bytes.
        data: Vec<u8>,
    },
    /// An option that you sent succeeded. It is your turn again.
    OptionDone {
        /// Which option.
        code: OptionCode,
    },
    /// An option failed. If you sent it, it is your turn again: a refused export is no reason to disconnect. If the
    /// machine sent it and can't go on without it, or if the server is shutting down, the machine sends
    /// `NBD_OPT_ABORT`, and [`Closed`](Self::Closed) follows with [`Error::Refused`].
    OptionFailed {
        /// Which option.
        code: OptionCode,
        /// How.
        reply: OptionReplyType,
        /// A text for people; often empty.
        message: String,
    },
    /// An export was entered; [`export`](super::Connection::export) describes it. Submit requests.
    Ready,
    /// A part of what is read is zeroes: fill your buffer.
    Hole {
        /// Whose buffer.
        id: RequestId,
        /// Where it starts, counted from the request's own offset.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Extents of one metadata context, each following the one before it; the first of a context begins at the
    /// request's offset. At most 512 of them: long lists come in several batches. They are not to be trusted if the
    /// request fails after all.
    Extents {
        /// Which request.
        id: RequestId,
        /// Which metadata context, by its id in [`ExportView::contexts`](crate::ExportView::contexts).
        context: u32,
        /// One or more.
        extents: Vec<Extent>,
    },
    /// An error chunk arrived. The request is not over yet: more chunks may arrive, and
    /// [`Completed`](Self::Completed) follows with the first of its errors, where one without an offset takes
    /// precedence. After an error chunk without an offset the core drops all further content of that reply.
    ErrorChunk {
        /// Which request.
        id: RequestId,
        /// What failed, and at which offset if the server says so.
        error: CommandError,
    },
    /// A request is over: its reply has arrived completely, and its own bytes have been transmitted. (If the connection
    /// ends before they are, an error that the server has answered is still reported.) Its id is void.
    Completed {
        /// Which request.
        id: RequestId,
        /// How it went.
        result: Result<(), CommandError>,
    },
    /// The connection is over and this request was not answered. Its id is void. Raised for each such request, in no
    /// particular order, before [`Closed`](Self::Closed).
    Abandoned {
        /// Which request.
        id: RequestId,
        /// Whether any of its bytes were [transmitted](super::Connection::transmitted): if not, the server can't have
        /// carried it out; otherwise it may have.
        sent: bool,
    },
    /// The last event, exactly once on every connection: drop the transport.
    Closed(Result<OrderlyEnd, Error>),
}

/// An information item about an export (section "Option reply types", `NBD_REP_INFO`). Unknown ones are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Info {
    /// Size and transmission flags.
    Export {
        /// The size in bytes.
        size: u64,
        /// What it can do, as sent.
        flags: TransmissionFlags,
    },
    /// The canonical name.
    Name(String),
    /// A text for people.
    Description(String),
    /// Size constraints, as sent.
    BlockSize(BlockSizeInfo),
}

/// Why a command, or a part of it, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}{message}", if message.is_empty() { "" } else { ": " })]
#[non_exhaustive]
pub struct CommandError {
    /// One of the error values that the specification defines; `EINVAL` for any other.
    pub code: ErrorCode,
    /// The error value as it was sent.
    pub raw: ErrorCode,
    /// A text for people; often empty.
    pub message: String,
    /// The offset in the export at which the error happened, where the server says so.
    pub offset: Option<u64>,
}

impl CommandError {
    pub(super) fn new(raw: ErrorCode, message: String, offset: Option<u64>) -> Self {
        // Unknown values are to be treated as EINVAL (C-REP-09).
        let known = raw.name().is_some() && raw != ErrorCode::OK;
        Self { code: if known { raw } else { ErrorCode::EINVAL }, raw, message, offset }
    }

    /// The server claimed success and left out a part.
    // (C-REP-STRUCT-05, C-CMD-BS-14)
    pub(super) fn incomplete() -> Self {
        Self::new(ErrorCode::EIO, "the server left out a part of its reply".into(), None)
    }
}

/// A text from the peer as it can be shown: cut to the length that the specification allows, with a replacement for
/// control characters and for what is no UTF-8.
pub(super) fn displayable(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MAX_STRING).unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn unknown_error_values_are_einval_and_keep_their_number() {
        for (raw, code) in [(28, 28), (4, 22), (0, 22), (u32::MAX, 22)] {
            let error = CommandError::new(ErrorCode(raw), String::new(), None);
            assert_eq!((error.code, error.raw), (ErrorCode(code), ErrorCode(raw)));
        }
    }

    #[test]
    fn errors_print_their_message_if_there_is_one() {
        let error = CommandError::new(ErrorCode::EIO, String::new(), None);
        assert_eq!(error.to_string(), "NBD_EIO");
        let error = CommandError::new(ErrorCode::EIO, "bad disk".into(), None);
        assert_eq!(error.to_string(), "NBD_EIO: bad disk");
    }

    #[test]
    fn texts_lose_what_a_terminal_would_obey_and_are_cut() {
        assert_eq!(displayable(b"a\x1b[2J\xff\n"), "a\u{fffd}[2J\u{fffd}\n");
        assert_eq!(displayable(&[b'x'; 5000]).len(), MAX_STRING);
    }
}
