//! What holds in every session: whatever a client sends and wherever it stops, however the stream is cut, in whatever
//! order requests are answered, and however little of a reply goes out at once.

use std::collections::HashMap;

use nbd_proto::server::{Config, Connection, Event, LookupRefusal};
use nbd_proto::wire::{CommandFlags, CommandType as Cmd, ErrorCode, OptionCode as Opt};
use nbd_proto::{
    Command, Error, Extent, Misuse, OrderlyEnd, PauseReason, RecvBuffer, RequestId, Segment, Wants,
};
use proptest::prelude::*;

use crate::peer::*;

/// Decides what happens next.
struct Dice(u64);

impl Dice {
    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as usize % bound
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// The byte of a payload that is written at an offset.
fn byte_at(offset: u64) -> u8 {
    (offset % 251) as u8
}

fn request_bytes(mode: Mode, kind: u8, offset: u64, length: u64, cookie: u64) -> Vec<u8> {
    let (offset, length) = (offset % SIZE, length % 5000);
    let payload: Vec<u8> = (offset..offset + length).map(byte_at).collect();
    let (command, flags, payload) = match kind % 14 {
        0..=2 => (Cmd::WRITE, CommandFlags::FUA, payload),
        3 | 4 => (Cmd::READ, CommandFlags::empty(), vec![]),
        5 => (Cmd::READ, CommandFlags::DF, vec![]),
        6 => (Cmd::FLUSH, CommandFlags::empty(), vec![]),
        7 => (Cmd::BLOCK_STATUS, CommandFlags::empty(), vec![]),
        8 => (Cmd::WRITE_ZEROES, CommandFlags::FAST_ZERO, vec![]),
        // Refused, one with a payload and one without.
        9 => (Cmd::WRITE, CommandFlags::from_bits_retain(0x8000), payload),
        10 => (Cmd(77), CommandFlags::empty(), vec![]),
        11 => {
            let payload = [&length.to_be_bytes()[..], &[0, 0, 0, 1]].concat();
            let form = request(Cmd::BLOCK_STATUS, CommandFlags::PAYLOAD_LEN, offset, 12);
            return match mode {
                Mode::Extended => [&encoded(mode, &form, cookie)[..], &payload].concat(),
                _ => vec![],
            };
        }
        12 => (Cmd::WRITE, CommandFlags::empty(), vec![]),
        _ => (Cmd::TRIM, CommandFlags::empty(), vec![]),
    };
    let length = if command == Cmd::WRITE { payload.len() as u64 } else { length };
    let header = encoded(mode, &request(command, flags, offset, length), cookie);
    [header, payload].concat()
}

fn encoded(mode: Mode, request: &nbd_proto::wire::ExtendedRequest, cookie: u64) -> Vec<u8> {
    let mut request = *request;
    request.cookie = cookie;
    if mode == Mode::Extended {
        return request.encode().to_vec();
    }
    let nbd_proto::wire::ExtendedRequest { flags, command, cookie, offset, length } = request;
    let length = length as u32;
    nbd_proto::wire::CompactRequest { flags, command, cookie, offset, length }.encode().to_vec()
}

/// All that a client sends.
fn stream(
    mode: Mode,
    options: &[u8],
    enter: bool,
    requests: &[(u8, u64, u64, bool)],
    end: u8,
) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    for kind in options {
        bytes.extend(match kind % 7 {
            0 => option(Opt::LIST, &[]),
            1 => option(Opt::INFO, &go("disk", &[])),
            2 => option(Opt::GO, &go("nowhere", &[])),
            3 => option(Opt::GO, b"?"),
            4 => option(Opt(99), &[0; 100]),
            // Longer than is looked at.
            5 => option(Opt::INFO, &vec![0; 3000]),
            _ => option(Opt::STARTTLS, &[]),
        });
    }
    match mode {
        Mode::Simple => {}
        Mode::Structured => bytes.extend(option(Opt::STRUCTURED_REPLY, &[])),
        Mode::Extended => bytes.extend(option(Opt::EXTENDED_HEADERS, &[])),
    }
    if !enter {
        bytes.extend(match end % 4 {
            0 => option(Opt::ABORT, b"?"),
            1 => option(Opt::EXPORT_NAME, b"nowhere"),
            2 => vec![b'?'; 50],
            _ => vec![],
        });
        return bytes;
    }
    bytes.extend(option(Opt::SET_META_CONTEXT, &meta("disk", &["base:allocation", "x-a:b"])));
    bytes.extend(option(Opt::GO, &go("disk", &[])));
    for (at, &(kind, offset, length, same_cookie)) in requests.iter().enumerate() {
        let cookie = if same_cookie { 7 } else { at as u64 };
        bytes.extend(request_bytes(mode, kind, offset, length, cookie));
    }
    bytes.extend(match end % 4 {
        0 => encoded(mode, &plain(Cmd::DISC, 0, 0), 0),
        1 => encoded(mode, &plain(Cmd::WRITE, 0, u32::MAX.into()), 0),
        2 => vec![b'?'; 50],
        _ => vec![],
    });
    // Nobody looks at what follows a farewell.
    bytes.extend([b'!'; 9].iter().take(usize::from(end / 4 % 10)));
    bytes
}

