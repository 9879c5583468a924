//! Both machines over a model of a disk.

use std::collections::VecDeque;

use nbd_proto::client::{self, CommandError};
use nbd_proto::server::{self, Event};
use nbd_proto::wire::{CommandFlags, ErrorCode, TransmissionFlags};
use nbd_proto::{BlockSize, Command, ContextInfo, ExportInfo, Extent, RequestId};

use crate::choices::Choices;
use crate::client_end::{Actor, Buffer, Client, ClientEnd, with_flags};
use crate::digest::joined;
use crate::server_end::{Embedder, ServerEnd};
use crate::split::Split;

const SIZE: usize = 32 << 10;
const BLOCK: usize = 512;

/// What a request should come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    Done,
    Data(Vec<u8>),
    /// By context.
    Extents(Vec<(u32, Vec<Extent>)>),
    Failed(ErrorCode),
}

/// A request that the server has not answered.
#[derive(Debug)]
struct Waiting {
    id: RequestId,
    command: Command,
    number: usize,
    payload: Vec<u8>,
}

/// Serves a disk. Requests wait until they are told to go on.
#[derive(Debug)]
struct Disk {
    info: ExportInfo,
    bytes: Vec<u8>,
    /// The same, but writes are those that were submitted, not those that arrived.
    model: Vec<u8>,
    waiting: VecDeque<Waiting>,
    /// The payload of the write that is arriving.
    receiving: Vec<u8>,
    bodies: Vec<(RequestId, Vec<u8>)>,
    arrived: usize,
    expected: Vec<Option<Expected>>,
}

/// What is written by the request of this number.
fn pattern(number: usize, length: usize) -> Vec<u8> {
    // A third of them write zeroes, so that there are holes.
    let byte =
        |at: usize| if number.is_multiple_of(3) { 0 } else { (number * 7 + at / 64) as u8 | 1 };
    (0..length).map(byte).collect()
}

/// The blocks that a range touches, cut to it.
fn blocks(start: usize, end: usize) -> Vec<(usize, usize)> {
    let mut blocks = Vec::new();
    let mut at = start;
    while at < end {
        let next = ((at / BLOCK + 1) * BLOCK).min(end);
        blocks.push((at, next));
        at = next;
    }
    blocks
}

fn status(context: u32, bytes: &[u8]) -> u64 {
    let zero = bytes.iter().all(|byte| *byte == 0);
    match context {
        1 => {
            if zero {
                3
            } else {
                0
            }
        }
        2 => u64::from(bytes[0]),
        _ => u64::from(bytes[0]) << 40,
    }
}

impl Disk {
    fn new() -> Self {
        let bytes = vec![0; SIZE];
        let mut info = ExportInfo::new(SIZE as u64);
        info.flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
        info.contexts = vec![ContextInfo::base_allocation()];
        info.contexts.extend(ContextInfo::new("x-a:byte"));
        info.contexts.extend(ContextInfo::new("x-a:wide").map(ContextInfo::wide));
        Self {
            info,
            model: bytes.clone(),
            bytes,
            waiting: VecDeque::new(),
            receiving: Vec::new(),
            bodies: Vec::new(),
            arrived: 0,
            expected: Vec::new(),
        }
    }

