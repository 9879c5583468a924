//! The life of requests: whatever is submitted, transmitted, answered and cut off in whatever order and pieces, each
//! request ends once, nothing follows the end of the connection, and what was seen of replies is complete.

use nbd_proto::client::{CommandError, Connection, Event};
use nbd_proto::wire::{BlockStatusDescriptor, ErrorCode, ReplyType};
use nbd_proto::{Command, Error, Misuse, OrderlyEnd, PauseReason, RequestId, Segment, Wants};
use proptest::prelude::*;

use crate::peer::*;

/// What is known of a byte of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Byte {
    Unknown,
    Data(u8),
    Hole,
}

/// A request, as the other end and the embedder see it.
#[derive(Debug)]
struct Request {
    id: RequestId,
    command: Command,
    cookie: u64,
    /// Its first byte and the one behind its last, in all that the client sends.
    position: (u64, u64),
    /// Parts of a read, or contexts of a block status, that the server has not answered, counted from the request's own
    /// offset.
    open: Vec<(u64, u64)>,
    /// The last chunk is in the stream.
    answered: bool,
    /// Errors in the stream, in order.
    errors: Vec<(u32, Option<u64>)>,
    /// Error chunks that were seen.
    seen_errors: usize,
    expected: Vec<Byte>,
    seen: Vec<Byte>,
    extents: (u64, u64),
    freed: bool,
    ended: bool,
}

struct Session {
    client: Connection,
    mode: Mode,
    requests: Vec<Request>,
    /// What the server has sent and the client has not received.
    stream: Vec<u8>,
    transmitted: u64,
    closed: Option<Result<OrderlyEnd, Error>>,
}

const fn pattern(offset: u64) -> u8 {
    (offset % 251) as u8
}

impl Session {
    fn new(mode: Mode) -> Self {
        let mut config = config(mode);
        config.limits.max_in_flight = 5;
        Self {
            client: transmitting_with(mode, config).into_connection(),
            mode,
            requests: Vec::new(),
            stream: Vec::new(),
            transmitted: 0,
            closed: None,
        }
    }

    fn queued(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in self.client.segments() {
            match segment {
                Segment::Control(control) => bytes.extend_from_slice(control),
                Segment::Body { id, length, .. } => {
                    let request = self.requests.iter().rfind(|request| request.id == id).unwrap();
                    assert!(!request.freed && !request.ended, "the body of {id:?} is void");
                    bytes.resize(bytes.len() + length, 7);
                }
            }
        }
        bytes
    }

    fn in_flight(&self) -> usize {
        self.requests.iter().filter(|request| !request.ended).count()
    }

    fn submit(&mut self, command: Command) {
        let before = self.queued().len();
        let result = self.client.submit(command);
        let status = matches!(command, Command::BlockStatus { .. });
        let possible = self.closed.is_none()
            && !self.client.is_closing()
            && self.in_flight() < 5
            && !(self.mode == Mode::Simple && status);
        assert_eq!(result.is_ok(), possible, "{command:?}: {result:?}");
        let Ok(id) = result else { return };
        assert!(self.requests.iter().all(|request| request.id != id), "ids are not repeated");
        let same_index = |other: &&Request| !other.ended && other.id.index() == id.index();
        assert!(self.requests.iter().find(same_index).is_none(), "indices in use are not shared");
        let at = |length: usize| self.transmitted + length as u64;
        let open = match command {
            Command::Read { length, .. } => vec![(0, length)],
            Command::BlockStatus { .. } => vec![(5, 0), (9, 0)],
            _ => Vec::new(),
        };
        let length = if let Command::Read { length, .. } = command { length as usize } else { 0 };
        let position = (at(before), u64::MAX);
        self.requests.push(Request {
            id,
            command,
            cookie: 0,
            position,
            open,
            answered: false,
            errors: Vec::new(),
            seen_errors: 0,
            expected: vec![Byte::Unknown; length],
            seen: vec![Byte::Unknown; length],
            extents: (0, 0),
            freed: false,
            ended: false,
        });
        let bytes = self.queued();
        let end = self.transmitted + bytes.len() as u64;
        let cookie = u64::from_be_bytes(bytes[before + 8..before + 16].try_into().unwrap());
        let same = self.requests.iter().find(|other| !other.ended && other.cookie == cookie);
        assert!(same.is_none_or(|other| other.id == id), "cookies in flight differ");
        let request = self.requests.last_mut().unwrap();
        request.cookie = cookie;
        request.position.1 = end;
    }

