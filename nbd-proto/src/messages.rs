//! The text of every error, for whoever changes one: `messages.txt` has what was agreed on.

use alloc::string::String;
use alloc::vec::Vec;
use std::path::Path;

use nbd_testkit::each_variant;
use nbd_testkit::snapshot::{check, section};

use crate::client::{CommandError, OptionError, SubmitError};
use crate::server::OldstyleUnfit;
use crate::wire::{
    CommandType, DecodeError, ErrorCode, InfoType, OptionCode, OptionReplyType, ReplyType,
};
use crate::{
    Error, InvalidBlockSize, InvalidRequest, LimitExceeded, Misuse, NoSession, NotServed,
    OrderlyEnd, PeerMisbehaved, UriError,
};

const GO: OptionCode = OptionCode::GO;
const READ: CommandType = CommandType::READ;

fn errors() -> Vec<Error> {
    each_variant!(Error {
        Error::Malformed(_) => Error::Malformed(DecodeError::TooShort("option header")),
        Error::PeerMisbehaved(_) => Error::PeerMisbehaved(PeerMisbehaved::NotFinal),
        Error::LimitExceeded(_) => Error::LimitExceeded(LimitExceeded::Options(1000)),
        Error::Refused(_) => Error::Refused(NoSession::NoTls),
        Error::UnexpectedEnd(_) => Error::UnexpectedEnd("a request"),
        Error::Internal(_) => Error::Internal("a slot was lost"),
    })
}

fn misbehaviour() -> Vec<PeerMisbehaved> {
    use PeerMisbehaved as P;
    each_variant!(PeerMisbehaved {
        P::UnknownClientFlags(_) => P::UnknownClientFlags(8),
        P::TlsAtOnce => P::TlsAtOnce,
        P::Http => P::Http,
        P::ExportNameAfterExtendedHeaders => P::ExportNameAfterExtendedHeaders,
        P::PlaintextAfterStartTls => P::PlaintextAfterStartTls,
        P::WrongOption { .. } => P::WrongOption { sent: GO, found: OptionCode::LIST },
        P::UnexpectedOptionReply { .. } => {
            P::UnexpectedOptionReply { code: GO, reply: OptionReplyType::SERVER }
        },
        P::NoExportInfo(_) => P::NoExportInfo(GO),
        P::BadBlockSize(_) => P::BadBlockSize(InvalidBlockSize::Minimum(3)),
        P::DuplicateContext(_) => P::DuplicateContext(1),
        P::UnknownCookie(_) => P::UnknownCookie(0x2a),
        P::SimpleReply(_) => P::SimpleReply(READ),
        P::UnexpectedReply { .. } => {
            P::UnexpectedReply { command: READ, reply: ReplyType::BLOCK_STATUS }
        },
        P::WrongReplyOffset { .. } => P::WrongReplyOffset { sent: 0, found: 512 },
        P::NotFinal => P::NotFinal,
        P::ContentOutOfRange(_) => P::ContentOutOfRange(4096),
        P::ContentOverlaps(_) => P::ContentOverlaps(4096),
        P::Fragmented => P::Fragmented,
        P::ErrorOutOfRange(_) => P::ErrorOutOfRange(4096),
        P::UnexpectedContext(_) => P::UnexpectedContext(1),
        P::MoreThanOneExtent => P::MoreThanOneExtent,
    })
}

fn refusals() -> Vec<NoSession> {
    each_variant!(NoSession {
        NoSession::Option { .. } => {
            NoSession::Option { code: GO, reply: OptionReplyType::ERR_UNKNOWN }
        },
        NoSession::NotServed(_) => NoSession::NotServed(NotServed::Unknown),
        NoSession::ExportName => NoSession::ExportName,
        NoSession::NoTls => NoSession::NoTls,
        NoSession::Oldstyle => NoSession::Oldstyle,
    })
}

fn not_served() -> Vec<NotServed> {
    each_variant!(NotServed {
        NotServed::Unknown => NotServed::Unknown,
        NotServed::BadName => NotServed::BadName,
        NotServed::Policy => NotServed::Policy,
        NotServed::ShuttingDown => NotServed::ShuttingDown,
        NotServed::TlsRequired => NotServed::TlsRequired,
        NotServed::BlockSizeRequired => NotServed::BlockSizeRequired,
    })
}

