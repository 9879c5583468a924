//! Answers to options and to requests, in which everything can be wrong.

use crate::raw::{ChunkType, Errno, Mode, Opt, REPLY_DONE, Rep, magic};

/// A reply to an option: the one that came last, unless it says otherwise.
#[derive(Clone, Debug)]
pub struct OptionAnswer {
    kind: Rep,
    data: Vec<u8>,
    magic: u64,
    option: Option<Opt>,
    length: Option<u32>,
}

impl OptionAnswer {
    /// A reply of this type.
    pub fn new(kind: Rep, data: &[u8]) -> Self {
        let (magic, data) = (magic::OPTION_REPLY, data.to_vec());
        Self { kind, data, magic, option: None, length: None }
    }

    /// Success.
    pub fn ack() -> Self {
        Self::new(Rep::ACK, &[])
    }

    /// With another magic than the right one.
    pub fn magic(mut self, magic: u64) -> Self {
        self.magic = magic;
        self
    }

    /// To another option than the one that came last.
    pub fn to(mut self, option: Opt) -> Self {
        self.option = Some(option);
        self
    }

    /// With another length than that of its data.
    pub fn length(mut self, length: u32) -> Self {
        self.length = Some(length);
        self
    }

    pub(super) fn encode(&self, option: Opt) -> Vec<u8> {
        let length = self.length.unwrap_or(self.data.len() as u32);
        let mut bytes = self.magic.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.option.unwrap_or(option).0.to_be_bytes());
        bytes.extend_from_slice(&self.kind.0.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.data);
        bytes
    }
}

/// Which request an answer names.
#[derive(Clone, Copy, Debug)]
enum Named {
    /// The one that came last.
    Last,
    /// The one that came so many-th, from 0.
    Nth(usize),
    /// None that came: the last one's cookie with all bits turned over.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Simple(Errno),
    /// A chunk as the connection agreed on.
    Chunk(ChunkType),
}

/// A reply to a request, or a chunk of one.
#[derive(Clone, Debug)]
pub struct Answer {
    form: Form,
    payload: Vec<u8>,
    named: Named,
    flags: u16,
    magic: Option<u32>,
    length: Option<u64>,
    offset: Option<u64>,
}

/// What an answer is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    pub(super) cookie: u64,
    pub(super) offset: u64,
}

impl Answer {
    fn new(form: Form, payload: Vec<u8>) -> Self {
        let (magic, length, offset) = (None, None, None);
        Self { form, payload, named: Named::Last, flags: 0, magic, length, offset }
    }

    /// A simple reply with data behind it.
    pub fn simple(error: Errno, data: &[u8]) -> Self {
        Self::new(Form::Simple(error), data.to_vec())
    }

    /// A chunk, structured or extended as was agreed, that is not the last one.
    pub fn chunk(kind: ChunkType, payload: impl Into<Vec<u8>>) -> Self {
        Self::new(Form::Chunk(kind), payload.into())
    }

    /// A chunk without content.
    pub fn none() -> Self {
        Self::chunk(ChunkType::NONE, [])
    }

    /// Data at an offset of the export.
    pub fn data(offset: u64, data: &[u8]) -> Self {
        Self::chunk(ChunkType::OFFSET_DATA, payload::data(offset, data))
    }

    /// A hole at an offset of the export.
    pub fn hole(offset: u64, length: u32) -> Self {
        Self::chunk(ChunkType::OFFSET_HOLE, payload::hole(offset, length))
    }

    /// An error without a place.
    pub fn error(error: Errno, text: &str) -> Self {
        Self::chunk(ChunkType::ERROR, payload::error(error, text.len() as u16, text.as_bytes()))
    }

    /// An error at an offset of the export.
    pub fn error_at(error: Errno, offset: u64) -> Self {
        let payload = [payload::error(error, 0, b""), offset.to_be_bytes().to_vec()].concat();
        Self::chunk(ChunkType::ERROR_OFFSET, payload)
    }

