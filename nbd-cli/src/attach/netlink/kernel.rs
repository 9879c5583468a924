//! Dialogues with the kernel: a request, replies to it, and an acknowledgement or an error.

use core::fmt;
use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::message::{Received, Request, messages};

/// How long the kernel may take for an answer. It answers before a request was sent, so that this is never reached.
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages that may come in answer to a request, and for another one: a bound on a dialogue that goes nowhere.
const MAX_DATAGRAMS: usize = 10_000;

/// What carries datagrams to and from the kernel.
pub(in super::super) trait Channel {
    fn send(&self, datagram: &[u8]) -> io::Result<()>;

    /// The next datagram of the kernel.
    fn receive(&self) -> io::Result<Vec<u8>>;
}

/// A socket of generic netlink.
#[derive(Debug)]
pub(in super::super) struct Socket(NetlinkSocket);

impl Socket {
    /// # Errors
    /// When this kernel has no netlink, or there are no descriptors left.
    pub(in super::super) fn new() -> io::Result<Self> {
        let mut socket = NetlinkSocket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        // From now on nobody but the kernel can send to it.
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without these an error has no text, and repeats the request: older kernels don't know them.
        let _text = socket.set_ext_ack(true);
        let _short = socket.set_cap_ack(true);
        Ok(Self(socket))
    }
}

impl Channel for Socket {
    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.0.send(datagram, 0).map(drop)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let timeout = Timespec::try_from(PATIENCE).ok();
        loop {
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
            let (datagram, sender) = self.0.recv_from_full()?;
            if sender.port_number() == 0 {
                return Ok(datagram);
            }
        }
    }
}

/// Why the kernel did not do what it was asked for.
#[derive(Debug)]
pub(in super::super) enum Error {
    /// It refused, and may have said why.
    Refused { errno: Errno, text: Option<String> },
    /// It can't be talked to.
    Channel(io::Error),
    /// Its answer is not understood.
    Answer(&'static str),
}

impl Error {
    /// The number of a refusal.
    pub(in super::super) const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errno, text: None } => write!(f, "{}", io::Error::from(*errno)),
            Self::Refused { errno, text: Some(text) } => {
                write!(f, "{text} ({})", io::Error::from(*errno))
            }
            Self::Channel(error) => write!(f, "netlink: {error}"),
            Self::Answer(what) => write!(f, "the kernel's answer is not understood: {what}"),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Channel(error)
    }
}

/// The kernel at the other end of a channel.
#[derive(Debug)]
pub(super) struct Kernel<C> {
    channel: C,
    /// That of the last request.
    sequence: u32,
}

impl<C: Channel> Kernel<C> {
    pub(super) const fn new(channel: C) -> Self {
        Self { channel, sequence: 0 }
    }

    /// Sends a request, and gives the payloads of the replies to it once it is carried out.
    pub(super) fn ask(&mut self, request: Request) -> Result<Vec<Vec<u8>>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        self.channel.send(&request.finish(self.sequence))?;
        let mut replies = Vec::new();
        for _ in 0..MAX_DATAGRAMS {
            let datagram = self.channel.receive()?;
            for (sequence, received) in messages(&datagram) {
                if sequence != self.sequence {
                    continue;
                }
                match received {
                    Received::Reply(payload) => replies.push(payload.to_vec()),
                    Received::End { errno: None, .. } => return Ok(replies),
                    Received::End { errno: Some(errno), text } => {
                        // Other numbers are none of the kernel's.
                        let errno = match errno {
                            1..4096 => Errno::from_raw_os_error(errno),
                            _ => Errno::IO,
                        };
                        return Err(Error::Refused { errno, text });
                    }
                    Received::Other => {}
                }
            }
        }
        Err(Error::Answer("it does not end"))
    }
}
