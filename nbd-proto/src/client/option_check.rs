//! The checks that an option must pass before it is sent.

use alloc::string::String;

use crate::wire::{InfoType, is_valid_string};

/// Why an option was not sent. The connection is unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// It is not your turn: the greeting has not arrived, an option awaits its reply, or the negotiation is over.
    #[error("no option can be sent now: one awaits its reply, or this is not the negotiation")]
    NotYourTurn,
    /// One side does not use fixed newstyle, so that only `NBD_OPT_EXPORT_NAME` can be sent.
    #[error("the option needs fixed newstyle negotiation")]
    NeedsFixedNewstyle,
    /// TLS is required and has not been started.
    #[error("the option must not be sent before TLS")]
    NeedsTls,
    /// TLS is running already.
    #[error("TLS is running already")]
    TlsRunning,
    /// The option was agreed to before.
    #[error("this was agreed to already")]
    AlreadyAgreed,
    /// `NBD_OPT_EXPORT_NAME` must not be used once extended headers were agreed.
    #[error("an export can't be entered by NBD_OPT_EXPORT_NAME with extended headers")]
    ExtendedHeaders,
    /// Metadata contexts need structured replies or extended headers.
    #[error("metadata contexts need structured replies or extended headers")]
    NeedsStructuredReplies,
    /// A name or query of more than 4096 bytes, or with a NUL.
    #[error("a string contains NUL or is longer than 4096 bytes")]
    BadString,
    /// A query without a namespace and a colon.
    #[error("a metadata query must begin with a namespace and a colon")]
    BadQuery,
    /// An information item that occurs twice.
    #[error("{0} is asked for twice")]
    RepeatedItem(InfoType),
    /// More data than an option can have, which is 2^32 - 1 bytes.
    #[error("the option has more than 2^32 - 1 bytes of data")]
    TooLong,
    /// The option has a method of its own, which keeps account of what it changes.
    #[error("the option has a method of its own")]
    HasMethod,
}

/// An export's name (B-CONV-02, B-CONV-03).
pub(super) fn name(name: &str) -> Result<(), OptionError> {
    if is_valid_string(name.as_bytes()) { Ok(()) } else { Err(OptionError::BadString) }
}

/// A metadata query.
// (C-OPT-SM-13)
pub(super) fn query(query: &str) -> Result<(), OptionError> {
    name(query)?;
    match query.split_once(':') {
        Some((namespace, _)) if !namespace.is_empty() => Ok(()),
        _ => Err(OptionError::BadQuery),
    }
}

/// Information items, each of which may be asked for once.
// (C-OPT-GO-19)
pub(super) fn items(items: &[InfoType]) -> Result<(), OptionError> {
    let mut rest = items;
    while let Some((item, later)) = rest.split_first() {
        if later.contains(item) {
            return Err(OptionError::RepeatedItem(*item));
        }
        rest = later;
    }
    Ok(())
}

/// Whether the options that the machine sends by itself fit into their lengths; in one sum, which is generous.
pub(super) fn length(export: &str, queries: &[String]) -> Result<(), OptionError> {
    let mut total = export.len().checked_add(1 << 20);
    for query in queries {
        total = total.and_then(|sum| sum.checked_add(query.len())?.checked_add(4));
    }
    let fits = total.is_some_and(|total| u32::try_from(total).is_ok());
    if fits { Ok(()) } else { Err(OptionError::TooLong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_items_are_checked() {
        assert_eq!(query("base:allocation"), Ok(()));
        assert_eq!(query("base:"), Ok(()));
        assert_eq!(query("base"), Err(OptionError::BadQuery));
        assert_eq!(query(":leaf"), Err(OptionError::BadQuery));
        assert_eq!(query("a:\0"), Err(OptionError::BadString));
        assert_eq!(items(&[InfoType::NAME, InfoType::BLOCK_SIZE]), Ok(()));
        let twice = [InfoType::NAME, InfoType::BLOCK_SIZE, InfoType::NAME];
        assert_eq!(items(&twice), Err(OptionError::RepeatedItem(InfoType::NAME)));
    }
}
