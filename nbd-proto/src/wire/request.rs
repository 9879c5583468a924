//! Requests (section "Request message").

use super::{ArrayWriter, CommandFlags, DecodeError, Reader, magic, open_numbers};

open_numbers! {
    /// The type of a request (section "Request types").
    CommandType(u16) {
        /// Read data.
        READ = 0, "NBD_CMD_READ";
        /// Write data.
        WRITE = 1, "NBD_CMD_WRITE";
        /// End the session.
        DISC = 2, "NBD_CMD_DISC";
        /// Make answered writes durable.
        FLUSH = 3, "NBD_CMD_FLUSH";
        /// A range is no longer needed.
        TRIM = 4, "NBD_CMD_TRIM";
        /// A range will be needed soon.
        CACHE = 5, "NBD_CMD_CACHE";
        /// Write zeroes.
        WRITE_ZEROES = 6, "NBD_CMD_WRITE_ZEROES";
        /// Ask for the status of a range.
        BLOCK_STATUS = 7, "NBD_CMD_BLOCK_STATUS";
        /// Change the size of the export (resize extension).
        RESIZE = 8, "NBD_CMD_RESIZE";
    }
}

/// A request of 28 bytes, used unless extended headers were agreed (section "Request message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactRequest {
    /// Command flags.
    pub flags: CommandFlags,
    /// Which command.
    pub command: CommandType,
    /// The client's name for the request, any 64 bits.
    pub cookie: u64,
    /// Where in the export, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
}

impl CompactRequest {
    /// Bytes on the wire.
    pub const SIZE: usize = 28;

    /// The request's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new()
            .u32(magic::REQUEST)
            .u16(self.flags.bits())
            .u16(self.command.0)
            .u64(self.cookie)
            .u64(self.offset)
            .u32(self.length)
            .done()
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when the magic is another one, a historic one included.
    // S-REQ-02
    #[inline]
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        expect_magic(&mut reader, magic::REQUEST, "NBD_REQUEST_MAGIC")?;
        Ok(Self {
            flags: CommandFlags::from_bits_retain(reader.u16("flags")?),
            command: CommandType(reader.u16("type")?),
            cookie: reader.u64("cookie")?,
            offset: reader.u64("offset")?,
            length: reader.u32("length")?,
        })
    }
}

/// A request of 32 bytes, used once extended headers were agreed (section "Request message").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedRequest {
    /// Command flags.
    pub flags: CommandFlags,
    /// Which command.
    pub command: CommandType,
    /// The client's name for the request, any 64 bits.
    pub cookie: u64,
    /// Where in the export, in bytes.
    pub offset: u64,
    /// How much, in bytes: of payload when [`CommandFlags::PAYLOAD_LEN`] is set, of effect otherwise.
    pub length: u64,
}

impl ExtendedRequest {
    /// Bytes on the wire.
    pub const SIZE: usize = 32;

    /// The request's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new()
            .u32(magic::EXTENDED_REQUEST)
            .u16(self.flags.bits())
            .u16(self.command.0)
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
        expect_magic(&mut reader, magic::EXTENDED_REQUEST, "NBD_EXTENDED_REQUEST_MAGIC")?;
        Ok(Self {
            flags: CommandFlags::from_bits_retain(reader.u16("flags")?),
            command: CommandType(reader.u16("type")?),
            cookie: reader.u64("cookie")?,
            offset: reader.u64("offset")?,
            length: reader.u64("length")?,
        })
    }
}

impl From<CompactRequest> for ExtendedRequest {
    /// Widens the length. In compact form only WRITE carries a payload, so only it gets the flag that says so.
    fn from(request: CompactRequest) -> Self {
        let CompactRequest { flags, command, cookie, offset, length } = request;
        Self { flags, command, cookie, offset, length: u64::from(length) }
    }
}

pub(super) fn expect_magic(
    reader: &mut Reader<'_>,
    magic: u32,
    expected: &'static str,
) -> Result<(), DecodeError> {
    let found = reader.u32("magic")?;
    if found == magic {
        return Ok(());
    }
    Err(DecodeError::BadMagic { expected, found: u64::from(found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip_with_unknown_flags_and_commands() {
        let compact = CompactRequest {
            flags: CommandFlags::from_bits_retain(0x8001),
            command: CommandType(0xabcd),
            cookie: u64::MAX,
            offset: 1 << 63,
            length: 7,
        };
        assert_eq!(CompactRequest::decode(&compact.encode()), Ok(compact));
        let extended = ExtendedRequest { length: u64::MAX, ..compact.into() };
        assert_eq!(ExtendedRequest::decode(&extended.encode()), Ok(extended));
    }

    #[test]
    fn historic_and_foreign_magics_are_refused() {
        let request = CompactRequest {
            flags: CommandFlags::empty(),
            command: CommandType::READ,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        for magic in [0x1256_0953_u32, 0x9674_4668, 0x2560_9514, magic::EXTENDED_REQUEST] {
            let mut bytes = request.encode();
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            assert!(CompactRequest::decode(&bytes).is_err(), "{magic:#x}");
        }
    }
}
