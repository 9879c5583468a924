//! The listeners of a running server: when its file is read again, those that are new are opened, and those that are gone
//! are closed. Their connections stay.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use nbd_engine::net::{self, LocalAddr};

use super::activation::Socket;
use super::config::{Address, Config, Listen};
use super::identity::is_same_place;
use super::places::{addresses, bind_unix, cannot_listen_on_tcp};
use super::sockets::{Accepting, Bound, Role, Sockets};
use crate::exit::Failure;

/// Has a server accept connections from a socket.
pub(super) type Accept = dyn Fn(Socket) -> io::Result<Box<dyn Accepting>> + Send + Sync;

/// What a running server listens on.
pub(super) struct Listeners {
    sockets: Sockets,
    accept: Box<Accept>,
}

/// Other listeners. Those that are new are bound already, and nothing accepts from them.
#[must_use]
pub(super) struct Prepared<'a> {
    listeners: &'a Listeners,
    /// Addresses and sockets that nothing accepts from yet.
    opened: Vec<(LocalAddr, Socket)>,
    /// Addresses that are listened on no longer.
    closed: Vec<LocalAddr>,
}

/// Whether a running server can listen as another configuration says. It can't bind anything once it is confined, and
/// what the environment gives, or chooses, it gets when it starts.
pub(super) fn can_follow(current: &Config, next: &Config) -> bool {
    let (old, new) = (&current.listeners, &next.listeners);
    let is_new = new.iter().any(|one| !old.contains(one));
    let is_free = |listen: &&Listen| match listen.address() {
        Ok(Address::Tcp(address)) => address.port != 0,
        Ok(Address::Unix(path)) => path != Path::new("-"),
        _ => false,
    };
    let nowhere = old.is_empty() != new.is_empty();
    !nowhere
        && differing(old, new).all(|one| is_free(&one))
        && (!is_new || current.server.sandbox.is_off())
}

/// Whether two sockets may be unable to listen side by side: on IPv6, too, where a wildcard may take IPv4 as well.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let reaches = |wide: SocketAddr, other: SocketAddr| {
        wide.ip().is_unspecified() && (wide.is_ipv6() || other.is_ipv4())
    };
    one.port() == other.port()
        && (one.ip() == other.ip() || reaches(one, other) || reaches(other, one))
}

/// Whether that is one address, however a path is spelled.
fn is_same(one: &LocalAddr, other: &LocalAddr) -> bool {
    match (one.unix(), other.unix()) {
        (Some(one), Some(other)) => is_same_place(one, other),
        _ => one == other,
    }
}

/// Those that only one of both has.
fn differing<'a>(old: &'a [Listen], new: &'a [Listen]) -> impl Iterator<Item = &'a Listen> {
    let gone = old.iter().filter(|one| !new.contains(one));
    gone.chain(new.iter().filter(|one| !old.contains(one)))
}

/// The addresses of each listener that [can change](can_follow).
fn addresses_of<'a>(
    listeners: impl Iterator<Item = &'a Listen>,
) -> Result<Vec<Vec<LocalAddr>>, Failure> {
    let of_one = |listen: &Listen| match listen.address() {
        Ok(Address::Tcp(tcp)) => {
            let found = addresses(&tcp.host, tcp.port)?;
            Ok(found.into_iter().map(LocalAddr::Tcp).collect())
        }
        Ok(Address::Unix(path)) => Ok(vec![LocalAddr::Unix(path.to_owned())]),
        _ => Ok(Vec::new()),
    };
    listeners.map(of_one).collect()
}

impl Listeners {
    /// The sockets, and what has the server accept from others.
    pub(super) fn new(
        sockets: Sockets,
        accept: impl Fn(Socket) -> io::Result<Box<dyn Accepting>> + Send + Sync + 'static,
    ) -> Self {
        Self { sockets, accept: Box::new(accept) }
    }

    /// Accepts nothing any more; clients wait in the queues of the sockets.
    pub(super) fn pause(&self) {
        self.sockets.pause();
    }

    /// Accepts again. What fails then is logged.
    pub(super) fn resume(&self) {
        for failure in self.sockets.resume(&*self.accept) {
            tracing::error!("cannot accept connections again: {failure}; restart the server");
        }
    }

    /// The TCP addresses that it listens on.
    pub(super) fn tcp(&self) -> Vec<SocketAddr> {
        let of_tcp = |address| match address {
            LocalAddr::Tcp(address) => Some(address),
            _ => None,
        };
        self.sockets.addresses(Role::Clients).into_iter().filter_map(of_tcp).collect()
    }

    /// An address that the server itself listens on, for whatever.
    fn own(&self, is_one: impl Fn(&LocalAddr) -> bool) -> Option<LocalAddr> {
        let roles = [Role::Clients, Role::Metrics, Role::Control];
        roles.into_iter().flat_map(|role| self.sockets.addresses(role)).find(is_one)
    }

