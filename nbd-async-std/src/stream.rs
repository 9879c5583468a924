//! Sockets of async-io, which both runtimes wait by, as the engine's transports and listeners.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use async_io::{Async, Timer};
use nbd_engine::export::PeerAddr;
use nbd_engine::server::{Accepted, Listen};
use nbd_engine::{BoxFuture, Socket, net};

/// Is ready once `duration` has passed.
pub(crate) fn sleep(duration: Duration) -> BoxFuture {
    let timer = Timer::after(duration);
    Box::pin(async move {
        timer.await;
    })
}

pub(crate) struct Tcp(pub(crate) Arc<Async<TcpListener>>);

impl Listen for Tcp {
    type Transport = Socket<Async<TcpStream>>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, address) = self.0.accept().await?;
        net::tune_tcp(&stream)?;
        Ok(Accepted::new(Socket(stream), address))
    }
}

#[cfg(target_os = "linux")]
pub(crate) struct Vsock(pub(crate) Async<net::VsockListener>);

#[cfg(target_os = "linux")]
impl Listen for Vsock {
    type Transport = Socket<Async<UnixStream>>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, peer) = self.0.read_with(net::VsockListener::accept).await?;
        Ok(Accepted::new(Socket(Async::new_nonblocking(stream)?), peer))
    }
}

pub(crate) struct Unix(pub(crate) Arc<Async<UnixListener>>);

impl Listen for Unix {
    type Transport = Socket<Async<UnixStream>>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, _) = self.0.accept().await?;
        net::tune_unix(&stream);
        let peer = PeerAddr::unix(&stream);
        Ok(Accepted::new(Socket(stream), peer))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;
    use std::pin::Pin;

    use futures_io::{AsyncRead, AsyncWrite};

    use super::*;

    /// Closes a socket whose peer has closed its own with data unread, so that it was reset.
    #[test]
    fn closing_after_a_reset_is_no_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        ours.write_all(b"unread").unwrap();
        theirs.peek(&mut [0]).unwrap();
        drop(theirs);
        async_io::block_on(async {
            let mut socket = Socket(Async::new(ours).unwrap());
            let read = poll_fn(|cx| Pin::new(&mut socket).poll_read(cx, &mut [0])).await;
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            poll_fn(|cx| Pin::new(&mut socket).poll_close(cx)).await.unwrap();
        });
    }
}
