//! What can go wrong for a client.

mod text;

use core::time::Duration;
use std::io;
use std::sync::Arc;

use nbd_proto::client::{CommandError, OptionError, SubmitError};
use nbd_proto::wire::{ErrorCode, OptionReplyType};
use nbd_proto::{Command, InvalidRequest, Misuse, NoSession, UriError};

use super::GaveUp;

/// Why a client failed. Cheap to clone: when a connection is lost, each of its requests gets the reason.
///
/// Texts name the server and, where there is one, the remedy. As an [`io::Error`] it keeps the best fitting
/// [`io::ErrorKind`]; recover it with [`io::Error::downcast`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The text is not an NBD URI.
    Uri(UriError),
    /// No connection could be made.
    Connect {
        /// The addresses that were tried.
        address: String,
        /// What the platform reported for the last of them.
        source: Arc<io::Error>,
    },
    /// Something is needed that this client, or this server, does not have.
    Unsupported {
        /// The address or the URI that it is about.
        address: String,
        /// What is needed, and what to do about it.
        what: &'static str,
    },
    /// The server does not want this client, or does not have what it asked for.
    Refused {
        /// The server.
        peer: Arc<str>,
        /// The export that it was about, with an empty name for the default one; `None` if it was about none.
        export: Option<String>,
        /// How.
        refusal: NoSession,
        /// The server's own message; often empty.
        text: String,
    },
    /// There is no session because the server broke the protocol.
    Protocol {
        /// The server.
        peer: Arc<str>,
        /// Which rule.
        source: nbd_proto::Error,
    },
    /// There is no TLS with this server: it can't be trusted, does not trust this side, or breaks TLS.
    #[cfg(feature = "tls")]
    Tls {
        /// The server.
        peer: Arc<str>,
        /// What went wrong.
        source: Arc<io::Error>,
    },
    /// Certificates, keys or names of this side are of no use for TLS. Nothing was sent.
    #[cfg(feature = "tls")]
    TlsSetup(Arc<crate::tls::TlsError>),
    /// The server failed to carry out a request, or did not want to. The connection is unharmed.
    Command {
        /// The server.
        peer: Arc<str>,
        /// What was asked for, as a whole if it was split.
        command: Command,
        /// What the server reported.
        error: CommandError,
    },
    /// The server says nothing about some bytes in a metadata context: the context is not selected, or the server broke
    /// the protocol.
    NoStatus {
        /// The server.
        peer: Arc<str>,
        /// The metadata context.
        context: Arc<str>,
        /// The offset of the first of these bytes in the export.
        offset: u64,
        /// Whether the context was selected for this export.
        selected: bool,
    },
    /// The server took too long. A request that timed out may still be carried out later, see
    /// [`Client`](super::Client#requests-that-are-given-up); the connection goes on.
    TimedOut {
        /// The server.
        peer: Arc<str>,
        /// What took so long.
        what: &'static str,
        /// The limit, see [`ClientConfig`](super::ClientConfig).
        limit: Duration,
        /// `false`: no part of the request was sent, nor will be. `true`: the server may have seen it, or will once what
        /// is queued is sent; whether it was or will be carried out is unknown.
        sent: bool,
    },
    /// The connection was lost before the request was answered.
    Lost {
        /// The server.
        peer: Arc<str>,
        /// `false`: not a byte of the request was sent, so it was not carried out. `true`: it was sent (some of it at
        /// least), and whether it was carried out is unknown.
        sent: bool,
        /// Why.
        reason: LostReason,
    },
    /// A flush does not cover everything: a connection was lost after the server had acknowledged changes on it, which it may
    /// have lost with its cache. Everything else is flushed. Write them again, then flush again. See
    /// [`Reconnect`](super::Reconnect).
    InDoubt {
        /// The server.
        peer: Arc<str>,
        /// How many writes, write zeroes and trims are in doubt.
        requests: u64,
        /// How many bytes these changed.
        bytes: u64,
    },
    /// The request makes no sense for this export. Nothing was sent, or a part if it was split and the export shrank
    /// meanwhile.
    Invalid(InvalidRequest),
    /// The option must not be sent, or not to this server. Nothing was sent.
    InvalidOption(OptionError),
    /// The request can't be sent beside others that are in flight. Nothing was sent, or a part if it was split.
    NotSubmitted(SubmitError),
    /// The client has [disconnected](super::Client::disconnect).
    Disconnected {
        /// The server.
        peer: Arc<str>,
    },
    /// An export was entered by the connection of this [`Negotiation`](super::Negotiation), which is the client's since.
    Entered {
        /// The server.
        peer: Arc<str>,
    },
    /// This machine has run out of something, mostly file descriptors. Nothing was sent.
    Local(Arc<io::Error>),
}

