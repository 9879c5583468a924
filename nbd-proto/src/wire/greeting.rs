//! What a server says first (section "Handshake").

use super::{ArrayWriter, DecodeError, HandshakeFlags, Reader, TransmissionFlags, magic};

/// The 18 bytes that open newstyle negotiation, in both its plain and its fixed form (section "Newstyle negotiation").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewstyleGreeting {
    /// What the server offers.
    pub flags: HandshakeFlags,
}

impl NewstyleGreeting {
    /// Bytes on the wire, both magics included.
    pub const SIZE: usize = 18;

    /// The greeting's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new().u64(magic::NBDMAGIC).u64(magic::IHAVEOPT).u16(self.flags.bits()).done()
    }
}

/// The 152 bytes that are all there is of an oldstyle handshake (section "Oldstyle negotiation").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldstyleGreeting {
    /// The size of the export in bytes.
    pub size: u64,
    /// The low half of the flags field. The high half holds handshake flags, which oldstyle has none of.
    pub flags: TransmissionFlags,
}

impl OldstyleGreeting {
    /// Bytes on the wire, both magics and the padding included.
    pub const SIZE: usize = 152;

    /// The greeting's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new()
            .u64(magic::NBDMAGIC)
            .u64(magic::OLDSTYLE)
            .u64(self.size)
            .u16(0)
            .u16(self.flags.bits())
            .put([0; super::EXPORT_NAME_PADDING])
            .done()
    }
}

/// Which kind of greeting a server's first 16 bytes open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the specification has these two, and what came later are options"
)]
pub enum Greeting {
    /// Two bytes of [`HandshakeFlags`] follow.
    Newstyle,
    /// Size, flags and padding follow, 136 bytes.
    Oldstyle,
}

impl Greeting {
    /// Bytes that distinguish the two: both magics.
    pub const SIZE: usize = 16;

    /// Finds out from both magics what is being spoken.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when one of them is unknown.
    // C-HS-17
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let first = reader.u64("first magic")?;
        if first != magic::NBDMAGIC {
            return Err(DecodeError::BadMagic { expected: "NBDMAGIC", found: first });
        }
        match reader.u64("second magic")? {
            magic::IHAVEOPT => Ok(Self::Newstyle),
            magic::OLDSTYLE => Ok(Self::Oldstyle),
            found => {
                Err(DecodeError::BadMagic { expected: "IHAVEOPT or the oldstyle magic", found })
            }
        }
    }

    /// Decodes what follows the magics of an oldstyle greeting.
    ///
    /// # Errors
    /// None: any bytes of this length are a greeting.
    pub fn decode_oldstyle(rest: &[u8; 136]) -> Result<OldstyleGreeting, DecodeError> {
        let mut reader = Reader::new(rest);
        let size = reader.u64("size")?;
        let _handshake_half = reader.u16("flags")?;
        let flags = TransmissionFlags::from_bits_retain(reader.u16("flags")?);
        Ok(OldstyleGreeting { size, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newstyle_greeting_is_nbdmagic_ihaveopt_and_flags() {
        let bytes = NewstyleGreeting { flags: HandshakeFlags::FIXED_NEWSTYLE }.encode();
        assert_eq!(&bytes, b"NBDMAGICIHAVEOPT\x00\x01");
        assert_eq!(Greeting::decode(bytes.first_chunk().unwrap()), Ok(Greeting::Newstyle));
    }

    #[test]
    fn the_oldstyle_greeting_round_trips() {
        let greeting = OldstyleGreeting { size: 1 << 40, flags: TransmissionFlags::HAS_FLAGS };
        let bytes = greeting.encode();
        let (head, rest) = bytes.split_first_chunk().unwrap();
        assert_eq!(Greeting::decode(head), Ok(Greeting::Oldstyle));
        assert_eq!(Greeting::decode_oldstyle(rest.try_into().unwrap()), Ok(greeting));
    }
}
