//! The client at the other end of a connection, as exports learn of it.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::net::AddressFamily;

/// A client: where it connects from, and what is known of its identity.
///
/// Handed to [`Exports`](super::Exports) with each question, and to [`Export`](super::Export) when the client enters
/// and leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientInfo {
    /// Numbers the connections of a server, from 0 on. No two connections of one process's server share a number.
    pub connection: u64,
    /// The address of the client.
    pub peer: PeerAddr,
    /// What the client proved of itself by TLS; `None` without TLS, and inside of a TLS stream that the embedder brought
    /// and the server can't look into.
    pub tls: Option<TlsIdentity>,
}

impl ClientInfo {
    /// A client without TLS. The engine makes one for each connection; others are for tests.
    #[must_use]
    pub const fn new(connection: u64, peer: PeerAddr) -> Self {
        Self { connection, peer, tls: None }
    }
}

/// The identity that a client proved during the TLS handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsIdentity {
    /// The subject alternative names of the client's certificate (host names, addresses, mail addresses and URIs), its
    /// common name if it has none, or the user of a pre-shared key. Empty if the client showed nothing.
    pub names: Vec<String>,
    /// The client's certificates, each in DER, its own first. Empty if it sent none.
    pub certificates: Vec<Vec<u8>>,
}

impl TlsIdentity {
    /// Whether any of the names matches any of the patterns, in which `*` stands for any number of characters, without
    /// regard to ASCII case.
    #[must_use]
    pub fn matches<P: AsRef<str>>(&self, patterns: &[P]) -> bool {
        self.names.iter().any(|name| patterns.iter().any(|pattern| matches(pattern.as_ref(), name)))
    }
}

/// Whether `name` as a whole matches `pattern`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            match rest.find(middle) {
                Some(start) => rest = &rest[start + middle.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

/// The address of a peer. Its `Display` is what log events carry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerAddr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket, with the identity of the process that connected where the system reports it.
    Unix(Option<UnixPeer>),
    /// A stream of any other kind, with a text that names it in log events.
    Other(Cow<'static, str>),
}

impl PeerAddr {
    /// The peer of a connected TCP socket; `Other` if the system does not report its address, as that of a client that
    /// is gone.
    #[must_use]
    pub fn tcp(socket: &impl AsFd) -> Self {
        let address = rustix::net::getpeername(socket).ok().flatten();
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        address.map_or_else(|| "tcp".into(), Self::Tcp)
    }

    /// The peer of a connected socket of any kind: [`tcp`](Self::tcp), [`unix`](Self::unix), or `Other`.
    #[must_use]
    pub fn of(socket: &impl AsFd) -> Self {
        match rustix::net::sockopt::socket_domain(socket) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => Self::tcp(socket),
            Ok(AddressFamily::UNIX) => Self::unix(socket),
            _ => "stream".into(),
        }
    }

    /// The peer of a connected Unix socket, with its credentials (`SO_PEERCRED`) where the system reports them.
    #[must_use]
    pub fn unix(socket: &impl AsFd) -> Self {
        Self::Unix(UnixPeer::of(socket))
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(None) => f.write_str("unix socket"),
            Self::Unix(Some(peer)) => {
                write!(f, "unix socket (uid {}, pid {})", peer.uid, peer.pid)
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<SocketAddr> for PeerAddr {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<String> for PeerAddr {
    fn from(text: String) -> Self {
        Self::Other(text.into())
    }
}

impl From<&'static str> for PeerAddr {
    fn from(text: &'static str) -> Self {
        Self::Other(text.into())
    }
}

/// The process at the other end of a Unix socket, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnixPeer {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The process; 0 if it lives where this process can't see it, in another container for instance.
    pub pid: i32,
}

impl UnixPeer {
    #[cfg(target_os = "linux")]
    fn of(socket: &impl AsFd) -> Option<Self> {
        let credentials = rustix::net::sockopt::socket_peercred(socket).ok()?;
        Some(Self {
            uid: credentials.uid.as_raw(),
            gid: credentials.gid.as_raw(),
            pid: rustix::process::Pid::as_raw(Some(credentials.pid)),
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn of(_socket: &impl AsFd) -> Option<Self> {
        None
    }
}

/// Why a client's use of an export ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client disconnected in order (`NBD_CMD_DISC`).
    Disconnected,
    /// The stream ended without a word from the client.
    Vanished,
    /// The connection failed: the transport broke, or the client broke the protocol. The text says how.
    Failed(String),
    /// The server shut down, or the export answered with `ESHUTDOWN`.
    ShutDown,
    /// The connection was dropped by this program while it was in use.
    Dropped,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disconnected => f.write_str("the client disconnected"),
            Self::Vanished => f.write_str("the client hung up"),
            Self::Failed(text) => f.write_str(text),
            Self::ShutDown => f.write_str("the server shut down"),
            Self::Dropped => f.write_str("the server dropped the connection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_peer_is_known_by_its_process() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let PeerAddr::Unix(peer) = PeerAddr::unix(&socket) else { panic!("not a unix socket") };
        #[cfg(target_os = "linux")]
        assert_eq!(peer.unwrap().pid.unsigned_abs(), std::process::id());
        #[cfg(not(target_os = "linux"))]
        assert_eq!(peer, None);
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("a.example", "a.example", true),
            ("A.example", "a.EXAMPLE", true),
            ("a.example", "b.a.example", false),
            ("a.example", "a.example.org", false),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", true),
            ("*.example", "example", false),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "acd", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("spiffe://x/*", "spiffe://x/y", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
