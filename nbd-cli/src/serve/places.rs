//! Where to listen.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use nbd_engine::net;
use nbd_engine::proto::wire::DEFAULT_PORT;

use super::activation::Socket;
use super::arguments::Arguments;
use crate::exit::Failure;
use crate::output::shell_path;

/// Where to listen, and how to speak there.
#[derive(Debug)]
pub(super) struct Places<'a> {
    pub(super) tcp: Vec<Tcp>,
    pub(super) unix: Option<&'a Path>,
    /// What listens already.
    pub(super) given: Vec<Socket>,
    pub(super) oldstyle: bool,
}

/// A TCP address, or those of a name, of which one will do.
#[derive(Debug)]
pub(super) struct Tcp {
    pub(super) addresses: Vec<SocketAddr>,
}

impl<'a> Places<'a> {
    /// The sockets that were handed to us; otherwise a Unix socket alone, unless TCP is asked for; TCP on the loopback
    /// address and the registered port, unless told otherwise.
    pub(super) fn of(
        arguments: &'a Arguments,
        given: Option<Vec<Socket>>,
    ) -> Result<Self, Failure> {
        let oldstyle = arguments.oldstyle;
        let asked_for_tcp = arguments.port.is_some() || !arguments.ip_addr.is_empty();
        if let Some(given) = given {
            if asked_for_tcp || arguments.unix.is_some() {
                return Err(Failure::usage(
                    "--port, --ip-addr and --unix make no sense here, as the sockets to listen on are handed over by \
                     socket activation (LISTEN_FDS): leave them out",
                ));
            }
            return Ok(Self { tcp: Vec::new(), unix: None, given, oldstyle });
        }
        let unix = arguments.unix.as_deref();
        let port = arguments.port.unwrap_or(DEFAULT_PORT);
        let mut tcp = Vec::new();
        if arguments.ip_addr.is_empty() && (unix.is_none() || asked_for_tcp) {
            tcp.push(Tcp { addresses: vec![(Ipv4Addr::LOCALHOST, port).into()] });
        }
        for word in &arguments.ip_addr {
            tcp.push(Tcp { addresses: addresses(word, port)? });
        }
        Ok(Self { tcp: distinct(tcp), unix, given: Vec::new(), oldstyle })
    }

    /// Listens on one of the addresses.
    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let mut all = self.tcp.iter().flat_map(|place| &place.addresses);
        match address {
            // Otherwise it would take the IPv4 connections as well, and the port of the others.
            SocketAddr::V6(wildcard)
                if wildcard.ip().is_unspecified() && all.any(SocketAddr::is_ipv4) =>
            {
                net::bind_tcp_v6only(wildcard)
            }
            _ => net::bind_tcp(address),
        }
    }
}

/// Leaves out addresses that occurred before, and those that a wildcard address stands for, which could not be listened
/// on beside it. A name whose addresses are all left out is served all the same.
fn distinct(mut places: Vec<Tcp>) -> Vec<Tcp> {
    let all: Vec<SocketAddr> = places.iter().flat_map(|place| place.addresses.clone()).collect();
    let covered = |address: &SocketAddr| {
        all.iter().any(|other| {
            other.ip().is_unspecified() && other.is_ipv4() == address.is_ipv4() && other != address
        })
    };
    let mut seen = HashSet::new();
    for place in &mut places {
        place.addresses.retain(|address| !covered(address) && seen.insert(*address));
    }
    places.retain(|place| !place.addresses.is_empty());
    places
}

/// The addresses that a word stands for: it is one, or a name.
fn addresses(word: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let found = (word, port).to_socket_addrs().map_err(|error| {
        Failure::failed(format!(
            "cannot find the address of '{word}': {error}; give an IPv4 or IPv6 address, or a name that this machine \
             knows"
        ))
    })?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(Failure::failed(format!("'{word}' has no address: give one in its place")));
    }
    Ok(addresses)
}

