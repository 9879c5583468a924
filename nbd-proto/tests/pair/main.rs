//! The client's machine against the server's, over pipes in memory.
//!
//! Each scenario is a function of a [`Pair`](pair::Pair). It runs once for each way to cut the streams into pieces, and
//! must log the same events, in the same order, for all of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc
)]

mod commands;
mod errors;
mod limits;
mod misuse;
mod model;
mod negotiation;
mod pair;
mod server_end;
mod split;
