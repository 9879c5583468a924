//! Where to listen.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use nbd_engine::net;
use nbd_engine::proto::wire::DEFAULT_PORT;

use super::activation::Socket;
#[cfg(target_os = "linux")]
use super::config::VsockAddress;
use super::config::{Address, Config, TcpAddress};
use crate::exit::Failure;
use crate::output::shell_path;

/// Where to listen, and how to speak there.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// The addresses of each host.
    pub(super) tcp: Vec<Vec<SocketAddr>>,
    pub(super) unix: Vec<&'a Path>,
    #[cfg(target_os = "linux")]
    pub(super) vsock: Vec<VsockAddress>,
    /// What listens already.
    pub(super) given: Vec<Socket>,
    pub(super) oldstyle: bool,
}

impl<'a> Places<'a> {
    /// What the configuration says. If it says nothing: the sockets that were handed to us; otherwise TCP on the
    /// loopback address and the registered port.
    pub(super) fn of(config: &'a Config, given: Option<Vec<Socket>>) -> Result<Self, Failure> {
        let oldstyle = config.server.oldstyle;
        let mut places = Self {
            tcp: Vec::new(),
            unix: Vec::new(),
            #[cfg(target_os = "linux")]
            vsock: Vec::new(),
            given: Vec::new(),
            oldstyle,
        };
        let mut takes_given = config.listeners.is_empty();
        for (index, listen) in config.listeners.iter().enumerate() {
            let blame = |failure| config.source.blame(&format!("listen.{index}"), failure);
            match listen.address().map_err(|text| blame(Failure::Usage(text)))? {
                Address::Tcp(TcpAddress { host, port }) => {
                    places.tcp.push(addresses(host, *port).map_err(blame)?);
                }
                Address::Unix(path) => places.unix.push(path),
                #[cfg(target_os = "linux")]
                Address::Vsock(address) => places.vsock.push(address),
                Address::Activation if given.is_none() => {
                    let text = "no sockets are handed over by socket activation (LISTEN_FDS)";
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
            Some(given) => places.given = given,
            None if config.listeners.is_empty() => {
                places.tcp.push(vec![(Ipv4Addr::LOCALHOST, DEFAULT_PORT).into()]);
            }
            None => {}
        }
        Ok(places)
    }

    /// Listens on all TCP addresses.
    pub(super) fn bind_tcp(&self) -> Result<Vec<TcpListener>, Failure> {
        if self.tcp.is_empty() {
            return Ok(Vec::new());
        }
        net::bind_tcp(&self.tcp, net::DEFAULT_BACKLOG).map_err(|error| cannot_listen_on_tcp(&error))
    }
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
    let addresses = Vec::from_iter(found);
    if addresses.is_empty() {
        return Err(Failure::failed(format!("'{word}' has no address: give one in its place")));
    }
    Ok(addresses)
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
