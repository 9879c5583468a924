//! A server, and the bytes that a client could send it.

use core::ops::{Deref, DerefMut};

use nbd_pair::disk::Disk;
use nbd_pair::server::{ServerEnd, server_end};
use nbd_pair::split::Split;
use nbd_proto::server::{Config, Connection, Event, TlsMode};
use nbd_proto::wire::{
    CommandFlags, CommandType, CompactRequest, ErrorCode, ExtendedReplyHeader, ExtendedRequest,
    InfoRequest, InfoType, MetaContextRequest, OptionCode, OptionHeader, OptionReplyHeader,
    OptionReplyType, ReplyFlags, ReplyType, SimpleReplyHeader, StructuredReplyHeader,
    TransmissionFlags,
};
use nbd_proto::{ContextInfo, Error, ExportInfo, OrderlyEnd, RequestId, Wants};

/// The size of the exports of these tests.
pub(crate) const SIZE: u64 = 1 << 20;

/// What a server says to an option: kinds of replies, with their data.
pub(crate) type Told = Vec<(OptionReplyType, Vec<u8>)>;

/// A server that is driven by hand.
pub(crate) struct Served(ServerEnd<Disk>);

impl Deref for Served {
    type Target = ServerEnd<Disk>;

    fn deref(&self) -> &ServerEnd<Disk> {
        &self.0
    }
}

impl DerefMut for Served {
    fn deref_mut(&mut self) -> &mut ServerEnd<Disk> {
        &mut self.0
    }
}

pub(crate) fn export() -> ExportInfo {
    let mut info = ExportInfo::new(SIZE);
    info.flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
    info.description = Some("a disk".into());
    info.contexts = vec![
        ContextInfo::base_allocation(),
        ContextInfo::new("x-a:b").unwrap(),
        ContextInfo::new("x-a:wide").unwrap().wide(),
    ];
    info
}

/// Without configuration: a server that was greeted, and what it made of the client's flags.
pub(crate) fn greeted(config: Config, flags: u32) -> Result<Served, Error> {
    let disk = Disk::new(Vec::new(), &export());
    let mut served = Served(server_end(Connection::new(config), disk, Split::Whole));
    served.handshakes = false;
    assert_eq!(served.said().len(), 18, "a greeting");
    served.hear(&flags.to_be_bytes())?;
    Ok(served)
}

/// A server that negotiates with a client which knows everything.
pub(crate) fn negotiating(config: Config) -> Served {
    greeted(config, 3).unwrap()
}

/// The default configuration, changed.
pub(crate) fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

pub(crate) fn with_tls(tls: TlsMode) -> Config {
    config(|config| config.tls = tls)
}

