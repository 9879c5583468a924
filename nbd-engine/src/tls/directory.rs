//! The names that certificates have in the folders of nbdkit, libnbd and qemu.

use std::path::{Path, PathBuf};

use super::files::exists;

/// The authority's certificate.
pub(super) const CA_CERTIFICATE: &str = "ca-cert.pem";
/// The server's certificate.
pub(super) const SERVER_CERTIFICATE: &str = "server-cert.pem";
/// The server's private key.
pub(super) const SERVER_KEY: &str = "server-key.pem";
/// The client's certificate.
pub(super) const CLIENT_CERTIFICATE: &str = "client-cert.pem";
/// The client's private key.
pub(super) const CLIENT_KEY: &str = "client-key.pem";

/// The first of the usual folders that holds `file`: those of the user in `home`, then the system's. Programs that
/// exist already have theirs in the same places.
fn find(home: Option<&Path>, system: &Path, program: &str, file: &str) -> Option<PathBuf> {
    let of_user = home
        .into_iter()
        .flat_map(|home| [home.join(".pki"), home.join(".config/pki")])
        .flat_map(|folder| [folder.join("nbd"), folder.join(program)]);
    let of_system = ["nbd", program, "qemu"].into_iter().map(|name| system.join(name));
    of_user.chain(of_system).find(|folder| exists(&folder.join(file)))
}

fn home() -> Option<PathBuf> {
    std::env::home_dir()
}

/// Where a server's certificate lies if nobody says: in `~/.pki/nbd`, `~/.pki/nbdkit`, `~/.config/pki/…`, `/etc/pki/nbd`,
/// `/etc/pki/nbdkit` or `/etc/pki/qemu`.
#[must_use]
pub fn default_server_directory() -> Option<PathBuf> {
    find(home().as_deref(), Path::new("/etc/pki"), "nbdkit", SERVER_CERTIFICATE)
}

/// Where a client's authority lies if nobody says: as [`default_server_directory`], with `libnbd` in place of `nbdkit`.
#[must_use]
pub fn default_client_directory() -> Option<PathBuf> {
    find(home().as_deref(), Path::new("/etc/pki"), "libnbd", CA_CERTIFICATE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn folders_of_the_user_come_before_those_of_the_system() {
        let root = tempfile::tempdir().unwrap();
        let (home, system) = (root.path().join("home"), root.path().join("etc"));
        let found = || find(Some(&home), &system, "libnbd", CA_CERTIFICATE);
        assert_eq!(found(), None);
        for folder in [
            system.join("qemu"),
            system.join("libnbd"),
            system.join("nbd"),
            home.join(".config/pki/libnbd"),
            home.join(".pki/libnbd"),
            home.join(".pki/nbd"),
        ] {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(CA_CERTIFICATE), "x").unwrap();
            assert_eq!(found(), Some(folder));
        }
    }
}
