//! The server's machine with somebody who answers, driven by bytes.

use std::collections::HashMap;

use nbd_proto::server::{Connection, Event};
use nbd_proto::{CloseReason, Command, Error, Misuse, PauseReason, RequestId, Segment, Wants};

use crate::split::Split;

/// Who answers.
pub trait Embedder {
    /// Something happened.
    fn event(&mut self, connection: &mut Connection, event: &Event);

    /// A part of a write's payload arrived; the request follows once all of it has.
    fn payload(&mut self, request: RequestId, command: Command, offset: u64, bytes: &[u8]);

    /// Gives data that was announced as read: appends `length` bytes.
    fn body(&self, request: RequestId, offset: u64, length: usize, out: &mut Vec<u8>);

    /// A request is over.
    fn finished(&mut self, request: RequestId);

    /// Nothing more can be read until something is answered. `false` if there is nothing to answer.
    fn relieve(&mut self, connection: &mut Connection) -> bool;
}

/// A connection, and both its streams.
#[derive(Debug)]
pub struct ServerEnd<E> {
    /// The machine.
    pub connection: Connection,
    /// Who answers.
    pub embedder: E,
    /// What happened: events, the end.
    pub log: Vec<String>,
    /// All that was sent.
    pub output: Vec<u8>,
    /// How the connection ended, if it did with an error.
    pub error: Option<Error>,
    /// Requests that are over.
    pub finished: usize,
    /// Whether output is left in the queue until something waits for it.
    pub lazy: bool,
    /// Where the replies lie in the output that the embedder gave in simple form, once an export is in use.
    pub spans: Vec<(usize, usize)>,
    /// Where the output of transmission begins.
    pub entered: Option<usize>,
    closed: Option<Result<CloseReason, Error>>,
    staging: Vec<u8>,
    pieces: Split,
    largest_queue: usize,
    /// Requests in flight are numbered as they come: their own names depend on when places are free.
    numbers: HashMap<RequestId, usize>,
    raised: usize,
}

impl<E: Embedder> ServerEnd<E> {
    /// A new connection of either style. Its output goes out in pieces of this kind.
    #[must_use]
    pub fn new(connection: Connection, embedder: E, pieces: Split) -> Self {
        // Oldstyle has no negotiation: what is queued is the greeting.
        let greeting = connection.segments().map(|segment| segment.len()).sum();
        Self {
            entered: connection.is_transmitting().then_some(greeting),
            closed: None,
            connection,
            embedder,
            log: Vec::new(),
            output: Vec::new(),
            error: None,
            finished: 0,
            lazy: false,
            spans: Vec::new(),
            staging: Vec::new(),
            pieces,
            largest_queue: 0,
            numbers: HashMap::new(),
            raised: 0,
        }
    }

