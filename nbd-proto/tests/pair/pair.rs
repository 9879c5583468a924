//! Both ends and the pipes between them.

use std::collections::{HashMap, VecDeque};

use nbd_proto::client::{self, Connection, Event, SubmitError};
use nbd_proto::wire::TransmissionFlags;
use nbd_proto::{Command, ContextInfo, Error, ExportInfo, PauseReason, RequestId, Wants, server};

use crate::server_end::{ServerEnd, prefix};
use crate::split::Split;

/// What the client keeps with a request.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Counts submissions.
    pub(crate) tag: usize,
    pub(crate) bytes: Vec<u8>,
}

/// A request that is over.
pub(crate) struct Done {
    pub(crate) tag: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) result: Result<(), client::CommandError>,
}

pub(crate) struct Pair {
    pub(crate) client: Connection,
    /// What the client's requests in flight read or write.
    pub(crate) buffers: HashMap<RequestId, Buffer>,
    pub(crate) server: ServerEnd,
    pub(crate) log: Vec<String>,
    pub(crate) done: Vec<Done>,
    pub(crate) error: Option<Error>,
    /// Requests that got no answer, and whether they were sent.
    pub(crate) abandoned: Vec<(usize, bool)>,
    /// The client's last event was raised.
    pub(crate) client_ended: bool,
    submitted: usize,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    staging: Vec<u8>,
    splits: [Split; 4],
    client_closed: bool,
    server_closed: bool,
}

/// What is behind the server in most tests: 64 blocks, every second of which is zero.
pub(crate) fn disk() -> Vec<u8> {
    let byte = |at: usize| if (at / 512).is_multiple_of(2) { 0 } else { (at % 251) as u8 | 1 };
    (0..64 * 512).map(byte).collect()
}

/// An export that can do everything.
pub(crate) fn full_export(size: usize) -> ExportInfo {
    let mut info = ExportInfo::new(size as u64);
    info.flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
    info.description = Some("a test disk".into());
    info.contexts = vec![
        ContextInfo::base_allocation(),
        ContextInfo::new("x-test:first-byte").unwrap(),
        ContextInfo::new("x-test:wide").unwrap().wide(),
    ];
    info
}

impl Pair {
    pub(crate) fn new(client: client::Config, server: server::Config, split: &Split) -> Self {
        let mut server = ServerEnd::new(server);
        server.disk = disk();
        let info = full_export(server.disk.len());
        server.exports = vec![(String::new(), info.clone()), ("disk".into(), info)];
        let splits = [split.clone(), split.fork(), split.fork().fork(), split.fork().fork().fork()];
        Self {
            client: Connection::new(client).unwrap(),
            buffers: HashMap::new(),
            server,
            log: Vec::new(),
            done: Vec::new(),
            error: None,
            abandoned: Vec::new(),
            client_ended: false,
            submitted: 0,
            up: VecDeque::new(),
            down: VecDeque::new(),
            staging: Vec::new(),
            splits,
            client_closed: false,
            server_closed: false,
        }
    }

    /// Moves bytes until nothing moves any more. An end that is through closes its side.
    pub(crate) fn run(&mut self) {
        while self.turn() || self.start_tls() || self.close() {}
        self.check();
    }

    /// Moves one piece in each direction, if there is any.
    fn turn(&mut self) -> bool {
        let [up_in, up_out, down_in, down_out] = &mut self.splits;
        let buffers = &self.buffers;
        let bytes = prefix(self.client.segments(), up_in, |id| &buffers[&id].bytes[..]);
        let mut moved = !bytes.is_empty();
        if moved {
            let _ = self.client.transmitted(bytes.len()).unwrap();
        }
        self.up.extend(bytes);

        let bytes = self.server.send(down_in);
        moved |= !bytes.is_empty();
        self.down.extend(bytes);

        let piece: Vec<u8> = self.up.drain(..up_out.next(self.up.len())).collect();
        moved |= !piece.is_empty();
        self.server.receive(&piece);

        let piece: Vec<u8> = self.down.drain(..down_out.next(self.down.len())).collect();
        moved |= !piece.is_empty();
        self.staging.extend(piece);
        while self.step() {
            moved = true;
        }
        moved
    }

