//! What the engine asks of a runtime.

use core::future::Future;
use core::pin::Pin;
use core::time::Duration;

/// A future in a box.
pub type BoxFuture<T = ()> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Time and tasks, as an adapter provides them. Cheap to clone.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// Is ready once `duration` has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture;

    /// Runs `task` beside the caller, to its end.
    fn spawn(&self, task: BoxFuture);

    /// Whether a task may share its thread with others, as on most runtimes. Then it lets the others run after a little
    /// work, and does not poll for what may come in a moment.
    fn shares_threads(&self) -> bool {
        true
    }
}
