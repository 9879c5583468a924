//! Running the server on the chosen adapter.

use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use nbd_engine::counted;
use nbd_engine::net::LocalAddr;
use nbd_engine::server::{Outcome, ServerConfig};

use super::Arguments;
use super::access;
use super::activation::{self, Socket};
use super::announce::Announcement;
use super::backend;
use super::captive::{self, Captive};
use super::check;
use super::claims;
#[cfg(target_os = "linux")]
use super::config::VsockAddress;
use super::config::{self, Config, LogLevel, RuntimeName};
use super::control::{self, Replaceable, Verbs};
use super::linger;
use super::listeners::Listeners;
use super::live::Live;
use super::metrics::Monitor;
use super::places::Places;
#[cfg(target_os = "linux")]
use super::places::cannot_listen_on_vsock;
use super::predecessor::Predecessor;
use super::reload::Reload;
use super::sandbox::{Needs, Sandbox};
use super::security::Security;
use super::signals;
use super::sockets::{Accepting, Bound, Role, Sockets};
use super::stdio::Stdio;
use super::supervisor::{self, Readiness};
use super::volumes;
use crate::exit::Failure;
use crate::{fault, log, output, stderr};

/// `nbd serve`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let outcome = serve(arguments);
    // A start that failed closes what it has opened, too, so that the next server need not wait.
    volumes::settle_all();
    outcome
}

fn serve(arguments: &Arguments) -> Result<(), Failure> {
    let given = activation::sockets()?;
    let process = &arguments.process;
    let ready_fd = supervisor::take_ready_fd(process)?;
    let stdio = process.stdio.then(Stdio::take).transpose()?;
    let config = arguments.config()?;
    if arguments.print_config {
        let text = config::print(&config)?;
        return output::write(|out| Ok(out.write_all(text.as_bytes())?));
    }
    if arguments.check {
        log::start(LogLevel::Warn.verbosity())?;
        let file = arguments.config.as_deref();
        return check::check(&config, process, given.is_some(), file);
    }
    log::collect(config.server.log.verbosity());
    fault::end_on_panic();
    raise_descriptor_limit(&config);
    let claims = claims::Run::of(process, given.is_some(), arguments.config.as_deref());
    claims::refuse(&config, &claims)?;
    let places = Places::of(&config, process, given)?;
    if process.take_over.is_some() {
        backend::refuse_overlays_in_use(&config)?;
    }
    let exports = Live::open(&config)?;
    let (server, security) = server_config(&config)?;
    let readiness = Readiness::of(process, ready_fd)?;
    let mut needs = Needs::of(&config, arguments.config.as_deref());
    places.private_socket().into_iter().for_each(|path| needs.socket(path));
    // The other server learns of this one only now, as hardly anything of its own can fail any more. Volumes are opened later,
    // so that a start that fails takes none over.
    let mut predecessor = Predecessor::of(process)?;
    predecessor.iter().flat_map(Predecessor::paths).for_each(|path| needs.socket(path));
    // From here on only what is needed can be opened, by this thread and by those that it starts.
    let sandbox = Sandbox::confine(config.server.sandbox, &needs)?;
    log::write()?;
    let served = exports.clone();
    let names = move || served.sizes().into_iter().map(|(name, _)| name).collect();
    let monitor = Monitor::start(config.server.metrics.as_ref(), predecessor.as_mut(), names)?;
    let server = server.with_metrics(monitor.metrics());
    let in_tls = security.is_required();
    let addresses = places.tcp.iter().flatten().copied();
    if let Some(exposure) = security.exposure(addresses, &config).filter(|_| stdio.is_none()) {
        stderr::say(&format!("warning: {exposure}"));
    }
    let log = LogLevel::of_verbosity(arguments.verbose);
    let file = arguments.config.clone();
    let claims = claims.serving();
    let reload = Reload::new(file, log, config.clone(), claims, exports.clone(), security);
    let reload = Arc::new(reload);
    if let Some(stdio) = stdio {
        let oldstyle = config.server.oldstyle;
        let _sealed = sandbox.seal()?;
        let served = exports.clone();
        readiness.check()?;
        reload.open_volumes()?;
        let outcome = stdio.serve(exports, server, &reload, readiness, oldstyle);
        let closed = served.end();
        return judge(outcome?, &config).and(closed);
    }
    let of_disks = config.exports.iter().filter(|export| !export.is_directory());
    let of_directories = config.exports.iter().filter(|export| export.is_directory());
    let announcement = Announcement {
        names: of_disks.map(|export| export.name.clone()).collect(),
        directories: of_directories.map(|export| export.label().into_owned()).collect(),
        // Who hands sockets over knows where they are, and our standard output may be that of a client; with a command
        // it is the command's.
        printed: places.given.is_empty() && process.run.is_none(),
        in_tls,
    };
    let control = control_socket(&config, predecessor.as_mut())?;
    let verbs = control::exports(&reload, exports.bitmaps().verbs(Verbs::new()));
    let served = exports.clone();
    let verbs = control::status_verbs(verbs, monitor.metrics(), move || served.sizes());
    let setup = Setup {
        places,
        announcement,
        exports: exports.clone(),
        verbs,
        reload,
        monitor,
        control,
        predecessor,
        readiness,
        sandbox: Some(sandbox),
        command: process.run.clone(),
    };
    let served = exports.clone();
    let outcome = match config.server.runtime {
        RuntimeName::Blocking => blocking(exports, server, setup),
        RuntimeName::Tokio => tokio(exports, server, setup),
        #[cfg(feature = "async-std")]
        RuntimeName::AsyncStd => async_std(exports, server, setup),
    };
    // Whatever else failed, what clients wrote is to be where it belongs.
    let closed = served.end();
    let (outcome, captive) = outcome?;
    captive.map_or(Ok(()), Captive::end)?;
    judge(outcome, &config).and(closed)
}

