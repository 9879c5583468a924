//! What a TLS stream asks of a TLS implementation: records in and out of buffers, without I/O.

use std::io;

use crate::export::TlsIdentity;

/// One side of a TLS connection, by whatever implementation.
pub(crate) trait Records: Send {
    /// Processes the ciphertext in `input`, from where the last call stopped consuming. Gives decrypted data to
    /// `plaintext`, one record at a time, until that has no more room; and appends what has to be sent in answer to
    /// `output`. Returns how many bytes at the front of `input` were consumed. What remains is to be passed again: a part
    /// of a record with more behind it, and what follows the record that left no room.
    ///
    /// # Errors
    /// When the peer breaks TLS or can't be trusted. `output` may have an alert for the peer then.
    fn process(
        &mut self,
        input: &mut [u8],
        output: &mut Ciphertext,
        plaintext: &mut dyn FnMut(&[u8]) -> Room,
    ) -> io::Result<usize>;

    /// Encrypts `data` to `output`, as full records and a shorter one for the rest. `seen` is what the last call of
    /// [`process`](Self::process) left, and nothing that has arrived since.
    ///
    /// # Errors
    /// When nothing can be encrypted: before the end of the handshake, after the end of the connection.
    fn encrypt(&mut self, seen: &mut [u8], data: &[u8], output: &mut Ciphertext) -> io::Result<()>;

    /// Appends the message that ends the connection in order.
    ///
    /// # Errors
    /// As [`encrypt`](Self::encrypt).
    fn close_notify(&mut self, seen: &mut [u8], output: &mut Ciphertext) -> io::Result<()>;

    /// Why a peer may hang up right after the handshake, and where to look.
    fn hang_up_hint(&self) -> &'static str;

    /// Whether this is the client's side.
    fn is_client(&self) -> bool;

    /// Whether the handshake has not finished yet.
    fn is_handshaking(&self) -> bool;

    /// Whether the peer ended the connection in order.
    fn is_closed_by_peer(&self) -> bool;

    /// Gives memory back that an idle connection does not need.
    fn shrink(&mut self) {}

    /// The peer's identity, if it showed one.
    fn peer_identity(&self) -> Option<TlsIdentity>;

    /// The version and the cipher suite, for the log.
    fn description(&self) -> String;
}

/// Whether decrypted data can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// More of it.
    Left,
    /// No further record.
    Full,
}

/// The longest plaintext of a record (RFC 8446, section 5.1).
pub(crate) const MAX_PLAINTEXT: usize = 16 << 10;

/// Room that a record needs beside its plaintext, whatever the cipher.
pub(crate) const MAX_OVERHEAD: usize = 256;

/// The most ciphertext that may wait to be sent. Data stays below it, since a stream encrypts no more while much waits;
/// so what reaches it are answers of TLS to a peer that asks and does not read.
const MAX_UNSENT: usize = 256 << 10;

/// Ciphertext that waits to be sent, of which there are at most [`MAX_UNSENT`] bytes. Its memory is initialised once and
/// used again.
#[derive(Debug, Default)]
pub(crate) struct Ciphertext {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Ciphertext {
    pub(crate) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn unsent(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// `count` bytes were sent.
    pub(crate) fn sent(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// At least `length` bytes to be filled. Say by [`filled`](Self::filled) how many were.
    ///
    /// # Errors
    /// When more than [`MAX_UNSENT`] bytes would wait then; nothing is allocated for them.
    pub(crate) fn spare(&mut self, length: usize) -> io::Result<&mut [u8]> {
        if self.buffer.len() - self.end < length {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let needed = self.end.saturating_add(length);
            if needed > MAX_UNSENT {
                return Err(io::Error::other("the peer does not read the answers of TLS"));
            }
            if needed > self.buffer.len() {
                let size = needed.next_power_of_two().min(MAX_UNSENT);
                self.buffer.reserve_exact(size - self.buffer.len());
                self.buffer.resize(size, 0);
            }
        }
        Ok(&mut self.buffer[self.end..])
    }

    /// The first `count` bytes of the spare room were filled.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Bytes of the buffer.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// Gives memory back that an idle connection does not need.
    pub(crate) fn shrink(&mut self) {
        if self.is_empty() {
            self.buffer = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_comes_out_in_order_whatever_is_sent_at_once() {
        for step in 1..40 {
            let mut queue = Ciphertext::default();
            let (mut put, mut got) = (0_u8, Vec::new());
            while got.len() < 200 {
                if put < 200 {
                    let spare = queue.spare(7).unwrap();
                    for (offset, byte) in spare[..7].iter_mut().enumerate() {
                        *byte = put + offset as u8;
                    }
                    queue.filled(7);
                    put += 7;
                }
                let count = queue.unsent().len().min(step);
                got.extend_from_slice(&queue.unsent()[..count]);
                queue.sent(count);
            }
            assert!(got.iter().enumerate().all(|(at, byte)| at == usize::from(*byte)));
        }
    }

    #[test]
    fn it_grows_up_to_its_bound_and_no_further() {
        let mut queue = Ciphertext::default();
        queue.spare(MAX_UNSENT + 1).unwrap_err();
        queue.spare(usize::MAX).unwrap_err();
        assert_eq!(queue.buffer.capacity(), 0, "nothing is allocated for what is refused");
        while let Ok(room) = queue.spare(1000) {
            assert!(room.len() >= 1000);
            queue.filled(1000);
            assert!(queue.buffer.capacity() <= MAX_UNSENT);
        }
        assert!(queue.unsent().len() > MAX_UNSENT - 1000);
        queue.sent(1500);
        queue.spare(1000).unwrap();
        queue.sent(usize::MAX);
        queue.shrink();
        assert_eq!(queue.buffer.capacity(), 0);
    }
}