/// What became of a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LostReason {
    /// The transport failed.
    Transport(Arc<io::Error>),
    /// The server broke the protocol, or hung up.
    Protocol(nbd_proto::Error),
    /// The server takes no more requests (`NBD_ESHUTDOWN`): it is shutting down, has withdrawn the export, or wants this
    /// client to leave.
    ShuttingDown,
    /// The server owed replies and sent nothing for as long as a client that [reconnects](super::Reconnect) allows.
    #[non_exhaustive]
    Silent {
        /// How long, see [`Reconnect::with_max_silence`](super::Reconnect::with_max_silence).
        limit: Duration,
    },
    /// The task that drove the connection is gone, with its runtime as a rule.
    Abandoned,
    /// The client has tried to [reconnect](super::Reconnect), and gave up.
    GaveUp(GaveUp),
    /// The engine misused the core: a fault of this crate, please report it.
    Internal(Misuse),
}

impl From<io::Error> for LostReason {
    fn from(error: io::Error) -> Self {
        Self::Transport(Arc::new(error))
    }
}

impl From<nbd_proto::Error> for LostReason {
    fn from(error: nbd_proto::Error) -> Self {
        Self::Protocol(error)
    }
}

impl From<Misuse> for LostReason {
    fn from(misuse: Misuse) -> Self {
        Self::Internal(misuse)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Uri(error) => Some(error),
            Self::Connect { source, .. } | Self::Local(source) => Some(source),
            Self::Refused { refusal, .. } => Some(refusal),
            Self::Protocol { source, .. } => Some(source),
            Self::Command { error, .. } => Some(error),
            Self::Invalid(error) => Some(error),
            Self::InvalidOption(error) => Some(error),
            Self::NotSubmitted(error) => Some(error),
            Self::Lost { reason: LostReason::Transport(error), .. } => Some(error),
            Self::Lost { reason: LostReason::Protocol(error), .. } => Some(error),
            _ => None,
        }
    }
}

impl Error {
    /// The kind of the [`io::Error`] that this converts to.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        use io::ErrorKind as Kind;
        match self {
            Self::Uri(_) | Self::Invalid(_) | Self::InvalidOption(_) => Kind::InvalidInput,
            Self::NotSubmitted(_) => Kind::ResourceBusy,
            Self::NoStatus { .. } => Kind::InvalidData,
            Self::Connect { source, .. } | Self::Local(source) => source.kind(),
            #[cfg(feature = "tls")]
            Self::Tls { source, .. } => source.kind(),
            #[cfg(feature = "tls")]
            Self::TlsSetup(_) => Kind::InvalidInput,
            Self::Unsupported { .. } => Kind::Unsupported,
            Self::Refused { refusal, .. } => match refusal {
                NoSession::Option { reply, .. } => match *reply {
                    OptionReplyType::ERR_UNKNOWN => Kind::NotFound,
                    OptionReplyType::ERR_UNSUP => Kind::Unsupported,
                    OptionReplyType::ERR_SHUTDOWN => Kind::ConnectionAborted,
                    _ => Kind::PermissionDenied,
                },
                NoSession::ExportName => Kind::NotFound,
                _ => Kind::Unsupported,
            },
            Self::Protocol { source, .. } => protocol_kind(source),
            Self::Command { error, .. } => command_kind(error.code),
            Self::TimedOut { .. } => Kind::TimedOut,
            Self::InDoubt { .. } => Kind::Other,
            Self::Lost { reason, .. } => match reason {
                LostReason::Transport(error) => error.kind(),
                LostReason::Protocol(error) => protocol_kind(error),
                LostReason::ShuttingDown | LostReason::Abandoned | LostReason::GaveUp(_) => {
                    Kind::ConnectionAborted
                }
                LostReason::Silent { .. } => Kind::TimedOut,
                LostReason::Internal(_) => Kind::Other,
            },
            Self::Disconnected { .. } | Self::Entered { .. } => Kind::NotConnected,
        }
    }

    /// Whether the same may succeed if it is tried again later: the server is away, or about to be, or the stream broke. Then a
    /// program that may start before its server connects again after a delay:
    ///
    /// - [`Connect`](Self::Connect), [`TimedOut`](Self::TimedOut), [`Lost`](Self::Lost), [`Disconnected`](Self::Disconnected);
    /// - [`Protocol`](Self::Protocol) when the server closed the connection before there was a session
    ///   ([`UnexpectedEnd`](nbd_proto::Error::UnexpectedEnd)). If that was before the greeting, it may have all connections
    ///   that it can have, or not serve this address;
    /// - [`Refused`](Self::Refused) when it is about to end
    ///   ([`ERR_SHUTDOWN`](super::OptionReplyType::ERR_SHUTDOWN));
    /// - [`Command`](Self::Command) when the server shuts down ([`ESHUTDOWN`](ErrorCode::ESHUTDOWN)), or has sent this client
    ///   away: connect anew;
    /// - `Tls` when the stream broke in the handshake, which says nothing of certificates and keys.
    ///
    /// All others would come again, or have to be looked into, such as [`InDoubt`](Self::InDoubt). Of a request that changes
    /// something, [`Lost`](Self::Lost) and [`TimedOut`](Self::TimedOut) say whether it may have been carried out.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Lost { .. }
            | Self::Disconnected { .. } => true,
            #[cfg(feature = "tls")]
            Self::Tls { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
            ),
            Self::Protocol { source, .. } => matches!(source, nbd_proto::Error::UnexpectedEnd(_)),
            Self::Command { error, .. } => error.code == ErrorCode::ESHUTDOWN,
            Self::Refused { refusal: NoSession::Option { reply, .. }, .. } => {
                *reply == OptionReplyType::ERR_SHUTDOWN
            }
            _ => false,
        }
    }

    /// The error value that the server sent for a request, if that is what this is.
    #[must_use]
    pub const fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Command { error, .. } => Some(error.code),
            _ => None,
        }
    }
}

