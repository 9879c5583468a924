//! A layer over a socket that does all that one may do: it keeps what it takes until it has to send it, takes what has
//! arrived out of the socket whenever it is called, gives it out piece by piece, and says that it would block where it
//! would not.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nbd_testkit::Random;

/// What the layer takes before it has to send it.
const CAPACITY: usize = 20_000;

/// Bytes travel with their bits inverted, so that no side can do without the layer.
pub(crate) struct Layer {
    socket: UnixStream,
    random: Random,
    arrived: VecDeque<u8>,
    to_send: VecDeque<u8>,
}

impl Layer {
    pub(crate) fn new(socket: UnixStream, seed: u64) -> Self {
        let (arrived, to_send) = (VecDeque::new(), VecDeque::new());
        Self { socket, random: Random::new(seed), arrived, to_send }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what has arrived. Gives whether the stream has ended.
    fn pull(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 5000];
        match self.socket.read(&mut bytes)? {
            0 => Ok(true),
            count => {
                self.arrived.extend(bytes[..count].iter().map(|byte| !byte));
                Ok(false)
            }
        }
    }

    /// Sends what can be sent.
    fn push(&mut self) -> io::Result<()> {
        while !self.to_send.is_empty() {
            let bytes: Vec<u8> = self.to_send.iter().take(3000).map(|byte| !byte).collect();
            let count = self.socket.write(&bytes)?;
            self.to_send.drain(..count);
        }
        Ok(())
    }

    /// What a call does before it does what it is for. Failures show by that.
    fn stir(&mut self) -> io::Result<()> {
        if self.random.one_in(2) {
            let _later = self.pull();
        }
        if self.random.one_in(32) {
            return Err(self
                .random
                .of(&[io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock])
                .into());
        }
        Ok(())
    }
}

impl Read for Layer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // As long as it holds something it gives something: that is the rule.
        if self.arrived.is_empty() {
            let _later = self.push();
            if self.pull()? {
                return Ok(0);
            }
        }
        let count = 1 + self.random.below(buffer.len().min(self.arrived.len()) as u64) as usize;
        self.arrived.read(&mut buffer[..count])
    }
}

impl Write for Layer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stir()?;
        let room = CAPACITY - self.to_send.len();
        if room == 0 {
            // Either will do.
            return if self.random.one_in(2) {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        let count = bytes.len().min(room).min(1 + self.random.below(20_000) as usize);
        self.to_send.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.stir().and_then(|()| self.push());
        if self.random.one_in(2) {
            let _later = self.pull();
        }
        sent
    }
}
