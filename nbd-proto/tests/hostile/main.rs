//! The client's machine against servers that are odd, wrong or malicious, made by hand, byte by byte.
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

mod any_bytes;
mod lifecycle;
mod negotiation;
mod options;
mod peer;
mod replies;
mod requests;
mod status;