    /// Has the client take one event, or a piece of a payload.
    pub(crate) fn step(&mut self) -> bool {
        let mut input = &self.staging[..];
        let event = self.client.next_event(&mut input);
        let consumed = self.staging.len() - input.len();
        self.staging.drain(..consumed);
        if let Some(event) = event {
            self.event(event);
            return true;
        }
        match self.client.wants() {
            Wants::Payload { id, command, offset, remaining, .. } => {
                let count = self.staging.len().min(remaining as usize);
                let buffer = &mut self.buffers.get_mut(&id).unwrap().bytes;
                assert_eq!(command.length(), buffer.len() as u64);
                buffer[offset as usize..][..count].copy_from_slice(&self.staging[..count]);
                self.staging.drain(..count);
                self.client.payload_received(count as u64).unwrap();
                return count > 0;
            }
            Wants::Bytes { at_least } => assert!(at_least > 0 && self.staging.is_empty()),
            Wants::Nothing(PauseReason::YourTurn) | Wants::Tls => {
                assert!(self.staging.is_empty());
            }
            wants => assert_ne!(wants, Wants::Nothing(PauseReason::EventDue)),
        }
        consumed > 0
    }

    fn event(&mut self, event: Event) {
        assert!(!self.client_ended, "{event:?} after the end");
        let tag = |id: RequestId| self.buffers[&id].tag;
        let line = match event {
            Event::Completed { id, result } => {
                let Buffer { tag, bytes } = self.buffers.remove(&id).unwrap();
                let told = result.as_ref().map_or_else(ToString::to_string, |()| "ok".into());
                self.done.push(Done { tag, bytes, result });
                format!("{tag} completed: {told}")
            }
            Event::Abandoned { id, sent } => {
                let Buffer { tag, .. } = self.buffers.remove(&id).unwrap();
                self.abandoned.push((tag, sent));
                return;
            }
            Event::Hole { id, offset, length } => {
                let line = format!("{} hole {offset}+{length}", tag(id));
                let buffer = &mut self.buffers.get_mut(&id).unwrap().bytes;
                buffer[offset as usize..][..length as usize].fill(0);
                line
            }
            Event::Extents { id, context, extents } => {
                let extents: Vec<_> = extents.iter().map(|e| (e.length, e.status)).collect();
                format!("{} context {context}: {extents:?}", tag(id))
            }
            Event::ErrorChunk { id, error } => match error.offset {
                Some(offset) => format!("{} error at {offset}: {error}", tag(id)),
                None => format!("{} error: {error}", tag(id)),
            },
            Event::Ready => self.describe(),
            Event::Closed(end) => {
                self.client_ended = true;
                assert!(self.buffers.is_empty());
                match end {
                    Ok(reason) => format!("{reason:?}"),
                    Err(error) => {
                        self.error = Some(error);
                        format!("error: {error}")
                    }
                }
            }
            other => format!("{other:?}"),
        };
        self.log.push(line);
    }

    /// What was negotiated; both sides must see it alike.
    fn describe(&self) -> String {
        let (view, other) =
            (self.client.export().unwrap(), self.server.connection.export().unwrap());
        assert_eq!((view.size, view.flags), (other.size, other.flags));
        assert_eq!((view.structured, view.extended), (other.structured, other.extended));
        assert_eq!(view.tls, self.server.connection.is_tls());
        let contexts: Vec<_> =
            other.contexts.iter().map(|known| (known.id, &*known.name)).collect();
        assert!(view.contexts.iter().map(|known| (known.id, &*known.name)).eq(contexts));
        let mode = match (view.structured, view.extended) {
            (false, _) => "simple",
            (true, false) => "structured",
            (true, true) => "extended",
        };
        let tls = if view.tls { ", TLS" } else { "" };
        let contexts: Vec<_> = view.contexts.iter().map(|known| &*known.name).collect();
        format!("Ready: {mode}{tls}, {contexts:?}")
    }

    /// There is no real TLS here: once both ends wait for the handshake, it has happened.
    fn start_tls(&mut self) -> bool {
        let both =
            self.client.wants() == Wants::Tls && self.server.connection.wants() == Wants::Tls;
        if both {
            self.client.tls_established().unwrap();
            self.server.connection.tls_established().unwrap();
            self.log.push("TLS".into());
        }
        both
    }

