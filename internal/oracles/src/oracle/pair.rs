//! Both machines over a model of a disk.

use nbd_pair::client::with_flags;
use nbd_pair::disk::{Disk, Pieces, Shape, extents, full_export, range};
use nbd_pair::pair::Pair;
use nbd_pair::split::Split;
use nbd_proto::client;
use nbd_proto::server;
use nbd_proto::wire::{CommandFlags, ErrorCode};
use nbd_proto::{BlockSize, Command, Extent};

use crate::choices::Choices;
use crate::digest::joined;

const SIZE: usize = 32 << 10;

/// The contexts of the export, by their numbers.
const CONTEXTS: [&str; 3] = ["base:allocation", "x-test:first-byte", "x-test:wide"];

/// What a request should come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    Done,
    Data(Vec<u8>),
    /// By context.
    Extents(Vec<(u32, Vec<Extent>)>),
    Failed(ErrorCode),
}

/// What is written by the request of this number.
fn pattern(number: usize, length: usize) -> Vec<u8> {
    // A third of them write zeroes, so that there are holes.
    let byte =
        |at: usize| if number.is_multiple_of(3) { 0 } else { (number * 7 + at / 64) as u8 | 1 };
    (0..length).map(byte).collect()
}

/// What was submitted, and what should come of it.
struct Request {
    command: Command,
    /// The contexts of a block status request.
    contexts: Vec<u32>,
    expected: Option<Expected>,
}

struct Model {
    pair: Pair,
    /// The disk as it should be: writes are those that were submitted, not those that arrived.
    bytes: Vec<u8>,
    /// By the tags of the requests.
    requests: Vec<Request>,
}

impl Model {
    fn new(choices: &mut Choices<'_>) -> Self {
        let [mode, sizes, a, b]: [u8; 4] = choices.bytes();
        let mut config = client::Config::for_export("disk");
        config.extended_headers = mode % 3 == 2;
        config.structured_replies = mode % 3 > 0;
        config.contexts = CONTEXTS.map(String::from).to_vec();
        config.limits.max_in_flight = 6;
        let bytes = vec![0; SIZE];
        let mut info = full_export(SIZE as u64);
        if sizes & 1 == 1 {
            info.block_size = BlockSize::new(512, 4096, 16 << 10).expect("it makes sense");
        }
        let mut limits = server::Config::default();
        limits.limits.max_in_flight = if sizes & 2 == 0 { 16 } else { 2 };
        limits.limits.max_in_flight_bytes = if sizes & 4 == 0 { 1 << 20 } else { 4000 };
        let split = Split::Cycle([a, b].map(|size| usize::from(size) * 8 + 7).to_vec());
        let pair = Pair::over(Disk::new(bytes.clone(), &info), config, limits, &split);
        Self { pair, bytes, requests: Vec::new() }
    }

    fn run(&mut self) {
        self.pair.run();
        assert_eq!((self.pair.client.error(), self.pair.server.error()), (None, None));
    }

    /// Has the server answer a request that waits, chosen and answered by `whim`. `false` if none does.
    fn answer(&mut self, whim: u8) -> bool {
        let waiting = &mut self.pair.server.embedder.waiting;
        if waiting.is_empty() {
            return false;
        }
        let index = usize::from(whim >> 3) % waiting.len();
        let Some(request) = waiting.remove(index) else { return false };
        // They arrive in the order in which they are submitted.
        let number = self.pair.server.number(request.id);
        assert_eq!(request.command, self.requests[number].command);
        let expected = if whim & 7 == 7 {
            let reply = self.pair.server.connection.reply(request.id).expect("it waits");
            reply.error(ErrorCode::EIO, "by whim");
            Expected::Failed(ErrorCode::EIO)
        } else {
            let pieces = match whim & 7 {
                0 | 1 => Pieces::One,
                2 | 3 => Pieces::Backwards,
                _ => Pieces::Blocks,
            };
            self.pair.server.embedder.shape = Shape { pieces, holes: whim % 2 == 1 };
            self.pair.server.answer(request);
            self.carry_out(number)
        };
        self.requests[number].expected = Some(expected);
        true
    }

