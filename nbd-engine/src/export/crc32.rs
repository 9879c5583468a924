//! The checksum of GUID partition tables and of overlay files.

/// What a byte adds to a remainder of zero.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// CRC-32 with the polynomial of Ethernet, as in zlib.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    extend(0, bytes)
}

/// The checksum of bytes after those of which it is `crc`.
pub(super) fn extend(crc: u32, bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!crc, |crc, byte| TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_is_that_of_the_catalogues() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(super::crc32(b""), 0);
        assert_eq!(super::extend(super::crc32(b"1234"), b"56789"), 0xcbf4_3926);
    }
}
