//! The few layouts of the NBD protocol that a benchmark needs; the numbers are the testkit's. Everything is big-endian.

pub use nbd_testkit::raw::{
    ChunkType, Cmd, Info, Opt, REPLY_DONE, Rep, cmd_flag, flag, handshake, magic,
};

/// Bytes of a request header.
pub const REQUEST_LEN: usize = 28;
/// Bytes of a request with an extended header.
pub const EXTENDED_REQUEST_LEN: usize = 32;
/// Bytes of a simple reply's header.
pub const REPLY_LEN: usize = 16;
/// Bytes of a structured chunk's header.
pub const STRUCTURED_REPLY_LEN: usize = 20;
/// Bytes of a chunk's extended header.
pub const EXTENDED_REPLY_LEN: usize = 32;

/// A request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Cmd,
    /// The client's name for the request; comes back in the reply.
    pub cookie: u64,
    /// First byte of the export.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
}

impl Request {
    /// Appends the header.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&magic::REQUEST.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Appends the header in its extended form.
    #[inline]
    pub fn encode_extended(&self, out: &mut Vec<u8>) {
        let flags = if self.command == Cmd::WRITE { cmd_flag::PAYLOAD_LEN } else { 0 };
        let mut bytes = [0; EXTENDED_REQUEST_LEN];
        bytes[..4].copy_from_slice(&magic::EXTENDED_REQUEST.to_be_bytes());
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&u64::from(self.length).to_be_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Reads a header without looking at the magic or the command flags.
    #[inline]
    pub fn decode_unchecked(bytes: &[u8; REQUEST_LEN]) -> Self {
        Self {
            command: Cmd(u16::from_be_bytes([bytes[6], bytes[7]])),
            cookie: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            length: u32_at(bytes, 24),
        }
    }
}

/// The header of a simple reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0, or the error.
    pub error: u32,
    /// The request's cookie.
    pub cookie: u64,
}

impl SimpleReply {
    /// Appends the header.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; REPLY_LEN];
        bytes[..4].copy_from_slice(&magic::SIMPLE_REPLY.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Reads a header; `None` if the magic is another one.
    #[inline]
    pub fn decode(bytes: &[u8; REPLY_LEN]) -> Option<Self> {
        (u32_at(bytes, 0) == magic::SIMPLE_REPLY)
            .then(|| Self { error: u32_at(bytes, 4), cookie: u64_at(bytes, 8) })
    }
}

#[inline]
pub(crate) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
pub(crate) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}
