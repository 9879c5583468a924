//! What TLS costs a server, held against other servers with the same cipher and against the cipher alone.
//!
//! All servers run at once and take turns in short runs, so that the runs of a round are neighbours in time. One client
//! does for all: the load generator, which offers nothing but TLS 1.3 with AES-128-GCM.

mod arguments;
mod floor;
mod report;
mod run;
#[cfg(test)]
mod tests;

pub use arguments::{TlsArgs, TlsPlan};
pub use floor::{Floor, Kernel};
pub use report::{json, text};
pub use run::{Lane, Round, Standing, run};

/// Our throughput at 1 MiB, in times of the others'.
pub const LARGE_BAR: f64 = 1.0;
/// Our requests per second at 4 KiB and depth 32, in times of the others'.
pub const SMALL_BAR: f64 = 2.0;
/// Our CPU of a byte at 1 MiB, in times of what the cipher and two copies take.
pub const CPU_BAR: f64 = 1.3;
