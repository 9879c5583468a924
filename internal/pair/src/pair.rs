//! Both ends and the pipes between them.

use nbd_proto::client::{self, SubmitError};
use nbd_proto::{Command, Wants, server};

use crate::client::{ClientEnd, Done, Recorder, client_end};
use crate::disk::{Disk, full_export};
use crate::server::{ServerEnd, server_end};
use crate::split::Split;

/// A client, a server with a disk, and what is under way between them.
#[derive(Debug)]
pub struct Pair {
    /// The client.
    pub client: ClientEnd<Recorder>,
    /// The server.
    pub server: ServerEnd<Disk>,
    up: Pipe,
    down: Pipe,
    agreed: bool,
}

/// How far the output of an end has arrived at the other.
#[derive(Debug)]
struct Pipe {
    split: Split,
    moved: usize,
    closed: bool,
}

impl Pipe {
    const fn new(split: Split) -> Self {
        Self { split, moved: 0, closed: false }
    }

    /// The next piece.
    fn next<'a>(&mut self, output: &'a [u8]) -> &'a [u8] {
        let rest = &output[self.moved..];
        let piece = &rest[..self.split.next(rest.len())];
        self.moved += piece.len();
        piece
    }

    /// Closes this direction, once the sender has closed the other one: what is under way to it is lost.
    fn close(&mut self, output: &[u8], due: bool) -> bool {
        let closes = due && !self.closed;
        if closes {
            self.closed = true;
            self.moved = output.len();
        }
        closes
    }
}

/// What is behind the server in most tests: 64 blocks, every second of which is zero.
#[must_use]
pub fn disk() -> Vec<u8> {
    let byte = |at: usize| if (at / 512).is_multiple_of(2) { 0 } else { (at % 251) as u8 | 1 };
    (0..64 * 512).map(byte).collect()
}

impl Pair {
    /// A new connection between a client and a server with the usual disk.
    ///
    /// # Panics
    /// If the client's configuration is not valid.
    #[must_use]
    pub fn new(client: client::Config, server: server::Config, split: &Split) -> Self {
        let bytes = disk();
        let info = full_export(bytes.len() as u64);
        Self::over(Disk::new(bytes, &info), client, server, split)
    }

    /// A new connection between a client and a server with this disk.
    ///
    /// # Panics
    /// If the client's configuration is not valid.
    #[must_use]
    pub fn over(disk: Disk, client: client::Config, server: server::Config, split: &Split) -> Self {
        let client = client::Connection::new(client).expect("the configuration is valid");
        let server = server::Connection::new(server);
        Self {
            client: client_end(client, Recorder::default(), split.clone()),
            server: server_end(server, disk, split.fork().fork()),
            up: Pipe::new(split.fork()),
            down: Pipe::new(split.fork().fork().fork()),
            agreed: false,
        }
    }

    /// Moves bytes until nothing moves any more. An end that is through closes its side.
    pub fn run(&mut self) {
        while self.turn() || self.close() {}
        let Self { client, server, .. } = self;
        assert!(client.segments().next().is_none());
        assert!(server.connection.segments().next().is_none());
        assert_eq!(client.left_over(), 0, "the client has bytes that it should have consumed");
        assert_eq!(client.ended(), client.wants() == Wants::Closed);
        assert_eq!(client.requests_in_flight(), client.buffers.len());
    }

    /// Moves one piece in each direction, if there is any.
    fn turn(&mut self) -> bool {
        let Self { client, server, up, down, .. } = self;
        let mut moved = client.send() | server.send();
        let piece = up.next(&client.output);
        moved |= !piece.is_empty();
        server.stage(piece);
        let piece = down.next(&server.output);
        moved |= !piece.is_empty();
        client.stage(piece);
        while client.step() | server.step() {
            moved = true;
        }
        self.agree();
        moved
    }

    /// Once the client is in, both sides must see alike what was negotiated.
    fn agree(&mut self) {
        let Some(view) = self.client.export().filter(|_| !self.agreed) else { return };
        self.agreed = true;
        let server = &self.server.connection;
        let other = server.export().expect("the client has entered it");
        assert_eq!((view.size, view.flags), (other.size, other.flags));
        assert_eq!((view.structured, view.extended), (other.structured, other.extended));
        assert_eq!(view.tls, server.is_tls());
        assert_eq!(view.contexts, other.contexts);
    }

    /// Ends that are through close their side, once what they sent has arrived.
    fn close(&mut self) -> bool {
        let Self { client, server, up, down, .. } = self;
        if up.close(&client.output, server.ended()) {
            client.end_of_stream();
            true
        } else if down.close(&server.output, client.ended()) {
            server.connection.end_of_stream();
            true
        } else {
            false
        }
    }

    /// Submits a request and gives its tag. What it reads or writes is full of `fill` at first.
    ///
    /// # Errors
    /// Those of the machine.
    pub fn submit_with(&mut self, command: Command, fill: u8) -> Result<usize, SubmitError> {
        let bytes = vec![fill; command.buffer_length() as usize];
        let id = self.client.begin(command, bytes)?;
        Ok(self.client.tag(id))
    }

    /// Submits a request that is fine, and gives its tag.
    pub fn submit(&mut self, command: Command) -> usize {
        self.submit_with(command, 0xee).expect("it is fine")
    }

    /// Submits a block status request about some contexts, and gives its tag.
    pub fn submit_status(&mut self, range: (u64, u64, bool), contexts: &[u32]) -> usize {
        let id = self.client.begin_block_status(range, contexts).expect("it is fine");
        self.client.tag(id)
    }

    /// Answers all that waits, in the order in which it came or by `order`, until nothing is in flight.
    pub fn answer_all(&mut self, order: impl Fn(usize) -> usize) {
        self.run();
        while !self.server.embedder.waiting.is_empty() {
            let index = order(self.server.embedder.waiting.len());
            let request = self.server.embedder.waiting.remove(index).expect("it waits");
            self.server.answer(request);
            if self.server.embedder.waiting.is_empty() {
                self.run();
            }
        }
    }

    /// Submits one request, has it answered, and gives what it came to.
    pub fn perform(&mut self, command: Command) -> Done {
        self.submit(command);
        self.answer_all(|_| 0);
        self.done()
    }

    /// The request that completed last.
    pub fn done(&mut self) -> Done {
        self.client.actor.done.pop().expect("a request has completed")
    }

    /// The tags of the requests that got no answer, and whether they were sent.
    #[must_use]
    pub fn abandoned(&self) -> Vec<(usize, bool)> {
        let abandoned = self.client.actor.abandoned.iter();
        let mut abandoned: Vec<_> = abandoned.map(|(buffer, sent)| (buffer.tag, *sent)).collect();
        abandoned.sort_unstable();
        abandoned
    }

    /// Disconnects, and checks that both ends part in peace.
    pub fn leave(&mut self) {
        self.client.disconnect();
        self.run();
        let last = self.client.log.last().map(String::as_str);
        assert!(matches!(last, Some("Disconnected" | "Aborted")), "{:?}", self.client.log);
        assert_eq!((self.client.error(), self.server.error()), (None, None));
        assert!(self.client.ended() && self.server.ended());
    }
}
