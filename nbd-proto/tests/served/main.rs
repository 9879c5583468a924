//! The server's machine against clients that are odd, clumsy or malicious, made by hand, byte by byte.
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

mod any_session;
mod contexts;
mod negotiation;
mod peer;
mod replies;
mod requests;
mod resized;