/// How the server ended, and the command that it ran for.
type Ended = (Outcome, Option<Captive>);

/// The control socket, if there is to be one: that of the server that is replaced, or a new one.
fn control_socket(
    config: &Config,
    predecessor: Option<&mut Predecessor>,
) -> Result<Option<Bound>, Failure> {
    let Some(path) = config.server.control.as_deref() else { return Ok(None) };
    let old = predecessor.and_then(|one| one.take_unix(path, Role::Control));
    old.map_or_else(|| control::bind(path), Ok).map(Some)
}

/// All that there is besides exports and their configuration, whatever the adapter.
struct Setup<'a> {
    places: Places<'a>,
    announcement: Announcement,
    exports: Live,
    /// What can be asked for on the control socket, besides a take-over.
    verbs: Verbs,
    reload: Arc<Reload>,
    /// What counts, and serves metrics.
    monitor: Monitor,
    control: Option<Bound>,
    predecessor: Option<Predecessor>,
    readiness: Readiness,
    sandbox: Option<Sandbox>,
    /// What is to be run.
    command: Option<OsString>,
}

/// What the methods of the adapters' servers do that can be called from any thread.
struct Handle {
    connections: Box<dyn Fn() -> usize + Send + Sync>,
    shut_down: Box<dyn Fn() + Send + Sync>,
}

/// What lasts as long as the server.
struct Begun {
    /// Removes the file of the process id.
    _readiness: Readiness,
    captive: Option<Captive>,
}

impl Setup<'_> {
    /// Opens the volumes, once all addresses are bound and a predecessor has closed its own. Clients wait in the queues of the
    /// sockets meanwhile.
    fn open_volumes(&self) -> Result<(), Failure> {
        let predecessor = self.predecessor.as_ref().filter(|_| self.reload.takes_volumes());
        let Some(predecessor) = predecessor else { return self.reload.open_volumes() };
        predecessor.hand_over()?;
        self.reload.open_volumes().map_err(|failure| predecessor.give_back(&failure))
    }

    /// The server listens at these addresses: has the predecessor end, answers clients of the control socket, notifies the
    /// supervisor, and starts the command.
    fn begin(
        self,
        sockets: &Sockets,
        addresses: &[LocalAddr],
        server: Handle,
    ) -> Result<Begun, Failure> {
        let Self { exports, verbs, reload, control, predecessor, mut readiness, .. } = self;
        let control = control
            .map(|bound| sockets.keep(Role::Control, bound))
            .transpose()
            .map_err(cannot_accept)?;
        if let Some(predecessor) = predecessor {
            predecessor.retire(sockets)?;
        }
        let Handle { connections, shut_down } = server;
        let shut_down: Arc<dyn Fn() + Send + Sync> = Arc::from(shut_down);
        if let Some(socket) = control {
            let state =
                Box::new(move || lost_with(&exports.in_memory(), &exports.bitmaps().names()));
            let ended = Arc::clone(&shut_down);
            let replaceable = Replaceable {
                sockets: sockets.clone(),
                reload,
                state,
                connections,
                shut_down: Box::new(move || ended()),
            };
            let answering = control::answer(socket, replaceable.verbs(verbs));
            sockets.accepting(Role::Control, answering.map_err(cannot_accept)?);
        }
        readiness.announce();
        let captive = self.command.map(|command| {
            let export = self.announcement.names.first().map_or("", String::as_str);
            let variables =
                captive::variables(addresses, export, |address| self.announcement.uri(address));
            let sockets = sockets.clone();
            Captive::start(&command, variables, move || {
                sockets.end();
                shut_down();
            })
        });
        Ok(Begun { _readiness: readiness, captive: captive.transpose()? })
    }
}

