//! The address that a server listens on.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nbd_proto::{Uri, UriError};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalAddr {
    /// A TCP address, with the actual port.
    Tcp(SocketAddr),
    /// The path of a Unix socket; empty for a socket without one.
    Unix(PathBuf),
    /// A virtual machine socket: a context identifier of this machine, or 2^32 - 1 for all of them, and the actual port.
    Vsock {
        /// The context identifier.
        cid: u32,
        /// The port.
        port: u32,
    },
}

/// The context identifier by which a machine reaches itself (`VMADDR_CID_LOCAL`).
const VSOCK_LOCAL: u32 = 1;

impl LocalAddr {
    /// The address of a TCP socket.
    #[must_use]
    pub const fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) | Self::Vsock { .. } => None,
        }
    }

    /// The path of a Unix socket; `None` for one without a path, too.
    #[must_use]
    pub fn unix(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) if !path.as_os_str().is_empty() => Some(path),
            _ => None,
        }
    }

    /// The URI of an export of this server; the default export if the name is empty. It parses back to this address: the
    /// zone of a link-local address is escaped, and a relative path is made absolute, since clients may run in another
    /// folder. That of a vsock socket for all identifiers has the one for clients on the same machine, 1: on other machines
    /// they use the identifier that the host gave this machine, or 2 for the host.
    ///
    /// # Errors
    /// [`UriError::MissingSocket`] for a socket without a path, [`UriError::Nul`] or [`UriError::TooLong`] for a name
    /// that no export can have.
    pub fn uri(&self, export: &str) -> Result<Uri, UriError> {
        let server = match self {
            Self::Tcp(SocketAddr::V6(address)) if address.scope_id() != 0 => {
                Uri::tcp(&format!("{}%{}", address.ip(), address.scope_id()), address.port())
            }
            Self::Tcp(address) => Uri::tcp(&address.ip().to_string(), address.port()),
            Self::Unix(path) => {
                // Fails for an empty path and without a current folder: then the path stays as it is.
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                Uri::unix(path.as_os_str().as_bytes())
            }
            Self::Vsock { cid: u32::MAX, port } => Ok(Uri::vsock(VSOCK_LOCAL, *port)),
            Self::Vsock { cid, port } => Ok(Uri::vsock(*cid, *port)),
        };
        server?.with_export(export)
    }
}

impl core::fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::Vsock { cid, port } => write!(f, "vsock {cid}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};
    use std::os::unix::ffi::OsStringExt;

    use nbd_proto::Address;
    use proptest::prelude::*;

    use super::*;

    fn tcp(text: &str) -> LocalAddr {
        LocalAddr::Tcp(text.parse().unwrap())
    }

    #[test]
    fn a_uri_names_the_address_and_escapes_what_it_has_to() {
        let printed = |address: &LocalAddr, export| format!("{:#}", address.uri(export).unwrap());
        assert_eq!(printed(&tcp("127.0.0.1:10809"), ""), "nbd://127.0.0.1:10809/");
        assert_eq!(printed(&tcp("[::1]:5"), "a/b c"), "nbd://[::1]:5/a/b%20c");
        assert_eq!(printed(&tcp("[fe80::1%1]:10809"), ""), "nbd://[fe80::1%251]:10809/");
        let unix = LocalAddr::Unix("/tmp/a b&c".into());
        assert_eq!(printed(&unix, ""), "nbd+unix:///?socket=/tmp/a%20b%26c");
        assert_eq!(printed(&unix, "d?"), "nbd+unix:///d%3F?socket=/tmp/a%20b%26c");
    }

    #[test]
    fn an_address_is_of_one_kind() {
        let address = tcp("[::1]:5");
        assert_eq!((address.tcp(), address.unix()), ("[::1]:5".parse().ok(), None));
        let address = LocalAddr::Unix("/tmp/nbd.sock".into());
        assert_eq!((address.tcp(), address.unix()), (None, Some(Path::new("/tmp/nbd.sock"))));
        let nowhere = LocalAddr::Unix(PathBuf::new());
        assert_eq!((nowhere.tcp(), nowhere.unix()), (None, None));
        let vsock = LocalAddr::Vsock { cid: 3, port: 10809 };
        assert_eq!((vsock.tcp(), vsock.unix()), (None, None));
        assert_eq!(vsock.to_string(), "vsock 3:10809");
        assert_eq!(format!("{:#}", vsock.uri("a").unwrap()), "nbd+vsock://3:10809/a");
        let anywhere = LocalAddr::Vsock { cid: u32::MAX, port: 5 };
        assert_eq!(anywhere.uri("").unwrap(), Uri::vsock(1, 5));
    }

    #[test]
    fn a_relative_path_is_made_absolute() {
        let uri = LocalAddr::Unix("nbd.sock".into()).uri("").unwrap();
        let path = std::env::current_dir().unwrap().join("nbd.sock");
        let socket = path.into_os_string().into_vec();
        assert_eq!(*uri.address(), Address::Unix { socket });
    }

    #[test]
    fn a_socket_without_a_path_has_no_uri() {
        assert_eq!(LocalAddr::Unix(PathBuf::new()).uri(""), Err(UriError::MissingSocket));
    }

    fn addresses() -> impl Strategy<Value = LocalAddr> {
        let port = 1_u16..;
        let v4 = (any::<Ipv4Addr>(), port.clone())
            .prop_map(|(ip, port)| LocalAddr::Tcp((ip, port).into()));
        let v6 = (any::<Ipv6Addr>(), port, prop_oneof![Just(0), any::<u32>()]).prop_map(
            |(ip, port, scope)| LocalAddr::Tcp(SocketAddrV6::new(ip, port, 0, scope).into()),
        );
        let unix = prop::collection::vec(1_u8.., 1..100).prop_map(|mut path| {
            path.insert(0, b'/');
            LocalAddr::Unix(OsString::from_vec(path).into())
        });
        prop_oneof![v4, v6, unix]
    }

    proptest! {
        #[test]
        fn every_printed_uri_parses_back_to_the_address(address in addresses(), export in "[^\0]{0,40}") {
            let printed = [
                address.uri(&export).unwrap().to_string(),
                format!("{:#}", address.uri(&export).unwrap()),
            ];
            for text in printed {
                let uri: Uri = text.parse().unwrap();
                prop_assert_eq!(uri.export(), &export);
                match (&address, uri.address()) {
                    (LocalAddr::Tcp(address), Address::Tcp { host, port }) => {
                        prop_assert_eq!(*port, address.port());
                        let (ip, zone) = host.split_once('%').unwrap_or((host, "0"));
                        prop_assert_eq!(ip.parse(), Ok(address.ip()));
                        let scope = match address {
                            SocketAddr::V4(_) => 0,
                            SocketAddr::V6(address) => address.scope_id(),
                        };
                        prop_assert_eq!(zone.parse(), Ok(scope));
                    }
                    (LocalAddr::Unix(path), Address::Unix { socket }) => {
                        // "/a//b" and "/a/./b" are the path that they are printed as.
                        let printed = PathBuf::from(OsString::from_vec(socket.clone()));
                        prop_assert_eq!(printed, std::path::absolute(path).unwrap());
                    }
                    _ => prop_assert!(false, "{}", text),
                }
            }
        }
    }
}
