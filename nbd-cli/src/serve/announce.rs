//! What is printed once the server listens.

use std::io::{self, IsTerminal, Write};

use nbd_engine::net::LocalAddr;

use crate::exit::Failure;
use crate::patient::Patient;
use crate::{descriptor, output};

/// The URI that clients use for an export at an address.
fn uri(address: &LocalAddr, export: &str, in_tls: bool) -> String {
    match address.uri(export) {
        Ok(uri) => format!("{:#}", uri.with_tls_required(in_tls)),
        // A socket without a path, which was handed over.
        Err(_) => address.to_string(),
    }
}

/// What there is to say once the server listens.
#[derive(Debug)]
pub(super) struct Announcement {
    /// Those of the exports; the first is that of clients which name none.
    pub(super) names: Vec<String>,
    /// What precedes the names of files of directories, with the `/`.
    pub(super) directories: Vec<String>,
    /// Whether anybody wants to read it.
    pub(super) printed: bool,
    /// Whether clients must encrypt.
    pub(super) in_tls: bool,
}

impl Announcement {
    /// The URI of the export that clients get which name none.
    pub(super) fn uri(&self, address: &LocalAddr) -> String {
        uri(address, "", self.in_tls)
    }

    /// Prints the URIs, one a line for each address; on a terminal a hint, too.
    pub(super) fn make(&self, addresses: &[LocalAddr]) -> Result<(), Failure> {
        for address in addresses {
            for name in &self.names {
                tracing::info!(uri = uri(address, name, self.in_tls), "serving");
            }
            for prefix in &self.directories {
                let uri = uri(address, "", self.in_tls);
                let prefix = prefix.trim_start_matches('/');
                tracing::info!(uri, prefix, "serving the files of a directory by their names");
            }
        }
        if !self.printed {
            return Ok(());
        }
        let print = || {
            descriptor::check_stdout()?;
            let mut out = Patient(io::stdout().lock());
            for address in addresses {
                writeln!(out, "{}", uri(address, "", self.in_tls))?;
            }
            if out.0.is_terminal() {
                out.write_all(self.hint(addresses).as_bytes())?;
            }
            out.flush()
        };
        print().map_err(output::cannot_write)
    }

    /// What to try, and where the exports are if there are several.
    fn hint(&self, addresses: &[LocalAddr]) -> String {
        let Some(first) = addresses.first() else { return String::new() };
        let mut text = String::new();
        if self.names.len() > 1 {
            text.push_str("The exports; clients that name none get the first:\n");
            for address in addresses {
                for name in &self.names {
                    text.push_str(&format!("  {}\n", uri(address, name, self.in_tls)));
                }
            }
        }
        let uri = output::shell_word(uri(first, "", self.in_tls).as_ref());
        text.push_str("Try, in another terminal:\n");
        if !self.directories.is_empty() {
            text.push_str(&format!("  nbd list {uri}\n"));
        }
        if !self.names.is_empty() {
            text.push_str(&format!("  nbdinfo {uri}\n  qemu-img info {uri}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_exports_have_a_uri_each_in_the_hint_and_one_has_none() {
        let addresses = [LocalAddr::Tcp("127.0.0.1:1".parse().unwrap())];
        let of = |names: &[&str], directories: &[&str]| {
            let [names, directories] = [names, directories]
                .map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            Announcement { names, directories, printed: true, in_tls: false }.hint(&addresses)
        };
        let hint = |names: &[&str]| of(names, &[]);
        let try_this = hint(&["disk"]);
        assert!(try_this.starts_with("Try") && try_this.contains("nbdinfo nbd://127.0.0.1:1/\n"));
        let several = hint(&["b", "a"]);
        assert!(several.contains("\n  nbd://127.0.0.1:1/b\n  nbd://127.0.0.1:1/a\n"), "{several}");
        assert!(several.ends_with(&try_this), "{several}");
        let listed = "Try, in another terminal:\n  nbd list nbd://127.0.0.1:1/\n";
        assert_eq!(of(&[], &["/"]), listed);
        assert!(of(&["disk"], &["a/"]).starts_with(&format!("{listed}  nbdinfo ")));
    }
}
