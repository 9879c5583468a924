//! The client on async-std, against our own server.

#[path = "../../nbd-engine/tests/client_support/mod.rs"]
mod support;
#[path = "../../nbd-engine/tests/client_support/tasks.rs"]
mod tasks;

mod runtime {
    use std::future::Future;

    use ::async_std::os::unix::net::UnixStream;
    use ::async_std::task::{JoinHandle, block_on};

    pub(crate) use ::async_std::task::spawn;
    pub(crate) use nbd_async_std::{Server, client};

    pub(crate) mod traits {
        pub(crate) use ::async_std::io::prelude::SeekExt;
        pub(crate) use ::async_std::io::{ReadExt, WriteExt, copy};
    }

    pub(crate) fn run<F: Future<Output = ()>>(test: impl Fn() -> F + Send + 'static) {
        crate::support::bounded(move || block_on(test()));
    }

    pub(crate) fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    pub(crate) fn detach<T>(task: JoinHandle<T>) {
        drop(task);
    }

    pub(crate) async fn join<T>(task: JoinHandle<T>) -> T {
        task.await
    }

    pub(crate) async fn cancel<T>(task: JoinHandle<T>) {
        assert!(task.cancel().await.is_none());
    }
}
