//! Why a copy failed, and where.

use core::fmt;

use crate::exit::Failure;

/// A failure at an offset.
#[derive(Debug)]
pub(super) struct CopyError {
    pub(super) offset: u64,
    text: String,
}

impl CopyError {
    pub(super) fn new(offset: u64, text: impl fmt::Display) -> Self {
        Self { offset, text: format!("the copy failed at offset {offset}: {text}") }
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
        Self { offset, text }
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
        Self::failed(error.text)
    }
}
