//! Running the server on the chosen adapter.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use nbd_engine::net::LocalAddr;
use nbd_engine::server::{Outcome, ServerConfig};

use super::Arguments;
use super::activation::{self, Socket};
use super::announce::Announcement;
use super::backend;
#[cfg(target_os = "linux")]
use super::config::VsockAddress;
use super::config::{self, Config, LogLevel, RuntimeName};
use super::control::{self, Verbs};
use super::live::Live;
use super::metrics::Monitor;
use super::places::{Places, cannot_listen_on_unix};
use super::reload::Reload;
use super::sandbox::{Needs, Sandbox, Sealed};
use super::security::Security;
use super::signals;
use crate::exit::Failure;
use crate::{fault, log, output};

/// `nbd serve`.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let given = activation::sockets()?;
    let config = arguments.config()?;
    if arguments.print_config {
        let text = config::print(&config)?;
        return output::write(|out| Ok(out.write_all(text.as_bytes())?));
    }
    if arguments.check {
        log::start(LogLevel::Warn.verbosity())?;
        return check(&config);
    }
    log::collect(config.server.log.verbosity());
    fault::end_on_panic();
    raise_descriptor_limit(&config);
    let places = Places::of(&config, given)?;
    let exports = Live::open(&config)?;
    let (server, security) = Security::of(&config, server_config(&config))?;
    // From here on only what is needed can be opened, by this thread and by those that it starts.
    let needs = Needs::of(&config, arguments.config.as_deref());
    let sandbox = Sandbox::confine(config.server.sandbox, &needs)?;
    log::write()?;
    let monitor = Monitor::start(config.server.metrics.as_ref())?;
    let server = server.with_metrics(monitor.metrics());
    security.warn(&places, &config);
    let in_tls = security.is_required();
    let log = LogLevel::of_verbosity(arguments.verbose);
    let reload = Reload::new(arguments.config, log, config.clone(), exports.clone(), security);
    let reload = Arc::new(reload);
    let verbs = control::exports(&reload, exports.bitmaps().verbs(Verbs::new()));
    let served = exports.clone();
    let verbs = control::status_verbs(verbs, monitor.metrics(), move || served.map());
    let control = config.server.control.as_deref().map(|path| control::listen(path, verbs));
    let _removed_at_the_end = control.transpose()?;
    let announcement = Announcement {
        names: config.exports.iter().map(|export| export.name.clone()).collect(),
        // Who hands sockets over knows where they are, and our standard output may be that of a client.
        printed: places.given.is_empty(),
        in_tls,
    };
    let announce = move |addresses: &[LocalAddr]| {
        let sealed = sandbox.seal()?;
        announcement.make(addresses).map(|()| sealed)
    };
    let outcome = match config.server.runtime {
        RuntimeName::Blocking => blocking(exports, server, places, announce, reload),
        RuntimeName::Tokio => tokio(exports, server, places, announce, reload),
        #[cfg(feature = "async-std")]
        RuntimeName::AsyncStd => async_std(exports, server, places, announce, reload),
    };
    judge(outcome?, &config)
}

/// `--check`: what else can be found out without a change to anything.
fn check(config: &Config) -> Result<(), Failure> {
    backend::inspect(config)?;
    Security::of(config, server_config(config)).map(drop)
}

/// What the server is, besides its exports and TLS.
fn server_config(config: &Config) -> ServerConfig {
    let server = &config.server;
    ServerConfig::new()
        .with_max_connections(server.max_connections)
        .with_drain_timeout(server.drain_timeout.0)
        .with_idle_timeout(server.idle_limit())
        .with_stall_timeout(server.stall_timeout.duration().unwrap_or(Duration::MAX))
}