fn limits() -> Vec<LimitExceeded> {
    use LimitExceeded as L;
    each_variant!(LimitExceeded {
        L::OptionData { .. } => L::OptionData { code: GO, length: 1 << 20 },
        L::Options(_) => L::Options(1000),
        L::Payload { .. } => L::Payload { command: CommandType::WRITE, length: 1 << 40 },
        L::OptionReply { .. } => L::OptionReply { code: GO, length: 1 << 20 },
        L::OptionReplies { .. } => L::OptionReplies { code: OptionCode::LIST, limit: 1000 },
        L::OptionReplyBytes { .. } => L::OptionReplyBytes { code: OptionCode::LIST, limit: 1000 },
        L::Contexts(_) => L::Contexts(32),
        L::Fragments(_) => L::Fragments(1000),
        L::Chunk { .. } => L::Chunk { reply: ReplyType::OFFSET_HOLE, length: 1 << 20 },
    })
}

fn misuse() -> Vec<Misuse> {
    each_variant!(Misuse {
        Misuse::NoSuchRequest => Misuse::NoSuchRequest,
        Misuse::PayloadPending => Misuse::PayloadPending,
        Misuse::TooManyBytes => Misuse::TooManyBytes,
        Misuse::NoSuchQuestion => Misuse::NoSuchQuestion,
        Misuse::WrongAnswer => Misuse::WrongAnswer,
        Misuse::BadContent => Misuse::BadContent,
        Misuse::Incomplete => Misuse::Incomplete,
        Misuse::NoSuchContext => Misuse::NoSuchContext,
        Misuse::WrongPhase => Misuse::WrongPhase,
    })
}

fn decoding() -> Vec<DecodeError> {
    each_variant!(DecodeError {
        DecodeError::TooShort(_) => DecodeError::TooShort("option header"),
        DecodeError::LeftOver(_) => DecodeError::LeftOver(4),
        DecodeError::BadString(_) => DecodeError::BadString("export name"),
        DecodeError::BadMagic { .. } => DecodeError::BadMagic { expected: "IHAVEOPT", found: 1 },
        DecodeError::BadValue(_) => DecodeError::BadValue("extent length"),
    })
}

fn requests() -> Vec<InvalidRequest> {
    each_variant!(InvalidRequest {
        InvalidRequest::ReadOnly => InvalidRequest::ReadOnly,
        InvalidRequest::NotOffered(_) => InvalidRequest::NotOffered(CommandType::TRIM),
        InvalidRequest::NoContexts => InvalidRequest::NoContexts,
        InvalidRequest::Empty => InvalidRequest::Empty,
        InvalidRequest::OutOfRange(_) => InvalidRequest::OutOfRange(1 << 20),
        InvalidRequest::Misaligned(_) => InvalidRequest::Misaligned(512),
        InvalidRequest::SizeTooLarge => InvalidRequest::SizeTooLarge,
        InvalidRequest::TooLong(_) => InvalidRequest::TooLong(32 << 20),
    })
}

fn submissions() -> Vec<SubmitError> {
    each_variant!(SubmitError {
        SubmitError::Invalid(_) => SubmitError::Invalid(InvalidRequest::ReadOnly),
        SubmitError::NotTransmitting => SubmitError::NotTransmitting,
        SubmitError::Disconnecting => SubmitError::Disconnecting,
        SubmitError::ServerShuttingDown => SubmitError::ServerShuttingDown,
        SubmitError::TooManyRequests => SubmitError::TooManyRequests,
        SubmitError::BadContext(_) => SubmitError::BadContext(1),
        SubmitError::Resizing => SubmitError::Resizing,
    })
}

fn options() -> Vec<OptionError> {
    each_variant!(OptionError {
        OptionError::NotYourTurn => OptionError::NotYourTurn,
        OptionError::NeedsFixedNewstyle => OptionError::NeedsFixedNewstyle,
        OptionError::NeedsTls => OptionError::NeedsTls,
        OptionError::TlsRunning => OptionError::TlsRunning,
        OptionError::AlreadyAgreed => OptionError::AlreadyAgreed,
        OptionError::ExtendedHeaders => OptionError::ExtendedHeaders,
        OptionError::NeedsStructuredReplies => OptionError::NeedsStructuredReplies,
        OptionError::BadString => OptionError::BadString,
        OptionError::BadQuery => OptionError::BadQuery,
        OptionError::RepeatedItem(_) => OptionError::RepeatedItem(InfoType::NAME),
        OptionError::TooLong => OptionError::TooLong,
        OptionError::HasMethod => OptionError::HasMethod,
    })
}

