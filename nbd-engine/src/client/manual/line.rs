//! One connection to a server in memory, which negotiates by itself, and answers requests as it is told.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll, Waker};

use nbd_testkit::raw::{ChunkType, Cmd, Errno, Info, Opt, REPLY_DONE, Rep, flag, handshake, magic};

/// What a server says of its export.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Said {
    pub(in super::super) size: u64,
    pub(in super::super) flags: u16,
    pub(in super::super) name: Option<&'static str>,
    pub(in super::super) description: Option<&'static str>,
    /// The smallest block, the preferred one, and the longest payload.
    pub(in super::super) blocks: Option<[u32; 3]>,
    pub(in super::super) structured: bool,
    /// The metadata contexts that it has of those that are asked for.
    pub(in super::super) contexts: Vec<&'static str>,
    /// The number of the first of them.
    pub(in super::super) first_context: u32,
    /// Whether it refuses to select any.
    pub(in super::super) refuses_contexts: bool,
    /// Whether it lets nobody into the export.
    pub(in super::super) refuses_entering: bool,
}

impl Default for Said {
    fn default() -> Self {
        let flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::CAN_MULTI_CONN;
        Self {
            size: 1 << 20,
            flags,
            name: None,
            description: None,
            blocks: None,
            structured: true,
            contexts: Vec::new(),
            first_context: 1,
            refuses_contexts: false,
            refuses_entering: false,
        }
    }
}

/// A request that has arrived whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Received {
    pub(in super::super) flags: u16,
    pub(in super::super) kind: Cmd,
    pub(in super::super) cookie: u64,
    pub(in super::super) offset: u64,
    pub(in super::super) length: u32,
    pub(in super::super) data: Vec<u8>,
}

pub(in super::super) struct Line {
    said: Said,
    structured: bool,
    phase: Phase,
    to_client: VecDeque<u8>,
    to_server: Vec<u8>,
    /// How many bytes more the stream takes from the client; as many as there are if `None`.
    pub(in super::super) room: Option<usize>,
    /// Whether the stream has last bytes to send, for which there is no room, before it is closed.
    pub(in super::super) holds_back: bool,
    /// Whether all of it was sent before the client hung up.
    pub(in super::super) is_closed: bool,
    /// The server has ended the connection.
    ended: bool,
    /// The client has.
    is_hung_up: bool,
    requests: VecDeque<Received>,
    /// Whoever waits for what the server sends.
    reader: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Flags,
    Options,
    Transmission,
}

impl Line {
    pub(super) fn new(said: Said) -> Self {
        let mut line = Self {
            said,
            structured: false,
            phase: Phase::Flags,
            to_client: VecDeque::new(),
            to_server: Vec::new(),
            room: None,
            holds_back: false,
            is_closed: false,
            ended: false,
            is_hung_up: false,
            requests: VecDeque::new(),
            reader: None,
        };
        line.send(&magic::INIT.to_be_bytes());
        line.send(&magic::IHAVEOPT.to_be_bytes());
        let flags = (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) as u16;
        line.send(&flags.to_be_bytes());
        line
    }

