//! The project's clients, held against libnbd on the same servers.
//!
//! Each client is a process of its own that does the same work: a fixed number of requests in
//! flight on one connection, at the same offsets, with buffers that are used again. For libnbd that
//! is a small C program, built when it is needed; for ours it is `nbd-bench drive`.

mod arguments;
mod catalogue;
mod drive;
mod fio;
mod libnbd;
mod report;
mod run;
#[cfg(test)]
mod tests;

pub use arguments::{ClientArgs, ClientPlan, DriveArgs};
pub use catalogue::{Client, LIBNBD, Ours, catalogue};
pub use drive::drive;
pub use report::{json, text};
pub use run::{Cell, Figures, Measured, Standing, run};
