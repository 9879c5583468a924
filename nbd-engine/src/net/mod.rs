//! Sockets before a runtime takes them over.

use std::io;
use std::os::fd::AsFd;

mod access;
mod addresses;
mod folder;
mod local_addr;
mod takeover;
mod tcp;
mod unix;
#[cfg(target_os = "linux")]
mod vsock;

pub use access::{Access, InvalidNetwork, Network};
pub use folder::{FOLDER_LOCK_TIMEOUT, folder_of, link_end, lock_folder, remove_file_of};
pub use local_addr::LocalAddr;
pub use tcp::{bind_resolved, bind_tcp, check_tcp, tune_tcp};
pub use unix::{SocketPath, bind_unix, check_socket_path, check_unix, tune_unix};
#[cfg(target_os = "linux")]
pub(crate) use vsock::connect_vsock;
#[cfg(target_os = "linux")]
pub use vsock::{VSOCK_CID_ANY, VsockListener, bind_vsock, check_vsock};

/// Connections to a socket that the system holds until they are accepted, by default: as many as for nbdkit and for
/// `qemu-nbd --persistent`. The system may lower it, as Linux does by `net.core.somaxconn`.
pub const DEFAULT_BACKLOG: u32 = 4096;

/// Adds the address or path to an error about listening on it.
fn cannot_listen(address: impl core::fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}

/// Lets a socket that is bound listen.
fn start_listening(socket: impl AsFd, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    Ok(rustix::net::listen(socket, backlog)?)
}
