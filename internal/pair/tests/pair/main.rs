//! The client's machine against the server's, over pipes in memory.
//!
//! Each scenario is a function of a [`Pair`](nbd_pair::pair::Pair). It runs once for each way to cut the streams into
//! pieces, and must log the same events, in the same order, for all of them.

mod commands;
mod errors;
mod limits;
mod misuse;
mod model;
mod negotiation;
mod scenario;
