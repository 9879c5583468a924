//! Reconnection: what a client does when a connection is lost.
//!
//! Each connection's session keeps its requests, with their data, while its connection is replaced. [`Resend`] is the one
//! place that decides what becomes of a request; [`Doubts`] and [`Kept`] are the two ways to deal with changes that the
//! server acknowledged and may have lost.

mod attempt;
mod backoff;
mod config;
mod doubts;
mod event;
mod kept;
mod resend;
mod same;

pub use config::Reconnect;
pub use event::{ConnectionEvent, GaveUp};

pub(super) use attempt::{Outage, Reconnector, Target};
pub(super) use backoff::Backoff;
pub(super) use doubts::{Doubts, Seen, Tally};
pub(super) use kept::{Kept, Next, Reservation, Room};
pub(super) use resend::Resend;
pub(super) use same::difference;
