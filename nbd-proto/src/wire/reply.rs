//! Replies (sections "Simple reply message", "Structured reply chunk message" and "Extended reply chunk message").

use alloc::vec::Vec;

use super::request::expect_magic;
use super::{ArrayWriter, DecodeError, MAX_STRING, Reader, ReplyFlags, magic, open_numbers};

open_numbers! {
    /// An error value (section "Error values"). The numbers are the protocol's own, not the platform's `errno`.
    ErrorCode(u32) {
        /// Success, in a simple reply; never in an error chunk.
        OK = 0, "success";
        /// Not permitted: the export is read-only.
        EPERM = 1, "NBD_EPERM";
        /// Input or output error.
        EIO = 5, "NBD_EIO";
        /// Out of memory.
        ENOMEM = 12, "NBD_ENOMEM";
        /// Invalid argument.
        EINVAL = 22, "NBD_EINVAL";
        /// No space left.
        ENOSPC = 28, "NBD_ENOSPC";
        /// Too large.
        EOVERFLOW = 75, "NBD_EOVERFLOW";
        /// Not supported: a fast zero that is not fast.
        ENOTSUP = 95, "NBD_ENOTSUP";
        /// The server is shutting down.
        ESHUTDOWN = 108, "NBD_ESHUTDOWN";
    }
}

open_numbers! {
    /// The type of a structured or extended reply chunk (section "Structured reply types"). Bit 15 marks an error.
    ReplyType(u16) {
        /// Nothing more to say.
        NONE = 0, "NBD_REPLY_TYPE_NONE";
        /// Data at an offset.
        OFFSET_DATA = 1, "NBD_REPLY_TYPE_OFFSET_DATA";
        /// Zeroes at an offset.
        OFFSET_HOLE = 2, "NBD_REPLY_TYPE_OFFSET_HOLE";
        /// Extents with 32-bit lengths.
        BLOCK_STATUS = 5, "NBD_REPLY_TYPE_BLOCK_STATUS";
        /// Extents with 64-bit lengths.
        BLOCK_STATUS_EXT = 6, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT";
        /// An error.
        ERROR = 0x8001, "NBD_REPLY_TYPE_ERROR";
        /// An error at an offset.
        ERROR_OFFSET = 0x8002, "NBD_REPLY_TYPE_ERROR_OFFSET";
    }
}

impl ReplyType {
    /// Whether bit 15 is set: the request failed, whatever the number.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

/// A simple reply's 16 bytes; the data of a successful READ follows (section "Simple reply message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReplyHeader {
    /// [`ErrorCode::OK`] or what went wrong.
    pub error: ErrorCode,
    /// The request's cookie.
    pub cookie: u64,
}

impl SimpleReplyHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 16;

    /// The header's bytes.
    #[must_use]
    #[inline]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new().u32(magic::SIMPLE_REPLY).u32(self.error.0).u64(self.cookie).done()
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when the magic is another one.
    #[inline]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        expect_magic(&mut reader, magic::SIMPLE_REPLY, "NBD_SIMPLE_REPLY_MAGIC")?;
        let error = ErrorCode(reader.u32("error")?);
        let cookie = reader.u64("cookie")?;
        Ok(Self { error, cookie })
    }
}

/// The 20-byte head of a structured reply chunk (section "Structured reply chunk message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructuredReplyHeader {
    /// Reply flags.
    pub flags: ReplyFlags,
    /// What the payload holds.
    pub reply: ReplyType,
    /// The request's cookie.
    pub cookie: u64,
    /// Bytes of payload that follow.
    pub length: u32,
}

impl StructuredReplyHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 20;

    /// The header's bytes.
    #[must_use]
    #[inline]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new()
            .u32(magic::STRUCTURED_REPLY)
            .u16(self.flags.bits())
            .u16(self.reply.0)
            .u64(self.cookie)
            .u32(self.length)
            .done()
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when the magic is another one.
    #[inline]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        expect_magic(&mut reader, magic::STRUCTURED_REPLY, "NBD_STRUCTURED_REPLY_MAGIC")?;
        Ok(Self {
            flags: ReplyFlags::from_bits_retain(reader.u16("flags")?),
            reply: ReplyType(reader.u16("type")?),
            cookie: reader.u64("cookie")?,
            length: reader.u32("length")?,
        })
    }
}

