//! The client's machine with somebody who submits, driven by bytes.

use std::fmt;

use nbd_proto::client::{Connection, Event, Incoming, PauseReason};
use nbd_proto::{Error, Segment};

use crate::split::Split;

/// What a request keeps: its number, and what it reads or writes.
#[derive(Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Counts requests.
    pub tag: usize,
    /// Data.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let sum = self.bytes.iter().fold(0xcbf2_9ce4_8422_2325, add);
        write!(f, "{}: {} bytes, {sum:x}", self.tag, self.bytes.len())
    }
}

/// Who submits.
pub trait Actor {
    /// Something happened. The machine's own data of it is in the buffers already.
    fn event(&mut self, connection: &mut Connection<Buffer>, event: Event<Buffer>);
}

/// A connection, and both its streams.
#[derive(Debug)]
pub struct ClientEnd<A> {
    /// The machine.
    pub connection: Connection<Buffer>,
    /// Who submits.
    pub actor: A,
    /// What happened: events, the error.
    pub log: Vec<String>,
    /// All that was sent.
    pub output: Vec<u8>,
    /// How the connection ended, if it did with an error.
    pub error: Option<Error>,
    staging: Vec<u8>,
    pieces: Split,
}

impl<A: Actor> ClientEnd<A> {
    /// A new connection. Its output goes out in pieces of this kind.
    #[must_use]
    pub fn new(connection: Connection<Buffer>, actor: A, pieces: Split) -> Self {
        let (log, output, staging) = (Vec::new(), Vec::new(), Vec::new());
        Self { connection, actor, log, output, error: None, staging, pieces }
    }

    /// Takes bytes from the server, and does all that can be done.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.staging.extend_from_slice(bytes);
        let most = 64 * (self.staging.len() + 64) + self.connection.requests_in_flight() * 64;
        for _ in 0..most {
            let sent = self.transmit();
            if !self.step() && !sent {
                return;
            }
        }
        panic!("no end of it: {:?}", self.connection.incoming());
    }

    /// The server closed.
    pub fn close(&mut self) {
        let end = self.connection.end_of_stream();
        self.log.push(format!("end: {end:?}"));
        self.error = self.error.or(end.err());
        while self.step() {}
        assert_eq!(self.connection.incoming(), Incoming::Terminated);
    }

    /// Bytes that were not eaten.
    #[must_use]
    pub const fn left_over(&self) -> usize {
        self.staging.len()
    }

    fn step(&mut self) -> bool {
        match self.connection.incoming() {
            Incoming::Control { need } => self.control(need),
            Incoming::Payload { request, offset, remaining } => {
                let count = self.staging.len().min(remaining as usize);
                let buffer = self.connection.context_mut(request).expect("it is in flight");
                let (start, end) = (offset as usize, (offset + remaining) as usize);
                assert!(end <= buffer.bytes.len(), "{offset}+{remaining} is not in the buffer");
                buffer.bytes[start..start + count].copy_from_slice(&self.staging[..count]);
                self.skip(count);
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
            Incoming::Paused(PauseReason::YourTurn | PauseReason::Unsent)
            | Incoming::Terminated => false,
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
                self.log.push(format!("{event:?}"));
                self.apply(&event);
                self.actor.event(&mut self.connection, event);
                true
            }
            Ok(None) => rest < before,
            Err(error) => {
                if self.error.is_none() {
                    self.log.push(format!("error: {error}"));
                }
                self.error = Some(error);
                assert_eq!(self.connection.next_event(&mut &[][..]), Err(error), "errors stick");
                assert_eq!(self.connection.incoming(), Incoming::Terminated);
                false
            }
        }
    }

    /// What an event says of buffers.
    fn apply(&mut self, event: &Event<Buffer>) {
        match event {
            Event::Hole { request, offset, length } => {
                let buffer = self.connection.context_mut(*request).expect("it is in flight");
                let (start, end) = (*offset as usize, (*offset + *length) as usize);
                assert!(end <= buffer.bytes.len(), "{offset}+{length} is not in the buffer");
                buffer.bytes[start..end].fill(0);
            }
            Event::Extents { request, extents, .. } => {
                assert!(self.connection.context(*request).is_some());
                assert!(!extents.is_empty() && extents.iter().all(|extent| extent.length > 0));
            }
            Event::ErrorAt { request, .. } => {
                assert!(self.connection.context(*request).is_some());
            }
            Event::Completed { request, .. } => {
                assert!(self.connection.context(*request).is_none());
            }
            _ => {}
        }
    }

    /// Sends all there is. `false` if there was nothing.
    pub fn transmit(&mut self) -> bool {
        let mut sent = false;
        loop {
            let mut bytes = Vec::new();
            for segment in self.connection.segments() {
                assert!(!segment.is_empty(), "an empty segment makes writers spin");
                match segment {
                    Segment::Control(run) => bytes.extend_from_slice(run),
                    Segment::Body { request, offset, length } => {
                        let buffer = self.connection.context(request).expect("it is in flight");
                        bytes.extend_from_slice(&buffer.bytes[offset as usize..][..length]);
                    }
                }
            }
            let count = self.pieces.next(bytes.len());
            if count == 0 {
                return sent;
            }
            sent = true;
            self.output.extend_from_slice(&bytes[..count]);
            self.connection.transmitted(count).expect("no more than there was");
        }
    }
}
