//! A connection whose export was entered, for something else than a client.

use std::future::poll_fn;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::client as engine;
use nbd_engine::proto::client::Passage;
use nbd_engine::proto::wire::DecodeError;

use super::ExportDetails;
use crate::reactor::block_on;
use crate::stream::Stream;

/// Bytes that are carried in one direction at a time.
const BUFFER: usize = 256 << 10;

/// A connection on which an export was entered, and on which no request was sent: for those that speak the transmission
/// phase by themselves, such as the kernel. Made by [`Negotiation::hand_over`](super::Negotiation::hand_over).
///
/// Nothing of the stream is kept back: the next byte that the server sends is the next one that is read. Dropping it closes
/// the connection without `NBD_CMD_DISC`.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::TcpStream;
/// use nbd_blocking::client::ClientConfig;
/// use nbd_blocking::export::{ExportMap, Memory};
/// use nbd_blocking::{Negotiation, Server};
///
/// let server = Server::new(ExportMap::new().with("disk", Memory::new(1 << 20)?)?);
/// let listening = server.listen_tcp("127.0.0.1:0")?;
///
/// let config = ClientConfig::new().with_structured_replies(false).with_extended_headers(false);
/// let uri = listening.local_addr().uri("disk")?;
/// let entered = Negotiation::connect(&uri, &config)?.hand_over("disk")?;
/// let socket = entered.socket().expect("TCP without TLS").try_clone_to_owned()?;
/// let mut socket = TcpStream::from(socket);
/// socket.set_nonblocking(false)?;
///
/// let flush = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3][..], b"a cookie", &[0; 12]].concat();
/// socket.write_all(&flush)?;
/// let mut reply = [0; 16];
/// socket.read_exact(&mut reply)?;
/// assert_eq!(&reply[4..], b"\0\0\0\0a cookie");
/// # drop((socket, entered));
/// # server.shut_down();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Entered(engine::Entered);

impl Entered {
    pub(super) const fn new(entered: engine::Entered) -> Self {
        Self(entered)
    }

    /// What was agreed about the export.
    #[must_use]
    pub const fn export(&self) -> &ExportDetails {
        self.0.export()
    }

    /// The socket, which may be duplicated and handed on, and is in non-blocking mode; `None` if the bytes on it are not
    /// those of the protocol, as with TLS, or if the stream is no socket.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.0.socket()
    }

    /// Carries bytes between the connection and a socket, whose other end speaks the transmission phase, until either
    /// of them ends, and blocks meanwhile. Then both are closed. For connections without a [`socket`](Self::socket) of
    /// their own.
    ///
    /// With simple replies the end may come from a reply as well: when the server answers a request by `NBD_ESHUTDOWN`, that
    /// reply does not pass, and both are closed in its place. The kernel's client takes that error for a fault of the disk,
    /// and the end of a connection for what it is.
    ///
    /// # Errors
    /// When either of them fails; [`io::ErrorKind::UnexpectedEof`] when the server ends the connection first.
    pub fn carry(self, socket: UnixStream) -> io::Result<()> {
        let export = self.export();
        let simple = !export.is_structured() && !export.is_extended();
        let mut passage = simple.then(Passage::new);
        let mut near = Stream::unix(socket)?;
        let mut far = self.0.into_transport();
        let (mut outward, mut inward) = (Lane::new(), Lane::new());
        block_on(poll_fn(move |cx| {
            loop {
                let requests = |bytes: &[u8]| match &mut passage {
                    None => Ok(bytes.len()),
                    Some(passage) => passage.requests(bytes),
                };
                let sent = outward.poll(&mut near, &mut far, cx, requests)?;
                if sent == Poll::Ready(false) {
                    // The last request was sent; the server may be gone already.
                    let _gone = ready!(Pin::new(&mut far).poll_close(cx));
                    return Poll::Ready(Ok(()));
                }
                let replies = |bytes: &[u8]| match &mut passage {
                    None => Ok(bytes.len()),
                    Some(passage) => passage.replies(bytes),
                };
                let received = inward.poll(&mut far, &mut near, cx, replies)?;
                let over = passage.as_ref().is_some_and(Passage::is_over) && inward.is_empty();
                if received == Poll::Ready(false) || over {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                if sent.is_pending() && received.is_pending() {
                    return Poll::Pending;
                }
            }
        }))?
    }
}

/// One direction.
struct Lane {
    buffer: Vec<u8>,
    /// What was read and not written yet.
    start: usize,
    /// Where that ends which may be written.
    passed: usize,
    end: usize,
    unflushed: bool,
}

