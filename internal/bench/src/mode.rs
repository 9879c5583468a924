//! How replies come: what the client asks for before GO, and the headers that follow from it.

use std::io::{self, Error, ErrorKind};

use crate::wire::*;

/// What is negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Simple replies.
    #[default]
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers, of requests and of replies.
    Extended,
}

/// One header of a reply, and what of its payload belongs to it rather than to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of the request.
    pub cookie: u64,
    /// Nothing more will come for this request.
    pub last: bool,
    /// What it tells.
    pub content: Content,
}

/// What a header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It failed.
    Error(u32),
    /// A simple reply, which the data of a READ follows; or a chunk without any.
    Rest,
    /// So much data follows.
    Data {
        /// In the export.
        offset: u64,
        /// In bytes.
        length: u32,
    },
    /// So much is zero.
    Hole {
        /// In the export.
        offset: u64,
        /// In bytes.
        length: u32,
    },
}

impl Mode {
    /// All of them, from the least to the most.
    pub const ALL: [Self; 3] = [Self::Simple, Self::Structured, Self::Extended];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Structured => "structured",
            Self::Extended => "extended",
        }
    }

    /// The option that asks for it.
    pub fn option(self) -> Option<Opt> {
        match self {
            Self::Simple => None,
            Self::Structured => Some(Opt::STRUCTURED_REPLY),
            Self::Extended => Some(Opt::EXTENDED_HEADERS),
        }
    }

    /// Bytes of a request's header.
    pub fn request_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => REQUEST_LEN,
            Self::Extended => EXTENDED_REQUEST_LEN,
        }
    }

    /// Appends a request's header.
    #[inline]
    pub fn encode(self, request: &Request, out: &mut Vec<u8>) {
        match self {
            Self::Simple | Self::Structured => request.encode(out),
            Self::Extended => request.encode_extended(out),
        }
    }

    /// Reads the header at the start of `bytes`, and gives how long it was; `None` if it is not all
    /// there.
    #[inline]
    pub fn decode(self, bytes: &[u8]) -> io::Result<Option<(Reply, usize)>> {
        // With structured replies, what brings no data may still be answered by a simple one.
        let simple = match self {
            Self::Simple => true,
            Self::Structured => bytes.starts_with(&magic::SIMPLE_REPLY.to_be_bytes()),
            Self::Extended => false,
        };
        if simple {
            let Some(header) = bytes.first_chunk::<REPLY_LEN>() else { return Ok(None) };
            let reply = SimpleReply::decode(header).ok_or_else(|| invalid("no simple reply"))?;
            let SimpleReply { error, cookie } = reply;
            let content = if error == 0 { Content::Rest } else { Content::Error(error) };
            return Ok(Some((Reply { cookie, last: true, content }, REPLY_LEN)));
        }
        let Some((chunk, header_len)) = self.decode_chunk(bytes)? else { return Ok(None) };
        let Chunk { flags, kind, cookie, length } = chunk;
        let rest = &bytes[header_len..];
        let last = flags & REPLY_DONE != 0;
        let (content, own) = match kind {
            ChunkType::NONE if length == 0 => (Content::Rest, 0),
            ChunkType::OFFSET_DATA if length > 8 => {
                let Some(offset) = rest.first_chunk::<8>() else { return Ok(None) };
                let length = length as u32 - 8;
                (Content::Data { offset: u64::from_be_bytes(*offset), length }, 8)
            }
            ChunkType::OFFSET_HOLE if length == 12 => {
                let Some(hole) = rest.first_chunk::<12>() else { return Ok(None) };
                (Content::Hole { offset: u64_at(hole, 0), length: u32_at(hole, 8) }, 12)
            }
            _ if kind.is_error() && length >= 4 => {
                let Some(error) = rest.first_chunk::<4>() else { return Ok(None) };
                (Content::Error(u32::from_be_bytes(*error)), 4)
            }
            _ => return Err(invalid(format!("a chunk of type {} with {length} bytes", kind.0))),
        };
        Ok(Some((Reply { cookie, last, content }, header_len + own)))
    }

    #[inline]
    fn decode_chunk(self, bytes: &[u8]) -> io::Result<Option<(Chunk, usize)>> {
        let (magic, length, header_len) = if self == Self::Extended {
            let Some(header) = bytes.first_chunk::<EXTENDED_REPLY_LEN>() else { return Ok(None) };
            (magic::EXTENDED_REPLY, u64_at(header, 24), EXTENDED_REPLY_LEN)
        } else {
            let Some(header) = bytes.first_chunk::<STRUCTURED_REPLY_LEN>() else {
                return Ok(None);
            };
            (magic::STRUCTURED_REPLY, u64::from(u32_at(header, 16)), STRUCTURED_REPLY_LEN)
        };
        let Some(header) = bytes.first_chunk::<16>() else { return Ok(None) };
        if u32_at(header, 0) != magic {
            return Err(invalid(format!("no {} reply", self.name())));
        }
        if length > u64::from(u32::MAX) {
            return Err(invalid(format!("a chunk of {length} bytes")));
        }
        let flags = u16::from_be_bytes([header[4], header[5]]);
        let kind = ChunkType(u16::from_be_bytes([header[6], header[7]]));
        Ok(Some((Chunk { flags, kind, cookie: u64_at(header, 8), length }, header_len)))
    }
}

