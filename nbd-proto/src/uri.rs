//! NBD URIs, which name an export and the way to it (document "The NBD Uniform Resource Indicator (URI) format").

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv6Addr;
use core::str::FromStr;

use crate::wire::{DEFAULT_PORT, MAX_STRING};

mod debug;
mod parse;
mod percent;

pub use parse::UriError;
use percent::Encoded;

/// An export on a server, and how to get there: an NBD URI, taken apart and checked.
///
/// What can be constructed can be printed, and what is printed is parsed to an equal value. Where the URI document
/// leaves a choice: no host means `localhost` (for vsock the host, CID 2); a host or port in a `unix` URI is an error,
/// a user is not; unknown query parameters are errors. Beyond that document, `vsock` schemes and the
/// parameters `tls-certificates` and `tls-psk-file`, which are in common use, are understood.
///
/// ```
/// use nbd_proto::{Address, Uri};
/// let uri: Uri = "nbds://alice@example.com/my%20disk?tls-type=psk".parse()?;
/// assert_eq!(*uri.address(), Address::Tcp { host: "example.com".into(), port: 10809 });
/// assert_eq!((uri.export(), uri.user(), uri.requires_tls()), ("my disk", Some("alice"), true));
/// assert_eq!(uri.to_string(), "nbds://alice@example.com/my%20disk?tls-type=psk");
///
/// let uri = Uri::unix("/run/nbd.sock")?.with_export("disk")?;
/// assert_eq!(uri.to_string(), "nbd+unix:///disk?socket=/run/nbd.sock");
/// # Ok::<(), nbd_proto::UriError>(())
/// ```
// C-URI-11, C-URI-14
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri {
    requires_tls: bool,
    address: Address,
    user: Option<String>,
    export: String,
    tls: TlsParameters,
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// `nbd` and `nbds`.
    Tcp {
        /// A name or an IP address. An IPv6 address has no brackets here, and may have a zone behind a `%`.
        host: String,
        /// The port; [`DEFAULT_PORT`] if the URI has none.
        // C-URI-05
        port: u16,
    },
    /// `nbd+unix` and `nbds+unix`.
    Unix {
        /// The socket's path, or its abstract name behind a NUL. Never empty.
        // C-URI-08
        socket: Vec<u8>,
    },
    /// `nbd+vsock` and `nbds+vsock`.
    Vsock {
        /// The context identifier of the machine; 2 is the host.
        cid: u32,
        /// The port; [`DEFAULT_PORT`] if the URI has none.
        port: u32,
    },
}

/// What a URI says about TLS. Paths are bytes without NUL.
// C-URI-09
#[derive(Clone, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TlsParameters {
    /// `tls-type`.
    pub kind: Option<TlsType>,
    /// `tls-hostname`: the name to verify the server's certificate against.
    pub hostname: Option<String>,
    /// `tls-verify-peer`. Without it, verify if there is something to verify against.
    // C-URI-10
    pub verify_peer: Option<bool>,
    /// `tls-certificates`: a directory of certificates and keys.
    pub certificates: Option<Vec<u8>>,
    /// `tls-psk-file`: a file of user names and keys.
    pub psk_file: Option<Vec<u8>>,
}

/// How the sides of a TLS session prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsType {
    /// `anon`: not at all.
    Anonymous,
    /// `x509`: by certificates.
    X509,
    /// `psk`: by keys that both know.
    Psk,
}

impl TlsType {
    const ALL: [(Self, &str); 3] =
        [(Self::Anonymous, "anon"), (Self::X509, "x509"), (Self::Psk, "psk")];

    /// The name in URIs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anon",
            Self::X509 => "x509",
            Self::Psk => "psk",
        }
    }
}

/// The CID of the machine that a virtual machine runs on.
const VSOCK_HOST: u32 = 2;

impl Uri {
    fn new(address: Address) -> Self {
        let (user, tls) = (None, TlsParameters::default());
        Self { requires_tls: false, address, user, export: String::new(), tls }
    }

    /// The default export of a TCP server. An IPv6 address has no brackets; see [`Address::Tcp`].
    ///
    /// # Errors
    /// [`UriError::BadHost`] when that is neither a name nor an address, [`UriError::BadPort`] for port 0.
    pub fn tcp(host: &str, port: u16) -> Result<Self, UriError> {
        let host = parse::host(host, 0)?;
        let port = if port == 0 { return Err(parse::bad_tcp_port("0", 0)) } else { port };
        Ok(Self::new(Address::Tcp { host, port }))
    }

    /// The default export of a server on a Unix domain socket: its path, or its abstract name behind a NUL.
    ///
    /// # Errors
    /// [`UriError::MissingSocket`] when it is empty, [`UriError::Nul`] when a path contains NUL.
    pub fn unix(socket: impl Into<Vec<u8>>) -> Result<Self, UriError> {
        let socket = parse::socket(socket.into())?;
        Ok(Self::new(Address::Unix { socket }))
    }