    /// Extents of 32 bits: lengths and states.
    pub fn status(context: u32, extents: &[(u32, u32)]) -> Self {
        Self::chunk(ChunkType::BLOCK_STATUS, payload::status(context, extents))
    }

    /// Extents of 64 bits.
    pub fn status_ext(context: u32, extents: &[(u64, u64)]) -> Self {
        let payload = payload::status_ext(context, extents.len() as u32, extents);
        Self::chunk(ChunkType::BLOCK_STATUS_EXT, payload)
    }

    /// As the last chunk.
    pub fn done(mut self) -> Self {
        self.flags |= REPLY_DONE;
        self
    }

    /// To the request that came so many-th, counted from 0, rather than to the last one.
    pub fn to(mut self, request: usize) -> Self {
        self.named = Named::Nth(request);
        self
    }

    /// With a cookie that no request has.
    pub fn to_nobody(mut self) -> Self {
        self.named = Named::Unknown;
        self
    }

    /// With more reply flags.
    pub fn flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    /// With another magic than the right one.
    pub fn magic(mut self, magic: u32) -> Self {
        self.magic = Some(magic);
        self
    }

    /// With another length than that of its payload.
    pub fn length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    /// An extended chunk with another offset than its request's.
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The bytes, as an answer to one of the requests so far.
    #[track_caller]
    pub(super) fn encode(&self, mode: Mode, requests: &[About]) -> Vec<u8> {
        let last = requests.last().expect("a request came before its answer");
        let about = match self.named {
            Named::Last | Named::Unknown => last,
            Named::Nth(at) => requests.get(at).expect("so many requests have come"),
        };
        let cookie = match self.named {
            Named::Unknown => !about.cookie,
            _ => about.cookie,
        };
        let length = self.length.unwrap_or(self.payload.len() as u64);
        let (magic, head) = match (self.form, mode) {
            (Form::Simple(error), _) => (magic::SIMPLE_REPLY, error.0.to_be_bytes()),
            (Form::Chunk(kind), _) => {
                let [a, b] = self.flags.to_be_bytes();
                let [c, d] = kind.0.to_be_bytes();
                let extended = mode == Mode::Extended;
                let magic = if extended { magic::EXTENDED_REPLY } else { magic::STRUCTURED_REPLY };
                (magic, [a, b, c, d])
            }
        };
        let mut bytes = self.magic.unwrap_or(magic).to_be_bytes().to_vec();
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&cookie.to_be_bytes());
        match (self.form, mode) {
            (Form::Simple(_), _) => {}
            (_, Mode::Extended) => {
                bytes.extend_from_slice(&self.offset.unwrap_or(about.offset).to_be_bytes());
                bytes.extend_from_slice(&length.to_be_bytes());
            }
            _ => {
                let length = u32::try_from(length).expect("a structured length has 32 bits");
                bytes.extend_from_slice(&length.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Payloads of chunks, for those that are wrong in themselves.
pub mod payload {
    use crate::raw::Errno;

    /// Of `OFFSET_DATA`.
    pub fn data(offset: u64, data: &[u8]) -> Vec<u8> {
        [&offset.to_be_bytes()[..], data].concat()
    }

    /// Of `OFFSET_HOLE`.
    pub fn hole(offset: u64, length: u32) -> Vec<u8> {
        [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
    }

    /// Of `ERROR`; `length` is what it says of its text.
    pub fn error(error: Errno, length: u16, text: &[u8]) -> Vec<u8> {
        [&error.0.to_be_bytes()[..], &length.to_be_bytes(), text].concat()
    }

    /// Of `BLOCK_STATUS`.
    pub fn status(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
        let mut bytes = context.to_be_bytes().to_vec();
        for (length, state) in extents {
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&state.to_be_bytes());
        }
        bytes
    }

    /// Of `BLOCK_STATUS_EXT`; `count` is what it says of its extents.
    pub fn status_ext(context: u32, count: u32, extents: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = [context.to_be_bytes(), count.to_be_bytes()].concat();
        for (length, state) in extents {
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&state.to_be_bytes());
        }
        bytes
    }
}
