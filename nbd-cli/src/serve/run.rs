//! Running the server on the chosen adapter.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nbd_engine::export::ExportMap;
use nbd_engine::net::LocalAddr;
use nbd_engine::proto::wire::DEFAULT_PORT;
use nbd_engine::server::Settings;

use super::arguments::{Arguments, RuntimeName};
use super::{announce, backend, signals};
use crate::exit::Failure;
use crate::log;

/// `nbd serve`.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    log::start(arguments.verbose);
    raise_descriptor_limit();
    let exports = backend::open(&arguments)?;
    let mut settings = Settings::default();
    settings.max_connections = arguments.max_connections;
    settings.drain_timeout = arguments.drain_timeout;
    settings.resize = arguments.resize;
    let places = Places::of(&arguments);
    match arguments.runtime {
        RuntimeName::Blocking => blocking(exports, settings, &places),
        RuntimeName::Tokio => tokio(exports, settings, &places),
        RuntimeName::AsyncStd => async_std(exports, settings, &places),
    }
}

/// Takes as many descriptors as the system lets us: each connection needs one, with threads two.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "the limit of open files stays as it is");
    }
}

/// Where to listen, and how to speak there.
struct Places<'a> {
    tcp: Vec<SocketAddr>,
    unix: Option<&'a std::path::Path>,
    oldstyle: bool,
}

impl<'a> Places<'a> {
    /// A Unix socket alone, unless TCP is asked for; TCP on the loopback address and the registered port, unless told
    /// otherwise.
    fn of(arguments: &'a Arguments) -> Self {
        let asked_for_tcp = arguments.port.is_some() || !arguments.ip_addr.is_empty();
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let addresses: &[IpAddr] = match &arguments.ip_addr[..] {
            [] if arguments.unix.is_some() && !asked_for_tcp => &[],
            [] => &loopback,
            given => given,
        };
        let port = arguments.port.unwrap_or(DEFAULT_PORT);
        let tcp = addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
        Self { tcp, unix: arguments.unix.as_deref(), oldstyle: arguments.oldstyle }
    }
}

fn blocking(exports: ExportMap, settings: Settings, places: &Places<'_>) -> Result<(), Failure> {
    let server = nbd_blocking::Server::with_settings(exports, settings);
    let server = if places.oldstyle { server.oldstyle("") } else { server };
    let mut listening = Vec::new();
    for address in &places.tcp {
        listening.push(server.listen_tcp(address).map_err(cannot_listen)?);
    }
    if let Some(path) = places.unix {
        listening.push(server.listen_unix(path).map_err(cannot_listen)?);
    }
    let stop = server.clone();
    signals::watch(move || stop.shut_down()).map_err(no_signals)?;
    let addresses: Vec<LocalAddr> = listening.iter().map(|one| one.local_addr().clone()).collect();
    announce::announce(&addresses)?;
    server.wait().map_err(|error| Failure::failed(format!("cannot wait for events: {error}")))?;
    for one in listening {
        one.join();
    }
    Ok(())
}

/// Serves until a signal ends it. The servers of the asynchronous adapters have the same methods, and no trait that
/// says so.
macro_rules! serve {
    ($server:expr, $places:expr) => {{
        let (server, places) = ($server, $places);
        let server = if places.oldstyle { server.oldstyle("") } else { server };
        let mut listening = Vec::new();
        for address in &places.tcp {
            listening.push(server.listen_tcp(*address).await.map_err(cannot_listen)?);
        }
        if let Some(path) = places.unix {
            listening.push(server.listen_unix(path).map_err(cannot_listen)?);
        }
        let stop = server.clone();
        signals::watch(move || stop.shut_down()).map_err(no_signals)?;
        let addresses: Vec<LocalAddr> =
            listening.iter().map(|one| one.local_addr().clone()).collect();
        announce::announce(&addresses)?;
        server.wait().await;
        for one in listening {
            one.join().await;
        }
        Ok(())
    }};
}

fn tokio(exports: ExportMap, settings: Settings, places: &Places<'_>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::failed(format!("cannot start tokio: {error}")))?;
    runtime.block_on(async { serve!(nbd_tokio::Server::with_settings(exports, settings), places) })
}

fn async_std(exports: ExportMap, settings: Settings, places: &Places<'_>) -> Result<(), Failure> {
    async_std::task::block_on(async {
        serve!(nbd_async_std::Server::with_settings(exports, settings), places)
    })
}

/// The error names the place; this adds what to do about it.
fn cannot_listen(error: io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; stop that server, or choose another place (--port 0 takes a free port)"
        }
        io::ErrorKind::PermissionDenied => {
            "; choose a port above 1023, or a socket path in a folder that you may write to"
        }
        io::ErrorKind::AddrNotAvailable => "; choose an address of this machine",
        io::ErrorKind::NotFound => "; create the folder first",
        io::ErrorKind::AlreadyExists => "; choose another path",
        _ => "",
    };
    Failure::failed(format!("{error}{remedy}"))
}

fn no_signals(error: io::Error) -> Failure {
    Failure::failed(format!("cannot watch for signals: {error}"))
}
