//! A client, and the bytes that a server could send it.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

use nbd_proto::client::{Config, Connection, Event, OptionError, SubmitError};
use nbd_proto::wire::{
    ClientFlags, CommandType, CompactRequest, ErrorChunk, ErrorCode, ExportInfoReply,
    ExtendedReplyHeader, ExtendedRequest, HandshakeFlags, MetaContextReply, NewstyleGreeting,
    OptionCode, OptionHeader, OptionReplyHeader, OptionReplyType, ReplyFlags, ReplyType,
    SimpleReplyHeader, StructuredReplyHeader, TransmissionFlags,
};
use nbd_proto::{CloseReason, Command, Error, PauseReason, RequestId, Segment, Wants};

/// The size of the export of these tests.
pub(crate) const SIZE: u64 = 1 << 20;

pub(crate) type Seen = Vec<Event>;

/// A client with the buffers of its requests, and what has become of those that are over.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) buffers: HashMap<RequestId, Vec<u8>>,
    /// The buffer of the request that completed last.
    pub(crate) completed: Vec<u8>,
    /// Buffers of abandoned requests, and whether the requests were sent.
    pub(crate) abandoned: Vec<(Vec<u8>, bool)>,
    /// The end: no event follows it.
    pub(crate) closed: Option<Result<CloseReason, Error>>,
}

impl Client {
    pub(crate) fn new(config: Config) -> Result<Self, OptionError> {
        Ok(Self {
            connection: Connection::new(config)?,
            buffers: HashMap::new(),
            completed: Vec::new(),
            abandoned: Vec::new(),
            closed: None,
        })
    }

    /// Submits a request with its buffer.
    pub(crate) fn begin(
        &mut self,
        command: Command,
        buffer: Vec<u8>,
    ) -> Result<RequestId, SubmitError> {
        let id = self.connection.submit(command)?;
        assert!(self.buffers.insert(id, buffer).is_none(), "an id of its own");
        Ok(id)
    }
}

