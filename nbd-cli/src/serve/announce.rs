//! What is printed once the server listens.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nbd_engine::net::LocalAddr;

use crate::exit::Failure;

/// The URI that clients use for an address.
pub(super) fn uri(address: &LocalAddr) -> String {
    match address {
        LocalAddr::Tcp(address) => format!("nbd://{address}/"),
        LocalAddr::Unix(path) => {
            // Clients may run in another folder.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            format!("nbd+unix:///?socket={}", percent_encoded(&path))
        }
    }
}

fn percent_encoded(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
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

/// Prints the URIs, one a line; on a terminal a hint, too.
pub(super) fn announce(addresses: &[LocalAddr]) -> Result<(), Failure> {
    let print = || {
        let mut out = io::stdout().lock();
        for address in addresses {
            writeln!(out, "{}", uri(address))?;
        }
        if let (true, Some(first)) = (out.is_terminal(), addresses.first()) {
            let uri = uri(first);
            writeln!(out, "Try, in another terminal:")?;
            writeln!(out, "  nbdinfo '{uri}'")?;
            writeln!(out, "  qemu-img info '{uri}'")?;
        }
        out.flush()
    };
    print().map_err(|error: io::Error| {
        Failure::failed(format!("cannot write to standard output: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_the_address_and_escape_the_path() {
        let tcp = |text: &str| LocalAddr::Tcp(text.parse().unwrap());
        assert_eq!(uri(&tcp("127.0.0.1:10809")), "nbd://127.0.0.1:10809/");
        assert_eq!(uri(&tcp("[::1]:5")), "nbd://[::1]:5/");
        let unix = LocalAddr::Unix("/tmp/a b&c".into());
        assert_eq!(uri(&unix), "nbd+unix:///?socket=/tmp/a%20b%26c");
    }
}
