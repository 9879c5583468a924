//! Standard error, whose reader may be gone, or slow, or never read at all.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio;

use crate::journal::{self, Priority};
use crate::{log, output};

/// How long a message may wait for the reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes that a pipe takes without blocking once it is ready: `PIPE_BUF`, or the least that it may be.
const PIECE: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// Writes `nbd: ` and a message on a line of its own, after what was logged before: a warning, or a change that a person
/// should know of. Control characters are escaped: a message may quote a server, which could forge further lines.
///
/// Standard error that takes nothing (closed, full, not read for a second) is no failure: the exit status remains.
pub(crate) fn say(message: &str) {
    put(Priority::Warning, message, &[]);
}

/// The same for an error, with lines below the message that are fit to be shown.
pub(crate) fn say_error(message: &str, details: &[String]) {
    put(Priority::Error, message, details);
}

fn put(priority: Priority, message: &str, details: &[String]) {
    log::flush();
    let mut text = format!("nbd: {}\n", output::printable(message));
    for detail in details {
        text.push_str(detail);
        text.push('\n');
    }
    let text = journal::lines(priority, &text);
    let _lost = write(text.as_bytes(), Some(Instant::now() + PATIENCE));
}

/// Writes all of it, and waits for the reader until a point in time, or without end. Never panics.
pub(crate) fn write(mut bytes: &[u8], end: Option<Instant>) -> io::Result<()> {
    while !bytes.is_empty() {
        wait(end)?;
        match rustix::io::write(stdio::stderr(), &bytes[..bytes.len().min(PIECE)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until standard error takes something, or fails.
fn wait(end: Option<Instant>) -> io::Result<()> {
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let stderr = stdio::stderr();
        match poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], timeout.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