/// What does not depend on how a session was driven.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    /// Questions and commands, in order.
    events: Vec<String>,
    /// All that was sent, unless requests were answered, in whatever order.
    sent: Vec<u8>,
    closed: Result<OrderlyEnd, Error>,
}

/// A request that the embedder holds.
#[derive(Debug)]
struct Held {
    command: Command,
    payload: Vec<u8>,
    raised: bool,
    answered: bool,
}

struct Driver {
    connection: Connection,
    dice: Dice,
    /// What was not received yet.
    rest: Vec<u8>,
    received: RecvBuffer,
    held: HashMap<RequestId, Held>,
    /// A question that was not answered yet.
    question: Option<Event>,
    events: Vec<String>,
    raised: usize,
    sent: Vec<u8>,
    closed: Option<Result<OrderlyEnd, Error>>,
    ended: bool,
}

impl Driver {
    fn new(config: Config, stream: &[u8], seed: u64) -> Self {
        Self {
            connection: Connection::new(config),
            dice: Dice(seed | 1),
            rest: stream.to_vec(),
            received: RecvBuffer::new(),
            held: HashMap::new(),
            question: None,
            events: Vec::new(),
            raised: 0,
            sent: Vec::new(),
            closed: None,
            ended: false,
        }
    }

    fn run(mut self) -> Outcome {
        let most = 200 * (self.rest.len() + 100);
        for _ in 0..most {
            if let Some(closed) = self.closed {
                self.check_closed();
                let sent = if self.raised == 0 { self.sent } else { Vec::new() };
                return Outcome { events: self.events, sent, closed };
            }
            match self.dice.below(5) {
                0 => self.answer_question(),
                1 => self.answer_request(),
                2 => self.transmit(),
                _ => self.receive(),
            }
        }
        panic!("it never closes: {:?}, {:?}", self.connection.wants(), self.events);
    }

    fn event(&mut self, event: Event) {
        assert_eq!(self.closed, None, "{event:?} after the last event");
        match event {
            Event::Closed(result) => {
                if result.is_ok() {
                    assert!(self.held.is_empty(), "buffers were not given back");
                }
                self.closed = Some(result);
            }
            Event::Request { id, command } => {
                self.events.push(format!("{command:?}"));
                let held = self.held.entry(id).or_insert(Held {
                    command,
                    payload: Vec::new(),
                    raised: false,
                    answered: false,
                });
                self.raised += 1;
                assert!(!held.raised, "{command:?} has the id of a request in flight");
                held.raised = true;
                assert_eq!(held.command, command);
                let start = command.offset();
                let expected = (start..start + command.payload_length()).map(byte_at);
                assert!(expected.eq(held.payload.iter().copied()), "{command:?} came too early");
            }
            question => {
                self.events.push(format!("{question:?}"));
                assert!(self.question.replace(question).is_none(), "two questions at once");
            }
        }
    }

