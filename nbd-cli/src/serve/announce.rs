//! What is printed once the server listens.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use nbd_engine::net::LocalAddr;

use crate::exit::Failure;
use crate::{descriptor, output};

/// The URI that clients use for an export at an address.
fn uri(address: &LocalAddr, export: &str) -> String {
    let export = percent_encoded(export.as_bytes());
    match address {
        LocalAddr::Tcp(address) => format!("nbd://{address}/{export}"),
        LocalAddr::Unix(path) => {
            // Clients may run in another folder.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let path = percent_encoded(path.as_os_str().as_bytes());
            format!("nbd+unix:///{export}?socket={path}")
        }
    }
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(*byte));
            }
            _ => {
                let _infallible = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

/// What there is to say once the server listens.
#[derive(Debug)]
pub(super) struct Announcement {
    /// Those of the exports; the first is that of clients which name none.
    pub(super) names: Vec<String>,
    /// Whether anybody wants to read it.
    pub(super) printed: bool,
}

impl Announcement {
    /// Prints the URIs, one a line for each address; on a terminal a hint, too.
    pub(super) fn make(&self, addresses: &[LocalAddr]) -> Result<(), Failure> {
        for address in addresses {
            for name in &self.names {
                tracing::info!(uri = uri(address, name), "serving");
            }
        }
        if !self.printed {
            return Ok(());
        }
        let print = || {
            descriptor::check_stdout()?;
            let mut out = io::stdout().lock();
            for address in addresses {
                writeln!(out, "{}", uri(address, ""))?;
            }
            if out.is_terminal() {
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
            text.push_str("The exports, of which the first is served to who names none:\n");
            for address in addresses {
                for name in &self.names {
                    text.push_str(&format!("  {}\n", uri(address, name)));
                }
            }
        }
        let uri = uri(first, "");
        text.push_str("Try, in another terminal:\n");
        text.push_str(&format!("  nbdinfo '{uri}'\n  qemu-img info '{uri}'\n"));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_the_address_and_escape_the_path() {
        let tcp = |text: &str| LocalAddr::Tcp(text.parse().unwrap());
        assert_eq!(uri(&tcp("127.0.0.1:10809"), ""), "nbd://127.0.0.1:10809/");
        assert_eq!(uri(&tcp("[::1]:5"), "a/b c"), "nbd://[::1]:5/a/b%20c");
        let unix = LocalAddr::Unix("/tmp/a b&c".into());
        assert_eq!(uri(&unix, ""), "nbd+unix:///?socket=/tmp/a%20b%26c");
        assert_eq!(uri(&unix, "d?"), "nbd+unix:///d%3F?socket=/tmp/a%20b%26c");
    }

    #[test]
    fn several_exports_have_a_uri_each_in_the_hint_and_one_has_none() {
        let addresses = [LocalAddr::Tcp("127.0.0.1:1".parse().unwrap())];
        let hint = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Announcement { names, printed: true }.hint(&addresses)
        };
        let try_this = hint(&["disk"]);
        assert!(try_this.starts_with("Try") && try_this.contains("nbdinfo 'nbd://127.0.0.1:1/'"));
        let several = hint(&["b", "a"]);
        assert!(several.contains("\n  nbd://127.0.0.1:1/b\n  nbd://127.0.0.1:1/a\n"), "{several}");
        assert!(several.ends_with(&try_this), "{several}");
    }
}