    /// Ends that are through close their side, once what they sent has arrived.
    fn close(&mut self) -> bool {
        if self.server.ended() && !self.server_closed {
            self.server_closed = true;
            // What is under way to a closed socket is lost.
            self.up.clear();
            self.client.end_of_stream();
            return true;
        }
        if self.client_ended && !self.client_closed {
            self.client_closed = true;
            self.down.clear();
            self.server.connection.end_of_stream();
            return true;
        }
        false
    }

    /// What holds whenever nothing moves: nobody has bytes left that it should have consumed.
    fn check(&self) {
        assert!(self.client.segments().next().is_none());
        assert_eq!(self.client_ended, self.client.wants() == Wants::Closed);
        assert_eq!(self.client.requests_in_flight(), self.buffers.len());
    }

    /// Submits a request and gives its tag. Reads get a buffer full of rubbish, writes one full of `fill`.
    pub(crate) fn submit_with(&mut self, command: Command, fill: u8) -> Result<usize, SubmitError> {
        let tag = self.submitted;
        let bytes = vec![fill; command.buffer_length() as usize];
        let id = self.client.submit(command)?;
        self.buffers.insert(id, Buffer { tag, bytes });
        self.submitted += 1;
        Ok(tag)
    }

    pub(crate) fn submit(&mut self, command: Command) -> usize {
        self.submit_with(command, 0xee).unwrap()
    }

    /// Submits a block status request about some contexts.
    pub(crate) fn submit_status(
        &mut self,
        (offset, length, one): (u64, u64, bool),
        contexts: &[u32],
    ) -> usize {
        let tag = self.submitted;
        let id = self.client.submit_block_status(offset, length, one, contexts).unwrap();
        self.buffers.insert(id, Buffer { tag, bytes: Vec::new() });
        self.submitted += 1;
        tag
    }

    /// Answers all that waits, in the order in which it came or by `order`, until nothing is in flight.
    pub(crate) fn answer_all(&mut self, order: impl Fn(usize) -> usize) {
        self.run();
        while !self.server.waiting.is_empty() {
            let index = order(self.server.waiting.len());
            let request = self.server.waiting.remove(index).unwrap();
            self.server.answer(request);
            if self.server.waiting.is_empty() {
                self.run();
            }
        }
    }

    /// Submits one request, has it answered, and gives what came of it.
    pub(crate) fn perform(&mut self, command: Command) -> Done {
        self.submit(command);
        self.answer_all(|_| 0);
        self.done.pop().unwrap()
    }

    /// Disconnects, and checks that both ends part in peace.
    pub(crate) fn leave(&mut self) {
        self.client.disconnect();
        self.run();
        let last = self.log.last().map(String::as_str);
        assert!(matches!(last, Some("Disconnected" | "Aborted")), "{:?}", self.log);
        assert_eq!((self.error, self.server.error), (None, None));
        assert!(self.client_ended && self.server.ended());
    }
}

/// Runs a scenario with each way to cut streams, and some random ones, and compares the logs of both ends.
pub(crate) fn for_each_split(
    client: &client::Config,
    server: &server::Config,
    scenario: impl Fn(&mut Pair),
) -> Vec<String> {
    let mut expected: Option<(Vec<String>, Vec<String>)> = None;
    let random = [1, 0xdead_beef, 0x1234_5678_9abc_def0].map(Split::Random);
    for split in Split::fixed().into_iter().chain(random) {
        let mut pair = Pair::new(client.clone(), server.clone(), &split);
        scenario(&mut pair);
        let logs = (pair.log, pair.server.log);
        match &expected {
            None => expected = Some(logs),
            Some(expected) => assert_eq!(logs, *expected, "{split:?}"),
        }
    }
    expected.unwrap().0
}

/// The command with a flag, if `set`.
pub(crate) fn with(command: Command, flag: fn(Command) -> Command, set: bool) -> Command {
    if set { flag(command) } else { command }
}

/// The three kinds of headers, by what the client asks for.
pub(crate) fn modes() -> [(&'static str, client::Config); 3] {
    let mut simple = client::Config::for_export("disk");
    simple.extended_headers = false;
    simple.structured_replies = false;
    let mut structured = client::Config::for_export("disk");
    structured.extended_headers = false;
    [
        ("simple", simple),
        ("structured", structured),
        ("extended", client::Config::for_export("disk")),
    ]
}
