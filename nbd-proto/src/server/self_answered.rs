//! What the core answered without its embedder, for statistics.

use alloc::vec::Vec;

use crate::wire::{CommandType, ErrorCode};

/// Requests that the core answered by itself: invalid ones, those that came during a shutdown, and those about no
/// bytes. None of them was raised by [`Event::Request`](super::Event::Request).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelfAnswered {
    /// What was asked for; `None` for commands that the specification does not have, all together.
    pub command: Option<CommandType>,
    /// The error that was answered; [`ErrorCode::OK`] for success.
    pub error: ErrorCode,
    /// How many such requests there were so far.
    pub count: u64,
}

/// Counts them. What is kept has an entry for each command and error at most, whatever a client sends.
#[derive(Debug, Default)]
pub(super) struct SelfAnswers {
    entries: Vec<SelfAnswered>,
}

impl SelfAnswers {
    pub(super) fn count(&mut self, command: CommandType, error: ErrorCode) {
        let command = command.name().map(|_| command);
        let known =
            self.entries.iter_mut().find(|entry| (entry.command, entry.error) == (command, error));
        match known {
            Some(entry) => entry.count = entry.count.saturating_add(1),
            None => self.entries.push(SelfAnswered { command, error, count: 1 }),
        }
    }

    pub(super) fn entries(&self) -> &[SelfAnswered] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effort::up_to;

    #[test]
    fn unknown_commands_have_one_entry_for_each_error_however_many_there_are() {
        let mut answers = SelfAnswers::default();
        let last = (up_to(1 << 16) - 1) as u16;
        for number in 0..=last {
            answers.count(CommandType(number), ErrorCode::EINVAL);
        }
        answers.count(CommandType::READ, ErrorCode::OK);
        let known = CommandType::RESIZE.0 + 1;
        assert_eq!(answers.entries().len(), usize::from(known) + 2);
        let of = |command| answers.entries().iter().filter(move |it| it.command == command);
        assert_eq!(of(None).map(|it| it.count).sum::<u64>(), u64::from(last - known + 1));
        assert_eq!(of(Some(CommandType::READ)).count(), 2);
    }
}
