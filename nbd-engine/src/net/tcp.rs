//! TCP listeners and streams.

use std::io;
use std::net::{SocketAddrV6, TcpListener, ToSocketAddrs};
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections that the system holds until they are accepted. The system may lower it.
const BACKLOG: i32 = 1024;

/// Listens on a TCP address, non-blocking.
///
/// # Errors
/// Those of the platform, with the address in their text.
pub fn bind_tcp(address: impl ToSocketAddrs + core::fmt::Display) -> io::Result<TcpListener> {
    let bind = || {
        let listener = TcpListener::bind(&address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|error| super::cannot_listen(&address, &error))
}

/// Listens on an IPv6 address and never on IPv4, non-blocking.
///
/// On most systems a listener on `[::]` takes the IPv4 connections of its port, too, so that no other can listen on
/// `0.0.0.0`, or on any IPv4 address, with the same port. With this one both can.
///
/// # Errors
/// Those of the platform, with the address in their text.
pub fn bind_tcp_v6only(address: SocketAddrV6) -> io::Result<TcpListener> {
    let bind = || -> io::Result<TcpListener> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, kind) = (AddressFamily::INET6, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        // As the standard library does: a server can start again while its old connections linger.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket.into())
    };
    bind().map_err(|error| super::cannot_listen(address, &error))
}

/// Sets up a TCP stream: small messages leave at once, as the specification asks (B-CONV-05), and a peer that vanished
/// without a word is noticed some time.
///
/// # Errors
/// Those of the platform.
pub fn tune_tcp(stream: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&stream, true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

    use super::*;

    #[test]
    fn both_wildcard_addresses_can_be_listened_on() {
        let v6 = match bind_tcp_v6only(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("SKIPPED: no IPv6 here ({error})");
                return;
            }
        };
        let port = v6.local_addr().unwrap().port();
        let v4 = bind_tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        for (listener, address) in [
            (&v4, SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            (&v6, (Ipv6Addr::LOCALHOST, port).into()),
        ] {
            listener.set_nonblocking(false).unwrap();
            let client = TcpStream::connect(address).unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        }
    }

    #[test]
    fn an_address_in_use_is_named() {
        let taken = bind_tcp("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind_tcp(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
