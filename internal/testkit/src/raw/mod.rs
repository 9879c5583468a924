//! A scripted NBD client, deliberately low-level.
//!
//! It sends whatever the test wants, however wrong, and parses what comes back without mercy: a broken MUST of
//! the protocol panics with the requirement's id, a broken SHOULD is noted as a remark, and
//! [`RawClient::finish`] turns remarks into failures. One script, one connection:
//!
//! ```no_run
//! use nbd_testkit::{Endpoint, raw::{RawClient, Request}};
//!
//! let mut client = RawClient::negotiate(&Endpoint::parse("nbd://127.0.0.1:10809/").unwrap());
//! client.structured_reply().unwrap();
//! client.go("", &[]).unwrap();
//! let reply = client.call(&Request::read(0, 512));
//! assert_eq!(reply.data().len(), 512);
//! client.finish();
//! ```

mod assembly;
mod chunk;
mod client;
mod codes;
mod coverage;
mod export;
mod late;
mod meta;
mod options;
mod request;
mod status;
mod transmit;
mod wire;

pub use assembly::{Content, ErrorChunk, Reply};
pub use client::{Greeting, Mode, RawClient};
pub use codes::*;
pub use coverage::Coverage;
pub use export::{BlockSize, ExportInfo, info_data};
pub use late::{in_time, some_attempt, unless_late};
pub use meta::{Context, meta_data};
pub use options::{OptionError, OptionReply, option_bytes};
pub use request::Request;
pub use status::{Extent, Status};
pub use wire::{TIMEOUT, Wire, trusting};
