//! NBD's messages (`linux/nbd-netlink.h`), and how their family is found (`linux/genetlink.h`).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;

use super::kernel::{Channel, Error, Kernel};
use super::message::{GENERIC_HEADER, Request, attributes, read_u16, read_u32};

/// The family that knows all families: `GENL_ID_CTRL`.
const CONTROLLER: u16 = 16;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_NAME: u16 = 2;

/// `NBD_GENL_FAMILY_NAME`.
const NAME: &str = "nbd";
/// `NBD_GENL_VERSION`.
const VERSION: u8 = 1;

/// `NBD_CMD_*`.
mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const STATUS: u8 = 5;
}

/// `NBD_ATTR_*`, and what is nested in them.
mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const CLIENT_FLAGS: u16 = 6;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const DEVICE_LIST: u16 = 9;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;

    /// `NBD_SOCK_ITEM`
    pub(super) const SOCKET_ITEM: u16 = 1;
    /// `NBD_SOCK_FD`
    pub(super) const SOCKET_FD: u16 = 1;
    /// `NBD_DEVICE_ITEM`
    pub(super) const DEVICE_ITEM: u16 = 1;
    /// `NBD_DEVICE_INDEX`
    pub(super) const DEVICE_INDEX: u16 = 1;
    /// `NBD_DEVICE_CONNECTED`
    pub(super) const DEVICE_CONNECTED: u16 = 2;
}

/// `NBD_CFLAG_DESTROY_ON_DISCONNECT`.
const DESTROY_ON_DISCONNECT: u64 = 1;
/// `NBD_CFLAG_DISCONNECT_ON_CLOSE`.
const DISCONNECT_ON_CLOSE: u64 = 2;

/// A device that is to be attached.
#[derive(Debug)]
pub(in super::super) struct Connect<'a> {
    /// The number in its name; `None` for a free one.
    pub(in super::super) index: Option<u32>,
    /// Bytes.
    pub(in super::super) size: u64,
    /// Bytes: a power of two from 512 to the size of a page.
    pub(in super::super) block_size: u32,
    /// How long a reply may take; zero for any time. The kernel counts in seconds: rounded up.
    pub(in super::super) timeout: Duration,
    /// How long requests wait for a new socket after the last one was lost. Rounded up to seconds.
    pub(in super::super) dead_timeout: Duration,
    /// The transmission flags of the export.
    pub(in super::super) flags: u16,
    pub(in super::super) destroy_on_disconnect: bool,
    pub(in super::super) disconnect_on_close: bool,
    /// What has to be repeated to reconfigure the device.
    pub(in super::super) backend: &'a str,
    /// Each has a session whose export was entered.
    pub(in super::super) sockets: Vec<BorrowedFd<'a>>,
}

/// What is to change about a device that is attached.
#[derive(Debug)]
pub(in super::super) struct Reconfigure<'a> {
    pub(in super::super) index: u32,
    pub(in super::super) backend: &'a str,
    /// Bytes, if they change.
    pub(in super::super) size: Option<u64>,
    /// In place of sockets that were lost; those that are too many are closed.
    pub(in super::super) sockets: Vec<BorrowedFd<'a>>,
}

/// A device as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct State {
    /// The number in its name.
    pub(in super::super) index: u32,
    pub(in super::super) connected: bool,
}

/// The kernel's NBD devices.
#[derive(Debug)]
pub(in super::super) struct Nbd<C> {
    kernel: Kernel<C>,
    family: u16,
}

impl<C: Channel> Nbd<C> {
    /// # Errors
    /// `ENOENT` when the kernel has no NBD devices, or none that netlink configures.
    pub(in super::super) fn new(channel: C) -> Result<Self, Error> {
        let mut kernel = Kernel::new(channel);
        let mut request = Request::new(CONTROLLER, GET_FAMILY, 1);
        request.text(FAMILY_NAME, NAME);
        let replies = kernel.ask(request)?;
        let family = replies
            .iter()
            .flat_map(|reply| content(reply))
            .find_map(|(kind, value)| (kind == FAMILY_ID).then(|| read_u16(value, 0)).flatten());
        let family = family.ok_or(Error::Answer("it does not say how NBD is addressed"))?;
        Ok(Self { kernel, family })
    }

    /// Attaches a device, and gives its number.
    ///
    /// # Errors
    /// `EBUSY` when the device is attached already, `EPERM` without the right to attach any.
    pub(in super::super) fn connect(&mut self, device: &Connect<'_>) -> Result<u32, Error> {
        let replies = self.kernel.ask(connect(self.family, device))?;
        let index = replies.iter().flat_map(|reply| content(reply)).find_map(|(kind, value)| {
            (kind == attribute::INDEX).then(|| read_u32(value, 0)).flatten()
        });
        index.or(device.index).ok_or(Error::Answer("it does not name the device"))
    }

