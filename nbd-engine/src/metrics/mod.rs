//! What servers and clients count, in common.

mod cell;
mod histogram;
mod kind;

pub(crate) use cell::Cell;
pub(crate) use histogram::Latencies;
pub use histogram::LatencyHistogram;
pub(crate) use kind::kinds;
pub use kind::{ErrorKind, RequestKind};
