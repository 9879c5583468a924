//! Keys that both sides share instead of certificates (RFC 4279; RFC 8446, section 2.2), by OpenSSL: rustls has none.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslStream, SslVerifyMode,
};
use rustls::AlertDescription;

use super::TlsError;
use super::allow_list::AllowList;
use super::error::KEYS;
use super::failure;
use super::psk_file::Keys;
use super::records::{Ciphertext, MAX_PLAINTEXT, Records, Room};
use crate::export::TlsIdentity;

/// Suites of TLS 1.2 that authenticate by a shared key alone and encrypt.
const CIPHERS: &str = "kPSK:kDHEPSK:kECDHEPSK:!eNULL";

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

/// Who a client says that it is, before its key has proved that.
#[derive(Clone, Debug)]
enum Claim {
    /// A user with a key.
    User(String),
    /// A user without one, or one that is not allowed; why it is refused.
    Refused(String),
}

/// Where a server's connection keeps its client's claim: OpenSSL itself forgets it with TLS 1.3.
fn claim_index() -> Result<Index<Ssl, Claim>, ErrorStack> {
    static INDEX: OnceLock<Index<Ssl, Claim>> = OnceLock::new();
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

    /// For a server of users with these keys, as far as they are allowed. To the others it looks as if their key were
    /// wrong, so that nobody finds out who the users are.
    pub(super) fn server(keys: Arc<Keys>, allowed: Arc<AllowList>) -> Result<Self, TlsError> {
        let build = || {
            let mut builder = Self::builder(SslMethod::tls_server())?;
            builder.set_num_tickets(0)?;
            let index = claim_index()?;
            builder.set_psk_server_callback(move |ssl, user, room| {
                // OpenSSL may ask twice.
                let asked = ssl.ex_data(index).is_some();
                let user = user.unwrap_or_default();
                let (claim, key) = match core::str::from_utf8(user) {
                    Ok(user) => match keys.of(user) {
                        Some(_) if !allowed.allows_user(user) => {
                            if !asked {
                                allowed.refused(&[user.to_owned()]);
                            }
                            (Claim::Refused(format!("the user {user:?} is not allowed")), None)
                        }
                        Some(key) => (Claim::User(user.to_owned()), Some(key)),
                        None => (Claim::Refused(format!("the user {user:?} has no key")), None),
                    },
                    Err(_) => (Claim::Refused("the user's name is not in UTF-8".into()), None),
                };
                ssl.set_ex_data(index, claim);
                if let Some(key) = key {
                    return Ok(fill(room, key));
                }
                let mut random = [0; 32];
                openssl::rand::rand_bytes(&mut random)?;
                Ok(fill(room, &random))
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
            reason: format!(
                "it has no key of the user '{user}'; name one that it has, or add this one on both sides: nbd psk {} USER",
                path.display()
            ),
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
                    return Err(io::Error::new(io::ErrorKind::InvalidData, CERTIFICATE));
                }
                Ok(()) => self.handshaking = false,
                Err(error) if is_waiting(&error) => return Ok(()),
                Err(error) => return Err(self.failed(&error)),
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
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(())
    }

    /// What OpenSSL says, and for a handshake of a server what is wrong with the client.
    fn failed(&self, error: &openssl::ssl::Error) -> io::Error {
        let text = describe(error, self.handshaking);
        let text = match self.claim() {
            Some(Claim::Refused(why)) if self.handshaking => why.clone(),
            Some(Claim::User(user)) if self.handshaking => format!("the user {user:?}: {text}"),
            _ => text,
        };
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    fn claim(&self) -> Option<&Claim> {
        self.stream.ssl().ex_data(claim_index().ok()?)
    }
}

fn is_waiting(error: &openssl::ssl::Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}

/// Where one side has a certificate, and the other one a key.
const CERTIFICATE: &str =
    "the peer has a certificate in place of the pre-shared key, and certificates are not asked for";

/// Where the key may be the reason.
const WRONG_KEY: &str = "the pre-shared keys of the two sides differ, or the user is not known or not allowed: compare \
                         the user and the key";

/// What went wrong.
fn describe(error: &openssl::ssl::Error, handshaking: bool) -> String {
    let Some(first) = error.ssl_error().and_then(|stack| stack.errors().first()) else {
        return error.to_string();
    };
    let reason = || first.reason().map_or_else(|| first.to_string(), str::to_owned);
    // OpenSSL counts alerts of the peer from 1000 on, and has fixed numbers for the others (sslerr.h).
    match first.reason_code() {
        code @ 1000..=1255 => {
            let alert = AlertDescription::from(u8::try_from(code - 1000).unwrap_or_default());
            match alert {
                AlertDescription::BadRecordMac
                | AlertDescription::IllegalParameter
                | AlertDescription::DecryptError
                | AlertDescription::UnknownPSKIdentity
                    if handshaking =>
                {
                    format!("{WRONG_KEY}; {}", failure::alert(alert))
                }
                _ => failure::alert(alert),
            }
        }
        // Digests, records and binders that don't verify.
        149 | 281 | 253 | 219 | 223 if handshaking => format!("{WRONG_KEY} ({})", reason()),
        134 => CERTIFICATE.into(),
        // Records of no kind and no version, too long ones, requests of HTTP, and empty records in front of anything else.
        155 | 156 | 198 | 245 | 267 | 443 if handshaking => {
            format!("{} ({})", failure::NOT_TLS, reason())
        }
        258 | 191 | 396 => format!("{} ({})", failure::NO_VERSION, reason()),
        101 | 118 | 179 | 193 if handshaking => format!("{} ({})", failure::NO_CIPHER, reason()),
        _ => reason(),
    }
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

    fn hang_up_hint(&self) -> &'static str {
        "its messages, or its log, may say why"
    }

    fn is_client(&self) -> bool {
        !self.stream.ssl().is_server()
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
        match self.claim()? {
            Claim::User(user) if !self.handshaking => {
                Some(TlsIdentity { names: vec![user.clone()], certificates: Vec::new() })
            }
            _ => None,
        }
    }

    fn description(&self) -> String {
        let ssl = self.stream.ssl();
        let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
        format!("{} {cipher}", ssl.version_str())
    }
}
