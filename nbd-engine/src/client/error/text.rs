//! What errors of a client say to people.

use core::fmt;
use std::io;

use nbd_proto::wire::{DecodeError, OptionCode, OptionReplyType};
use nbd_proto::{InvalidRequest, NoSession};

use super::{Error, LostReason};
use crate::command_text::CommandText;
use crate::counted;

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Protocol(error) => error.fmt(f),
            Self::ShuttingDown => {
                f.write_str("the server is shutting down, or has sent this client away")
            }
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
                    "the request was sent, and whether it was carried out is unknown"
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
        assert!(lost(true).to_string().contains("whether it was carried out"));
        assert!(lost(false).to_string().contains("was not sent"));
    }
}