    fn transmit(&mut self, count: usize) {
        if self.closed.is_some() {
            assert_eq!(self.client.transmitted(0).err(), Some(Misuse::WrongPhase));
            return;
        }
        let count = count.min(self.queued().len());
        self.transmitted += count as u64;
        let freed: Vec<RequestId> = self.client.transmitted(count).unwrap().collect();
        for request in &mut self.requests {
            let writes = matches!(request.command, Command::Write { .. });
            let gone = writes && !request.ended && request.position.1 <= self.transmitted;
            assert_eq!(freed.contains(&request.id), gone && !request.freed, "{request:?}");
            request.freed |= gone;
        }
        self.receive(0);
    }

    /// The server sends the next piece of an answer.
    fn answer(&mut self, which: usize, kind: u8, piece: (u64, u64)) {
        let waiting: Vec<usize> = (0..self.requests.len())
            .filter(|index| !self.requests[*index].answered && !self.requests[*index].ended)
            .collect();
        if waiting.is_empty() || self.closed.is_some() {
            return;
        }
        let request = &mut self.requests[waiting[which % waiting.len()]];
        let offset = request.command.offset();
        let chunks = Chunks { mode: self.mode, cookie: request.cookie, offset };
        if self.mode == Mode::Simple {
            request.answered = true;
            if kind.is_multiple_of(4) {
                request.errors.push((5, None));
                self.stream.extend(simple(ErrorCode::EIO, request.cookie));
                return;
            }
            self.stream.extend(simple(ErrorCode::OK, request.cookie));
            for (index, byte) in request.expected.iter_mut().enumerate() {
                *byte = Byte::Data(pattern(offset + index as u64));
                self.stream.push(pattern(offset + index as u64));
            }
            return;
        }
        let last = kind % 16 == 15 || (request.open.len() < 2 && kind >= 128);
        let flags = u16::from(last);
        request.answered = last;
        let untrusted = request.errors.iter().any(|(_, offset)| offset.is_none());
        match kind % 8 {
            0 => {
                request.errors.push((5, None));
                self.stream.extend(chunks.error(flags, 5, "bad", None));
            }
            1..=6 if !request.open.is_empty() => {
                let index = piece.0 as usize % request.open.len();
                if let Command::BlockStatus { .. } = request.command {
                    let (context, _) = request.open.remove(index);
                    let count = piece.1 % 1500 + 1;
                    let extended = self.mode == Mode::Extended;
                    let mut payload = (context as u32).to_be_bytes().to_vec();
                    if extended {
                        payload.extend((count as u32).to_be_bytes());
                    }
                    for length in 1..=count {
                        BlockStatusDescriptor { length, status: 1 }.encode(extended, &mut payload);
                        request.extents.0 += length;
                    }
                    let reply = if extended {
                        ReplyType::BLOCK_STATUS_EXT
                    } else {
                        ReplyType::BLOCK_STATUS
                    };
                    self.stream.extend(chunks.chunk(reply, flags, &payload));
                    return;
                }
                let (start, end) = request.open.remove(index);
                let from = start + piece.0 % (end - start);
                let to = from + 1 + piece.1 % (end - from);
                request.open.extend([(start, from), (to, end)].iter().filter(|gap| gap.0 < gap.1));
                let range = from as usize..to as usize;
                match kind % 8 {
                    1 => {
                        request.errors.push((12, Some(offset + from)));
                        self.stream.extend(chunks.error(flags, 12, "", Some(offset + from)));
                    }
                    2 | 3 => {
                        if !untrusted {
                            request.expected[range].fill(Byte::Hole);
                        }
                        self.stream.extend(chunks.hole(flags, offset + from, (to - from) as u32));
                    }
                    _ => {
                        let data: Vec<u8> = (from..to).map(|at| pattern(offset + at)).collect();
                        if !untrusted {
                            let bytes = data.iter().map(|byte| Byte::Data(*byte));
                            request.expected.splice(range, bytes);
                        }
                        self.stream.extend(chunks.data(flags, offset + from, &data));
                    }
                }
            }
            _ => {
                request.answered = true;
                self.stream.extend(chunks.none());
            }
        }
    }

