//! The client's end: requests with their buffers, and what acts on their results.

use core::fmt;
use core::ops::{Deref, DerefMut};
use std::collections::HashMap;

use nbd_proto::client::{CommandError, Connection, Event, SubmitError};
use nbd_proto::wire::CommandFlags;
use nbd_proto::{Command, ExportView, Extent, RequestId};

use crate::end::{End, Role};
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
    /// Buffers of the requests in flight.
    pub buffers: HashMap<RequestId, Buffer>,
    /// How many requests were submitted: the tag of the next one.
    pub submitted: usize,
}

impl Client {
    /// Submits a request with its buffer.
    ///
    /// # Errors
    /// Those of the machine.
    pub fn begin(&mut self, command: Command, bytes: Vec<u8>) -> Result<RequestId, SubmitError> {
        let id = self.connection.submit(command)?;
        self.keep(id, bytes);
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
    ) -> Result<RequestId, SubmitError> {
        let id = self.connection.submit_block_status(offset, length, one, contexts)?;
        self.keep(id, Vec::new());
        Ok(id)
    }

    fn keep(&mut self, id: RequestId, bytes: Vec<u8>) {
        let in_use = self.buffers.keys().any(|other| other.index() == id.index());
        assert!(!in_use, "the slot of {id:?} is in use");
        self.buffers.insert(id, Buffer { tag: self.submitted, bytes });
        self.submitted += 1;
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

/// The command with a flag, if `set`.
#[must_use]
pub fn with(command: Command, flag: fn(Command) -> Command, set: bool) -> Command {
    if set { flag(command) } else { command }
}

/// The command with those of the flags that it has.
#[must_use]
pub fn with_flags(command: Command, flags: CommandFlags) -> Command {
    let all = [
        (CommandFlags::FUA, Command::with_fua as fn(Command) -> Command),
        (CommandFlags::DF, Command::with_dont_fragment),
        (CommandFlags::NO_HOLE, Command::with_no_hole),
        (CommandFlags::FAST_ZERO, Command::with_fast),
        (CommandFlags::REQ_ONE, Command::with_one),
    ];
    all.into_iter().fold(command, |command, (flag, add)| with(command, add, flags.contains(flag)))
}

/// What submits.
pub trait Actor {
    /// Something happened. The machine's own data of it is in the buffers already. With the end of a request comes its
    /// buffer.
    fn event(&mut self, client: &mut Client, event: Event, buffer: Option<Buffer>);
}

/// A request that completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its number.
    pub tag: usize,
    /// What it read or wrote.
    pub bytes: Vec<u8>,
    /// What it came to.
    pub result: Result<(), CommandError>,
}

/// Submits nothing by itself, and keeps what happens.
#[derive(Debug, Default)]
pub struct Recorder {
    /// All events but those that are kept in `abandoned`.
    pub seen: Vec<Event>,
    /// Extents by request and context.
    pub extents: Vec<(usize, u32, Vec<Extent>)>,
    /// Requests that completed.
    pub done: Vec<Done>,
    /// Requests that got no answer, and whether they were sent.
    pub abandoned: Vec<(Buffer, bool)>,
}

impl Actor for Recorder {
    fn event(&mut self, client: &mut Client, event: Event, buffer: Option<Buffer>) {
        match (&event, buffer) {
            (Event::Abandoned { sent, .. }, Some(buffer)) => {
                self.abandoned.push((buffer, *sent));
                return;
            }
            (Event::Completed { result, .. }, Some(Buffer { tag, bytes })) => {
                self.done.push(Done { tag, bytes, result: result.clone() });
            }
            (Event::Extents { id, context, extents }, _) => {
                self.extents.push((client.tag(*id), *context, extents.clone()));
            }
            _ => {}
        }
        self.seen.push(event);
    }
}

/// The client's role.
#[derive(Debug)]
pub struct ClientRole<A> {
    /// The machine.
    pub connection: Client,
    /// What submits.
    pub actor: A,
    /// An export was entered, with extended headers.
    pub extended: bool,
}

/// The client's end.
pub type ClientEnd<A> = End<ClientRole<A>>;

/// A new client's end. Its output goes out in pieces of this kind.
pub fn client_end<A: Actor>(connection: Connection, actor: A, pieces: Split) -> ClientEnd<A> {
    let connection = Client { connection, buffers: HashMap::new(), submitted: 0 };
    End::new(ClientRole { connection, actor, extended: false }, pieces)
}

impl<A: Actor> ClientEnd<A> {
    /// The machine alone.
    #[must_use]
    pub fn into_connection(self) -> Connection {
        self.into_role().connection.connection
    }
}

impl<A> Deref for ClientRole<A> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.connection
    }
}

