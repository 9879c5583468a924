//! Where to listen.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use nbd_engine::net;
use nbd_engine::proto::wire::DEFAULT_PORT;
use tempfile::TempDir;

use super::activation::Socket;
#[cfg(target_os = "linux")]
use super::config::VsockAddress;
use super::config::{Address, Config, TcpAddress};
use super::predecessor::Predecessor;
use super::process::ProcessArguments;
use super::sockets::{Bound, Role, SocketFile};
use crate::exit::Failure;
use crate::output::shell_path;
use crate::private_folder::private_folder;

/// Where to listen, and how to speak there.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// The addresses of each host.
    pub(super) tcp: Vec<Vec<SocketAddr>>,
    pub(super) unix: Vec<Cow<'a, Path>>,
    #[cfg(target_os = "linux")]
    pub(super) vsock: Vec<VsockAddress>,
    /// The folder of a private socket.
    pub(super) private: Option<TempDir>,
    /// What listens already.
    pub(super) given: Vec<Socket>,
    /// Whether all that a predecessor listens on is listened on, for want of an address.
    all_of_predecessor: bool,
    pub(super) oldstyle: bool,
}

impl<'a> Places<'a> {
    /// What the configuration says. If it says nothing: the sockets that were handed to us, or that a predecessor has, or
    /// a private one if a command is run; otherwise TCP on the loopback address and the registered port.
    pub(super) fn of(
        config: &'a Config,
        process: &ProcessArguments,
        given: Option<Vec<Socket>>,
    ) -> Result<Self, Failure> {
        let nowhere = config.listeners.is_empty();
        let mut places = Self {
            tcp: Vec::new(),
            unix: Vec::new(),
            #[cfg(target_os = "linux")]
            vsock: Vec::new(),
            private: None,
            given: Vec::new(),
            all_of_predecessor: nowhere && process.take_over.is_some(),
            oldstyle: config.server.oldstyle,
        };
        let mut takes_given = nowhere;
        for (index, listen) in config.listeners.iter().enumerate() {
            let blame = |failure| config.source.blame(&format!("listen.{index}"), failure);
            match listen.address().map_err(|text| blame(Failure::Usage(text)))? {
                Address::Tcp(TcpAddress { host, port }) => {
                    places.tcp.push(addresses(host, *port).map_err(blame)?);
                }
                Address::Unix(path) if path == Path::new("-") => places.add_private()?,
                Address::Unix(path) => places.unix.push(Cow::Borrowed(path)),
                #[cfg(target_os = "linux")]
                Address::Vsock(address) => places.vsock.push(address),
                Address::Activation if given.is_none() => {
                    let text = "no sockets are handed over by socket activation (LISTEN_FDS): start it by a \
                                systemd.socket unit, or listen on tcp or unix";
                    return Err(blame(Failure::failed(text)));
                }
                Address::Activation => takes_given = true,
            }
        }
        match given {
            Some(_) if !takes_given => {
                let failure = Failure::usage(config.source.word(
                    "--port, --ip-addr, --unix and --vsock make no sense here, as the sockets to listen on are handed over by \
                     socket activation (LISTEN_FDS): leave them out",
                    "sockets to listen on are handed over by socket activation (LISTEN_FDS): add a [[listen]] with \
                     activation = true, or leave out the others",
                ));
                return Err(config.source.blame("listen.0", failure));
            }
            Some(_) if process.take_over.is_some() => {
                return Err(Failure::usage(
                    "--take-over makes no sense here, as the sockets to listen on are handed over by socket activation \
                     (LISTEN_FDS): whatever does that keeps them while the server is restarted",
                ));
            }
            Some(given) => places.given = given,
            None if places.all_of_predecessor => {}
            // A command that is run finds the server wherever it is.
            None if nowhere && process.run.is_some() => places.add_private()?,
            None if nowhere => places.tcp.push(vec![(Ipv4Addr::LOCALHOST, DEFAULT_PORT).into()]),
            None => {}
        }
        Ok(places)
    }

    /// The path of a private socket, if there is to be one.
    pub(super) fn private_socket(&self) -> Option<&Path> {
        let folder = self.private.as_ref()?.path();
        self.unix.iter().map(|path| &**path).find(|path| path.starts_with(folder))
    }

    /// Listens in a folder that only this user can reach, once however often that is asked for.
    fn add_private(&mut self) -> Result<(), Failure> {
        if self.private.is_none() {
            let folder = private_folder()?;
            self.unix.push(Cow::Owned(folder.path().join("socket")));
            self.private = Some(folder);
        }
        Ok(())
    }

    /// Listens everywhere: on what a predecessor has, on new sockets otherwise.
    pub(super) fn bind(
        &mut self,
        mut predecessor: Option<&mut Predecessor>,
    ) -> Result<Vec<Bound>, Failure> {
        let mut bound: Vec<Bound> = self.given.drain(..).map(Bound::from).collect();
        if let Some(predecessor) = &mut predecessor {
            if self.all_of_predecessor {
                bound.extend(predecessor.take_all());
            }
            let (old, new) = divide(&self.tcp, |address| predecessor.has_tcp(address));
            bound.extend(
                old.into_iter().filter_map(|address| predecessor.take_tcp(address, Role::Clients)),
            );
            self.tcp = new;
        }
        if !self.tcp.is_empty() {
            let listeners = net::bind_tcp(&self.tcp, net::DEFAULT_BACKLOG)
                .map_err(|error| cannot_listen_on_tcp(&error))?;
            bound.extend(listeners.into_iter().map(|listener| Socket::Tcp(listener).into()));
        }
        for path in &self.unix {
            let old = predecessor.as_mut().and_then(|one| one.take_unix(path, Role::Clients));
            bound.push(match old {
                Some(old) => old,
                None => bind_unix(path)?,
            });
        }
        Ok(bound)
    }
}