    /// The error names the address; this adds what to do about it, which is something else where the server itself is in
    /// the way.
    fn cannot_listen(&self, error: &io::Error, wanted: &[SocketAddr]) -> Failure {
        let own = self.own(|own| match own {
            LocalAddr::Tcp(own) => wanted.iter().any(|wanted| collide(*wanted, *own)),
            _ => false,
        });
        match own.filter(|_| error.kind() == io::ErrorKind::AddrInUse) {
            Some(own) => Failure::failed(format!(
                "{error}: this server itself listens on {own}, and cannot listen on both at a time; restart it, which \
                 lets go of that first"
            )),
            None => cannot_listen_on_tcp(error),
        }
    }

    /// Binds what is new. Nothing else changes before [`Prepared::commit`].
    ///
    /// # Errors
    /// When an address can't be found or listened on.
    pub(super) fn prepare(&self, old: &[Listen], new: &[Listen]) -> Result<Prepared<'_>, Failure> {
        let mut prepared = Prepared { listeners: self, opened: Vec::new(), closed: Vec::new() };
        if differing(old, new).next().is_none() {
            return Ok(prepared);
        }
        let open = self.sockets.addresses(Role::Clients);
        let wanted = addresses_of(new.iter())?.concat();
        let gone = addresses_of(old.iter().filter(|one| !new.contains(one)))?.concat();
        let added = addresses_of(new.iter().filter(|one| !old.contains(one)))?;
        let is_new = |address: &LocalAddr| !open.iter().any(|open| is_same(open, address));
        let (mut tcp, mut unix) = (Vec::<Vec<SocketAddr>>::new(), Vec::new());
        for host in added {
            let mut of_host = Vec::new();
            for address in host.into_iter().filter(is_new) {
                match address {
                    LocalAddr::Tcp(address) => of_host.push(address),
                    LocalAddr::Unix(path) if !unix.contains(&path) => unix.push(path),
                    _ => {}
                }
            }
            tcp.extend((!of_host.is_empty()).then_some(of_host));
        }
        if !tcp.is_empty() {
            let bound = net::bind_tcp(&tcp, net::DEFAULT_BACKLOG);
            for listener in bound.map_err(|error| self.cannot_listen(&error, &tcp.concat()))? {
                prepared.keep(Socket::Tcp(listener).into())?;
            }
        }
        for path in unix {
            if self.own(|own| own.unix().is_some_and(|own| is_same_place(own, &path))).is_some() {
                return Err(Failure::failed(format!(
                    "cannot listen on {}: this server itself has its control socket, or its metrics, at that path; choose \
                     another path",
                    path.display()
                )));
            }
            prepared.keep(bind_unix(&path)?)?;
        }
        let is_wanted = |gone: &LocalAddr| wanted.iter().any(|wanted| is_same(wanted, gone));
        prepared.closed = gone.into_iter().filter(|gone| !is_wanted(gone)).collect();
        Ok(prepared)
    }
}

impl Prepared<'_> {
    fn keep(&mut self, bound: Bound) -> Result<(), Failure> {
        let failed =
            |error: io::Error| Failure::failed(format!("cannot use a listening socket: {error}"));
        bound.socket.set_nonblocking().map_err(failed)?;
        let address = bound.socket.local_addr().map_err(failed)?;
        let socket = self.listeners.sockets.keep(Role::Clients, bound).map_err(failed)?;
        self.opened.push((address, socket));
        Ok(())
    }

    /// Accepts connections from what is new, and listens no longer on what is gone. What fails then is logged.
    pub(super) fn commit(mut self) {
        for (address, socket) in core::mem::take(&mut self.opened) {
            match (self.listeners.accept)(socket) {
                Ok(accepting) => {
                    tracing::info!(%address, "listens");
                    self.listeners.sockets.accepting(Role::Clients, accepting);
                }
                Err(error) => {
                    tracing::error!(%address, %error, "cannot accept connections: restart the server");
                    self.listeners.sockets.close(|one| *one == address);
                }
            }
        }
        for address in &self.closed {
            tracing::info!(%address, "listens no longer");
        }
        self.listeners.sockets.close(|one| self.closed.iter().any(|closed| is_same(closed, one)));
    }
}

