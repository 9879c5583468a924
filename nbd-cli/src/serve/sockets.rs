//! The sockets that a server listens on, with what it takes to hand them over to a successor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_engine::net::{LocalAddr, SocketPath};
use nbd_engine::proto::{Address, Uri};
use serde::{Deserialize, Serialize};

use super::activation::Socket;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// NBD clients.
    Clients,
    /// The control socket.
    Control,
    /// Scrapers of metrics.
    Metrics,
}

/// The file of a Unix socket, by device and inode.
type Identity = (u64, u64);

/// Whose it is to remove the file of a Unix socket.
#[derive(Debug)]
pub(super) enum SocketFile {
    /// There is none, or it belongs to the program that handed the socket over.
    Foreign,
    /// It is ours.
    Own(SocketPath),
    /// It is the predecessor's, and ours once that has stopped listening.
    Predecessors(PathBuf, Identity),
}

/// A socket that is bound and listens, and that nothing accepts from yet.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) socket: Socket,
    pub(super) file: SocketFile,
}

impl From<Socket> for Bound {
    fn from(socket: Socket) -> Self {
        Self { socket, file: SocketFile::Foreign }
    }
}

/// What accepts from a socket, and can be told to stop.
pub(super) trait Accepting: Send {
    /// Stops, and returns once nothing accepts from it any more. What waits in the socket's queue stays there.
    fn stop(&self);
}

impl Accepting for nbd_engine::server::Listening {
    fn stop(&self) {
        nbd_blocking::Listening::from(self.clone()).close();
    }
}

impl Accepting for nbd_blocking::Listening {
    fn stop(&self) {
        self.close();
    }
}

impl Accepting for Box<dyn Accepting> {
    fn stop(&self) {
        (**self).stop();
    }
}

/// All sockets of a server. Clones are the same sockets.
///
/// Each is kept open a second time, for a successor; so whatever ends the server has to [end](Self::end) these, too, as
/// clients would wait in their queues otherwise.
#[derive(Clone, Default)]
pub(super) struct Sockets(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    open: Vec<Open>,
    phase: Phase,
    /// What it listens on besides, and can't hand over.
    held_back: Option<&'static str>,
}

struct Open {
    role: Role,
    // Before the socket: as long as that is open, no other server takes the path over.
    file: SocketFile,
    socket: Socket,
    accepting: Option<Box<dyn Accepting>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// The server ends.
    Ended,
    /// A successor has them.
    Replaced,
}

/// What a successor is told of a server that ends, since it was told to.
const SHUTTING_DOWN: &str = "the server is shutting down";
/// The same since another one has its sockets.
pub(super) const REPLACED: &str = "another server has taken over already";

/// Whether a server that can't be replaced, for that reason, ends all the same.
pub(super) fn is_ending(reason: &str) -> bool {
    // What became of volumes may follow.
    [SHUTTING_DOWN, REPLACED].iter().any(|ending| reason.starts_with(ending))
}

/// What a successor is told of a socket that it gets.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) role: Role,
    /// That of the address; none for a Unix socket without a path.
    uri: Option<String>,
    /// That of the file of a Unix socket that the server made.
    file: Option<Identity>,
}

impl Offer {
    /// The address of a socket.
    pub(super) fn address(&self) -> Option<LocalAddr> {
        use std::os::unix::ffi::OsStringExt;
        let uri: Uri = self.uri.as_ref()?.parse().ok()?;
        match uri.address() {
            Address::Tcp { host, port } => {
                let (ip, scope) = host.split_once('%').unwrap_or((host, "0"));
                let mut address = std::net::SocketAddr::new(ip.parse().ok()?, *port);
                if let std::net::SocketAddr::V6(address) = &mut address {
                    address.set_scope_id(scope.parse().ok()?);
                }
                Some(LocalAddr::Tcp(address))
            }
            Address::Unix { socket } => {
                let path = std::ffi::OsString::from_vec(socket.clone());
                Some(LocalAddr::Unix(path.into()))
            }
            _ => None,
        }
    }

    /// The file, for the one that takes the socket over.
    pub(super) fn file(&self) -> SocketFile {
        match (self.address(), self.file) {
            (Some(LocalAddr::Unix(path)), Some(identity)) => {
                SocketFile::Predecessors(path, identity)
            }
            _ => SocketFile::Foreign,
        }
    }

    /// Whether it is the socket that has this file.
    pub(super) fn is_file(&self, identity: Identity) -> bool {
        self.file == Some(identity)
    }
}

impl Sockets {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a socket that is to be accepted from.
    pub(super) fn keep(&self, role: Role, bound: Bound) -> io::Result<Socket> {
        let Bound { socket, file } = bound;
        let again = socket.try_clone()?;
        let mut state = self.state();
        if state.phase == Phase::Open {
            state.open.push(Open { role, file, socket, accepting: None });
        }
        Ok(again)
    }