impl Deref for Client {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// Gives a client bytes, and all that it says to them, or the error that it closes with. Payload goes into its buffers.
pub(crate) fn feed(client: &mut Client, mut bytes: &[u8]) -> Result<Seen, Error> {
    let mut seen = Seen::new();
    for _ in 0..4 * bytes.len() + 1000 {
        let before = bytes.len();
        let Some(event) = client.next_event(&mut bytes) else {
            match client.wants() {
                Wants::Payload { id, command, offset, remaining, .. } if !bytes.is_empty() => {
                    assert_eq!(client.command(id), Some(command));
                    let count = bytes.len().min(remaining as usize);
                    let buffer = client.buffers.get_mut(&id).unwrap();
                    buffer[offset as usize..][..count].copy_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    client.payload_received(count as u64).unwrap();
                    continue;
                }
                Wants::Payload { remaining, .. } => assert!(remaining > 0),
                Wants::Bytes { at_least } => {
                    assert!(at_least > 0 && bytes.is_empty(), "{} bytes lie idle", bytes.len());
                }
                Wants::Nothing(PauseReason::EventDue) => panic!("what is due did not come"),
                Wants::Closed => assert!(client.closed.is_some()),
                _ => assert_eq!(bytes.len(), before),
            }
            return Ok(seen);
        };
        assert!(client.closed.is_none(), "{event:?} after the end");
        match event {
            Event::Abandoned { id, sent } => {
                let buffer = client.buffers.remove(&id).unwrap();
                client.abandoned.push((buffer, sent));
                continue;
            }
            Event::Closed(end) => {
                client.closed = Some(end);
                assert_eq!((client.requests_in_flight(), client.buffers.len()), (0, 0));
                assert!(client.is_closing() && client.segments().next().is_none());
                assert_eq!(client.wants(), Wants::Closed);
                end?;
            }
            Event::Completed { id, .. } => {
                client.completed = client.buffers.remove(&id).unwrap();
                assert_eq!(client.command(id), None);
            }
            _ => {}
        }
        seen.push(event);
    }
    panic!("no end of it: {:?}", client.wants());
}

/// Ends the stream, and gives all that the client says to that.
pub(crate) fn hang_up(client: &mut Client) -> Result<Seen, Error> {
    client.end_of_stream();
    feed(client, b"")
}

/// What a client wants to send; bodies come from its buffers. It counts as sent.
pub(crate) fn sent(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in client.segments() {
        match segment {
            Segment::Control(control) => bytes.extend_from_slice(control),
            Segment::Body { id, offset, length } => {
                bytes.extend_from_slice(&client.buffers[&id][offset as usize..][..length]);
            }
        }
    }
    if client.closed.is_none() {
        let _ = client.transmitted(bytes.len()).unwrap();
    }
    bytes
}

/// The command with a flag, if `set`.
pub(crate) fn with(command: Command, flag: fn(Command) -> Command, set: bool) -> Command {
    if set { flag(command) } else { command }
}

pub(crate) fn greeting(flags: u16) -> Vec<u8> {
    NewstyleGreeting { flags: HandshakeFlags::from_bits_retain(flags) }.encode().to_vec()
}

pub(crate) fn option_reply(code: OptionCode, reply: OptionReplyType, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [&OptionReplyHeader { code, reply, length }.encode()[..], data].concat()
}

pub(crate) fn ack(code: OptionCode) -> Vec<u8> {
    option_reply(code, OptionReplyType::ACK, &[])
}

pub(crate) fn info(flags: TransmissionFlags) -> Vec<u8> {
    let export = ExportInfoReply { size: SIZE, flags };
    option_reply(OptionCode::GO, OptionReplyType::INFO, &export.encode())
}

pub(crate) fn context_reply(code: OptionCode, id: u32, name: &str) -> Vec<u8> {
    let mut data = Vec::new();
    MetaContextReply { id, name }.encode(&mut data);
    option_reply(code, OptionReplyType::META_CONTEXT, &data)
}

/// The options in what a client sent, and the rest.
pub(crate) fn options(mut bytes: &[u8]) -> Vec<(OptionCode, Vec<u8>)> {
    let mut options = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk() {
        let header = OptionHeader::decode(header).unwrap();
        let (data, rest) = rest.split_at(header.length as usize);
        options.push((header.code, data.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    options
}

/// Gives the greeting, checks the answer to it, and gives the options that follow.
pub(crate) fn greet(
    client: &mut Client,
    offered: u16,
    flags: ClientFlags,
) -> Vec<(OptionCode, Vec<u8>)> {
    assert_eq!(sent(client), [], "a client waits for the greeting");
    feed(client, &greeting(offered)).unwrap();
    let bytes = sent(client);
    assert_eq!(bytes[..4], flags.bits().to_be_bytes());
    options(&bytes[4..])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Structured,
    Extended,
}

use Mode::{Extended, Simple, Structured};

/// The configuration of a client that will take part in this mode, selecting two contexts where there are any.
pub(crate) fn config(mode: Mode) -> Config {
    let mut config = Config::for_export("disk");
    config.extended_headers = mode == Extended;
    config.structured_replies = mode == Structured;
    if mode != Simple {
        config.contexts = vec!["base:allocation".into(), "x-a:b".into()];
    }
    config
}

/// A client in transmission, whose contexts have the numbers 5 and 9.
pub(crate) fn transmitting_with(mode: Mode, config: Config) -> Client {
    let flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
    let mut client = Client::new(config).unwrap();
    feed(&mut client, &greeting(3)).unwrap();
    let headers = match mode {
        Simple => None,
        Structured => Some(OptionCode::STRUCTURED_REPLY),
        Extended => Some(OptionCode::EXTENDED_HEADERS),
    };
    if let Some(code) = headers {
        feed(&mut client, &ack(code)).unwrap();
        let code = OptionCode::SET_META_CONTEXT;
        feed(&mut client, &context_reply(code, 5, "base:allocation")).unwrap();
        feed(&mut client, &context_reply(code, 9, "x-a:b")).unwrap();
        feed(&mut client, &ack(code)).unwrap();
    }
    feed(&mut client, &info(flags)).unwrap();
    assert_eq!(feed(&mut client, &ack(OptionCode::GO)), Ok(vec![Event::Ready]));
    sent(&mut client);
    client
}

pub(crate) fn transmitting(mode: Mode) -> Client {
    transmitting_with(mode, config(mode))
}

/// Submits a command and sends it. Gives its name and its cookie.
pub(crate) fn request(client: &mut Client, command: Command) -> (RequestId, u64) {
    let buffer = vec![0xee; command.buffer_length() as usize];
    let id = client.begin(command, buffer).unwrap();
    let bytes = sent(client);
    let request = match client.export().unwrap().extended {
        true => ExtendedRequest::decode(bytes.first_chunk().unwrap()).unwrap(),
        false => CompactRequest::decode(bytes.first_chunk().unwrap()).unwrap().into(),
    };
    assert_eq!(request.command, command.command_type());
    assert_eq!((request.offset, request.length), (command.offset(), command.length()));
    let payload = if request.command == CommandType::WRITE { request.length as usize } else { 0 };
    assert_eq!(bytes.len() - payload, if client.export().unwrap().extended { 32 } else { 28 });
    (id, request.cookie)
}

pub(crate) fn simple(error: ErrorCode, cookie: u64) -> Vec<u8> {
    SimpleReplyHeader { error, cookie }.encode().to_vec()
}

/// A chunk as a server in this mode would send it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    pub(crate) mode: Mode,
    pub(crate) cookie: u64,
    /// The request's offset.
    pub(crate) offset: u64,
}

impl Chunks {
    pub(crate) fn header(&self, reply: ReplyType, flags: u16, length: u64) -> Vec<u8> {
        let &Self { mode, cookie, offset } = self;
        let flags = ReplyFlags::from_bits_retain(flags);
        match mode {
            Extended => {
                ExtendedReplyHeader { flags, reply, cookie, offset, length }.encode().to_vec()
            }
            _ => {
                let length = length as u32;
                StructuredReplyHeader { flags, reply, cookie, length }.encode().to_vec()
            }
        }
    }

    pub(crate) fn chunk(&self, reply: ReplyType, flags: u16, payload: &[u8]) -> Vec<u8> {
        [&self.header(reply, flags, payload.len() as u64)[..], payload].concat()
    }

    pub(crate) fn data(&self, flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
        self.chunk(ReplyType::OFFSET_DATA, flags, &[&offset.to_be_bytes()[..], data].concat())
    }

    pub(crate) fn hole(&self, flags: u16, offset: u64, length: u32) -> Vec<u8> {
        let payload = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
        self.chunk(ReplyType::OFFSET_HOLE, flags, &payload)
    }

    pub(crate) fn none(&self) -> Vec<u8> {
        self.chunk(ReplyType::NONE, 1, &[])
    }

    pub(crate) fn error(&self, flags: u16, error: u32, text: &str, offset: Option<u64>) -> Vec<u8> {
        let mut payload = Vec::new();
        let (error, message) = (ErrorCode(error), text.as_bytes());
        ErrorChunk { error, message, offset }.encode(&mut payload);
        let reply = if offset.is_some() { ReplyType::ERROR_OFFSET } else { ReplyType::ERROR };
        self.chunk(reply, flags, &payload)
    }
}
