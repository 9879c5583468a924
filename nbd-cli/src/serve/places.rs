//! Where to listen.

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
    /// The addresses of each host.
    pub(super) tcp: Vec<Vec<SocketAddr>>,
    pub(super) unix: Option<&'a Path>,
    /// Context identifier and port.
    #[cfg(target_os = "linux")]
    pub(super) vsock: Option<Vsock>,
    /// What listens already.
    pub(super) given: Vec<Socket>,
    pub(super) oldstyle: bool,
}

impl<'a> Places<'a> {
    /// The sockets that were handed to us; otherwise a Unix socket alone, unless TCP is asked for; TCP on the loopback
    /// address and the registered port, unless told otherwise.
    pub(super) fn of(
        arguments: &'a Arguments,
        given: Option<Vec<Socket>>,
    ) -> Result<Self, Failure> {
        let oldstyle = arguments.oldstyle;
        #[cfg(target_os = "linux")]
        let vsock = arguments.vsock;
        #[cfg(target_os = "linux")]
        let asked_for_vsock = vsock.is_some();
        #[cfg(not(target_os = "linux"))]
        let asked_for_vsock = false;
        let asked_for_tcp = arguments.port.is_some() || !arguments.ip_addr.is_empty();
        if let Some(given) = given {
            if asked_for_tcp || arguments.unix.is_some() || asked_for_vsock {
                return Err(Failure::usage(
                    "--port, --ip-addr, --unix and --vsock make no sense here, as the sockets to listen on are handed over by \
                     socket activation (LISTEN_FDS): leave them out",
                ));
            }
            return Ok(Self {
                tcp: Vec::new(),
                unix: None,
                #[cfg(target_os = "linux")]
                vsock,
                given,
                oldstyle,
            });
        }
        let unix = arguments.unix.as_deref();
        let port = arguments.port.unwrap_or(DEFAULT_PORT);
        let mut tcp = Vec::new();
        if arguments.ip_addr.is_empty() && (unix.is_none() && !asked_for_vsock || asked_for_tcp) {
            tcp.push(vec![(Ipv4Addr::LOCALHOST, port).into()]);
        }
        for word in &arguments.ip_addr {
            tcp.push(addresses(word, port)?);
        }
        Ok(Self {
            tcp,
            unix,
            #[cfg(target_os = "linux")]
            vsock,
            given: Vec::new(),
            oldstyle,
        })
    }

    /// Listens on all TCP addresses.
    pub(super) fn bind_tcp(&self) -> Result<Vec<TcpListener>, Failure> {
        if self.tcp.is_empty() {
            return Ok(Vec::new());
        }
        net::bind_tcp(&self.tcp, net::DEFAULT_BACKLOG).map_err(|error| cannot_listen_on_tcp(&error))
    }
}

/// Where to listen on virtual machine sockets: `PORT` or `CID:PORT`.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vsock {
    pub(super) cid: u32,
    pub(super) port: u32,
}

#[cfg(target_os = "linux")]
impl core::str::FromStr for Vsock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = |_| "give a port, or CID:PORT, of numbers below 2^32".to_owned();
        let (cid, port) = match text.split_once(':') {
            Some((cid, port)) => (cid.parse().map_err(help)?, port),
            None => (net::VSOCK_CID_ANY, text),
        };
        Ok(Self { cid, port: port.parse().map_err(help)? })
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

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn vsock_listens_on_a_port_of_one_machine_or_of_all() {
        assert_eq!("5".parse(), Ok(Vsock { cid: u32::MAX, port: 5 }));
        assert_eq!("1:4294967295".parse(), Ok(Vsock { cid: 1, port: u32::MAX }));
        for text in ["", ":", "1:", ":5", "host:5", "4294967296", "-1", "1:2:3"] {
            assert!(text.parse::<Vsock>().unwrap_err().contains("CID:PORT"), "{text}");
        }
    }
}