pub(super) fn bind_unix(path: &Path) -> Result<Bound, Failure> {
    let (listener, file) = net::bind_unix(path, net::DEFAULT_BACKLOG)
        .map_err(|error| cannot_listen_on_unix(&error, path))?;
    Ok(Bound { socket: Socket::Unix(listener), file: SocketFile::Own(file) })
}

/// The addresses that a predecessor listens on, and for each host those that are to be bound. A wildcard address of the
/// predecessor's that is asked for stands for all of its family and port, which could not be bound beside it.
fn divide(
    hosts: &[Vec<SocketAddr>],
    has: impl Fn(SocketAddr) -> bool,
) -> (Vec<SocketAddr>, Vec<Vec<SocketAddr>>) {
    let mut old: Vec<SocketAddr> = Vec::new();
    for address in hosts.iter().flatten().filter(|address| has(**address)) {
        if !old.contains(address) {
            old.push(*address);
        }
    }
    let stands_for = |wide: &SocketAddr, address: &SocketAddr| {
        let same_kind = wide.is_ipv4() == address.is_ipv4() && wide.port() == address.port();
        wide == address || wide.ip().is_unspecified() && same_kind
    };
    let covered = |address: &SocketAddr| old.iter().any(|wide| stands_for(wide, address));
    let new = hosts
        .iter()
        .map(|host| host.iter().copied().filter(|address| !covered(address)).collect::<Vec<_>>())
        .filter(|host| !host.is_empty());
    let new = new.collect();
    (old, new)
}

/// The addresses that a word stands for: it is one, or a name.
pub(super) fn addresses(word: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let found = (word, port).to_socket_addrs().map_err(|error| {
        Failure::failed(format!(
            "cannot find the address of '{word}': {error}; give an IPv4 or IPv6 address, or a name that this machine \
             knows"
        ))
    })?;
    let addresses = Vec::from_iter(found);
    if addresses.is_empty() {
        return Err(Failure::failed(format!("'{word}' has no address: give one in its place")));
    }
    Ok(addresses)
}

/// The error names the address; this adds what to do about it.
pub(super) fn cannot_listen_on_tcp(error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; stop that server, or choose another address (--port 0 takes a free port)"
        }
        io::ErrorKind::PermissionDenied => "; choose a port above 1023",
        io::ErrorKind::AddrNotAvailable => "; choose an address of this machine",
        _ => "",
    };
    Failure::failed(format!("{error}{remedy}"))
}

/// The same with a vsock address.
#[cfg(target_os = "linux")]
pub(super) fn cannot_listen_on_vsock(error: &io::Error) -> Failure {
    Failure::failed(format!("{error}; see man 7 vsock"))
}

/// The same with the path of a Unix socket.
pub(super) fn cannot_listen_on_unix(error: &io::Error, path: &Path) -> Failure {
    use io::ErrorKind as Kind;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let shown = folder.display();
    let remedy = match error.kind() {
        Kind::AddrInUse => "; stop that server, or choose another path".into(),
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

    fn parsed(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_of_a_predecessor_are_not_bound_again() {
        let divided = |hosts: &[&[&str]], has: &[&str]| {
            let hosts: Vec<_> = hosts.iter().map(|host| parsed(host)).collect();
            let has = parsed(has);
            divide(&hosts, |address| has.contains(&address))
        };
        let host = |texts: &[&str]| parsed(texts);
        let (old, new) = divided(&[&["127.0.0.1:1", "[::1]:1"]], &["127.0.0.1:1", "[::1]:1"]);
        assert_eq!((old, new), (host(&["127.0.0.1:1", "[::1]:1"]), vec![]));
        let (old, new) = divided(&[&["127.0.0.1:1", "[::1]:1"], &["127.0.0.1:2"]], &["[::1]:1"]);
        assert_eq!(old, host(&["[::1]:1"]));
        assert_eq!(new, [host(&["127.0.0.1:1"]), host(&["127.0.0.1:2"])]);
        // A port of its own is no port of the predecessor's.
        let (old, new) = divided(&[&["127.0.0.1:0"]], &["127.0.0.1:1"]);
        assert_eq!((old, new), (vec![], vec![host(&["127.0.0.1:0"])]));
        let (old, new) = divided(&[&["127.0.0.1:1"], &["0.0.0.0:1"], &["[::1]:1"]], &["0.0.0.0:1"]);
        assert_eq!((old, new), (host(&["0.0.0.0:1"]), vec![host(&["[::1]:1"])]));
        // One that is not asked for is closed.
        let (old, new) = divided(&[&["127.0.0.1:1"]], &["0.0.0.0:1"]);
        assert_eq!((old, new), (vec![], vec![host(&["127.0.0.1:1"])]));
    }
}
