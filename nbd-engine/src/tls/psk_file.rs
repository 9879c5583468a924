//! Files of pre-shared keys, as `psktool` of GnuTLS writes them.

use core::fmt;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::TlsError;
use super::error::KEYS;

/// The longest key that OpenSSL takes, and the longest that `psktool` makes, in bytes.
const MAX_KEY: usize = 512;

/// The longest user name that OpenSSL takes, in bytes.
const MAX_USER: usize = 256;

/// Keys that are shorter, in bytes, can be guessed by trying. GnuTLS takes them, and so do others; a warning has to do.
const SHORT_KEY: usize = 16;

/// The keys of users: lines of the form `user:hexkey`, or `#hexuser:hexkey` for users with special characters.
pub(super) struct Keys(HashMap<String, Vec<u8>>);

impl Keys {
    /// Reads a file.
    pub(super) fn load(path: &Path) -> Result<Self, TlsError> {
        let unreadable =
            |source| TlsError::Unreadable { what: KEYS, path: path.to_owned(), source };
        let malformed =
            |reason: String| TlsError::Malformed { what: KEYS, path: path.to_owned(), reason };
        let bytes = fs::read(path).map_err(unreadable)?;
        // What the file is comes before who can read it: the remedy for another file is not to hide it.
        let text = String::from_utf8(bytes)
            .map_err(|_| malformed("it is no text; it has lines of the form user:hexkey".into()))?;
        if let Some(what) = in_pem(&text) {
            return Err(malformed(format!(
                "it holds {what}; certificates and their private keys are in a folder, named by --tls-certificates DIR \
                 or tls-certificates=DIR"
            )));
        }
        if text.trim().is_empty() {
            return Err(TlsError::NoKeys(path.to_owned()));
        }
        let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
        if mode & 0o004 != 0 {
            return Err(TlsError::KeyIsPublic(path.to_owned()));
        }
        let mut keys: HashMap<String, (usize, Vec<u8>)> = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_end();
            if line.is_empty() {
                continue;
            }
            let in_line = |what: String| malformed(format!("line {number}: {what}"));
            let (user, key) = user_and_key(line).map_err(|what| in_line(what.into()))?;
            if let Some((earlier, _)) = keys.get(&user) {
                return Err(in_line(format!(
                    "{user:?} has a key in line {earlier} already, and programs differ in which they take; remove one"
                )));
            }
            if key.len() < SHORT_KEY {
                tracing::warn!(
                    file = %path.display(), line = number, bytes = key.len(),
                    "a pre-shared key is short enough to be guessed; `nbd psk` makes one of 32 bytes"
                );
            }
            keys.insert(user, (number, key));
        }
        Ok(Self(keys.into_iter().map(|(user, (_, key))| (user, key)).collect()))
    }

    /// The key of a user.
    pub(super) fn of(&self, user: &str) -> Option<&[u8]> {
        self.0.get(user).map(Vec::as_slice)
    }
}

/// Without the keys.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What a file in PEM format holds first.
fn in_pem(text: &str) -> Option<&'static str> {
    let label = text.lines().find_map(|line| line.strip_prefix("-----BEGIN "))?;
    Some(match label {
        _ if label.contains("PRIVATE KEY") => "a private key in PEM format",
        _ if label.contains("CERTIFICATE") => "a certificate in PEM format",
        _ => "something in PEM format",
    })
}

