//! A server whose connections break after random numbers of bytes, and that crashes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nbd_blocking::Server;
use nbd_blocking::export::ExportMap;
use nbd_support::volatile::Volatile;
use nbd_testkit::Random;

/// What happens to connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// A connection breaks after up to so many bytes, in both directions together.
    pub(crate) max_bytes: u64,
    /// One in so many breaks is a crash of the server.
    pub(crate) crash_one_in: u64,
}

/// The server, on a Unix socket.
pub(crate) struct Chaos {
    listener: Arc<UnixListener>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

struct Shared {
    disk: Arc<Volatile>,
    plan: Plan,
    random: Mutex<Random>,
    connections: Mutex<Vec<Connection>>,
    /// No connection breaks any more.
    calm: AtomicBool,
    over: AtomicBool,
}

/// A client's stream, a stream to a server, and threads between them.
struct Connection {
    client: UnixStream,
    broken: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Chaos {
    pub(crate) fn new(disk: &Arc<Volatile>, plan: Plan, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = Arc::new(UnixListener::bind(folder.path().join("nbd.sock")).unwrap());
        let shared = Arc::new(Shared {
            disk: Arc::clone(disk),
            plan,
            random: Mutex::new(Random::new(seed)),
            connections: Mutex::default(),
            calm: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let (accepting, serving) = (Arc::clone(&listener), Arc::clone(&shared));
        let acceptor = thread::spawn(move || {
            while let Ok((client, _)) = accepting.accept() {
                if serving.over.load(Ordering::Relaxed) {
                    return;
                }
                serving.serve(client);
            }
        });
        Self { listener, shared, acceptor: Some(acceptor), folder }
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.folder.path().join("nbd.sock").display())
    }

    /// Lets connections live from now on.
    pub(crate) fn calm_down(&self) {
        self.shared.calm.store(true, Ordering::Relaxed);
    }

    /// Breaks all connections, and loses the cache.
    pub(crate) fn crash(&self) {
        self.shared.break_all(true);
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.break_all(false);
        // Wakes the acceptor.
        let address = self.listener.local_addr().unwrap();
        let _woken = UnixStream::connect_addr(&address);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().unwrap();
        }
        let connections = std::mem::take(&mut *self.shared.connections.lock().unwrap());
        for connection in connections {
            connection.shut_down();
            connection.threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
    }
}

impl Connection {
    fn shut_down(&self) {
        self.broken.store(true, Ordering::Release);
        let _closed = self.client.shutdown(Shutdown::Both);
    }
}

impl Shared {
    /// Serves one client in the background.
    fn serve(self: &Arc<Self>, client: UnixStream) {
        // What was sent on a broken connection is carried out, or not, before anything on a new one: a server that died
        // does nothing any more, and one that lives is quicker than its client.
        self.reap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        // A crash ends this server, too, or comes before it has begun.
        let mut connections = self.connections.lock().unwrap();
        let exports = ExportMap::new().with("", self.disk.life()).unwrap();
        let budget = self.random.lock().unwrap().below(self.plan.max_bytes) as i64;
        let budget = Arc::new(AtomicI64::new(budget));
        let broken = Arc::new(AtomicBool::new(false));
        let mut threads = vec![thread::spawn(move || {
            let _broken = Server::new(exports).serve_unix(theirs);
        })];
        for (from, to) in [(&client, &ours), (&ours, &client)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let (shared, budget, broken) =
                (Arc::clone(self), Arc::clone(&budget), Arc::clone(&broken));
            threads.push(thread::spawn(move || shared.carry(from, to, &budget, &broken)));
        }
        connections.push(Connection { client, broken, threads });
    }

    fn reap(&self) {
        let mut ended = Vec::new();
        let mut connections = self.connections.lock().unwrap();
        for index in (0..connections.len()).rev() {
            if connections[index].broken.load(Ordering::Acquire) {
                ended.push(connections.swap_remove(index));
            }
        }
        drop(connections);
        ended.into_iter().flat_map(|ended| ended.threads).for_each(|thread| thread.join().unwrap());
    }

    fn carry(
        &self,
        mut from: UnixStream,
        mut to: UnixStream,
        budget: &AtomicI64,
        broken: &AtomicBool,
    ) {
        let mut buffer = vec![0; 16384];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let left = budget.fetch_sub(count as i64, Ordering::Relaxed);
            let calm = self.calm.load(Ordering::Relaxed);
            let passes = if calm { count } else { count.min(left.max(0) as usize) };
            if to.write_all(&buffer[..passes]).is_err() || passes < count {
                break;
            }
        }
        broken.store(true, Ordering::Release);
        let _closed = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        let spent = budget.load(Ordering::Relaxed) < 0 && !self.calm.load(Ordering::Relaxed);
        if spent && self.random.lock().unwrap().one_in(self.plan.crash_one_in) {
            self.break_all(true);
        }
    }

    fn break_all(&self, crash: bool) {
        // No connection is made meanwhile.
        let connections = self.connections.lock().unwrap();
        connections.iter().for_each(Connection::shut_down);
        if crash {
            self.disk.crash();
        }
    }
}
