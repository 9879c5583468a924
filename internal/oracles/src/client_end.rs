//! The client's machine with somebody who submits, driven by bytes.

use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

use nbd_proto::client::{Connection, Event, SubmitError};
use nbd_proto::wire::CommandFlags;
use nbd_proto::{CloseReason, Command, Error, Misuse, PauseReason, RequestId, Segment, Wants};

use crate::split::Split;

/// What is kept of a request: its number, and what it reads or writes.
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

/// The machine, with the buffers of its requests in flight.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    buffers: HashMap<RequestId, Buffer>,
}

impl Client {
    /// Submits a request with its buffer.
    ///
    /// # Errors
    /// Those of the machine.
    pub fn begin(&mut self, command: Command, buffer: Buffer) -> Result<RequestId, SubmitError> {
        let id = self.connection.submit(command)?;
        self.keep(id, buffer);
        Ok(id)
    }

    /// Submits a block status request about some contexts.
    ///
    /// # Errors
    /// Those of the machine.
    pub fn begin_block_status(
        &mut self,
        (offset, length, one): (u64, u64, bool),
        contexts: &[u32],
        buffer: Buffer,
    ) -> Result<RequestId, SubmitError> {
        let id = self.connection.submit_block_status(offset, length, one, contexts)?;
        self.keep(id, buffer);
        Ok(id)
    }

    fn keep(&mut self, id: RequestId, buffer: Buffer) {
        let in_use = self.buffers.keys().any(|other| other.index() == id.index());
        assert!(!in_use, "the slot of {id:?} is in use");
        self.buffers.insert(id, buffer);
        assert!(self.connection.command(id).is_some());
    }

    /// The number of a request in flight.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn tag(&self, id: RequestId) -> usize {
        self.buffers[&id].tag
    }
}

impl Deref for Client {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// The command with those of the flags that it has.
#[must_use]
pub fn with_flags(mut command: Command, flags: CommandFlags) -> Command {
    for (flag, with) in [
        (CommandFlags::FUA, Command::with_fua as fn(Command) -> Command),
        (CommandFlags::DF, Command::with_dont_fragment),
        (CommandFlags::NO_HOLE, Command::with_no_hole),
        (CommandFlags::FAST_ZERO, Command::with_fast),
        (CommandFlags::REQ_ONE, Command::with_one),
    ] {
        if flags.contains(flag) {
            command = with(command);
        }
    }
    command
}

/// What submits.
pub trait Actor {
    /// Something happened. The machine's own data of it is in the buffers already. With the end of a request comes its
    /// buffer.
    fn event(&mut self, client: &mut Client, event: Event, buffer: Option<Buffer>);
}

/// A connection, and both its streams.
#[derive(Debug)]
pub struct ClientEnd<A> {
    /// The machine.
    pub connection: Client,
    /// What submits.
    pub actor: A,
    /// What happened: events, the end.
    pub log: Vec<String>,
    /// All that was sent.
    pub output: Vec<u8>,
    /// How the connection ended, if it did with an error.
    pub error: Option<Error>,
    /// An export was entered, with extended headers.
    pub extended: bool,
    closed: Option<Result<CloseReason, Error>>,
    staging: Vec<u8>,
    pieces: Split,
}

impl<A: Actor> ClientEnd<A> {
    /// A new connection. Its output goes out in pieces of this kind.
    #[must_use]
    pub fn new(connection: Connection, actor: A, pieces: Split) -> Self {
        Self {
            connection: Client { connection, buffers: HashMap::new() },
            actor,
            log: Vec::new(),
            output: Vec::new(),
            error: None,
            extended: false,
            closed: None,
            staging: Vec::new(),
            pieces,
        }
    }

    /// Whether the last event was raised.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.closed.is_some()
    }

