//! Why a connection ended.

use core::time::Duration;
use std::io;

use crate::export::Refusal;

/// Why a connection ended otherwise than by the client's disconnect.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The transport failed.
    Transport(io::Error),
    /// The client broke the protocol or exceeded a limit, or asked for an export in a way that leaves no room for an
    /// error.
    Protocol(nbd_proto::Error),
    /// TLS can't begin on this side.
    #[cfg(feature = "tls")]
    Tls(crate::tls::TlsError),
    /// The client proved to be none of those that are allowed; its names.
    #[cfg(feature = "tls")]
    NotAllowed(Vec<String>),
    /// The client took too long to choose an export.
    HandshakeTimeout(Duration),
    /// The client took too long to send the rest of a request that it had begun.
    ReceiveStalled(Duration),
    /// The client took too long to receive its replies.
    SendStalled(Duration),
    /// The client was idle while another one waited for a place among the connections.
    Displaced(Duration),
    /// The client is gone while its requests were being carried out.
    PeerGone,
    /// Requests were still in flight when the time to shut down was over.
    DrainTimeout(Duration),
    /// The export that oldstyle clients get was refused to this one.
    ExportRefused {
        /// The name of the export.
        name: String,
        /// Why it was refused.
        refusal: Refusal,
    },
    /// The export can't be served to oldstyle clients.
    Oldstyle(nbd_proto::server::OldstyleUnfit),
    /// The engine misused the core: a fault of this crate, please report it.
    Internal(nbd_proto::Misuse),
}

impl core::fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Transport(error) => write!(f, "the connection failed: {error}"),
            Self::Protocol(error) => error.fmt(f),
            #[cfg(feature = "tls")]
            Self::Tls(error) => error.fmt(f),
            #[cfg(feature = "tls")]
            Self::NotAllowed(names) if names.is_empty() => {
                f.write_str("the client showed no certificate, and only some clients are allowed")
            }
            #[cfg(feature = "tls")]
            Self::NotAllowed(names) => {
                write!(f, "a client with the name {} is not allowed", names.join(", "))
            }
            Self::HandshakeTimeout(limit) => {
                write!(f, "no export was chosen within {limit:?}")
            }
            Self::ReceiveStalled(limit) => {
                write!(f, "the client did not go on with sending its request for {limit:?}")
            }
            Self::SendStalled(limit) => {
                write!(f, "the client did not go on with receiving its replies for {limit:?}")
            }
            Self::Displaced(limit) => write!(
                f,
                "the client was idle for {limit:?} while another one waited for a free connection"
            ),
            Self::PeerGone => f.write_str("the client is gone, its requests were given up"),
            Self::DrainTimeout(limit) => {
                write!(f, "requests were still in flight {limit:?} after the shutdown began")
            }
            Self::ExportRefused { name, refusal } => {
                write!(f, "an oldstyle client can't have the export '{name}': {refusal}")
            }
            Self::Oldstyle(unfit) => unfit.fmt(f),
            Self::Internal(misuse) => write!(f, "a fault in nbd-engine: {misuse}"),
        }
    }
}

impl core::error::Error for ConnectionError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Transport(error) => Some(error),
            Self::Protocol(error) => Some(error),
            Self::Internal(misuse) => Some(misuse),
            Self::Oldstyle(unfit) => Some(unfit),
            Self::ExportRefused { refusal, .. } => Some(refusal),
            #[cfg(feature = "tls")]
            Self::Tls(error) => Some(error),
            #[cfg(feature = "tls")]
            Self::NotAllowed(_) => None,
            Self::HandshakeTimeout(_)
            | Self::ReceiveStalled(_)
            | Self::SendStalled(_)
            | Self::Displaced(_)
            | Self::PeerGone
            | Self::DrainTimeout(_) => None,
        }
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Transport(error)
    }
}

impl From<nbd_proto::Error> for ConnectionError {
    fn from(error: nbd_proto::Error) -> Self {
        Self::Protocol(error)
    }
}

impl From<nbd_proto::server::OldstyleUnfit> for ConnectionError {
    fn from(unfit: nbd_proto::server::OldstyleUnfit) -> Self {
        Self::Oldstyle(unfit)
    }
}

impl From<nbd_proto::Misuse> for ConnectionError {
    fn from(misuse: nbd_proto::Misuse) -> Self {
        Self::Internal(misuse)
    }
}
