//! A request in flight.

use alloc::vec::Vec;

use super::CommandError;
use crate::Command;
use crate::coverage::Coverage;

/// What is known of a request in flight. Slots of the table are reused with their vectors.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) command: Command,
    /// How many bytes were to be transmitted before its own first one, since the transmission phase began.
    begins: u64,
    /// The request has been transmitted, with its payload.
    pub(super) sent: bool,
    /// What the reply came to, once it is over.
    pub(super) answer: Option<Result<(), CommandError>>,
    /// The parts of a read, counted from its own offset, that its reply accounts for so far.
    pub(super) coverage: Coverage,
    /// Metadata contexts whose extents are still to come.
    pub(super) awaited: Vec<u32>,
    /// Offsets of errors, counted from the request's own, in order.
    pub(super) failures: Vec<u64>,
    /// How many error chunks arrived, of any kind.
    pub(super) errors: u32,
    /// The error to report in the end: the first, but one without an offset before all with one.
    pub(super) failure: Option<CommandError>,
    /// An error without an offset arrived: no content can be trusted.
    // (C-REP-STRUCT-06)
    pub(super) untrusted: bool,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            command: Command::Flush,
            begins: 0,
            sent: false,
            answer: None,
            coverage: Coverage::default(),
            awaited: Vec::new(),
            failures: Vec::new(),
            errors: 0,
            failure: None,
            untrusted: false,
        }
    }
}

impl Pending {
    /// Takes a slot for a new request, whose first byte has `begins` others before it.
    pub(super) fn begin(&mut self, command: Command, begins: u64) {
        self.command = command;
        self.begins = begins;
        self.sent = false;
        self.answer = None;
        self.coverage.clear();
        self.awaited.clear();
        self.failures.clear();
        self.errors = 0;
        self.failure = None;
        self.untrusted = false;
    }

    /// Whether any of its bytes is among the `transmitted` first ones.
    pub(super) const fn has_begun(&self, transmitted: u64) -> bool {
        self.begins < transmitted
    }

    /// An offset in the export, counted from the request's own, if `length` bytes there belong to the request.
    pub(super) fn range(&self, start: u64, length: u64) -> Option<(u64, u64)> {
        let from = start.checked_sub(self.command.offset())?;
        let end = from.checked_add(length)?;
        (end <= self.command.length()).then_some((from, end))
    }

    /// The result of a reply that is over. Without an error it must have been complete.
    // (C-REP-STRUCT-05, C-CMD-BS-14)
    pub(super) fn result(&mut self) -> Result<(), CommandError> {
        let complete = match self.command {
            Command::Read { length: 0, .. } => self.coverage.is_empty(),
            Command::Read { length, .. } => self.coverage.is_exactly(0, length),
            Command::BlockStatus { .. } => self.awaited.is_empty(),
            _ => true,
        };
        match self.failure.take() {
            Some(error) => Err(error),
            None if complete => Ok(()),
            None => Err(CommandError::incomplete()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_no_larger_than_the_limits_say() {
        assert!(size_of::<Pending>() + 16 <= 256, "{}", size_of::<Pending>());
    }

    #[test]
    fn ranges_count_from_the_requests_own_offset_and_end_with_it() {
        let mut pending = Pending::default();
        pending.begin(Command::read(u64::MAX - 9, 9), 0);
        assert_eq!(pending.range(u64::MAX - 9, 9), Some((0, 9)));
        assert_eq!(pending.range(u64::MAX - 1, 1), Some((8, 9)));
        for (start, length) in [(0, 1), (u64::MAX - 10, 1), (u64::MAX - 9, 10), (u64::MAX, 1)] {
            assert_eq!(pending.range(start, length), None, "{start}+{length}");
        }
        assert_eq!(pending.range(u64::MAX, u64::MAX), None);
    }
}
