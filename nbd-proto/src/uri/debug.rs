//! What is in a URI, for people who look for a fault: its paths are text, although any bytes will do.

use core::fmt;

use super::{Address, TlsParameters};

/// A path as text, in quotes: the bytes that are none are escaped.
struct Text<'a>(&'a [u8]);

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match core::str::from_utf8(self.0) {
            Ok(text) => write!(f, "{text:?}"),
            Err(_) => write!(f, "\"{}\"", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => {
                f.debug_struct("Tcp").field("host", host).field("port", port).finish()
            }
            Self::Unix { socket } => f.debug_struct("Unix").field("socket", &Text(socket)).finish(),
            Self::Vsock { cid, port } => {
                f.debug_struct("Vsock").field("cid", cid).field("port", port).finish()
            }
        }
    }
}

impl fmt::Debug for TlsParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, hostname, verify_peer, certificates, psk_file } = self;
        f.debug_struct("TlsParameters")
            .field("kind", kind)
            .field("hostname", hostname)
            .field("verify_peer", verify_peer)
            .field("certificates", &certificates.as_deref().map(Text))
            .field("psk_file", &psk_file.as_deref().map(Text))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    use crate::{TlsParameters, Uri};

    /// Whatever the bytes are: letters are there as they are, and a list of numbers is not.
    #[test]
    fn paths_are_text() {
        nbd_testkit::cases(100, |random| {
            let length = 1 + random.below(30);
            let any: Vec<u8> = (0..length).map(|_| 1 + random.below(255) as u8).collect();
            let path = [b"/run/nbd/", &*any].concat();
            let tls = TlsParameters {
                certificates: Some(path.clone()),
                psk_file: Some(path.clone()),
                ..TlsParameters::default()
            };
            let uri = Uri::unix(path).unwrap().with_tls(tls).unwrap();
            let shown = format!("{uri:?}");
            assert_eq!(shown.matches("\"/run/nbd/").count(), 3, "{shown}");
            assert!(!shown.contains("[47, "), "{shown}");
        });
        let shown: String = format!("{:?}", Uri::unix("/run/\u{e4} \"").unwrap().address());
        assert_eq!(shown, "Unix { socket: \"/run/\u{e4} \\\"\" }");
    }
}
