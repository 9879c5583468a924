//! Without the feature `tls`, the commands that connect have no options for it.

use clap::Args;
use nbd_blocking::client::Uri;

use crate::exit::Failure;

/// None.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub(crate) struct TlsArguments {}

#[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "the same as with TLS")]
impl TlsArguments {
    /// The URI as it is.
    pub(crate) fn apply(&self, uri: Uri) -> Result<Uri, Failure> {
        Ok(uri)
    }

    /// Nothing is there to be unused.
    pub(crate) fn check_used(&self, _: &[&Uri]) -> Result<(), Failure> {
        Ok(())
    }
}
