//! The client's loop of the documentation, exactly as it stands there, against servers that hang up, stall or fail after
//! every byte, and against servers that refuse in every state. A loop that spins fails here by the number of its calls.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    let_underscore_drop
)]

use std::cell::Cell;
use std::error::Error;
use std::io::{self, Read, Write};

use nbd_proto::client::{Config, Event, OptionError, SubmitError};
use nbd_proto::wire::{
    ErrorChunk, ErrorCode, ExportInfoReply, ExtendedReplyHeader, HandshakeFlags, NewstyleGreeting,
    OldstyleGreeting, OptionCode as Opt, OptionHeader, OptionReplyHeader, OptionReplyType as Rep,
    ReplyFlags, ReplyType, SimpleReplyHeader, StructuredReplyHeader, TransmissionFlags,
};
use nbd_proto::{
    Command, Finished, Input, Misuse, RecvBuffer, RequestId, Segment, Segments, Wants, client,
};

include!("../doc/client_loop.rs");

/// What the loop takes for the connection: it counts the calls.
struct Connection {
    inner: client::Connection,
    calls: Cell<usize>,
}

/// More calls than any session here needs: its longest has some 600 bytes, one at a time in each direction.
const MAX_CALLS: usize = 10_000;

impl Connection {
    fn new(config: Config) -> Result<Self, OptionError> {
        Ok(Self { inner: client::Connection::new(config)?, calls: Cell::new(0) })
    }

    fn count(&self) {
        let calls = self.calls.get() + 1;
        assert!(
            calls < MAX_CALLS,
            "the loop spins, and the connection wants {:?}",
            self.inner.wants()
        );
        self.calls.set(calls);
    }

    fn next_event(&mut self, input: &mut impl Input) -> Option<Event> {
        self.count();
        self.inner.next_event(input)
    }

    fn segments(&self) -> Segments<'_> {
        self.count();
        self.inner.segments()
    }

    fn transmitted(&mut self, count: usize) -> Result<Finished<'_>, Misuse> {
        self.count();
        self.inner.transmitted(count)
    }

    fn wants(&self) -> Wants {
        self.count();
        self.inner.wants()
    }

    fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
        self.count();
        self.inner.payload_received(count)
    }

    fn end_of_stream(&mut self) {
        self.count();
        self.inner.end_of_stream();
    }

    fn submit(&mut self, command: Command) -> Result<RequestId, SubmitError> {
        self.count();
        self.inner.submit(command)
    }

    fn disconnect(&mut self) {
        self.count();
        self.inner.disconnect();
    }
}

const LENGTH: u64 = 40;

fn content() -> Vec<u8> {
    (1..=LENGTH as u8).collect()
}

/// How a server answers the read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Whole,
    /// In two pieces of data with a hole between them, or whole where there are no chunks.
    Pieces,
    /// An error, and then all the data, which is to be dropped.
    ErrorFirst,
    /// A reply to a request that was not made.
    WrongCookie,
}

/// What a server is like.
#[derive(Clone, Copy, Debug)]
struct Manners {
    greeting: Greeting,
    /// The best headers that it knows.
    headers: Opt,
    refuse: Option<(Opt, Rep)>,
    size: u64,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeting {
    Fixed,
    /// Only EXPORT_NAME.
    Plain,
    Oldstyle,
    Other,
}

/// What happens instead of the byte after the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    HangUp,
    /// The transport's deadline strikes.
    Stall,
    Reset,
}

/// A server that reacts to what the client sends.
struct Server {
    manners: Manners,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    sent: usize,
    received: usize,
    flags_seen: bool,
    transmitting: bool,
    structured: bool,
    extended: bool,
    /// Bytes to send and to receive, and what happens then.
    cut: (usize, usize),
    ending: Ending,
    /// The most bytes that go at once.
    step: usize,
}

impl Server {
    fn new(manners: Manners, cut: (usize, usize), ending: Ending, step: usize) -> Self {
        let outbox = match manners.greeting {
            Greeting::Fixed => {
                NewstyleGreeting { flags: HandshakeFlags::from_bits_retain(3) }.encode().to_vec()
            }
            Greeting::Plain => {
                NewstyleGreeting { flags: HandshakeFlags::empty() }.encode().to_vec()
            }
            Greeting::Oldstyle => {
                let flags = TransmissionFlags::HAS_FLAGS;
                OldstyleGreeting { size: manners.size, flags }.encode().to_vec()
            }
            Greeting::Other => b"SSH-2.0-something else".to_vec(),
        };
        Self {
            manners,
            inbox: Vec::new(),
            outbox,
            sent: 0,
            received: 0,
            flags_seen: manners.greeting == Greeting::Oldstyle,
            transmitting: manners.greeting == Greeting::Oldstyle,
            structured: false,
            extended: false,
            cut,
            ending,
            step,
        }
    }

