//! The server's machine with somebody who answers, driven by bytes.

use std::collections::HashMap;

use nbd_proto::server::{Connection, Event, Incoming};
use nbd_proto::{Error, RequestId, Segment};

use crate::split::Split;

/// Who answers.
pub trait Embedder {
    /// Something happened.
    fn event(&mut self, connection: &mut Connection, event: &Event);

    /// A part of a write's payload arrived.
    fn payload(&mut self, request: RequestId, offset: u64, bytes: &[u8]);

    /// A write's payload has arrived wholly.
    fn received(&mut self, connection: &mut Connection, request: RequestId);

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
    /// What happened: events, payloads, the error.
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
        // Oldstyle has no haggling: what is queued is the greeting.
        let greeting = connection.segments().map(|segment| segment.len()).sum();
        Self {
            entered: connection.is_transmitting().then_some(greeting),
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

    /// Takes bytes from the client, and does all that can be done.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.staging.extend_from_slice(bytes);
        // Each round eats, transmits, answers or raises something. There is a bound to that, or it would not end.
        let most = 64 * (self.staging.len() + 64) + self.connection.requests_in_flight() * 64;
        for _ in 0..most {
            let mut moved = self.step();
            if !self.lazy || !moved {
                moved |= self.transmit();
            }
            if !moved && !self.relieve() {
                return;
            }
        }
        panic!("no end of it: {:?}", self.connection.incoming());
    }

    /// The client closed: the rest is answered and sent.
    pub fn close(&mut self) {
        if self.error.is_none() {
            let end = self.connection.end_of_stream();
            self.log.push(format!("end: {end:?}"));
            self.settle();
        }
        while self.transmit() || self.ask(|embedder, connection| embedder.relieve(connection)) {}
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

    fn step(&mut self) -> bool {
        match self.connection.incoming() {
            Incoming::Control { need } => self.control(need),
            Incoming::Payload { request, offset, remaining } => {
                let count = self.staging.len().min(remaining as usize);
                self.embedder.payload(request, offset, &self.staging[..count]);
                self.skip(count);
                if count as u64 == remaining {
                    self.log.push(format!("received {}", self.numbers[&request]));
                    self.ask(|embedder, connection| embedder.received(connection, request));
                }
                count > 0
            }
            Incoming::Discard { remaining } => {
                let count = self.staging.len().min(remaining as usize);
                self.skip(count);
                count > 0
            }
            Incoming::Tls => {
                // There is no real TLS here: the handshake has happened.
                assert!(self.staging.is_empty(), "plain text is kept for TLS");
                self.connection.tls_established().expect("it was due");
                self.log.push("TLS".into());
                true
            }
            Incoming::Terminated => {
                // An answer may have ended it: the error is still to be told.
                self.error.is_none() && self.connection.is_finished() && self.control(0)
            }
            Incoming::Paused(_) => false,
            other => panic!("unknown: {other:?}"),
        }
    }

    fn skip(&mut self, count: usize) {
        self.staging.drain(..count);
        self.connection.payload_received(count as u64).expect("no more than remained");
    }

    fn control(&mut self, need: usize) -> bool {
        let before = self.staging.len();
        let mut input = &self.staging[..];
        let result = self.connection.next_event(&mut input);
        let rest = input.len();
        assert!(self.staging.ends_with(input) && rest <= before, "it ate what is not there");
        self.staging.drain(..before - rest);
        match result {
            Ok(Some(event)) => {
                assert!(before >= need, "{event:?} came before its last byte");
                if let Event::Request(request) = event {
                    self.log.push(format!("{} {:?}", self.raised, request.command));
                    let earlier = self.numbers.insert(request.id, self.raised);
                    assert_eq!(earlier, None, "the name is in use");
                    self.raised += 1;
                } else {
                    self.log.push(format!("{event:?}"));
                }
                self.ask(|embedder, connection| embedder.event(connection, &event));
                true
            }
            Ok(None) => rest < before,
            Err(error) => {
                self.log.push(format!("error: {error}"));
                self.error = Some(error);
                assert_eq!(self.connection.next_event(&mut &[][..]), Err(error), "errors stick");
                assert_eq!(self.connection.incoming(), Incoming::Terminated);
                false
            }
        }
    }

    fn relieve(&mut self) -> bool {
        matches!(self.connection.incoming(), Incoming::Paused(_))
            && self.ask(|embedder, connection| embedder.relieve(connection))
    }

    /// Sends all there is. `false` if there was nothing.
    fn transmit(&mut self) -> bool {
        let mut sent = false;
        loop {
            let (mut control, mut all) = (0, 0);
            for segment in self.connection.segments() {
                assert!(!segment.is_empty(), "an empty segment makes writers spin");
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
                    Segment::Body { request, offset, .. } => {
                        let before = self.output.len();
                        self.embedder.body(request, offset, length, &mut self.output);
                        assert_eq!(self.output.len() - before, length);
                    }
                }
                rest -= length;
            }
            self.connection.transmitted(count).expect("no more than there was");
            self.settle();
        }
    }

    fn settle(&mut self) {
        while let Some(request) = self.connection.next_finished() {
            self.finished += 1;
            self.numbers.remove(&request);
            self.embedder.finished(request);
        }
    }
}
