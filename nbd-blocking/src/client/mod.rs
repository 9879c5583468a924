//! Clients on threads: connecting, blocking methods, and the traits of `std::io`.

#[expect(clippy::module_inception, reason = "the file holds the type of this name")]
mod client;
mod connect;
mod cursor;
mod entered;
mod negotiation;
mod pending;
mod status_range;
mod submit;

use std::future::Future;
use std::sync::Arc;

pub use client::Client;
pub use cursor::Cursor;
pub use entered::Entered;
pub use nbd_engine::client::{
    Address, AllocationFlags, BlockSize, BlockSizeInfo, BufResult, Bytes, Chunk, ClientConfig,
    ClientStatistics, Command, CommandError, CommandType, ConnectionEvent, ContextExtents,
    ContextRefusal, Error, ErrorCode, ExportDetails, Extent, Flags, GaveUp, Handshake, InfoType,
    InvalidRequest, Limits, Listing, LostReason, NoSession, OptionCode, OptionError,
    OptionReplyType, Reconnect, RequestStatistics, StatusRun, SubmitError, TransmissionFlags, Uri,
    UriError,
};
pub use negotiation::Negotiation;
pub use pending::{Outcome, Pending};
pub use status_range::BlockStatusRange;

use crate::reactor::block_on;

/// Waits for what the engine does.
fn wait<R>(future: impl Future<Output = Result<R, Error>>) -> Result<R, Error> {
    block_on(future).unwrap_or_else(|error| Err(Error::Local(Arc::new(error))))
}
