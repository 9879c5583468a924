//! The listener of a scripted server.

use core::time::Duration;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use super::play::play;
use super::script::Script;
use crate::process::wait_until;
use crate::raw::Wire;
use crate::{Endpoint, SOON, own_ip};

/// How a script went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Bytes that were sent.
    pub sent: u64,
    /// Bytes that were received, but for those of an unfinished message.
    pub received: u64,
    /// Steps that were played to their end. Some of the script's methods stand for two.
    pub steps: usize,
    /// The client had gone before the script was over.
    pub left: bool,
}

/// A server that plays a script on each connection: the first on the first, and so on. There are no more connections than
/// scripts. When it is dropped the rest of its scripts is let go.
#[derive(Debug)]
pub struct ScriptedServer {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    /// Gives the threads of the connections; `None` once it was waited for.
    listening: Option<JoinHandle<Vec<JoinHandle<Report>>>>,
    _dir: Option<TempDir>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    accepted: usize,
    requests: usize,
    released: bool,
    over: bool,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> std::io::Result<Wire> {
        match self {
            Self::Tcp(listener) => Wire::from_tcp(listener.accept()?.0),
            Self::Unix(listener) => Ok(Wire::from_unix(listener.accept()?.0)),
        }
    }
}

impl ScriptedServer {
    /// A server on a free TCP port of a loopback address of its own.
    pub fn tcp(scripts: impl IntoIterator<Item = Script>) -> Self {
        let listener = TcpListener::bind((own_ip(), 0)).expect("a free port");
        let endpoint = Endpoint::Tcp(listener.local_addr().expect("it listens"));
        Self::start(Listener::Tcp(listener), endpoint, None, scripts)
    }

    /// A server on a Unix socket in a folder of its own.
    pub fn unix(scripts: impl IntoIterator<Item = Script>) -> Self {
        let dir = TempDir::new().expect("a folder for the socket");
        let path = dir.path().join("nbd.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        Self::start(Listener::Unix(listener), Endpoint::Unix(path), Some(dir), scripts)
    }

    fn start(
        listener: Listener,
        endpoint: Endpoint,
        dir: Option<TempDir>,
        scripts: impl IntoIterator<Item = Script>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let (scripts, ours) = (Vec::from_iter(scripts), Arc::clone(&shared));
        let listening = move || {
            let mut connections = Vec::new();
            for script in scripts {
                let wire = listener.accept().expect("a connection");
                if !ours.accepts() {
                    break;
                }
                let shared = Arc::clone(&ours);
                let connection = move || play(&script, &shared, wire);
                let connection = thread::Builder::new().name("script".into()).spawn(connection);
                connections.push(connection.expect("a thread for the connection"));
            }
            connections
        };
        let listening = thread::Builder::new().name("scripts".into()).spawn(listening);
        let listening = Some(listening.expect("a thread for the server"));
        Self { endpoint, shared, listening, _dir: dir }
    }

    /// Where it listens.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> usize {
        self.shared.lock().accepted
    }

    /// Waits until so many requests have been received, on all connections together.
    #[track_caller]
    pub fn wait_for_requests(&self, count: usize) {
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, SOON, |s| s.requests < count);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "{count} requests were due, {} came", state.requests);
    }

    /// Lets scripts go on that [hold](Script::hold), now and later.
    pub fn release(&self) {
        self.shared.change(|state| state.released = true);
    }

    /// Accepts no more connections, waits until the scripts are over, and tells how they went.
    ///
    /// # Panics
    /// When a client did something that was not in its script, or a script does not end.
    pub fn finish(mut self) -> Vec<Report> {
        let connections = self.end().into_iter();
        connections.map(|connection| wait_for("a script is over", connection)).collect()
    }

    /// As [`finish`](Self::finish), but lets no script go on that holds.
    ///
    /// # Panics
    /// When a client did something that was not in its script, or a script does not end.
    pub fn wait(mut self) -> Vec<Report> {
        let connections = self.stop_listening().into_iter();
        connections.map(|connection| wait_for("a script is over", connection)).collect()
    }

    /// Lets scripts go on, ends the listener, and gives the threads of the connections.
    fn end(&mut self) -> Vec<JoinHandle<Report>> {
        self.release();
        self.stop_listening()
    }

    fn stop_listening(&mut self) -> Vec<JoinHandle<Report>> {
        self.shared.change(|state| state.over = true);
        let Some(listening) = self.listening.take() else { return Vec::new() };
        // If it waits for a client, here is one. If it does not, that does no harm.
        let _wakes = Wire::try_connect(&self.endpoint);
        wait_for("the server does not listen any more", listening)
    }
}

fn wait_for<T>(what: &str, thread: JoinHandle<T>) -> T {
    wait_until(what, SOON, || thread.is_finished());
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        if self.listening.is_some() && !thread::panicking() {
            drop(self.end());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Counts a connection, unless there are to be no more.
    fn accepts(&self) -> bool {
        let mut state = self.lock();
        state.accepted += usize::from(!state.over);
        !state.over
    }

    pub(super) fn count_request(&self) {
        self.change(|state| state.requests += 1);
    }

    pub(super) fn wait_for_release(&self, bound: Duration) {
        let held = self.changed.wait_timeout_while(self.lock(), bound, |state| !state.released);
        let timeout = held.unwrap_or_else(PoisonError::into_inner).1;
        assert!(!timeout.timed_out(), "the test never lets the script go on");
    }
}
