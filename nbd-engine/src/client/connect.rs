//! From a URI to a connection.

use core::future::{Future, poll_fn};
use core::task::Poll;
use core::time::Duration;
use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use atomic_waker::AtomicWaker;
use nbd_proto::wire::TransmissionFlags;
use nbd_proto::{Address, Uri};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::haggling::{Entered, Haggling};
use super::timer::Timer;
use super::{Client, Driving, Error, Options};
use crate::net::check_socket_path;
use crate::runtime::Runtime;
use crate::transport::Transport;

/// What the engine asks of an adapter to reach servers.
pub trait Connector: Send + Sync {
    /// The streams that it gives.
    type Transport: Transport + 'static;
    /// Its time and tasks.
    type Runtime: Runtime;

    /// Who drives its clients' connections.
    const DRIVING: Driving;

    /// Its time and tasks.
    fn runtime(&self) -> Self::Runtime;

    /// Connects to a TCP address and turns Nagle's algorithm off (B-CONV-05).
    fn connect_tcp(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::Transport>> + Send;

    /// Takes over a Unix socket that is connected and non-blocking.
    ///
    /// # Errors
    /// When the platform does not let it.
    fn adopt_unix(&self, socket: UnixStream) -> io::Result<Self::Transport>;
}

impl Client {
    /// Connects to a server and enters the export that the URI names, or the options.
    ///
    /// Cancel-safe: when dropped, there is no connection.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server can't be reached, [`Error::Refused`] when it does not have the export,
    /// [`Error::TimedOut`] after [`Options::connect_timeout`], [`Error::Unsupported`] for what this build can't do.
    pub async fn connect_by<C: Connector>(
        connector: &C,
        uri: &Uri,
        options: &Options,
    ) -> Result<Self, Error> {
        let limit = options.connect_timeout;
        let timed_out = || {
            let what = "connecting";
            Error::TimedOut { peer: uri.to_string().into(), what, limit, sent: false }
        };
        let attempt = async {
            let first = enter(connector, uri, options).await?;
            let mut entered = vec![first];
            if entered[0].details().flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
                for _ in 1..options.connections {
                    entered.push(enter(connector, uri, options).await?);
                }
            }
            Self::new(entered, connector.runtime(), C::DRIVING, options)
        };
        let connected = Timer::new(connector.runtime()).within(limit, attempt).await;
        connected.unwrap_or_else(|| Err(timed_out()))
    }

    /// A client over a stream of the caller's. `peer` names the server in errors; the export is
    /// [`Options::export`].
    ///
    /// # Errors
    /// As for [`connect_by`](Self::connect_by).
    pub async fn over<T: Transport + 'static, R: Runtime>(
        transport: T,
        runtime: R,
        driving: Driving,
        peer: impl Into<Arc<str>>,
        options: &Options,
    ) -> Result<Self, Error> {
        let haggling = Haggling::start(transport, runtime.clone(), peer, options).await?;
        let export = options.export.as_deref().unwrap_or_default();
        let entered = haggling.enter(export, &options.contexts).await?;
        Self::new(vec![entered], runtime, driving, options)
    }
}

impl<T: Transport + 'static> Haggling<T> {
    /// Connects to a server without entering an export. The URI's export is ignored.
    ///
    /// # Errors
    /// As for [`Client::connect_by`].
    pub async fn connect_by<C: Connector<Transport = T>>(
        connector: &C,
        uri: &Uri,
        options: &Options,
    ) -> Result<Self, Error> {
        let limit = options.connect_timeout;
        let reached = Timer::new(connector.runtime()).within(limit, reach(connector, uri)).await;
        let transport = reached.unwrap_or_else(|| {
            let what = "connecting";
            Err(Error::TimedOut { peer: uri.to_string().into(), what, limit, sent: false })
        })?;
        Self::start(transport, connector.runtime(), uri.to_string(), options).await
    }
}

async fn enter<C: Connector>(
    connector: &C,
    uri: &Uri,
    options: &Options,
) -> Result<Entered<C::Transport>, Error> {
    let transport = reach(connector, uri).await?;
    let haggling =
        Haggling::start(transport, connector.runtime(), uri.to_string(), options).await?;
    let export = options.export.as_deref().unwrap_or(uri.export());
    haggling.enter(export, &options.contexts).await
}

/// Connects to where a URI points.
async fn reach<C: Connector>(connector: &C, uri: &Uri) -> Result<C::Transport, Error> {
    let unsupported = |what| Err(Error::Unsupported { address: uri.to_string(), what });
    if uri.requires_tls() {
        return unsupported(match uri.address() {
            Address::Unix { .. } => "there is no TLS yet: use nbd+unix://",
            _ => "there is no TLS yet: use nbd://",
        });
    }
    match uri.address() {
        Address::Tcp { host, port } => reach_tcp(connector, host, *port).await,
        Address::Unix { socket } => {
            let connected = connect_unix(&connector.runtime(), socket).await;
            let adopted = connected.and_then(|stream| connector.adopt_unix(stream));
            adopted.map_err(|source| Error::Connect {
                address: String::from_utf8_lossy(socket).replace('\0', "@"),
                source: Arc::new(source),
            })
        }
        Address::Vsock { .. } => unsupported("there is no vsock yet: use nbd:// or nbd+unix://"),
        _ => unsupported("there are no addresses of this kind yet"),
    }
}

/// Tries all addresses of a host, one after the other.
async fn reach_tcp<C: Connector>(
    connector: &C,
    host: &str,
    port: u16,
) -> Result<C::Transport, Error> {
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

/// The answer of the platform's resolver, which only knows how to block.
#[derive(Default)]
struct Resolved {
    addresses: Mutex<Option<io::Result<Vec<SocketAddr>>>>,
    waker: AtomicWaker,
}

async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let resolved = Arc::new(Resolved::default());
    let (answer, host) = (Arc::clone(&resolved), host.to_owned());
    std::thread::Builder::new().name("nbd-resolver".into()).spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        *answer.addresses.lock().unwrap_or_else(PoisonError::into_inner) = Some(addresses);
        answer.waker.wake();
    })?;
    poll_fn(|cx| {
        resolved.waker.register(cx.waker());
        let mut addresses = resolved.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// How long to wait before a Unix socket is tried again whose server has not accepted its last clients yet.
const BUSY: Duration = Duration::from_millis(5);

/// Connects to a Unix socket: a path, or an abstract name behind a NUL.
async fn connect_unix(runtime: &impl Runtime, socket: &[u8]) -> io::Result<UnixStream> {
    let address = match socket {
        #[cfg(target_os = "linux")]
        [0, name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => {
            check_socket_path(Path::new(OsStr::from_bytes(path)))?;
            SocketAddrUnix::new(path)?
        }
    };
    loop {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        match rustix::net::connect(&stream, &address) {
            Ok(()) => return Ok(stream),
            Err(Errno::AGAIN) => runtime.sleep(BUSY).await,
            Err(error) => return Err(error.into()),
        }
    }
}
