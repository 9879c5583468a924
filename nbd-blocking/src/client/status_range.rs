//! What a metadata context says of a range of any length.

use std::sync::Arc;

use nbd_engine::client as engine;

use super::{Error, StatusRun};
use crate::reactor::{Threads, block_on};

/// The status of a range in one metadata context, run by run: see
/// [`Client::block_status_range`](super::Client::block_status_range).
///
/// It holds one answer, and asks for the next while that is in use. After an error there is nothing more.
#[derive(Debug)]
#[must_use = "it asks for nothing before the first run is wanted"]
pub struct BlockStatusRange {
    inner: engine::BlockStatusRange<Threads>,
    over: bool,
}

impl BlockStatusRange {
    pub(super) const fn new(inner: engine::BlockStatusRange<Threads>) -> Self {
        Self { inner, over: false }
    }

    /// Asks about `bytes` at a time, at most, rounded up to whole blocks of the minimum size; 0 means one block.
    /// Answers stay small then, and the first one comes soon. By default a request is as long as the headers allow.
    pub fn with_window(mut self, bytes: u64) -> Self {
        self.inner = self.inner.with_window(bytes);
        self
    }

    /// Makes one run of neighbours of the same status, also where they come from several answers. A run is reported when
    /// its end is known.
    pub fn joined(mut self) -> Self {
        self.inner = self.inner.joined();
        self
    }

    /// Where the next run begins in the export, in bytes.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.inner.position()
    }
}

impl Iterator for BlockStatusRange {
    type Item = Result<StatusRun, Error>;

    fn next(&mut self) -> Option<Result<StatusRun, Error>> {
        if self.over {
            return None;
        }
        block_on(self.inner.next()).unwrap_or_else(|error| {
            self.over = true;
            Some(Err(Error::Local(Arc::new(error))))
        })
    }
}