/// The 32-byte head of an extended reply chunk (section "Extended reply chunk message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedReplyHeader {
    /// Reply flags.
    pub flags: ReplyFlags,
    /// What the payload holds.
    pub reply: ReplyType,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset.
    pub offset: u64,
    /// Bytes of payload that follow.
    pub length: u64,
}

impl ExtendedReplyHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 32;

    /// The header's bytes.
    #[must_use]
    #[inline]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new()
            .u32(magic::EXTENDED_REPLY)
            .u16(self.flags.bits())
            .u16(self.reply.0)
            .u64(self.cookie)
            .u64(self.offset)
            .u64(self.length)
            .done()
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when the magic is another one.
    #[inline]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        expect_magic(&mut reader, magic::EXTENDED_REPLY, "NBD_EXTENDED_REPLY_MAGIC")?;
        Ok(Self {
            flags: ReplyFlags::from_bits_retain(reader.u16("flags")?),
            reply: ReplyType(reader.u16("type")?),
            cookie: reader.u64("cookie")?,
            offset: reader.u64("offset")?,
            length: reader.u64("length")?,
        })
    }
}

/// The payload of an error chunk, `NBD_REPLY_TYPE_ERROR` or `NBD_REPLY_TYPE_ERROR_OFFSET` (section "Structured reply
/// types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorChunk<'a> {
    /// What went wrong; never [`ErrorCode::OK`].
    pub error: ErrorCode,
    /// A text for people, as sent: it may break the rules for strings.
    pub message: &'a [u8],
    /// Where, for `ERROR_OFFSET`.
    pub offset: Option<u64>,
}

impl<'a> ErrorChunk<'a> {
    /// Decodes the payload of an error chunk of type `reply`. What follows the fields that are known is ignored: the
    /// specification gives these chunks a least length only.
    ///
    /// # Errors
    /// [`DecodeError`] when a field does not fit, the message is too long, or the error is zero.
    // C-REP-STRUCT-02
    pub fn decode(reply: ReplyType, payload: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let error = ErrorCode(reader.u32("error")?);
        let length = reader.u16("message length")?;
        let message = reader.bytes(u32::from(length), "message")?;
        if error == ErrorCode::OK {
            return Err(DecodeError::BadValue("error"));
        }
        if message.len() > MAX_STRING {
            return Err(DecodeError::BadString("message"));
        }
        let offset = match reply {
            ReplyType::ERROR_OFFSET => Some(reader.u64("offset")?),
            _ => None,
        };
        Ok(Self { error, message, offset })
    }

    /// The message as it is sent, with its length: cut to fit.
    fn sent_message(&self) -> (&'a [u8], u16) {
        let message = self.message.get(..MAX_STRING).unwrap_or(self.message);
        // A string has 4096 bytes at most, so that its length fits.
        u16::try_from(message.len()).map_or((&[], 0), |length| (message, length))
    }

    /// The number of bytes that [`encode`](Self::encode) appends.
    pub(crate) fn encoded_length(&self) -> u32 {
        let fixed = if self.offset.is_some() { 14_u32 } else { 6 };
        fixed.saturating_add(self.sent_message().1.into())
    }

    /// Appends the payload to `out`: an `ERROR_OFFSET` payload when there is an offset. The message is cut to fit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (message, length) = self.sent_message();
        out.extend_from_slice(&self.error.0.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(message);
        if let Some(offset) = self.offset {
            out.extend_from_slice(&offset.to_be_bytes());
        }
    }
}

/// One extent of a block status chunk (section "Structured reply types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatusDescriptor {
    /// Bytes that the status holds for; never zero.
    pub length: u64,
    /// Flags as the metadata context defines them; in `BLOCK_STATUS` 32 bits of them.
    pub status: u64,
}