/// What the server is, besides its exports: access, TLS and limits.
pub(super) fn server_config(config: &Config) -> Result<(ServerConfig, Security), Failure> {
    let server = &config.server;
    let limits = ServerConfig::new()
        .with_access(access::rules(&config.access, &config.source)?)
        .with_max_connections(server.max_connections)
        .with_drain_timeout(server.drain_timeout.0)
        .with_hang_up(server.hang_up)
        .with_idle_timeout(server.idle_limit())
        .with_stall_timeout(server.stall_timeout.duration().unwrap_or(Duration::MAX));
    Security::of(config, limits)
}

/// Whether that is an orderly end.
fn judge(outcome: Outcome, config: &Config) -> Result<(), Failure> {
    if outcome.listener_failed {
        return Err(Failure::failed("a listener failed, and the server ended: see the log above"));
    }
    match outcome.requests_cut_off {
        0 => Ok(()),
        count => Err(Failure::CutOff(format!(
            "cut off {} that did not finish within {} ({})",
            counted(count, "request"),
            config.server.drain_timeout,
            config.source.word("--drain-timeout", "drain-timeout")
        ))),
    }
}

/// Takes as many descriptors as the system lets us: each connection needs one, with threads two.
fn raise_descriptor_limit(config: &Config) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "the limit of open files stays as it is");
    }
    // Some are for exports and workers.
    let needed = (config.server.max_connections as u64).saturating_mul(3);
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < needed) {
        tracing::info!(
            limit,
            max_connections = config.server.max_connections,
            "the limit of open files (ulimit -n) may not suffice for --max-connections"
        );
    }
}

