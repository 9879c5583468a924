//! Requests that are longer than the server takes, whose parts take turns with each other and with what is asked for later:
//! against a model of a disk with a volatile cache, by connections that are lost.

use core::ops::Range;
use core::task::Poll;
use std::collections::{BTreeMap, BTreeSet};

use nbd_testkit::raw::{Cmd, Errno, cmd_flag};
use nbd_testkit::{Random, cases};

use crate::client::manual::{Received, SECOND, Said, Spawned, timed_out};
use crate::client::{ClientConfig, Error, Flags, Pending};

/// Bytes of a block, which is what the server takes at once.
const BLOCK: usize = 4096;
const BLOCKS: usize = 12;

/// A write: each of its bytes is its number, which is not zero.
type Number = u8;

/// What may be in a block.
#[derive(Clone, Debug, Default)]
struct Expected {
    /// The last one that was acknowledged.
    latest: Number,
    /// Those that were given up, and may have got there since.
    or: BTreeSet<Number>,
}

/// A write whose outcome is waited for.
struct Writing {
    number: Number,
    blocks: Range<usize>,
    pending: Pending<Result<(), Error>>,
    /// Those that were given up, and were with the server still when this began.
    beside: BTreeSet<Number>,
}

struct Model {
    net: Spawned,
    disk: [Number; BLOCKS],
    cache: [Option<Number>; BLOCKS],
    /// What the server has received and not answered, by connection.
    asked: Vec<(usize, Received)>,
    /// Which blocks of a write the server has seen at any time.
    seen: BTreeMap<Number, BTreeSet<usize>>,
    writing: Vec<Writing>,
    /// Writes that were given up, and which of their blocks had been sent.
    given_up: BTreeMap<Number, BTreeSet<usize>>,
    expected: Vec<Expected>,
    numbers: Number,
}

impl Model {
    fn new(net: Spawned) -> Self {
        Self {
            net,
            disk: [0; BLOCKS],
            cache: [None; BLOCKS],
            asked: Vec::new(),
            seen: BTreeMap::new(),
            writing: Vec::new(),
            given_up: BTreeMap::new(),
            expected: vec![Expected::default(); BLOCKS],
            numbers: 0,
        }
    }

    /// Everything goes on as far as it can, and what has become of it is noted.
    fn run(&mut self) {
        self.net.run();
        for line in 0..self.net.lines() {
            for request in self.net.line(line, |line| line.received()) {
                if request.kind == Cmd::WRITE {
                    let (number, block) = (request.data[0], request.offset as usize / BLOCK);
                    let may_be_sent =
                        self.given_up.get(&number).is_none_or(|sent| sent.contains(&block));
                    assert!(may_be_sent, "block {block} of {number} is sent, which was given up");
                    self.seen.entry(number).or_default().insert(block);
                }
                self.asked.push((line, request));
            }
        }
        for mut writing in core::mem::take(&mut self.writing) {
            match self.net.poll(&mut writing.pending) {
                Poll::Pending => self.writing.push(writing),
                Poll::Ready(Ok(())) => {
                    let expected = Expected { latest: writing.number, or: writing.beside };
                    self.expected[writing.blocks].fill(expected);
                }
                Poll::Ready(result) if timed_out(&result) => self.give_up(writing),
                Poll::Ready(result) => panic!("{result:?}"),
            }
        }
    }

    /// Nobody waits for it any more.
    fn give_up(&mut self, writing: Writing) {
        let number = writing.number;
        self.given_up.insert(number, self.seen.get(&number).cloned().unwrap_or_default());
        for expected in &mut self.expected[writing.blocks] {
            expected.or.insert(number);
            expected.or.extend(&writing.beside);
        }
    }

    /// Begins a write that overlaps with none that is waited for.
    fn write(&mut self, client: &crate::client::Client<Spawned>, random: &mut Random) {
        let first = random.below(BLOCKS as u64) as usize;
        let count = 1 + random.below((BLOCKS - first) as u64) as usize;
        let blocks = first..first + count;
        let apart =
            |one: &Writing| one.blocks.end <= blocks.start || blocks.end <= one.blocks.start;
        if self.numbers == Number::MAX || !self.writing.iter().all(apart) {
            return;
        }
        self.numbers += 1;
        let (number, offset) = (self.numbers, (first * BLOCK) as u64);
        let flags = if random.one_in(4) { Flags::FUA } else { Flags::empty() };
        let writes = self.asked.iter().filter(|(_, request)| request.kind == Cmd::WRITE);
        let with_server = writes.map(|(_, request)| request.data[0]);
        let beside = with_server.filter(|other| self.given_up.contains_key(other)).collect();
        let pending = client.submit_write(offset, vec![number; count * BLOCK], flags);
        self.writing.push(Writing { number, blocks, pending, beside });
        self.run();
    }

