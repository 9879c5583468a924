//! Volumes on object storage, held against SlateDB alone and against `nbd serve` on a file.
//!
//! SlateDB does the same work with its own defaults, its keys being the numbers of the blocks and its values as long as the
//! requests: the most that could be had of it. Ours are measured by way of `nbd serve` and a socket, as clients see them;
//! only flushes and the account of requests are those of the library.

mod account;
mod arguments;
mod report;
mod run;
mod served;
mod slate;
mod stores;

pub use account::Account;
pub use arguments::{VolumeArgs, VolumePlan};
pub use report::{json, text};
pub use run::{Figure, Standing, run};
pub use stores::Place;

/// Our writes and sequential requests, in times of SlateDB's own.
pub const BAR: f64 = 0.8;
/// Our reads of what is in the cache, in times of those of a file.
pub const HOT_BAR: f64 = 0.5;
