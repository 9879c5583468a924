//! Starting what is tested, and seeing to it that a test ends.

use std::io;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nbd_engine::client::{ClientConfig, Error, Uri};
use nbd_engine::export::{Export, ExportMap, Memory};
use nbd_engine::net::LocalAddr;
use nbd_engine::server::{ConnectionError, ServerConfig};
use nbd_testkit::Endpoint;
use nbd_testkit::process::{Background, wait_until};
use nbd_testkit::raw::{Mode, RawClient};
use tempfile::TempDir;

use crate::client::{ClientAdapter, ClientUnderTest, NegotiationUnderTest};
use crate::{Adapter, Control, Listened, Place, SOON, certificates};

/// What a connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP on the loopback address.
    Tcp,
    /// A Unix socket.
    Unix,
    /// TLS over a Unix socket. The server requires it.
    Tls,
}

/// A program that serves one disk, of [`Setup::DISK`] bytes or more, to any number of clients.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The command that serves on a free TCP port. It must write a URI as its first line once it listens.
    pub command: fn() -> Command,
}

/// What is tested.
#[derive(Clone, Copy)]
pub enum Subject {
    /// An adapter, in this process.
    Adapter(&'static dyn Adapter),
    /// A program, which is killed in the end.
    Program(Program),
}

/// What a scenario is given: it starts servers.
#[derive(Clone, Copy)]
pub struct Setup {
    subject: Subject,
    transport: Transport,
}

/// A scenario that takes longer than this hangs. Those that pass take a second or two.
const TOO_LONG: Duration = Duration::from_secs(120);

/// Runs a scenario to its end.
///
/// # Panics
/// When the scenario does, or when it hangs.
pub fn run(subject: Subject, transport: Transport, scenario: fn(Setup)) {
    let setup = Setup { subject, transport };
    to_its_end(move || scenario(setup));
}

/// Runs a scenario that plays a client against a server.
///
/// # Panics
/// When the scenario does, or when it hangs.
pub fn run_pair(
    client: &'static dyn ClientAdapter,
    server: Subject,
    transport: Transport,
    scenario: fn(ClientSetup, Setup),
) {
    let client = ClientSetup { adapter: client, transport };
    let server = Setup { subject: server, transport };
    to_its_end(move || scenario(client, server));
}

/// Runs a scenario that plays a client against a server of its own making.
///
/// # Panics
/// When the scenario does, or when it hangs.
pub fn run_client(
    client: &'static dyn ClientAdapter,
    transport: Transport,
    scenario: fn(ClientSetup),
) {
    let client = ClientSetup { adapter: client, transport };
    to_its_end(move || scenario(client));
}

fn to_its_end(scenario: impl FnOnce() + Send + 'static) {
    let (ended, end) = mpsc::channel::<()>();
    let scenario = thread::Builder::new().name("scenario".into()).spawn(move || {
        let _tells_the_end = ended;
        scenario();
    });
    let scenario = scenario.expect("a thread for the scenario");
    if end.recv_timeout(TOO_LONG) == Err(RecvTimeoutError::Timeout) {
        panic!("the scenario hangs");
    }
    if let Err(panic) = scenario.join() {
        resume_unwind(panic);
    }
}

/// What a scenario about clients is given: it makes clients.
#[derive(Clone, Copy)]
pub struct ClientSetup {
    adapter: &'static dyn ClientAdapter,
    transport: Transport,
}

impl ClientSetup {
    /// The adapter.
    pub const fn adapter(&self) -> &'static dyn ClientAdapter {
        self.adapter
    }

    /// What connections are to run over.
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// Connects to the default export.
    ///
    /// # Errors
    /// The adapter's.
    pub fn connect(
        &self,
        endpoint: &Endpoint,
        config: &ClientConfig,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        self.adapter.connect(&Self::uri(endpoint), config)
    }

    /// Connects without entering an export.
    ///
    /// # Errors
    /// The adapter's.
    pub fn negotiate(
        &self,
        endpoint: &Endpoint,
        config: &ClientConfig,
    ) -> Result<Box<dyn NegotiationUnderTest>, Error> {
        self.adapter.negotiate(&Self::uri(endpoint), config)
    }

    /// A client of the default export of a server that has one.
    #[track_caller]
    pub fn client(&self, server: &Server) -> Box<dyn ClientUnderTest> {
        let client = self.connect(server.endpoint(), &ClientConfig::default());
        client.unwrap_or_else(|error| panic!("{error}"))
    }

    fn uri(endpoint: &Endpoint) -> Uri {
        endpoint.uri("").parse().expect("the address of a server")
    }
}

impl Setup {
    /// Bytes of the usual disk.
    pub const DISK: u64 = 1 << 20;

    /// Starts a server of the usual disk: in memory, all zero, the default export. All that a [`Program`] can do.
    #[track_caller]
    pub fn serve_disk(&self) -> Server {
        let disk = Memory::new(Self::DISK).expect("it is small");
        match self.subject {
            Subject::Adapter(_) => self.serve(disk),
            Subject::Program(program) => Server::program(&program),
        }
    }

    /// Starts a server of one export with default config.
    #[track_caller]
    pub fn serve(&self, export: impl Export) -> Server {
        self.serve_with(
            ExportMap::new().with("", export).expect("a short name"),
            ServerConfig::default(),
        )
    }

    /// Starts a server.
    #[track_caller]
    pub fn serve_with(&self, exports: ExportMap, config: ServerConfig) -> Server {
        let dir = TempDir::new().expect("a folder for the socket");
        let place = self.place(self.transport, &dir);
        self.serve_at(exports, config, vec![place], dir)
    }