    fn reply(&mut self, code: Opt, reply: Rep, data: &[u8]) {
        let length = data.len() as u32;
        self.outbox.extend(OptionReplyHeader { code, reply, length }.encode());
        self.outbox.extend(data);
    }

    /// Answers whatever has arrived wholly.
    fn react(&mut self) {
        if !self.flags_seen && self.inbox.len() >= 4 {
            self.inbox.drain(..4);
            self.flags_seen = true;
        }
        while self.flags_seen && !self.transmitting {
            let Some(header) = self.inbox.first_chunk() else { return };
            let header = OptionHeader::decode(header).unwrap();
            let end = OptionHeader::SIZE + header.length as usize;
            if self.inbox.len() < end {
                return;
            }
            self.inbox.drain(..end);
            self.option(header.code);
        }
        let size = if self.extended { 32 } else { 28 };
        while self.transmitting && self.inbox.len() >= size {
            let request: Vec<u8> = self.inbox.drain(..size).collect();
            let command = u16::from_be_bytes([request[6], request[7]]);
            if command == 0 {
                self.read(u64::from_be_bytes(request[8..16].try_into().unwrap()));
            }
        }
    }

    fn option(&mut self, code: Opt) {
        let info = ExportInfoReply { size: self.manners.size, flags: TransmissionFlags::HAS_FLAGS };
        match (code, self.manners.refuse) {
            (_, Some((refused, reply))) if refused == code => self.reply(code, reply, b"no"),
            (Opt::EXTENDED_HEADERS | Opt::STRUCTURED_REPLY, _) if code == self.manners.headers => {
                self.structured = code == Opt::STRUCTURED_REPLY;
                self.extended = code == Opt::EXTENDED_HEADERS;
                self.reply(code, Rep::ACK, b"");
            }
            (Opt::GO, _) => {
                self.reply(code, Rep::INFO, &info.encode());
                self.reply(code, Rep::ACK, b"");
                self.transmitting = true;
            }
            (Opt::EXPORT_NAME, _) => {
                self.outbox.extend(info.encode_export_name());
                if self.manners.greeting == Greeting::Plain {
                    self.outbox.extend([0; 124]);
                }
                self.transmitting = true;
            }
            (Opt::ABORT, _) => self.reply(code, Rep::ACK, b""),
            _ => self.reply(code, Rep::ERR_UNSUP, b""),
        }
    }

    fn read(&mut self, cookie: u64) {
        let answer = self.manners.answer;
        let cookie = if answer == Answer::WrongCookie { cookie + 1 } else { cookie };
        let data = content();
        if !self.structured && !self.extended {
            let error = if answer == Answer::ErrorFirst { ErrorCode::EIO } else { ErrorCode::OK };
            self.outbox.extend(SimpleReplyHeader { error, cookie }.encode());
            if error == ErrorCode::OK {
                self.outbox.extend(data);
            }
            return;
        }
        let piece = |offset: usize, end: usize| {
            [&(offset as u64).to_be_bytes()[..], &data[offset..end]].concat()
        };
        let whole = (ReplyType::OFFSET_DATA, piece(0, data.len()));
        let mut error = Vec::new();
        ErrorChunk { error: ErrorCode::EIO, message: b"bad", offset: None }.encode(&mut error);
        let chunks = match answer {
            Answer::Whole | Answer::WrongCookie => vec![whole],
            Answer::ErrorFirst => vec![(ReplyType::ERROR, error), whole],
            Answer::Pieces => vec![
                (ReplyType::OFFSET_DATA, piece(20, data.len())),
                (
                    ReplyType::OFFSET_HOLE,
                    [&10_u64.to_be_bytes()[..], &10_u32.to_be_bytes()].concat(),
                ),
                (ReplyType::OFFSET_DATA, piece(0, 10)),
            ],
        };
        for (index, (reply, payload)) in chunks.iter().enumerate() {
            let last = index + 1 == chunks.len();
            let (flags, reply) =
                (if last { ReplyFlags::DONE } else { ReplyFlags::empty() }, *reply);
            if self.extended {
                let length = payload.len() as u64;
                let header = ExtendedReplyHeader { flags, reply, cookie, offset: 0, length };
                self.outbox.extend(header.encode());
            } else {
                let length = payload.len() as u32;
                let header = StructuredReplyHeader { flags, reply, cookie, length };
                self.outbox.extend(header.encode());
            }
            self.outbox.extend(payload);
        }
    }
}

impl Read for &mut Server {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty(), "nothing is wanted");
        let count = buffer.len().min(self.outbox.len()).min(self.step).min(self.cut.0 - self.sent);
        if count == 0 {
            return match self.ending {
                Ending::HangUp => Ok(0),
                Ending::Stall => Err(io::ErrorKind::TimedOut.into()),
                Ending::Reset => Err(io::ErrorKind::ConnectionReset.into()),
            };
        }
        buffer[..count].copy_from_slice(&self.outbox[..count]);
        self.outbox.drain(..count);
        self.sent += count;
        Ok(count)
    }
}