    /// The server carries out one of the requests that it has, and answers it.
    fn carry_out(&mut self, random: &mut Random) {
        if self.asked.is_empty() {
            return;
        }
        let at = random.below(self.asked.len() as u64) as usize;
        let (line, request) = self.asked.swap_remove(at);
        self.apply(&request);
        self.net.line(line, |line| line.answer(&request, None));
        self.run();
    }

    fn apply(&mut self, request: &Received) {
        match request.kind {
            Cmd::WRITE => {
                let block = request.offset as usize / BLOCK;
                self.cache[block] = Some(request.data[0]);
                if request.flags & cmd_flag::FUA != 0 {
                    self.disk[block] = request.data[0];
                }
            }
            Cmd::FLUSH => self.flush(),
            _ => {}
        }
    }

    fn flush(&mut self) {
        for (block, cached) in self.disk.iter_mut().zip(&mut self.cache) {
            *block = cached.take().unwrap_or(*block);
        }
    }

    /// A connection is lost. The server carries out some of what it has, and nobody learns of it.
    fn cut(&mut self, line: usize, random: &mut Random) {
        let lost = self.asked.extract_if(.., |(other, _)| *other == line);
        for (_, request) in lost.collect::<Vec<_>>() {
            if random.one_in(2) {
                self.apply(&request);
            }
        }
        self.net.line(line, |line| line.cut());
        self.run();
    }

    /// The server ends without having written what it has in memory, and is there again.
    fn crash(&mut self, random: &mut Random) {
        for line in 0..self.net.lines() {
            self.cut(line, random);
        }
        self.asked.clear();
        self.cache = [None; BLOCKS];
    }

    /// Answers what there is, or has connections come back.
    fn go_on(&mut self, random: &mut Random) {
        match self.asked.is_empty() {
            true => self.net.pass(SECOND / 2),
            false => self.carry_out(random),
        }
        self.run();
    }
}

#[test]
fn what_is_acknowledged_stays_whatever_takes_turns_and_is_lost() {
    cases(50, |random| {
        let blocks = Some([512, BLOCK as u32, BLOCK as u32]);
        let net = Spawned::new(Said { blocks, ..Said::default() });
        let reconnect = net.reconnect().with_kept_writes(1 << 20);
        let limit = random.one_in(3).then_some(4 * SECOND);
        let config = ClientConfig::new()
            .with_connections(random.of(&[1, 2, 2]))
            .with_max_in_flight(random.of(&[1, 1, 2, 4]))
            .with_request_timeout(limit)
            .with_reconnect(reconnect);
        let client = net.connect(&config);
        let mut model = Model::new(net);
        let mut reads = Vec::new();
        for _ in 0..60 {
            match random.below(20) {
                0..7 => model.write(&client, random),
                7 => {
                    reads.push(client.submit_read(0, BLOCK, Flags::empty()));
                    model.run();
                }
                8 if !model.writing.is_empty() => {
                    let at = random.below(model.writing.len() as u64) as usize;
                    let writing = model.writing.swap_remove(at);
                    model.give_up(writing);
                    model.run();
                }
                9 | 10 => {
                    // One of the latest.
                    let lines = model.net.lines();
                    let line = lines - 1 - random.below(lines.min(2) as u64) as usize;
                    model.cut(line, random);
                }
                11 if random.one_in(3) => model.crash(random),
                12 | 13 => {
                    model.net.pass(SECOND);
                    model.run();
                }
                _ => model.carry_out(random),
            }
        }
        for _ in 0..1000 {
            if model.writing.is_empty() {
                break;
            }
            model.go_on(random);
        }
        assert!(model.writing.is_empty(), "{} writes never end", model.writing.len());
        let mut flush = client.submit_flush();
        loop {
            match model.net.poll(&mut flush) {
                Poll::Ready(Ok(())) => break,
                Poll::Ready(result) if timed_out(&result) => flush = client.submit_flush(),
                Poll::Ready(result) => panic!("{result:?}"),
                Poll::Pending => model.go_on(random),
            }
        }
        for (block, (found, expected)) in model.disk.iter().zip(&model.expected).enumerate() {
            let fits = *found == expected.latest || expected.or.contains(found);
            assert!(fits, "block {block} has {found} in place of {expected:?}");
        }
    });
}

