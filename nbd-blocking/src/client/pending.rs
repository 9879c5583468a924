//! Requests that were submitted, on threads.

use std::sync::Arc;

use nbd_engine::client as engine;

use super::{BufResult, Error};
use crate::reactor::block_on;

/// A request that was submitted. Dropping it gives up the outcome: if it was not sent by then it will not be, otherwise it
/// may be carried out.
#[derive(Debug)]
#[must_use = "the outcome is lost when this is dropped"]
pub struct Pending<R>(pub(super) engine::Pending<R>);

impl<R: Outcome> Pending<R> {
    /// Blocks until the outcome is there. Costs no system call when it is already.
    #[must_use = "it says how the request went"]
    pub fn wait(self) -> R {
        self.0.try_take().unwrap_or_else(|pending| {
            block_on(pending).unwrap_or_else(|error| R::failed(Error::Local(Arc::new(error))))
        })
    }

    /// Blocks until some of these is done, and gives its index: waiting for that one costs nothing then. Servers may
    /// answer in any order, so that this keeps more requests in flight than to wait for the oldest. `None` when there
    /// are none.
    ///
    /// ```
    /// # use nbd_blocking::export::{ExportMap, Memory};
    /// # use nbd_blocking::{Client, Server};
    /// # let server = Server::new(ExportMap::new().with("", Memory::new(1 << 20)?)?);
    /// # let listening = server.listen_tcp("127.0.0.1:0")?;
    /// # let client = Client::connect(&listening.local_addr().uri("")?.to_string())?;
    /// use nbd_blocking::client::{Flags, Pending};
    /// let mut reads: Vec<_> =
    ///     (0..32).map(|index| client.submit_read_into(index * 4096, vec![0; 4096], Flags::empty())).collect();
    /// while let Some(index) = Pending::wait_any(&reads) {
    ///     let (buffer, result) = reads.swap_remove(index).wait();
    ///     result?;
    ///     assert_eq!(buffer, [0; 4096]);
    /// }
    /// # server.shut_down();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn wait_any(pending: &[Self]) -> Option<usize> {
        if pending.is_empty() {
            return None;
        }
        let inner = || pending.iter().map(|pending| &pending.0);
        match inner().position(engine::Pending::is_done) {
            // Without an event descriptor nothing can be waited for: the first one, which there is, says so.
            None => block_on(engine::Pending::any(inner())).unwrap_or(Some(0)),
            done => done,
        }
    }

    /// Whether the answer is there. It can only come while some thread waits for something.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_done()
    }
}

/// What a request can come to.
pub trait Outcome: sealed::Sealed {
    /// A failure on this side.
    #[doc(hidden)]
    fn failed(error: Error) -> Self;
}

impl Outcome for BufResult {
    fn failed(error: Error) -> Self {
        (Vec::new(), Err(error))
    }
}

impl<T> Outcome for Result<T, Error> {
    fn failed(error: Error) -> Self {
        Err(error)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::BufResult {}
    impl<T> Sealed for Result<T, super::Error> {}
}
