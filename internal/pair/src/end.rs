//! The loop that drives a machine of either role.

use core::ops::{Deref, DerefMut};

use nbd_proto::{Command, Error, Misuse, OrderlyEnd, PauseReason, RequestId, Segment, Wants};

use crate::machine::Machine;
use crate::split::Split;

/// A machine, the data of its requests, and what acts on its events.
pub trait Role {
    /// The machine.
    type Machine: Machine;

    /// The machine.
    fn machine(&self) -> &Self::Machine;

    /// The machine.
    fn machine_mut(&mut self) -> &mut Self::Machine;

    /// Checks an event, acts on it, and gives its line of the log: nothing if it depends on how streams are cut.
    fn event(&mut self, event: <Self::Machine as Machine>::Event) -> Option<String>;

    /// Takes data of a request; `remaining` bytes are still to come, these among them.
    fn payload(
        &mut self,
        id: RequestId,
        command: Command,
        offset: u64,
        remaining: u64,
        bytes: &[u8],
    );

    /// Appends `length` bytes of a request's data.
    fn body(&self, id: RequestId, offset: u64, length: usize, out: &mut Vec<u8>);

    /// The machine does not need the data of a request any more.
    fn finished(&mut self, id: RequestId);

    /// Nothing can be read until the machine is given something. `false` if there is nothing to give.
    fn relieve(&mut self) -> bool {
        false
    }
}

/// A machine in its role, and both its streams.
#[derive(Debug)]
pub struct End<R> {
    role: R,
    /// What happened: events, the end.
    pub log: Vec<String>,
    /// All that was sent.
    pub output: Vec<u8>,
    /// How the connection ended.
    pub closed: Option<Result<OrderlyEnd, Error>>,
    /// Requests whose data was given back.
    pub finished: usize,
    /// Whether output is left in the queue until something waits for it.
    pub lazy: bool,
    /// Whether TLS is established as soon as it is due: there is no real TLS here.
    pub handshakes: bool,
    /// Where the output lies that the role gave for an event, once an export is in use.
    pub spans: Vec<(usize, usize)>,
    /// Where the output of transmission begins.
    pub entered: Option<usize>,
    taken: usize,
    staging: Vec<u8>,
    pieces: Split,
    largest_queue: usize,
}

impl<R> Deref for End<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.role
    }
}

impl<R> DerefMut for End<R> {
    fn deref_mut(&mut self) -> &mut R {
        &mut self.role
    }
}

impl<R: Role> End<R> {
    /// A new connection. Its output goes out in pieces of this kind.
    #[must_use]
    pub fn new(role: R, pieces: Split) -> Self {
        // Oldstyle has no negotiation: what is queued is the greeting.
        let greeting = role.machine().segments().map(|segment| segment.len()).sum();
        Self {
            entered: role.machine().is_transmitting().then_some(greeting),
            role,
            log: Vec::new(),
            output: Vec::new(),
            closed: None,
            finished: 0,
            lazy: false,
            handshakes: true,
            spans: Vec::new(),
            taken: 0,
            staging: Vec::new(),
            pieces,
            largest_queue: 0,
        }
    }

    pub(crate) fn into_role(self) -> R {
        self.role
    }

