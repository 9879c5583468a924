//! URIs.

use nbd_proto::wire::MAX_STRING;
use nbd_proto::{Address, Uri};

/// Parsing does not panic. What is parsed is within bounds, and is printed as something that parses to the same.
pub fn uri(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let uri: Uri = match text.parse() {
        Ok(uri) => uri,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(uri.export().len() <= MAX_STRING && !uri.export().contains('\0'));
    match uri.address() {
        Address::Tcp { host, port } => assert!(!host.is_empty() && *port > 0),
        Address::Unix { socket } => assert!(!socket.is_empty()),
        _ => {}
    }
    let printed = uri.to_string();
    let again: Uri = printed.parse().unwrap_or_else(|error| panic!("{printed}: {error}"));
    assert_eq!(uri, again, "{printed}");
    assert_eq!(printed, again.to_string());
}
