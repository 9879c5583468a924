//! How threads reach servers.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Poll;

use nbd_engine::client::{Connector, CurrentRuntime, DriveMode};
use nbd_engine::{AnyTransport, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::Error;
use crate::duplex::Duplex;
use crate::pump;
use crate::reactor::{self, Threads};
use crate::stream::Stream;

impl Connector for Threads {
    type Runtime = Self;
    const DRIVE_MODE: DriveMode = DriveMode::Caller;

    fn runtime(&self) -> Self {
        *self
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<AnyTransport> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::INPROGRESS | Errno::INTR) => {
                let watched = Arc::new(socket.try_clone()?);
                poll_fn(|_| poll_connected(&watched)).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Box::new(Stream::tcp(socket.into())?))
    }

    fn adopt_unix(&self, socket: UnixStream) -> io::Result<AnyTransport> {
        Ok(Box::new(Stream::unix(socket)?))
    }
}

impl CurrentRuntime for Threads {
    fn current() -> Self {
        Self
    }
}

/// Whether a socket that is being connected has got there.
fn poll_connected(socket: &Arc<OwnedFd>) -> Poll<io::Result<()>> {
    let mut ready = [PollFd::new(&**socket, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec::default()))? == 0 {
        reactor::wait_for(socket, PollFlags::OUT);
        return Poll::Pending;
    }
    Poll::Ready(rustix::net::sockopt::socket_error(socket)?.map_err(Into::into))
}

/// A server that is connected already.
pub(super) struct Peer {
    pub(super) transport: AnyTransport,
    /// As errors name it.
    pub(super) name: String,
}

pub(super) fn tcp(stream: TcpStream) -> Result<Peer, Error> {
    let name = stream.peer_addr().map_or_else(|_| "tcp".into(), |address| address.to_string());
    peer(Stream::tcp(stream), name)
}

pub(super) fn unix(stream: UnixStream) -> Result<Peer, Error> {
    peer(Stream::unix(stream), "unix socket".into())
}

pub(super) fn stream(
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
) -> Result<Peer, Error> {
    let stream = pump::connect(reader, writer).and_then(|(stream, _)| Stream::unix(stream));
    peer(stream, "stream".into())
}

pub(super) fn duplex<S: Read + Write + Send + 'static>(
    stream: S,
    socket: impl FnOnce(&S) -> BorrowedFd<'_>,
) -> Result<Peer, Error> {
    let stream = Duplex::new(stream, socket);
    let named = |stream: &Duplex<S>| stream.peer().to_string();
    let name = stream.as_ref().map_or_else(|_| String::new(), named);
    peer(stream, name)
}

fn peer(stream: io::Result<impl Transport + 'static>, name: String) -> Result<Peer, Error> {
    let stream = stream.map_err(|error| Error::Local(Arc::new(error)))?;
    Ok(Peer { transport: Box::new(stream), name })
}