    /// Whether the last event was raised.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.closed.is_some()
    }

    /// The error that the connection ended with, if it did.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.closed.and_then(Result::err)
    }

    /// Bytes that were received and not consumed.
    #[must_use]
    pub const fn left_over(&self) -> usize {
        self.staging.len()
    }

    /// The most control bytes that ever waited to be sent.
    #[must_use]
    pub const fn largest_queue(&self) -> usize {
        self.largest_queue
    }

    /// All that was sent, and what waits to be.
    #[must_use]
    pub fn position(&self) -> usize {
        let queued: usize = self.role.machine().segments().map(|segment| segment.len()).sum();
        self.output.len() + queued
    }

    /// Takes bytes from the peer, and does all that can be done.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.turns(bytes, true);
    }

    /// Takes bytes from the peer without sending anything, and drops those that are not wanted now.
    pub fn hear(&mut self, bytes: &[u8]) {
        self.turns(bytes, false);
        self.staging.clear();
    }

    fn turns(&mut self, bytes: &[u8], sends: bool) {
        self.staging.extend_from_slice(bytes);
        // Each round consumes, transmits, answers or raises something. There is a bound to that, or it would not end.
        let in_flight = self.role.machine().requests_in_flight();
        for _ in 0..64 * (self.staging.len() + 64 + in_flight) {
            let mut moved = self.step();
            if sends && (!self.lazy || !moved) {
                moved |= self.transmit();
            }
            if sends && !moved {
                moved = self.relieve();
            }
            if !moved {
                return;
            }
        }
        panic!("no end of it: {:?}", self.role.machine().wants());
    }

    /// The peer closed: the rest is answered and sent.
    pub fn close(&mut self) {
        self.role.machine_mut().end_of_stream();
        while self.step() || self.transmit() || self.relieve() {}
        assert!(self.ended(), "the end was not reported: {:?}", self.role.machine().wants());
    }

    /// Sends all there is, and gives what was sent since the last time.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.transmit();
        let new = self.output[self.taken..].to_vec();
        self.taken = self.output.len();
        new
    }

    /// Takes bytes without acting on them.
    pub(crate) fn stage(&mut self, bytes: &[u8]) {
        self.staging.extend_from_slice(bytes);
    }

    /// Handles one event, or a piece of a payload. `false` if there is nothing to be done.
    pub fn step(&mut self) -> bool {
        let before = self.staging.len();
        let machine = self.role.machine_mut();
        let wanted = machine.wants();
        let mut input = &self.staging[..];
        let event = machine.next_event(&mut input);
        let rest = input.len();
        assert!(self.staging.ends_with(input) && rest <= before, "it consumed what is not there");
        self.staging.drain(..before - rest);
        if let Some(event) = event {
            self.event(event, wanted, before);
            return true;
        }
        let machine = self.role.machine_mut();
        match machine.wants() {
            Wants::Bytes { at_least } => {
                assert!(at_least > 0 && self.staging.is_empty(), "bytes lie idle");
            }
            Wants::Payload { id, command, offset, remaining, .. } => {
                assert!(remaining > 0 && offset + remaining <= command.length());
                let count = self.staging.len().min(remaining as usize);
                self.role.payload(id, command, offset, remaining, &self.staging[..count]);
                self.staging.drain(..count);
                let received = self.role.machine_mut().payload_received(count as u64);
                received.expect("no more than remained");
                return count > 0;
            }
            Wants::Tls => {
                assert!(self.staging.is_empty(), "plain text is kept for TLS");
                if self.handshakes {
                    machine.tls_established().expect("it was due");
                    self.log.push("TLS".into());
                }
                return self.handshakes;
            }
            Wants::Closed => {
                assert!(self.ended());
                // What comes now is not read.
                self.staging.clear();
            }
            Wants::Nothing(reason) => assert_ne!(reason, PauseReason::EventDue),
            other => panic!("unknown: {other:?}"),
        }
        rest < before
    }

    fn event(&mut self, event: <R::Machine as Machine>::Event, wanted: Wants, available: usize) {
        assert!(!self.ended(), "{event:?} after the end");
        self.closed = R::Machine::closed(&event);
        if let Some(end) = self.closed {
            self.check_closed(end);
        } else if let Wants::Bytes { at_least } = wanted {
            assert!(available >= at_least, "{event:?} came before its last byte");
        }
        let line = self.ask(|role| role.event(event));
        self.log.extend(line);
    }

    /// After the last event nothing happens any more.
    fn check_closed(&mut self, end: Result<OrderlyEnd, Error>) {
        assert!(!matches!(end, Err(Error::Internal(_))), "{end:?}");
        let machine = self.role.machine_mut();
        assert!(machine.next_event(&mut &[0; 64][..]).is_none(), "nothing follows");
        assert_eq!(machine.wants(), Wants::Closed);
        assert!(machine.is_closing() && machine.segments().next().is_none());
        assert_eq!(machine.transmitted(0).err(), Some(Misuse::WrongPhase));
    }

    /// Has the role act, and takes down what it sends.
    fn ask<T>(&mut self, call: impl FnOnce(&mut R) -> T) -> T {
        let before = self.position();
        let result = call(&mut self.role);
        let after = self.position();
        match self.entered {
            None if self.role.machine().is_transmitting() => self.entered = Some(after),
            Some(_) if after > before => self.spans.push((before, after)),
            _ => {}
        }
        result
    }

    fn relieve(&mut self) -> bool {
        matches!(self.role.machine().wants(), Wants::Nothing(_)) && self.ask(Role::relieve)
    }

    /// Sends all there is. `false` if there was nothing.
    pub fn transmit(&mut self) -> bool {
        let mut sent = false;
        while self.send() {
            sent = true;
        }
        sent
    }

    /// Sends one piece. `false` if there was nothing.
    pub fn send(&mut self) -> bool {
        let (mut control, mut all) = (0, 0);
        for segment in self.role.machine().segments() {
            assert!(segment.len() > 0, "an empty segment makes writers spin");
            all += segment.len();
            if let Segment::Control(run) = segment {
                control += run.len();
            }
        }
        self.largest_queue = self.largest_queue.max(control);
        let count = self.pieces.next(all);
        if count == 0 {
            return false;
        }
        let mut rest = count;
        for segment in self.role.machine().segments() {
            let length = segment.len().min(rest);
            match segment {
                _ if length == 0 => break,
                Segment::Control(run) => self.output.extend_from_slice(&run[..length]),
                Segment::Body { id, offset, .. } => {
                    let before = self.output.len();
                    self.role.body(id, offset, length, &mut self.output);
                    assert_eq!(self.output.len() - before, length);
                }
            }
            rest -= length;
        }
        let finished = self.role.machine_mut().transmitted(count).expect("no more than there was");
        for id in finished.collect::<Vec<_>>() {
            self.finished += 1;
            self.role.finished(id);
        }
        true
    }
}