    /// Asks for events until there are none, and does one thing that is wanted then.
    fn receive(&mut self) {
        while let Some(event) = self.connection.next_event(&mut self.received) {
            self.event(event);
        }
        let left = self.received.unread().len();
        match self.connection.wants() {
            Wants::Bytes { at_least } => {
                assert!(at_least > 0 && left == 0 && !self.ended);
                self.fill();
            }
            Wants::Payload { id, command, offset, remaining, .. } => {
                let held = self.held.entry(id).or_insert(Held {
                    command,
                    payload: Vec::new(),
                    raised: false,
                    answered: false,
                });
                assert!(!held.raised && held.command == command);
                assert_eq!(offset, held.payload.len() as u64);
                assert_eq!(offset + remaining, command.payload_length());
                assert_eq!(self.connection.reply(id).err(), Some(Misuse::PayloadPending));
                if left == 0 {
                    return self.fill();
                }
                let mut room = vec![0; 1 + self.dice.below(remaining as usize)];
                let count = self.received.copy_to(&mut room);
                held.payload.extend_from_slice(&room[..count]);
                let too_many = self.connection.payload_received(remaining + 1);
                assert_eq!(too_many, Err(Misuse::TooManyBytes));
                self.connection.payload_received(count as u64).unwrap();
                if count as u64 == remaining {
                    // An event is due, so that nothing is taken, whatever is there.
                    let mut other = &[0xff; 40][..];
                    let event = self.connection.next_event(&mut other).unwrap();
                    assert_eq!(other.len(), 40);
                    self.event(event);
                }
            }
            Wants::Nothing(reason) => {
                assert_ne!(reason, PauseReason::EventDue);
                assert_eq!(reason == PauseReason::AwaitingAnswer, self.question.is_some());
                assert!(reason != PauseReason::Closing || self.connection.is_closing());
                // An impatient embedder may receive all the same, or find that the client is gone.
                if self.dice.one_in(4) {
                    self.fill();
                }
            }
            Wants::Closed => assert!(self.closed.is_some()),
            other => panic!("{other:?}"),
        }
    }

