//! What a client connection tells its embedder.

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::{
    BlockSizeInfo, ErrorCode, MAX_STRING, OptionCode, OptionReplyType, TransmissionFlags,
};
use crate::{Extent, RequestId};

/// Something happened. `C` is what you gave to [`submit`](super::Connection::submit).
///
/// Offsets in [`Hole`](Self::Hole) are counted from the request's own offset, as in
/// [`Incoming::Payload`](super::Incoming::Payload): they are places in your buffer. Offsets of errors are places in the
/// export.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<C> {
    /// It is your turn to send an option, or to [`enter`](super::Connection::enter) an export. Not repeated: after each
    /// option that ends with [`OptionDone`](Self::OptionDone) or [`OptionFailed`](Self::OptionFailed), and after a TLS
    /// handshake that you asked for, it is your turn again.
    Haggling,
    /// The server agreed to TLS. Once [`Incoming::Tls`](super::Incoming::Tls) shows, do the handshake and call
    /// [`tls_established`](super::Connection::tls_established).
    StartTls,
    /// An export, in answer to [`list`](super::Connection::list).
    Server {
        /// The name to ask for it by.
        name: String,
        /// A text for people; empty for none.
        description: String,
    },
    /// An aspect of an export, in answer to [`info`](super::Connection::info) or [`go`](super::Connection::go).
    Info(Info),
    /// A metadata context, in answer to [`list_meta_context`](super::Connection::list_meta_context) or
    /// [`set_meta_context`](super::Connection::set_meta_context). Void if the option fails after all (C-OPT-SM-12).
    MetaContext {
        /// Its number on this connection; 0 when it was only listed.
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
        /// The reply's data.
        data: Vec<u8>,
    },
    /// An option that you sent succeeded.
    OptionDone {
        /// Which option.
        code: OptionCode,
    },
    /// An option failed: one that you sent, or one without which the machine can't go on. In the second case, and when
    /// the server is shutting down, it leaves by `NBD_OPT_ABORT`, and [`Error::Refused`](crate::Error::Refused) follows
    /// (C-OPT-AB-04, C-TRM-06).
    OptionFailed {
        /// Which option.
        code: OptionCode,
        /// How.
        reply: OptionReplyType,
        /// A text for people; often empty.
        text: String,
    },
    /// An export was entered; [`export`](super::Connection::export) describes it. Submit requests.
    Ready,
    /// A part of what is read is zeroes: fill your buffer.
    Hole {
        /// Whose buffer.
        request: RequestId,
        /// Where, counted from the request's own offset.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Extents of one metadata context, each following the one before it; the first of a context begins at the request's
    /// offset. Long lists come in batches. They are not to be trusted if the request fails after all.
    Extents {
        /// Which request.
        request: RequestId,
        /// Which metadata context, by its number in [`ExportView::contexts`](super::ExportView::contexts).
        context: u32,
        /// One or more.
        extents: Vec<Extent>,
    },
    /// A part of a request failed. It is not over yet: more may be told, and [`Completed`](Self::Completed) follows with
    /// the first of its errors.
    ErrorAt {
        /// Which request.
        request: RequestId,
        /// What and where.
        error: CommandError,
    },
    /// A request is over: its reply has wholly arrived, and its own bytes have left. Its name is void.
    Completed {
        /// Which request.
        request: RequestId,
        /// What was submitted with it.
        context: C,
        /// How it went.
        result: Result<(), CommandError>,
    },
    /// You left, and everything was said. Close the connection.
    Disconnected,
}

/// An aspect of an export (section "Option reply types", `NBD_REP_INFO`). Unknown ones are left out (C-OPT-GO-20).
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

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}{text}", if text.is_empty() { "" } else { ": " })]
#[non_exhaustive]
pub struct CommandError {
    /// One of the error values that the specification defines; `EINVAL` for any other (C-REP-09).
    pub code: ErrorCode,
    /// The error value as it was sent.
    pub raw: ErrorCode,
    /// A text for people; often empty.
    pub text: String,
    /// The place in the export that the error is about, where the server told one.
    pub offset: Option<u64>,
}

impl CommandError {
    pub(super) fn new(raw: ErrorCode, text: String, offset: Option<u64>) -> Self {
        let known = raw.name().is_some() && raw != ErrorCode::OK;
        Self { code: if known { raw } else { ErrorCode::EINVAL }, raw, text, offset }
    }

    /// The server claimed success and left out a part (C-REP-STRUCT-05, C-CMD-BS-14).
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
    /// Data that was read: move `remaining` bytes into the request's buffer and report them with
    /// [`payload_received`](super::Connection::payload_received).
    Payload {
        /// Whose data.
        request: RequestId,
        /// Where the next byte belongs, counted from the request's own offset.
        offset: u64,
        /// Bytes that are still to come.
        remaining: u64,
    },
    /// Data that is not to be trusted, of a read that has failed: drop `remaining` bytes and report them in the same way.
    Discard {
        /// Bytes that are still to come.
        remaining: u64,
    },
    /// Nothing is expected now.
    Paused(PauseReason),
    /// The stream belongs to a TLS handshake now.
    Tls,
    /// Nothing more will be read.
    Terminated,
}

/// Why nothing is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PauseReason {
    /// It is your turn: send an option, enter an export or leave.
    YourTurn,
    /// Something must be transmitted first.
    Unsent,
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
    fn errors_print_their_text_if_there_is_one() {
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
