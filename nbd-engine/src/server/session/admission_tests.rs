//! Requests that wait for layers, in virtual time.

use std::sync::Mutex;

use futures_util::FutureExt;
use nbd_proto::Command;
use nbd_proto::wire::{CommandType, ErrorCode};
use nbd_testkit::{Random, cases};

use super::tests::{Script, script};
use super::*;
use crate::export::{
    Export, ExportMap, Injected, Injection, Layer, Layered, Memory, PeerAddr, RateLimit,
    RateLimited, Rates, Result,
};
use crate::runtime::BoxFuture;
use crate::server::ServerConfig;

/// A runtime whose time is set by hand.
#[derive(Clone)]
struct Hand(Arc<Mutex<Instant>>);

impl Hand {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn set(&self, now: Instant) {
        *self.0.lock().unwrap() = now;
    }
}

impl Runtime for Hand {
    fn sleep(&self, _: Duration) -> BoxFuture {
        Box::pin(core::future::pending())
    }

    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }

    fn spawn(&self, _: BoxFuture) {}
}

/// A request that is over: the command, whether it succeeded, and how long it took.
type Finished = (Command, std::result::Result<(), ErrorCode>, Duration);

/// Notes requests that are over.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<Finished>>>);

impl Layer for Notes {
    const ADMITS: bool = true;

    fn finished(&self, _: &ClientInfo, command: &Command, result: &Result<()>, took: Duration) {
        let result = result.clone().map_err(|error| error.code());
        self.0.lock().unwrap().push((*command, result, took));
    }
}

/// A client that has sent all its requests to an export.
struct Case {
    session: Session<Script>,
    time: Hand,
    notes: Notes,
    begun: Instant,
}

impl Case {
    fn new(disk: impl Export, input: Vec<u8>) -> Self {
        Self::with_config(disk, input, ServerConfig::new())
    }

    fn with_config(disk: impl Export, input: Vec<u8>, config: ServerConfig) -> Self {
        let notes = Notes::default();
        let disk = Layered::with(disk, notes.clone());
        let exports = ExportMap::new().with("", disk).unwrap();
        let state = ServerState::new(exports, config);
        let client = state.client(PeerAddr::Unix(None));
        let time = Hand::new();
        let session = Session::new(state, Script::new(input), client, None, &time);
        let session = session.now_or_never().unwrap().unwrap();
        let begun = time.now();
        Self { session, time, notes, begun }
    }

