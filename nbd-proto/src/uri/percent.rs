//! Percent-encoding (RFC 3986, section 2.1).

use alloc::vec::Vec;
use core::fmt;

/// Bytes that are printed with all but harmless ones percent-encoded.
pub(super) struct Encoded<'a> {
    bytes: &'a [u8],
    /// Besides unreserved characters, what may stand for itself.
    also: &'static [u8],
}

impl<'a> Encoded<'a> {
    /// For host names: nothing but unreserved characters.
    pub(super) const fn strict(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), also: b"" }
    }

    pub(super) const fn user(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), also: b"!$&'()*+,;=:" }
    }

    pub(super) const fn path(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), also: b"!$&'()*+,;=:@/" }
    }

    /// For values in a query. A `+` would be right, but too many take it for a space.
    pub(super) const fn query(bytes: &'a [u8]) -> Self {
        Self { bytes, also: b":@/" }
    }
}

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.bytes {
            if is_unreserved(*byte) || self.also.contains(byte) {
                fmt::Write::write_char(f, char::from(*byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether a character may stand in a URI at all (RFC 3986, appendix A: unreserved, reserved, or the percent sign).
pub(super) const fn is_uri_character(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c, '-' | '.' | '_' | '~' | '%')
        || matches!(c, ':' | '/' | '?' | '#' | '[' | ']' | '@')
        || matches!(c, '!' | '$' | '&' | '\'' | '(' | ')' | '*' | '+' | ',' | ';' | '=')
}

/// Decodes percent-encoding, or reports where two hexadecimal digits are missing.
pub(super) fn decode(encoded: &str) -> Result<Vec<u8>, usize> {
    let mut bytes = encoded.bytes().enumerate();
    let mut decoded = Vec::with_capacity(encoded.len());
    while let Some((position, byte)) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(bytes.next().map_or(0, |(_, byte)| byte)).to_digit(16);
            digit.and_then(|digit| u8::try_from(digit).ok()).ok_or(position)
        };
        let (high, low) = (digit()?, digit()?);
        decoded.push((high << 4) | low);
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn decoding_takes_both_cases_and_needs_two_digits() {
        assert_eq!(decode("a%2Fb%2f%00"), Ok(b"a/b/\0".to_vec()));
        assert_eq!(decode("%zz"), Err(0));
        assert_eq!(decode("ab%4"), Err(2));
        assert_eq!(decode("%"), Err(0));
        assert_eq!(decode("%+1"), Err(0));
    }

    #[test]
    fn every_byte_survives() {
        let bytes: Vec<u8> = (0..=255).collect();
        let encoded = Encoded::query(&bytes).to_string();
        assert!(encoded.chars().all(is_uri_character));
        assert_eq!(decode(&encoded), Ok(bytes));
    }
}