    /// The default export of a server on a virtual machine socket: a context identifier, of which 2 is the host, and a
    /// port.
    #[must_use]
    pub fn vsock(cid: u32, port: u32) -> Self {
        Self::new(Address::Vsock { cid, port })
    }

    /// The same server, but this export.
    ///
    /// # Errors
    /// [`UriError::Nul`] or [`UriError::TooLong`] when the name can't be one.
    // C-URI-15
    pub fn with_export(mut self, export: impl Into<String>) -> Result<Self, UriError> {
        self.export = parse::text(export.into(), "export name", MAX_STRING)?;
        Ok(self)
    }

    /// The same, but for this TLS user; none if it is empty.
    ///
    /// # Errors
    /// [`UriError::Nul`] or [`UriError::TooLong`] when the name can't be one.
    pub fn with_user(mut self, user: impl Into<String>) -> Result<Self, UriError> {
        let user = parse::text(user.into(), "user", MAX_STRING)?;
        self.user = Some(user).filter(|user| !user.is_empty());
        Ok(self)
    }

    /// The same, but TLS is required, or is not.
    #[must_use]
    pub const fn with_tls_required(mut self, required: bool) -> Self {
        self.requires_tls = required;
        self
    }

    /// The same, but with these TLS parameters.
    ///
    /// # Errors
    /// [`UriError::Nul`] when a path or the host name contains NUL, [`UriError::TooLong`] for a host name of more than
    /// 4096 bytes.
    pub fn with_tls(mut self, tls: TlsParameters) -> Result<Self, UriError> {
        for path in [&tls.certificates, &tls.psk_file].into_iter().flatten() {
            parse::no_nul(path, "path")?;
        }
        if let Some(hostname) = &tls.hostname {
            parse::text(hostname.clone(), "tls-hostname", MAX_STRING)?;
        }
        self.tls = tls;
        Ok(self)
    }

    /// Where the server listens.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// The export's name; empty for the default one.
    // C-URI-07
    #[must_use]
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The TLS user, if there is one.
    // C-URI-12
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Whether there must be no connection without TLS: the `nbds` schemes.
    // C-URI-03
    #[must_use]
    pub const fn requires_tls(&self) -> bool {
        self.requires_tls
    }

    /// TLS parameters.
    #[must_use]
    pub const fn tls(&self) -> &TlsParameters {
        &self.tls
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        parse::uri(uri)
    }
}

/// In its shortest form; with `{:#}` the port is there even if it is the usual one, and so is the slash behind it.
impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.requires_tls { "nbds" } else { "nbd" })?;
        f.write_str(match self.address {
            Address::Tcp { .. } => "://",
            Address::Unix { .. } => "+unix://",
            Address::Vsock { .. } => "+vsock://",
        })?;
        if let Some(user) = &self.user {
            write!(f, "{}@", Encoded::user(user))?;
        }
        match &self.address {
            Address::Tcp { host, port } => {
                match host.split_once('%') {
                    Some((address, zone)) => {
                        write!(f, "[{address}%25{}]", Encoded::strict(zone))?;
                    }
                    None if host.contains(':') => write!(f, "[{host}]")?,
                    None => write!(f, "{}", Encoded::strict(host))?,
                }
                if *port != DEFAULT_PORT || f.alternate() {
                    write!(f, ":{port}")?;
                }
            }
            Address::Vsock { cid, port } => {
                write!(f, "{cid}")?;
                if *port != u32::from(DEFAULT_PORT) || f.alternate() {
                    write!(f, ":{port}")?;
                }
            }
            Address::Unix { .. } => {}
        }
        let mut query = Query(false);
        let slash = f.alternate() || matches!(self.address, Address::Unix { .. });
        if !self.export.is_empty() || slash {
            write!(f, "/{}", Encoded::path(&self.export))?;
        }
        if let Address::Unix { socket } = &self.address {
            query.parameter(f, "socket", socket)?;
        }
        let TlsParameters { kind, hostname, verify_peer, certificates, psk_file } = &self.tls;
        if let Some(kind) = kind {
            query.parameter(f, "tls-type", kind.name().as_bytes())?;
        }
        if let Some(hostname) = hostname {
            query.parameter(f, "tls-hostname", hostname.as_bytes())?;
        }
        if let Some(verify) = verify_peer {
            query.parameter(f, "tls-verify-peer", if *verify { b"1" } else { b"0" })?;
        }
        if let Some(path) = certificates {
            query.parameter(f, "tls-certificates", path)?;
        }
        if let Some(path) = psk_file {
            query.parameter(f, "tls-psk-file", path)?;
        }
        Ok(())
    }
}

/// The query as it is printed, and whether it has begun.
struct Query(bool);

impl Query {
    fn parameter(&mut self, f: &mut fmt::Formatter<'_>, name: &str, value: &[u8]) -> fmt::Result {
        let separator = if core::mem::replace(&mut self.0, true) { '&' } else { '?' };
        write!(f, "{separator}{name}={}", Encoded::query(value))
    }
}

#[cfg(test)]
mod tests;