impl Tcp {
    /// What to make of the addresses that could not be listened on: nothing if another one will do, such as the IPv4
    /// address where there is no IPv6.
    pub(super) fn check(&self, failures: &[io::Error]) -> Result<(), Failure> {
        let others_will_do = failures.len() < self.addresses.len();
        let lasting = [io::ErrorKind::AddrInUse, io::ErrorKind::PermissionDenied];
        let failure =
            failures.iter().find(|error| !others_will_do || lasting.contains(&error.kind()));
        for error in failures {
            tracing::info!(%error, "an address is left out");
        }
        failure.map_or(Ok(()), |error| Err(cannot_listen_on_tcp(error)))
    }
}

/// The error names the address; this adds what to do about it.
fn cannot_listen_on_tcp(error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; stop that server, or choose another place (--port 0 takes a free port)"
        }
        io::ErrorKind::PermissionDenied => "; choose a port above 1023",
        io::ErrorKind::AddrNotAvailable => "; choose an address of this machine",
        _ => "",
    };
    Failure::failed(format!("{error}{remedy}"))
}

/// The same with the path of a Unix socket.
pub(super) fn cannot_listen_on_unix(error: &io::Error, path: &Path) -> Failure {
    use io::ErrorKind as Kind;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let shown = folder.display();
    let remedy = match error.kind() {
        Kind::AddrInUse => "; stop that server, or choose another place".into(),
        Kind::AlreadyExists => "; choose another path".into(),
        Kind::NotFound => format!("; make the folder first: mkdir -p {}", shell_path(folder)),
        Kind::NotADirectory => format!("; {shown} is no folder: choose a path in one"),
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
            format!("; choose a path in a folder that this user may write to, other than {shown}")
        }
        _ => String::new(),
    };
    Failure::failed(format!("{error}{remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(words: &[&[&str]]) -> Vec<Tcp> {
        let address = |text: &&str| SocketAddr::new(text.parse().unwrap(), 10809);
        let place = |texts: &&[&str]| Tcp { addresses: texts.iter().map(address).collect() };
        words.iter().map(place).collect()
    }

    #[test]
    fn addresses_that_others_stand_for_are_left_out() {
        type Words = &'static [&'static [&'static str]];
        let cases: [(Words, Words); 6] = [
            (&[&["127.0.0.1"], &["127.0.0.1"]], &[&["127.0.0.1"]]),
            (&[&["0.0.0.0"], &["::"]], &[&["0.0.0.0"], &["::"]]),
            (&[&["127.0.0.1"], &["0.0.0.0"], &["0.0.0.0"]], &[&["0.0.0.0"]]),
            (&[&["::1", "127.0.0.1"], &["::"]], &[&["127.0.0.1"], &["::"]]),
            (
                &[&["127.0.0.1", "::1"], &["::1"], &["127.0.0.2"]],
                &[&["127.0.0.1", "::1"], &["127.0.0.2"]],
            ),
            (&[&["::1", "127.0.0.1"], &["::"], &["0.0.0.0"]], &[&["::"], &["0.0.0.0"]]),
        ];
        for (given, kept) in cases {
            let addresses = |places: Vec<Tcp>| -> Vec<Vec<SocketAddr>> {
                places.into_iter().map(|place| place.addresses).collect()
            };
            assert_eq!(addresses(distinct(places(given))), addresses(places(kept)), "{given:?}");
        }
    }

    #[test]
    fn one_address_of_a_name_will_do_unless_another_server_has_the_other() {
        let tcp = Tcp { addresses: addresses("127.0.0.1", 0).unwrap() };
        let [missing, taken] = [io::ErrorKind::AddrNotAvailable, io::ErrorKind::AddrInUse];
        assert!(tcp.check(&[missing.into()]).is_err());
        let two = ["127.0.0.1:1", "[::1]:1"].map(|text| text.parse().unwrap()).to_vec();
        let tcp = Tcp { addresses: two };
        assert!(tcp.check(&[]).is_ok());
        assert!(tcp.check(&[missing.into()]).is_ok());
        assert!(tcp.check(&[taken.into()]).is_err());
        assert!(tcp.check(&[missing.into(), missing.into()]).is_err());
    }
}
