//! What becomes of a request that has arrived.

use core::time::Duration;

use crate::export::{ExportError, Result};

/// Whether a request is carried out, and after which delay; what [`Layer::admit`](super::Layer::admit) returns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admit {
    /// How long the request is kept before it is carried out or refused; [`Duration::MAX`] keeps it until its
    /// connection ends.
    pub delay: Duration,
    /// The error that it is refused with after that.
    pub result: Result<()>,
}

impl Admit {
    /// The request is carried out at once.
    pub const NOW: Self = Self { delay: Duration::ZERO, result: Ok(()) };

    /// The request is carried out after a delay.
    #[must_use]
    pub const fn after(delay: Duration) -> Self {
        Self { delay, result: Ok(()) }
    }

    /// The request is not carried out and fails with this error.
    #[must_use]
    pub const fn refuse(error: ExportError) -> Self {
        Self { delay: Duration::ZERO, result: Err(error) }
    }

    /// The same after a further delay.
    #[must_use]
    pub fn delayed(mut self, delay: Duration) -> Self {
        self.delay = self.delay.saturating_add(delay);
        self
    }

    /// What becomes of a request that passes this and gets to `inner` then.
    pub(super) fn then(self, inner: impl FnOnce() -> Self) -> Self {
        if self.result.is_err() {
            return self;
        }
        inner().delayed(self.delay)
    }
}
