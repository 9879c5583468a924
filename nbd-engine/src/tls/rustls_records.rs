//! Records by rustls, through its interface without I/O.

use std::io;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};

use super::failure::of_rustls;
use super::identity::identity;
use super::records::{Ciphertext, MAX_OVERHEAD, MAX_PLAINTEXT, Records, Room};
use crate::export::TlsIdentity;

/// One of the two sides, and what is remembered of it.
pub(crate) struct RustlsRecords<C> {
    connection: C,
    closed_by_peer: bool,
    /// Whether `process` stopped behind a record with data, before what follows it.
    stopped: bool,
}

impl<C> RustlsRecords<C> {
    pub(crate) const fn new(connection: C) -> Self {
        Self { connection, closed_by_peer: false, stopped: false }
    }
}

/// What a step of rustls leads to.
enum Next {
    /// There may be more in the input.
    Again,
    /// Nothing more can be done without more input.
    NeedsInput,
    /// There is no room for more data.
    Full,
}

/// Acts on one state.
fn act<Data>(
    state: ConnectionState<'_, '_, Data>,
    output: &mut Ciphertext,
    plaintext: &mut dyn FnMut(&[u8]) -> Room,
    closed_by_peer: &mut bool,
) -> io::Result<Next> {
    // Data comes after the handshake alone.
    let invalid = |error| of_rustls(&error, false);
    match state {
        // One record, since rustls looks at no other before this one is taken.
        ConnectionState::ReadTraffic(mut traffic) => {
            let mut room = Room::Left;
            while let Some(record) = traffic.next_record() {
                room = plaintext(record.map_err(invalid)?.payload);
            }
            Ok(if room == Room::Full { Next::Full } else { Next::Again })
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let mut length = 1;
            loop {
                match data.encode(output.spare(length)?) {
                    Ok(count) => {
                        output.filled(count);
                        return Ok(Next::Again);
                    }
                    Err(EncodeError::InsufficientSize(size)) => length = size.required_size,
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
        }
        // What was encoded stands in `output`, which is sent in order and once.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Next::Again)
        }
        ConnectionState::PeerClosed => {
            *closed_by_peer = true;
            Ok(Next::Again)
        }
        ConnectionState::Closed => {
            *closed_by_peer = true;
            Ok(Next::NeedsInput)
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => {
            Ok(Next::NeedsInput)
        }
        // Early data is never offered.
        _ => Err(io::Error::other("TLS is in a state that it can't be in")),
    }
}

/// Runs `encode` with the room that it says that it needs.
fn encode(
    output: &mut Ciphertext,
    length: usize,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> io::Result<()> {
    let mut room = length;
    loop {
        match encode(output.spare(room)?) {
            Ok(count) => {
                output.filled(count);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size > room =>
            {
                room = required_size;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

macro_rules! records {
    ($connection:ty, $data:ty, $is_client:expr, $hint:expr) => {
        impl RustlsRecords<$connection> {
            /// Writes by `write`, which may need `length` bytes of room.
            fn write(
                &mut self,
                seen: &mut [u8],
                output: &mut Ciphertext,
                length: usize,
                write: impl Fn(&mut WriteTraffic<'_, $data>, &mut [u8]) -> Result<usize, EncryptError>,
            ) -> io::Result<()> {
                // rustls has to see a handshake message that has not wholly come, and nothing else, or it would go on
                // reading. There is none where `process` stopped, which is behind data.
                let seen = if self.stopped { &mut [] } else { seen };
                loop {
                    let status = self.connection.process_tls_records(seen);
                    match status.state.map_err(|error| of_rustls(&error, false))? {
                        ConnectionState::WriteTraffic(mut traffic) => {
                            return encode(output, length, |room| write(&mut traffic, room));
                        }
                        // An answer of TLS itself, to what came before the data.
                        state @ (ConnectionState::EncodeTlsData(_)
                        | ConnectionState::TransmitTlsData(_)) => {
                            act(state, output, &mut |_| Room::Left, &mut self.closed_by_peer)?;
                        }
                        _ => return Err(io::ErrorKind::NotConnected.into()),
                    }
                }
            }
        }

        impl Records for RustlsRecords<$connection> {
            fn process(
                &mut self,
                input: &mut [u8],
                output: &mut Ciphertext,
                plaintext: &mut dyn FnMut(&[u8]) -> Room,
            ) -> io::Result<usize> {
                let mut consumed = 0;
                self.stopped = false;
                loop {
                    let handshaking = self.connection.is_handshaking();
                    let UnbufferedStatus { discard, state, .. } =
                        self.connection.process_tls_records(&mut input[consumed..]);
                    let closed = &mut self.closed_by_peer;
                    let next = match state {
                        Ok(state) => act(state, output, plaintext, closed)?,
                        Err(error) => {
                            // The alert that rustls has queued comes first, before it looks at the input. It must
                            // not look at it: it has failed, and a shorter one is not what it remembers.
                            let input = &mut input[consumed + discard..];
                            let alert = self.connection.process_tls_records(input).state;
                            if let Ok(state @ ConnectionState::EncodeTlsData(_)) = alert {
                                act(state, output, plaintext, closed)?;
                            }
                            return Err(of_rustls(&error, handshaking));
                        }
                    };
                    consumed += discard;
                    match next {
                        Next::Again => {}
                        Next::NeedsInput => return Ok(consumed),
                        Next::Full => {
                            self.stopped = true;
                            return Ok(consumed);
                        }
                    }
                }
            }

            fn encrypt(
                &mut self,
                seen: &mut [u8],
                data: &[u8],
                output: &mut Ciphertext,
            ) -> io::Result<()> {
                let length = data.len() + data.len().div_ceil(MAX_PLAINTEXT) * MAX_OVERHEAD;
                self.write(seen, output, length, |traffic, room| traffic.encrypt(data, room))
            }

            fn close_notify(&mut self, seen: &mut [u8], output: &mut Ciphertext) -> io::Result<()> {
                self.write(seen, output, MAX_OVERHEAD, |traffic, room| {
                    traffic.queue_close_notify(room)
                })
            }

            fn hang_up_hint(&self) -> &'static str {
                $hint
            }

            fn is_client(&self) -> bool {
                $is_client
            }

            fn is_handshaking(&self) -> bool {
                self.connection.is_handshaking()
            }

            fn is_closed_by_peer(&self) -> bool {
                self.closed_by_peer
            }

            fn peer_identity(&self) -> Option<TlsIdentity> {
                self.connection.peer_certificates().map(identity)
            }

            fn description(&self) -> String {
                let suite = self.connection.negotiated_cipher_suite();
                match (self.connection.protocol_version(), suite) {
                    (Some(version), Some(suite)) => {
                        let version = version.as_str().unwrap_or_default().replace('_', ".");
                        let suite = suite.suite();
                        format!("{version} {}", suite.as_str().unwrap_or_default())
                    }
                    _ => String::new(),
                }
            }
        }
    };
}

// Some clients look at the server's name only when the handshake is over.
records!(
    UnbufferedServerConnection,
    ServerConnectionData,
    false,
    "as a client may that does not accept this server's certificate or the name in it; its messages may say why"
);
// With TLS 1.3 a client has finished the handshake before the server has seen its certificate.
records!(
    UnbufferedClientConnection,
    ClientConnectionData,
    true,
    "as a server may that does not accept this client's certificate or demands one, which stands in client-cert.pem and \
     client-key.pem; its log may say why"
);
