//! Servers that are killed at random moments under load, and what must be left on their disks.
//!
//! A [campaign](Campaign) has one disk and one server after the other. Each [round](Campaign::round) starts a server, loads
//! it from several connections, kills it (`SIGKILL`) at a moment that the seed chooses, and compares the disk with the
//! [model](model::Model), which knows of each sector what it may hold.

mod campaign;
mod disk;
mod load;
pub mod model;
pub mod stamp;
mod volume;

pub use campaign::{Campaign, Server, Summary};
pub use disk::{Disk, DiskKind};