impl Lane {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER], start: 0, passed: 0, end: 0, unflushed: false }
    }

    /// Whether all is written that may be.
    const fn is_empty(&self) -> bool {
        self.start == self.passed
    }

    /// Makes a step; `false` once `from` has ended and everything was written. `look` is given what was read, and returns
    /// how much of it may be written.
    fn poll(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
        look: impl FnOnce(&[u8]) -> Result<usize, DecodeError>,
    ) -> Poll<io::Result<bool>> {
        if !self.is_empty() {
            let unsent = &self.buffer[self.start..self.passed];
            let count = ready!(Pin::new(to).poll_write(cx, unsent))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += count;
            self.unflushed = true;
            return Poll::Ready(Ok(true));
        }
        // What is left is the beginning of a header.
        self.buffer.copy_within(self.start..self.end, 0);
        (self.end, self.start, self.passed) = (self.end - self.start, 0, 0);
        let read = Pin::new(from).poll_read(cx, &mut self.buffer[self.end..])?;
        if read.is_pending() && self.unflushed {
            ready!(Pin::new(&mut *to).poll_flush(cx))?;
            self.unflushed = false;
        }
        let count = ready!(read);
        self.end += count;
        if count > 0 {
            let passed = look(&self.buffer[..self.end]);
            let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            self.passed = passed.map_err(malformed)?;
            return Poll::Ready(Ok(true));
        }
        ready!(Pin::new(to).poll_flush(cx))?;
        Poll::Ready(Ok(false))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;

    use super::super::{ClientConfig, Negotiation};
    use super::*;
    use crate::export::{Export, ExportError, ExportMap, Memory, Result as ExportResult};
    use crate::{Client, Server};

    fn server(folder: &tempfile::TempDir) -> (Server, engine::Uri) {
        let server =
            Server::new(ExportMap::new().with("disk", Memory::new(4 << 20).unwrap()).unwrap());
        let listening = server.listen_unix(folder.path().join("socket")).unwrap();
        let uri = listening.local_addr().uri("disk").unwrap();
        (server, uri)
    }

    fn config() -> ClientConfig {
        ClientConfig::new().with_structured_replies(false).with_extended_headers(false)
    }

    /// A READ (command 0) or WRITE (1) request of the simple protocol, without payload.
    fn request(command: u8, offset: u64, length: u32) -> Vec<u8> {
        let mut request = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, command];
        request.extend(offset.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request
    }

    #[test]
    fn a_connection_without_a_socket_is_carried_over_another_one_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (server, uri) = server(&folder);
        let length = 3 << 20;
        let data: Vec<u8> = (0..length).map(|index: u32| (index % 251) as u8).collect();
        let entered = Negotiation::connect(&uri, &config()).unwrap().hand_over("disk").unwrap();
        assert_eq!(entered.export().size(), 4 << 20);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let carried = scope.spawn(|| entered.carry(theirs));
            ours.write_all(&[request(1, 1 << 20, length), data.clone()].concat()).unwrap();
            let mut reply = [0; 16];
            ours.read_exact(&mut reply).unwrap();
            assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
            ours.write_all(&request(0, 1 << 20, length)).unwrap();
            let mut read = vec![0; 16 + data.len()];
            ours.read_exact(&mut read).unwrap();
            assert!(read[16..] == data);
            ours.shutdown(Shutdown::Write).unwrap();
            carried.join().unwrap().unwrap();
        });
        let mut read = vec![0; data.len()];
        Client::connect_with(&uri, &config()).unwrap().read_exact_at(&mut read, 1 << 20).unwrap();
        assert!(read == data);
        server.shut_down();
    }

    /// A reply that says so is as good as the end of the connection, and does not pass.
    #[test]
    fn a_server_that_shuts_down_is_taken_for_one_that_is_gone() {
        struct Ending;

        impl Export for Ending {
            fn size(&self) -> u64 {
                1 << 20
            }

            fn read(&self, buffer: &mut [u8], offset: u64) -> ExportResult<()> {
                buffer.fill(7);
                match offset {
                    0 => Ok(()),
                    _ => Err(ExportError::new(engine::ErrorCode::ESHUTDOWN, "it ends")),
                }
            }
        }

        let server = Server::new(ExportMap::new().with("disk", Ending).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let listening = server.listen_unix(folder.path().join("socket")).unwrap();
        let uri = listening.local_addr().uri("disk").unwrap();
        let entered = Negotiation::connect(&uri, &config()).unwrap().hand_over("disk").unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let carried = scope.spawn(|| entered.carry(theirs));
            ours.write_all(&request(0, 0, 512)).unwrap();
            ours.write_all(&request(0, 512, 512)).unwrap();
            let mut received = Vec::new();
            ours.read_to_end(&mut received).unwrap();
            assert_eq!(received.len(), 16 + 512, "the first reply, and nothing else");
            let error = carried.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        });
        server.shut_down();
    }

    #[test]
    fn a_server_that_ends_is_reported_by_what_carries_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (server, uri) = server(&folder);
        let entered = Negotiation::connect(&uri, &config()).unwrap().hand_over("disk").unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let carried = scope.spawn(|| entered.carry(theirs));
            server.shut_down();
            server.wait();
            let error = carried.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
            assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the other end is closed");
        });
    }

    #[test]
    fn a_negotiation_that_was_handed_over_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let (server, uri) = server(&folder);
        let mut negotiation = Negotiation::connect(&uri, &config()).unwrap();
        assert!(matches!(negotiation.hand_over("tape"), Err(super::super::Error::Refused { .. })));
        let entered = negotiation.hand_over("disk").unwrap();
        assert!(entered.socket().is_some());
        assert!(matches!(negotiation.list(), Err(super::super::Error::Entered { .. })));
        server.shut_down();
    }
}
