//! The text of every error, for whoever changes one: `messages.txt` has what was agreed on.

use core::time::Duration;
use std::io::{Error as IoError, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use nbd_proto::client::{OptionError, SubmitError};
use nbd_proto::server::OldstyleUnfit;
use nbd_proto::wire::{DecodeError, OptionCode, OptionReplyType};
use nbd_proto::{InvalidRequest, Misuse, UriError};
use nbd_testkit::each_variant;
use nbd_testkit::snapshot::{check, section};

use crate::client::{ConnectionEvent, Error, GaveUp, LostReason};
use crate::export::{
    BitmapError, CloseReason, ExportError, ListedExport, Memory, OpenError, OverlayError,
    PartitionError, Refusal, SliceError,
};
use crate::net::{InvalidNetwork, Network};
use crate::server::{ConnectionError, Stall};
use crate::tls::TlsError;

const SECOND: Duration = Duration::from_secs(1);

fn peer() -> Arc<str> {
    "nbd://disks.example.org/disk".into()
}

fn broken() -> nbd_proto::Error {
    nbd_proto::Error::Malformed(DecodeError::BadValue("extent length"))
}

/// What the platform reports, in words of its own.
fn io(kind: ErrorKind) -> Arc<IoError> {
    Arc::new(IoError::new(kind, "(the platform's words)"))
}

fn refused(refusal: nbd_proto::NoSession, export: Option<&str>, text: &str) -> Error {
    Error::Refused { peer: peer(), export: export.map(Into::into), refusal, text: text.into() }
}

fn option(code: OptionCode, reply: OptionReplyType) -> nbd_proto::NoSession {
    nbd_proto::NoSession::Option { code, reply }
}

fn lost(sent: bool) -> Error {
    Error::Lost { peer: peer(), sent, reason: LostReason::Protocol(broken()) }
}

fn client_errors() -> Vec<Error> {
    each_variant!(Error {
        Error::Uri(_) => Error::Uri(UriError::NoScheme),
        Error::Connect { .. } => {
            Error::Connect { address: "192.0.2.1:10809".into(), source: io(ErrorKind::Other) }
        },
        Error::Unsupported { .. } => {
            Error::Unsupported { address: peer().to_string(), what: "it has no vsock" }
        },
        Error::Refused { .. } => refused(
            option(OptionCode::GO, OptionReplyType::ERR_UNKNOWN),
            Some("disk"),
            "no such disk",
        ),
        Error::Protocol { .. } => Error::Protocol { peer: peer(), source: broken() },
        Error::Tls { .. } => Error::Tls { peer: peer(), source: io(ErrorKind::InvalidData) },
        Error::TlsSetup(_) => Error::TlsSetup(Arc::new(TlsError::NoRoots)),
        Error::NoStatus { .. } => Error::NoStatus {
            peer: peer(),
            context: "base:allocation".into(),
            offset: 4096,
            selected: true,
        },
        Error::TimedOut { .. } => {
            Error::TimedOut { peer: peer(), what: "a read", limit: 5 * SECOND, sent: true }
        },
        Error::Lost { .. } => lost(true),
        Error::InDoubt { .. } => Error::InDoubt { peer: peer(), requests: 3, bytes: 4096 },
        Error::Invalid(_) => Error::Invalid(InvalidRequest::OutOfRange(1 << 20)),
        Error::InvalidOption(_) => Error::InvalidOption(OptionError::NotYourTurn),
        Error::NotSubmitted(_) => Error::NotSubmitted(SubmitError::Resizing),
        Error::Disconnected { .. } => Error::Disconnected { peer: peer() },
        Error::Entered { .. } => Error::Entered { peer: peer() },
        Error::Local(_) => Error::Local(io(ErrorKind::Other)),
    } without {
        // Only the core makes what a server has answered; the suites' tests have this text.
        Error::Command { .. }
    })
}

/// Errors of one variant whose texts differ.
fn more_client_errors() -> Vec<Error> {
    let connect =
        |address: &str, kind| Error::Connect { address: address.into(), source: io(kind) };
    let status = |selected| Error::NoStatus {
        peer: peer(),
        context: "base:allocation".into(),
        offset: 0,
        selected,
    };
    let list = OptionCode::LIST;
    let go = OptionCode::GO;
    vec![
        connect("192.0.2.1:10809", ErrorKind::ConnectionRefused),
        connect("/run/nbd.sock", ErrorKind::ConnectionRefused),
        connect("@nbd", ErrorKind::ConnectionRefused),
        connect("/run/nbd.sock", ErrorKind::NotFound),
        connect("/run/nbd.sock", ErrorKind::PermissionDenied),
        connect("192.0.2.1:10809", ErrorKind::TimedOut),
        Error::Protocol {
            peer: peer(),
            source: nbd_proto::Error::Malformed(DecodeError::BadMagic {
                expected: "NBDMAGIC",
                found: u64::from_be_bytes(*b"HTTP/1.1"),
            }),
        },
        refused(option(go, OptionReplyType::ERR_TLS_REQD), Some(""), ""),
        Error::Refused {
            peer: "a stream".into(),
            export: Some("".into()),
            refusal: option(go, OptionReplyType::ERR_TLS_REQD),
            text: "".into(),
        },
        refused(option(go, OptionReplyType::ERR_POLICY), Some("disk"), ""),
        refused(option(go, OptionReplyType::ERR_SHUTDOWN), None, ""),
        refused(option(go, OptionReplyType::ERR_SHUTDOWN), None, "back at noon"),
        refused(option(list, OptionReplyType::ERR_UNSUP), None, ""),
        refused(option(OptionCode::STARTTLS, OptionReplyType::ERR_UNSUP), None, ""),
        refused(nbd_proto::NoSession::ExportName, Some("disk"), ""),
        refused(nbd_proto::NoSession::NoTls, None, ""),
        refused(nbd_proto::NoSession::Oldstyle, None, ""),
        status(false),
        Error::TimedOut { peer: peer(), what: "a read", limit: 5 * SECOND, sent: false },
        lost(false),
        Error::Invalid(InvalidRequest::NoContexts),
    ]
}

fn lost_reasons() -> Vec<LostReason> {
    each_variant!(LostReason {
        LostReason::Transport(_) => LostReason::Transport(io(ErrorKind::ConnectionReset)),
        LostReason::Protocol(_) => LostReason::Protocol(broken()),
        LostReason::ShuttingDown => LostReason::ShuttingDown,
        LostReason::Silent { .. } => LostReason::Silent { limit: 30 * SECOND },
        LostReason::Abandoned => LostReason::Abandoned,
        LostReason::GaveUp(_) => LostReason::GaveUp(GaveUp::Attempts { attempts: 5, last: None }),
        LostReason::Internal(_) => LostReason::Internal(Misuse::WrongPhase),
    })
}

fn gave_up() -> Vec<GaveUp> {
    let last = || {
        Some(Box::new(Error::Connect {
            address: "192.0.2.1:10809".into(),
            source: io(ErrorKind::Other),
        }))
    };
    each_variant!(GaveUp {
        GaveUp::Attempts { .. } => GaveUp::Attempts { attempts: 5, last: last() },
        GaveUp::Outage { .. } => GaveUp::Outage { limit: 30 * SECOND, last: last() },
        GaveUp::Changed { .. } => {
            GaveUp::Changed { what: "its size was 1024 bytes, and is 2048 now".into() }
        },
        GaveUp::Resends { .. } => GaveUp::Resends { times: 9 },
        GaveUp::Hopeless { .. } => GaveUp::Hopeless {
            error: Box::new(refused(
                option(OptionCode::GO, OptionReplyType::ERR_UNKNOWN),
                Some("disk"),
                "",
            )),
        },
    })
}

fn connection_events() -> Vec<ConnectionEvent> {
    let connection = 0;
    each_variant!(ConnectionEvent {
        ConnectionEvent::Lost { .. } => ConnectionEvent::Lost {
            peer: peer(),
            connection,
            reason: LostReason::ShuttingDown,
            waiting: 7,
        },
        ConnectionEvent::AttemptFailed { .. } => ConnectionEvent::AttemptFailed {
            peer: peer(),
            connection,
            attempts: 2,
            error: Error::Connect {
                address: "192.0.2.1:10809".into(),
                source: io(ErrorKind::ConnectionRefused),
            },
        },
        ConnectionEvent::Reconnected { .. } => {
            ConnectionEvent::Reconnected { peer: peer(), connection, outage: 2 * SECOND, waiting: 7 }
        },
        ConnectionEvent::GaveUp { .. } => ConnectionEvent::GaveUp {
            peer: peer(),
            connection,
            reason: LostReason::GaveUp(GaveUp::Attempts { attempts: 5, last: None }),
        },
    })
}

fn server_errors() -> Vec<ConnectionError> {
    let stall = |bytes| Stall { time: 60 * SECOND, bytes, min_rate: 16 << 10 };
    each_variant!(ConnectionError {
        ConnectionError::Transport(_) => {
            ConnectionError::Transport(IoError::other("(the platform's words)"))
        },
        ConnectionError::TlsHandshake(_) => {
            let text = "(the words of TLS)";
            ConnectionError::TlsHandshake(IoError::new(ErrorKind::InvalidData, text))
        },
        ConnectionError::Protocol(_) => ConnectionError::Protocol(broken()),
        ConnectionError::Tls(_) => ConnectionError::Tls(TlsError::NoRoots),
        ConnectionError::NotAllowed(_) => ConnectionError::NotAllowed(vec!["backup".into()]),
        ConnectionError::ServerFull { .. } => {
            ConnectionError::ServerFull { max_connections: 1024, waited: 5 * SECOND }
        },
        ConnectionError::ShuttingDown => ConnectionError::ShuttingDown,
        ConnectionError::HandshakeTimeout(_) => ConnectionError::HandshakeTimeout(10 * SECOND),
        ConnectionError::ReceiveStalled(_) => ConnectionError::ReceiveStalled(stall(0)),
        ConnectionError::SendStalled(_) => ConnectionError::SendStalled(stall(5000)),
        ConnectionError::Displaced(_) => ConnectionError::Displaced(60 * SECOND),
        ConnectionError::PeerGone => ConnectionError::PeerGone,
        ConnectionError::DrainTimeout(_) => ConnectionError::DrainTimeout(10 * SECOND),
        ConnectionError::ExportRefused { .. } => {
            ConnectionError::ExportRefused { name: "disk".into(), refusal: Refusal::Unknown }
        },
        ConnectionError::Oldstyle(_) => ConnectionError::Oldstyle(OldstyleUnfit::TlsRequired),
        ConnectionError::Internal(_) => ConnectionError::Internal(Misuse::WrongPhase),
    })
}

fn tls() -> Vec<TlsError> {
    let (what, path) = ("certificate", || "/etc/pki/nbd/server-cert.pem".into());
    each_variant!(TlsError {
        TlsError::Unreadable { .. } => {
            TlsError::Unreadable { what, path: path(), source: ErrorKind::NotFound.into() }
        },
        TlsError::Empty { .. } => TlsError::Empty { what, path: path() },
        TlsError::NoKeys(_) => TlsError::NoKeys("/etc/nbd/keys.psk".into()),
        TlsError::Malformed { .. } => {
            TlsError::Malformed { what, path: path(), reason: "its end is missing".into() }
        },
        TlsError::KeyIsPublic(_) => TlsError::KeyIsPublic("server-key.pem".into()),
        TlsError::KeyIsEncrypted(_) => TlsError::KeyIsEncrypted("server-key.pem".into()),
        TlsError::Expired { .. } => {
            TlsError::Expired { path: path(), end: "2026-01-01 00:00:00 UTC".into() }
        },
        TlsError::NotYetValid { .. } => {
            TlsError::NotYetValid { path: path(), start: "2036-01-01 00:00:00 UTC".into() }
        },
        TlsError::KeyMismatch { .. } => {
            TlsError::KeyMismatch { key: "server-key.pem".into(), certificate: path() }
        },
        TlsError::NoRoots => TlsError::NoRoots,
        TlsError::BadHostName(_) => TlsError::BadHostName("a b".into()),
        TlsError::Setup(_) => TlsError::Setup("no common protocol version".into()),
    })
}

fn export_refusals() -> Vec<Refusal> {
    each_variant!(Refusal {
        Refusal::Unknown => Refusal::Unknown,
        Refusal::Policy(_) => Refusal::policy("the embedder's words"),
        Refusal::ShuttingDown(_) => Refusal::shutting_down("the embedder's words"),
    })
}

fn slices() -> Vec<SliceError> {
    each_variant!(SliceError {
        SliceError::Outside { .. } => {
            SliceError::Outside { offset: 1024, length: Some(4096), size: 2048 }
        },
        SliceError::Unaligned { .. } => SliceError::Unaligned { bytes: 100, block: 512 },
    })
}

fn partitions() -> Vec<PartitionError> {
    each_variant!(PartitionError {
        PartitionError::NoTable => PartitionError::NoTable,
        PartitionError::Damaged => PartitionError::Damaged,
        PartitionError::NoSuchPartition(_) => PartitionError::NoSuchPartition(7),
        PartitionError::Extended(_) => PartitionError::Extended(4),
        PartitionError::Range(_) => {
            PartitionError::Range(SliceError::Outside { offset: 4096, length: None, size: 2048 })
        },
        PartitionError::Unreadable(_) => PartitionError::Unreadable(ExportError::no_memory()),
    })
}

fn bitmaps() -> Vec<BitmapError> {
    each_variant!(BitmapError {
        BitmapError::Exists => BitmapError::Exists,
        BitmapError::InvalidName => BitmapError::InvalidName,
        BitmapError::TooMany => BitmapError::TooMany,
    })
}

fn ends() -> Vec<CloseReason> {
    each_variant!(CloseReason {
        CloseReason::Disconnected => CloseReason::Disconnected,
        CloseReason::Vanished => CloseReason::Vanished,
        CloseReason::Failed(_) => CloseReason::Failed("the engine's words".into()),
        CloseReason::ShutDown => CloseReason::ShutDown,
        CloseReason::Dropped => CloseReason::Dropped,
    })
}

fn networks() -> Vec<InvalidNetwork> {
    each_variant!(InvalidNetwork {
        InvalidNetwork::Syntax => InvalidNetwork::Syntax,
        InvalidNetwork::Prefix(_) => InvalidNetwork::Prefix(32),
        InvalidNetwork::Host(_) => {
            InvalidNetwork::Host(Network::new([10, 0, 0, 0].into(), 8).unwrap())
        },
    })
}

#[test]
fn every_error_has_the_text_that_was_agreed_on() {
    let mut text = String::new();
    section(&mut text, "client::Error", client_errors());
    section(&mut text, "client::Error by what it holds", more_client_errors());
    section(&mut text, "client::LostReason", lost_reasons());
    section(&mut text, "client::GaveUp", gave_up());
    section(&mut text, "client::ConnectionEvent", connection_events());
    section(&mut text, "server::ConnectionError", server_errors());
    let nobody = ConnectionError::NotAllowed(Vec::new());
    section(&mut text, "server::ConnectionError by what it holds", [nobody]);
    section(&mut text, "tls::TlsError", tls());
    section(&mut text, "export::OpenError", OpenError::each());
    section(&mut text, "export::OverlayError", OverlayError::each());
    section(&mut text, "export::PartitionError", partitions());
    section(&mut text, "export::SliceError", slices());
    section(&mut text, "export::BitmapError", bitmaps());
    let names = ["a\0b".to_owned(), "x".repeat(5000)];
    let invalid = names.map(|name| ListedExport::new(name, "").unwrap_err());
    section(&mut text, "export::InvalidName", invalid);
    section(&mut text, "export::TooLarge", Memory::new(u64::MAX).err());
    section(&mut text, "export::Refusal", export_refusals());
    section(&mut text, "export::CloseReason", ends());
    let fixed = [
        ExportError::no_space(),
        ExportError::no_memory(),
        ExportError::too_large(),
        ExportError::not_fast(),
    ];
    section(&mut text, "export::ExportError", fixed);
    section(&mut text, "net::InvalidNetwork", networks());
    check(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/messages.txt"), &text);
}
