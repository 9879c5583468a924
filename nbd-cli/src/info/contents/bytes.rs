//! Fields of bytes that may be anything, and be too few.

/// So many bytes at an offset, or none.
pub(super) fn at(bytes: &[u8], offset: usize, length: usize) -> Option<&[u8]> {
    bytes.get(offset..offset.checked_add(length)?)
}

/// Whether these bytes stand at an offset.
pub(super) fn has(bytes: &[u8], offset: usize, wanted: &[u8]) -> bool {
    at(bytes, offset, wanted.len()) == Some(wanted)
}

pub(super) fn u16_le(bytes: &[u8], offset: usize) -> Option<u16> {
    at(bytes, offset, 2)?.try_into().ok().map(u16::from_le_bytes)
}

pub(super) fn u32_le(bytes: &[u8], offset: usize) -> Option<u32> {
    at(bytes, offset, 4)?.try_into().ok().map(u32::from_le_bytes)
}

pub(super) fn u64_le(bytes: &[u8], offset: usize) -> Option<u64> {
    at(bytes, offset, 8)?.try_into().ok().map(u64::from_le_bytes)
}

pub(super) fn u32_be(bytes: &[u8], offset: usize) -> Option<u32> {
    at(bytes, offset, 4)?.try_into().ok().map(u32::from_be_bytes)
}

/// A text that ends at its first NUL, without blanks around; none if it is empty.
pub(super) fn text(bytes: &[u8], offset: usize, length: usize) -> Option<String> {
    let field = at(bytes, offset, length)?.split(|byte| *byte == 0).next()?;
    let text = String::from_utf8_lossy(field).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Text in UTF-16 by little-endian units, up to its first NUL, without blanks around; none if it is empty.
pub(super) fn utf16_le(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let text: String = char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A UUID whose bytes stand in order; none if all are zero.
pub(super) fn uuid(bytes: &[u8], offset: usize) -> Option<String> {
    let field = at(bytes, offset, 16)?;
    if field.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut text = String::with_capacity(36);
    for (index, byte) in field.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Some(text)
}

/// A GUID as Microsoft stores it: the first three fields are little-endian.
pub(super) fn guid(bytes: &[u8; 16]) -> String {
    let mut ordered = *bytes;
    ordered[..4].reverse();
    ordered[4..6].reverse();
    ordered[6..8].reverse();
    uuid(&ordered, 0).unwrap_or_else(|| "00000000-0000-0000-0000-000000000000".into())
}