/// What was bound in vain is closed again.
impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        self.listeners.sockets.close(|one| self.opened.iter().any(|(address, _)| address == one));
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::TcpAddress;
    use super::super::sandbox::Mode;
    use super::*;

    fn tcp(host: &str, port: u16) -> Listen {
        Listen::tcp(TcpAddress { host: host.into(), port })
    }

    /// Ports of `::1`, and paths.
    fn config(listeners: &[&str]) -> Config {
        let listen = |word: &&str| match word.parse() {
            Ok(port) => tcp("::1", port),
            Err(_) => Listen::unix(word.into()),
        };
        Config { listeners: listeners.iter().map(listen).collect(), ..Config::default() }
    }

    #[test]
    fn what_the_environment_gives_or_a_sandbox_forbids_takes_a_restart() {
        for (old, new, can) in [
            (&[][..], &[][..], true),
            (&["1"], &["1"], true),
            (&["0"], &["0"], true),
            (&["1", "0"], &["0", "2"], true),
            (&["1"], &["2", "/run/socket"], true),
            (&["1"], &[], false),
            (&[], &["1"], false),
            (&["1"], &["0"], false),
            (&["1"], &["1", "-"], false),
        ] {
            assert_eq!(can_follow(&config(old), &config(new)), can, "{old:?} {new:?}");
        }
        let mut confined = config(&["1", "2"]);
        confined.server.sandbox = Mode::Require;
        assert!(can_follow(&confined, &config(&["2"])));
        assert!(!can_follow(&confined, &config(&["2", "3"])));
    }

    /// By the system itself, which refuses a pair or does not: where it refuses one of which the server has the other, the
    /// server is named, and never where it has nothing to do with it.
    #[test]
    fn an_address_that_the_server_itself_is_in_the_way_of_takes_a_restart() {
        let hosts = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"];
        let mut refused = 0;
        for own in hosts {
            for wanted in hosts {
                for foreign in [false, true] {
                    let sockets = Sockets::default();
                    let listeners = Listeners::new(sockets.clone(), |_| unreachable!("never kept"));
                    // A machine without IPv6 has fewer pairs.
                    let Ok(held) = std::net::TcpListener::bind((own, 0)) else { continue };
                    let at = held.local_addr().unwrap();
                    let _elsewhere = if foreign {
                        Some(held)
                    } else {
                        sockets.keep(Role::Metrics, Socket::Tcp(held).into()).unwrap();
                        None
                    };
                    let new = [tcp(wanted, at.port())];
                    if let Err(failure) = listeners.prepare(&[], &new) {
                        let text = failure.text();
                        if !text.contains("in use") {
                            continue;
                        }
                        assert_eq!(text.contains("this server itself"), !foreign, "{text}");
                        assert_eq!(text.contains("stop that server"), foreign, "{text}");
                        assert!(foreign || text.contains(&at.to_string()), "{text}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 8, "{refused}");
    }

    /// What fails leaves everything as it is, the file of a socket included.
    #[test]
    fn a_listener_that_cant_be_opened_opens_no_other() {
        struct Accepted;
        impl Accepting for Accepted {
            fn stop(&self) {}
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let sockets = Sockets::default();
        let listeners = Listeners::new(sockets.clone(), |_| Ok(Box::new(Accepted)));
        let new = Listen::unix(path.clone());
        let bad = Listen::unix(folder.path().join("no/folder"));
        assert!(listeners.prepare(&[], &[new.clone(), bad]).is_err());
        assert!(!path.exists() && sockets.addresses(Role::Clients).is_empty());
        drop(listeners.prepare(&[], std::slice::from_ref(&new)).unwrap());
        assert!(!path.exists() && sockets.addresses(Role::Clients).is_empty());
        listeners.prepare(&[], std::slice::from_ref(&new)).unwrap().commit();
        assert_eq!(sockets.addresses(Role::Clients), [LocalAddr::Unix(path.clone())]);
        // One that is there for something else is not another server's.
        let control = folder.path().join("control");
        drop(sockets.keep(Role::Control, bind_unix(&control).unwrap()).unwrap());
        std::fs::create_dir(folder.path().join("a")).unwrap();
        for control in [control, folder.path().join("a/../control")] {
            let refused = listeners.prepare(&[], &[Listen::unix(control)]).err().unwrap();
            assert!(refused.text().contains("this server itself"), "{}", refused.text());
        }
        // One that is open already, by whichever entry, is neither opened again nor closed.
        let twice = [new.clone(), new.clone()];
        listeners.prepare(&[tcp("127.0.0.1", 1)], &twice).unwrap().commit();
        assert!(path.exists());
        // So is one that is spelled in another way, which is closed as it was opened.
        let respelled = [Listen::unix(
            folder.path().join("../").join(folder.path().file_name().unwrap()).join("socket"),
        )];
        listeners.prepare(&twice, &respelled).unwrap().commit();
        assert!(path.exists() && sockets.addresses(Role::Clients).len() == 1);
        listeners.prepare(&respelled, &[]).unwrap().commit();
        assert!(!path.exists() && sockets.addresses(Role::Clients).is_empty());
    }
}
