//! Descriptors that were open when this process began, which the command line or the environment names by number.

use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd};

/// Takes a descriptor over; the programs that this one starts don't get it.
///
/// To be called before anything else is opened: a number that was not handed to us could be that of a file of our own
/// later, and taken for what was meant.
///
/// # Errors
/// When there is none of that number.
pub(crate) fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the number is no more than looked at, and a number that is not open gives an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nothing else owns it, as nothing was opened by us yet.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor of our own for what that number stands for, which stays open.
///
/// For a number that was handed to us it is to be called before anything else is opened, as [`take`].
///
/// # Errors
/// When there is none of that number.
pub(crate) fn share(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the number is no more than looked at, and a number that is not open gives an error.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// Whether standard input and standard output were closed when this process began.
static CLOSED: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];

/// Looks at them before the standard library does, which puts `/dev/null` in the place of what is closed: what goes there
/// is lost without an error.
#[cfg(target_os = "linux")]
#[used]
// SAFETY: the section holds pointers to functions of this type, which run once, on one thread, before `main`.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

#[cfg(target_os = "linux")]
extern "C" fn look() {
    for (number, closed) in (0..).zip(&CLOSED) {
        // SAFETY: the number is no more than looked at, and a number that is not open gives an error.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        closed.store(rustix::io::fcntl_getfd(borrowed) == Err(Errno::BADF), Ordering::Relaxed);
    }
}

/// An error if standard input was closed when this process began. Elsewhere than on Linux that is unknown.
pub(crate) fn check_stdin() -> io::Result<()> {
    check_standard(0)
}

/// The same for standard output.
pub(crate) fn check_stdout() -> io::Result<()> {
    check_standard(1)
}

fn check_standard(number: usize) -> io::Result<()> {
    match CLOSED[number].load(Ordering::Relaxed) {
        true => Err(io::Error::other("it is closed")),
        false => Ok(()),
    }
}
