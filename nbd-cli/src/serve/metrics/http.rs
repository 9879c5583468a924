//! `--metrics`: a small HTTP server, on a thread of its own, that shows metrics to Prometheus.
//!
//! A connection is for one request, and has little time. Only so many are there at a time: one more has the longest
//! connected one closed, which is most likely silent, so that a scraper always gets its turn.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nbd_engine::Throttle;
use nbd_engine::net::{self, DEFAULT_BACKLOG, SocketPath};
use nbd_engine::server::Metrics;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use super::{MetricsAddress, exposition};
use crate::exit::Failure;
use crate::serve::places::cannot_listen_on_unix;

/// How long a connection may last.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at a time.
const MAX_CONNECTIONS: usize = 16;

/// Bytes of a request's header at most.
const MAX_HEADER: usize = 8 << 10;

/// How long to wait after a failure to accept, which comes again and again without descriptors.
const RETRY: Duration = Duration::from_millis(50);

/// Begins to serve metrics, as long as the process lives. The path of a Unix socket goes when what is given back is
/// dropped.
pub(super) fn listen(
    address: &MetricsAddress,
    metrics: &Metrics,
) -> Result<Option<SocketPath>, Failure> {
    let (listeners, path) = bind(address)?;
    let failed = |error: io::Error| {
        Failure::failed(format!("cannot serve metrics at {address} (--metrics): {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    {
        let _entered = runtime.enter();
        for listener in listeners {
            runtime.spawn(accept_from(listener.into_tokio().map_err(failed)?, metrics.clone()));
        }
    }
    let run = move || runtime.block_on(core::future::pending::<()>());
    std::thread::Builder::new().name("nbd-metrics".into()).spawn(run).map_err(failed)?;
    Ok(path)
}

/// A socket that listens, of the standard library.
enum Bound {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

impl Bound {
    fn into_tokio(self) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Listener::Tcp)
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Listener::Unix)
            }
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

fn bind(address: &MetricsAddress) -> Result<(Vec<Bound>, Option<SocketPath>), Failure> {
    match address {
        MetricsAddress::Tcp(host, port) => {
            use std::net::ToSocketAddrs;
            let found = (host.as_str(), *port).to_socket_addrs();
            let bound = net::bind_resolved(found, DEFAULT_BACKLOG).map_err(|error| {
                Failure::failed(format!("{error}; choose another address for --metrics"))
            })?;
            for listener in &bound {
                if let Ok(address) = listener.local_addr() {
                    tracing::info!(url = format!("http://{address}/metrics"), "serving metrics");
                }
            }
            Ok((bound.into_iter().map(Bound::Tcp).collect(), None))
        }
        MetricsAddress::Unix(path) => {
            let bound = net::bind_unix(path, DEFAULT_BACKLOG);
            let (listener, path) = bound.map_err(|error| cannot_listen_on_unix(&error, path))?;
            Ok((vec![Bound::Unix(listener)], Some(path)))
        }
    }
}

/// Accepts connections, and serves each as a task.
async fn accept_from(listener: Listener, metrics: Metrics) {
    let failures = Throttle::new();
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let task = match accept(&listener, &metrics).await {
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

async fn accept(listener: &Listener, metrics: &Metrics) -> io::Result<AbortHandle> {
    let metrics = metrics.clone();
    let task = match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream, metrics))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream, metrics))
        }
    };
    Ok(task.abort_handle())
}

/// Answers one request.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, metrics: Metrics) {
    let service = service_fn(move |request: Request<_>| {
        let response = answer(&request, &metrics);
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

fn answer<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
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
    let mut response = Response::new(Full::from(exposition::text(&metrics.snapshot())));
    let kind = HeaderValue::from_static(exposition::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
