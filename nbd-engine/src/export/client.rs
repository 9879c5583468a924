//! The client at the other end of a connection, as exports learn of it.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::net::AddressFamily;

use super::rate_limit::Shares;

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
    /// What the client proved of itself by TLS; `None` without TLS. Of a TLS stream that the embedder brought it is what
    /// the embedder said of the [`Peer`].
    pub tls: Option<TlsIdentity>,
    pub(super) shares: Shares,
}

impl ClientInfo {
    /// A client without TLS. The engine makes one for each connection; others are for tests.
    #[must_use]
    pub const fn new(connection: u64, peer: PeerAddr) -> Self {
        Self { connection, peer, tls: None, shares: Shares::new() }
    }
}

/// The identity that a client proved during the TLS handshake.
///
/// `{:?}` shows of its certificates how many bytes they have.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsIdentity {
    /// The subject alternative names of the client's certificate (host names, addresses, mail addresses and URIs), its
    /// common name if it has none, or the user of a pre-shared key. Empty if the client showed nothing.
    pub names: Vec<String>,
    /// The client's certificates, each in DER, its own first. Empty if it sent none.
    pub certificates: Vec<Vec<u8>>,
}

impl TlsIdentity {
    /// Whether any of the names matches any of the patterns, in which `*` stands for any number of characters.
    ///
    /// Host names and common names of a client with [certificates](Self::certificates) are compared without regard to ASCII
    /// case, as the DNS does. Users of pre-shared keys, mail addresses and URIs are identities in which case counts, and are
    /// compared exactly. Without a certificate every name counts as that of such a user: whoever makes an identity of a
    /// certificate adds that, too.
    #[must_use]
    pub fn matches<P: AsRef<str>>(&self, patterns: &[P]) -> bool {
        // Whoever has a name and no certificate has it by a pre-shared key.
        let is_user = self.certificates.is_empty();
        self.names.iter().any(|name| {
            let exact = is_user || name.contains(['@', '/']);
            patterns.iter().any(|pattern| matches(pattern.as_ref(), name, exact))
        })
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<usize> = self.certificates.iter().map(Vec::len).collect();
        f.debug_struct("TlsIdentity")
            .field("names", &self.names)
            .field("certificates (bytes)", &lengths)
            .finish()
    }
}

/// Whether `name` as a whole matches `pattern`, with regard to case or without.
fn matches(pattern: &str, name: &str, exact: bool) -> bool {
    if !exact {
        return matches(&pattern.to_ascii_lowercase(), &name.to_ascii_lowercase(), true);
    }
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

/// What the embedder knows of the client at the other end of a stream that it hands over.
///
/// ```
/// use nbd_engine::export::{Peer, TlsIdentity};
///
/// // A stream inside of TLS, whose handshake the embedder has made.
/// # let certificate_in_der = Vec::new();
/// let mut identity = TlsIdentity::default();
/// identity.names.push("backup.example.org".into());
/// identity.certificates.push(certificate_in_der);
/// let peer = Peer::new("192.0.2.7:1234".to_owned()).with_tls(identity);
/// assert!(peer.tls.is_some());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Its address, for exports and the log.
    pub address: PeerAddr,
    /// What it proved by TLS, if the stream runs inside of TLS already.
    pub tls: Option<TlsIdentity>,
}

impl Peer {
    /// A client in the clear: an address, or a text that names the stream.
    #[must_use]
    pub fn new(address: impl Into<PeerAddr>) -> Self {
        Self { address: address.into(), tls: None }
    }

    /// The same inside of TLS, by a layer that the embedder brings and the server does not look into. `identity` is what
    /// the client proved, which is [the default](TlsIdentity::default) if it showed nothing.
    ///
    /// Such a client has what a client has after `NBD_OPT_STARTTLS`: exports
    /// [that require TLS](super::ExportEntry::with_tls_required) are open to it, also on a server whose clients must use
    /// TLS, as far as the server's list of allowed names admits the identity.
    #[must_use]
    pub fn with_tls(mut self, identity: TlsIdentity) -> Self {
        self.tls = Some(identity);
        self
    }
}

impl From<PeerAddr> for Peer {
    fn from(address: PeerAddr) -> Self {
        Self::new(address)
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::new(address)
    }
}

impl From<String> for Peer {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&'static str> for Peer {
    fn from(text: &'static str) -> Self {
        Self::new(text)
    }
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
    /// The server shut down, the export was [withdrawn](super::Withdrawal), or it answered with `ESHUTDOWN`; also when the
    /// client, which learns of it, was the first to leave in order.
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
            Self::ShutDown => f.write_str("the server shut down, or the export was withdrawn"),
            Self::Dropped => f.write_str("the server dropped the connection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_in_a_log_has_names_but_not_the_bytes_of_certificates() {
        let identity = TlsIdentity { names: vec!["a".into()], certificates: vec![vec![7; 900]] };
        let text = format!("{identity:?}");
        assert_eq!(text, r#"TlsIdentity { names: ["a"], certificates (bytes): [900] }"#);
    }

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
            ("A.example", "a.EXAMPLE", false),
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
            assert_eq!(matches(pattern, name, true), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn case_counts_in_identities_and_not_in_host_names() {
        let of = |name: &str, certificates| TlsIdentity { names: vec![name.into()], certificates };
        let by_certificate = |name| of(name, vec![vec![0]]);
        assert!(by_certificate("a.EXAMPLE").matches(&["A.example"]));
        assert!(by_certificate("Backup").matches(&["b*"]));
        for name in ["alice@example.org", "spiffe://x/alice"] {
            assert!(by_certificate(name).matches(&[name]));
            assert!(!by_certificate(name).matches(&[name.to_uppercase()]));
        }
        assert!(of("alice", Vec::new()).matches(&["al*"]));
        assert!(!of("Alice", Vec::new()).matches(&["alice", "al*"]));
    }
}
