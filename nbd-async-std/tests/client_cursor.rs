//! A cursor of a client, by the traits of `futures-io`.
#![cfg(feature = "smol")]

use std::io::SeekFrom;

use nbd_async_std::export::{ExportMap, Memory};
use nbd_async_std::smol::client::ClientConfig;
use nbd_async_std::smol::{Client, Cursor, Server};
use nbd_testkit::Pattern;
use smol::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, copy};
use smol::net::unix::UnixStream;

#[test]
fn a_cursor_reads_writes_and_seeks() {
    smol::block_on(async {
        let server = Server::new(ExportMap::new().with("", Memory::new(1 << 20).unwrap()).unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        smol::spawn(async move { server.serve_stream(ours).await.is_ok() }).detach();
        let client = Client::over(theirs, "", &ClientConfig::default()).await.unwrap();
        let data = Pattern(7).bytes(0, 300_000);
        let mut cursor = Cursor::new(client);
        cursor.seek(SeekFrom::Start(1000)).await.unwrap();
        copy(&mut &data[..], &mut cursor).await.unwrap();
        cursor.flush().await.unwrap();
        assert_eq!(cursor.seek(SeekFrom::Current(-300_000)).await.unwrap(), 1000);
        let mut found = Vec::new();
        copy(&mut (&mut cursor).take(300_000), &mut found).await.unwrap();
        assert!(found == data);
        assert_eq!(cursor.seek(SeekFrom::End(-4)).await.unwrap(), (1 << 20) - 4);
        assert_eq!(cursor.position(), (1 << 20) - 4);
        let error = cursor.write_all(b"hello").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        cursor.seek(SeekFrom::End(-4)).await.unwrap();
        let mut last = Vec::new();
        cursor.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"hell");
    });
}
