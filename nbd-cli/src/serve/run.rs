//! Running the server on the chosen adapter.

use std::io;
use std::time::Duration;

use nbd_engine::export::ExportMap;
use nbd_engine::net::LocalAddr;
use nbd_engine::server::{Outcome, ServerConfig};

use super::activation::{self, Socket};
use super::announce::Announcement;
use super::arguments::{Arguments, RuntimeName};
use super::backend::{self, Opened};
use super::control::{self, Bitmaps, Verbs};
use super::places::{Places, cannot_listen_on_unix};
use super::security::Security;
use super::signals;
use crate::exit::Failure;
use crate::{fault, log};

/// `nbd serve`.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let given = activation::sockets()?;
    log::start(arguments.verbose)?;
    fault::end_on_panic();
    raise_descriptor_limit(&arguments);
    let places = Places::of(&arguments, given)?;
    let Opened { exports, names, trackers } = backend::open(&arguments)?;
    let bitmaps = Bitmaps::new(trackers, &arguments.track)?;
    let verbs = bitmaps.verbs(Verbs::new());
    let control = arguments.control.as_deref().map(|path| control::listen(path, verbs));
    let _removed_at_the_end = control.transpose()?;
    // Who hands sockets over knows where they are, and our standard output may be that of a client.
    let config = ServerConfig::new()
        .with_max_connections(arguments.max_connections)
        .with_drain_timeout(arguments.drain_timeout)
        .with_idle_timeout(arguments.idle_limit())
        .with_stall_timeout(arguments.stall_timeout.duration().unwrap_or(Duration::MAX))
        .with_resize(arguments.resize);
    let (config, security) = Security::of(&arguments, config)?;
    security.warn(&places, arguments.read_only);
    let announcement =
        Announcement { names, printed: places.given.is_empty(), in_tls: security.is_required() };
    let outcome = match arguments.runtime {
        RuntimeName::Blocking => blocking(exports, config, places, &announcement, security),
        RuntimeName::Tokio => tokio(exports, config, places, &announcement, security),
        #[cfg(feature = "async-std")]
        RuntimeName::AsyncStd => async_std(exports, config, places, &announcement, security),
    };
    judge(outcome?, arguments.drain_timeout)
}

/// Whether that is an orderly end.
fn judge(outcome: Outcome, drain_timeout: Duration) -> Result<(), Failure> {
    if outcome.listener_failed {
        return Err(Failure::failed("a listener failed, and the server ended: see the log above"));
    }
    match outcome.requests_cut_off {
        0 => Ok(()),
        count => Err(Failure::CutOff(format!(
            "cut off {count} {} that did not finish within {drain_timeout:?} (--drain-timeout)",
            if count == 1 { "request" } else { "requests" }
        ))),
    }
}

/// Takes as many descriptors as the system lets us: each connection needs one, with threads two.
fn raise_descriptor_limit(arguments: &Arguments) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "the limit of open files stays as it is");
    }
    // Some are for exports and workers.
    let needed = 3 * arguments.max_connections as u64;
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < needed) {
        tracing::info!(
            limit,
            max_connections = arguments.max_connections,
            "the limit of open files (ulimit -n) may not suffice for --max-connections"
        );
    }
}

/// Serves until a signal ends it. The servers of all adapters have the same methods, some with an `.await` behind them,
/// and no trait that says so.
macro_rules! serve {
    ($server:expr, $places:expr, $announcement:expr, $security:expr, $tcp:expr, $unix:expr, [$($wait:tt)*]) => {{
        let (server, mut places) = ($server, $places);
        let server = if places.oldstyle { server.oldstyle("") } else { server };
        // First of all: clients of sockets that were handed over may come, and ask for the end, at once.
        let stop = server.clone();
        let security: Security = $security;
        signals::watch(move || stop.shut_down(), move || security.reload()).map_err(no_signals)?;
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
        if let Some(path) = places.unix {
            let one = server.listen_unix(path);
            let one = one.map_err(|error| cannot_listen_on_unix(&error, path));
            listening.extend(begun(one, server.is_shutting_down())?);
        }
        let addresses: Vec<LocalAddr> =
            listening.iter().map(|one| one.local_addr().clone()).collect();
        $announcement.make(&addresses)?;
        let outcome = server.wait()$($wait)*;
        for one in listening {
            one.join()$($wait)*;
        }
        Ok(outcome)
    }};
}

fn blocking(
    exports: ExportMap,
    config: ServerConfig,
    places: Places<'_>,
    announcement: &Announcement,
    security: Security,
) -> Result<Outcome, Failure> {
    let server = nbd_blocking::Server::with_config(exports, config);
    serve!(server, places, announcement, security, io::Result::Ok, io::Result::Ok, [])
}

fn tokio(
    exports: ExportMap,
    config: ServerConfig,
    places: Places<'_>,
    announcement: &Announcement,
    security: Security,
) -> Result<Outcome, Failure> {
    use ::tokio::net::{TcpListener, UnixListener};
    let runtime = ::tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::failed(format!("cannot start tokio: {error}")))?;
    let server = nbd_tokio::Server::with_config(exports, config);
    let (tcp, unix) = (TcpListener::from_std, UnixListener::from_std);
    runtime.block_on(async { serve!(server, places, announcement, security, tcp, unix, [.await]) })
}

#[cfg(feature = "async-std")]
fn async_std(
    exports: ExportMap,
    config: ServerConfig,
    places: Places<'_>,
    announcement: &Announcement,
    security: Security,
) -> Result<Outcome, Failure> {
    use ::async_std::net::TcpListener;
    use ::async_std::os::unix::net::UnixListener;
    let server = nbd_async_std::Server::with_config(exports, config);
    let (tcp, unix) = (infallible::<_, TcpListener>, infallible::<_, UnixListener>);
    ::async_std::task::block_on(async {
        serve!(server, places, announcement, security, tcp, unix, [.await])
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
