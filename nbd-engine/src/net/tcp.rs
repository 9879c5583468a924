//! TCP listeners and streams.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::addresses::{self, Machine};

/// Listens on the TCP addresses of each of `hosts`, non-blocking: the addresses that a name resolves to, a single one, or
/// a list of the caller's.
///
/// All of them are listened on, unlike by [`TcpListener::bind`], which stops at the first that works: `localhost` is
/// 127.0.0.1 and ::1. Addresses with port 0 get one free port, the same for all. An address that occurs twice, or that
/// a wildcard address with the same port stands for, is listened on once; 0.0.0.0 and \[::\] can be listened on side by
/// side. An address whose family this machine does not have, such as ::1 where there is no IPv6, is left out as long as
/// its host has another one.
///
/// `backlog` is how many connections the system holds until they are accepted. The system may lower it.
///
/// # Errors
/// Those of the platform, with the address in their text; then nothing is listened on. [`io::ErrorKind::InvalidInput`]
/// when there is no address at all.
pub fn bind_tcp(hosts: &[impl AsRef<[SocketAddr]>], backlog: u32) -> io::Result<Vec<TcpListener>> {
    addresses::bind(hosts, &mut ThisMachine { backlog: Some(backlog) })
}

/// Listens on the addresses that a runtime's resolver found for one host. See [`bind_tcp`].
///
/// # Errors
/// Those of [`bind_tcp`] and, with what to do in the text, of the resolver.
pub fn bind_resolved(
    found: io::Result<impl IntoIterator<Item = SocketAddr>>,
    backlog: u32,
) -> io::Result<Vec<TcpListener>> {
    let addresses = found.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::InvalidInput => {
                "give a host and a port, such as \"127.0.0.1:10809\", \"[::1]:10809\" or (\"localhost\", DEFAULT_PORT)"
            }
            _ => "give an address of this machine, or a name that it knows",
        };
        io::Error::new(error.kind(), format!("cannot find the address to listen on: {error}; {remedy}"))
    })?;
    bind_tcp(&[Vec::from_iter(addresses)], backlog)
}

/// Finds out whether [`bind_tcp`] would succeed now. The addresses are bound for a moment, but not listened on, so that no
/// client is accepted, and no other server is kept from listening.
///
/// # Errors
/// Those of [`bind_tcp`].
pub fn check_tcp(hosts: &[impl AsRef<[SocketAddr]>]) -> io::Result<()> {
    addresses::bind(hosts, &mut ThisMachine { backlog: None }).map(drop)
}

/// The system's sockets.
struct ThisMachine {
    /// They are only bound without one.
    backlog: Option<u32>,
}

impl Machine for ThisMachine {
    type Listener = TcpListener;

    fn bind(&mut self, address: SocketAddr, v6_only: bool) -> io::Result<TcpListener> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // As the standard library does: a server can start again while its old connections linger.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if v6_only {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        rustix::net::bind(&socket, &address)?;
        if let Some(backlog) = self.backlog {
            super::start_listening(&socket, backlog)?;
        }
        Ok(socket.into())
    }

    fn local_addr(listener: &TcpListener) -> io::Result<SocketAddr> {
        listener.local_addr()
    }

    fn has_family_of(&mut self, address: SocketAddr) -> bool {
        let loopback: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
        };
        self.bind(loopback, false).is_ok()
    }
}

/// How long a connection is silent before the peer's machine is asked whether it is still there. The system's default is
/// two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// How long it may take to answer that.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How often it is asked before the connection counts as lost.
const KEEPALIVE_PROBES: u32 = 4;

/// How long the peer's machine may acknowledge nothing of what was sent, or take nothing in, before the connection counts
/// as lost. A machine that is gone is not asked by keepalive as long as there is something to be sent again, which systems
/// do for a quarter of an hour by default.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(300);

/// Sets up a TCP stream of a server or a client: small messages leave at once, as the specification asks (section
/// "Protocol phases"), and a connection whose peer vanished without a word is lost after two minutes of silence, or after
/// five if something was sent that the peer has not acknowledged.
///
/// # Errors
/// Those of the platform.
pub fn tune_tcp(stream: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&stream, true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT.as_millis() as u32)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, ToSocketAddrs};

    use super::*;

    fn has_ipv6() -> bool {
        let found = ThisMachine { backlog: Some(1) }.has_family_of((Ipv6Addr::LOCALHOST, 0).into());
        if !found {
            eprintln!("SKIPPED: no IPv6 here");
        }
        found
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Connects to each listener by `addresses`, which are without their port, and sees the client come there.
    fn assert_reached(listeners: &[TcpListener], addresses: &[&str]) {
        assert_eq!(listeners.len(), addresses.len(), "{listeners:?}");
        for (listener, address) in listeners.iter().zip(addresses) {
            let port = listener.local_addr().unwrap().port();
            let client = TcpStream::connect(format!("{address}:{port}")).unwrap();
            listener.set_nonblocking(false).unwrap();
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        }
    }

    #[test]
    fn both_wildcard_addresses_can_be_listened_on_with_one_port() {
        if !has_ipv6() {
            return;
        }
        for texts in [["0.0.0.0:0", "[::]:0"], ["[::]:0", "0.0.0.0:0"], ["[::]:0", "127.0.0.1:0"]] {
            let listeners = bind_tcp(&[addresses(&texts)], 16).unwrap();
            let reached =
                texts.map(|text| if text.starts_with('[') { "[::1]" } else { "127.0.0.1" });
            assert_reached(&listeners, &reached);
            let ports = listeners.iter().map(|one| one.local_addr().unwrap().port());
            assert_eq!(std::collections::HashSet::<u16>::from_iter(ports).len(), 1);
        }
    }

    #[test]
    fn a_list_is_listened_on_as_a_whole_with_one_free_port() {
        let listeners = bind_tcp(&[addresses(&["127.0.0.1:0", "127.0.0.2:0"])], 16).unwrap();
        assert_reached(&listeners, &["127.0.0.1", "127.0.0.2"]);
        let [first, second] = &listeners[..] else { panic!("{listeners:?}") };
        assert_eq!(first.local_addr().unwrap().port(), second.local_addr().unwrap().port());
    }

    #[test]
    fn an_address_of_another_machine_is_an_error_beside_one_of_this_machine() {
        // (RFC 5737) No machine has it.
        let error = bind_tcp(&[addresses(&["127.0.0.1:0", "192.0.2.1:0"])], 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("cannot listen on 192.0.2.1:"), "{error}");
    }

    #[test]
    fn a_missing_port_and_a_name_that_is_unknown_have_a_remedy() {
        let error = bind_resolved("127.0.0.1".to_socket_addrs(), 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("such as \"127.0.0.1:10809\""), "{error}");
        let unknown = io::Error::other("no such name");
        let error = bind_resolved(Err::<Vec<_>, _>(unknown), 16).unwrap_err();
        assert!(error.to_string().contains("no such name; give an address"), "{error}");
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
        #[cfg(target_os = "linux")]
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 300_000);
    }

    #[test]
    fn an_address_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind_tcp(&[[address]], 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