fn block_sizes() -> Vec<InvalidBlockSize> {
    each_variant!(InvalidBlockSize {
        InvalidBlockSize::Minimum(_) => InvalidBlockSize::Minimum(3),
        InvalidBlockSize::Preferred(_) => InvalidBlockSize::Preferred(100),
        InvalidBlockSize::MaximumPayload(_) => InvalidBlockSize::MaximumPayload(512),
    })
}

fn oldstyle() -> Vec<OldstyleUnfit> {
    each_variant!(OldstyleUnfit {
        OldstyleUnfit::TlsRequired => OldstyleUnfit::TlsRequired,
        OldstyleUnfit::BlockSizeRequired => OldstyleUnfit::BlockSizeRequired,
    })
}

fn ends() -> Vec<OrderlyEnd> {
    each_variant!(OrderlyEnd {
        OrderlyEnd::Aborted => OrderlyEnd::Aborted,
        OrderlyEnd::Disconnected => OrderlyEnd::Disconnected,
        OrderlyEnd::EndOfStream => OrderlyEnd::EndOfStream,
        OrderlyEnd::HungUp => OrderlyEnd::HungUp,
    })
}

fn uris() -> Vec<UriError> {
    use UriError as U;
    let (position, part, expected) = (6, "export name", "a number from 0 to 65535");
    each_variant!(UriError {
        U::NoScheme => U::NoScheme,
        U::HostWithoutScheme(_) => U::HostWithoutScheme("localhost:10809".into()),
        U::UnknownScheme(_) => U::UnknownScheme("http".into()),
        U::NoSlashes => U::NoSlashes,
        U::BadCharacter { .. } => U::BadCharacter { position, found: ' ' },
        U::BadPercent { .. } => U::BadPercent { position },
        U::NotUtf8 { .. } => U::NotUtf8 { part },
        U::Nul { .. } => U::Nul { part },
        U::TooLong { .. } => U::TooLong { part },
        U::BadHost { .. } => U::BadHost { position },
        U::BadPort { .. } => U::BadPort { position, found: "http".into(), expected },
        U::HostOfUnixSocket => U::HostOfUnixSocket,
        U::MissingSocket => U::MissingSocket,
        U::UnexpectedSocket => U::UnexpectedSocket,
        U::UnknownParameter(_) => U::UnknownParameter("color".into()),
        U::RepeatedParameter(_) => U::RepeatedParameter("socket"),
        U::BadParameter { .. } => U::BadParameter { name: "tls-verify-peer", expected: "0 or 1" },
        U::Fragment { .. } => U::Fragment { position },
    })
}

fn commands() -> [CommandError; 2] {
    let error = |code, message: &str| CommandError {
        code,
        raw: code,
        message: message.into(),
        offset: None,
    };
    [error(ErrorCode::ENOSPC, ""), error(ErrorCode::EIO, "the disk is gone")]
}

#[test]
fn every_error_has_the_text_that_was_agreed_on() {
    let mut text = String::new();
    section(&mut text, "Error", errors());
    section(&mut text, "PeerMisbehaved", misbehaviour());
    section(&mut text, "NoSession", refusals());
    section(&mut text, "NotServed", not_served());
    section(&mut text, "LimitExceeded", limits());
    section(&mut text, "DecodeError", decoding());
    section(&mut text, "OrderlyEnd", ends());
    section(&mut text, "UriError", uris());
    section(&mut text, "InvalidRequest", requests());
    section(&mut text, "client::CommandError", commands());
    section(&mut text, "client::OptionError", options());
    section(&mut text, "client::SubmitError", submissions());
    section(&mut text, "InvalidBlockSize", block_sizes());
    section(&mut text, "server::OldstyleUnfit", oldstyle());
    section(&mut text, "Misuse", misuse());
    check(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/messages.txt"), &text);
}