    /// Carries a request out on the model.
    fn carry_out(&mut self, number: usize) -> Expected {
        let Request { command, contexts, .. } = &self.requests[number];
        let range = range(*command);
        match *command {
            Command::Read { .. } => return Expected::Data(self.bytes[range].to_vec()),
            Command::BlockStatus { length, one, .. } => {
                let told = contexts.iter().map(|id| {
                    let name = CONTEXTS[*id as usize - 1];
                    let map = extents(&self.bytes, range.start..self.bytes.len(), name);
                    let mut extents = joined(&map, length);
                    extents.truncate(if one { 1 } else { usize::MAX });
                    (*id, extents)
                });
                let mut told: Vec<_> = told.collect();
                told.sort_unstable_by_key(|(id, _)| *id);
                return Expected::Extents(told);
            }
            Command::WriteZeroes { fast: true, .. } => return Expected::Failed(ErrorCode::ENOTSUP),
            Command::Write { .. } => {
                let length = range.len();
                self.bytes[range].copy_from_slice(&pattern(number, length));
            }
            Command::Trim { .. } | Command::WriteZeroes { .. } => self.bytes[range].fill(0),
            Command::Resize { size, .. } => self.bytes.resize(size as usize, 0),
            _ => {}
        }
        Expected::Done
    }

    fn submit(&mut self, [what, where_to, how_much]: [u8; 3], choices: &mut Choices<'_>) {
        let offset = u64::from(where_to) * 130;
        let length = (u64::from(how_much) + 1) * 37;
        let aligned = self.pair.server.embedder.exports[1].1.block_size.minimum() > 1;
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
                self.answer(choices.byte());
                return self.run_if(what & 16 != 0);
            }
        };
        let command = with_flags(command, flags);
        let client = &mut self.pair.client;
        let bytes = match command {
            Command::Read { .. } => vec![0xee; length as usize],
            Command::Write { .. } => pattern(self.requests.len(), length as usize),
            _ => Vec::new(),
        };
        let selected = client.export().map(|view| view.contexts.to_vec()).unwrap_or_default();
        let mut contexts: Vec<u32> = selected.iter().map(|context| context.id).collect();
        let result = match command {
            Command::BlockStatus { offset, length, one, .. } if what & 32 != 0 => {
                contexts = vec![if what & 64 == 0 { 1 } else { 3 }, 2];
                client.begin_block_status((offset, length, one), &contexts)
            }
            _ => client.begin(command, bytes),
        };
        if result.is_ok() {
            self.requests.push(Request { command, contexts, expected: None });
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
        let actor = &self.pair.client.actor;
        assert_eq!(actor.done.len(), self.requests.len());
        for done in &actor.done {
            let Request { command, expected, .. } = &self.requests[done.tag];
            let got = match (&done.result, command) {
                (Err(error), _) => Expected::Failed(error.code),
                (Ok(()), Command::Read { .. }) => Expected::Data(done.bytes.clone()),
                (Ok(()), Command::BlockStatus { length, .. }) => {
                    let own = actor.extents.iter().filter(|(tag, ..)| *tag == done.tag);
                    let mut own: Vec<_> =
                        own.map(|(_, id, extents)| (*id, joined(extents, *length))).collect();
                    own.sort_unstable_by_key(|(id, _)| *id);
                    Expected::Extents(own)
                }
                (Ok(()), _) => Expected::Done,
            };
            assert_eq!(Some(&got), expected.as_ref(), "{command:?}");
        }
        assert_eq!(self.pair.server.embedder.bytes, self.bytes);
    }
}

/// The client's machine and the server's, with any requests in any order, answered in any order and shape.
///
/// Each request comes to what the server did for it, and the disk ends up as the model.
pub fn pair(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut model = Model::new(&mut choices);
    model.run();
    assert!(model.pair.client.is_transmitting());
    // A fuzzer gains nothing from more.
    for _ in 0..100 {
        if choices.is_empty() {
            break;
        }
        let step = choices.bytes();
        model.submit(step, &mut choices);
    }
    model.pair.client.disconnect();
    model.run();
    while model.answer(0) {
        model.run();
    }
    model.check();
    assert!(model.pair.client.ended() && model.pair.server.ended());
}
