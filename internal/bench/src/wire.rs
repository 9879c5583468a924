//! The few numbers and layouts of the NBD protocol that a benchmark needs.
//!
//! Names follow the specification. Everything is big-endian.

/// Magic of the greeting: "NBDMAGIC".
pub const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Magic of the newstyle greeting and of every option: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Magic of an option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Magic of a request (compact header).
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of a request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Magic of a chunk with an extended header.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag: the server speaks fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no 124 zero bytes after EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Option: end the haggling.
pub const OPT_ABORT: u32 = 2;
/// Option: go to the transmission phase with the named export.
pub const OPT_GO: u32 = 7;
/// Option: structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: extended headers.
pub const OPT_EXTENDED_HEADERS: u32 = 11;
/// Option reply: done.
pub const REP_ACK: u32 = 1;
/// Option reply: one piece of information on an export.
pub const REP_INFO: u32 = 3;
/// Option reply: the option is unknown.
pub const REP_ERR_UNSUP: u32 = 0x8000_0001;
/// The bit that makes an option reply an error.
pub const REP_FLAG_ERROR: u32 = 0x8000_0000;
/// Information: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;

/// Transmission flag that is always set.
pub const TRANSMISSION_HAS_FLAGS: u16 = 1;

/// Command: read.
pub const CMD_READ: u16 = 0;
/// Command: write.
pub const CMD_WRITE: u16 = 1;
/// Command: soft disconnect.
pub const CMD_DISC: u16 = 2;

/// Command flag: with extended headers, the length is that of a payload which follows.
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// Chunk flag: the last one of its reply.
pub const REPLY_FLAG_DONE: u16 = 1;
/// Chunk: nothing but its flags.
pub const CHUNK_NONE: u16 = 0;
/// Chunk: data, behind its offset.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk: offset and length of a hole.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// The bit that makes a chunk an error.
pub const CHUNK_ERROR: u16 = 1 << 15;

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
    /// What to do: `CMD_*`.
    pub command: u16,
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
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Appends the header in its extended form.
    #[inline]
    pub fn encode_extended(&self, out: &mut Vec<u8>) {
        let flags = if self.command == CMD_WRITE { CMD_FLAG_PAYLOAD_LEN } else { 0 };
        let mut bytes = [0; EXTENDED_REQUEST_LEN];
        bytes[..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&u64::from(self.length).to_be_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Reads a header without looking at the magic or the command flags.
    #[inline]
    pub fn decode_unchecked(bytes: &[u8; REQUEST_LEN]) -> Self {
        Self {
            command: u16::from_be_bytes([bytes[6], bytes[7]]),
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
        bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Reads a header; `None` if the magic is another one.
    #[inline]
    pub fn decode(bytes: &[u8; REPLY_LEN]) -> Option<Self> {
        (u32_at(bytes, 0) == SIMPLE_REPLY_MAGIC)
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
