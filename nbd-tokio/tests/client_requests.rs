//! The client on tokio: what is tokio's own.

use std::io::SeekFrom;

use nbd_support::bounded;
use nbd_testkit::Pattern;
use nbd_tokio::client::{ClientConfig, Error, LostReason};
use nbd_tokio::export::{ExportMap, Memory};
use nbd_tokio::{Client, Cursor, Server};

#[test]
fn a_runtime_that_ends_fails_what_its_clients_wait_for() {
    bounded(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (_server, client) = runtime.block_on(async {
            let server =
                Server::new(ExportMap::new().with("", Memory::new(4096).unwrap()).unwrap());
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            let serving = server.clone();
            tokio::spawn(async move { serving.serve_stream(ours).await.is_ok() });
            (server, Client::over(theirs, "", &ClientConfig::default()).await.unwrap())
        });
        drop(runtime);
        let other = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = other.block_on(client.flush()).unwrap_err();
        assert!(
            matches!(error, Error::Lost { sent: false, reason: LostReason::Abandoned, .. }),
            "{error}"
        );
    });
}

#[test]
fn a_cursor_reads_writes_and_seeks_by_tokios_traits() {
    use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, copy};
    bounded(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server =
                Server::new(ExportMap::new().with("", Memory::new(1 << 20).unwrap()).unwrap());
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            tokio::spawn(async move { server.serve_stream(ours).await.is_ok() });
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
    });
}