/// The header of a chunk.
struct Chunk {
    flags: u16,
    kind: ChunkType,
    cookie: u64,
    length: u64,
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(mode: Mode, flags: u16, kind: ChunkType, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let magic = match mode {
            Mode::Extended => magic::EXTENDED_REPLY,
            _ => magic::STRUCTURED_REPLY,
        };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.0.to_be_bytes());
        bytes.extend(7u64.to_be_bytes());
        match mode {
            Mode::Extended => {
                bytes.extend(0x1000u64.to_be_bytes());
                bytes.extend((payload.len() as u64).to_be_bytes());
            }
            _ => bytes.extend((payload.len() as u32).to_be_bytes()),
        }
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn chunks_are_read_once_all_of_the_header_is_there() {
        let mut data = 0x1000u64.to_be_bytes().to_vec();
        data.extend([1; 100]);
        let mut hole = 0x1000u64.to_be_bytes().to_vec();
        hole.extend(512u32.to_be_bytes());
        let cases = [
            (ChunkType::OFFSET_DATA, &data[..], 8, Content::Data { offset: 0x1000, length: 100 }),
            (ChunkType::OFFSET_HOLE, &hole, 12, Content::Hole { offset: 0x1000, length: 512 }),
            (ChunkType::NONE, &[], 0, Content::Rest),
            (ChunkType::ERROR, &[0, 0, 0, 5, 0, 0], 4, Content::Error(5)),
        ];
        for mode in [Mode::Structured, Mode::Extended] {
            for (kind, payload, own, content) in cases {
                let bytes = chunk(mode, REPLY_DONE, kind, payload);
                let header = bytes.len() - payload.len() + own;
                for cut in 0..header {
                    assert_eq!(mode.decode(&bytes[..cut]).expect("a part"), None);
                }
                let (reply, length) = mode.decode(&bytes).expect("a chunk").expect("all of it");
                assert_eq!(length, header);
                assert_eq!(reply, Reply { cookie: 7, last: true, content });
            }
        }
    }

    #[test]
    fn chunks_of_another_mode_and_of_wrong_lengths_are_errors() {
        let structured = chunk(Mode::Structured, 0, ChunkType::NONE, &[0; 12]);
        Mode::Simple.decode(&structured).expect_err("a chunk is no simple reply");
        Mode::Extended.decode(&structured).expect_err("another magic");
        Mode::Structured.decode(&structured).expect_err("NONE with a payload");
        for (kind, length) in
            [(ChunkType::OFFSET_DATA, 8), (ChunkType::OFFSET_HOLE, 11), (ChunkType(99), 0)]
        {
            let bytes = chunk(Mode::Structured, 0, kind, &vec![0; length]);
            Mode::Structured.decode(&bytes).expect_err("a malformed chunk");
        }
        let mut long = chunk(Mode::Extended, 0, ChunkType::OFFSET_DATA, &[0; 8]);
        long[24] = 1;
        Mode::Extended.decode(&long).expect_err("more than any request");
    }

    #[test]
    fn simple_replies_are_known_beside_structured_ones_but_not_with_extended_headers() {
        let mut bytes = Vec::new();
        SimpleReply { error: 0, cookie: 7 }.encode(&mut bytes);
        bytes.resize(EXTENDED_REPLY_LEN, 0);
        let reply = Reply { cookie: 7, last: true, content: Content::Rest };
        for mode in [Mode::Simple, Mode::Structured] {
            assert_eq!(mode.decode(&bytes).expect("a reply"), Some((reply, REPLY_LEN)));
            assert_eq!(mode.decode(&bytes[..15]).expect("a part"), None);
        }
        Mode::Extended.decode(&bytes).expect_err("chunks only");
    }

    #[test]
    fn an_extended_write_says_that_a_payload_follows() {
        let request = Request { command: Cmd::WRITE, cookie: 1, offset: 2, length: 3 };
        for mode in Mode::ALL {
            let mut bytes = Vec::new();
            mode.encode(&request, &mut bytes);
            assert_eq!(bytes.len(), mode.request_len());
            let flags = u16::from_be_bytes([bytes[4], bytes[5]]);
            assert_eq!(flags, if mode == Mode::Extended { cmd_flag::PAYLOAD_LEN } else { 0 });
        }
    }
}