    fn find(&mut self, id: RequestId) -> &mut Request {
        let request = self.requests.iter_mut().rfind(|request| request.id == id).unwrap();
        assert!(!request.ended, "{id:?} is over");
        request
    }

    /// The client receives `count` bytes.
    fn receive(&mut self, count: usize) {
        let bytes: Vec<u8> = self.stream.drain(..count.min(self.stream.len())).collect();
        let mut bytes = &bytes[..];
        for _ in 0..bytes.len() * 4 + 100 {
            let before = bytes;
            if let Some(event) = self.client.next_event(&mut bytes) {
                self.event(event);
                continue;
            }
            match self.client.wants() {
                Wants::Payload { id, command, offset, remaining, .. } => {
                    let count = bytes.len().min(remaining as usize);
                    if count == 0 {
                        return;
                    }
                    let request = self.find(id);
                    assert_eq!(request.command, command);
                    for (index, byte) in bytes[..count].iter().enumerate() {
                        let slot = &mut request.seen[offset as usize + index];
                        assert_eq!(*slot, Byte::Unknown, "what was seen is not seen again");
                        *slot = Byte::Data(*byte);
                    }
                    bytes = &bytes[count..];
                    self.client.payload_received(count as u64).unwrap();
                }
                wants => {
                    assert_ne!(wants, Wants::Nothing(PauseReason::EventDue));
                    assert_eq!(wants == Wants::Closed, self.closed.is_some());
                    assert!(bytes.is_empty() || self.client.is_closing(), "{wants:?}");
                    assert!(bytes.len() <= before.len());
                    assert_eq!(self.client.requests_in_flight(), self.in_flight());
                    return;
                }
            }
        }
        panic!("no end of it: {:?}", self.client.wants());
    }

