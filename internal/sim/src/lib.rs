//! Clients and servers of `nbd-engine` in virtual time, on a seeded network, over a disk with a write cache, watched by an
//! oracle. One thread runs all of it, and a seed decides everything, so that each run can be repeated.
//!
//! [`Plan::draw`](plan::Plan::draw) decides what a run is made of, [`run`](run::run) runs it, and [`shrink`](shrink::shrink)
//! makes a run that fails smaller. See the crate's README.

pub mod client;
pub mod disk;
pub mod meddler;
pub mod mutation;
pub mod net;
pub mod oracle;
pub mod plan;
pub mod run;
pub mod server;
pub mod shrink;
pub mod stamp;
pub mod world;