    /// Replaces sockets that were lost, and changes the size.
    ///
    /// # Errors
    /// `EINVAL` when the device is not attached, or to something else.
    pub(in super::super) fn reconfigure(&mut self, change: &Reconfigure<'_>) -> Result<(), Error> {
        self.kernel.ask(reconfigure(self.family, change)).map(drop)
    }

    /// Detaches a device. Without any that is attached, nothing happens.
    ///
    /// # Errors
    /// `EINVAL` when there is no such device, `EPERM` without the right.
    pub(in super::super) fn disconnect(&mut self, index: u32) -> Result<(), Error> {
        let mut request = Request::new(self.family, command::DISCONNECT, VERSION);
        request.u32(attribute::INDEX, index);
        self.kernel.ask(request).map(drop)
    }

    /// All devices that there are, in the order of their numbers.
    pub(in super::super) fn devices(&mut self) -> Result<Vec<State>, Error> {
        self.status(None)
    }

    /// Whether a device is attached; not, if there is none.
    pub(in super::super) fn is_connected(&mut self, index: u32) -> Result<bool, Error> {
        match self.status(Some(index)) {
            Ok(states) => Ok(states.iter().any(|state| state.index == index && state.connected)),
            // As kernels answer about devices that were removed.
            Err(error) if matches!(error.errno(), Some(Errno::NODEV | Errno::NOENT)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn status(&mut self, index: Option<u32>) -> Result<Vec<State>, Error> {
        let mut request = Request::new(self.family, command::STATUS, VERSION);
        if let Some(index) = index {
            request.u32(attribute::INDEX, index);
        }
        let replies = self.kernel.ask(request)?;
        let mut states: Vec<State> = replies.iter().flat_map(|reply| states(reply)).collect();
        states.sort_unstable_by_key(|state| state.index);
        Ok(states)
    }
}

/// The attributes of a reply.
fn content(reply: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(reply.get(GENERIC_HEADER..).unwrap_or_default())
}

/// The devices in a reply.
fn states(reply: &[u8]) -> Vec<State> {
    let mut states = Vec::new();
    for (kind, list) in content(reply) {
        if kind != attribute::DEVICE_LIST {
            continue;
        }
        for (kind, item) in attributes(list) {
            if kind != attribute::DEVICE_ITEM {
                continue;
            }
            let (mut index, mut connected) = (None, false);
            for (kind, value) in attributes(item) {
                match kind {
                    attribute::DEVICE_INDEX => index = read_u32(value, 0),
                    attribute::DEVICE_CONNECTED => {
                        connected = value.first().is_some_and(|value| *value != 0);
                    }
                    _ => {}
                }
            }
            states.extend(index.map(|index| State { index, connected }));
        }
    }
    states
}

fn connect(family: u16, device: &Connect<'_>) -> Request {
    let mut request = Request::new(family, command::CONNECT, VERSION);
    if let Some(index) = device.index {
        request.u32(attribute::INDEX, index);
    }
    request.u64(attribute::SIZE_BYTES, device.size);
    request.u64(attribute::BLOCK_SIZE_BYTES, device.block_size.into());
    request.u64(attribute::TIMEOUT, seconds(device.timeout));
    request.u64(attribute::SERVER_FLAGS, device.flags.into());
    let mut flags = 0;
    if device.destroy_on_disconnect {
        flags |= DESTROY_ON_DISCONNECT;
    }
    if device.disconnect_on_close {
        flags |= DISCONNECT_ON_CLOSE;
    }
    request.u64(attribute::CLIENT_FLAGS, flags);
    sockets(&mut request, &device.sockets);
    request.u64(attribute::DEAD_CONN_TIMEOUT, seconds(device.dead_timeout));
    request.text(attribute::BACKEND_IDENTIFIER, device.backend);
    request
}

/// Rounded up: zero means something else.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

fn reconfigure(family: u16, change: &Reconfigure<'_>) -> Request {
    let mut request = Request::new(family, command::RECONFIGURE, VERSION);
    request.u32(attribute::INDEX, change.index);
    if let Some(size) = change.size {
        request.u64(attribute::SIZE_BYTES, size);
    }
    if !change.sockets.is_empty() {
        sockets(&mut request, &change.sockets);
    }
    request.text(attribute::BACKEND_IDENTIFIER, change.backend);
    request
}

fn sockets(request: &mut Request, sockets: &[BorrowedFd<'_>]) {
    request.nested(attribute::SOCKETS, |request| {
        for socket in sockets {
            request.nested(attribute::SOCKET_ITEM, |request| {
                request.u32(attribute::SOCKET_FD, socket.as_raw_fd().cast_unsigned());
            });
        }
    });
}
