//! Tasks and time, as the engine asks for them.

use std::pin::pin;
use std::task::Context;
use std::time::Duration;

use nbd_engine::{BoxFuture, Runtime};
use tokio::runtime::Handle;

/// A tokio runtime: the one that a server or a client was made on.
#[derive(Clone, Debug)]
pub struct Tokio(pub(crate) Handle);

impl Runtime for Tokio {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        Box::pin(tokio::time::sleep(duration))
    }

    fn yield_now(&self, cx: &mut Context<'_>) {
        // Unlike a wake, it has tokio look at its sockets before it polls the task again.
        let _pending = pin!(tokio::task::yield_now()).poll(cx);
    }

    fn spawn(&self, task: BoxFuture) {
        // Tasks run on their own; nobody waits for the handle.
        drop(self.0.spawn(task));
    }
}
