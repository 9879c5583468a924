//! Streams that the caller brings.
#![cfg(feature = "smol")]

use nbd_async_std::export::{ExportEntry, ExportMap, Memory, Peer, TlsIdentity};
use nbd_async_std::smol::client::ClientConfig;
use nbd_async_std::smol::{Client, Server};
use smol::net::unix::UnixStream;

/// The server takes the embedder's word for it that a stream runs inside of TLS (S-TLS-07).
#[test]
fn a_stream_inside_of_tls_reaches_exports_that_require_it() {
    smol::block_on(async {
        let disk = Memory::new(1 << 20).unwrap();
        let entry = ExportEntry::new("", disk).unwrap().with_tls_required();
        let server = Server::new(ExportMap::new().with_entry(entry));
        let in_tls = Peer::new("a tunnel").with_tls(TlsIdentity::default());
        for (peer, is_open) in [(in_tls, true), (Peer::new("a wire"), false)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let server = server.clone();
            let served = smol::spawn(async move { server.serve_stream_of(ours, peer).await });
            let client = Client::over(theirs, "", &ClientConfig::default()).await;
            assert_eq!(client.is_ok(), is_open, "{:?}", client.err());
            if let Ok(client) = client {
                client.disconnect().await;
                served.await.unwrap();
            }
        }
    });
}
