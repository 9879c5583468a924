//! Time, whichever runtime it comes from.

use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use crate::runtime::{BoxFuture, Runtime};

/// A runtime's clock without the runtime's type.
#[derive(Clone)]
pub(crate) struct Timer(Arc<dyn Clock>);

/// The part of a [`Runtime`] that is about time, behind a pointer.
trait Clock: Send + Sync {
    fn sleep(&self, duration: Duration) -> BoxFuture;
    fn now(&self) -> Instant;
}

impl<R: Runtime> Clock for R {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        Runtime::sleep(self, duration)
    }

    fn now(&self) -> Instant {
        Runtime::now(self)
    }
}

impl Timer {
    pub(crate) fn new(runtime: impl Runtime) -> Self {
        Self(Arc::new(runtime))
    }

    pub(crate) fn sleep(&self, duration: Duration) -> BoxFuture {
        self.0.sleep(duration)
    }

    pub(crate) fn now(&self) -> Instant {
        self.0.now()
    }

    /// The future's output, unless `limit` passes first.
    pub(crate) async fn within<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut deadline = None;
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            let deadline = deadline.get_or_insert_with(|| self.sleep(limit));
            deadline.as_mut().poll(cx).map(|()| None)
        })
        .await
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timer")
    }
}