    /// Carries out a request that waits, chosen and answered by `whim`. `false` if none does.
    fn answer(&mut self, connection: &mut server::Connection, whim: u8) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let at = usize::from(whim >> 3) % self.waiting.len();
        let Some(Waiting { id, command, number, payload }) = self.waiting.remove(at) else {
            return false;
        };
        if whim & 7 == 7 {
            self.expected[number] = Some(Expected::Failed(ErrorCode::EIO));
            connection.reply(id).expect("it waits").error(ErrorCode::EIO, "by whim");
            return true;
        }
        let (start, end) =
            (command.offset() as usize, (command.offset() + command.length()) as usize);
        let expected = match command {
            Command::Read { .. } => {
                self.read(connection, id, start..end, whim & 7);
                Expected::Data(self.model[start..end].to_vec())
            }
            Command::BlockStatus { length, one, .. } => {
                self.status(connection, id, start, length, one)
            }
            Command::WriteZeroes { fast: true, .. } => {
                connection.reply(id).expect("it waits").error(ErrorCode::ENOTSUP, "not fast");
                Expected::Failed(ErrorCode::ENOTSUP)
            }
            _ => {
                match command {
                    Command::Write { .. } => {
                        self.bytes[start..end].copy_from_slice(&payload);
                        self.model[start..end].copy_from_slice(&pattern(number, end - start));
                    }
                    Command::Trim { .. } | Command::WriteZeroes { .. } => {
                        self.bytes[start..end].fill(0);
                        self.model[start..end].fill(0);
                    }
                    Command::Resize { size, .. } => {
                        self.bytes.resize(size as usize, 0);
                        self.model.resize(size as usize, 0);
                        connection.set_size(size).expect("an export is in use");
                    }
                    _ => {}
                }
                connection.reply(id).expect("it waits").finish().expect("it has no content");
                Expected::Done
            }
        };
        self.expected[number] = Some(expected);
        true
    }

    fn read(
        &mut self,
        connection: &mut server::Connection,
        id: RequestId,
        range: std::ops::Range<usize>,
        whim: u8,
    ) {
        self.bodies.push((id, self.bytes[range.clone()].to_vec()));
        let mut pieces = blocks(range.start, range.end);
        match whim {
            0 | 1 => pieces = vec![(range.start, range.end)],
            2 | 3 => pieces.reverse(),
            _ => {}
        }
        let mut reply = connection.reply(id).expect("it waits");
        for (start, end) in pieces {
            let (offset, length) = (start as u64, (end - start) as u64);
            if whim % 2 == 1 && self.bytes[start..end].iter().all(|byte| *byte == 0) {
                reply.hole(offset, length).expect("it is a part");
            } else {
                reply.data(offset, length).expect("it is a part");
            }
        }
        reply.finish().expect("all is told");
    }

    fn status(
        &self,
        connection: &mut server::Connection,
        id: RequestId,
        start: usize,
        length: u64,
        one: bool,
    ) -> Expected {
        let mut reply = connection.reply(id).expect("it waits");
        let mut told = Vec::new();
        for context in reply.awaited_contexts() {
            let map = blocks(start, self.bytes.len()).into_iter().map(|(from, to)| {
                let status = status(context, &self.bytes[from..to]);
                Extent { length: (to - from) as u64, status }
            });
            let map: Vec<Extent> = map.collect();
            reply.extents(context, map.iter().copied()).expect("it is awaited");
            let mut extents = joined(&map, length);
            if one {
                extents.truncate(1);
            }
            told.push((context, extents));
        }
        reply.finish().expect("all is told");
        told.sort_unstable_by_key(|(context, _)| *context);
        Expected::Extents(told)
    }
}

impl Embedder for Disk {
    fn event(&mut self, connection: &mut server::Connection, event: &Event) {
        match event {
            Event::Lookup(_) => {
                connection.answer_lookup(Ok(&self.info)).expect("it was asked");
            }
            &Event::Request { id, command } => {
                let number = self.arrived;
                self.arrived += 1;
                self.expected.push(None);
                let payload = std::mem::take(&mut self.receiving);
                assert_eq!(payload.len() as u64, command.payload_length());
                self.waiting.push_back(Waiting { id, command, number, payload });
            }
            _ => {}
        }
    }

    fn payload(&mut self, _request: RequestId, _command: Command, offset: u64, bytes: &[u8]) {
        assert_eq!(self.receiving.len() as u64, offset);
        self.receiving.extend_from_slice(bytes);
    }

    fn body(&self, request: RequestId, offset: u64, length: usize, out: &mut Vec<u8>) {
        let body = self.bodies.iter().find(|(id, _)| *id == request);
        out.extend_from_slice(&body.expect("it was read").1[offset as usize..][..length]);
    }

    fn finished(&mut self, request: RequestId) {
        self.bodies.retain(|(id, _)| *id != request);
    }

    fn relieve(&mut self, connection: &mut server::Connection) -> bool {
        self.answer(connection, 0)
    }
}

/// What the client got, by the request's number.
#[derive(Debug, Default)]
struct Results {
    extents: Vec<(usize, u32, Vec<Extent>)>,
    done: Vec<(Buffer, Command, Result<(), CommandError>)>,
    commands: Vec<Command>,
}

impl Actor for Results {
    fn event(&mut self, client: &mut Client, event: client::Event, buffer: Option<Buffer>) {
        match event {
            client::Event::Extents { id, context, extents } => {
                self.extents.push((client.tag(id), context, extents));
            }
            client::Event::Completed { result, .. } => {
                let buffer = buffer.expect("it ends with its buffer");
                let command = self.commands[buffer.tag];
                self.done.push((buffer, command, result));
            }
            _ => {}
        }
    }
}

struct Pair {
    client: ClientEnd<Results>,
    server: ServerEnd<Disk>,
    split: Split,
    moved: (usize, usize),
}

impl Pair {
    fn new(choices: &mut Choices<'_>) -> Self {
        let [mode, sizes, a, b]: [u8; 4] = choices.bytes();
        let mut config = client::Config::for_export("disk");
        config.extended_headers = mode % 3 == 2;
        config.structured_replies = mode % 3 > 0;
        config.contexts = ["base:allocation", "x-a:byte", "x-a:wide"].map(String::from).to_vec();
        config.limits.max_in_flight = 6;
        let mut disk = Disk::new();
        if sizes & 1 == 1 {
            disk.info.block_size = BlockSize::new(512, 4096, 16 << 10).expect("it makes sense");
        }
        let mut limits = server::Config::default();
        limits.limits.max_in_flight = if sizes & 2 == 0 { 16 } else { 2 };
        limits.limits.max_in_flight_bytes = if sizes & 4 == 0 { 1 << 20 } else { 4000 };
        let split = Split::Cycle([a, b].map(|size| usize::from(size) * 8 + 7).to_vec());
        let connection = client::Connection::new(config).expect("the configuration is valid");
        Self {
            client: ClientEnd::new(connection, Results::default(), split.clone()),
            server: ServerEnd::new(server::Connection::new(limits), disk, split.clone()),
            split,
            moved: (0, 0),
        }
    }

