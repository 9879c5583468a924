//! The generator's side of a connection: a Unix socket as it is, or with TLS inside.

use std::io::{self, Error, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite::TLS13_AES_128_GCM_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream, StreamOwned};

/// Bytes of one receive call: rustls asks for 4 KiB at a time.
const RECEIVED: usize = 256 * 1024;

/// Bytes that rustls may hold, in records, before they are sent: what one gathered write has.
const SENT: usize = 2 * 1024 * 1024;

/// A connected socket, in the clear or encrypted.
#[derive(Debug)]
pub struct Socket(Kind);

#[derive(Debug)]
enum Kind {
    Plain(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, Received>>),
}

impl Socket {
    /// In the clear.
    pub fn plain(stream: UnixStream) -> Self {
        Self(Kind::Plain(stream))
    }

    /// Encrypted from the next byte on.
    pub fn tls(stream: UnixStream, config: Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").map_err(Error::other)?;
        let mut client = ClientConnection::new(config, name).map_err(Error::other)?;
        client.set_buffer_limit(Some(SENT));
        let received = Received { stream, buffer: vec![0; RECEIVED], start: 0, end: 0 };
        Ok(Self(Kind::Tls(Box::new(StreamOwned::new(client, received)))))
    }

    /// The socket itself.
    pub fn unix(&self) -> &UnixStream {
        match &self.0 {
            Kind::Plain(stream) => stream,
            Kind::Tls(tls) => &tls.sock.stream,
        }
    }
}

/// A configuration that trusts the authority of that PEM file, and offers nothing but TLS 1.3 with AES-128-GCM: so
/// all servers encrypt by the same cipher.
pub fn config(authority: &std::path::Path) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).map_err(Error::other)? {
        roots.add(certificate.map_err(Error::other)?).map_err(Error::other)?;
    }
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256];
    let provider = CryptoProvider { cipher_suites, ..ring::default_provider() };
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(stream) => stream.read(buffer),
            Kind::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(stream) => stream.write(bytes),
            Kind::Tls(tls) => tls.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(stream) => stream.write_vectored(slices),
            // `StreamOwned` has no gathered write of its own: it would send each slice as a record, by a call of its own.
            Kind::Tls(tls) => Stream::new(&mut tls.conn, &mut tls.sock).write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Plain(stream) => stream.flush(),
            Kind::Tls(tls) => tls.flush(),
        }
    }
}

/// A socket that is read in large pieces.
#[derive(Debug)]
struct Received {
    stream: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Read for Received {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.end = self.stream.read(&mut self.buffer)?;
        }
        let count = (&self.buffer[self.start..self.end]).read(room)?;
        self.start += count;
        Ok(count)
    }
}

impl Write for Received {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustls::{ServerConfig, ServerConnection};

    use super::*;
    use crate::vectored;

    /// Keeps what was received as it was.
    struct Tee {
        stream: UnixStream,
        received: Vec<u8>,
    }

    impl Read for Tee {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.stream.read(buffer)?;
            self.received.extend_from_slice(&buffer[..count]);
            Ok(count)
        }
    }

    impl Write for Tee {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.stream.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Requests that are due together make as few records as their bytes allow, or the generator would cost more than
    /// the servers that it measures.
    #[test]
    fn a_gathered_write_is_sent_as_full_records() {
        const COUNT: usize = 32;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a name");
        let authority = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(authority.path(), made.cert.pem()).expect("it is ours");
        let key = made.signing_key.serialize_der().try_into().expect("a key");
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("those of the provider")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("they belong together");
        let (near, far) = UnixStream::pair().expect("two ends");
        let server = thread::spawn(move || {
            let mut connection = ServerConnection::new(Arc::new(server)).expect("it is sound");
            let mut tee = Tee { stream: far, received: Vec::new() };
            let mut data = vec![0; COUNT * (28 + 4096)];
            Stream::new(&mut connection, &mut tee).read_exact(&mut data).expect("all of it");
            tee.received
        });
        let config = config(authority.path()).expect("it has a certificate");
        let mut socket = Socket::tls(near, config).expect("a name");
        let (header, payload) = ([1; 28], [2; 4096]);
        let pair = [IoSlice::new(&header), IoSlice::new(&payload)];
        vectored::write_all(&mut socket, &mut pair.repeat(COUNT)).expect("it is read");
        let received = server.join().expect("it receives");
        let (mut records, mut left) = (0, &received[..]);
        while let [kind, _, _, high, low, rest @ ..] = left {
            // The last message of the handshake looks like data.
            records += usize::from(*kind == 23);
            left = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
        }
        let full = (COUNT * (28 + 4096)).div_ceil(16 << 10);
        assert!(records <= full + 1, "{records} records");
    }
}
