//! Sockets before a runtime takes them over.

use std::io;

mod local_addr;
mod takeover;
mod tcp;
mod unix;

pub use local_addr::LocalAddr;
pub use tcp::{bind_tcp, bind_tcp_v6only, tune_tcp};
pub use unix::{SocketPath, bind_unix, check_socket_path, tune_unix};

/// Adds the address or path to an error about listening on it: for adapters whose runtime binds.
#[must_use]
pub fn cannot_listen(place: impl core::fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {place}: {error}"))
}