/// What a line says, or what is wrong with it.
fn user_and_key(line: &str) -> Result<(String, Vec<u8>), &'static str> {
    let (user, key) = line.split_once(':').ok_or("there is no colon behind the user")?;
    let user = match user.strip_prefix('#') {
        None => user.to_owned(),
        Some(digits) => {
            let bytes = hex(digits).ok_or(
                "behind a # the user is in hex digits; there are no comments in such a file",
            )?;
            String::from_utf8(bytes).map_err(|_| "the user is no text in UTF-8")?
        }
    };
    let key = hex(key.trim()).ok_or("the key is not in pairs of hex digits")?;
    if user.is_empty() || key.is_empty() {
        return Err("the user or the key is empty");
    }
    if user.contains('\0') || user.len() > MAX_USER {
        return Err("the user has more than 256 bytes, or a byte of zero");
    }
    if key.len() > MAX_KEY {
        return Err("the key has more than 512 bytes");
    }
    Ok((user, key))
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn file(folder: &tempfile::TempDir, content: &[u8]) -> PathBuf {
        let path = folder.path().join("keys.psk");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn load(content: &[u8]) -> Result<Keys, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, content);
        Keys::load(&path).map_err(|error| {
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            text
        })
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_the_line() {
        let (long_user, long_key) = ("u".repeat(257), "00".repeat(513));
        for (content, expected) in [
            ("", "nbd psk "),
            ("\n \n\r\n", "nbd psk "),
            ("alice", "line 1: there is no colon"),
            ("alice:00\n\nbob", "line 3: there is no colon"),
            ("alice:xyz0", "line 1: the key is not in pairs of hex digits"),
            ("alice:123", "pairs of hex digits"),
            ("alice:0x12", "pairs of hex digits"),
            ("alice:\u{e9}0", "pairs of hex digits"),
            (":00", "empty"),
            ("alice:", "empty"),
            ("#:00", "empty"),
            ("# keys of our disks: 2026\nalice:00", "line 1: behind a # the user is in hex"),
            ("#ff:00", "UTF-8"),
            ("#00:00", "a byte of zero"),
            (&format!("{long_user}:00"), "256 bytes"),
            (&format!("alice:{long_key}"), "512 bytes"),
            ("alice:00\nbob:01\nalice:02", "line 3: \"alice\" has a key in line 1 already"),
            ("alice:00\n#616c696365:00", "line 2: \"alice\" has a key in line 1 already"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "--tls-certificates"),
            ("subject=x\n-----BEGIN PRIVATE KEY-----\nAAAA\n", "--tls-certificates"),
        ] {
            let text = load(content.as_bytes()).expect_err(content);
            assert!(text.contains(expected), "{content:?}: {text}");
        }
        let text = load(&[0x30, 0x82, 0xff, 0x00]).expect_err("it is no text");
        assert!(text.contains("it is no text"), "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent.psk");
        let text = Keys::load(&path).unwrap_err().to_string();
        assert!(text.contains(&format!("nbd psk {} USER", path.display())), "{text}");
        let text = Keys::load(folder.path()).unwrap_err().to_string();
        assert!(text.contains("it is a folder"), "{text}");
        let path = file(&folder, b"alice:00");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let text = Keys::load(&path).unwrap_err().to_string();
        assert!(text.contains("chmod 600"), "{text}");
    }

    /// A file that can be no file of keys, whatever its mode: to hide it would be in vain.
    #[test]
    fn what_a_file_is_comes_before_who_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        for (content, expected) in [
            (&b""[..], "is empty"),
            (b"\n \n", "is empty"),
            (b"-----BEGIN CERTIFICATE-----\n", "it holds a certificate in PEM format"),
            (b"x\n-----BEGIN EC PRIVATE KEY-----\n", "it holds a private key in PEM format"),
            (b"-----BEGIN X509 CRL-----\n", "it holds something in PEM format"),
            (b"\x30\x82\xff", "it is no text"),
            (b"alice:00", "chmod 600"),
            (b"alice", "chmod 600"),
        ] {
            let path = file(&folder, content);
            for mode in [0o644, 0o604, 0o666] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let text = Keys::load(&path).unwrap_err().to_string();
                assert!(text.contains(expected), "{content:?}: {text}");
                assert_eq!(text.contains("chmod"), expected == "chmod 600", "{text}");
            }
        }
    }

    #[test]
    fn users_are_told_apart_by_their_case_and_may_be_in_hex() {
        let keys = load(b"alice:00\r\nAlice:01 \n#3ab5c3a9:02\n\n").unwrap_err();
        assert!(keys.contains("UTF-8"), "{keys}");
        let keys = load(b"alice:00\r\nAlice:01 \n#3ac3a9:aBCd\n\n").unwrap();
        assert_eq!(keys.of("alice"), Some(&[0][..]));
        assert_eq!(keys.of("Alice"), Some(&[1][..]));
        assert_eq!(keys.of(":é"), Some(&[0xab, 0xcd][..]));
        assert_eq!(keys.of("ALICE"), None);
        assert!(!format!("{keys:?}").contains("171"), "keys are not shown");
    }

    proptest! {
        /// Whatever is in a file: it is read, or refused with words.
        #[test]
        fn any_file_is_read_or_refused(
            content in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "([#a-z]{0,3}:?[0-9a-fg]{0,6}\r?\n?){0,5}".prop_map(String::into_bytes),
            ],
        ) {
            if let Ok(keys) = load(&content) {
                prop_assert!(keys.0.iter().all(|(user, key)| !user.is_empty() && !key.is_empty()));
            }
        }
    }
}
