//! Which signals are a second one, by which a command ends at once.

use core::time::Duration;
use std::thread;
use std::time::Instant;

/// When the first signal came that asks for the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FirstSignal(Instant);

impl FirstSignal {
    /// What comes within this time is still the first one: `timeout` sends its signal to the command, and then to the
    /// command's process group.
    const ECHO: Duration = Duration::from_millis(200);

    /// It has come.
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    /// It came a while ago.
    #[cfg(test)]
    pub(crate) fn long_ago() -> Self {
        Self(Instant::now() - 10 * Self::ECHO)
    }

    /// Waits until all that is still the first one has come.
    pub(crate) fn wait_for_echo() {
        thread::sleep(Self::ECHO);
    }

    /// Whether one that comes now is a second one.
    pub(crate) fn is_over(self) -> bool {
        self.0.elapsed() >= Self::ECHO
    }
}
