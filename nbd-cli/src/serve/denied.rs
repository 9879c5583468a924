//! Why a file can't be used by this server in particular: what its messages add to the system's error.

use std::fs;
use std::io::ErrorKind;

use super::{accounts, sandbox};

/// Whether it is the sandbox that refuses, as far as one can know.
pub(super) fn is_by_sandbox(kind: ErrorKind) -> bool {
    kind == ErrorKind::PermissionDenied && sandbox::is_confined()
}

/// What follows an error of this kind about a file that is to be opened.
pub(super) fn why(kind: ErrorKind) -> String {
    match kind {
        _ if is_by_sandbox(kind) => {
            "; the server is confined (sandbox) to the files and folders that it had at its start: restart it to use others"
                .into()
        }
        ErrorKind::PermissionDenied => format!("; this server runs as the user {}", user()),
        ErrorKind::ReadOnlyFilesystem if std::env::var_os("INVOCATION_ID").is_some() => {
            "; a systemd unit makes a folder writable by ReadWritePaths=".into()
        }
        ErrorKind::ExecutableFileBusy => {
            "; it is a program that is running: stop it first, or serve it read-only".into()
        }
        _ => String::new(),
    }
}

/// The name of the user that this process runs as, or its number if there is none.
fn user() -> String {
    let number = rustix::process::geteuid().as_raw();
    let table = fs::read_to_string(accounts::USERS).unwrap_or_default();
    accounts::name(number, &table).map_or_else(|| number.to_string(), str::to_owned)
}
