//! `nbd psk`: adds a pre-shared key to a file of them.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use clap::Args;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::exit::Failure;
use crate::{feature, path_error, stderr};

/// Bytes of a key, as psktool makes them.
const KEY_LENGTH: usize = 32;

/// Add a user with a new random key to a file of pre-shared keys, for TLS without certificates.
///
/// The file has a line of the form USER:HEXKEY for each user, as psktool of GnuTLS writes it, for nbdkit, libnbd and qemu
/// as well. Copy it to both sides, by a way that no other can read. nbd itself uses such files if it was built with the
/// feature tls-psk.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The file, which is made if need be, readable by its owner alone
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The user
    #[arg(value_name = "USER")]
    user: String,
}

/// `nbd psk`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { file: path, user } = arguments;
    let unusable = |c: char| c == ':' || c.is_control();
    if user.is_empty() || user.starts_with('#') || user.contains(unusable) {
        let text = "is no name for a user: it must not be empty, begin with #, or contain a colon";
        return Err(Failure::usage(format!("'{user}' {text}")));
    }
    let cannot = |what: &str, error: &io::Error| {
        Failure::failed(format!("cannot {what} {}: {}", path.display(), path_error::why(error)))
    };
    let unfit = |what: &str| {
        Failure::failed(format!("{} is {what}: name a file of keys, or a new one", path.display()))
    };
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Err(unfit("no regular file"));
    }
    let before = match fs::read(path) {
        Ok(before) => before,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(cannot("read", &error)),
    };
    if !before.split(|byte| *byte == b'\n').all(may_be_key) {
        return Err(unfit("a file with something else than keys"));
    }
    let taken = before.split(|byte| *byte == b'\n').any(|line| {
        line.iter()
            .position(|byte| *byte == b':')
            .is_some_and(|end| line[..end] == *user.as_bytes())
    });
    if taken {
        let path = path.display();
        return Err(Failure::failed(format!(
            "{path} has a key for {user} already; remove that line to give a new one"
        )));
    }
    let mut line = String::new();
    if !before.is_empty() && !before.ends_with(b"\n") {
        line.push('\n');
    }
    line.push_str(user);
    line.push(':');
    for byte in random_key().map_err(|error| Failure::failed(format!("no random key: {error}")))? {
        // Writing to a string does not fail.
        let _written = write!(line, "{byte:02x}");
    }
    line.push('\n');
    let written = (|| {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        // One call, so that two writers don't mix their lines.
        file.write_all(line.as_bytes())?;
        file.sync_all()
    })();
    written.map_err(|error| cannot("write", &error))?;
    if cfg!(not(feature = "tls-psk")) {
        let (path, missing) = (path.display(), feature::PSK.text());
        stderr::say(&format!(
            "{path} has the key of {user}, which other programs can use; {missing}"
        ));
    }
    Ok(())
}

/// Whether a line is one of a file of keys: `USER:HEXKEY`, a comment, or nothing.
fn may_be_key(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    let key = line.iter().position(|byte| *byte == b':').map(|end| &line[end + 1..]);
    line.is_empty()
        || line.starts_with(b"#")
        || key.is_some_and(|key| !key.is_empty() && key.iter().all(u8::is_ascii_hexdigit))
}

fn random_key() -> io::Result<[u8; KEY_LENGTH]> {
    let mut key = [0; KEY_LENGTH];
    let mut filled = 0;
    while filled < KEY_LENGTH {
        filled += getrandom(&mut key[filled..], GetRandomFlags::empty())?;
    }
    Ok(key)
}
