//! Why a file can't be used by this server in particular: what its messages add to the system's error.

use std::fs;
use std::io::ErrorKind;

use super::sandbox;

/// What follows an error of this kind about a file that is to be opened.
pub(super) fn why(kind: ErrorKind) -> String {
    match kind {
        ErrorKind::PermissionDenied if sandbox::is_confined() => {
            "; the server is confined (sandbox) to the files and folders that it had at its start: restart it to use others"
                .into()
        }
        ErrorKind::PermissionDenied => format!("; this server runs as the user {}", user()),
        ErrorKind::ReadOnlyFilesystem if std::env::var_os("INVOCATION_ID").is_some() => {
            "; a systemd unit makes a folder writable by ReadWritePaths=".into()
        }
        _ => String::new(),
    }
}

/// The name of the user that this process runs as, or its number if there is none.
fn user() -> String {
    let number = rustix::process::geteuid().as_raw();
    let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&table, number).map_or_else(|| number.to_string(), str::to_owned)
}

/// The name of a user in a table of the form of `/etc/passwd`.
fn name_in(table: &str, number: u32) -> Option<&str> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        // The password lies in between.
        (fields.nth(1)?.parse() == Ok(number)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_their_names_and_others_none() {
        let table = "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:7:7\n_nbd:x:117:65534::/:\n";
        assert_eq!(name_in(table, 0), Some("root"));
        assert_eq!(name_in(table, 117), Some("_nbd"));
        assert_eq!(name_in(table, 7), None);
        assert_eq!(name_in(table, 65534), None);
    }
}