    fn send(&mut self, bytes: &[u8]) {
        self.to_client.extend(bytes);
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    pub(super) fn read(&mut self, buffer: &mut [u8], cx: &Context<'_>) -> Poll<usize> {
        let length = buffer.len().min(self.to_client.len());
        if length == 0 && !self.ended {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        for (byte, sent) in buffer.iter_mut().zip(self.to_client.drain(..length)) {
            *byte = sent;
        }
        Poll::Ready(length)
    }

    pub(super) fn write(&mut self, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = data.len().min(self.room.unwrap_or(usize::MAX));
        if length == 0 {
            return Poll::Pending;
        }
        if let Some(room) = &mut self.room {
            *room -= length;
        }
        self.to_server.extend(&data[..length]);
        while self.step() {}
        Poll::Ready(Ok(length))
    }

    pub(super) fn hang_up(&mut self) {
        self.is_hung_up = true;
    }

    /// Whether the client has closed the connection.
    pub(in super::super) fn is_hung_up(&self) -> bool {
        self.is_hung_up
    }

    /// The server dies.
    pub(in super::super) fn cut(&mut self) {
        self.ended = true;
        self.to_client.clear();
    }

    /// The server closes the connection after all that it has sent.
    pub(in super::super) fn end(&mut self) {
        self.ended = true;
    }

    /// Changes what the server says from now on, on this line.
    pub(in super::super) fn say(&mut self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said);
    }

    /// The requests that have arrived since this was asked before. One of [`Cmd::DISC`] is the last.
    pub(in super::super) fn received(&mut self) -> Vec<Received> {
        self.requests.drain(..).collect()
    }

    /// The only request that has arrived.
    #[track_caller]
    pub(in super::super) fn only(&mut self) -> Received {
        let mut received = self.received();
        assert_eq!(received.len(), 1, "{received:?}");
        received.remove(0)
    }

    /// Answers a request: a read by zeroes, unless it fails.
    pub(in super::super) fn answer(&mut self, request: &Received, error: Option<Errno>) {
        let data = match (request.kind, error) {
            (Cmd::READ, None) => vec![0; request.length as usize],
            _ => Vec::new(),
        };
        if self.structured && request.kind == Cmd::READ {
            return match error {
                None => self.chunk(request, ChunkType::OFFSET_DATA, true, |chunk| {
                    chunk.extend(request.offset.to_be_bytes());
                    chunk.extend(data);
                }),
                Some(error) => self.chunk(request, ChunkType::ERROR, true, |chunk| {
                    chunk.extend(error.0.to_be_bytes());
                    chunk.extend(0u16.to_be_bytes());
                }),
            };
        }
        self.send(&magic::SIMPLE_REPLY.to_be_bytes());
        self.send(&error.map_or(0, |error| error.0).to_be_bytes());
        self.send(&request.cookie.to_be_bytes());
        self.send(&data);
    }

    /// Begins to answer.
    pub(in super::super) fn begin_to_answer(&mut self) {
        self.send(&magic::SIMPLE_REPLY.to_be_bytes());
    }

    /// Answers all requests that have arrived. Gives how many there were, without a disconnect.
    pub(in super::super) fn answer_all(&mut self) -> usize {
        let mut received = self.received();
        received.retain(|request| request.kind != Cmd::DISC);
        received.iter().for_each(|request| self.answer(request, None));
        received.len()
    }

    /// One chunk of a reply, whose payload is written by `payload`.
    pub(in super::super) fn chunk(
        &mut self,
        request: &Received,
        kind: ChunkType,
        is_last: bool,
        payload: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut data = Vec::new();
        payload(&mut data);
        self.send(&magic::STRUCTURED_REPLY.to_be_bytes());
        self.send(&if is_last { REPLY_DONE } else { 0 }.to_be_bytes());
        self.send(&kind.0.to_be_bytes());
        self.send(&request.cookie.to_be_bytes());
        self.send(&(data.len() as u32).to_be_bytes());
        self.send(&data);
    }

    /// Takes out what is there in full. Gives whether that was anything.
    fn step(&mut self) -> bool {
        match self.phase {
            Phase::Flags => {
                if self.to_server.len() < 4 {
                    return false;
                }
                self.to_server.drain(..4);
                self.phase = Phase::Options;
            }
            Phase::Options => {
                let Some(length) = self.number::<4>(12) else { return false };
                let end = 16 + length as usize;
                if self.to_server.len() < end {
                    return false;
                }
                let option = Opt(self.number::<4>(8).unwrap() as u32);
                let data = self.to_server.drain(..end).skip(16).collect::<Vec<u8>>();
                self.option(option, &data);
            }
            Phase::Transmission => {
                let Some(length) = self.number::<4>(24) else { return false };
                let [flags, kind] = [4, 6].map(|at| self.number::<2>(at).unwrap() as u16);
                let kind = Cmd(kind);
                let end = if kind == Cmd::WRITE { 28 + length as usize } else { 28 };
                if self.to_server.len() < end {
                    return false;
                }
                let [cookie, offset] = [8, 16].map(|at| self.number::<8>(at).unwrap());
                let data = self.to_server.drain(..end).skip(28).collect();
                let length = length as u32;
                self.requests.push_back(Received { flags, kind, cookie, offset, length, data });
            }
        }
        true
    }

    /// A number of so many bytes, at an offset of what has arrived.
    fn number<const BYTES: usize>(&self, offset: usize) -> Option<u64> {
        let bytes = self.to_server.get(offset..offset + BYTES)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn option(&mut self, option: Opt, data: &[u8]) {
        match option {
            Opt::STRUCTURED_REPLY if self.said.structured => {
                self.structured = true;
                self.reply(option, Rep::ACK, &[]);
            }
            Opt::SET_META_CONTEXT if self.said.refuses_contexts => {
                self.reply(option, Rep::ERR_UNKNOWN, b"not yet");
            }
            Opt::SET_META_CONTEXT => {
                let wanted = String::from_utf8_lossy(data).into_owned();
                let contexts = self.said.contexts.clone();
                let known = contexts.iter().filter(|context| wanted.contains(**context));
                for (number, context) in (self.said.first_context..).zip(known) {
                    let data = [&number.to_be_bytes()[..], context.as_bytes()].concat();
                    self.reply(option, Rep::META_CONTEXT, &data);
                }
                self.reply(option, Rep::ACK, &[]);
            }
            Opt::GO if self.said.refuses_entering => {
                self.reply(option, Rep::ERR_UNKNOWN, b"not yet");
            }
            Opt::GO => {
                let Said { size, flags, name, description, blocks, .. } = self.said.clone();
                let export = [&size.to_be_bytes()[..], &flags.to_be_bytes()].concat();
                self.info(Info::EXPORT, &export);
                if let Some(name) = name {
                    self.info(Info::NAME, name.as_bytes());
                }
                if let Some(description) = description {
                    self.info(Info::DESCRIPTION, description.as_bytes());
                }
                if let Some(blocks) = blocks {
                    self.info(Info::BLOCK_SIZE, &blocks.map(u32::to_be_bytes).concat());
                }
                self.reply(option, Rep::ACK, &[]);
                self.phase = Phase::Transmission;
            }
            _ => self.reply(option, Rep::ERR_UNSUP, &[]),
        }
    }

    fn info(&mut self, info: Info, data: &[u8]) {
        self.reply(Opt::GO, Rep::INFO, &[&info.0.to_be_bytes()[..], data].concat());
    }

    fn reply(&mut self, option: Opt, kind: Rep, data: &[u8]) {
        self.send(&magic::OPTION_REPLY.to_be_bytes());
        self.send(&option.0.to_be_bytes());
        self.send(&kind.0.to_be_bytes());
        self.send(&(data.len() as u32).to_be_bytes());
        self.send(data);
    }
}