    /// Receives something, or the end of the stream.
    fn fill(&mut self) {
        if self.rest.is_empty() {
            self.connection.end_of_stream();
            self.ended = true;
            assert!(self.connection.is_closing());
            return;
        }
        let room = self.received.spare_capacity_mut();
        let most = if self.dice.one_in(3) { usize::MAX } else { 60 };
        let count = 1 + self.dice.below(room.len().min(self.rest.len()).min(most));
        room[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        self.received.advance(count);
    }

    fn answer_question(&mut self) {
        let export = export();
        match self.question.take() {
            None => {
                let none = self.connection.answer_lookup(Ok(&export));
                assert_eq!(none, Err(Misuse::NoSuchQuestion));
            }
            Some(Event::List) => {
                let wrong = self.connection.answer_lookup(Ok(&export));
                assert_eq!(wrong, Err(Misuse::NoSuchQuestion));
                self.connection.answer_list([]).unwrap();
            }
            Some(Event::Lookup(lookup)) => {
                assert_eq!(self.connection.answer_list([]), Err(Misuse::NoSuchQuestion));
                let known = lookup.name == "disk";
                let answer = if known { Ok(&export) } else { Err(LookupRefusal::Unknown) };
                self.connection.answer_lookup(answer).unwrap();
            }
            Some(other) => panic!("{other:?}"),
        }
    }

    fn answer_request(&mut self) {
        let mut open: Vec<RequestId> = self
            .held
            .iter()
            .filter_map(|(id, held)| (held.raised && !held.answered).then_some(*id))
            .collect();
        if open.is_empty() {
            return;
        }
        open.sort_by_key(|id| id.index());
        let id = open[self.dice.below(open.len())];
        let held = self.held.get_mut(&id).unwrap();
        let mut reply = self.connection.reply(id).unwrap();
        assert_eq!((reply.id(), reply.command()), (id, held.command));
        held.answered = true;
        match held.command {
            _ if self.dice.one_in(8) => return reply.error(ErrorCode::EIO, "broken"),
            Command::Read { offset, length, .. } => {
                let head = 1 + self.dice.below(length as usize) as u64;
                reply.data(offset, head).unwrap();
                if head < length {
                    reply.hole(offset + head, length - head).unwrap();
                }
            }
            Command::BlockStatus { length, .. } => {
                for context in reply.awaited_contexts() {
                    reply.extents(context, [Extent { length, status: 1 }]).unwrap();
                }
            }
            _ => {}
        }
        reply.finish().unwrap();
        assert_eq!(self.connection.reply(id).err(), Some(Misuse::NoSuchRequest));
    }

    /// Sends a part of what there is.
    fn transmit(&mut self) {
        let total: usize = self
            .connection
            .segments()
            .map(|segment| {
                assert!(segment.len() > 0);
                if let Segment::Body { id, offset, length } = segment {
                    let held = &self.held[&id];
                    assert!(offset + length as u64 <= held.command.length() && held.answered);
                }
                segment.len()
            })
            .sum();
        if total == 0 {
            return;
        }
        assert_eq!(self.connection.transmitted(total + 1).err(), Some(Misuse::TooManyBytes));
        let count = if self.dice.one_in(2) { total } else { 1 + self.dice.below(total) };
        let mut rest = count;
        for segment in self.connection.segments() {
            if let Segment::Control(bytes) = segment {
                self.sent.extend_from_slice(&bytes[..bytes.len().min(rest)]);
            }
            rest -= segment.len().min(rest);
        }
        for id in self.connection.transmitted(count).unwrap() {
            let held = self.held.remove(&id).expect("it came back before");
            assert!(held.answered, "{held:?}");
        }
    }

    /// After the last event nothing happens any more, whatever one tries.
    fn check_closed(&mut self) {
        let connection = &mut self.connection;
        for _ in 0..2 {
            let mut input = &b"\0\0\0\0"[..];
            assert_eq!(connection.next_event(&mut input), None);
            assert_eq!((input.len(), connection.wants()), (4, Wants::Closed));
            assert!(connection.segments().next().is_none() && connection.is_closing());
            assert_eq!(connection.transmitted(0).err(), Some(Misuse::WrongPhase));
            assert_eq!(connection.payload_received(0), Err(Misuse::WrongPhase));
            assert_eq!(connection.tls_established(), Err(Misuse::WrongPhase));
            assert_eq!(connection.answer_list([]), Err(Misuse::WrongPhase));
            let unknown = Err(LookupRefusal::Unknown);
            assert_eq!(connection.answer_lookup(unknown), Err(Misuse::WrongPhase));
            for id in self.held.keys() {
                assert_eq!(connection.reply(*id).err(), Some(Misuse::WrongPhase));
            }
            connection.end_of_stream();
            connection.shut_down();
        }
    }
}

fn small(in_flight: u32) -> Config {
    config(|config| {
        config.limits.max_in_flight = in_flight;
        config.limits.max_in_flight_bytes = 6000;
        config.limits.max_option_data = 2000;
        config.limits.max_extents = 20;
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn every_session_closes_once_with_its_reason_and_gives_back_what_it_took(
        mode in prop::sample::select(&MODES[..]),
        options in prop::collection::vec(any::<u8>(), 0..4),
        enter in prop::bool::weighted(0.8),
        requests in prop::collection::vec(any::<(u8, u64, u64, bool)>(), 0..12),
        end in any::<u8>(),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
        in_flight in prop::sample::select(&[1, 2, 128][..]),
        seeds in prop::array::uniform3(any::<u64>()),
    ) {
        let stream = stream(mode, &options, enter, &requests, end);
        let length = if whole { stream.len() } else { cut.index(stream.len() + 1) };
        let outcomes = seeds.map(|seed| {
            Driver::new(small(in_flight), &stream[..length], seed).run()
        });
        for outcome in &outcomes[1..] {
            prop_assert_eq!(outcome, &outcomes[0], "it depends on how the session is driven");
        }
        if let Err(error) = outcomes[0].closed {
            prop_assert!(!matches!(error, Error::Internal(_)), "{}", error);
        }
    }
}
