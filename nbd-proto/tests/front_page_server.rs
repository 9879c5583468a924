//! The server's loop of the documentation, exactly as it stands there, against clients that hang up, stall or read
//! nothing after every byte, and against clients that are refused in every state. A loop that spins fails here by the
//! number of its calls.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc
)]

use std::cell::Cell;
use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Read, Write};

use nbd_proto::server::{
    self, Config, Event, Listing, LookupOutcome, LookupRefusal, Reply, TlsMode,
};
use nbd_proto::wire::{
    CommandFlags, CommandType as Cmd, CompactRequest, ExtendedRequest, InfoRequest, InfoType,
    MetaContextRequest, OptionCode as Opt, OptionHeader, TransmissionFlags,
};
use nbd_proto::{
    Command, ExportInfo, Finished, Input, Misuse, RecvBuffer, RequestId, Segment, Segments, Wants,
};
use proptest::prelude::*;

include!("../doc/server_loop.rs");

/// What the loop takes for the connection: it counts the calls.
struct Connection {
    inner: server::Connection,
    calls: Cell<usize>,
}

/// More calls than any session here needs: its longest has some 4000 bytes, one at a time in each direction.
const MAX_CALLS: usize = 200_000;

impl Connection {
    fn new(config: Config) -> Self {
        assert_eq!(config.tls, TlsMode::Off);
        Self { inner: server::Connection::new(config), calls: Cell::new(0) }
    }

    fn count(&self) {
        let calls = self.calls.get() + 1;
        let wants = self.inner.wants();
        assert!(calls < MAX_CALLS, "the loop spins, and the connection wants {wants:?}");
        self.calls.set(calls);
    }

    fn next_event(&mut self, input: &mut impl Input) -> Option<Event> {
        self.count();
        self.inner.next_event(input)
    }

    fn wants(&self) -> Wants {
        self.count();
        self.inner.wants()
    }

    fn segments(&self) -> Segments<'_> {
        self.count();
        self.inner.segments()
    }

    fn transmitted(&mut self, count: usize) -> Result<Finished<'_>, Misuse> {
        assert!(count > 0);
        self.inner.transmitted(count)
    }

    fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
        assert!(count > 0);
        self.inner.payload_received(count)
    }

    const fn end_of_stream(&mut self) {
        self.inner.end_of_stream();
    }

    fn answer_list<'e>(
        &mut self,
        exports: impl IntoIterator<Item = Listing<'e>>,
    ) -> Result<(), Misuse> {
        self.inner.answer_list(exports)
    }

    fn answer_lookup(
        &mut self,
        answer: Result<&ExportInfo, LookupRefusal<'_>>,
    ) -> Result<LookupOutcome, Misuse> {
        self.inner.answer_lookup(answer)
    }

    fn reply(&mut self, id: RequestId) -> Result<Reply<'_>, Misuse> {
        self.inner.reply(id)
    }
}

/// What a client does once it has sent what it had to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    HangsUp,
    Stalls,
}

/// A client that sends some bytes and takes some replies.
struct Client<'a> {
    bytes: &'a [u8],
    /// Bytes that it sends at once.
    piece: usize,
    then: Then,
    /// Bytes of replies that it takes before the connection breaks.
    takes: usize,
    received: Vec<u8>,
}

impl Read for &mut Client<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty(), "to read nothing is to spin");
        if self.bytes.is_empty() && self.then == Then::Stalls {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let count = buffer.len().min(self.piece).min(self.bytes.len());
        let (head, rest) = self.bytes.split_at(count);
        buffer[..count].copy_from_slice(head);
        self.bytes = rest;
        Ok(count)
    }
}

impl Write for &mut Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty(), "to write nothing is to spin");
        // A stream that takes nothing and does not say why must not be asked without end.
        let count = bytes.len().min(self.takes).min(self.piece);
        self.takes -= count;
        self.received.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const SIZE: usize = 2048;

fn export() -> ExportInfo {
    let mut info = ExportInfo::new(SIZE as u64);
    info.flags = TransmissionFlags::SEND_FLUSH;
    info
}

/// How a session goes on after a message of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
enum After {
    GoesOn,
    /// The message writes this at this offset.
    Wrote(usize, Vec<u8>),
    /// The session is over, in peace or not.
    Over(bool),
}

/// A message of a client.
#[derive(Clone, Debug)]
struct Message {
    bytes: Vec<u8>,
    after: After,
}

fn goes_on(bytes: Vec<u8>) -> Message {
    Message { bytes, after: After::GoesOn }
}