impl BlockStatusDescriptor {
    /// Bytes on the wire in a `BLOCK_STATUS` chunk.
    pub const COMPACT_SIZE: usize = 8;
    /// Bytes on the wire in a `BLOCK_STATUS_EXT` chunk.
    pub const EXTENDED_SIZE: usize = 16;

    /// Decodes a descriptor of a `BLOCK_STATUS` chunk.
    ///
    /// # Errors
    /// [`DecodeError`] when the length is zero.
    pub fn decode_compact(bytes: &[u8; Self::COMPACT_SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let length = u64::from(reader.u32("extent length")?);
        let status = u64::from(reader.u32("status")?);
        Self { length, status }.checked()
    }

    /// Decodes a descriptor of a `BLOCK_STATUS_EXT` chunk.
    ///
    /// # Errors
    /// [`DecodeError`] when the length is zero.
    pub fn decode_extended(bytes: &[u8; Self::EXTENDED_SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let length = reader.u64("extent length")?;
        let status = reader.u64("status")?;
        Self { length, status }.checked()
    }

    /// Appends the descriptor to `out`, in the form of a `BLOCK_STATUS_EXT` chunk if `extended`. In the other form
    /// both fields must fit into 32 bits; they are capped and masked.
    pub fn encode(&self, extended: bool, out: &mut Vec<u8>) {
        if extended {
            out.extend_from_slice(&self.length.to_be_bytes());
            out.extend_from_slice(&self.status.to_be_bytes());
        } else {
            let length = u32::try_from(self.length).unwrap_or(u32::MAX);
            let [_, _, _, _, status @ ..] = self.status.to_be_bytes();
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&status);
        }
    }

    const fn checked(self) -> Result<Self, DecodeError> {
        if self.length == 0 { Err(DecodeError::BadValue("extent length")) } else { Ok(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_headers_round_trip() {
        let simple = SimpleReplyHeader { error: ErrorCode(77), cookie: 3 };
        assert_eq!(SimpleReplyHeader::decode(&simple.encode()), Ok(simple));
        let structured = StructuredReplyHeader {
            flags: ReplyFlags::from_bits_retain(0x8001),
            reply: ReplyType(0x7777),
            cookie: u64::MAX,
            length: 9,
        };
        assert_eq!(StructuredReplyHeader::decode(&structured.encode()), Ok(structured));
        let extended = ExtendedReplyHeader {
            flags: ReplyFlags::DONE,
            reply: ReplyType::OFFSET_DATA,
            cookie: 1,
            offset: 2,
            length: 1 << 40,
        };
        assert_eq!(ExtendedReplyHeader::decode(&extended.encode()), Ok(extended));
    }

    #[test]
    fn error_chunks_round_trip_and_check_their_message() {
        for offset in [None, Some(4096)] {
            let reply = if offset.is_some() { ReplyType::ERROR_OFFSET } else { ReplyType::ERROR };
            let chunk = ErrorChunk { error: ErrorCode::EIO, message: b"bad block", offset };
            let mut payload = Vec::new();
            chunk.encode(&mut payload);
            assert_eq!(ErrorChunk::decode(reply, &payload), Ok(chunk));
            let short = &payload[..payload.len() - 1];
            assert!(matches!(ErrorChunk::decode(reply, short), Err(DecodeError::TooShort(_))));
            payload.push(0);
            assert_eq!(ErrorChunk::decode(reply, &payload), Ok(chunk), "what follows is ignored");
        }
        let too_long = [0, 0, 0, 5, 0, 9, b'x'];
        assert!(ErrorChunk::decode(ReplyType::ERROR, &too_long).is_err());
        assert!(ErrorChunk::decode(ReplyType::ERROR, &[0; 6]).is_err(), "an error of zero");
        let unknown = [0, 0, 0, 5, 0, 1, b'x', 1, 2, 3];
        assert!(ErrorChunk::decode(ReplyType(0x8999), &unknown).is_ok());
    }

    #[test]
    fn extents_of_no_length_are_refused() {
        assert!(BlockStatusDescriptor::decode_compact(&[0; 8]).is_err());
        assert!(BlockStatusDescriptor::decode_extended(&[0; 16]).is_err());
    }
}
