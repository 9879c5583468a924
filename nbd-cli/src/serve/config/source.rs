//! Where a configuration comes from, so that messages use the words that were written and say where they stand.

use std::sync::Arc;

use super::document::Document;
use crate::exit::{Failure, Fault};

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub(crate) enum Source {
    /// The command line.
    #[default]
    CommandLine,
    /// A file, whose text is kept for messages.
    File(Arc<Document>),
}

/// It is no part of what a configuration means.
impl PartialEq for Source {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Source {
    /// What something is called there: an option, or a key.
    pub(crate) const fn word<'a>(&self, option: &'a str, key: &'a str) -> &'a str {
        match self {
            Self::CommandLine => option,
            Self::File(_) => key,
        }
    }

    /// What is wrong with the value of a key, such as `export.2.name`.
    pub(super) fn fault(&self, key: &str, text: &str) -> Fault {
        match self {
            Self::CommandLine => Fault::of_text(text),
            Self::File(document) => document.fault(document.span(key), text),
        }
    }

    /// A failure for which the value of a key is to blame: what is at fault is the file rather than the command line,
    /// and where.
    pub(crate) fn blame(&self, key: &str, failure: Failure) -> Failure {
        match (self, failure) {
            (Self::File(_), Failure::Usage(text)) => Failure::Config(vec![self.fault(key, &text)]),
            (Self::File(_), Failure::Failed(text)) => {
                Failure::Failed(self.fault(key, &text).heading)
            }
            (_, failure) => failure,
        }
    }
}
