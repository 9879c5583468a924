//! How threads reach servers.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Poll;

use nbd_engine::client::{Connector, Driving};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::reactor::{self, Threads};
use crate::stream::Stream;

/// How this adapter reaches servers.
pub(super) struct Sockets;

impl Connector for Sockets {
    type Transport = Stream;
    type Runtime = Threads;
    const DRIVING: Driving = Driving::Callers;

    fn runtime(&self) -> Threads {
        Threads
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<Stream> {
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
        Stream::tcp(socket.into())
    }

    fn adopt_unix(&self, socket: UnixStream) -> io::Result<Stream> {
        Stream::unix(socket)
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
