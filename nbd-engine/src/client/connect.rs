//! From a URI to a connection.

use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;
use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(target_os = "linux")]
use {
    rustix::fs::{Mode, OFlags},
    std::os::fd::AsRawFd,
};

use atomic_waker::AtomicWaker;
use nbd_proto::{Address, Uri};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::timer::Timer;
use super::{Client, ClientConfig, Connector, CurrentRuntime, Error, Negotiation, TransportFrom};
use crate::net::check_socket_path;
use crate::runtime::Runtime;
use crate::transport::AnyTransport;

/// # Connecting
impl<C: CurrentRuntime> Client<C> {
    /// Connects to the export that a URI names, with the default configuration.
    ///
    /// Cancel-safe: when dropped, there is no connection.
    ///
    /// # Errors
    /// [`Error::Uri`] when the text is no NBD URI; otherwise those of [`connect_with`](Self::connect_with).
    ///
    /// # Panics
    /// Without a runtime, on those that are not global.
    pub async fn connect(uri: &str) -> Result<Self, Error> {
        Self::connect_with(&uri.parse()?, &ClientConfig::default()).await
    }

    /// Connects to the export that a URI names.
    ///
    /// Cancel-safe: when dropped, there is no connection.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server can't be reached, [`Error::Refused`] when it does not have the export,
    /// [`Error::Protocol`] when it breaks the protocol or speaks another one, [`Error::TimedOut`] after
    /// [`ClientConfig::connect_timeout`], [`Error::Unsupported`] for what this build can't do, and for TLS
    /// `Error::Tls` and `Error::TlsSetup`.
    ///
    /// # Panics
    /// Without a runtime, on those that are not global.
    pub async fn connect_with(uri: &Uri, config: &ClientConfig) -> Result<Self, Error> {
        Self::connect_by(C::current(), uri, config).await
    }

    /// A client over a byte stream of yours, for the export of this name; an empty name is that of the default export.
    /// Set `TCP_NODELAY` on TCP streams. There is one connection, however many are configured.
    ///
    /// Cancel-safe: when dropped, the stream is dropped.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    ///
    /// # Panics
    /// Without a runtime, on those that are not global.
    pub async fn over<S>(stream: S, export: &str, config: &ClientConfig) -> Result<Self, Error>
    where
        C: TransportFrom<S>,
    {
        let connector = C::current();
        let transport = connector.transport_from(stream);
        Self::over_transport(connector, transport, "stream", export, config).await
    }
}

/// # For adapters
impl<C: Connector> Client<C> {
    /// [`connect_with`](Self::connect_with) by a given connector.
    ///
    /// Cancel-safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// See there.
    pub async fn connect_by(connector: C, uri: &Uri, config: &ClientConfig) -> Result<Self, Error> {
        let limit = config.connect_timeout();
        let timer = Timer::new(connector.runtime());
        let attempt = async {
            let negotiation = Negotiation::connect_by(connector, uri, config).await?;
            negotiation.enter_or_abort(uri.export()).await
        };
        let attempted = timer.within(limit, attempt).await;
        let (mut negotiation, first) = attempted.unwrap_or_else(|| Err(timed_out(uri, limit)))?;
        negotiation.client_of(first).await
    }

    /// [`over`](Self::over) by a given connector. `peer` names the server in errors.
    ///
    /// Cancel-safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// See there.
    pub async fn over_transport(
        connector: C,
        transport: AnyTransport,
        peer: impl Into<Arc<str>>,
        export: &str,
        config: &ClientConfig,
    ) -> Result<Self, Error> {
        let negotiation = Negotiation::over_transport(connector, transport, peer, config);
        let (mut negotiation, first) = negotiation.await?.enter_or_abort(export).await?;
        negotiation.client_of(first).await
    }
}

/// Connects to where a URI points, in time.
pub(super) async fn reach_in_time<C: Connector>(
    connector: &C,
    uri: &Uri,
    limit: Duration,
) -> Result<AnyTransport, Error> {
    let reached = Timer::new(connector.runtime()).within(limit, reach(connector, uri)).await;
    reached.unwrap_or_else(|| Err(timed_out(uri, limit)))
}

fn timed_out(uri: &Uri, limit: Duration) -> Error {
    Error::TimedOut { peer: uri.to_string().into(), what: "connecting", limit, sent: false }
}

/// Connects to where a URI points.
async fn reach<C: Connector>(connector: &C, uri: &Uri) -> Result<AnyTransport, Error> {
    let unsupported = |what| Err(Error::Unsupported { address: uri.to_string(), what });
    if cfg!(not(feature = "tls")) && uri.requires_tls() {
        return unsupported(match uri.address() {
            Address::Unix { .. } => {
                "this build has no TLS: use nbd+unix://, or build it with the feature tls"
            }
            _ => "this build has no TLS: use nbd://, or build it with the feature tls",
        });
    }
    match uri.address() {
        Address::Tcp { host, port } => reach_tcp(connector, host, *port).await,
        Address::Unix { socket } => {
            let connected = connect_unix(&connector.runtime(), socket).await;
            let adopted = connected.and_then(|stream| connector.adopt_unix(stream));
            let address = || shown(socket);
            adopted
                .map_err(|source| Error::Connect { address: address(), source: Arc::new(source) })
        }
        #[cfg(target_os = "linux")]
        Address::Vsock { cid, port } => {
            let (cid, port) = (*cid, *port);
            let connected =
                on_a_thread("nbd-vsock", move || crate::net::connect_vsock(cid, port)).await;
            let adopted = connected.and_then(|stream| connector.adopt_unix(stream));
            let address = || format!("vsock {cid}:{port}");
            adopted
                .map_err(|source| Error::Connect { address: address(), source: Arc::new(source) })
        }
        #[cfg(not(target_os = "linux"))]
        Address::Vsock { .. } => unsupported("vsock is for Linux: use nbd:// or nbd+unix://"),
        _ => unsupported("there are no addresses of this kind yet"),
    }
}

