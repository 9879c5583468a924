//! The client on tokio, against our own server.

#[path = "../../nbd-engine/tests/client_support/mod.rs"]
mod support;
#[path = "../../nbd-engine/tests/client_support/tasks.rs"]
mod tasks;

use nbd_tokio::client::{Error, LostReason, Options};
use nbd_tokio::export::{ExportMap, Memory};
use nbd_tokio::{Client, Server};
use support::bounded;

mod runtime {
    use std::future::Future;

    use tokio::net::UnixStream;
    use tokio::runtime::Builder;
    use tokio::task::JoinHandle;

    pub(crate) use nbd_tokio::{Server, client};
    pub(crate) use tokio::spawn;

    pub(crate) mod traits {
        pub(crate) use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, copy};
    }

    /// Runs a test on a runtime of each flavour.
    pub(crate) fn run<F: Future<Output = ()>>(test: impl Fn() -> F + Send + Sync + Copy + 'static) {
        crate::support::bounded(move || {
            let mut several = Builder::new_multi_thread();
            several.worker_threads(2);
            for mut flavour in [Builder::new_current_thread(), several] {
                flavour.enable_all().build().unwrap().block_on(test());
            }
        });
    }

    pub(crate) fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    pub(crate) fn detach<T>(task: JoinHandle<T>) {
        drop(task);
    }

    pub(crate) async fn join<T>(task: JoinHandle<T>) -> T {
        task.await.unwrap()
    }

    pub(crate) async fn cancel<T>(task: JoinHandle<T>) {
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
    }
}

#[test]
fn a_runtime_that_ends_takes_nobody_with_it() {
    bounded(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (_server, client) = runtime.block_on(async {
            let server =
                Server::new(ExportMap::new().with("", Memory::new(4096).unwrap()).unwrap());
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            let serving = server.clone();
            tokio::spawn(async move { serving.serve_stream(ours).await.is_ok() });
            (server, Client::over(theirs, &Options::default()).await.unwrap())
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