/// Whether that is an orderly end.
fn judge(outcome: Outcome, config: &Config) -> Result<(), Failure> {
    if outcome.listener_failed {
        return Err(Failure::failed("a listener failed, and the server ended: see the log above"));
    }
    match outcome.requests_cut_off {
        0 => Ok(()),
        count => Err(Failure::CutOff(format!(
            "cut off {count} {} that did not finish within {} ({})",
            if count == 1 { "request" } else { "requests" },
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
    let needed = 3 * config.server.max_connections as u64;
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < needed) {
        tracing::info!(
            limit,
            max_connections = config.server.max_connections,
            "the limit of open files (ulimit -n) may not suffice for --max-connections"
        );
    }
}

/// Serves until a signal ends it. The servers of all adapters have the same methods, some with an `.await` behind them,
/// and no trait that says so.
macro_rules! serve {
    ($server:expr, $places:expr, $announce:expr, $reload:expr, $tcp:expr, $unix:expr, [$($wait:tt)*]) => {{
        let (server, mut places) = ($server, $places);
        let server = if places.oldstyle { server.oldstyle("") } else { server };
        // First of all: clients of sockets that were handed over may come, and ask for the end, at once.
        let stop = server.clone();
        let reload: Arc<Reload> = $reload;
        signals::watch(move || stop.shut_down(), move || reload.hang_up()).map_err(no_signals)?;
        let mut listening = Vec::new();
        for socket in core::mem::take(&mut places.given) {
            let accepting = match socket {
                Socket::Tcp(listener) => {
                    listener.set_nonblocking(true).map_err(cannot_accept)?;
                    server.accept_tcp($tcp(listener).map_err(cannot_accept)?)
                }
                Socket::Unix(listener) => {
                    listener.set_nonblocking(true).map_err(cannot_accept)?;
                    server.accept_unix($unix(listener).map_err(cannot_accept)?)
                }
            };
            listening.extend(begun(accepting.map_err(cannot_accept), server.is_shutting_down())?);
        }
        for listener in places.bind_tcp()? {
            let one = $tcp(listener).and_then(|listener| server.accept_tcp(listener));
            listening.extend(begun(one.map_err(cannot_accept), server.is_shutting_down())?);
        }
        for path in core::mem::take(&mut places.unix) {
            let one = server.listen_unix(path);
            let one = one.map_err(|error| cannot_listen_on_unix(&error, path));
            listening.extend(begun(one, server.is_shutting_down())?);
        }
        #[cfg(target_os = "linux")]
        for VsockAddress { cid, port } in core::mem::take(&mut places.vsock) {
            let one = server.listen_vsock(cid, port);
            let one = one.map_err(|error| Failure::failed(format!("{error}; see man 7 vsock")));
            listening.extend(begun(one, server.is_shutting_down())?);
        }
        let addresses: Vec<LocalAddr> =
            listening.iter().map(|one| one.local_addr().clone()).collect();
        let _sealed = $announce(&addresses)?;
        let outcome = server.wait()$($wait)*;
        for one in listening {
            one.join()$($wait)*;
        }
        Ok(outcome)
    }};
}

fn blocking(
    exports: Live,
    config: ServerConfig,
    places: Places<'_>,
    announce: impl FnOnce(&[LocalAddr]) -> Result<Sealed, Failure>,
    reload: Arc<Reload>,
) -> Result<Outcome, Failure> {
    let server = nbd_blocking::Server::with_config(exports, config);
    serve!(server, places, announce, reload, io::Result::Ok, io::Result::Ok, [])
}

fn tokio(
    exports: Live,
    config: ServerConfig,
    places: Places<'_>,
    announce: impl FnOnce(&[LocalAddr]) -> Result<Sealed, Failure>,
    reload: Arc<Reload>,
) -> Result<Outcome, Failure> {
    use ::tokio::net::{TcpListener, UnixListener};
    let runtime = ::tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::failed(format!("cannot start tokio: {error}")))?;
    let server = nbd_tokio::Server::with_config(exports, config);
    let (tcp, unix) = (TcpListener::from_std, UnixListener::from_std);
    runtime.block_on(async { serve!(server, places, announce, reload, tcp, unix, [.await]) })
}

#[cfg(feature = "async-std")]
fn async_std(
    exports: Live,
    config: ServerConfig,
    places: Places<'_>,
    announce: impl FnOnce(&[LocalAddr]) -> Result<Sealed, Failure>,
    reload: Arc<Reload>,
) -> Result<Outcome, Failure> {
    use ::async_std::net::TcpListener;
    use ::async_std::os::unix::net::UnixListener;
    let server = nbd_async_std::Server::with_config(exports, config);
    let (tcp, unix) = (infallible::<_, TcpListener>, infallible::<_, UnixListener>);
    ::async_std::task::block_on(async {
        serve!(server, places, announce, reload, tcp, unix, [.await])
    })
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
