//! Why the kernel refuses, and what to do about it.

use rustix::io::Errno;

use super::device::{Device, Files};
use super::netlink::{Error, Nbd, Socket};
use crate::exit::Failure;

/// The kernel's NBD devices.
pub(super) fn open(files: &Files) -> Result<Nbd<Socket>, Failure> {
    let opened = Socket::new().map_err(Error::Channel).and_then(Nbd::new);
    opened.map_err(|error| match error.errno() {
        Some(Errno::NOENT) if files.have_nbd() => Failure::failed(
            "this kernel's NBD devices cannot be configured by netlink: that takes Linux 4.12 or later",
        ),
        Some(Errno::NOENT) => Failure::failed(
            "this kernel has no NBD devices: load its module with modprobe nbd",
        ),
        _ => Failure::failed(format!("cannot configure NBD devices: {error}")),
    })
}

/// Why a device was not attached, detached or changed. `what` is a verb; without a device, any would have done.
pub(super) fn refused(what: &str, device: Option<Device>, error: &Error) -> Failure {
    let name = device.map_or_else(|| "an NBD device".to_owned(), |device| device.to_string());
    let why = match error.errno() {
        Some(Errno::PERM | Errno::ACCESS) => {
            "it takes the right CAP_SYS_ADMIN: run this as root".to_owned()
        }
        Some(Errno::BUSY) => {
            "it is in use already: leave it out for a free one, or see nbd devices".to_owned()
        }
        _ => error.to_string(),
    };
    Failure::failed(format!("cannot {what} {name}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let text = |errno, text: Option<&str>, device| {
            let error = Error::Refused { errno, text: text.map(Into::into) };
            refused("attach", device, &error).text().to_owned()
        };
        assert!(
            text(Errno::PERM, None, None).contains("an NBD device: it takes the right CAP_SYS")
        );
        assert!(text(Errno::BUSY, None, Some(Device(3))).contains("/dev/nbd3: it is in use"));
        let said = text(Errno::INVAL, Some("backend image doesn't match"), Some(Device(0)));
        assert!(said.contains("backend image doesn't match (Invalid argument"), "{said}");
    }
}
