//! Keys that both sides share instead of certificates (RFC 4279; RFC 8446, section 2.2), by OpenSSL: rustls has none.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslStream, SslVerifyMode,
};

use super::TlsError;
use super::records::{Ciphertext, MAX_PLAINTEXT, Records, Room};
use crate::export::TlsIdentity;

const KEYS: &str = "file of pre-shared keys";

/// Suites of TLS 1.2 that authenticate by a shared key alone and encrypt.
const CIPHERS: &str = "kPSK:kDHEPSK:kECDHEPSK:!eNULL";

/// The keys of users, as `psktool` of GnuTLS writes them: lines of the form `user:hexkey`.
pub(super) struct Keys(HashMap<String, Vec<u8>>);

impl Keys {
    /// Reads a file.
    pub(super) fn load(path: &Path) -> Result<Self, TlsError> {
        let unreadable =
            |source| TlsError::Unreadable { what: KEYS, path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
        if mode & 0o004 != 0 {
            return Err(TlsError::KeyIsPublic(path.to_owned()));
        }
        let malformed = |number: usize, what: &str| TlsError::Malformed {
            what: KEYS,
            path: path.to_owned(),
            reason: format!("line {}: {what}", number + 1),
        };
        let mut keys = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let (user, key) = line
                .split_once(':')
                .ok_or_else(|| malformed(number, "no colon behind the user"))?;
            let key = hex(key.trim()).ok_or_else(|| malformed(number, "the key is not in hex"))?;
            if user.is_empty() || key.is_empty() {
                return Err(malformed(number, "the user or the key is empty"));
            }
            keys.insert(user.to_owned(), key);
        }
        if keys.is_empty() {
            return Err(TlsError::Empty { what: "pre-shared key", path: path.to_owned() });
        }
        Ok(Self(keys))
    }

    /// The key of a user.
    pub(super) fn of(&self, user: &str) -> Option<&[u8]> {
        self.0.get(user).map(Vec::as_slice)
    }
}

impl core::fmt::Debug for Keys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// One side's half of all its connections.
#[derive(Clone)]
pub(super) struct PskContext(SslContext);

impl core::fmt::Debug for PskContext {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PskContext").finish_non_exhaustive()
    }
}

fn setup(error: &ErrorStack) -> TlsError {
    TlsError::Setup(error.to_string())
}

/// Where a server's connection keeps its user: OpenSSL itself forgets it with TLS 1.3.
fn user_index() -> Result<Index<Ssl, String>, ErrorStack> {
    static INDEX: OnceLock<Index<Ssl, String>> = OnceLock::new();
    match INDEX.get() {
        Some(index) => Ok(*index),
        None => Ok(*INDEX.get_or_init({
            let index = Ssl::new_ex_index()?;
            move || index
        })),
    }
}

fn fill(room: &mut [u8], bytes: &[u8]) -> usize {
    match room.get_mut(..bytes.len()) {
        Some(room) => {
            room.copy_from_slice(bytes);
            bytes.len()
        }
        None => 0,
    }
}

impl PskContext {
    fn builder(method: SslMethod) -> Result<SslContextBuilder, ErrorStack> {
        let mut builder = SslContext::builder(method)?;
        builder.set_cipher_list(CIPHERS)?;
        builder.set_min_proto_version(Some(openssl::ssl::SslVersion::TLS1_2))?;
        // What a session would remember serves nobody.
        builder.set_session_cache_mode(openssl::ssl::SslSessionCacheMode::OFF);
        builder.set_options(
            openssl::ssl::SslOptions::NO_TICKET | openssl::ssl::SslOptions::NO_RENEGOTIATION,
        );
        Ok(builder)
    }

    /// For a server of users with these keys. To a user without one it looks as if the key were wrong, so that nobody
    /// finds out who the users are.
    pub(super) fn server(keys: Arc<Keys>) -> Result<Self, TlsError> {
        let build = || {
            let mut builder = Self::builder(SslMethod::tls_server())?;
            builder.set_num_tickets(0)?;
            let user_index = user_index()?;
            builder.set_psk_server_callback(move |ssl, user, room| {
                let user = user.and_then(|user| core::str::from_utf8(user).ok());
                match user.and_then(|user| Some((user, keys.of(user)?))) {
                    Some((user, key)) => {
                        ssl.set_ex_data(user_index, user.to_owned());
                        Ok(fill(room, key))
                    }
                    None => {
                        let mut random = [0; 32];
                        openssl::rand::rand_bytes(&mut random)?;
                        Ok(fill(room, &random))
                    }
                }
            });
            Ok(Self(builder.build()))
        };
        build().map_err(|error| setup(&error))
    }

    /// For a client that is this user, with its key in a file.
    pub(super) fn of_user(user: &str, path: &Path) -> Result<Self, TlsError> {
        let keys = Keys::load(path)?;
        let no_key = || TlsError::Malformed {
            what: KEYS,
            path: path.to_owned(),
            reason: format!("it has no key of the user '{user}'"),
        };
        Self::client(user, keys.of(user).ok_or_else(no_key)?)
    }

    fn client(user: &str, key: &[u8]) -> Result<Self, TlsError> {
        let build = || {
            let mut builder = Self::builder(SslMethod::tls_client())?;
            // The key alone authenticates the server. With TLS 1.3 one that does not have it may answer by a certificate
            // instead, and certificates are refused, whosever they are.
            builder.set_verify_callback(SslVerifyMode::PEER, |_, _| false);
            let (mut user, key) = (user.as_bytes().to_vec(), key.to_vec());
            user.push(0);
            builder.set_psk_client_callback(move |_, _, user_room, key_room| {
                if fill(user_room, &user) == 0 {
                    return Ok(0);
                }
                Ok(fill(key_room, &key))
            });
            Ok(Self(builder.build()))
        };
        build().map_err(|error| setup(&error))
    }

