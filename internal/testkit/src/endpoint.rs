//! Where a server listens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
    /// A server that requires TLS.
    Tls {
        /// Where it listens.
        address: Box<Self>,
        /// A folder with the certificate of the authority, `ca-cert.pem`, that issued the server's for `localhost`.
        certificates: PathBuf,
    },
}

impl Endpoint {
    /// The socket: the address, without what it is spoken to in.
    pub fn socket(&self) -> &Self {
        match self {
            Self::Tls { address, .. } => address.socket(),
            Self::Tcp(_) | Self::Unix(_) => self,
        }
    }

    /// Reads the URI of a listener: `nbd://127.0.0.1:10809/` or `nbd+unix:///?socket=PATH`, or the same with `nbds`.
    ///
    /// Only numeric addresses and the default export: it is for what a server says of itself.
    pub fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("nbds").or_else(|| uri.strip_prefix("nbd"))?;
        if let Some(query) = rest.strip_prefix("+unix:///?socket=") {
            return Some(Self::Unix(PathBuf::from(percent_decode(query)?)));
        }
        let address = rest.strip_prefix("://")?;
        address.strip_suffix('/').unwrap_or(address).parse().ok().map(Self::Tcp)
    }

    /// The URI of an export at this address. `export` may hold any character.
    pub fn uri(&self, export: &str) -> String {
        let path = percent_encode(export);
        match self {
            Self::Tcp(address) => format!("nbd://{address}/{path}"),
            Self::Unix(socket) => {
                format!("nbd+unix:///{path}?socket={}", percent_encode(&socket.to_string_lossy()))
            }
            Self::Tls { address, certificates } => {
                let certificates = certificates.to_string_lossy();
                let parameters =
                    [("tls-certificates", &*certificates), ("tls-hostname", "localhost")];
                address.tls_uri(None, export, &parameters)
            }
        }
    }

    /// The URI of an export at this address that means TLS, reached as `localhost`. `parameters` are names and values.
    pub fn tls_uri(&self, user: Option<&str>, export: &str, parameters: &[(&str, &str)]) -> String {
        let user_part = user.map(|user| format!("{user}@")).unwrap_or_default();
        let path = percent_encode(export);
        let (mut uri, mut separator) = match self {
            Self::Tcp(address) => {
                (format!("nbds://{user_part}localhost:{}/{path}", address.port()), '?')
            }
            Self::Unix(socket) => {
                let socket = percent_encode(&socket.to_string_lossy());
                (format!("nbds+unix://{user_part}/{path}?socket={socket}"), '&')
            }
            Self::Tls { address, .. } => return address.tls_uri(user, export, parameters),
        };
        for (name, value) in parameters {
            uri.push_str(&format!("{separator}{name}={}", percent_encode(value)));
            separator = '&';
        }
        uri
    }

    /// The path of a Unix socket.
    pub fn socket_path(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
            Self::Tls { address, .. } => address.socket_path(),
        }
    }
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_of_both_transports_are_read() {
        assert_eq!(
            Endpoint::parse("nbd://127.0.0.1:1234/"),
            Some(Endpoint::Tcp(([127, 0, 0, 1], 1234).into()))
        );
        assert_eq!(
            Endpoint::parse("nbd+unix:///?socket=/tmp/a%20b"),
            Some(Endpoint::Unix("/tmp/a b".into()))
        );
        assert_eq!(
            Endpoint::parse("nbds+unix:///?socket=/tmp/a"),
            Some(Endpoint::Unix("/tmp/a".into()))
        );
        for bad in ["", "listening on port 3", "nbd://", "nbd+unix:///?socket=%4"] {
            assert_eq!(Endpoint::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn uris_for_tls_have_their_parameters_and_a_user() {
        let unix = Endpoint::Unix("/tmp/s".into());
        assert_eq!(
            unix.tls_uri(Some("eve"), "x", &[("tls-psk-file", "/k")]),
            "nbds+unix://eve@/x?socket=/tmp/s&tls-psk-file=/k"
        );
        let tcp = Endpoint::Tcp(([127, 0, 0, 1], 5).into());
        assert_eq!(tcp.tls_uri(None, "", &[("a", "b")]), "nbds://localhost:5/?a=b");
        let tls = Endpoint::Tls { address: Box::new(unix), certificates: "/pki".into() };
        assert_eq!(
            tls.uri("x"),
            "nbds+unix:///x?socket=/tmp/s&tls-certificates=/pki&tls-hostname=localhost"
        );
        assert_eq!(tls.socket_path(), Some(Path::new("/tmp/s")));
    }

    #[test]
    fn export_names_are_escaped() {
        let unix = Endpoint::Unix("/tmp/s".into());
        assert_eq!(unix.uri("a b?"), "nbd+unix:///a%20b%3F?socket=/tmp/s");
        let tcp = Endpoint::Tcp(([127, 0, 0, 1], 5).into());
        assert_eq!(tcp.uri(""), "nbd://127.0.0.1:5/");
    }
}