    /// What accepts from the first socket of that role that nothing was said of yet.
    pub(super) fn accepting(&self, role: Role, accepting: impl Accepting + 'static) {
        let mut state = self.state();
        let waiting = |open: &&mut Open| open.role == role && open.accepting.is_none();
        if let Some(open) = state.open.iter_mut().find(waiting) {
            open.accepting = Some(Box::new(accepting));
        }
    }

    /// Stops accepting clients: returns once nothing does. The sockets stay, and what waits in their queues.
    pub(super) fn pause(&self) {
        let accepting: Vec<_> = {
            let mut state = self.state();
            let clients = state.open.iter_mut().filter(|open| open.role == Role::Clients);
            clients.filter_map(|open| open.accepting.take()).collect()
        };
        for accepting in accepting {
            accepting.stop();
        }
    }

    /// Accepts clients again, unless the server ends. Gives what failed.
    pub(super) fn resume(
        &self,
        accept: &dyn Fn(Socket) -> io::Result<Box<dyn Accepting>>,
    ) -> Vec<io::Error> {
        let mut state = self.state();
        let is_paused = |open: &&mut Open| open.role == Role::Clients && open.accepting.is_none();
        let mut failed = Vec::new();
        for open in state.open.iter_mut().filter(is_paused) {
            match open.socket.try_clone().and_then(accept) {
                Ok(accepting) => open.accepting = Some(accepting),
                Err(error) => failed.push(error),
            }
        }
        failed
    }

    /// Where the sockets of that role listen.
    pub(super) fn addresses(&self, role: Role) -> Vec<LocalAddr> {
        let state = self.state();
        let open = state.open.iter().filter(|open| open.role == role);
        open.filter_map(|open| open.socket.local_addr().ok()).collect()
    }

    /// Listens no longer for clients at these addresses: returns once nothing accepts from the sockets any more. What
    /// waits in their queues is lost; connections stay.
    pub(super) fn close(&self, is_one: impl Fn(&LocalAddr) -> bool) {
        let closed: Vec<Open> = {
            let mut state = self.state();
            let is_one = |open: &mut Open| {
                let address = open.socket.local_addr();
                open.role == Role::Clients && address.is_ok_and(|address| is_one(&address))
            };
            state.open.extract_if(.., is_one).collect()
        };
        for accepting in closed.iter().filter_map(|open| open.accepting.as_ref()) {
            accepting.stop();
        }
    }

    /// The server ends: the paths of its clients' sockets are removed, and nothing keeps the sockets open any more. Those
    /// for control and metrics stay until the end of the process.
    pub(super) fn end(&self) {
        let mut state = self.state();
        if state.phase == Phase::Open {
            state.phase = Phase::Ended;
            state.open.retain(|open| open.role != Role::Clients);
        }
    }

    /// The server is about to end, and the program that handed the sockets over keeps them open: returns once nothing
    /// accepts from them any more. What waits in their queues stays there. Otherwise as [`end`](Self::end).
    pub(super) fn stop_accepting(&self) {
        let clients: Vec<Open> = {
            let mut state = self.state();
            if state.phase != Phase::Open {
                return;
            }
            state.phase = Phase::Ended;
            let all = core::mem::take(&mut state.open).into_iter();
            let (control, clients) = all.partition(|open| open.role == Role::Control);
            state.open = control;
            clients
        };
        for accepting in clients.iter().filter_map(|open| open.accepting.as_ref()) {
            accepting.stop();
        }
    }

    /// It listens on something besides that can't be handed over.
    pub(super) fn hold_back(&self, what: &'static str) {
        self.state().held_back = Some(what);
    }

    /// Copies of all sockets for a successor.
    pub(super) fn offer(&self) -> Result<(Vec<Offer>, Vec<OwnedFd>), String> {
        let state = self.state();
        state.check()?;
        if let Some(what) = state.held_back {
            return Err(format!("it listens on {what}, which cannot be handed over"));
        }
        let copy = |open: &Open| {
            let address = open.socket.local_addr()?;
            let file = match &open.file {
                SocketFile::Own(path) => Some(path.identity()),
                _ => None,
            };
            // Where this process made it: the other one may have another current folder.
            let uri = address.uri("").ok().map(|uri| format!("{uri:#}"));
            let offer = Offer { role: open.role, uri, file };
            Ok((offer, open.socket.as_fd().try_clone_to_owned()?))
        };
        let copies = state.open.iter().map(copy).collect::<io::Result<Vec<_>>>();
        let copies = copies.map_err(|error| format!("cannot hand sockets over: {error}"))?;
        Ok(copies.into_iter().unzip())
    }