fn over(bytes: Vec<u8>, in_peace: bool) -> Message {
    Message { bytes, after: After::Over(in_peace) }
}

fn option(code: Opt, data: &[u8]) -> Vec<u8> {
    [&OptionHeader { code, length: data.len() as u32 }.encode()[..], data].concat()
}

fn info(name: &str) -> Vec<u8> {
    let mut data = Vec::new();
    InfoRequest::encode(name, &[InfoType::NAME, InfoType::BLOCK_SIZE], &mut data);
    data
}

fn meta(name: &str) -> Vec<u8> {
    let mut data = Vec::new();
    MetaContextRequest::encode(name, ["base:allocation"].into_iter(), &mut data);
    data
}

fn request(extended: bool, flags: u16, command: Cmd, offset: u64, length: u32) -> Vec<u8> {
    let flags = CommandFlags::from_bits_retain(flags);
    let request = CompactRequest { flags, command, cookie: 7, offset, length };
    if extended {
        ExtendedRequest::from(request).encode().to_vec()
    } else {
        request.encode().to_vec()
    }
}

/// A message of the negotiation that does not end it.
fn negotiation(kind: u8) -> Message {
    goes_on(match kind % 13 {
        0 => option(Opt::LIST, &[]),
        1 => option(Opt::LIST, b"data that it does not have"),
        2 => option(Opt::INFO, &info("")),
        3 => option(Opt::INFO, &info("nowhere")),
        4 => option(Opt::GO, &info("nowhere")),
        5 => option(Opt::GO, b"malformed"),
        6 => option(Opt::STARTTLS, &[]),
        7 => option(Opt::LIST_META_CONTEXT, &meta("")),
        8 => option(Opt::SET_META_CONTEXT, &meta("")),
        9 => option(Opt::SET_META_CONTEXT, &meta("nowhere")),
        10 => option(Opt::PEEK_EXPORT, &[]),
        11 => option(Opt(0x7777), b"whatever"),
        _ => option(Opt::STRUCTURED_REPLY, b"?"),
    })
}

/// A message of the transmission that does not end it.
fn transmission(extended: bool, kind: u8, offset: u16, length: u8) -> Message {
    let (offset, length) = (u64::from(offset) % (SIZE as u64 - 256), u32::from(length) + 1);
    let payload: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(7) ^ kind).collect();
    let plain = |command| request(extended, 0, command, offset, length);
    let bytes = match kind % 12 {
        0 | 1 => {
            let flags = if extended { CommandFlags::PAYLOAD_LEN.bits() } else { 0 };
            let bytes = [request(extended, flags, Cmd::WRITE, offset, length), payload.clone()];
            let after = After::Wrote(offset as usize, payload);
            return Message { bytes: bytes.concat(), after };
        }
        2 => plain(Cmd::READ),
        3 => request(extended, 0, Cmd::FLUSH, 0, 0),
        4 => request(extended, 0, Cmd::WRITE, offset, 0),
        // Refused, with and without a payload to drop.
        5 => [request(extended, 0, Cmd::WRITE, SIZE as u64, length), payload].concat(),
        6 => [request(extended, 0x8000, Cmd::WRITE, offset, length), payload].concat(),
        7 => request(extended, 0, Cmd::READ, SIZE as u64, length),
        8 => plain(Cmd::TRIM),
        9 => plain(Cmd::BLOCK_STATUS),
        10 => plain(Cmd(99)),
        _ => request(extended, 0, Cmd::RESIZE, offset, 0),
    };
    goes_on(bytes)
}

/// How a client enters the export, and whether there are extended headers then.
fn entering(kind: u8) -> (Vec<Message>, bool) {
    let go = goes_on(option(Opt::GO, &info("")));
    match kind % 3 {
        0 => (vec![goes_on(option(Opt::EXPORT_NAME, b""))], false),
        1 => (vec![goes_on(option(Opt::STRUCTURED_REPLY, &[])), go], false),
        _ => (vec![goes_on(option(Opt::EXTENDED_HEADERS, &[])), go], true),
    }
}

/// The last message of a negotiation that leads to nothing.
fn parting(kind: u8) -> Message {
    match kind % 5 {
        0 => over(option(Opt::ABORT, &[]), true),
        1 => over(option(Opt::EXPORT_NAME, b"nowhere"), false),
        2 => over(option(Opt::EXPORT_NAME, b"\xff"), false),
        3 => over(OptionHeader { code: Opt(9), length: u32::MAX }.encode().to_vec(), false),
        _ => over(vec![b'?'; 16], false),
    }
}