    pub(super) fn records(&self, side: Side) -> Result<Box<dyn Records>, TlsError> {
        let build = || SslStream::new(Ssl::new(&self.0)?, Bridge::default());
        let stream = build().map_err(|error| setup(&error))?;
        let (buffer, handshaking) = (Vec::new(), true);
        Ok(Box::new(PskRecords { stream, side, buffer, handshaking, closed_by_peer: false }))
    }
}

/// Which side of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Server,
    Client,
}

/// What OpenSSL takes for a socket.
#[derive(Debug, Default)]
struct Bridge {
    inbound: Vec<u8>,
    taken: usize,
    outbound: Vec<u8>,
}

impl Bridge {
    fn shrink(&mut self) {
        if self.inbound.is_empty() {
            self.inbound = Vec::new();
        }
        if self.outbound.is_empty() {
            self.outbound = Vec::new();
        }
    }
}

impl Read for Bridge {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut left = &self.inbound[self.taken..];
        if left.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = left.read(buffer)?;
        self.taken += count;
        if self.taken == self.inbound.len() {
            self.inbound.clear();
            self.taken = 0;
        }
        Ok(count)
    }
}

impl Write for Bridge {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outbound.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct PskRecords {
    stream: SslStream<Bridge>,
    side: Side,
    /// The plaintext of a record, once there was one.
    buffer: Vec<u8>,
    handshaking: bool,
    closed_by_peer: bool,
}

impl PskRecords {
    /// Takes what OpenSSL wants to send.
    fn collect(&mut self, output: &mut Ciphertext) -> io::Result<()> {
        let outbound = &mut self.stream.get_mut().outbound;
        if !outbound.is_empty() {
            let count = fill(output.spare(outbound.len())?, outbound);
            output.filled(count);
            outbound.clear();
        }
        Ok(())
    }

    fn run(&mut self, plaintext: &mut dyn FnMut(&[u8]) -> Room) -> io::Result<()> {
        if self.handshaking {
            let done = match self.side {
                Side::Server => self.stream.accept(),
                Side::Client => self.stream.connect(),
            };
            match done {
                // The verification above has refused it already.
                Ok(()) if self.stream.ssl().peer_certificate().is_some() => {
                    let text = "the peer has a certificate and not the pre-shared key";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                Ok(()) => self.handshaking = false,
                Err(error) if is_waiting(&error) => return Ok(()),
                Err(error) => return Err(invalid(&error)),
            }
        }
        self.buffer.resize(MAX_PLAINTEXT, 0);
        while !self.closed_by_peer {
            match self.stream.ssl_read(&mut self.buffer) {
                Ok(count) => {
                    if plaintext(&self.buffer[..count]) == Room::Full {
                        return Ok(());
                    }
                }
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => self.closed_by_peer = true,
                Err(error) if is_waiting(&error) => return Ok(()),
                Err(error) => return Err(invalid(&error)),
            }
        }
        Ok(())
    }
}

fn is_waiting(error: &openssl::ssl::Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}

fn invalid(error: &openssl::ssl::Error) -> io::Error {
    let reason = error.ssl_error().and_then(|stack| stack.errors().first()?.reason());
    let text = reason.map_or_else(|| error.to_string(), str::to_owned);
    io::Error::new(io::ErrorKind::InvalidData, format!("{text}; are the user and the key right?"))
}

impl Records for PskRecords {
    fn process(
        &mut self,
        input: &mut [u8],
        output: &mut Ciphertext,
        plaintext: &mut dyn FnMut(&[u8]) -> Room,
    ) -> io::Result<usize> {
        self.stream.get_mut().inbound.extend_from_slice(input);
        let result = self.run(plaintext);
        self.collect(output)?;
        result.map(|()| input.len())
    }

    fn encrypt(&mut self, _: &mut [u8], data: &[u8], output: &mut Ciphertext) -> io::Result<()> {
        let mut left = data;
        while !left.is_empty() {
            let count = self.stream.ssl_write(left).map_err(io::Error::other)?;
            left = &left[count..];
        }
        self.collect(output)
    }

    fn close_notify(&mut self, _: &mut [u8], output: &mut Ciphertext) -> io::Result<()> {
        if self.handshaking {
            return Err(io::ErrorKind::NotConnected.into());
        }
        // Whether the peer has closed, too, shows when reading.
        let _both_closed = self.stream.shutdown().map_err(io::Error::other)?;
        self.collect(output)
    }

    fn is_handshaking(&self) -> bool {
        self.handshaking
    }

    fn is_closed_by_peer(&self) -> bool {
        self.closed_by_peer
    }

    fn shrink(&mut self) {
        self.buffer = Vec::new();
        self.stream.get_mut().shrink();
    }

    fn peer_identity(&self) -> Option<TlsIdentity> {
        let user = self.stream.ssl().ex_data(user_index().ok()?)?;
        (!self.handshaking)
            .then(|| TlsIdentity { names: vec![user.clone()], certificates: Vec::new() })
    }

    fn description(&self) -> String {
        let ssl = self.stream.ssl();
        let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
        format!("{} {cipher}", ssl.version_str())
    }
}