/// What is answered with an error has no turn any more, and neither has the request that takes its place.
#[test]
fn a_request_that_has_failed_has_no_turn() {
    for reconnects in [false, true] {
        let blocks = Some([512, BLOCK as u32, BLOCK as u32]);
        let net = Spawned::new(Said { blocks, ..Said::default() });
        let mut config = ClientConfig::new().with_max_in_flight(2);
        if reconnects {
            config = config.with_reconnect(net.reconnect());
        }
        let client = net.connect(&config);
        let mut first = client.submit_write(20 * BLOCK as u64, vec![9; 512], Flags::empty());
        let mut long = client.submit_read(0, 4 * BLOCK, Flags::empty());
        let mut last = client.submit_write(8 * BLOCK as u64, vec![3; 512], Flags::empty());
        net.run();
        let asked = net.line(0, |line| line.received());
        net.line(0, |line| line.answer(&asked[1], None));
        net.run();
        // Another part of the long one.
        let part = net.line(0, |line| line.only());
        assert_eq!(part.kind, Cmd::READ);
        net.line(0, |line| line.answer(&part, Some(Errno::EIO)));
        net.run();
        assert!(matches!(net.poll(&mut long), Poll::Ready(Err(Error::Command { .. }))));
        let other = net.line(0, |line| line.only());
        assert_eq!(other.offset, 8 * BLOCK as u64);
        net.line(0, |line| line.answer(&asked[0], Some(Errno::ESHUTDOWN)));
        net.run();
        net.line(0, |line| line.answer(&other, None));
        net.run();
        assert!(matches!(net.poll(&mut last), Poll::Ready(Ok(()))));
        net.line(0, |line| line.end());
        net.run();
        net.pass(SECOND);
        // What the server did not carry out is asked of its successor.
        assert_eq!(net.poll(&mut first).is_pending(), reconnects);
        if reconnects {
            assert_eq!(net.line(1, |line| line.only()).offset, 20 * BLOCK as u64);
        }
    }
}

/// A write that times out between two of its parts has been carried out so far, and is written again that far.
#[test]
fn a_write_that_times_out_between_its_parts_is_kept_as_far_as_it_was_answered() {
    let blocks = Some([512, BLOCK as u32, BLOCK as u32]);
    let net = Spawned::new(Said { blocks, ..Said::default() });
    let config = ClientConfig::new()
        .with_max_in_flight(1)
        .with_request_timeout(Some(4 * SECOND))
        .with_reconnect(net.reconnect().with_kept_writes(1 << 20));
    let client = net.connect(&config);
    let mut write = client.submit_write(0, vec![2; 4 * BLOCK], Flags::empty());
    net.run();
    net.pass(2 * SECOND);
    let _read = client.submit_read(0, 512, Flags::empty());
    net.run();
    let mut answered = 0;
    loop {
        let asked = net.line(0, |line| line.only());
        if asked.kind == Cmd::READ {
            break;
        }
        net.line(0, |line| line.answer(&asked, None));
        answered += 1;
        net.run();
    }
    assert!((1..4).contains(&answered), "the read has its turn: {answered}");
    net.pass(2 * SECOND);
    net.pass(SECOND / 2);
    assert!(matches!(net.poll(&mut write), Poll::Ready(result) if timed_out(&result)));
    net.line(0, |line| line.cut());
    net.run();
    net.pass(SECOND);
    let mut written = Vec::new();
    for _ in 0..6 {
        for asked in net.line(1, |line| line.received()) {
            if asked.kind == Cmd::WRITE {
                assert!(asked.data.iter().all(|byte| *byte == 2));
                written.push(asked.offset as usize / BLOCK);
            }
            net.line(1, |line| line.answer(&asked, None));
        }
        net.run();
    }
    written.sort_unstable();
    assert_eq!(written, Vec::from_iter(0..answered));
}