    /// Starts a server at places of the scenario's choice. `dir` is kept as long as the server.
    #[track_caller]
    pub fn serve_at(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
        dir: TempDir,
    ) -> Server {
        let started = self.try_serve_at(exports, config, places, dir);
        started.unwrap_or_else(|error| panic!("it does not listen: {error}"))
    }

    /// Starts a server at places of the scenario's choice, some of which may be of no use.
    ///
    /// # Errors
    /// The adapter's.
    #[track_caller]
    pub fn try_serve_at(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
        dir: TempDir,
    ) -> io::Result<Server> {
        let Subject::Adapter(adapter) = self.subject else {
            panic!("a program serves nothing but its disk")
        };
        let encrypts = self.transport == Transport::Tls;
        let config = if encrypts { certificates::require_tls(config, dir.path()) } else { config };
        let started = adapter.start(exports, config, places)?;
        let endpoint = |address| {
            let address = match address {
                LocalAddr::Tcp(address) => Endpoint::Tcp(address),
                LocalAddr::Unix(path) => Endpoint::Unix(path),
                other => panic!("no test listens on {other}"),
            };
            if encrypts {
                let certificates = dir.path().to_owned();
                Endpoint::Tls { address: Box::new(address), certificates }
            } else {
                address
            }
        };
        let (mut endpoints, mut closing) = (Vec::new(), Vec::new());
        for Listened { addresses, close } in started.listening {
            endpoints.extend(addresses.into_iter().map(endpoint));
            closing.push(close);
        }
        let running = Running::Thread(started.control, started.thread);
        Ok(Server { endpoints, closing, running: Some(running), _dir: dir })
    }

    /// A place to listen at, of the adapter's own making.
    pub fn place(&self, transport: Transport, dir: &TempDir) -> Place {
        match transport {
            Transport::Tcp => Place::Text("127.0.0.1:0".into()),
            Transport::Unix | Transport::Tls => Place::Unix(dir.path().join("nbd.sock")),
        }
    }

    /// The transport.
    pub const fn transport(&self) -> Transport {
        self.transport
    }
}

/// A running server. A scenario that is done with it says so by [`stop`](Self::stop).
pub struct Server {
    endpoints: Vec<Endpoint>,
    /// Closes what a place became, by place.
    closing: Vec<Box<dyn Fn() + Send + Sync>>,
    /// `None` once it was stopped.
    running: Option<Running>,
    /// Where its socket is.
    _dir: TempDir,
}

enum Running {
    Thread(Control, JoinHandle<()>),
    /// Killed when dropped.
    Process(#[expect(dead_code, reason = "kept for its drop")] Background),
}

impl Server {
    #[track_caller]
    fn program(program: &Program) -> Self {
        let mut command = (program.command)();
        let started = Background::spawn(&mut command);
        let process = started.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let line = process.next_line(SOON).unwrap_or_default();
        let endpoint = Endpoint::parse(&line);
        assert!(endpoint.is_some(), "{command:?} wrote {line:?} where a URI was due");
        let dir = TempDir::new().expect("a folder");
        let running = Some(Running::Process(process));
        let endpoints = endpoint.into_iter().collect();
        Self { endpoints, closing: Vec::new(), running, _dir: dir }
    }

    /// Where it listens first.
    #[track_caller]
    pub fn endpoint(&self) -> &Endpoint {
        self.endpoints.first().expect("it listens")
    }

    /// Wherever it listens.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Stops listening at the place of that index.
    #[track_caller]
    pub fn close(&self, place: usize) {
        self.closing[place]();
    }

    /// A client in transmission on the default export.
    #[track_caller]
    pub fn client(&self, mode: Mode) -> RawClient {
        RawClient::go_in(mode, self.endpoint())
    }

    fn control(&self) -> Option<&Control> {
        match &self.running {
            Some(Running::Thread(control, _)) => Some(control),
            _ => None,
        }
    }

    /// Waits until it has so many connections. Of a program this is not known.
    #[track_caller]
    pub fn wait_for_connections(&self, count: usize) {
        if let Some(control) = self.control() {
            let what = format!("the server has {count} connections");
            wait_until(&what, SOON, || (control.connections)() == count);
        }
    }

    /// Listens at one more place.
    ///
    /// # Errors
    /// The adapter's.
    #[track_caller]
    pub fn listen(&self, place: Place) -> io::Result<()> {
        (self.control().expect("an adapter").listen)(place)
    }

    /// Serves one more stream of the scenario's, on this thread, until its connection ends.
    ///
    /// # Errors
    /// The adapter's.
    #[track_caller]
    pub fn serve(&self, stream: Place) -> Result<(), ConnectionError> {
        (self.control().expect("an adapter").serve)(stream)
    }

    /// Begins to shut down.
    pub fn shut_down(&self) {
        if let Some(control) = self.control() {
            (control.shut_down)();
        }
    }

    /// Waits until it has shut down, its listener closed and its clients gone.
    #[track_caller]
    pub fn wait_for_the_end(&mut self) {
        if let Some(Running::Thread(_, thread)) = self.running.take() {
            wait_until("the server has shut down", SOON, || thread.is_finished());
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    }

    /// The clients must have left, or be about to. Shuts down and waits for the end.
    #[track_caller]
    pub fn stop(mut self) {
        self.wait_for_connections(0);
        self.shut_down();
        self.wait_for_the_end();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A scenario that failed leaves it running.
        self.shut_down();
    }
}