    /// Takes bytes from the server, and does all that can be done.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.staging.extend_from_slice(bytes);
        let max = 64 * (self.staging.len() + 64) + self.connection.requests_in_flight() * 64;
        for _ in 0..max {
            let sent = self.transmit();
            if !self.step() && !sent {
                return;
            }
        }
        panic!("no end of it: {:?}", self.connection.wants());
    }

    /// The server closed.
    pub fn close(&mut self) {
        self.connection.end_of_stream();
        while self.step() {}
        assert!(self.ended(), "the end was not reported");
    }

    /// Bytes that were not consumed.
    #[must_use]
    pub const fn left_over(&self) -> usize {
        self.staging.len()
    }

    /// One event, or a piece of a payload. `false` if there is nothing to be done.
    fn step(&mut self) -> bool {
        let before = self.staging.len();
        let wanted = self.connection.wants();
        let mut input = &self.staging[..];
        let event = self.connection.next_event(&mut input);
        let rest = input.len();
        assert!(self.staging.ends_with(input) && rest <= before, "it consumed what is not there");
        self.staging.drain(..before - rest);
        if let Some(event) = event {
            if let Wants::Bytes { at_least } = wanted {
                assert!(before >= at_least, "{event:?} came before its last byte");
            }
            self.event(event);
            return true;
        }
        match self.connection.wants() {
            Wants::Bytes { at_least } => {
                assert!(at_least > 0 && self.staging.is_empty(), "bytes lie idle");
            }
            Wants::Payload { id, command, offset, remaining, .. } => {
                let count = self.staging.len().min(remaining as usize);
                let buffer = self.connection.buffers.get_mut(&id).expect("it is in flight");
                let (start, end) = (offset as usize, (offset + remaining) as usize);
                assert_eq!(command.length(), buffer.bytes.len() as u64);
                assert!(remaining > 0);
                assert!(end <= buffer.bytes.len(), "{offset}+{remaining} is not in the buffer");
                buffer.bytes[start..start + count].copy_from_slice(&self.staging[..count]);
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
            Wants::Nothing(PauseReason::YourTurn | PauseReason::Unsent) => {}
            other => panic!("unexpected: {other:?}"),
        }
        rest < before
    }

    /// Checks an event, applies it to the buffers, and hands it on.
    fn event(&mut self, event: Event) {
        assert!(!self.ended(), "{event:?} after the end");
        let Client { connection, buffers } = &mut self.connection;
        let mut over = None;
        match &event {
            Event::Hole { id, offset, length } => {
                let buffer = buffers.get_mut(id).expect("it is in flight");
                let (start, end) = (*offset as usize, (*offset + *length) as usize);
                assert!(end <= buffer.bytes.len(), "{offset}+{length} is not in the buffer");
                buffer.bytes[start..end].fill(0);
            }
            Event::Extents { id, extents, .. } => {
                assert!(buffers.contains_key(id) && !extents.is_empty() && extents.len() <= 512);
                assert!(extents.iter().all(|extent| extent.length > 0));
            }
            Event::Ready => {
                self.extended = connection.export().expect("it was entered").extended;
            }
            Event::ErrorChunk { id, .. } => assert!(buffers.contains_key(id)),
            Event::Completed { id, .. } | Event::Abandoned { id, .. } => {
                over = buffers.remove(id);
                assert!(over.is_some(), "{id:?} ends twice");
                assert_eq!(connection.command(*id), None);
            }
            Event::Closed(end) => {
                self.closed = Some(*end);
                self.error = end.err();
                assert!(buffers.is_empty(), "a request is lost");
                assert!(connection.is_closing() && connection.segments().next().is_none());
                assert_eq!(connection.requests_in_flight(), 0);
                assert_eq!(connection.next_event(&mut &[0; 64][..]), None, "nothing follows");
                assert_eq!(connection.wants(), Wants::Closed);
                assert_eq!(connection.transmitted(0).err(), Some(Misuse::WrongPhase));
            }
            _ => {}
        }
        match (&event, &over) {
            // How much was sent by then depends on how the stream is cut.
            (Event::Abandoned { .. }, _) => {}
            (Event::Closed(Err(error)), _) => self.log.push(format!("error: {error}")),
            (_, Some(buffer)) => self.log.push(format!("{event:?} {buffer:?}")),
            _ => self.log.push(format!("{event:?}")),
        }
        self.actor.event(&mut self.connection, event, over);
    }

    /// Sends all there is. `false` if there was nothing.
    pub fn transmit(&mut self) -> bool {
        let mut sent = false;
        loop {
            let mut bytes = Vec::new();
            for segment in self.connection.segments() {
                assert!(segment.len() > 0, "an empty segment makes writers spin");
                match segment {
                    Segment::Control(run) => bytes.extend_from_slice(run),
                    Segment::Body { id, offset, length } => {
                        let buffer = &self.connection.buffers[&id];
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
            let Client { connection, buffers } = &mut self.connection;
            for id in connection.transmitted(count).expect("no more than there was") {
                let buffer = buffers.get(&id);
                assert!(buffer.is_some_and(|buffer| !buffer.bytes.is_empty()), "it had no payload");
            }
        }
    }
}
