//! Both ends and the pipes between them.

use std::collections::VecDeque;

use nbd_proto::client::{self, Connection, Event, Incoming, PauseReason, SubmitError};
use nbd_proto::wire::TransmissionFlags;
use nbd_proto::{Command, ContextInfo, Error, ExportInfo, RequestId, server};

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
    pub(crate) client: Connection<Buffer>,
    pub(crate) server: ServerEnd,
    pub(crate) log: Vec<String>,
    pub(crate) done: Vec<Done>,
    pub(crate) error: Option<Error>,
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
            server,
            log: Vec::new(),
            done: Vec::new(),
            error: None,
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
        let client = &self.client;
        let body = |request| &client.context(request).unwrap().bytes[..];
        let bytes = prefix(client.segments(), up_in, body);
        self.client.transmitted(bytes.len()).unwrap();
        let mut moved = !bytes.is_empty();
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
        while self.error.is_none() && self.step() {
            moved = true;
        }
        moved
    }

    fn step(&mut self) -> bool {
        match self.client.incoming() {
            Incoming::Control { need } => {
                let mut input = &self.staging[..];
                let before = input.len();
                match self.client.next_event(&mut input) {
                    Ok(event) => {
                        let eaten = before - input.len();
                        assert!(event.is_none() || before >= need, "{event:?} came too early");
                        self.staging.drain(..eaten);
                        let happened = event.is_some();
                        event.into_iter().for_each(|event| self.event(event));
                        happened || eaten > 0
                    }
                    Err(error) => {
                        self.fail(error);
                        false
                    }
                }
            }
            Incoming::Payload { request, offset, remaining } => {
                let count = self.staging.len().min(remaining as usize);
                let buffer = &mut self.client.context_mut(request).unwrap().bytes;
                buffer[offset as usize..][..count].copy_from_slice(&self.staging[..count]);
                self.staging.drain(..count);
                self.client.payload_received(count as u64).unwrap();
                count > 0
            }
            Incoming::Discard { remaining } => {
                let count = self.staging.len().min(remaining as usize);
                self.staging.drain(..count);
                self.client.payload_received(count as u64).unwrap();
                count > 0
            }
            Incoming::Paused(PauseReason::YourTurn) | Incoming::Tls => {
                assert!(self.staging.is_empty());
                false
            }
            _ => false,
        }
    }

    fn fail(&mut self, error: Error) {
        self.log.push(format!("error: {error}"));
        self.error = Some(error);
    }

    fn event(&mut self, event: Event<Buffer>) {
        let tag = |id: RequestId| self.client.context(id).unwrap().tag;
        let line = match event {
            Event::Completed { request, context: Buffer { tag, bytes }, result } => {
                assert!(self.client.context(request).is_none());
                let told = result.as_ref().map_or_else(ToString::to_string, |()| "ok".into());
                self.done.push(Done { tag, bytes, result });
                format!("{tag} completed: {told}")
            }
            Event::Hole { request, offset, length } => {
                let line = format!("{} hole {offset}+{length}", tag(request));
                let buffer = &mut self.client.context_mut(request).unwrap().bytes;
                buffer[offset as usize..][..length as usize].fill(0);
                line
            }
            Event::Extents { request, context, extents } => {
                let extents: Vec<_> = extents.iter().map(|e| (e.length, e.status)).collect();
                format!("{} context {context}: {extents:?}", tag(request))
            }
            Event::ErrorAt { request, error } => {
                format!("{} error at {}: {error}", tag(request), error.offset.unwrap())
            }
            Event::Ready => self.describe(),
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
        let both = self.client.incoming() == Incoming::Tls
            && self.server.connection.incoming() == server::Incoming::Tls;
        if both {
            self.client.tls_established().unwrap();
            self.server.connection.tls_established().unwrap();
            self.log.push("TLS".into());
        }
        both
    }

    /// Ends that are through close their side, once what they sent has arrived.
    fn close(&mut self) -> bool {
        if self.server.connection.is_finished() && !self.server_closed {
            self.server_closed = true;
            // What is under way to a closed socket is lost.
            self.up.clear();
            if let Err(error) = self.client.end_of_stream()
                && self.error.is_none()
            {
                self.fail(error);
            }
            return true;
        }
        if self.client.is_finished() && !self.client_closed {
            self.client_closed = true;
            self.down.clear();
            if let Err(error) = self.server.connection.end_of_stream() {
                self.server.log.push(format!("end: {error}"));
            }
            return true;
        }
        false
    }

    /// What holds whenever nothing moves: nobody has bytes left that it should have eaten.
    fn check(&self) {
        if self.error.is_none() && !self.client_closed {
            assert!(self.client.segments().next().is_none());
            if let Incoming::Control { need } = self.client.incoming() {
                assert!(need > 0);
            }
        }
    }

    /// Submits a request and gives its tag. Reads get a buffer full of rubbish, writes one full of `fill`.
    pub(crate) fn submit_with(&mut self, command: Command, fill: u8) -> Result<usize, SubmitError> {
        let tag = self.submitted;
        let bytes = vec![fill; command.buffer_length() as usize];
        self.client.submit(command, Buffer { tag, bytes }).map_err(|(error, _)| error)?;
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
        let context = Buffer { tag, bytes: Vec::new() };
        self.client.submit_block_status(offset, length, one, contexts, context).unwrap();
        self.submitted += 1;
        tag
    }

    /// Answers all that waits, in the order in which it came or by `order`, until nothing is in flight.
    pub(crate) fn answer_all(&mut self, order: impl Fn(usize) -> usize) {
        self.run();
        while !self.server.waiting.is_empty() {
            let place = order(self.server.waiting.len());
            let request = self.server.waiting.remove(place).unwrap();
            assert!(self.server.is_complete(&request));
            self.server.answer(&request);
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

    /// Leaves, and checks that both ends part in peace.
    pub(crate) fn leave(&mut self) {
        self.client.disconnect();
        self.run();
        assert_eq!(self.log.last().map(String::as_str), Some("Disconnected"), "{:?}", self.log);
        assert_eq!((self.error, self.server.error), (None, None));
        assert!(self.client.is_finished() && self.server.connection.is_finished());
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
