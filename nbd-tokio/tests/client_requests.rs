//! The client on tokio: what is tokio's own.

use nbd_support::bounded;
use nbd_tokio::client::{ClientConfig, Error, LostReason};
use nbd_tokio::export::{ExportMap, Memory};
use nbd_tokio::{Client, Server};

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
