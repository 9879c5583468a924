//! Reading and writing big-endian fields without a panic in reach.

use super::MAX_STRING;

/// Why a message could not be decoded. Names the field, so that a person can find the fault in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message ends before the named field does.
    #[error("the message is too short for its {0}")]
    TooShort(&'static str),
    /// Bytes are left over after the last field.
    #[error("{0} bytes are left over after the last field")]
    LeftOver(usize),
    /// A string is not UTF-8, contains NUL, or is longer than [`MAX_STRING`].
    // B-CONV-02, B-CONV-03
    #[error("the {0} is not a valid string (UTF-8 without NUL, at most 4096 bytes)")]
    BadString(&'static str),
    /// A magic number is wrong; carries what was found instead.
    #[error("{expected} expected, {found:#x} found")]
    BadMagic {
        /// The name of the magic number that should stand here.
        expected: &'static str,
        /// What was found.
        found: u64,
    },
    /// A field holds a value that the specification forbids there.
    #[error("the {0} has a value that is not allowed")]
    BadValue(&'static str),
}

/// Whether `bytes` obey the rules for strings: UTF-8, no NUL, at most [`MAX_STRING`] bytes (section "Conventions").
#[must_use]
pub fn is_valid_string(bytes: &[u8]) -> bool {
    valid_string(bytes).is_some()
}

/// The bytes as a string, if they obey the rules for strings.
pub(crate) fn valid_string(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > MAX_STRING || bytes.contains(&0) {
        return None;
    }
    core::str::from_utf8(bytes).ok()
}

/// Reads fields off the front of a message.
///
/// ```
/// use nbd_proto::wire::{DecodeError, Reader};
/// let mut reader = Reader::new(&[0, 0, 0, 3, b'd', b's', b'k']);
/// let length = reader.u32("name length")?;
/// assert_eq!(reader.string(length, "name")?, "dsk");
/// reader.finish()?;
/// # Ok::<(), DecodeError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The number of bytes not yet read.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `N` bytes; `field` names them in the error.
    ///
    /// # Errors
    /// [`DecodeError::TooShort`] when fewer bytes are left.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::TooShort(field))?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next 16-bit integer.
    ///
    /// # Errors
    /// [`DecodeError::TooShort`] when fewer bytes are left.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// The next 32-bit integer.
    ///
    /// # Errors
    /// [`DecodeError::TooShort`] when fewer bytes are left.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// The next 64-bit integer.
    ///
    /// # Errors
    /// [`DecodeError::TooShort`] when fewer bytes are left.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`DecodeError::TooShort`] when fewer bytes are left.
    pub fn bytes(&mut self, length: u32, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let split = usize::try_from(length).ok().and_then(|n| self.rest.split_at_checked(n));
        let (head, rest) = split.ok_or(DecodeError::TooShort(field))?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `length` bytes as a string, by the rules of section "Conventions".
    ///
    /// # Errors
    /// [`DecodeError::TooShort`] when fewer bytes are left, [`DecodeError::BadString`] when they are no valid string.
    pub fn string(&mut self, length: u32, field: &'static str) -> Result<&'a str, DecodeError> {
        valid_string(self.bytes(length, field)?).ok_or(DecodeError::BadString(field))
    }

    /// All that is left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    /// All that is left, as a string.
    ///
    /// # Errors
    /// [`DecodeError::BadString`] when they are no valid string.
    pub fn rest_as_string(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let length = u32::try_from(self.rest.len()).map_err(|_| DecodeError::BadString(field))?;
        self.string(length, field)
    }

    /// Insists that nothing is left.
    ///
    /// # Errors
    /// [`DecodeError::LeftOver`] when there are bytes left.
    pub const fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(DecodeError::LeftOver(n)),
        }
    }
}

/// Fills an array of `N` bytes field by field. What does not fit is dropped, which the codec's tests rule out.
pub(crate) struct ArrayWriter<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> ArrayWriter<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], filled: 0 }
    }

    #[inline]
    pub(crate) fn put<const M: usize>(mut self, field: [u8; M]) -> Self {
        if let Some(slot) =
            self.bytes.get_mut(self.filled..).and_then(|rest| rest.first_chunk_mut())
        {
            *slot = field;
            self.filled = self.filled.saturating_add(M);
        }
        self
    }

    #[inline]
    pub(crate) fn u16(self, value: u16) -> Self {
        self.put(value.to_be_bytes())
    }

    #[inline]
    pub(crate) fn u32(self, value: u32) -> Self {
        self.put(value.to_be_bytes())
    }

    #[inline]
    pub(crate) fn u64(self, value: u64) -> Self {
        self.put(value.to_be_bytes())
    }

    #[inline]
    pub(crate) fn done(self) -> [u8; N] {
        debug_assert_eq!(self.filled, N, "every byte of a fixed-size message is written");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_names_what_is_missing_and_counts_what_is_left() {
        let mut reader = Reader::new(&[0, 1, 2]);
        assert_eq!(reader.u16("first"), Ok(1));
        assert_eq!(reader.u16("second"), Err(DecodeError::TooShort("second")));
        assert_eq!(reader.finish(), Err(DecodeError::LeftOver(1)));
    }

    #[test]
    fn a_length_near_the_end_of_the_address_space_is_only_too_short() {
        assert_eq!(Reader::new(&[1]).bytes(u32::MAX, "data"), Err(DecodeError::TooShort("data")));
    }

    #[test]
    fn strings_obey_the_rules_of_the_conventions() {
        for (bytes, valid) in [
            (&b"disk"[..], true),
            (&[0xff, 0xfe][..], false),
            (&b"a\0b"[..], false),
            (&[b'x'; 4096][..], true),
            (&[b'x'; 4097][..], false),
        ] {
            assert_eq!(is_valid_string(bytes), valid);
        }
    }
}
