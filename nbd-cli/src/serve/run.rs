//! Running the server on the chosen adapter.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nbd_engine::export::ExportMap;
use nbd_engine::net::LocalAddr;
use nbd_engine::proto::wire::DEFAULT_PORT;
use nbd_engine::server::Settings;

use super::activation::{self, Socket};
use super::arguments::{Arguments, RuntimeName};
use super::{announce, backend, signals};
use crate::exit::Failure;
use crate::log;

/// `nbd serve`.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let given = activation::sockets()?;
    log::start(arguments.verbose);
    raise_descriptor_limit();
    let places = Places::of(&arguments, given)?;
    let exports = backend::open(&arguments)?;
    let mut settings = Settings::default();
    settings.max_connections = arguments.max_connections;
    settings.drain_timeout = arguments.drain_timeout;
    settings.resize = arguments.resize;
    match arguments.runtime {
        RuntimeName::Blocking => blocking(exports, settings, places),
        RuntimeName::Tokio => tokio(exports, settings, places),
        RuntimeName::AsyncStd => async_std(exports, settings, places),
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
    /// What listens already.
    given: Vec<Socket>,
    oldstyle: bool,
}

impl<'a> Places<'a> {
    /// The sockets that were handed to us; otherwise a Unix socket alone, unless TCP is asked for; TCP on the loopback
    /// address and the registered port, unless told otherwise.
    fn of(arguments: &'a Arguments, given: Option<Vec<Socket>>) -> Result<Self, Failure> {
        let oldstyle = arguments.oldstyle;
        let asked_for_tcp = arguments.port.is_some() || !arguments.ip_addr.is_empty();
        if let Some(given) = given {
            if asked_for_tcp || arguments.unix.is_some() {
                return Err(Failure::usage(
                    "--port, --ip-addr and --unix make no sense here, as the sockets to listen on are handed over by \
                     socket activation (LISTEN_FDS): leave them out",
                ));
            }
            return Ok(Self { tcp: Vec::new(), unix: None, given, oldstyle });
        }
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let addresses: &[IpAddr] = match &arguments.ip_addr[..] {
            [] if arguments.unix.is_some() && !asked_for_tcp => &[],
            [] => &loopback,
            given => given,
        };
        let port = arguments.port.unwrap_or(DEFAULT_PORT);
        let tcp = addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
        Ok(Self { tcp, unix: arguments.unix.as_deref(), given: Vec::new(), oldstyle })
    }
}

/// Tells where clients find us. Who handed sockets over knows that, and what is printed might get into the output of the
/// client that did so.
fn announce(handed_over: bool, addresses: &[LocalAddr]) -> Result<(), Failure> {
    if handed_over {
        let addresses: Vec<String> = addresses.iter().map(announce::uri).collect();
        tracing::info!(?addresses, "serving on sockets that were handed over");
        return Ok(());
    }
    announce::announce(addresses)
}

fn blocking(exports: ExportMap, settings: Settings, places: Places<'_>) -> Result<(), Failure> {
    let server = nbd_blocking::Server::with_settings(exports, settings);
    let server = if places.oldstyle { server.oldstyle("") } else { server };
    // First of all: clients of sockets that were handed over may come, and ask for the end, at once.
    let stop = server.clone();
    signals::watch(move || stop.shut_down()).map_err(no_signals)?;
    let mut listening = Vec::new();
    let handed_over = !places.given.is_empty();
    for socket in places.given {
        let accepting = match socket {
            Socket::Tcp(listener) => server.accept_tcp(listener),
            Socket::Unix(listener) => server.accept_unix(listener),
        };
        listening.push(accepting.map_err(cannot_accept)?);
    }
    for address in &places.tcp {
        listening.push(server.listen_tcp(address).map_err(cannot_listen)?);
    }
    if let Some(path) = places.unix {
        listening.push(server.listen_unix(path).map_err(cannot_listen)?);
    }
    let addresses: Vec<LocalAddr> = listening.iter().map(|one| one.local_addr().clone()).collect();
    announce(handed_over, &addresses)?;
    server.wait();
    for one in listening {
        one.join();
    }
    Ok(())
}

/// Serves until a signal ends it. The servers of the asynchronous adapters have the same methods, and no trait that
/// says so.
macro_rules! serve {
    ($server:expr, $places:expr, $tcp:path, $unix:path) => {{
        let (server, places) = ($server, $places);
        let server = if places.oldstyle { server.oldstyle("") } else { server };
        let stop = server.clone();
        signals::watch(move || stop.shut_down()).map_err(no_signals)?;
        let mut listening = Vec::new();
        let handed_over = !places.given.is_empty();
        for socket in places.given {
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
            listening.push(accepting.map_err(cannot_accept)?);
        }
        for address in &places.tcp {
            listening.push(server.listen_tcp(*address).await.map_err(cannot_listen)?);
        }
        if let Some(path) = places.unix {
            listening.push(server.listen_unix(path).map_err(cannot_listen)?);
        }
        let addresses: Vec<LocalAddr> =
            listening.iter().map(|one| one.local_addr().clone()).collect();
        announce(handed_over, &addresses)?;
        server.wait().await;
        for one in listening {
            one.join().await;
        }
        Ok(())
    }};
}

fn tokio(exports: ExportMap, settings: Settings, places: Places<'_>) -> Result<(), Failure> {
    use ::tokio::net::{TcpListener, UnixListener};
    let runtime = ::tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::failed(format!("cannot start tokio: {error}")))?;
    let server = nbd_tokio::Server::with_settings(exports, settings);
    runtime
        .block_on(async { serve!(server, places, TcpListener::from_std, UnixListener::from_std) })
}

fn async_std(exports: ExportMap, settings: Settings, places: Places<'_>) -> Result<(), Failure> {
    use ::async_std::net::TcpListener;
    use ::async_std::os::unix::net::UnixListener;
    let server = nbd_async_std::Server::with_settings(exports, settings);
    ::async_std::task::block_on(async {
        serve!(server, places, infallible::<_, TcpListener>, infallible::<_, UnixListener>)
    })
}

fn infallible<A, B: From<A>>(listener: A) -> io::Result<B> {
    Ok(listener.into())
}

fn cannot_accept(error: io::Error) -> Failure {
    Failure::failed(format!("cannot use a socket that was handed over: {error}"))
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
