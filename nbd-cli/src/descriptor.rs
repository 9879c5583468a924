//! Descriptors that were open when this process began, which the command line or the environment names by number.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// Takes a descriptor over; the programs that this one starts don't get it.
///
/// To be called before anything else is opened: a number that was not handed to us could be that of a file of our own
/// later, and taken for what was meant.
///
/// # Errors
/// When there is none of that number.
pub(crate) fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: the number is no more than looked at, and a number that is not open gives an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nobody else owns it, as nothing was opened by us yet.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor of our own for what that number stands for, which stays open.
///
/// To be called before anything else is opened, as [`take`].
///
/// # Errors
/// When there is none of that number.
pub(crate) fn share(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: the number is no more than looked at, and a number that is not open gives an error.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}
