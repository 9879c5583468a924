//! Benchmarks: a yardstick server, a load generator, and runners that compare servers and clients.
//!
//! A rate by itself says little, for it is the machine's as much as the server's. So each rate is
//! put beside two others that were taken in the same minutes: that of the [`yardstick`], which
//! does the least that a server in user space can do, and that of nbdkit, which is what people
//! would use otherwise.
//!
//! The yardstick and the generator use none of the project's own crates. The yardstick would not be
//! one if it shared the code that it is held against, and the generator must be the same for all
//! servers. Only [`clients`] runs the project's clients, in a process of their own, to hold them
//! against libnbd; [`copying`] holds `nbd copy` against nbdcopy. [`mod@tls`] has the servers encrypt.
//!
//! Linux only: CPU time is read from `/proc`.

pub mod args;
pub mod chart;
pub mod child;
pub mod clients;
pub mod compare;
pub mod copying;
pub mod cpu;
pub mod handshake;
pub mod load;
pub mod mode;
pub mod modes;
pub mod process;
pub mod report;
pub mod servers;
pub mod socket;
pub mod stats;
pub mod table;
pub mod tls;
pub mod vectored;
#[cfg(feature = "volume")]
pub mod volumes;
pub mod wire;
pub mod workload;
pub mod yardstick;

#[cfg(test)]
mod tests;