impl Write for &mut Server {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.step).min(self.cut.1 - self.received);
        if count == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.inbox.extend(&bytes[..count]);
        self.received += count;
        self.react();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const ENTIRE: (usize, usize) = (usize::MAX, usize::MAX);

/// Runs the loop, and gives what came of it with the number of bytes that went to the client and to the server.
fn run(
    manners: Manners,
    cut: (usize, usize),
    ending: Ending,
    step: usize,
) -> (Result<Vec<u8>, String>, (usize, usize)) {
    let mut server = Server::new(manners, cut, ending, step);
    let result = fetch(&mut server, "disk", LENGTH);
    (result.map_err(|error| error.to_string()), (server.sent, server.received))
}

/// Runs a session wholly, cut after each byte in each direction, with each ending, in pieces of several sizes. Gives how
/// the whole session ended.
fn every_cut(manners: Manners) -> Result<Vec<u8>, String> {
    let (whole, (down, up)) = run(manners, ENTIRE, Ending::HangUp, usize::MAX);
    for ending in [Ending::HangUp, Ending::Stall, Ending::Reset] {
        for step in [1, 7, usize::MAX] {
            let (result, moved) = run(manners, ENTIRE, ending, step);
            assert_eq!(result.is_ok(), whole.is_ok(), "{manners:?} {step}");
            assert!(result.is_err() || moved == (down, up), "{manners:?} {step}");
            for cut in 0..down {
                let (result, _) = run(manners, (cut, usize::MAX), ending, step);
                assert!(result.is_err(), "{manners:?} is content after {cut} of {down} bytes");
            }
        }
    }
    for cut in 0..up {
        let (result, _) = run(manners, (usize::MAX, cut), Ending::HangUp, 7);
        assert!(result.is_err(), "{manners:?} is content after having sent {cut} of {up} bytes");
    }
    whole
}

fn all_manners() -> Vec<Manners> {
    let mut all = Vec::new();
    for greeting in [Greeting::Fixed, Greeting::Plain, Greeting::Oldstyle] {
        for headers in [Opt::GO, Opt::STRUCTURED_REPLY, Opt::EXTENDED_HEADERS] {
            for answer in [Answer::Whole, Answer::Pieces, Answer::ErrorFirst, Answer::WrongCookie] {
                all.push(Manners { greeting, headers, refuse: None, size: 4096, answer });
            }
        }
    }
    all
}

#[test]
fn the_loop_ends_wherever_a_server_hangs_up_stalls_or_fails() {
    for manners in all_manners() {
        let chunked = manners.greeting == Greeting::Fixed && manners.headers != Opt::GO;
        let result = every_cut(manners);
        match manners.answer {
            Answer::Whole => assert_eq!(result, Ok(content()), "{manners:?}"),
            Answer::Pieces => {
                let mut expected = content();
                if chunked {
                    expected[10..20].fill(0);
                }
                assert_eq!(result, Ok(expected), "{manners:?}");
            }
            Answer::ErrorFirst => {
                let message = if chunked { "NBD_EIO: bad" } else { "NBD_EIO" };
                assert_eq!(result, Err(message.into()), "{manners:?}");
            }
            Answer::WrongCookie => {
                assert!(result.unwrap_err().contains("cookie"), "{manners:?}");
            }
        }
    }
}

#[test]
fn the_loop_ends_in_whatever_state_a_server_refuses() {
    for headers in [Opt::GO, Opt::STRUCTURED_REPLY, Opt::EXTENDED_HEADERS] {
        for option in [Opt::EXTENDED_HEADERS, Opt::STRUCTURED_REPLY, Opt::GO] {
            for reply in [
                Rep::ERR_UNSUP,
                Rep::ERR_POLICY,
                Rep::ERR_SHUTDOWN,
                Rep::ERR_TLS_REQD,
                Rep(0x8000_7777),
                Rep::SERVER,
            ] {
                let refuse = Some((option, reply));
                let answer = Answer::Whole;
                let greeting = Greeting::Fixed;
                let result = every_cut(Manners { greeting, headers, refuse, size: 4096, answer });
                match result {
                    Ok(data) => assert_eq!(data, content()),
                    Err(error) => {
                        let named = error.contains(reply.name().unwrap_or("0x80007777"));
                        assert!(named, "{option} {reply}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_loop_ends_when_the_other_end_is_no_server_or_has_too_little() {
    let (headers, refuse, answer) = (Opt::EXTENDED_HEADERS, None, Answer::Whole);
    let other = Manners { greeting: Greeting::Other, headers, refuse, size: 4096, answer };
    assert!(every_cut(other).unwrap_err().contains("malformed"));
    let small = Manners { greeting: Greeting::Fixed, size: LENGTH - 1, ..other };
    assert!(every_cut(small).unwrap_err().contains("past the end"));
}