impl Served {
    /// Gives the server bytes. Questions are answered at once, events are kept.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let ended = self.ended();
        self.0.hear(bytes);
        self.error().filter(|_| !ended).map_or(Ok(()), Err)
    }

    /// Whether bytes are left alone by a server that has paused, even if they are given to it.
    pub(crate) fn leaves_alone(&mut self, bytes: &[u8]) -> bool {
        let mut input = bytes;
        self.connection.next_event(&mut input).is_none() && input == bytes
    }

    /// Has the last event raised, once what is queued has been sent.
    pub(crate) fn close(&mut self) -> Result<OrderlyEnd, Error> {
        if self.closed.is_none() {
            self.said();
            let _error = self.hear(&[]);
        }
        assert_eq!(self.connection.wants(), Wants::Closed);
        self.closed.unwrap()
    }

    /// All that the server wants to send.
    pub(crate) fn said(&mut self) -> Vec<u8> {
        self.take_output()
    }

    /// Sends an option, and takes the replies to it apart.
    pub(crate) fn try_option(&mut self, code: OptionCode, data: &[u8]) -> Result<Told, Error> {
        self.hear(&option(code, data))?;
        let said = self.said();
        let (mut bytes, mut told) = (&said[..], Told::new());
        while let Some((header, rest)) = bytes.split_first_chunk() {
            let header = OptionReplyHeader::decode(header).unwrap();
            assert_eq!(header.code, code);
            let (data, rest) = rest.split_at(header.length as usize);
            told.push((header.reply, data.to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        Ok(told)
    }

    pub(crate) fn option(&mut self, code: OptionCode, data: &[u8]) -> Told {
        self.try_option(code, data).unwrap()
    }

    /// The kinds of the replies to an option.
    pub(crate) fn kinds(&mut self, code: OptionCode, data: &[u8]) -> Vec<OptionReplyType> {
        self.option(code, data).into_iter().map(|(reply, _)| reply).collect()
    }

    /// Negotiates what has no data.
    pub(crate) fn agree(&mut self, code: OptionCode) {
        assert_eq!(self.option(code, &[]), [(OptionReplyType::ACK, vec![])]);
    }

    /// The contexts that a server tells in reply to queries, by number and name.
    pub(crate) fn contexts(
        &mut self,
        code: OptionCode,
        name: &str,
        queries: &[&str],
    ) -> Vec<(u32, String)> {
        let mut told = self.option(code, &meta(name, queries));
        assert_eq!(told.pop(), Some((OptionReplyType::ACK, vec![])));
        let context = |(reply, data): (OptionReplyType, Vec<u8>)| {
            assert_eq!(reply, OptionReplyType::META_CONTEXT);
            let (id, name) = data.split_first_chunk().unwrap();
            (u32::from_be_bytes(*id), String::from_utf8(name.to_vec()).unwrap())
        };
        told.into_iter().map(context).collect()
    }

    /// Enters an export by GO.
    pub(crate) fn enter(&mut self, name: &str) {
        let kinds = self.kinds(OptionCode::GO, &go(name, &[]));
        assert_eq!(kinds, [OptionReplyType::INFO, OptionReplyType::ACK]);
        assert!(self.connection.is_transmitting());
    }

    /// The flags that INFO or GO reports, with the size that is expected.
    pub(crate) fn flags(&mut self, code: OptionCode, name: &str) -> TransmissionFlags {
        let told = self.option(code, &go(name, &[]));
        let (_, data) = &told[0];
        assert_eq!(data[..10], [&[0; 2], &SIZE.to_be_bytes()[..]].concat());
        TransmissionFlags::from_bits_retain(u16::from_be_bytes([data[10], data[11]]))
    }

    /// The name of the last request that reached the embedder, and what it was.
    pub(crate) fn request(&mut self) -> (RequestId, nbd_proto::Command) {
        match self.embedder.seen.pop() {
            Some(Event::Request { id, command }) => (id, command),
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request, and takes the replies that are queued then apart.
    pub(crate) fn ask(&mut self, request: &ExtendedRequest, payload: &[u8]) -> Vec<Chunk> {
        self.hear(&[&self.encode(request)[..], payload].concat()).unwrap();
        self.chunks()
    }

    pub(crate) fn encode(&self, request: &ExtendedRequest) -> Vec<u8> {
        let &ExtendedRequest { flags, command, cookie, offset, length } = request;
        match self.connection.export().unwrap().extended {
            true => request.encode().to_vec(),
            false => {
                let length = length as u32;
                CompactRequest { flags, command, cookie, offset, length }.encode().to_vec()
            }
        }
    }

    /// What the server says, as chunks. A simple reply is one without a kind; its content is what follows it.
    pub(crate) fn chunks(&mut self) -> Vec<Chunk> {
        let extended = self.connection.export().unwrap().extended;
        let said = self.said();
        let (mut bytes, mut chunks) = (&said[..], Vec::new());
        while !bytes.is_empty() {
            let (kind, done, length, rest) = if extended {
                let (header, rest) = bytes.split_first_chunk().unwrap();
                let header = ExtendedReplyHeader::decode(header).unwrap();
                (header.reply, header.flags, header.length as usize, rest)
            } else if let Ok(header) = SimpleReplyHeader::decode(bytes.first_chunk().unwrap()) {
                chunks.push(Chunk::Simple(header.error, bytes[16..].to_vec()));
                break;
            } else {
                let (header, rest) = bytes.split_first_chunk().unwrap();
                let header = StructuredReplyHeader::decode(header).unwrap();
                (header.reply, header.flags, header.length as usize, rest)
            };
            let (payload, rest) = rest.split_at(length);
            let done = done == ReplyFlags::DONE;
            chunks.push(Chunk::Chunk(kind, done, payload.to_vec()));
            bytes = rest;
        }
        chunks
    }
}

/// A reply, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Simple(ErrorCode, Vec<u8>),
    Chunk(ReplyType, bool, Vec<u8>),
}

impl Chunk {
    /// The error that a reply of one piece tells.
    pub(crate) fn error(&self) -> ErrorCode {
        match self {
            Self::Simple(error, _) => *error,
            Self::Chunk(ReplyType::ERROR, true, payload) => {
                ErrorCode(u32::from_be_bytes(*payload.first_chunk().unwrap()))
            }
            Self::Chunk(ReplyType::NONE, true, _) => ErrorCode::OK,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn option(code: OptionCode, data: &[u8]) -> Vec<u8> {
    [&OptionHeader { code, length: data.len() as u32 }.encode()[..], data].concat()
}

/// The data of INFO and GO.
pub(crate) fn go(name: &str, items: &[InfoType]) -> Vec<u8> {
    let mut data = Vec::new();
    InfoRequest::encode(name, items, &mut data);
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    MetaContextRequest::encode(name, queries.iter().copied(), &mut data);
    data
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Structured,
    Extended,
}

pub(crate) const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

/// A server in transmission, with all contexts that there can be.
pub(crate) fn transmitting_with(mode: Mode, config: Config, info: ExportInfo) -> Served {
    let mut served = negotiating(config);
    served.embedder.exports[1].1 = info;
    match mode {
        Mode::Simple => {}
        Mode::Structured => served.agree(OptionCode::STRUCTURED_REPLY),
        Mode::Extended => served.agree(OptionCode::EXTENDED_HEADERS),
    }
    if mode != Mode::Simple {
        let names: Vec<_> =
            served.embedder.exports[1].1.contexts.iter().map(|c| c.name().into()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        served.contexts(OptionCode::SET_META_CONTEXT, "disk", &names);
    }
    served.enter("disk");
    served.embedder.seen.clear();
    served
}

pub(crate) fn transmitting(mode: Mode) -> Served {
    transmitting_with(mode, Config::default(), export())
}

pub(crate) fn request(
    command: CommandType,
    flags: CommandFlags,
    offset: u64,
    length: u64,
) -> ExtendedRequest {
    ExtendedRequest { flags, command, cookie: 7, offset, length }
}

/// A request without flags.
pub(crate) fn plain(command: CommandType, offset: u64, length: u64) -> ExtendedRequest {
    request(command, CommandFlags::empty(), offset, length)
}