    /// Moves bytes until nothing moves any more.
    fn run(&mut self) {
        loop {
            self.client.transmit();
            let up = self.split.next(self.client.output.len() - self.moved.0);
            self.server.receive(&self.client.output[self.moved.0..][..up]);
            self.moved.0 += up;
            let down = self.split.next(self.server.output.len() - self.moved.1);
            self.client.receive(&self.server.output[self.moved.1..][..down]);
            self.moved.1 += down;
            assert_eq!((self.client.error, self.server.error), (None, None));
            if up + down == 0 {
                break;
            }
        }
    }

    fn submit(&mut self, [what, where_to, how_much]: [u8; 3], choices: &mut Choices<'_>) {
        let offset = u64::from(where_to) * 130;
        let length = (u64::from(how_much) + 1) * 37;
        let aligned = self.server.embedder.info.block_size.minimum() > 1;
        let (offset, length) =
            if aligned { (offset & !511, length.next_multiple_of(512)) } else { (offset, length) };
        let mut flags = CommandFlags::empty();
        flags.set(CommandFlags::FUA | CommandFlags::DF | CommandFlags::REQ_ONE, what & 16 != 0);
        flags.set(CommandFlags::NO_HOLE, what & 32 != 0);
        flags.set(CommandFlags::FAST_ZERO, what & 64 != 0);
        let command = match what & 15 {
            0..=2 => Command::read(offset, length),
            3..=5 => Command::write(offset, length),
            6 => Command::flush(),
            7 => Command::trim(offset, length),
            8 => Command::cache(offset, length),
            9 | 10 => Command::write_zeroes(offset, length),
            11 | 12 => Command::block_status(offset, length),
            13 => Command::resize(u64::from(how_much) * 512),
            _ => {
                // It is the server's turn.
                let ServerEnd { connection, embedder, .. } = &mut self.server;
                embedder.answer(connection, choices.byte());
                return self.run_if(what & 16 != 0);
            }
        };
        let command = with_flags(command, flags);
        let tag = self.client.actor.commands.len();
        let bytes = match command {
            Command::Read { .. } => vec![0xee; length as usize],
            Command::Write { .. } => pattern(tag, length as usize),
            _ => Vec::new(),
        };
        let buffer = Buffer { tag, bytes };
        let result = match command {
            Command::BlockStatus { offset, length, one, .. } if what & 32 != 0 => {
                let listed = [if what & 64 == 0 { 1 } else { 3 }, 2];
                let client = &mut self.client.connection;
                client.begin_block_status((offset, length, one), &listed, buffer)
            }
            _ => self.client.connection.begin(command, buffer),
        };
        if result.is_ok() {
            self.client.actor.commands.push(command);
        }
        self.run_if(what & 128 != 0);
    }

    fn run_if(&mut self, wanted: bool) {
        if wanted {
            self.run();
        }
    }

    /// Compares what the client got with what the server did.
    fn check(&self) {
        let Results { extents, done, commands } = &self.client.actor;
        assert_eq!((done.len(), self.server.embedder.arrived), (commands.len(), commands.len()));
        for (buffer, command, result) in done {
            let expected = self.server.embedder.expected[buffer.tag].as_ref();
            let got = match (result, command) {
                (Err(error), _) => Expected::Failed(error.code),
                (Ok(()), Command::Read { .. }) => Expected::Data(buffer.bytes.clone()),
                (Ok(()), Command::BlockStatus { length, .. }) => {
                    let own = extents.iter().filter(|(tag, ..)| *tag == buffer.tag);
                    let mut own: Vec<_> =
                        own.map(|(_, id, extents)| (*id, joined(extents, *length))).collect();
                    own.sort_unstable_by_key(|(id, _)| *id);
                    Expected::Extents(own)
                }
                (Ok(()), _) => Expected::Done,
            };
            assert_eq!(Some(&got), expected, "{command:?}");
        }
        assert_eq!(self.server.embedder.bytes, self.server.embedder.model);
    }
}

/// The client's machine and the server's, with any requests in any order, answered in any order and shape.
///
/// Each request comes to what the server did for it, and the disk ends up as the model.
pub fn pair(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut pair = Pair::new(&mut choices);
    pair.run();
    assert!(pair.client.connection.is_transmitting());
    // A fuzzer gains nothing from more.
    for _ in 0..100 {
        if choices.is_empty() {
            break;
        }
        let step = choices.bytes();
        pair.submit(step, &mut choices);
    }
    pair.client.connection.disconnect();
    loop {
        pair.run();
        let ServerEnd { connection, embedder, .. } = &mut pair.server;
        if !embedder.answer(connection, 0) {
            break;
        }
    }
    pair.check();
    assert!(pair.client.ended() && pair.server.ended());
}
