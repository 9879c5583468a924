//! What can go wrong for a client.

use core::fmt;
use core::time::Duration;
use std::io;
use std::sync::Arc;

use nbd_proto::client::{CommandError, OptionError, SubmitError};
use nbd_proto::wire::{DecodeError, ErrorCode, OptionCode, OptionReplyType};
use nbd_proto::{Command, InvalidRequest, Misuse, NoSession, UriError};

use super::GaveUp;
use crate::command_text::CommandText;
use crate::counted;

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
    /// The server took too long. A request that timed out may still be carried out later; the connection goes on.
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
    /// The server is shutting down and takes no more requests.
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

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Protocol(error) => error.fmt(f),
            Self::ShuttingDown => f.write_str("the server is shutting down"),
            Self::Silent { limit } => {
                write!(f, "it owes replies and has sent nothing for {limit:?}")
            }
            Self::Abandoned => f.write_str("its task was dropped, with its runtime as a rule"),
            Self::GaveUp(gave_up) => gave_up.fmt(f),
            Self::Internal(misuse) => {
                write!(f, "a fault in nbd-engine, please report it: {misuse}")
            }
        }
    }
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(error) => write!(f, "not an NBD URI: {error}"),
            Self::Connect { address, source } => {
                write!(f, "cannot connect to {address}: {source}")?;
                f.write_str(connect_remedy(source.kind(), address))
            }
            // The text says that it is about TLS.
            #[cfg(feature = "tls")]
            Self::Tls { peer, source } => write!(f, "cannot connect to {peer} securely: {source}"),
            #[cfg(feature = "tls")]
            Self::TlsSetup(error) => error.fmt(f),
            Self::Unsupported { address, what } => write!(f, "cannot use {address}: {what}"),
            Self::Refused { peer, export, refusal, text } => {
                write!(f, "{peer} refused")?;
                match export.as_deref() {
                    None => {}
                    Some("") => f.write_str(" the default export")?,
                    Some(export) => write!(f, " the export {export:?}")?,
                }
                write!(f, ": {refusal}")?;
                if !text.is_empty() {
                    write!(f, " ({text})")?;
                }
                f.write_str(refusal_remedy(peer, refusal, !text.is_empty()))
            }
            Self::Protocol { peer, source } => {
                write!(f, "no session with {peer}: {source}")?;
                // Servers that refuse a connection have no way to say why.
                f.write_str(match source {
                    nbd_proto::Error::UnexpectedEnd("the greeting") => {
                        "; it may have all connections that it can have, not serve this address, or be no NBD server: \
                         its log may say why"
                    }
                    nbd_proto::Error::Malformed(DecodeError::BadMagic { expected: "NBDMAGIC", .. }) => {
                        "; it is no NBD server: check the address"
                    }
                    _ => "",
                })
            }
            Self::Command { peer, command, error } => {
                write!(f, "{} failed on {peer}: {error}", CommandText(*command))
            }
            Self::NoStatus { peer, context, selected: false, .. } => write!(
                f,
                "the metadata context {context:?} was not selected on {peer}: select it on connecting"
            ),
            Self::NoStatus { peer, context, offset, .. } => {
                write!(
                    f,
                    "{peer} says nothing in the metadata context {context:?} about the bytes from {offset} on"
                )
            }
            Self::TimedOut { peer, what, limit, sent } => {
                write!(f, "{what} took longer than {limit:?} on {peer}")?;
                f.write_str(if *sent { "; it may still be carried out" } else { "" })
            }
            Self::Lost { peer, sent, reason } => {
                write!(f, "the connection to {peer} was lost: {reason}; ")?;
                f.write_str(if *sent {
                    "the request was sent, and if it changes anything, it may have done so"
                } else {
                    "the request was not sent: connect anew and repeat it"
                })
            }
            Self::InDoubt { peer, requests, bytes } => {
                write!(
                    f,
                    "{} of {} may be lost: acknowledged by {peer}, but not made durable before a connection was lost or a \
                     flush failed; write what may be lost again",
                    counted(*requests, "change"),
                    counted(*bytes, "byte")
                )
            }
            Self::Invalid(InvalidRequest::NoContexts) => {
                write!(
                    f,
                    "{}: select one on connecting, such as base:allocation",
                    InvalidRequest::NoContexts
                )
            }
            Self::Invalid(error) => error.fmt(f),
            Self::InvalidOption(error) => error.fmt(f),
            Self::NotSubmitted(error) => error.fmt(f),
            Self::Disconnected { peer } => {
                write!(f, "this client has disconnected from {peer}: connect anew")
            }
            Self::Entered { peer } => write!(
                f,
                "an export was entered by this connection to {peer}: begin another negotiation to ask more"
            ),
            Self::Local(error) => write!(f, "cannot wait for the server: {error}"),
        }
    }
}

