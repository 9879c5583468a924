//! A byte stream with a bound on every wait.

use core::time::Duration;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::late::gone;
use crate::{Endpoint, SOON};

/// How long a read or write may make no progress before the test fails.
pub const TIMEOUT: Duration = SOON;

/// How long a stream must stay quiet to count as silent.
const SILENCE: Duration = Duration::from_millis(60);

/// Pause between the bytes of a dribble, so that they do not all meet in the receiver's socket buffer.
const DRIBBLE: Duration = Duration::from_micros(100);

/// A configuration that trusts the authority whose certificate is in that PEM file, with TLS 1.2 and 1.3.
///
/// # Panics
/// When there is no such certificate.
pub fn trusting(authority: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(authority).expect("a certificate in PEM");
    roots.add(authority).expect("it is an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One end of a connection: TCP or Unix, and TLS inside of either.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    tls: Option<Box<ClientConnection>>,
}

/// Why bytes did not come.
#[derive(Debug)]
enum Missing {
    /// The stream ended (or was reset) after so many bytes.
    End(usize),
    /// Nothing came any more after so many bytes.
    Timeout(usize),
}

#[track_caller]
fn sent(result: io::Result<()>, bytes: &[u8]) {
    if let Err(error) = result {
        let what = format!("sending {} bytes: {error}", bytes.len());
        if is_end(&error) { gone(what) } else { panic!("{what}") }
    }
}

/// Whether the peer has closed, in order or not.
pub(super) fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
    )
}

impl Wire {
    /// Connects, in the clear; on TCP without Nagle's algorithm, so that what is sent apart travels apart.
    #[track_caller]
    pub fn connect(endpoint: &Endpoint) -> Self {
        Self::try_connect(endpoint).unwrap_or_else(|error| panic!("connect {endpoint:?}: {error}"))
    }

