//! What the metadata contexts say of a range, by a single request.

use std::sync::Arc;

use nbd_proto::{Command, Extent};

use super::client::{Client, Data, Shared};
use super::completion::{Findings, Outcome};
use super::pending::Pending;
use super::{Error, Flags, split};

/// What a block status reports in one metadata context.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextExtents {
    /// The metadata context.
    pub context: Arc<str>,
    /// Runs of bytes, from the request's offset on, each following the one before. The last one may reach past the
    /// range that was asked about; they may also fall short of it.
    pub extents: Vec<Extent>,
}

impl ContextExtents {
    pub(super) const fn new(context: Arc<str>, extents: Vec<Extent>) -> Self {
        Self { context, extents }
    }
}

/// # Block status
impl<C> Client<C> {
    /// What the selected metadata contexts say of a range, in the order of
    /// [`contexts`](super::ExportDetails::contexts). The extents may fall short of the range, or reach past it;
    /// [`block_status_range`](Self::block_status_range) asks again from where they end. [`Flags::REQ_ONE`] asks for a
    /// single extent of each context, which does not reach past.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.submit_block_status(offset, length, flags).await
    }

    /// Submits what [`block_status`](Self::block_status) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<Vec<ContextExtents>, Error>> {
        let command = split::with_flags(Command::block_status(offset, length), flags);
        self.submit(command, Data::None, Findings::Extents(Vec::new()), into_extents)
    }
}

fn into_extents(shared: &Shared, _: usize, outcome: Outcome) -> Result<Vec<ContextExtents>, Error> {
    outcome.result.map_err(|error| *error)?;
    let Findings::Extents(mut found) = outcome.findings else { return Ok(Vec::new()) };
    let contexts = shared.details.contexts();
    found.sort_by_key(|found| contexts.iter().position(|known| *known == found.context));
    Ok(found)
}
