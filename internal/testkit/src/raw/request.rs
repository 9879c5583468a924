//! Requests, sensible or not.

use super::client::Mode;
use super::codes::{Cmd, cmd_flag, magic};

/// A request to be sent: every field is the script's to choose.
#[derive(Clone, Debug)]
pub struct Request {
    /// The command.
    pub command: Cmd,
    /// Command flags. Under extended headers a [`Request::write`] gets `PAYLOAD_LEN` by itself.
    pub flags: u16,
    /// The cookie; without one the client takes the next of its own.
    pub cookie: Option<u64>,
    /// Offset.
    pub offset: u64,
    /// Length, as the header says it; need not agree with the payload.
    pub length: u64,
    /// Bytes that follow the header.
    pub payload: Vec<u8>,
    /// Another magic than the right one.
    pub magic: Option<u32>,
    /// Whether a WRITE says that it has a payload, where extended headers have it say so.
    pub flagged: bool,
}

impl Request {
    /// A request without payload.
    pub fn new(command: Cmd, offset: u64, length: u64) -> Self {
        Self {
            command,
            flags: 0,
            cookie: None,
            offset,
            length,
            payload: Vec::new(),
            magic: None,
            flagged: true,
        }
    }

    /// READ.
    pub fn read(offset: u64, length: u64) -> Self {
        Self::new(Cmd::READ, offset, length)
    }

    /// WRITE.
    pub fn write(offset: u64, data: &[u8]) -> Self {
        Self::new(Cmd::WRITE, offset, 0).payload(data)
    }

    /// FLUSH.
    pub fn flush() -> Self {
        Self::new(Cmd::FLUSH, 0, 0)
    }

    /// TRIM.
    pub fn trim(offset: u64, length: u64) -> Self {
        Self::new(Cmd::TRIM, offset, length)
    }

    /// CACHE.
    pub fn cache(offset: u64, length: u64) -> Self {
        Self::new(Cmd::CACHE, offset, length)
    }

    /// `WRITE_ZEROES`.
    pub fn write_zeroes(offset: u64, length: u64) -> Self {
        Self::new(Cmd::WRITE_ZEROES, offset, length)
    }

    /// `BLOCK_STATUS`.
    pub fn block_status(offset: u64, length: u64) -> Self {
        Self::new(Cmd::BLOCK_STATUS, offset, length)
    }

    /// The payload form of `BLOCK_STATUS`: the length to ask about and the contexts travel as payload.
    pub fn block_status_of(offset: u64, length: u64, contexts: &[u32]) -> Self {
        let mut payload = length.to_be_bytes().to_vec();
        for context in contexts {
            payload.extend_from_slice(&context.to_be_bytes());
        }
        Self::new(Cmd::BLOCK_STATUS, offset, 0).payload(&payload).flags(cmd_flag::PAYLOAD_LEN)
    }

    /// Adds flags.
    pub fn flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// Sets the cookie.
    pub fn cookie(mut self, cookie: u64) -> Self {
        self.cookie = Some(cookie);
        self
    }

    /// Sets the payload and the length.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self.length = payload.len() as u64;
        self
    }

    /// Sets the magic.
    pub fn magic(mut self, magic: u32) -> Self {
        self.magic = Some(magic);
        self
    }

    /// Leaves out the `PAYLOAD_LEN` of a WRITE.
    pub fn unflagged(mut self) -> Self {
        self.flagged = false;
        self
    }

    /// The flags that travel.
    pub(super) fn wire_flags(&self, mode: Mode) -> u16 {
        // A bare header, whose payload is not there, stays without the flag.
        let whole = self.flagged && self.payload.len() as u64 == self.length;
        if mode == Mode::Extended && self.command == Cmd::WRITE && whole {
            self.flags | cmd_flag::PAYLOAD_LEN
        } else {
            self.flags
        }
    }

    /// The request as bytes. In compact form the length must fit 32 bits.
    #[track_caller]
    pub fn encode(&self, mode: Mode, cookie: u64) -> Vec<u8> {
        let expected = match mode {
            Mode::Extended => magic::EXTENDED_REQUEST,
            _ => magic::REQUEST,
        };
        let mut bytes = self.magic.unwrap_or(expected).to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.wire_flags(mode).to_be_bytes());
        bytes.extend_from_slice(&self.command.0.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        match mode {
            Mode::Extended => bytes.extend_from_slice(&self.length.to_be_bytes()),
            _ => {
                let length = u32::try_from(self.length).expect("the compact length has 32 bits");
                bytes.extend_from_slice(&length.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}