/// The last message of a transmission.
fn leaving(extended: bool, kind: u8) -> Message {
    match kind % 3 {
        0 => over(request(extended, 0, Cmd::DISC, 0, 0), true),
        1 => over(request(extended, 0, Cmd::WRITE, 0, u32::MAX), false),
        _ => over(vec![b'?'; if extended { 32 } else { 28 }], false),
    }
}

/// Runs the loop with a client that sends so many bytes of its messages, and checks how it ends.
fn run(messages: &[Message], length: usize, piece: usize, then: Then, takes: usize) {
    let bytes: Vec<u8> = messages.iter().flat_map(|message| &message.bytes).copied().collect();
    let mut client = Client { bytes: &bytes[..length], piece, then, takes, received: Vec::new() };
    let (mut disk, mut expected) = (vec![b'.'; SIZE], vec![b'.'; SIZE]);
    let result = serve(&mut client, &export(), &mut disk);

    // Where the client stopped: at the end of a message, and of the session, or in the middle.
    let (mut end, mut at_boundary, mut is_over) = (0, length == 0, None);
    for Message { bytes, after } in messages {
        end += bytes.len();
        if end > length {
            break;
        }
        at_boundary |= end == length;
        match after {
            After::GoesOn => {}
            After::Wrote(offset, data) => expected[*offset..][..data.len()].copy_from_slice(data),
            After::Over(in_peace) => is_over = Some(*in_peace),
        }
    }
    if takes < usize::MAX {
        // It may break anywhere; the one thing that counts is that the loop ended.
        return;
    }
    let in_peace = is_over.unwrap_or(then == Then::HangsUp && at_boundary);
    assert_eq!(result.is_ok(), in_peace, "{length} of {}: {result:?}", bytes.len());
    assert!(disk == expected, "{length} of {}", bytes.len());
}

/// A client in every state, of every kind: cut after every byte.
fn run_cut_everywhere(messages: &[Message]) {
    let total: usize = messages.iter().map(|message| message.bytes.len()).sum();
    for length in 0..=total {
        for then in [Then::HangsUp, Then::Stalls] {
            for piece in [1, usize::MAX] {
                run(messages, length, piece, then, usize::MAX);
            }
        }
    }
    // One that reads so many bytes of the replies, and no more.
    for takes in (0..200).chain((200..2000).step_by(17)) {
        for piece in [1, usize::MAX] {
            run(messages, total, piece, Then::HangsUp, takes);
        }
    }
}

fn flags() -> Message {
    goes_on(vec![0, 0, 0, 3])
}

#[test]
fn clients_that_are_refused_whatever_they_ask_for_and_hang_up_after_any_byte() {
    for kind in 0..5 {
        let options = (0..13).map(negotiation);
        let messages: Vec<_> =
            [flags()].into_iter().chain(options).chain([parting(kind)]).collect();
        run_cut_everywhere(&messages);
    }
    run_cut_everywhere(&[over(vec![0xff; 4], false)]);
}

#[test]
fn clients_that_read_write_and_are_refused_and_hang_up_after_any_byte() {
    for kind in 0..3 {
        let (enter, extended) = entering(kind);
        let requests = (0..12).map(|kind| transmission(extended, kind, u16::from(kind) * 97, 20));
        let leave = leaving(extended, kind);
        let messages: Vec<_> =
            [flags()].into_iter().chain(enter).chain(requests).chain([leave]).collect();
        run_cut_everywhere(&messages);
    }
}

proptest! {
    #[test]
    fn any_session_that_is_cut_anywhere_ends(
        options in prop::collection::vec(any::<u8>(), 0..6),
        enter in any::<u8>(),
        requests in prop::collection::vec((any::<u8>(), any::<u16>(), any::<u8>()), 0..12),
        leave in any::<u8>(),
        cut in any::<prop::sample::Index>(),
        piece in prop_oneof![1_usize..40, Just(usize::MAX)],
        stalls in any::<bool>(),
        takes in prop_oneof![3 => Just(usize::MAX), 1 => 0_usize..2000],
    ) {
        let (enter, extended) = entering(enter);
        let requests = requests.iter();
        let messages: Vec<_> = [flags()].into_iter()
            .chain(options.iter().map(|kind| negotiation(*kind)))
            .chain(enter)
            .chain(requests.map(|&(kind, offset, length)| transmission(extended, kind, offset, length)))
            .chain([leaving(extended, leave)])
            .collect();
        let total: usize = messages.iter().map(|message| message.bytes.len()).sum();
        let then = if stalls { Then::Stalls } else { Then::HangsUp };
        run(&messages, cut.index(total + 1), piece, then, takes);
    }
}