const fn protocol_kind(error: &nbd_proto::Error) -> io::ErrorKind {
    match error {
        nbd_proto::Error::UnexpectedEnd(_) => io::ErrorKind::UnexpectedEof,
        _ => io::ErrorKind::InvalidData,
    }
}

fn command_kind(code: ErrorCode) -> io::ErrorKind {
    use io::ErrorKind as Kind;
    match code {
        ErrorCode::EPERM => Kind::PermissionDenied,
        ErrorCode::ENOMEM => Kind::OutOfMemory,
        ErrorCode::EINVAL | ErrorCode::EOVERFLOW => Kind::InvalidInput,
        ErrorCode::ENOSPC => Kind::StorageFull,
        ErrorCode::ENOTSUP => Kind::Unsupported,
        ErrorCode::ESHUTDOWN => Kind::ConnectionAborted,
        _ => Kind::Other,
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

impl From<UriError> for Error {
    fn from(error: UriError) -> Self {
        Self::Uri(error)
    }
}

impl From<InvalidRequest> for Error {
    fn from(invalid: InvalidRequest) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<OptionError> for Error {
    fn from(error: OptionError) -> Self {
        Self::InvalidOption(error)
    }
}

#[cfg(test)]
mod tests {
    use nbd_proto::wire::OptionCode;

    use super::*;

    #[test]
    fn a_broken_stream_is_transient_and_a_server_that_refuses_is_not() {
        let peer: Arc<str> = "peer".into();
        let source = |kind: io::ErrorKind| Arc::new(io::Error::from(kind));
        let connect = |kind| Error::Connect { address: "here".into(), source: source(kind) };
        let protocol = |source| Error::Protocol { peer: Arc::clone(&peer), source };
        let refused = |reply| Error::Refused {
            peer: Arc::clone(&peer),
            export: None,
            refusal: NoSession::Option { code: OptionCode::GO, reply },
            text: String::new(),
        };
        let limit = Duration::from_secs(1);
        let timed_out = Error::TimedOut { peer: Arc::clone(&peer), what: "it", limit, sent: true };
        let lost = LostReason::ShuttingDown;
        let mut cases = vec![
            (connect(io::ErrorKind::ConnectionRefused), true),
            (timed_out, true),
            (Error::Lost { peer: Arc::clone(&peer), sent: false, reason: lost }, true),
            (Error::Disconnected { peer: Arc::clone(&peer) }, true),
            (protocol(nbd_proto::Error::UnexpectedEnd("the handshake")), true),
            (protocol(nbd_proto::Error::Internal("a fault")), false),
            (refused(OptionReplyType::ERR_SHUTDOWN), true),
            (refused(OptionReplyType::ERR_POLICY), false),
            (Error::Entered { peer: Arc::clone(&peer) }, false),
        ];
        #[cfg(feature = "tls")]
        for (kind, is_transient) in [
            (io::ErrorKind::UnexpectedEof, true),
            (io::ErrorKind::ConnectionReset, true),
            (io::ErrorKind::ConnectionAborted, true),
            (io::ErrorKind::BrokenPipe, true),
            (io::ErrorKind::InvalidData, false),
        ] {
            let error = Error::Tls { peer: Arc::clone(&peer), source: source(kind) };
            cases.push((error, is_transient));
        }
        for (error, expected) in cases {
            assert_eq!(error.is_transient(), expected, "{error}");
        }
    }

    #[test]
    fn an_io_error_keeps_the_kind_and_gives_the_error_back() {
        let error = io::Error::from(Error::Disconnected { peer: "host".into() });
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        assert!(matches!(error.downcast::<Error>(), Ok(Error::Disconnected { .. })));
    }
}
