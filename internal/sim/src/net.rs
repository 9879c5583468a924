//! A network in virtual time: streams of bytes that arrive late, in pieces of any size, or not at all.

mod end;
mod pipe;

use core::fmt;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nbd_engine::AnyTransport;
use nbd_engine::client::{Connector, DriveMode};
use nbd_engine::export::PeerAddr;
use nbd_engine::server::{Accepted, Listen};
use nbd_testkit::Random;

pub use end::End;
use pipe::Conn;

use crate::plan::{NetPlan, StreamFault};
use crate::world::{Process, VirtualRuntime, World, note};

/// All streams of a world. Cheap to clone: clones are the same network.
#[derive(Clone)]
pub struct Net {
    world: World,
    plan: Arc<NetPlan>,
    state: Arc<Mutex<State>>,
}

struct State {
    random: Random,
    listeners: BTreeMap<SocketAddr, Port>,
    conns: Vec<(Process, Process, Weak<Mutex<Conn>>)>,
    /// Streams made so far, which number the faults.
    count: usize,
    /// Streams whose fault has happened, those of dead processes included.
    harmed: u64,
    healed: bool,
}

/// Where a server listens.
struct Port {
    process: Process,
    waiting: VecDeque<End>,
    waker: Option<Waker>,
}

/// How a process's streams end with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Death {
    /// Its machine goes on, and closes them.
    Closed,
    /// Its machine is gone: the peer hears of it only later.
    Silent(Duration),
}

impl Net {
    /// A network without streams.
    #[must_use]
    pub fn new(world: &World, plan: NetPlan, seed: u64) -> Self {
        let state = State {
            random: Random::new(seed),
            listeners: BTreeMap::new(),
            conns: Vec::new(),
            count: 0,
            harmed: 0,
            healed: false,
        };
        Self { world: world.clone(), plan: Arc::new(plan), state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Streams that a fault has hit, or that ended with a process.
    #[must_use]
    pub fn harmed(&self) -> u64 {
        self.state().harmed
    }

    pub(crate) fn harm(&self) {
        self.state().harmed += 1;
    }

    /// From now on no new stream has a fault.
    pub fn heal(&self) {
        self.state().healed = true;
    }

    /// Listens for a process. The address must be free.
    #[must_use]
    pub fn listen(&self, process: Process, address: SocketAddr) -> Listener {
        let port = Port { process, waiting: VecDeque::new(), waker: None };
        self.state().listeners.insert(address, port);
        Listener { net: self.clone(), process, address }
    }

    /// Ends the streams and listeners of a process that is about to be killed.
    pub fn sever(&self, process: Process, death: Death) {
        let mut state = self.state();
        let closed = state.listeners.extract_if_by(process);
        let conns: Vec<_> = state
            .conns
            .iter()
            .filter_map(|(client, server, conn)| {
                let side = if *client == process { 0 } else { 1 };
                (*client == process || *server == process).then(|| Some((side, conn.upgrade()?)))?
            })
            .collect();
        state.harmed += conns.len() as u64;
        drop(state);
        drop(closed);
        let now = self.world.nanos();
        for (side, conn) in conns {
            let wakers = pipe::lock(&conn).sever(side, death, now);
            wakers.wake();
        }
    }

    /// Connects a process to what listens at an address.
    async fn connect(&self, process: Process, address: SocketAddr) -> io::Result<End> {
        let delay = self.delay();
        self.world.sleep(delay).await;
        let mut state = self.state();
        let seed = state.random.next();
        let number = state.count;
        let Some(port) = state.listeners.get(&address) else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let server = port.process;
        state.count += 1;
        let faults = if state.healed { Faults::default() } else { self.plan.faults_of(number) };
        let conn = Conn::new(&self.plan, faults, seed);
        let conn = Arc::new(Mutex::new(conn));
        state.conns.retain(|(_, _, conn)| conn.strong_count() > 0);
        state.conns.push((process, server, Arc::downgrade(&conn)));
        note(&self.world, || format!("stream {number}: {process:?} connects, fated {faults:?}"));
        let port = state.listeners.get_mut(&address).expect("it was there");
        port.waiting.push_back(End::new(self, Arc::clone(&conn), 1, number));
        let waker = port.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(End::new(self, conn, 0, number))
    }

    fn delay(&self) -> Duration {
        let mut state = self.state();
        self.plan.delay(&mut state.random)
    }
}

trait ExtractBy {
    fn extract_if_by(&mut self, process: Process) -> Vec<Port>;
}

impl ExtractBy for BTreeMap<SocketAddr, Port> {
    fn extract_if_by(&mut self, process: Process) -> Vec<Port> {
        let doomed: Vec<_> = self
            .iter()
            .filter(|(_, port)| port.process == process)
            .map(|(address, _)| *address)
            .collect();
        doomed.into_iter().filter_map(|address| self.remove(&address)).collect()
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").finish_non_exhaustive()
    }
}

/// A server's listening socket.
#[derive(Debug)]
pub struct Listener {
    net: Net,
    process: Process,
    address: SocketAddr,
}

impl Listener {
    fn port<R>(&self, with: impl FnOnce(&mut Port) -> R) -> Option<R> {
        let mut state = self.net.state();
        state.listeners.get_mut(&self.address).filter(|port| port.process == self.process).map(with)
    }
}

impl Listen for Listener {
    type Transport = End;

    async fn accept(&mut self) -> io::Result<Accepted<End>> {
        let fails = {
            let mut state = self.net.state();
            self.net.plan.accept_fails_one_in > 0
                && !state.healed
                && state.random.one_in(self.net.plan.accept_fails_one_in)
        };
        let end = poll_fn(|cx| {
            let waiting = self.port(|port| {
                let end = port.waiting.pop_front();
                if end.is_none() {
                    port.waker = Some(cx.waker().clone());
                }
                end
            });
            match waiting.flatten() {
                Some(end) => Poll::Ready(end),
                None => Poll::Pending,
            }
        })
        .await;
        if fails {
            self.net.harm();
            drop(end);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let peer = PeerAddr::Other(format!("stream {}", end.number()).into());
        Ok(Accepted::new(end, peer))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.net.state();
        let ours = state.listeners.get(&self.address).is_some_and(|p| p.process == self.process);
        let port = if ours { state.listeners.remove(&self.address) } else { None };
        if let Some(port) = &port {
            state.harmed += port.waiting.len() as u64;
        }
        drop(state);
        drop(port);
    }
}

/// How a client process reaches servers. With `CALLER`, those who wait drive its connections.
#[derive(Clone, Debug)]
pub struct Dialer<const CALLER: bool> {
    net: Net,
    runtime: VirtualRuntime,
}

impl<const CALLER: bool> Dialer<CALLER> {
    /// A connector for a process.
    #[must_use]
    pub fn new(net: &Net, runtime: VirtualRuntime) -> Self {
        Self { net: net.clone(), runtime }
    }
}

impl<const CALLER: bool> Connector for Dialer<CALLER> {
    type Runtime = VirtualRuntime;

    const DRIVE_MODE: DriveMode = if CALLER { DriveMode::Caller } else { DriveMode::Spawned };

    fn runtime(&self) -> VirtualRuntime {
        self.runtime.clone()
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<AnyTransport> {
        let end = self.net.connect(self.runtime.process(), address).await?;
        Ok(Box::new(end))
    }

    fn adopt_unix(&self, _: UnixStream) -> io::Result<AnyTransport> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The faults of a stream's two directions: from the client, and from the server.
pub(crate) type Faults = [Option<StreamFault>; 2];
