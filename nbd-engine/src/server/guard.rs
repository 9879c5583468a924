//! Panics of exports: one fails its request, neither the connection nor the server.

use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::panic::AssertUnwindSafe;
use core::pin::pin;
use core::task::Poll;
use std::panic::catch_unwind;

use crate::export::{ExportError, Result};

thread_local! {
    /// Whether this thread is in code of an export.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread carries out a request of an export, so that a panic fails that request and nothing else. For panic
/// hooks, of programs that end when any other part of a server panics.
#[must_use]
pub fn is_request_guarded() -> bool {
    GUARDED.get()
}

/// Sets the mark, until it is dropped.
struct Mark {
    before: bool,
}

impl Mark {
    fn set() -> Self {
        Self { before: GUARDED.replace(true) }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        GUARDED.set(self.before);
    }
}

/// Runs an export's code.
pub(super) fn guarded<R>(run: impl FnOnce() -> R) -> Result<R> {
    let _mark = Mark::set();
    // What it leaves behind is as after any other failure: bytes in some state of a request.
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| panicked())
}

/// The same for a future of an export. After a panic it is not polled again.
pub(super) async fn guarded_async<R>(run: impl Future<Output = Result<R>>) -> Result<R> {
    let mut run = pin!(run);
    poll_fn(|cx| match guarded(|| run.as_mut().poll(cx)) {
        Ok(poll) => poll,
        Err(error) => Poll::Ready(Err(error)),
    })
    .await
}

fn panicked() -> ExportError {
    ExportError::io("the export panicked")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn code_of_an_export_is_marked_even_when_it_panics() {
        assert!(!is_request_guarded());
        assert!(guarded(is_request_guarded).unwrap());
        assert!(guarded(|| guarded(is_request_guarded).unwrap() && is_request_guarded()).unwrap());
        guarded(|| panic!("a bad export")).unwrap_err();
        assert!(!is_request_guarded());
        let marked = guarded_async(async { Ok(is_request_guarded()) }).now_or_never();
        assert!(marked.unwrap().unwrap());
        let bad = guarded_async::<()>(async { panic!("a bad export") }).now_or_never();
        bad.unwrap().unwrap_err();
        assert!(!is_request_guarded());
    }
}