impl<A> DerefMut for ClientRole<A> {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.connection
    }
}

impl<A: Actor> Role for ClientRole<A> {
    type Machine = Connection;

    fn machine(&self) -> &Connection {
        &self.connection
    }

    fn machine_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    fn event(&mut self, event: Event) -> Option<String> {
        let line = self.line(&event);
        let Client { connection, buffers, .. } = &mut self.connection;
        let mut over = None;
        match &event {
            Event::Hole { id, offset, length } => {
                let buffer = &mut buffers.get_mut(id).expect("it is in flight").bytes;
                buffer[*offset as usize..][..*length as usize].fill(0);
            }
            Event::Extents { id, extents, .. } => {
                assert!(buffers.contains_key(id) && !extents.is_empty() && extents.len() <= 512);
                assert!(extents.iter().all(|extent| extent.length > 0));
            }
            Event::Completed { id, .. } | Event::Abandoned { id, .. } => {
                over = buffers.remove(id);
                assert!(over.is_some(), "{id:?} ends twice");
                assert_eq!(connection.command(*id), None);
            }
            Event::Ready => self.extended = connection.is_extended(),
            Event::Closed(_) => {
                assert!(buffers.is_empty(), "a request is lost");
                assert_eq!(connection.requests_in_flight(), 0);
            }
            _ => {}
        }
        self.actor.event(&mut self.connection, event, over);
        line
    }

    fn payload(
        &mut self,
        id: RequestId,
        command: Command,
        offset: u64,
        remaining: u64,
        bytes: &[u8],
    ) {
        assert_eq!(self.connection.command(id), Some(command));
        let buffer = &mut self.connection.buffers.get_mut(&id).expect("it is in flight").bytes;
        assert_eq!(command.length(), buffer.len() as u64);
        let chunk = &mut buffer[offset as usize..][..remaining as usize];
        chunk[..bytes.len()].copy_from_slice(bytes);
    }

    fn body(&self, id: RequestId, offset: u64, length: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.connection.buffers[&id].bytes[offset as usize..][..length]);
    }

    fn finished(&mut self, id: RequestId) {
        let buffer = self.connection.buffers.get(&id);
        assert!(buffer.is_some_and(|buffer| !buffer.bytes.is_empty()), "it had no payload");
    }
}

impl<A> ClientRole<A> {
    /// An event in the log: requests by their numbers, since their slots depend on how streams are cut.
    fn line(&self, event: &Event) -> Option<String> {
        let tag = |id: &RequestId| self.connection.tag(*id);
        Some(match event {
            // How much was sent by then depends on how the stream is cut.
            Event::Abandoned { .. } => return None,
            Event::Completed { id, result: Ok(()) } => format!("{} completed: ok", tag(id)),
            Event::Completed { id, result: Err(error) } => {
                format!("{} completed: {error}", tag(id))
            }
            Event::Hole { id, offset, length } => format!("{} hole {offset}+{length}", tag(id)),
            Event::Extents { id, context, extents } => {
                let extents: Vec<_> = extents.iter().map(|e| (e.length, e.status)).collect();
                format!("{} context {context}: {extents:?}", tag(id))
            }
            Event::ErrorChunk { id, error } => match error.offset {
                Some(offset) => format!("{} error at {offset}: {error}", tag(id)),
                None => format!("{} error: {error}", tag(id)),
            },
            Event::Ready => {
                let view = self.connection.export().expect("it was entered");
                format!("Ready: {}", describe(&view))
            }
            Event::Closed(Ok(reason)) => format!("{reason:?}"),
            Event::Closed(Err(error)) => format!("error: {error}"),
            other => format!("{other:?}"),
        })
    }
}

/// What was negotiated.
fn describe(view: &ExportView<'_>) -> String {
    let mode = match (view.structured, view.extended) {
        (false, _) => "simple",
        (true, false) => "structured",
        (true, true) => "extended",
    };
    let tls = if view.tls { ", TLS" } else { "" };
    let contexts: Vec<_> = view.contexts.iter().map(|known| &*known.name).collect();
    format!("{mode}{tls}, {contexts:?}")
}
