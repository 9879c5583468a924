//! The server's side of a connection. See [`Connection`], and the [crate's front page](crate) for its loop.
//!
//! # What becomes of what a client may send
//!
//! Where the specification mandates a hard disconnect, or where the start of the next message can't be found, the
//! connection ends with an [`Error`](crate::Error). Everything else is answered, by the core wherever it can, and the
//! connection goes on. What is sent before the end is sent whatever the end is, and requests in flight are still
//! answered unless the end is an error other than [`UnexpectedEnd`].
//!
//! | message | case | what happens |
//! | --- | --- | --- |
//! | client flags | a bit that was not offered | [`PeerMisbehaved`] |
//! | any option | wrong magic | [`Malformed`] |
//! | | more of them than [`Limits`](crate::Limits) allow, or data that is longer than is skipped | [`LimitExceeded`] |
//! | | data that is longer than is looked at | skipped, then `ERR_TOO_BIG` |
//! | | unknown, or [switched off](Config) | `ERR_UNSUP` |
//! | | malformed data, or data where there must be none | `ERR_INVALID` |
//! | | a name that is no valid string | `ERR_UNKNOWN` |
//! | | before TLS where TLS is required, during a [shutdown](Connection::shut_down) | `ERR_TLS_REQD`, `ERR_SHUTDOWN` |
//! | `EXPORT_NAME` | the export is refused, for any reason | [`Refused`]: this option has no other answer |
//! | | after extended headers were agreed | [`PeerMisbehaved`] |
//! | `INFO`, `GO` | no size constraints asked for, though the export [requires](crate::ExportInfo::block_size_required) it | `ERR_BLOCK_SIZE_REQD` |
//! | `LIST_META_CONTEXT`, `SET_META_CONTEXT` | without structured replies or extended headers | `ERR_INVALID` |
//! | | selects more contexts than the limits allow | `ERR_TOO_BIG` |
//! | `STRUCTURED_REPLY` | after extended headers were agreed | `ERR_EXT_HEADER_REQD` |
//! | `STARTTLS` | any bytes behind it, before the answer | [`PeerMisbehaved`] |
//! | | over TLS | `ERR_INVALID` |
//! | `ABORT` | whatever its data | acknowledged, then [`Aborted`](crate::OrderlyEnd::Aborted) |
//! | any request | wrong magic, or a header of the other size | [`Malformed`] |
//! | | a cookie that another request in flight has | accepted |
//! | | unknown command, or one that was not advertised | `EINVAL` |
//! | | a flag that is unknown, was not advertised, or that the command does not have | `EINVAL` |
//! | | `FUA` on a command that writes nothing, where `FUA` is advertised | ignored |
//! | | past the end of the export | `ENOSPC` to `WRITE` and `WRITE_ZEROES`, `EINVAL` to others |
//! | | not aligned to the minimum block size | `EINVAL` |
//! | | no length | succeeds without your doing; `EINVAL` to `BLOCK_STATUS` |
//! | | changes a read-only export | `EPERM` |
//! | | during a [shutdown](Connection::shut_down) | `ESHUTDOWN` |
//! | | once the server is to [hang up](Connection::hang_up) | left alone; requests in flight are answered, then [`HungUp`](crate::OrderlyEnd::HungUp) |
//! | | more than the limits allow in flight | waits: [`Wants::Nothing`](crate::Wants::Nothing) until replies were sent |
//! | `READ` | longer than the maximum payload | `EOVERFLOW` |
//! | `WRITE` | longer than the maximum payload | `EINVAL`; [`LimitExceeded`] if it is longer than is [dropped](crate::Limits::max_discard) |
//! | | refused for any reason | its payload is dropped, then the error is sent |
//! | | without `PAYLOAD_LEN` under extended headers | accepted, [unless you insist](Config::require_payload_flag) |
//! | `BLOCK_STATUS` | no context was selected; a list of contexts with another one, the same one twice, or no length that fits | `EINVAL` |
//! | `RESIZE` | not aligned; to more than 2^63 - 1 bytes | `EINVAL`; `ENOSPC` |
//! | `DISC` | requests in flight | they are answered, then [`Disconnected`](crate::OrderlyEnd::Disconnected) |
//! | | bytes behind it | left alone |
//! | end of stream | between two messages | requests are answered, then [`EndOfStream`](crate::OrderlyEnd::EndOfStream) |
//! | | inside of a message | likewise, then [`UnexpectedEnd`]; what was cut off is dropped |
//!
//! [`Malformed`]: crate::Error::Malformed
//! [`PeerMisbehaved`]: crate::Error::PeerMisbehaved
//! [`LimitExceeded`]: crate::Error::LimitExceeded
//! [`Refused`]: crate::Error::Refused
//! [`UnexpectedEnd`]: crate::Error::UnexpectedEnd

// Requirements behind the table: S-HS-04, S-HS-05, S-OPT-05, S-OPT-13, S-CONV-07, S-OPT-EN-02, S-OPT-EH-06, S-OPT-LM-09,
// S-TLS-09, S-REQ-03 to S-REQ-06, S-REQ-08, S-REQ-09, S-REQ-11, S-REQ-13, S-SZ-09, S-EH-06, S-EH-10, S-EH-11.

mod config;
mod connection;
mod contexts;
mod event;
mod handshake;
mod header;
mod oldstyle;
mod option_reply;
mod options;
mod pending;
mod question;
mod reply;
mod self_answered;
mod status;
mod transmission;

pub use config::{Config, TlsMode};
pub use connection::Connection;
pub use contexts::AwaitedContexts;
pub use event::{Event, LookupQuestion, Purpose};
pub use oldstyle::OldstyleUnfit;
pub use options::{Listing, LookupOutcome, LookupRefusal};
pub use reply::Reply;
pub use self_answered::SelfAnswered;
pub use status::{StatusExtents, StatusIter, StatusQuery};