    /// A successor accepts from its copies: leaves their files to it, and returns once nothing here accepts any more.
    pub(super) fn replaced(&self) -> Result<(), String> {
        let left = {
            let mut state = self.state();
            state.check()?;
            state.phase = Phase::Replaced;
            core::mem::take(&mut state.open)
        };
        for open in left {
            if let SocketFile::Own(path) = open.file {
                path.leave();
            }
            if let Some(accepting) = open.accepting {
                accepting.stop();
            }
        }
        Ok(())
    }

    /// The predecessor has left its files to this process. Fails when one is gone.
    pub(super) fn adopt(&self) -> io::Result<()> {
        for open in &mut self.state().open {
            let file = core::mem::replace(&mut open.file, SocketFile::Foreign);
            open.file = file.adopt()?;
        }
        Ok(())
    }

    /// Ends all of them when it is dropped, however the server ends.
    pub(super) fn guard(&self) -> Guard {
        Guard(self.clone())
    }
}

impl State {
    fn check(&self) -> Result<(), String> {
        match self.phase {
            Phase::Open => Ok(()),
            Phase::Ended => Err(SHUTTING_DOWN.into()),
            Phase::Replaced => Err(REPLACED.into()),
        }
    }
}

impl SocketFile {
    /// The same, now that a predecessor's is ours.
    pub(super) fn adopt(self) -> io::Result<Self> {
        match self {
            Self::Predecessors(path, identity) => SocketPath::adopt(&path, identity).map(Self::Own),
            other => Ok(other),
        }
    }
}

/// See [`Sockets::guard`].
pub(super) struct Guard(Sockets);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.end();
        self.0.state().open.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nbd_engine::net::bind_unix;

    use super::*;

    fn unix(folder: &std::path::Path, name: &str) -> Bound {
        let (listener, path) = bind_unix(&folder.join(name), 16).unwrap();
        Bound { socket: Socket::Unix(listener), file: SocketFile::Own(path) }
    }

    #[test]
    fn what_is_offered_is_the_address_whatever_its_characters() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = Sockets::default();
        let _unix = sockets.keep(Role::Clients, unix(folder.path(), "a b%\n?&")).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap();
        let _tcp = sockets.keep(Role::Clients, Socket::Tcp(tcp).into()).unwrap();
        let _control = sockets.keep(Role::Control, unix(folder.path(), "control")).unwrap();
        let (offers, copies) = sockets.offer().unwrap();
        assert_eq!((offers.len(), copies.len()), (3, 3));
        let sent = serde_json::to_string(&offers).unwrap();
        let received: Vec<Offer> = serde_json::from_str(&sent).unwrap();
        assert_eq!(received, offers);
        let path = folder.path().join("a b%\n?&");
        assert_eq!(received[0].address(), Some(LocalAddr::Unix(path.clone())));
        assert!(matches!(received[0].file(), SocketFile::Predecessors(file, _) if file == path));
        assert_eq!(received[1].address(), Some(LocalAddr::Tcp(port)));
        assert!(matches!(received[1].file(), SocketFile::Foreign));
        assert_eq!(received[2].role, Role::Control);
    }

    #[test]
    fn a_server_that_ends_removes_its_paths_and_one_that_was_replaced_leaves_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd.sock");
        let predecessor = Sockets::default();
        drop(predecessor.keep(Role::Clients, unix(folder.path(), "nbd.sock")).unwrap());
        let (offers, mut copies) = predecessor.offer().unwrap();
        let socket = Socket::try_from(copies.pop().unwrap()).unwrap();
        let successor = Sockets::default();
        let bound = Bound { socket, file: offers[0].file() };
        let accepted_from = successor.keep(Role::Clients, bound).unwrap();
        predecessor.replaced().unwrap();
        assert!(predecessor.replaced().unwrap_err().contains("another server"));
        assert!(predecessor.offer().unwrap_err().contains("another server"));
        predecessor.end();
        drop(predecessor);
        successor.adopt().unwrap();
        UnixStream::connect(&path).unwrap();
        successor.end();
        assert!(!path.exists());
        assert!(successor.offer().unwrap_err().contains("shutting down"));
        drop(accepted_from);
    }

    #[test]
    fn a_successor_that_fails_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd.sock");
        let predecessor = Sockets::default();
        let _open = predecessor.keep(Role::Clients, unix(folder.path(), "nbd.sock")).unwrap();
        let (offers, mut copies) = predecessor.offer().unwrap();
        let socket = Socket::try_from(copies.pop().unwrap()).unwrap();
        let successor = Sockets::default();
        drop(successor.keep(Role::Clients, Bound { socket, file: offers[0].file() }).unwrap());
        successor.end();
        drop(successor);
        UnixStream::connect(&path).unwrap();
        predecessor.end();
        assert!(!path.exists());
    }
}
