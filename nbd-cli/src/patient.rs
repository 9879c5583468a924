//! Files and streams that may be non-blocking.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// A stream that waits where its descriptor would not: `O_NONBLOCK` belongs to all processes that share a pipe or terminal,
/// and whichever of them sets it sets it for standard input and output of this process as well.
#[derive(Debug)]
pub(crate) struct Patient<T>(pub(crate) T);

impl<T: AsFd> Patient<T> {
    /// Calls `act` until it does not ask to be called later.
    fn until_done<R>(
        &mut self,
        ready: PollFlags,
        mut act: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match act(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            match poll(&mut [PollFd::new(&self.0, ready)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<T: AsFd + Read> Read for Patient<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until_done(PollFlags::IN, |stream| stream.read(buffer))
    }
}

impl<T: AsFd + Write> Write for Patient<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_done(PollFlags::OUT, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_done(PollFlags::OUT, Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::io::ioctl_fionbio;

    use super::*;

    #[test]
    fn a_pipe_that_blocks_at_neither_end_carries_everything() {
        let (reader, writer) = io::pipe().unwrap();
        ioctl_fionbio(&reader, true).unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        let sent: Vec<u8> = (0..1_000_003_u32).map(|number| (number % 251) as u8).collect();
        let bytes = sent.clone();
        let writes = thread::spawn(move || Patient(writer).write_all(&bytes).unwrap());
        let mut received = Vec::new();
        Patient(reader).read_to_end(&mut received).unwrap();
        writes.join().unwrap();
        assert!(received == sent, "{} bytes of {} came", received.len(), sent.len());
    }

    #[test]
    fn a_reader_that_closes_is_noticed() {
        let (reader, writer) = io::pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        let writes = thread::spawn(move || Patient(writer).write_all(&[7; 1 << 20]).unwrap_err());
        Patient(&reader).read_exact(&mut [0; 10]).unwrap();
        drop(reader);
        assert_eq!(writes.join().unwrap().kind(), ErrorKind::BrokenPipe);
    }
}
