//! `--metrics`: a small HTTP server, on a thread of its own, that shows metrics to Prometheus.
//!
//! A connection is for one request, and has little time. Only so many are there at a time: one more has the longest
//! connected one closed, which is most likely silent, so that a scraper always gets its turn.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nbd_engine::Throttle;
use nbd_engine::net::{self, DEFAULT_BACKLOG, LocalAddr};
use nbd_engine::server::Metrics;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use super::{MetricsAddress, exposition};
use crate::exit::Failure;
use crate::serve::activation::Socket;
use crate::serve::places::{bind_unix, cannot_listen_on_unix};
use crate::serve::predecessor::Predecessor;
use crate::serve::sockets::{Accepting, Bound, Role};

/// How long a connection may last.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at a time.
const MAX_CONNECTIONS: usize = 16;

/// Bytes of a request's header at most.
const MAX_HEADER: usize = 8 << 10;

/// How long to wait after a failure to accept, which comes again and again without descriptors.
const RETRY: Duration = Duration::from_millis(50);

/// What is shown.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) metrics: Metrics,
    /// The names of the exports that there are at the moment.
    pub(super) exports: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// Begins to serve metrics, as long as the process lives, or until a successor has the sockets.
pub(super) fn listen(
    address: &MetricsAddress,
    predecessor: Option<&mut Predecessor>,
    shown: &Shown,
) -> Result<Vec<(Bound, Listening)>, Failure> {
    let bound = bind(address, predecessor)?;
    let failed = |error: io::Error| {
        Failure::failed(format!("cannot serve metrics at {address} (--metrics): {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let mut listening = Vec::with_capacity(bound.len());
    {
        let _entered = runtime.enter();
        for bound in bound {
            let listener = bound.socket.try_clone().and_then(into_tokio).map_err(failed)?;
            let (alive, stopped) = channel();
            let shown = shown.clone();
            let task = runtime.spawn(async move {
                let _alive: Sender<()> = alive;
                accept_from(listener, shown).await;
            });
            let stopped = Mutex::new(stopped);
            listening.push((bound, Listening { task: task.abort_handle(), stopped }));
        }
    }
    let run = move || runtime.block_on(core::future::pending::<()>());
    std::thread::Builder::new().name("nbd-metrics".into()).spawn(run).map_err(failed)?;
    Ok(listening)
}

/// What accepts scrapers from a socket.
#[derive(Debug)]
pub(super) struct Listening {
    task: AbortHandle,
    /// Is at its end once nothing accepts any more.
    stopped: Mutex<Receiver<()>>,
}

impl Accepting for Listening {
    fn stop(&self) {
        self.task.abort();
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        // It never says anything.
        let _at_its_end = stopped.recv();
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

fn into_tokio(socket: Socket) -> io::Result<Listener> {
    socket.set_nonblocking()?;
    match socket {
        Socket::Tcp(listener) => TcpListener::from_std(listener).map(Listener::Tcp),
        Socket::Unix(listener) => UnixListener::from_std(listener).map(Listener::Unix),
    }
}

/// Finds out whether metrics could be served there now.
///
/// # Errors
/// The error of the system, with its kind, and what is wrong in words.
pub(in crate::serve) fn check(address: &MetricsAddress) -> Result<(), (io::ErrorKind, Failure)> {
    match address {
        MetricsAddress::Tcp(host, port) => {
            use std::net::ToSocketAddrs;
            let found = (host.as_str(), *port).to_socket_addrs().map(Vec::from_iter);
            found.and_then(|found| net::check_tcp(&[found])).map_err(|error| {
                (
                    error.kind(),
                    Failure::failed(format!("{error}; choose another address for --metrics")),
                )
            })
        }
        MetricsAddress::Unix(path) => net::check_unix(path)
            .map_err(|error| (error.kind(), cannot_listen_on_unix(&error, path))),
    }
}

/// The sockets at an address: those of a predecessor, else new ones.
fn bind(
    address: &MetricsAddress,
    mut predecessor: Option<&mut Predecessor>,
) -> Result<Vec<Bound>, Failure> {
    let bound = match address {
        MetricsAddress::Tcp(host, port) => {
            use std::net::ToSocketAddrs;
            let found = (host.as_str(), *port).to_socket_addrs().map(Vec::from_iter);
            let mut bound = Vec::new();
            if let (Ok(found), Some(predecessor)) = (&found, &mut predecessor) {
                let old = |address: &SocketAddr| predecessor.take_tcp(*address, Role::Metrics);
                bound.extend(found.iter().filter_map(old));
            }
            if bound.is_empty() {
                let new = net::bind_resolved(found.map(Vec::into_iter), DEFAULT_BACKLOG);
                let new = new.map_err(|error| {
                    Failure::failed(format!("{error}; choose another address for --metrics"))
                })?;
                bound.extend(new.into_iter().map(|listener| Socket::Tcp(listener).into()));
            }
            bound
        }
        MetricsAddress::Unix(path) => {
            let old = predecessor.and_then(|one| one.take_unix(path, Role::Metrics));
            match old {
                Some(old) => vec![old],
                None => vec![bind_unix(path)?],
            }
        }
    };
    for bound in &bound {
        if let Ok(LocalAddr::Tcp(address)) = bound.socket.local_addr() {
            tracing::info!(url = format!("http://{address}/metrics"), "serving metrics");
        }
    }
    Ok(bound)
}

/// Accepts connections, and serves each as a task.
async fn accept_from(listener: Listener, shown: Shown) {
    let failures = Throttle::new();
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let task = match accept(&listener, &shown).await {
            Ok(task) => task,
            Err(error) => {
                if let Some(times) = failures.count() {
                    tracing::warn!(%error, times, "cannot accept a connection for metrics");
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        connections.push_back(task);
    }
}

async fn accept(listener: &Listener, shown: &Shown) -> io::Result<AbortHandle> {
    let shown = shown.clone();
    let task = match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream, shown))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream, shown))
        }
    };
    Ok(task.abort_handle())
}

/// Answers one request.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shown: Shown) {
    let service = service_fn(move |request: Request<_>| {
        let response = answer(&request, &shown);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.keep_alive(false).max_buf_size(MAX_HEADER);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // Who asks badly, or does not take the answer, harms nobody but itself.
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a scraper of metrics got no answer"),
        Err(_) => tracing::debug!("a scraper of metrics took longer than {PATIENCE:?}"),
    }
}

fn answer<B>(request: &Request<B>, shown: &Shown) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is nothing here but /metrics\n");
    }
    if request.method() != Method::GET {
        let mut refused =
            plain(StatusCode::METHOD_NOT_ALLOWED, "metrics can only be read, by GET\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return refused;
    }
    let mut response =
        Response::new(Full::from(exposition::text(&shown.metrics.snapshot(), &(shown.exports)())));
    let kind = HeaderValue::from_static(exposition::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
