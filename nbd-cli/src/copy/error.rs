//! Why a copy or a comparison failed, and where.

use core::fmt;

use crate::exit::Failure;

/// A failure at an offset.
#[derive(Debug)]
pub(super) struct CopyError {
    pub(super) offset: u64,
    text: String,
    /// Nothing failed, but the two sides differ there.
    differs: bool,
}

impl CopyError {
    pub(super) fn new(offset: u64, text: impl fmt::Display) -> Self {
        Self { offset, text: text.to_string(), differs: false }
    }

    /// Something that could not be done, and what was said of it.
    pub(super) fn at(offset: u64, what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::new(offset, format_args!("{what}: {error}"))
    }

    /// The bytes differ.
    pub(super) fn differs(offset: u64, source: &str, destination: &str) -> Self {
        let text = format!(
            "{destination} differs from {source}: the first difference is at offset {offset}"
        );
        Self { offset, text, differs: true }
    }

    /// Where the two sides differ, if that is what was found.
    pub(super) fn difference(&self) -> Option<u64> {
        self.differs.then_some(self.offset)
    }

    /// The failure of a task by its name, such as `copy`.
    pub(super) fn of(self, task: &str) -> Failure {
        let Self { offset, text, differs } = self;
        match differs {
            true => Failure::failed(text),
            false => Failure::failed(format!("the {task} failed at offset {offset}: {text}")),
        }
    }

    /// The one that is nearer to the beginning.
    pub(super) fn first(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if other.offset < self.offset => other,
            _ => self,
        }
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        error.of("copy")
    }
}
