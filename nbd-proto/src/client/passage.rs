//! A session that another program leads: what passes, and where the server says that it shuts down.

use alloc::collections::BTreeMap;

use crate::wire::{CommandType, CompactRequest, DecodeError, ErrorCode, SimpleReplyHeader};

/// Reads in flight that are remembered at most. An interpreter would take an hour for as many.
const MAX_READS: usize = if cfg!(miri) { 1 << 6 } else { 1 << 16 };

/// Looks at the transmission phase of a client that is another program, while its bytes are carried: compact requests in
/// one direction, simple replies in the other (sections "Request message" and "Simple reply message").
///
/// For clients, such as the kernel's, that take `NBD_ESHUTDOWN` for a fault of the disk. They cope with the end of a
/// connection, and send again elsewhere what was not answered. So whoever carries the bytes passes on what came before such
/// a reply, and closes the connection in its place.
///
/// Each method is given all bytes that were received and not passed on, and returns how many of them may be passed on now:
/// those that are left over are the beginning of a header, or come after the end. They are to be given again, with those
/// that follow.
///
/// ```
/// use nbd_proto::client::Passage;
/// use nbd_proto::wire::{ErrorCode, SimpleReplyHeader};
///
/// let mut passage = Passage::new();
/// let well = SimpleReplyHeader { error: ErrorCode::OK, cookie: 1 }.encode();
/// let end = SimpleReplyHeader { error: ErrorCode::ESHUTDOWN, cookie: 2 }.encode();
/// let received = [well, end].concat();
/// assert_eq!(passage.replies(&received)?, 16);
/// assert!(passage.is_over());
/// # Ok::<(), nbd_proto::wire::DecodeError>(())
/// ```
#[derive(Debug, Default)]
pub struct Passage {
    /// Bytes of a payload that are still to come from the client.
    payload: u64,
    /// The same from the server.
    data: u64,
    /// The lengths of reads in flight, by their cookies.
    reads: BTreeMap<u64, u32>,
    over: bool,
}

impl Passage {
    /// Begins with the first request.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of the client; returns how many of them may be passed on.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when it does not send compact requests, [`DecodeError::BadValue`] when it has more
    /// than 65536 reads in flight. The session can't be followed any further then.
    pub fn requests(&mut self, bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut rest = skip(bytes, &mut self.payload);
        while let Some((header, after)) = rest.split_first_chunk::<{ CompactRequest::SIZE }>() {
            let CompactRequest { command, cookie, length, .. } = CompactRequest::decode(header)?;
            match command {
                CommandType::READ if self.reads.len() >= MAX_READS => {
                    return Err(DecodeError::BadValue("number of requests in flight"));
                }
                CommandType::READ => drop(self.reads.insert(cookie, length)),
                CommandType::WRITE => self.payload = length.into(),
                _ => {}
            }
            rest = skip(after, &mut self.payload);
        }
        Ok(bytes.len().saturating_sub(rest.len()))
    }

    /// Bytes of the server; returns how many of them may be passed on.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when it does not send simple replies. The session can't be followed any further then.
    pub fn replies(&mut self, bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut rest = skip(bytes, &mut self.data);
        while let Some((header, after)) = rest.split_first_chunk::<{ SimpleReplyHeader::SIZE }>() {
            let SimpleReplyHeader { error, cookie } = SimpleReplyHeader::decode(header)?;
            if self.over || error == ErrorCode::ESHUTDOWN {
                self.over = true;
                break;
            }
            let length = self.reads.remove(&cookie);
            if error == ErrorCode::OK {
                self.data = length.unwrap_or(0).into();
            }
            rest = skip(after, &mut self.data);
        }
        Ok(bytes.len().saturating_sub(rest.len()))
    }

    /// Whether the server has said that it shuts down. Nothing passes any more then.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }
}

/// What comes behind the next `count` bytes, which are counted down.
fn skip<'a>(bytes: &'a [u8], count: &mut u64) -> &'a [u8] {
    let here = usize::try_from(*count).unwrap_or(usize::MAX).min(bytes.len());
    *count = count.saturating_sub(here as u64);
    bytes.get(here..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::CommandFlags;

    fn request(command: CommandType, cookie: u64, length: u32) -> Vec<u8> {
        let flags = CommandFlags::empty();
        let request = CompactRequest { flags, command, cookie, offset: 0, length };
        let mut bytes = request.encode().to_vec();
        if command == CommandType::WRITE {
            // Payloads look like headers.
            bytes.extend(request.encode().iter().cycle().take(length as usize));
        }
        bytes
    }

    fn reply(error: ErrorCode, cookie: u64, length: u32) -> Vec<u8> {
        let header = SimpleReplyHeader { error, cookie }.encode();
        let end = SimpleReplyHeader { error: ErrorCode::ESHUTDOWN, cookie }.encode();
        let data = end.iter().cycle().take(length as usize);
        header.iter().chain(data).copied().collect()
    }

    /// Passes bytes in pieces of these lengths, and gives what came out.
    fn pass(
        bytes: &[u8],
        pieces: &[usize],
        mut look: impl FnMut(&[u8]) -> Result<usize, DecodeError>,
    ) -> Vec<u8> {
        let (mut passed, mut held, mut rest) = (Vec::new(), Vec::new(), bytes);
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            held.extend(now);
            rest = later;
            let count = look(&held).unwrap();
            passed.extend(held.drain(..count));
        }
        passed
    }

    proptest! {
        #![proptest_config(crate::effort::config())]

        #[test]
        fn everything_passes_up_to_the_reply_that_says_the_end(
            kinds in prop::collection::vec((0..4_u16, 0..200_u32, 0..3_u8), 0..20),
            pieces in prop::collection::vec(1..100_usize, 1..5),
            end: bool,
        ) {
            let (mut requests, mut replies) = (Vec::new(), Vec::new());
            for (cookie, (command, length, error)) in (0..).zip(&kinds) {
                let (command, length) = (CommandType(*command), *length);
                requests.extend(request(command, cookie, length));
                let error = if *error == 0 { ErrorCode::EIO } else { ErrorCode::OK };
                let read = command == CommandType::READ && error == ErrorCode::OK;
                replies.extend(reply(error, cookie, if read { length } else { 0 }));
            }
            let before = replies.clone();
            if end {
                replies.extend(reply(ErrorCode::ESHUTDOWN, 999, 0));
                replies.extend(reply(ErrorCode::OK, 998, 0));
            }
            let mut passage = Passage::new();
            let passed = pass(&requests, &pieces, |bytes| passage.requests(bytes));
            prop_assert_eq!(passed, requests);
            let passed = pass(&replies, &pieces, |bytes| passage.replies(bytes));
            prop_assert_eq!(passed, before);
            prop_assert_eq!(passage.is_over(), end);
            prop_assert!(passage.reads.is_empty());
        }
    }

    #[test]
    fn what_is_neither_is_an_error() {
        let mut passage = Passage::new();
        assert!(passage.requests(&[0; 28]).is_err());
        assert!(passage.replies(&[0; 16]).is_err());
        assert_eq!(passage.requests(&[0; 27]), Ok(0), "not yet");
        for cookie in 0..MAX_READS as u64 {
            passage.requests(&request(CommandType::READ, cookie, 1)).unwrap();
        }
        assert!(passage.requests(&request(CommandType::READ, 1 << 20, 1)).is_err());
    }
}
