//! A stream on which time runs out.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A stream of which all reads and writes together end at a point in time. The timeouts of the stream itself begin anew
/// with every byte, so that a client that sends one now and then would never be too late.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    stream: &'a UnixStream,
    end: Instant,
}

impl<'a> Timed<'a> {
    pub(crate) const fn new(stream: &'a UnixStream, end: Instant) -> Self {
        Self { stream, end }
    }

    /// Has whatever reads from the stream next fail when time is over, with the error of a stream that would block.
    pub(crate) fn limit_read(&self) -> io::Result<()> {
        self.stream.set_read_timeout(Some(self.left()?))
    }

    /// What is left of the time, never zero.
    fn left(&self) -> io::Result<Duration> {
        match self.end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

/// Systems differ in what they call it.
fn in_time<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    })
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.limit_read()?;
        in_time(self.stream.read(buffer))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        in_time(self.stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(1)
    }

    #[test]
    fn after_the_end_nothing_is_read_or_written_that_could_be() {
        let (mut peer, own) = UnixStream::pair().unwrap();
        peer.write_all(b"x").unwrap();
        let mut timed = Timed::new(&own, Instant::now());
        assert_eq!(timed.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(timed.write(b"x").unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn reading_and_writing_fail_when_time_is_over() {
        let (_peer, own) = UnixStream::pair().unwrap();
        let error = Timed::new(&own, soon()).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let error = Timed::new(&own, soon()).write_all(&vec![0; 64 << 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn until_then_all_is_read_and_written() {
        let (peer, own) = UnixStream::pair().unwrap();
        let far = Instant::now() + Duration::from_secs(60);
        Timed::new(&peer, far).write_all(b"hello").unwrap();
        drop(peer);
        let mut text = String::new();
        Timed::new(&own, far).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
