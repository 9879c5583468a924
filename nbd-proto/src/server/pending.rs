//! What the server's core keeps of a request in flight.

use alloc::vec::Vec;

use super::reply::Content;
use crate::Command;
use crate::coverage::Coverage;
use crate::wire::ErrorCode;

/// A request in flight. Slots of the table are reused with their vectors.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) cookie: u64,
    /// The offset field of the request, which extended replies repeat.
    pub(super) offset: u64,
    pub(super) command: Command,
    /// Bytes counted against [`Limits::max_in_flight_bytes`](crate::Limits::max_in_flight_bytes).
    pub(super) bytes: u64,
    pub(super) progress: Progress,
    /// What a read's reply accounts for so far.
    pub(super) coverage: Coverage,
    /// Content that must be sent in one piece at the end, in simple replies and with DF.
    pub(super) deferred: Vec<Content>,
    /// Errors that were reported with an offset.
    pub(super) failures: Vec<(u64, ErrorCode)>,
    /// Metadata contexts whose extents are still to be given.
    pub(super) awaited: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Progress {
    /// The embedder does not know of the request: the core answers it.
    #[default]
    Hidden,
    /// The payload is still to come.
    Receiving,
    /// The embedder is to reply.
    Open,
    /// The reply is queued.
    Answered,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            cookie: 0,
            offset: 0,
            command: Command::Flush,
            bytes: 0,
            progress: Progress::Hidden,
            coverage: Coverage::default(),
            deferred: Vec::new(),
            failures: Vec::new(),
            awaited: Vec::new(),
        }
    }
}

impl Pending {
    #[inline]
    pub(super) fn begin(&mut self, cookie: u64, offset: u64, command: Command) {
        self.cookie = cookie;
        self.offset = offset;
        self.command = command;
        self.bytes = 0;
        self.progress = Progress::Hidden;
        self.coverage.clear();
        self.deferred.clear();
        self.failures.clear();
        self.awaited.clear();
    }
}
