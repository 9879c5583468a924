//! The client's and the server's machine of nbd-proto, driven by one loop over pipes in memory.
//!
//! [`end`] has the loop: bytes in, events and payloads to the role, bytes out, cut into pieces by a [`split`]. [`client`]
//! and [`server`] are what the roles add to it, [`disk`] is a server's embedder over an array of bytes, and [`pair`]
//! connects both ends. [`machine`] names the verbs that both connections share.
//!
//! The tests of this crate are the core's: `pair` runs both machines against each other, `served` and `hostile` one of
//! them against bytes made by hand. They stand here so that nbd-proto needs no dependency on a crate that depends on it.
#![forbid(unsafe_code)]

pub mod client;
pub mod disk;
pub mod end;
pub mod machine;
pub mod pair;
pub mod server;
pub mod split;
