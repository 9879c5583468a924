//! An embedder of the server's machine that answers in all ways that there are, by whim.

use std::collections::VecDeque;

use nbd_pair::server::Embedder;
use nbd_proto::server::{Connection, Event, Listing, LookupRefusal};
use nbd_proto::wire::ErrorCode;
use nbd_proto::{Command, ExportInfo, Extent, Misuse, RequestId};

use crate::choices::Whims;

/// Answers at most one request for each thing that happens, so that a reply can be distinguished from the next.
#[derive(Debug)]
pub(super) struct Whim {
    pub(super) export: ExportInfo,
    pub(super) whims: Whims,
    /// How many requests wait until another one is answered.
    pub(super) patience: usize,
    /// Whether the last one that came is answered first.
    pub(super) backwards: bool,
    /// Whether mistakes are made on purpose.
    pub(super) clumsy: bool,
    /// After how many events the server shuts down, and the export shrinks; never if zero.
    pub(super) shut_down_at: usize,
    pub(super) shrink_at: usize,
    events: usize,
    waiting: VecDeque<Waiting>,
    /// A request that is over.
    void: Option<RequestId>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: RequestId,
    command: Command,
    whim: u8,
    /// The first half of a read has been sent.
    half: bool,
}

const ERRORS: [ErrorCode; 8] = [
    ErrorCode::EIO,
    ErrorCode::EPERM,
    ErrorCode::ENOSPC,
    ErrorCode::EOVERFLOW,
    ErrorCode::ENOTSUP,
    ErrorCode::ESHUTDOWN,
    ErrorCode(4711),
    ErrorCode::OK,
];

impl Whim {
    pub(super) const fn new(export: ExportInfo, whims: Whims) -> Self {
        Self {
            export,
            whims,
            patience: 0,
            backwards: false,
            clumsy: false,
            shut_down_at: 0,
            shrink_at: 0,
            events: 0,
            waiting: VecDeque::new(),
            void: None,
        }
    }

    /// Answers one request. `false` if none waits.
    fn answer(&mut self, connection: &mut Connection) -> bool {
        let next = if self.backwards { self.waiting.pop_back() } else { self.waiting.pop_front() };
        let Some(next) = next else { return false };
        let Waiting { id, command, whim, .. } = next;
        if self.clumsy {
            blunder(connection, id, &command);
        }
        match command {
            _ if whim % 8 == 7 => {
                let text = ["", "no", "a\nlong\0 and \u{1b}[2J odd text", &"e".repeat(5000)];
                let error = ERRORS[usize::from(whim >> 5)];
                let reply = connection.reply(id).expect("it waits");
                reply.error(error, text[usize::from(whim >> 3 & 3)]);
            }
            Command::Read { .. } => self.read(connection, next),
            Command::BlockStatus { .. } => status(connection, id, whim),
            _ => connection.reply(id).expect("it waits").finish().expect("it has no content"),
        }
        true
    }

    fn read(&mut self, connection: &mut Connection, mut waiting: Waiting) {
        let Waiting { id, command, whim, half } = waiting;
        let Command::Read { offset, length, .. } = command else { return };
        let (head, tail) = (length / 2, length - length / 2);
        let middle = offset + head;
        let mut reply = connection.reply(id).expect("it waits");
        match whim % 8 {
            1 => reply.hole(offset, length).expect("it is all"),
            2 if head > 0 => {
                reply.data(offset, head).expect("it is the first half");
                reply.hole(middle, tail).expect("it is the second half");
            }
            3 if head > 0 => {
                reply.data(middle, tail).expect("it is the second half");
                reply.hole(offset, head).expect("it is the first half");
            }
            4 if head > 0 => {
                reply.data(offset, head).expect("it is the first half");
                reply.error_at(ErrorCode::EIO, middle, "broken").expect("it is inside");
                assert_eq!(reply.data(middle, 1), Err(Misuse::BadContent));
            }
            5 if head > 0 && !half => {
                reply.data(offset, head).expect("it is the first half");
                waiting.half = true;
                self.waiting.push_back(waiting);
                return;
            }
            5 if half => reply.data(middle, tail).expect("it is the second half"),
            _ => reply.data(offset, length).expect("it is all"),
        }
        reply.finish().expect("all is told");
    }

