//! The key of encrypted volumes.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::Error;

/// A key for encrypted volumes: 32 random bytes. Without it their data is lost. It is shown nowhere, `Debug` included;
/// its memory is not wiped.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; Self::LENGTH]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Bytes of a key.
    pub const LENGTH: usize = 32;

    /// A key of these bytes, which should be random: no passphrase.
    #[must_use]
    pub const fn new(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// Reads a key from a file: 32 bytes, or 64 hexadecimal digits with or without white space behind them. Blocks
    /// while the file is read.
    ///
    /// # Errors
    /// [`Error::KeyFile`] when the file can't be read, all users may read it, or it holds something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::KeyFile { path: path.to_owned(), reason };
        let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
        let mode = file.metadata().map_err(|error| wrong(error.to_string()))?;
        if mode.permissions().mode() & 0o004 != 0 {
            return Err(wrong("all users may read it: chmod 600 it".to_owned()));
        }
        let mut content = Vec::new();
        // No more than a key may have: it may be a device.
        let read = file.take(100).read_to_end(&mut content);
        read.map_err(|error| wrong(error.to_string()))?;
        Self::parse(&content).ok_or_else(|| {
            wrong(
                "it holds neither 32 random bytes nor 64 hexadecimal digits: make a key with openssl rand -hex 32"
                    .to_owned(),
            )
        })
    }

    fn parse(content: &[u8]) -> Option<Self> {
        // Random bytes are not all of them printable, but for one key in 2^45: that is a passphrase.
        let is_text = content.iter().all(|byte| (b' '..=b'~').contains(byte));
        if !is_text && let Ok(bytes) = content.try_into() {
            return Some(Self(bytes));
        }
        let digits = content.trim_ascii_end();
        let mut key = [0; Self::LENGTH];
        if digits.len() != 2 * Self::LENGTH {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
        }
        Some(Self(key))
    }

    pub(crate) const fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_is_32_bytes_or_64_digits() {
        let key = Key::new([0xab; 32]);
        assert_eq!(Key::parse(&[0xab; 32]), Some(key.clone()));
        assert_eq!(Key::parse("ab".repeat(32).as_bytes()), Some(key.clone()));
        assert_eq!(Key::parse(format!("{}\n", "aB".repeat(32)).as_bytes()), Some(key));
        for wrong in ["", "ab", &"a".repeat(63), &"g".repeat(64), &"ab".repeat(33), &"é".repeat(32)]
            .into_iter()
            .chain(["correct horse battery staple 123", &"ab".repeat(16)])
        {
            assert_eq!(Key::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_key_file_that_all_may_read_or_that_holds_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let refusal = |path: &Path| Key::read(path).unwrap_err().to_string();
        assert!(refusal(&path).contains("No such file"));
        fs::write(&path, "ab".repeat(32)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refusal(&path).contains("chmod 600"));
        for mode in [0o640, 0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Key::read(&path).unwrap(), Key::new([0xab; 32]));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "a passphrase").unwrap();
        assert!(refusal(&path).contains("openssl rand -hex 32"));
    }
}
