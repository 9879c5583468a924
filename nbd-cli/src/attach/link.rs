//! One connection of a device: a session on which the export is entered, and the socket of it that the kernel has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use nbd_blocking::client::{ClientConfig, Entered, ExportDetails};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::exit::Failure;
use crate::target::Target;

/// A connection of a device. When this is dropped, the kernel goes on with the connection, unless bytes are carried for it.
#[derive(Debug)]
pub(super) struct Link {
    /// The kernel's socket, kept here to see when it is closed.
    socket: OwnedFd,
    export: ExportDetails,
    /// Carries the bytes of a connection that is no socket of the kernel's kind.
    bridge: Option<JoinHandle<io::Result<()>>>,
}

impl Link {
    /// Connects, and enters the export. `carried` is whether this process is to see the bytes, so that a server that shuts
    /// down is no fault of the disk.
    pub(super) fn connect(
        target: &Target,
        config: &ClientConfig,
        carried: bool,
    ) -> Result<Self, Failure> {
        let entered = target.hand_over(config)?;
        Self::new(entered, carried).map_err(|error| {
            Failure::failed(format!("cannot use the connection to {}: {error}", target.name()))
        })
    }

    fn new(entered: Entered, carried: bool) -> io::Result<Self> {
        let export = entered.export().clone();
        let direct = |socket: &BorrowedFd<'_>| !carried && is_of_the_kernels_kind(*socket);
        if let Some(socket) = entered.socket().filter(direct) {
            let socket = socket.try_clone_to_owned()?;
            return Ok(Self { socket, export, bridge: None });
        }
        let (kernels, ours) = UnixStream::pair()?;
        let carry = move || entered.carry(ours);
        let bridge = thread::Builder::new().name("nbd-bridge".into()).spawn(carry)?;
        Ok(Self { socket: kernels.into(), export, bridge: Some(bridge) })
    }

    pub(super) const fn export(&self) -> &ExportDetails {
        &self.export
    }

    /// What the kernel is given.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether this process has to stay for it.
    pub(super) const fn is_carried(&self) -> bool {
        self.bridge.is_some()
    }

    /// Whether the connection is over: the kernel closes its socket when the server has closed it, when a reply takes too
    /// long, and when the device is detached.
    pub(super) fn is_lost(&self) -> bool {
        let mut sockets = [PollFd::new(&self.socket, PollFlags::empty())];
        matches!(poll(&mut sockets, Some(&Timespec::default())), Ok(count) if count > 0)
    }

    /// Why it is over, as far as that is known here. To be asked once it is.
    pub(super) fn end(self) -> String {
        match self.bridge.filter(JoinHandle::is_finished).map(JoinHandle::join) {
            Some(Ok(Err(error))) if error.kind() != io::ErrorKind::UnexpectedEof => {
                error.to_string()
            }
            _ => "the server has closed it, or did not reply in time".to_owned(),
        }
    }

    /// Whether everything was carried that there was.
    pub(super) fn is_finished(&self) -> bool {
        self.bridge.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// The kernel takes streams over TCP and Unix sockets; of others it once took some.
fn is_of_the_kernels_kind(socket: BorrowedFd<'_>) -> bool {
    use rustix::net::{AddressFamily, sockopt};
    let known = [AddressFamily::INET, AddressFamily::INET6, AddressFamily::UNIX];
    sockopt::socket_domain(socket).is_ok_and(|family| known.contains(&family))
}