    fn look(&self, name: &str) -> Result<&ExportInfo, LookupRefusal<'_>> {
        match name.len() % 8 {
            7 => Err(LookupRefusal::Policy("not for\0 you")),
            6 => Err(LookupRefusal::Unknown),
            _ => Ok(&self.export),
        }
    }
}

/// Extents without end: the builder must not take more than it needs.
fn status(connection: &mut Connection, id: RequestId, whim: u8) {
    let mut reply = connection.reply(id).expect("it waits");
    let mut contexts: Vec<u32> = reply.awaited_contexts().collect();
    if whim % 2 == 1 {
        contexts.reverse();
    }
    for context in contexts {
        let unit = 1 << (whim % 50);
        let extents = (0_u64..).map(|at| Extent { length: at % 3 * unit, status: at / 3 % 5 });
        reply.extents(context, extents).expect("it is awaited");
        assert_eq!(reply.extents(context, []), Err(Misuse::NoSuchContext));
    }
    reply.finish().expect("all is told");
}

/// Misuse must be refused and change nothing.
fn blunder(connection: &mut Connection, id: RequestId, command: &Command) {
    let end = command.offset().saturating_add(command.length());
    let mut reply = connection.reply(id).expect("it waits");
    assert!(reply.data(end, 1).is_err());
    assert!(reply.hole(u64::MAX, u64::MAX).is_err());
    assert!(reply.error_at(ErrorCode::EIO, end, "").is_err());
    assert!(reply.extents(u32::MAX, [Extent { length: 1, status: 0 }]).is_err());
    if matches!(command, Command::Read { .. } | Command::BlockStatus { .. }) {
        assert_eq!(connection.reply(id).expect("it waits").finish(), Err(Misuse::Incomplete));
    }
}

impl Embedder for Whim {
    fn event(&mut self, connection: &mut Connection, event: &Event) {
        self.events += 1;
        if self.events == self.shut_down_at {
            connection.shut_down();
        }
        if self.events == self.shrink_at && connection.is_transmitting() {
            connection.set_size(self.export.size / 2).expect("an export is in use");
        }
        if self.clumsy {
            assert!(connection.tls_established().is_err() || !connection.is_transmitting());
            assert!(connection.payload_received(u64::MAX).is_err());
            let queued: usize = connection.segments().map(|segment| segment.len()).sum();
            let closed = matches!(event, Event::Closed(_));
            let misuse = if closed { Misuse::WrongPhase } else { Misuse::TooManyBytes };
            assert_eq!(connection.transmitted(queued + 1).err(), Some(misuse));
            assert_eq!(connection.segments().map(|segment| segment.len()).sum::<usize>(), queued);
            if let Some(void) = self.void {
                assert!(connection.reply(void).is_err());
            }
        }
        match event {
            Event::List => {
                assert!(connection.answer_lookup(Err(LookupRefusal::Unknown)).is_err());
                let long = "n".repeat(4097);
                let names = ["", "disk", "with text", "\0", &long];
                let listings = names.map(|name| Listing { name, description: "text" });
                connection.answer_list(listings).expect("it was asked");
                assert!(connection.answer_list([]).is_err());
            }
            Event::Lookup(lookup) => {
                assert!(connection.answer_list([]).is_err());
                let answer = self.look(&lookup.name);
                connection.answer_lookup(answer).expect("it was asked");
            }
            &Event::Request { id, command } => {
                let whim = self.whims.next();
                self.waiting.push_back(Waiting { id, command, whim, half: false });
                if self.waiting.len() > self.patience {
                    self.answer(connection);
                }
            }
            _ => {}
        }
    }

    fn payload(&mut self, request: RequestId, command: Command, offset: u64, bytes: &[u8]) {
        assert!(self.waiting.iter().all(|waiting| waiting.id != request), "it came too early");
        assert!(offset + bytes.len() as u64 <= command.payload_length());
    }

    fn body(&self, _request: RequestId, offset: u64, length: usize, out: &mut Vec<u8>) {
        out.extend((0..length).map(|at| (offset as usize + at) as u8));
    }

    fn finished(&mut self, request: RequestId) {
        assert!(self.waiting.iter().all(|waiting| waiting.id != request));
        self.void = Some(request);
    }

    fn relieve(&mut self, connection: &mut Connection) -> bool {
        self.answer(connection)
    }
}
