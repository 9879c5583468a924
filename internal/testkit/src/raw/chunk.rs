//! Structured and extended chunks as they come from the stream.

use super::client::{Mode, check_string};
use super::codes::{ChunkType, Errno, REPLY_DONE};
use super::wire::Wire;

/// A chunk, framing checked, content not yet.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) done: bool,
    pub(super) kind: ChunkType,
    pub(super) cookie: u64,
    /// Extended chunks repeat the offset of the request.
    pub(super) offset: Option<u64>,
    pub(super) payload: Vec<u8>,
}

/// No chunk of a test is longer: a corrupt length must not eat the machine's memory.
const MAX_CHUNK: u64 = 128 << 20;

impl Chunk {
    /// Reads what follows the magic (S-REP-STRUCT-01 to -04 as far as one chunk shows them).
    #[track_caller]
    pub(super) fn read(wire: &mut Wire, mode: Mode) -> Self {
        let flags = wire.u16("reply chunk");
        assert_eq!(flags & !REPLY_DONE, 0, "S-REP-STRUCT-02: reply flags {flags:#06x}");
        let done = flags & REPLY_DONE != 0;
        let kind = ChunkType(wire.u16("reply chunk"));
        assert!(kind.is_known(), "S-REP-STRUCT-11: {kind:?} is not a chunk type");
        let cookie = wire.u64("reply chunk");
        let (offset, length) = match mode {
            Mode::Extended => (Some(wire.u64("reply chunk")), wire.u64("reply chunk")),
            _ => (None, u64::from(wire.u32("reply chunk"))),
        };
        assert!(length <= MAX_CHUNK, "{kind:?} chunk of {length} bytes");
        if kind == ChunkType::NONE {
            assert!(length == 0 && done, "S-REP-STRUCT-03: NONE of {length} bytes, done: {done}");
        }
        let payload = wire.recv(length as usize, "payload of a chunk");
        Self { done, kind, cookie, offset, payload }
    }

    /// A content chunk: offset, length, and the data unless it is a hole (S-REP-STRUCT-04).
    #[track_caller]
    pub(super) fn content(&self) -> (u64, u64, Option<&[u8]>) {
        let (offset, rest) = self
            .payload
            .split_first_chunk()
            .expect("S-REP-STRUCT-04: content starts with an offset");
        let offset = u64::from_be_bytes(*offset);
        if self.kind == ChunkType::OFFSET_DATA {
            assert!(!rest.is_empty(), "S-REP-STRUCT-04: OFFSET_DATA has at least 9 bytes");
            (offset, rest.len() as u64, Some(rest))
        } else {
            let size: [u8; 4] = rest.try_into().expect("S-REP-STRUCT-04: OFFSET_HOLE has 12 bytes");
            let size = u32::from_be_bytes(size);
            assert_ne!(size, 0, "S-REP-STRUCT-04: a hole is not empty");
            (offset, size.into(), None)
        }
    }

    /// An error chunk: error, text, offset of `ERROR_OFFSET`, bytes left over (S-REP-STRUCT-08).
    #[track_caller]
    pub(super) fn error(&self) -> (Errno, String, Option<u64>, usize) {
        let (error, rest) =
            self.payload.split_first_chunk().expect("S-REP-STRUCT-08: an error chunk has 6 bytes");
        let (len, rest) =
            rest.split_first_chunk().expect("S-REP-STRUCT-08: an error chunk has 6 bytes");
        let (text, rest) = rest
            .split_at_checked(u16::from_be_bytes(*len).into())
            .expect("S-REP-STRUCT-08: the error text fits the chunk");
        let text = check_string(text, "S-REP-STRUCT-08: error text");
        let (offset, rest) = if self.kind == ChunkType::ERROR_OFFSET {
            let (offset, rest) = rest
                .split_first_chunk()
                .expect("S-REP-STRUCT-08: the text leaves room for the offset");
            (Some(u64::from_be_bytes(*offset)), rest)
        } else {
            (None, rest)
        };
        (Errno(u32::from_be_bytes(*error)), text, offset, rest.len())
    }
}