fn joined(names: &[String], quoted: impl Fn(&str) -> String) -> String {
    names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// What ends with the process, in words: what exports hold in memory, and dirty bitmaps.
fn lost_with(in_memory: &[String], bitmaps: &[String]) -> Vec<String> {
    let mut lost = Vec::new();
    if !in_memory.is_empty() {
        lost.push(format!("what exports hold in memory ({})", joined(in_memory, config::noun)));
    }
    if !bitmaps.is_empty() {
        lost.push(format!("the dirty bitmaps ({})", joined(bitmaps, |name| format!("'{name}'"))));
    }
    lost
}

/// Serves until a signal ends it. The servers of all adapters have the same methods, some with an `.await` behind them,
/// and no trait that says so.
macro_rules! serve {
    ($server:expr, $setup:expr, $tcp:expr, $unix:expr, [$($enter:tt)*], [$($wait:tt)*]) => {{
        let (server, mut setup): (_, Setup<'_>) = ($server, $setup);
        let server = if setup.places.oldstyle { server.oldstyle("") } else { server };
        let sockets = Sockets::default();
        let _ended_however_it_ends = sockets.guard();
        setup.monitor.keep_in(&sockets).map_err(cannot_accept)?;
        // First of all: clients of sockets that were handed over may come, and ask for the end, at once.
        let end = {
            let (server, sockets) = (server.clone(), sockets.clone());
            let supervisor = setup.readiness.supervisor.clone();
            let keeps_sockets = supervisor.is_there() && !setup.places.given.is_empty();
            move || {
                supervisor.stopping();
                if keeps_sockets {
                    let (counted, ended) = (server.clone(), server.clone());
                    let (connections, shut_down) =
                        (move || counted.connections(), move || ended.shut_down());
                    return linger::end_with_sockets_kept(sockets.clone(), connections, shut_down);
                }
                sockets.end();
                server.shut_down();
            }
        };
        let (reload, supervisor) =
            (Arc::clone(&setup.reload), setup.readiness.supervisor.clone());
        let reconfigured = server.clone();
        reload.serving(move |config| reconfigured.reconfigure(config));
        let reload = move || reload.hang_up(&supervisor);
        signals::watch(end, reload).map_err(no_signals)?;
        let accept = {
            let server = server.clone();
            move |socket| match socket {
                Socket::Tcp(one) => $tcp(one).and_then(|one| server.accept_tcp(one)),
                Socket::Unix(one) => $unix(one).and_then(|one| server.accept_unix(one)),
            }
        };
        let mut bound = Vec::new();
        for one in setup.places.bind(setup.predecessor.as_mut())? {
            one.socket.set_nonblocking().map_err(cannot_accept)?;
            bound.push(sockets.keep(Role::Clients, one).map_err(cannot_accept)?);
        }
        // Before a predecessor has given anything up.
        setup.readiness.check()?;
        setup.open_volumes()?;
        let mut listening = Vec::new();
        for socket in bound {
            let accepting = accept(socket).map_err(cannot_accept);
            let accepting = begun(accepting, server.is_shutting_down())?;
            if let Some(accepting) = accepting {
                sockets.accepting(Role::Clients, accepting.clone());
                listening.push(accepting);
            }
        }
        // Called on a thread of no runtime's.
        let accept_later = move |socket| {
            $($enter)*
            accept(socket).map(|accepting| Box::new(accepting) as Box<dyn Accepting>)
        };
        setup.reload.listening(Listeners::new(sockets.clone(), accept_later));
        #[cfg(target_os = "linux")]
        for VsockAddress { cid, port } in core::mem::take(&mut setup.places.vsock) {
            sockets.hold_back("a vsock address");
            let one = server.listen_vsock(cid, port);
            let one = one.map_err(|error| cannot_listen_on_vsock(&error));
            listening.extend(begun(one, server.is_shutting_down())?);
        }
        let addresses: Vec<LocalAddr> =
            listening.iter().map(|one| one.local_addr().clone()).collect();
        let _sealed = setup.sandbox.take().map(Sandbox::seal).transpose()?;
        setup.announcement.make(&addresses)?;
        let _private = setup.places.private.take();
        let begun = match server.is_shutting_down() {
            true => None,
            false => {
                let (counted, ended) = (server.clone(), server.clone());
                let connections = Box::new(move || counted.connections());
                let shut_down = Box::new(move || ended.shut_down());
                Some(setup.begin(&sockets, &addresses, Handle { connections, shut_down })?)
            }
        };
        let outcome = server.wait()$($wait)*;
        Ok((outcome, begun.and_then(|begun| begun.captive)))
    }};
}

fn blocking(exports: Live, config: ServerConfig, setup: Setup<'_>) -> Result<Ended, Failure> {
    let server = nbd_blocking::Server::with_config(exports, config);
    serve!(server, setup, io::Result::Ok, io::Result::Ok, [], [])
}

fn tokio(exports: Live, config: ServerConfig, setup: Setup<'_>) -> Result<Ended, Failure> {
    use ::tokio::net::{TcpListener, UnixListener};
    let runtime = ::tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::failed(format!("cannot start tokio: {error}; raise ulimit -u and -n"))
    })?;
    let server = nbd_tokio::Server::with_config(exports, config);
    let (tcp, unix) = (TcpListener::from_std, UnixListener::from_std);
    let handle = runtime.handle().clone();
    runtime.block_on(async {
        serve!(server, setup, tcp, unix, [let _entered = handle.enter();], [.await])
    })
}

#[cfg(feature = "async-std")]
fn async_std(exports: Live, config: ServerConfig, setup: Setup<'_>) -> Result<Ended, Failure> {
    use ::async_std::net::TcpListener;
    use ::async_std::os::unix::net::UnixListener;
    let server = nbd_async_std::Server::with_config(exports, config);
    let (tcp, unix) = (infallible::<_, TcpListener>, infallible::<_, UnixListener>);
    ::async_std::task::block_on(async { serve!(server, setup, tcp, unix, [], [.await]) })
}

#[cfg(feature = "async-std")]
fn infallible<A, B: From<A>>(listener: A) -> io::Result<B> {
    Ok(listener.into())
}

/// What listens, if anything does: a signal that comes before is an orderly end, and no failure to listen.
fn begun<L>(result: Result<L, Failure>, shutting_down: bool) -> Result<Option<L>, Failure> {
    match result {
        Err(_) if shutting_down => Ok(None),
        result => result.map(Some),
    }
}

fn cannot_accept(error: io::Error) -> Failure {
    Failure::failed(format!("cannot use a listening socket: {error}"))
}

fn no_signals(error: io::Error) -> Failure {
    Failure::failed(format!("cannot watch for signals: {error}"))
}