/// Tries all addresses of a host, one after the other.
async fn reach_tcp<C: Connector>(
    connector: &C,
    host: &str,
    port: u16,
) -> Result<AnyTransport, Error> {
    let named =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let failed = |address: String, source| Error::Connect { address, source: Arc::new(source) };
    let addresses = resolve(host, port).await.map_err(|error| failed(named.clone(), error))?;
    let mut tried = Vec::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match connector.connect_tcp(address).await {
            Ok(transport) => return Ok(transport),
            Err(error) => last = error,
        }
        tried.push(address.to_string());
    }
    let address = match &tried[..] {
        [only] if *only == named => named,
        [] => named,
        tried => format!("{named} (tried {})", tried.join(", ")),
    };
    Err(failed(address, last))
}

/// The answer of something that only knows how to block.
struct Answer<T> {
    result: Mutex<Option<io::Result<T>>>,
    waker: AtomicWaker,
}

/// Waits for something that only knows how to block. When this is dropped it runs to its end all the same.
async fn on_a_thread<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let answer = Arc::new(Answer { result: Mutex::new(None), waker: AtomicWaker::new() });
    let answers = Arc::clone(&answer);
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let result = run();
        *answers.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        answers.waker.wake();
    })?;
    poll_fn(|cx| {
        answer.waker.register(cx.waker());
        let mut result = answer.result.lock().unwrap_or_else(PoisonError::into_inner);
        result.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let host = host.to_owned();
    let resolve = move || Ok((host.as_str(), port).to_socket_addrs()?.collect());
    on_a_thread("nbd-resolver", resolve).await
}

/// How long to wait before a Unix socket is tried again whose server has not accepted its last clients yet.
const BUSY: Duration = Duration::from_millis(5);

/// How errors name a Unix socket: with a `/`, or with `@` in front of an abstract name, as no host is.
fn shown(socket: &[u8]) -> String {
    let text = String::from_utf8_lossy(socket).replace('\0', "@");
    match text.contains('/') || text.starts_with('@') {
        true => text,
        false => format!("./{text}"),
    }
}

/// The address of a Unix socket, and the folder that has to stay open while it is used.
fn unix_address(socket: &[u8]) -> io::Result<(SocketAddrUnix, Option<OwnedFd>)> {
    #[cfg(target_os = "linux")]
    if let [0, name @ ..] = socket {
        let too_long = |_| {
            let text = format!(
                "the name of an abstract socket has at most 107 bytes, and this one has {}; choose a shorter one",
                name.len()
            );
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        return Ok((SocketAddrUnix::new_abstract_name(name).map_err(too_long)?, None));
    }
    let path = Path::new(OsStr::from_bytes(socket));
    match check_socket_path(path) {
        Ok(()) => Ok((SocketAddrUnix::new(path)?, None)),
        Err(too_long) => through_its_folder(path, too_long),
    }
}

/// The address of a socket whose path is too long, by its folder's descriptor, whose path is short.
#[cfg(target_os = "linux")]
fn through_its_folder(
    path: &Path,
    too_long: io::Error,
) -> io::Result<(SocketAddrUnix, Option<OwnedFd>)> {
    let name = path.file_name().unwrap_or_default();
    let folder = path.parent().unwrap_or(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let descriptor = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
    let address = SocketAddrUnix::new(descriptor.join(name));
    Ok((address.map_err(|_| too_long)?, Some(folder)))
}

#[cfg(not(target_os = "linux"))]
fn through_its_folder(
    _: &Path,
    too_long: io::Error,
) -> io::Result<(SocketAddrUnix, Option<OwnedFd>)> {
    Err(too_long)
}

/// Connects to a Unix socket: a path, or an abstract name behind a NUL.
async fn connect_unix(runtime: &impl Runtime, path: &[u8]) -> io::Result<UnixStream> {
    let (address, _folder) = unix_address(path)?;
    loop {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        match rustix::net::connect(&stream, &address) {
            Ok(()) => return Ok(stream),
            Err(Errno::AGAIN) => runtime.sleep(BUSY).await,
            Err(Errno::CONNREFUSED) if is_other_file(path) => return Err(not_a_socket()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether there is something at that path that is no socket: the system reports it as a socket that nobody listens on.
fn is_other_file(path: &[u8]) -> bool {
    let metadata = std::fs::metadata(Path::new(OsStr::from_bytes(path)));
    metadata.is_ok_and(|metadata| !metadata.file_type().is_socket())
}

fn not_a_socket() -> io::Error {
    let text = "it is not a socket; give the path of the socket that the server listens on";
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
