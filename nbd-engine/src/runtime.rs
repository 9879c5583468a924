//! What the engine asks of a runtime.

use core::future::Future;
use core::pin::Pin;
use core::task::Context;
use core::time::Duration;
use std::time::Instant;

/// A future in a box.
pub type BoxFuture<T = ()> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Time and tasks, as an adapter provides them. Cheap to clone.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// Is ready once `duration` has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture;

    /// The current time, by the clock that [`sleep`](Self::sleep) follows. All deadlines of the engine are measured by it.
    /// The default is the system's monotonic clock; a runtime whose time can be stopped or simulated gives its own.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Runs `task` beside the caller, to its end.
    fn spawn(&self, task: BoxFuture);

    /// Has the task of `cx` polled again once others had their turn. By default it is woken at once, which puts it at the
    /// end of most runtimes' queues; a runtime that looks at its sockets only when its queue is empty has a better way.
    fn yield_now(&self, cx: &mut Context<'_>) {
        cx.waker().wake_by_ref();
    }

    /// Whether a task may share its thread with others, as on most runtimes. Then it lets the others run after a little
    /// work, and does not poll for what may come in a moment.
    fn shares_threads(&self) -> bool {
        true
    }
}
