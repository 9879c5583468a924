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
    /// The TLS handshake failed, or the connection did during it.
    #[cfg(feature = "tls")]
    TlsHandshake(io::Error),
    /// The client proved to be none of those that are allowed; its names.
    #[cfg(feature = "tls")]
    NotAllowed(Vec<String>),
    /// The server had as many connections as it may have, for as long as a connection waits for another one to end.
    ServerFull {
        /// The maximum: [`ServerConfig::with_max_connections`](super::ServerConfig::with_max_connections).
        max_connections: usize,
        /// How long this connection waited:
        /// [`ServerConfig::with_admission_timeout`](super::ServerConfig::with_admission_timeout).
        waited: Duration,
    },
    /// The server had begun to shut down before it took this connection.
    ShuttingDown,
    /// The client took too long to choose an export.
    HandshakeTimeout(Duration),
    /// The client took too long to send the rest of a request that it had begun.
    ReceiveStalled(Stall),
    /// The client took too long to receive its replies.
    SendStalled(Stall),
    /// The client was idle while another one waited for a slot among the connections.
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

/// A transfer that went on too slowly, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stall {
    /// How long it was too slow.
    pub time: Duration,
    /// Bytes that were moved meanwhile.
    pub bytes: u64,
    /// Bytes per second that were required. With 0, a single byte would have sufficed.
    pub min_rate: u64,
}

impl Stall {
    /// Says what the client, which was to go on with `what`, did instead.
    fn describe(&self, f: &mut core::fmt::Formatter<'_>, what: &str) -> core::fmt::Result {
        let Self { time, bytes, min_rate } = self;
        // More than needed of it says nothing.
        let time = Duration::from_millis(time.as_millis().try_into().unwrap_or(u64::MAX));
        if *bytes == 0 {
            return write!(f, "the client did not go on with {what} for {time:?}");
        }
        let rate = u128::from(*bytes) * 1000 / time.as_millis().max(1);
        let rate = Rate(rate.try_into().unwrap_or(u64::MAX));
        write!(
            f,
            "the client was too slow at {what}: {rate} over {time:?}, the minimum is {}",
            Rate(*min_rate)
        )
    }
}

/// Bytes per second, for people.
struct Rate(u64);

impl core::fmt::Display for Rate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            bytes if bytes < 1 << 10 => write!(f, "{bytes} bytes/s"),
            bytes => write!(f, "{}.{} KiB/s", bytes >> 10, ((bytes & 1023) * 10) >> 10),
        }
    }
}

impl core::fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Transport(error) => write!(f, "the connection failed: {error}"),
            #[cfg(feature = "tls")]
            Self::TlsHandshake(error) => write!(f, "the connection failed: {error}"),
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
            Self::ServerFull { max_connections, waited } => write!(
                f,
                "the server is full: it had {max_connections} connections, the maximum, for {waited:?}; allow more"
            ),
            Self::ShuttingDown => {
                f.write_str("the server shuts down, and takes no more connections")
            }
            Self::HandshakeTimeout(limit) => {
                write!(f, "no export was chosen within {limit:?}")
            }
            Self::ReceiveStalled(stall) => stall.describe(f, "sending its request"),
            Self::SendStalled(stall) => stall.describe(f, "receiving its replies"),
            Self::Displaced(limit) => write!(
                f,
                "the client was idle for {limit:?} while another one waited for a free connection"
            ),
            Self::PeerGone => f.write_str("the client is gone, its requests were given up"),
            Self::DrainTimeout(limit) => {
                write!(f, "requests were still in flight {limit:?} after the shutdown began")
            }
            Self::ExportRefused { name, refusal } => {
                f.write_str("an oldstyle client can't have the ")?;
                match name.as_str() {
                    "" => f.write_str("default export")?,
                    name => write!(f, "export '{name}'")?,
                }
                write!(f, ": {refusal}")
            }
            Self::Oldstyle(unfit) => unfit.fmt(f),
            Self::Internal(misuse) => {
                write!(f, "a fault in nbd-engine, please report it: {misuse}")
            }
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
            Self::TlsHandshake(error) => Some(error),
            #[cfg(feature = "tls")]
            Self::NotAllowed(_) => None,
            Self::ServerFull { .. }
            | Self::ShuttingDown
            | Self::HandshakeTimeout(_)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_described_by_what_the_client_did() {
        let stall = |bytes| Stall { time: Duration::from_secs(60), bytes, min_rate: 16 << 10 };
        let text = |bytes| ConnectionError::ReceiveStalled(stall(bytes)).to_string();
        assert_eq!(text(0), "the client did not go on with sending its request for 60s");
        assert_eq!(
            text(60 * 12_800),
            "the client was too slow at sending its request: 12.5 KiB/s over 60s, the minimum is 16.0 KiB/s"
        );
        let text = ConnectionError::SendStalled(stall(60 * 10)).to_string();
        assert!(text.contains("receiving its replies: 10 bytes/s over 60s"), "{text}");
    }
}