    /// Whether the last event was raised.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.closed.is_some()
    }

    /// Takes bytes from the client, and does all that can be done.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.staging.extend_from_slice(bytes);
        // Each round eats, transmits, answers or raises something. There is a bound to that, or it would not end.
        let max = 64 * (self.staging.len() + 64) + self.connection.requests_in_flight() * 64;
        for _ in 0..max {
            let mut moved = self.step();
            if !self.lazy || !moved {
                moved |= self.transmit();
            }
            if !moved && !self.relieve() {
                return;
            }
        }
        panic!("no end of it: {:?}", self.connection.wants());
    }

    /// The client closed: the rest is answered and sent.
    pub fn close(&mut self) {
        self.connection.end_of_stream();
        while self.step() || self.transmit() || self.relieve() {}
        assert!(self.ended(), "the end was not reported: {:?}", self.connection.wants());
    }

    /// Calls the embedder, and takes down what it answers.
    fn ask<T>(&mut self, call: impl FnOnce(&mut E, &mut Connection) -> T) -> T {
        let before = self.position();
        let result = call(&mut self.embedder, &mut self.connection);
        let after = self.position();
        match self.entered {
            None if self.connection.is_transmitting() => self.entered = Some(after),
            Some(_) if after > before => self.spans.push((before, after)),
            _ => {}
        }
        result
    }

    /// Bytes that were not eaten.
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
        let queued: usize = self.connection.segments().map(|segment| segment.len()).sum();
        self.output.len() + queued
    }

    /// One event, or a piece of a payload. `false` if there is nothing to be done.
    fn step(&mut self) -> bool {
        let before = self.staging.len();
        let wanted = self.connection.wants();
        let mut input = &self.staging[..];
        let event = self.connection.next_event(&mut input);
        let rest = input.len();
        assert!(self.staging.ends_with(input) && rest <= before, "it ate what is not there");
        self.staging.drain(..before - rest);
        if let Some(event) = event {
            if let Wants::Bytes { at_least } = wanted
                && !matches!(event, Event::Closed(_))
            {
                assert!(before >= at_least, "{event:?} came before its last byte");
            }
            self.event(&event);
            return true;
        }
        match self.connection.wants() {
            Wants::Bytes { at_least } => {
                assert!(at_least > 0 && self.staging.is_empty(), "bytes lie idle");
            }
            Wants::Payload { id, command, offset, remaining, .. } => {
                assert!(remaining > 0 && offset + remaining == command.length());
                let count = self.staging.len().min(remaining as usize);
                self.embedder.payload(id, command, offset, &self.staging[..count]);
                self.staging.drain(..count);
                self.connection.payload_received(count as u64).expect("no more than remained");
                return count > 0;
            }
            Wants::Tls => {
                // There is no real TLS here: the handshake has happened.
                assert!(self.staging.is_empty(), "plain text is kept for TLS");
                self.connection.tls_established().expect("it was due");
                self.log.push("TLS".into());
                return true;
            }
            Wants::Closed => assert!(self.ended()),
            Wants::Nothing(reason) => assert_ne!(reason, PauseReason::EventDue),
            other => panic!("unknown: {other:?}"),
        }
        rest < before
    }

    fn event(&mut self, event: &Event) {
        assert!(!self.ended(), "{event:?} after the end");
        match event {
            Event::Request { id, command } => {
                self.log.push(format!("{} {command:?}", self.raised));
                let earlier = self.numbers.insert(*id, self.raised);
                assert_eq!(earlier, None, "the id is in use");
                self.raised += 1;
            }
            Event::Closed(end) => {
                self.log.push(match end {
                    Ok(reason) => format!("closed: {reason}"),
                    Err(error) => format!("error: {error}"),
                });
                self.closed = Some(*end);
                self.error = end.err();
                assert!(!matches!(self.error, Some(Error::Internal(_))), "{end:?}");
                assert!(end.is_err() || self.numbers.is_empty(), "a request did not come back");
                let connection = &mut self.connection;
                assert_eq!(connection.next_event(&mut &[0; 64][..]), None, "nothing follows");
                assert_eq!(connection.wants(), Wants::Closed);
                assert!(connection.is_closing() && connection.segments().next().is_none());
                assert_eq!(connection.transmitted(0).err(), Some(Misuse::WrongPhase));
                // Nobody reads what comes now.
                self.staging.clear();
            }
            other => self.log.push(format!("{other:?}")),
        }
        self.ask(|embedder, connection| embedder.event(connection, event));
    }

    fn relieve(&mut self) -> bool {
        matches!(self.connection.wants(), Wants::Nothing(_))
            && self.ask(|embedder, connection| embedder.relieve(connection))
    }

    /// Sends all there is. `false` if there was nothing.
    fn transmit(&mut self) -> bool {
        let mut sent = false;
        loop {
            let (mut control, mut all) = (0, 0);
            for segment in self.connection.segments() {
                assert!(segment.len() > 0, "an empty segment makes writers spin");
                all += segment.len();
                if let Segment::Control(run) = segment {
                    control += run.len();
                }
            }
            self.largest_queue = self.largest_queue.max(control);
            let count = self.pieces.next(all);
            if count == 0 {
                return sent;
            }
            sent = true;
            let mut rest = count;
            for segment in self.connection.segments() {
                let length = segment.len().min(rest);
                match segment {
                    _ if length == 0 => break,
                    Segment::Control(run) => self.output.extend_from_slice(&run[..length]),
                    Segment::Body { id, offset, .. } => {
                        let before = self.output.len();
                        self.embedder.body(id, offset, length, &mut self.output);
                        assert_eq!(self.output.len() - before, length);
                    }
                }
                rest -= length;
            }
            for id in self.connection.transmitted(count).expect("no more than there was") {
                self.finished += 1;
                assert!(self.numbers.remove(&id).is_some(), "it came back twice, or never showed");
                self.embedder.finished(id);
            }
        }
    }
}
