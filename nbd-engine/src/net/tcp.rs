//! TCP listeners and streams.

use std::io;
use std::net::{SocketAddrV6, TcpListener, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::Duration;

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

/// How long a connection is silent before the peer's machine is asked whether it is still there. The system's default is
/// two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// How long it may take to answer that.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How often it is asked before the connection counts as lost.
const KEEPALIVE_PROBES: u32 = 4;

/// Sets up a TCP stream of a server or a client: small messages leave at once, as the specification asks (section
/// "Protocol phases"), and a connection whose peer vanished without a word is lost after two minutes of silence.
///
/// # Errors
/// Those of the platform.
pub fn tune_tcp(stream: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&stream, true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
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
    fn a_peer_that_vanishes_is_missed_within_minutes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        tune_tcp(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), KEEPALIVE_PROBES);
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
