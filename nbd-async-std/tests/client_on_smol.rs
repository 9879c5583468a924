//! The client on smol, against our own server.

#[path = "../../nbd-engine/tests/client_support/mod.rs"]
mod support;
#[path = "../../nbd-engine/tests/client_support/tasks.rs"]
mod tasks;

mod runtime {
    use std::future::Future;

    use ::smol::net::unix::UnixStream;
    use ::smol::{Task, block_on};

    pub(crate) use ::smol::spawn;
    pub(crate) use nbd_async_std::smol::{Server, client};

    pub(crate) mod traits {
        pub(crate) use ::smol::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, copy};
    }

    pub(crate) fn run<F: Future<Output = ()>>(test: impl Fn() -> F + Send + 'static) {
        crate::support::bounded(move || block_on(test()));
    }

    pub(crate) fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    pub(crate) fn detach<T>(task: Task<T>) {
        task.detach();
    }

    pub(crate) async fn join<T>(task: Task<T>) -> T {
        task.await
    }

    pub(crate) async fn cancel<T>(task: Task<T>) {
        assert!(task.cancel().await.is_none());
    }
}
