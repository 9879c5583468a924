//! A server, and the bytes that a client could send it.

use nbd_proto::server::{Config, Connection, Event, Listing, LookupRefusal, TlsMode};
use nbd_proto::wire::{
    CommandFlags, CommandType, CompactRequest, ErrorCode, ExtendedReplyHeader, ExtendedRequest,
    InfoRequest, InfoType, MetaContextRequest, OptionCode, OptionHeader, OptionReplyHeader,
    OptionReplyType, ReplyFlags, ReplyType, SimpleReplyHeader, StructuredReplyHeader,
    TransmissionFlags,
};
use nbd_proto::{
    CloseReason, ContextInfo, Error, ExportInfo, PauseReason, RequestId, Segment, Wants,
};

/// The size of the exports of these tests.
pub(crate) const SIZE: u64 = 1 << 20;

/// What a server says to an option: kinds of replies, with their data.
pub(crate) type Told = Vec<(OptionReplyType, Vec<u8>)>;

/// A server, the exports that it knows, and what its embedder saw.
pub(crate) struct Served {
    pub(crate) connection: Connection,
    pub(crate) exports: Vec<(&'static str, ExportInfo)>,
    pub(crate) seen: Vec<Event>,
    /// Requests that came back.
    pub(crate) finished: Vec<RequestId>,
    pub(crate) closed: Option<Result<CloseReason, Error>>,
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
    let exports = vec![("", export()), ("disk", export())];
    let connection = Connection::new(config);
    let (seen, finished, closed) = (Vec::new(), Vec::new(), None);
    let mut served = Served { connection, exports, seen, finished, closed };
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
    /// Gives the server bytes. Questions are answered at once, payload is dropped, events are kept.
    pub(crate) fn hear(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        loop {
            while let Some(event) = self.connection.next_event(&mut bytes) {
                assert_eq!(self.closed, None, "{event:?} after the last event");
                if let Event::Closed(result) = event {
                    self.closed = Some(result);
                    result?;
                }
                self.answer(&event);
                self.seen.push(event);
            }
            match self.connection.wants() {
                Wants::Payload { remaining, .. } if !bytes.is_empty() => {
                    let count = bytes.len().min(remaining as usize);
                    bytes = &bytes[count..];
                    self.connection.payload_received(count as u64).unwrap();
                }
                Wants::Bytes { at_least: 0 } => panic!("it wants nothing"),
                Wants::Bytes { .. } | Wants::Payload { .. } => {
                    assert!(bytes.is_empty(), "what it wants is there");
                    return Ok(());
                }
                wants => {
                    assert_ne!(wants, Wants::Nothing(PauseReason::EventDue));
                    return Ok(());
                }
            }
        }
    }

    /// Whether bytes are left alone by a server that has paused, even if they are given to it.
    pub(crate) fn leaves_alone(&mut self, bytes: &[u8]) -> bool {
        let mut input = bytes;
        self.connection.next_event(&mut input).is_none() && input == bytes
    }

    /// Has the last event raised, once what is queued has been sent.
    pub(crate) fn close(&mut self) -> Result<CloseReason, Error> {
        if self.closed.is_none() {
            self.said();
            let _error = self.hear(&[]);
        }
        assert_eq!(self.connection.wants(), Wants::Closed);
        self.closed.unwrap()
    }

    fn answer(&mut self, event: &Event) {
        match event {
            Event::List => {
                let list = self.exports.iter().map(|(name, info)| Listing {
                    name,
                    description: info.description.as_deref().unwrap_or_default(),
                });
                self.connection.answer_list(list).unwrap();
            }
            Event::Lookup(lookup) => {
                let found = self.exports.iter().find(|(name, _)| *name == lookup.name);
                let answer = found.map(|(_, info)| info).ok_or(LookupRefusal::Unknown);
                self.connection.answer_lookup(answer).unwrap();
            }
            _ => {}
        }
    }

    /// All that the server wants to send. Bodies are made of 0xbb.
    pub(crate) fn said(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in self.connection.segments() {
            match segment {
                Segment::Control(control) => bytes.extend_from_slice(control),
                Segment::Body { length, .. } => bytes.resize(bytes.len() + length, 0xbb),
            }
        }
        if self.closed.is_none() {
            self.finished.extend(self.connection.transmitted(bytes.len()).unwrap());
        }
        bytes
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
        match self.seen.pop() {
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
    served.exports[1].1 = info;
    match mode {
        Mode::Simple => {}
        Mode::Structured => served.agree(OptionCode::STRUCTURED_REPLY),
        Mode::Extended => served.agree(OptionCode::EXTENDED_HEADERS),
    }
    if mode != Mode::Simple {
        let names: Vec<_> = served.exports[1].1.contexts.iter().map(|c| c.name().into()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        served.contexts(OptionCode::SET_META_CONTEXT, "disk", &names);
    }
    served.enter("disk");
    served.seen.clear();
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