    fn event(&mut self, event: Event) {
        assert!(self.closed.is_none(), "{event:?} after the end");
        match event {
            Event::Hole { id, offset, length } => {
                let range = offset as usize..(offset + length) as usize;
                let seen = &mut self.find(id).seen[range];
                assert!(seen.iter().all(|byte| *byte == Byte::Unknown));
                seen.fill(Byte::Hole);
            }
            Event::Extents { id, context, extents } => {
                assert!(!extents.is_empty() && extents.len() <= 512 && [5, 9].contains(&context));
                let sum: u64 = extents.iter().map(|extent| extent.length).sum();
                self.find(id).extents.1 += sum;
            }
            Event::ErrorChunk { id, error } => {
                let request = self.find(id);
                let expected = request.errors[request.seen_errors];
                assert_eq!((error.code.0, error.offset), expected);
                request.seen_errors += 1;
            }
            Event::Completed { id, result } => {
                let (mode, transmitted) = (self.mode, self.transmitted);
                // A refusal holds even if the connection ends before the request was transmitted.
                let refused = result.is_err() && self.client.is_closing();
                let request = self.find(id);
                request.ended = true;
                assert!(request.answered);
                assert!(refused || transmitted >= request.position.1, "the buffer is in use");
                request.check(mode, result);
            }
            Event::Abandoned { id, sent } => {
                let transmitted = self.transmitted;
                let request = self.find(id);
                request.ended = true;
                assert_eq!(sent, transmitted > request.position.0, "{request:?}");
            }
            Event::Closed(end) => {
                self.closed = Some(end);
                assert_eq!(self.in_flight(), 0);
                assert!(self.client.segments().next().is_none());
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Request {
    /// What was seen of a reply is all that was sent, and the result is what follows from it.
    fn check(&self, mode: Mode, result: Result<(), CommandError>) {
        assert_eq!(self.seen, self.expected, "{self:?}");
        assert_eq!(self.extents.0, self.extents.1);
        let chunks = if mode == Mode::Simple { 0 } else { self.errors.len() };
        assert_eq!(self.seen_errors, chunks);
        let whole = self.errors.iter().find(|(_, offset)| offset.is_none());
        let missing = match self.command {
            Command::Read { .. } => self.expected.contains(&Byte::Unknown),
            Command::BlockStatus { .. } => !self.open.is_empty(),
            _ => false,
        };
        let expected = match whole.or(self.errors.first()) {
            Some((code, offset)) => Err((*code, *offset)),
            None if missing => Err((5, None)),
            None => Ok(()),
        };
        assert_eq!(result.map_err(|error| (error.code.0, error.offset)), expected, "{self:?}");
    }
}

/// How a session ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Disconnect,
    DisconnectNow,
    HangUp,
    Garbage,
}

#[derive(Clone, Debug)]
enum Step {
    Submit(Command),
    Transmit(usize),
    Answer(usize, u8, (u64, u64)),
    Receive(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let command = (0u8..8, 0u64..1000, 1u64..200).prop_map(|(kind, offset, length)| match kind {
        0..=2 => Command::read(offset, length),
        3 | 4 => Command::write(offset, length),
        5 => Command::flush(),
        6 => Command::trim(offset, length),
        _ => Command::block_status(offset, length),
    });
    prop_oneof![
        2 => command.prop_map(Step::Submit),
        2 => (0usize..300).prop_map(Step::Transmit),
        4 => (any::<usize>(), any::<u8>(), (any::<u64>(), any::<u64>()))
            .prop_map(|(which, kind, piece)| Step::Answer(which, kind, piece)),
        3 => (0usize..200).prop_map(Step::Receive),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 512 } else { 4096 }))]

    #[test]
    fn each_request_ends_once_and_the_connection_last(
        steps in prop::collection::vec(step(), 0..60),
        mode in prop::sample::select(vec![Mode::Simple, Mode::Structured, Mode::Extended]),
        end in prop::sample::select(vec![End::Disconnect, End::DisconnectNow, End::HangUp, End::Garbage]),
        rest in any::<bool>(),
    ) {
        let mut session = Session::new(mode);
        for step in steps {
            match step {
                Step::Submit(command) => session.submit(command),
                Step::Transmit(count) => session.transmit(count),
                Step::Answer(which, kind, piece) => session.answer(which, kind, piece),
                Step::Receive(count) => session.receive(count),
            }
        }
        if rest {
            // All is answered, whether it was transmitted or not.
            while session.requests.iter().any(|request| !request.answered && !request.ended) {
                session.answer(0, 7, (0, 0));
            }
            session.receive(usize::MAX);
            session.transmit(usize::MAX);
            prop_assert_eq!(session.client.requests_in_flight(), 0);
        }
        match end {
            End::Disconnect => session.client.disconnect(),
            End::DisconnectNow => session.client.disconnect_now(),
            End::HangUp => {}
            End::Garbage => session.stream.extend([0x55; 64]),
        }
        session.submit(Command::flush());
        session.receive(usize::MAX);
        if matches!(end, End::Disconnect | End::DisconnectNow) {
            prop_assert!(session.client.is_closing());
            session.transmit(usize::MAX);
        }
        session.client.end_of_stream();
        session.receive(usize::MAX);
        let all_answered = session.requests.iter().all(|request| request.answered);
        match session.closed {
            Some(Ok(reason)) => {
                prop_assert_eq!(reason, OrderlyEnd::Disconnected);
                prop_assert!(all_answered && matches!(end, End::Disconnect | End::DisconnectNow));
            }
            Some(Err(Error::Internal(fault))) => prop_assert!(false, "{}", fault),
            Some(Err(_)) => {
                prop_assert!(!all_answered || matches!(end, End::HangUp | End::Garbage));
            }
            None => prop_assert!(false, "the end was not reported"),
        }
        prop_assert_eq!(session.client.next_event(&mut &[0; 64][..]), None);
        prop_assert_eq!(session.client.wants(), Wants::Closed);
        prop_assert_eq!(session.in_flight(), 0);
    }
}
