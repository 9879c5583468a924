//! Standard error, whose reader may be gone, or slow, or never read at all.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio;

use crate::{log, output};

/// How long a message may wait for the reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes that a pipe takes without blocking once it is ready: `PIPE_BUF`, or the least that it may be.
const PIECE: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// Writes `nbd: ` and a message on a line of its own, after what was logged before. Control characters are escaped: a
/// message may quote a server, which could forge further lines.
///
/// Standard error that takes nothing (closed, full, not read for a second) is no failure: the exit status remains.
pub(crate) fn say(message: &str) {
    say_with(message, &[]);
}

/// The same with lines below the message, which are fit to be shown.
pub(crate) fn say_with(message: &str, details: &[String]) {
    log::flush();
    let mut line = format!("nbd: {}\n", output::printable(message));
    for detail in details {
        line.push_str(detail);
        line.push('\n');
    }
    let _lost = write(line.as_bytes(), Some(Instant::now() + PATIENCE));
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