    /// Does all that can be done now.
    fn poll(&mut self) {
        let mut cx = Context::from_waker(core::task::Waker::noop());
        for _ in 0..10_000 {
            assert!(self.session.poll(&mut cx).is_pending());
            if !self.session.has_more_to_do() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Time passes until something is due; gives how much has passed in all.
    fn step(&mut self) -> Option<Duration> {
        let due = self.session.due()?;
        assert!(due > self.time.now(), "it was due before");
        self.time.set(due);
        self.poll();
        Some(due - self.begun)
    }

    fn finished(&self) -> usize {
        self.notes.0.lock().unwrap().len()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn delays_run_side_by_side_and_are_reported() {
    let delay = Injection::new(1).delay(SECOND..=SECOND);
    let disk = Injected::new(Memory::new(1 << 20).unwrap(), delay);
    let mut case = Case::new(disk, script(CommandType::READ, 4096, 100));
    case.poll();
    assert_eq!((case.finished(), case.session.requests_in_flight()), (0, 100));
    assert_eq!(case.step(), Some(SECOND));
    assert_eq!((case.finished(), case.session.due()), (100, None));
    let notes = case.notes.0.lock().unwrap();
    assert!(notes.iter().all(|(_, result, took)| result.is_ok() && *took == SECOND));
    // In the order in which they came.
    assert!(notes.iter().map(|(command, ..)| command.offset()).is_sorted());
}

#[test]
fn requests_beyond_a_rate_are_carried_out_one_by_one_in_order() {
    let rates = Rates::new().requests_per_second(10);
    let limit = RateLimit::new().for_export(rates).burst(Duration::ZERO);
    let disk = RateLimited::new(Memory::new(1 << 20).unwrap(), limit);
    let mut case = Case::new(disk, script(CommandType::READ, 512, 50));
    case.poll();
    for count in 1..50 {
        assert_eq!(case.finished(), count);
        assert_eq!(case.step(), Some(count as u32 * SECOND / 10));
    }
    assert_eq!((case.finished(), case.session.due()), (50, None));
    let notes = case.notes.0.lock().unwrap();
    assert!(notes.iter().map(|(command, ..)| command.offset()).is_sorted());
}

/// Whatever waits, and wherever its payload lay meanwhile, everything is carried out once and as it was sent.
#[test]
fn everything_that_waits_is_carried_out_once_with_its_own_data() {
    cases(10, |random: &mut Random| {
        let length = random.of(&[512, 4096, 16 << 10, 48 << 10, 256 << 10]);
        let count = 60;
        let memory = Arc::new(Memory::new(u64::from(length) * count).unwrap());
        let delay = Injection::new(random.next()).probability(0.6).delay(Duration::ZERO..=SECOND);
        let rates = Rates::new().bytes_per_second(u64::from(length) * (1 + random.below(50)));
        let limit = RateLimit::new().for_each_client(rates);
        let disk = RateLimited::new(Injected::new(Arc::clone(&memory), delay), limit);
        let mut input = script(CommandType::WRITE, length, 0);
        for cookie in 0..count {
            let flags = nbd_proto::wire::CommandFlags::empty();
            let (command, offset) = (CommandType::WRITE, cookie * u64::from(length));
            input.extend(CompactRequest { flags, command, cookie, offset, length }.encode());
            input.resize(input.len() + length as usize, cookie as u8 + 1);
        }
        let mut case = Case::new(disk, input);
        case.poll();
        let mut steps = 0;
        while case.step().is_some() {
            steps += 1;
            assert!(steps < 1000);
            // What the server does not receive is no stall of the client.
            if case.session.requests.is_waiting() {
                assert!(!case.session.activity().receiving);
            }
        }
        assert_eq!((case.finished(), case.session.requests_in_flight()), (60, 0));
        let mut bytes = vec![0; length as usize];
        for cookie in 0..count {
            Export::read(&memory, &mut bytes, cookie * u64::from(length)).unwrap();
            assert!(bytes.iter().all(|byte| *byte == cookie as u8 + 1), "{cookie}");
        }
    });
}

/// A request that waits for memory does not hold up those that wait for layers, whose memory it may need.
#[test]
fn little_memory_and_layers_together_hold_nothing_up() {
    cases(30, |random: &mut Random| {
        let delay = Injection::new(random.next()).probability(0.5).delay(Duration::ZERO..=SECOND);
        let rates = Rates::new().requests_per_second(1 + random.below(20));
        let limit = RateLimit::new().for_each_client(rates);
        let size = 32 << 20;
        let disk = RateLimited::new(Injected::new(Memory::new(size).unwrap(), delay), limit);
        let mut input = script(CommandType::READ, 0, 0);
        let count = 2 + random.below(10);
        for cookie in 0..count {
            let flags = nbd_proto::wire::CommandFlags::empty();
            let command = random.of(&[CommandType::READ, CommandType::WRITE]);
            let length = (size as u32) >> random.below(16);
            input.extend(CompactRequest { flags, command, cookie, offset: 0, length }.encode());
            if command == CommandType::WRITE {
                input.resize(input.len() + length as usize, 1);
            }
        }
        let config = ServerConfig::new().with_max_buffer_memory(Some(1));
        let mut case = Case::with_config(disk, input, config);
        case.poll();
        while case.step().is_some() {}
        assert_eq!(case.finished(), count as usize);
    });
}

#[test]
fn no_more_payload_waits_than_the_bound_and_a_request() {
    let delay = Injection::new(1).delay(SECOND..=SECOND);
    let disk = Injected::new(Memory::new(1 << 30).unwrap(), delay);
    let mut case = Case::new(disk, script(CommandType::WRITE, 128 << 10, 100));
    case.poll();
    let received = case.session.activity().received;
    assert!(received <= (1 << 20) + (256 << 10), "{received}");
    assert!(!case.session.activity().receiving);
    while case.step().is_some() {}
    assert_eq!(case.finished(), 100);
}

#[test]
fn a_wait_that_no_clock_reaches_has_no_end() {
    struct Never;
    impl Layer for Never {
        const ADMITS: bool = true;
        fn pace(&self, _: &ClientInfo, _: &Command, _: Instant) -> Duration {
            Duration::MAX
        }
    }
    let vast = Injection::new(1).delay(Duration::MAX..=Duration::MAX);
    let delayed = Injected::new(Memory::new(1 << 20).unwrap(), vast);
    let paced = Layered::with(Memory::new(1 << 20).unwrap(), Never);
    let input = || script(CommandType::READ, 4096, 3);
    for mut case in [Case::new(delayed, input()), Case::new(paced, input())] {
        case.poll();
        assert_eq!((case.finished(), case.session.requests_in_flight()), (0, 3));
        let wait = case.session.due().unwrap() - case.begun;
        assert!(wait > Duration::from_secs(100 * 365 * 24 * 60 * 60), "{wait:?}");
    }
}

#[test]
fn an_injected_error_is_answered_and_nothing_is_carried_out() {
    for delay in [Duration::ZERO, SECOND] {
        let memory = Arc::new(Memory::new(1 << 20).unwrap());
        let fault = Injection::new(1).error(ErrorCode::EPERM).delay(delay..=delay);
        let disk = Injected::new(Arc::clone(&memory), fault);
        let mut case = Case::new(disk, script(CommandType::WRITE, 4096, 10));
        case.poll();
        while case.step().is_some() {}
        let notes = case.notes.0.lock().unwrap();
        assert_eq!(notes.len(), 10);
        assert!(
            notes
                .iter()
                .all(|(_, result, took)| *result == Err(ErrorCode::EPERM) && *took == delay)
        );
        assert_eq!(memory.allocated_bytes(), 0);
    }
}

#[test]
fn a_layer_that_panics_fails_the_request_and_no_other() {
    struct Bad;
    impl Layer for Bad {
        const ADMITS: bool = true;
        fn admit(&self, _: &ClientInfo, command: &Command) -> export::Admit {
            assert!(command.offset() != 0, "not the first");
            export::Admit::NOW
        }
        fn pace(&self, _: &ClientInfo, _: &Command, _: Instant) -> Duration {
            panic!("no pace")
        }
        fn begun(&self, _: &ClientInfo, _: &Command, _: Instant) {
            panic!("no beginning")
        }
    }
    let disk = Layered::with(Memory::new(1 << 20).unwrap(), Bad);
    let mut case = Case::new(disk, script(CommandType::READ, 4096, 3));
    case.poll();
    let results: Vec<_> = case.notes.0.lock().unwrap().iter().map(|note| note.1).collect();
    assert_eq!(results, [Err(ErrorCode::EIO), Ok(()), Ok(())]);
}