fn connect_remedy(kind: io::ErrorKind, address: &str) -> &'static str {
    use io::ErrorKind as Kind;
    let (is_abstract, is_path) = (address.starts_with('@'), address.contains('/'));
    match kind {
        Kind::ConnectionRefused if is_abstract => {
            "; no server listens on that abstract name: start it, or check the name"
        }
        Kind::ConnectionRefused if is_path => {
            "; no server listens on the socket any more: start it, or check the path"
        }
        Kind::ConnectionRefused => "; no server listens there: start it, or check the port",
        Kind::NotFound if is_path => "; start the server, or check the path of its socket",
        Kind::PermissionDenied => "; ask for permission to use the socket",
        Kind::TimedOut | Kind::HostUnreachable | Kind::NetworkUnreachable => {
            "; check the address and the firewalls on the way"
        }
        _ => "",
    }
}

fn refusal_remedy(peer: &str, refusal: &NoSession, is_explained: bool) -> &'static str {
    let (code, reply) = match refusal {
        NoSession::Option { code, reply } => (code, reply),
        NoSession::ExportName => return "; check the name of the export",
        NoSession::NoTls => {
            return "; use a server that has TLS, and check that nobody is in between";
        }
        NoSession::Oldstyle => {
            return "; allow it by ClientConfig::with_oldstyle, or use a newer server";
        }
        _ => return "",
    };
    match (*reply, *code) {
        (_, OptionCode::STARTTLS) => {
            "; this client requires TLS: use a server that has it, and check that nobody is in between"
        }
        (OptionReplyType::ERR_UNKNOWN, _) => "; list the exports to see which there are",
        // A stream of the program's own is named as the program likes, and has no URI.
        (OptionReplyType::ERR_TLS_REQD, _) if !peer.contains("://") => {
            "; the server demands TLS: ask for it by ClientConfig::with_tls"
        }
        (OptionReplyType::ERR_TLS_REQD, _) => {
            "; the server demands TLS: use nbds:// or nbds+unix://"
        }
        (OptionReplyType::ERR_POLICY, _) => "; the server's policy does not allow it",
        // Servers mostly say so themselves.
        (OptionReplyType::ERR_SHUTDOWN, _) if is_explained => "; try again later",
        (OptionReplyType::ERR_SHUTDOWN, _) => "; the server is shutting down, try again later",
        (OptionReplyType::ERR_UNSUP, OptionCode::LIST) => {
            "; the server does not list its exports: name one"
        }
        _ => "",
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
    use super::*;

    #[test]
    fn texts_name_the_server_and_the_remedy() {
        let source = Arc::new(io::ErrorKind::ConnectionRefused.into());
        let error = Error::Connect { address: "127.0.0.1:10809".into(), source };
        let text = error.to_string();
        assert!(text.contains("127.0.0.1:10809") && text.contains("start it"), "{text}");
        let refusal =
            NoSession::Option { code: OptionCode::GO, reply: OptionReplyType::ERR_UNKNOWN };
        let export = Some("disk".to_owned());
        let error = Error::Refused { peer: "host".into(), export, refusal, text: String::new() };
        let text = error.to_string();
        assert!(text.contains("host refused the export \"disk\""), "{text}");
        assert!(text.contains("list the exports"), "{text}");
    }

    #[test]
    fn a_refusal_about_no_export_names_none_and_says_things_once() {
        let (code, reply) = (OptionCode::LIST, OptionReplyType::ERR_SHUTDOWN);
        let refusal = NoSession::Option { code, reply };
        for text in ["", "the server is shutting down"] {
            let (peer, text) = ("host".into(), text.to_owned());
            let text = Error::Refused { peer, export: None, refusal, text }.to_string();
            assert!(text.starts_with("host refused: NBD_OPT_LIST"), "{text}");
            assert_eq!(text.matches("shutting down").count(), 1, "{text}");
        }
    }

    #[test]
    fn remedies_fit_the_kind_of_address() {
        for (address, kind, says, never) in [
            ("/run/nbd.sock", io::ErrorKind::ConnectionRefused, "check the path", "port"),
            ("./nbd.sock", io::ErrorKind::NotFound, "check the path", "port"),
            ("@nbd", io::ErrorKind::ConnectionRefused, "check the name", "port"),
            ("host:10809", io::ErrorKind::ConnectionRefused, "check the port", "path"),
            ("host:10809", io::ErrorKind::NotFound, "host:10809", "path"),
        ] {
            let text = Error::Connect { address: address.into(), source: Arc::new(kind.into()) };
            let text = text.to_string();
            assert!(text.contains(says) && !text.contains(never), "{text}");
        }
    }

    #[test]
    fn lost_requests_say_whether_they_were_sent() {
        let lost = |sent| Error::Lost { peer: "host".into(), sent, reason: LostReason::Abandoned };
        assert!(lost(true).to_string().contains("may have done so"));
        assert!(lost(false).to_string().contains("was not sent"));
    }

    #[test]
    fn an_io_error_keeps_the_kind_and_gives_the_error_back() {
        let error = io::Error::from(Error::Disconnected { peer: "host".into() });
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        assert!(matches!(error.downcast::<Error>(), Ok(Error::Disconnected { .. })));
    }
}