    /// Connects, or says why not.
    pub fn try_connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, TIMEOUT)?;
                stream.set_nodelay(true)?;
                Self::bounded(Stream::Tcp(stream))
            }
            Endpoint::Unix(path) => Self::bounded(Stream::Unix(UnixStream::connect(path)?)),
            Endpoint::Tls { address, .. } => Self::try_connect(address),
        }
    }

    /// A Unix stream that is connected.
    pub fn from_unix(stream: UnixStream) -> Self {
        Self::bounded(Stream::Unix(stream)).expect("timeouts can be set")
    }

    /// A TCP connection that was accepted; without Nagle's algorithm, too.
    pub fn from_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Self::bounded(Stream::Tcp(stream))
    }

    fn bounded(stream: Stream) -> io::Result<Self> {
        let wire = Self { stream, tls: None };
        wire.set_timeouts(TIMEOUT)?;
        Ok(wire)
    }

    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
        }
    }

    /// Changes the bound on every wait of this connection.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.set_timeouts(timeout).expect("timeouts can be set");
    }

    /// Sends everything.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        sent(self.try_send(bytes), bytes);
    }

    /// Sends everything, or says why not: for peers that may close or stop reading.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).write_all(bytes),
            None => self.stream.write_all(bytes),
        }
    }

    /// Does the client's half of a TLS handshake with a server of that name. All that follows is encrypted; an end
    /// without `close_notify` fails the test.
    ///
    /// # Errors
    /// When the handshake fails, on this side or the other.
    #[track_caller]
    pub fn start_tls(&mut self, config: Arc<ClientConfig>, name: &str) -> io::Result<()> {
        let name = ServerName::try_from(name.to_owned()).expect("a host name");
        let mut tls = ClientConnection::new(config, name).expect("a sound configuration");
        while tls.is_handshaking() {
            tls.complete_io(&mut self.stream)?;
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// TLS, once it has started.
    pub fn tls(&mut self) -> Option<&mut ClientConnection> {
        self.tls.as_deref_mut()
    }

    /// Says that no more will be sent (`close_notify`), and leaves the transport open.
    #[track_caller]
    pub fn end_tls(&mut self) {
        let tls = self.tls.as_mut().expect("TLS has started");
        tls.send_close_notify();
        tls.complete_io(&mut self.stream).expect("the connection is open");
    }

    /// The peer must end the connection by an alert, which is returned.
    #[track_caller]
    pub fn expect_tls_failure(&mut self) -> rustls::Error {
        let error = self.read(&mut [0]).expect_err("the peer goes on");
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
        match cause {
            Some(alert @ rustls::Error::AlertReceived(_)) => alert.clone(),
            _ => panic!("{error}"),
        }
    }

    /// Sends bytes past TLS.
    #[track_caller]
    pub fn send_in_the_clear(&mut self, bytes: &[u8]) {
        sent(self.stream.write_all(bytes), bytes);
    }

    /// Sends as much as the socket takes within `timeout`; gives the number of bytes that went out.
    pub fn send_until_stuck(&mut self, bytes: &[u8], timeout: Duration) -> usize {
        self.set_timeout(timeout);
        let mut sent = 0;
        while sent < bytes.len() {
            let written = match &mut self.tls {
                Some(tls) => {
                    rustls::Stream::new(&mut **tls, &mut self.stream).write(&bytes[sent..])
                }
                None => self.stream.write(&bytes[sent..]),
            };
            match written {
                Ok(count) if count > 0 => sent += count,
                _ => break,
            }
        }
        self.set_timeout(TIMEOUT);
        sent
    }

    /// Sends one byte at a time, each in a segment of its own (S-HS-12, S-REQ-15).
    #[track_caller]
    pub fn dribble(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(core::slice::from_ref(byte));
            std::thread::sleep(DRIBBLE);
        }
    }

    /// Ends the writing side in order, that of TLS before that of the transport, and goes on receiving.
    #[track_caller]
    pub fn half_close(&mut self) {
        if self.tls.is_some() {
            self.end_tls();
        }
        self.shutdown_write();
    }

    /// Closes the writing side of the transport, but goes on receiving. TLS does not learn of it: that is a cut.
    #[track_caller]
    pub fn shutdown_write(&self) {
        match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
        .expect("the connection is open");
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.stream).read(buffer),
            None => self.stream.read(buffer),
        }
    }

    /// Fills the buffer. A reset counts as an end: it is how a hard close with unread input looks on TCP.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Missing> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..]) {
                Ok(0) => return Err(Missing::End(filled)),
                Ok(count) => filled += count,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        return Err(Missing::Timeout(filled));
                    }
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                        return Err(Missing::End(filled));
                    }
                    _ => panic!("receiving: {error}"),
                },
            }
        }
        Ok(())
    }

    /// Receives exactly `buffer.len()` bytes of `what`.
    #[track_caller]
    pub fn recv_into(&mut self, buffer: &mut [u8], what: &str) {
        let wanted = buffer.len();
        match self.fill(buffer) {
            Ok(()) => {}
            Err(Missing::End(got)) => {
                gone(format!("{what}: the peer closed after {got} of {wanted} bytes"))
            }
            Err(Missing::Timeout(got)) => {
                panic!("{what}: nothing more came after {got} of {wanted} bytes")
            }
        }
    }

    /// Receives exactly `len` bytes of `what`.
    #[track_caller]
    pub fn recv(&mut self, len: usize, what: &str) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.recv_into(&mut bytes, what);
        bytes
    }

    /// Receives `len` bytes, or nothing if the peer closed cleanly between two messages.
    #[track_caller]
    pub fn recv_or_end(&mut self, len: usize, what: &str) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.fill(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(Missing::End(0)) => None,
            Err(Missing::End(got)) => {
                gone(format!("{what}: the peer closed after {got} of {len} bytes"))
            }
            Err(missing) => panic!("{what}: {missing:?} of {len} bytes"),
        }
    }

    /// Receives `len` bytes, or nothing if the peer closed before the last of them.
    #[track_caller]
    pub fn recv_or_gone(&mut self, len: usize, what: &str) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.fill(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(Missing::End(_)) => None,
            Err(missing) => panic!("{what}: {missing:?} of {len} bytes"),
        }
    }

    /// Receives `len` bytes, or nothing if the peer closed or the timeout has passed.
    pub fn try_recv(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes).is_ok().then_some(bytes)
    }

    /// Receives a number.
    #[track_caller]
    pub fn u16(&mut self, what: &str) -> u16 {
        let mut bytes = [0; 2];
        self.recv_into(&mut bytes, what);
        u16::from_be_bytes(bytes)
    }

    /// Receives a number.
    #[track_caller]
    pub fn u32(&mut self, what: &str) -> u32 {
        let mut bytes = [0; 4];
        self.recv_into(&mut bytes, what);
        u32::from_be_bytes(bytes)
    }

    /// Receives a number.
    #[track_caller]
    pub fn u64(&mut self, what: &str) -> u64 {
        let mut bytes = [0; 8];
        self.recv_into(&mut bytes, what);
        u64::from_be_bytes(bytes)
    }

    /// The peer must close, and send nothing before it does.
    #[track_caller]
    pub fn expect_eof(&mut self) {
        match self.fill(&mut [0]) {
            Err(Missing::End(_)) => {}
            Err(Missing::Timeout(_)) => panic!("the peer did not close the connection"),
            Ok(()) => panic!("the peer sent bytes where it had to close"),
        }
    }

    /// The peer must close; what it sends before that does not matter. Bounded by [`TIMEOUT`] altogether.
    #[track_caller]
    pub fn drain_to_eof(&mut self) {
        let start = Instant::now();
        let mut buffer = vec![0; 1 << 16];
        while !matches!(self.fill(&mut buffer), Err(Missing::End(_))) {
            assert!(start.elapsed() < TIMEOUT, "the peer did not close the connection");
        }
    }

    /// The peer must close; what it sends before that is counted. Bounded by the timeout for each part of it.
    #[track_caller]
    pub fn discard_to_eof(&mut self, what: &str) -> u64 {
        let mut discarded = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return discarded,
                Ok(count) => discarded += count as u64,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return discarded,
                    _ => panic!("{what}: not after {discarded} bytes: {error}"),
                },
            }
        }
    }

    /// The peer must close within `bound`, though nothing that it sent is read.
    #[track_caller]
    pub fn expect_hang_up(&self, bound: Duration) {
        let bound = Timespec::try_from(bound).expect("a short time");
        let mut watched = match &self.stream {
            Stream::Tcp(stream) => [PollFd::new(stream, PollFlags::RDHUP)],
            Stream::Unix(stream) => [PollFd::new(stream, PollFlags::RDHUP)],
        };
        let ready = poll(&mut watched, Some(&bound)).expect("it can be waited for");
        assert!(ready > 0, "the peer did not close the connection");
    }

    /// The peer must neither send nor close for a moment.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        self.set_timeout(SILENCE);
        match self.fill(&mut [0]) {
            Err(Missing::Timeout(_)) => {}
            Err(Missing::End(_)) => panic!("the peer closed where it had to wait"),
            Ok(()) => panic!("the peer sent bytes where it had to wait"),
        }
        self.set_timeout(TIMEOUT);
    }
}
