//! The server's end: requests by their numbers, and what answers them.

use std::collections::HashMap;

use nbd_proto::server::{Connection, Event};
use nbd_proto::{Command, RequestId};

use crate::end::{End, Role};
use crate::split::Split;

/// What answers.
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
    fn relieve(&mut self, _connection: &mut Connection) -> bool {
        false
    }
}

/// The server's role.
#[derive(Debug)]
pub struct ServerRole<E> {
    /// The machine.
    pub connection: Connection,
    /// What answers.
    pub embedder: E,
    /// Requests in flight are numbered as they are raised: their slots depend on when earlier ones were given back. What
    /// has no number is a write whose payload arrives, or which the machine refused by itself.
    numbers: HashMap<RequestId, Option<usize>>,
    raised: usize,
}

/// The server's end.
pub type ServerEnd<E> = End<ServerRole<E>>;

/// A new server's end of either style. Its output goes out in pieces of this kind.
pub fn server_end<E: Embedder>(connection: Connection, embedder: E, pieces: Split) -> ServerEnd<E> {
    End::new(ServerRole { connection, embedder, numbers: HashMap::new(), raised: 0 }, pieces)
}

impl<E> ServerRole<E> {
    /// Counts requests: the number of one in flight.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn number(&self, id: RequestId) -> usize {
        self.numbers[&id].expect("it was raised")
    }
}

impl<E: Embedder> Role for ServerRole<E> {
    type Machine = Connection;

    fn machine(&self) -> &Connection {
        &self.connection
    }

    fn machine_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    fn event(&mut self, event: Event) -> Option<String> {
        let line = match &event {
            Event::Request { id, command } => {
                let number = self.raised;
                self.raised += 1;
                let known = self.numbers.insert(*id, Some(number)).flatten();
                assert_eq!(known, None, "the id is in use");
                format!("{number} {command:?}")
            }
            Event::Closed(Ok(reason)) => {
                assert!(self.numbers.is_empty(), "a request did not come back");
                format!("{reason:?}")
            }
            Event::Closed(Err(error)) => format!("error: {error}"),
            other => format!("{other:?}"),
        };
        self.embedder.event(&mut self.connection, &event);
        Some(line)
    }

    fn payload(
        &mut self,
        id: RequestId,
        command: Command,
        offset: u64,
        remaining: u64,
        bytes: &[u8],
    ) {
        assert_eq!(offset + remaining, command.payload_length());
        let number = *self.numbers.entry(id).or_default();
        assert_eq!(number, None, "it was raised before its payload was complete");
        self.embedder.payload(id, command, offset, bytes);
    }

    fn body(&self, id: RequestId, offset: u64, length: usize, out: &mut Vec<u8>) {
        self.embedder.body(id, offset, length, out);
    }

    fn finished(&mut self, id: RequestId) {
        assert!(self.numbers.remove(&id).is_some(), "it came back twice, or was not in flight");
        self.embedder.finished(id);
    }

    fn relieve(&mut self) -> bool {
        self.embedder.relieve(&mut self.connection)
    }
}
