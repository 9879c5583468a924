//! The server's machine with a disk behind it. Requests wait until the scenario has them answered.

use std::collections::HashMap;
use std::collections::VecDeque;

use nbd_proto::server::{Config, Connection, Event, Listing, LookupRefusal, Purpose};
use nbd_proto::wire::{AllocationFlags, ErrorCode};
use nbd_proto::{
    Command, Error, ExportInfo, Extent, PauseReason, RequestId, Segment, Segments, Wants,
};

use crate::split::Split;

/// The granularity of holes.
pub(crate) const BLOCK: usize = 512;

/// How a read is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One chunk of data.
    Data,
    /// A chunk for each block, holes for those that are zero.
    Blocks,
    /// The same from the last block to the first.
    Backwards,
}

/// A request that has not been answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) command: Command,
}

pub(crate) struct ServerEnd {
    pub(crate) connection: Connection,
    pub(crate) disk: Vec<u8>,
    pub(crate) exports: Vec<(String, ExportInfo)>,
    pub(crate) shape: Shape,
    /// Requests that have arrived with their payload, in order of arrival.
    pub(crate) waiting: VecDeque<Request>,
    /// Data to write, or that was read.
    bodies: HashMap<RequestId, Vec<u8>>,
    pub(crate) log: Vec<String>,
    pub(crate) error: Option<Error>,
    /// The last event was raised.
    ended: bool,
    staging: Vec<u8>,
}

impl ServerEnd {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            connection: Connection::new(config),
            disk: Vec::new(),
            exports: Vec::new(),
            shape: Shape::Data,
            waiting: VecDeque::new(),
            bodies: HashMap::new(),
            log: Vec::new(),
            error: None,
            ended: false,
            staging: Vec::new(),
        }
    }

    /// Whether the last event was raised.
    pub(crate) const fn ended(&self) -> bool {
        self.ended
    }

    /// Sends one piece of what there is to send.
    pub(crate) fn send(&mut self, split: &mut Split) -> Vec<u8> {
        let bytes = prefix(self.connection.segments(), split, |id| &self.bodies[&id]);
        if !bytes.is_empty() {
            for id in self.connection.transmitted(bytes.len()).unwrap() {
                self.bodies.remove(&id);
            }
        }
        bytes
    }

    /// Takes a piece of what was received, and handles all that can be handled.
    pub(crate) fn receive(&mut self, piece: &[u8]) {
        self.staging.extend_from_slice(piece);
        while self.step() {}
    }

    fn step(&mut self) -> bool {
        let mut input = &self.staging[..];
        let event = self.connection.next_event(&mut input);
        let consumed = self.staging.len() - input.len();
        self.staging.drain(..consumed);
        if let Some(event) = event {
            self.event(event);
            return true;
        }
        match self.connection.wants() {
            Wants::Payload { id, command, offset, remaining, .. } => {
                let count = self.staging.len().min(remaining as usize);
                let body =
                    self.bodies.entry(id).or_insert_with(|| vec![0; command.length() as usize]);
                body[offset as usize..][..count].copy_from_slice(&self.staging[..count]);
                self.staging.drain(..count);
                self.connection.payload_received(count as u64).unwrap();
                return count > 0;
            }
            Wants::Bytes { at_least } => assert!(at_least > 0 && self.staging.is_empty()),
            Wants::Tls => assert!(self.staging.is_empty()),
            Wants::Closed => self.staging.clear(),
            wants => assert_ne!(wants, Wants::Nothing(PauseReason::EventDue)),
        }
        consumed > 0
    }

    fn event(&mut self, event: Event) {
        assert!(!self.ended, "{event:?} after the end");
        // Which slot a request takes depends on how soon earlier ones were given back.
        self.log.push(match &event {
            Event::Request { command, .. } => format!("{command:?}"),
            Event::Closed(Ok(reason)) => format!("{reason:?}"),
            Event::Closed(Err(error)) => format!("error: {error}"),
            other => format!("{other:?}"),
        });
        match event {
            Event::List => {
                let listings = self.exports.iter().map(|(name, info)| Listing {
                    name,
                    description: info.description.as_deref().unwrap_or_default(),
                });
                self.connection.answer_list(listings).unwrap();
            }
            Event::Lookup(lookup) => {
                let found = self.exports.iter().find(|(name, _)| *name == lookup.name);
                let answer = match found {
                    Some((name, _)) if name == "private" && lookup.purpose == Purpose::Enter => {
                        Err(LookupRefusal::Policy("not for you"))
                    }
                    Some((_, info)) => Ok(info),
                    None => Err(LookupRefusal::Unknown),
                };
                self.connection.answer_lookup(answer).unwrap();
            }
            Event::Request { id, command } => {
                if let Command::Read { length, .. } = command {
                    self.bodies.insert(id, vec![0; length as usize]);
                }
                self.waiting.push_back(Request { id, command });
            }
            Event::Closed(end) => {
                self.ended = true;
                self.error = end.err();
            }
            _ => {}
        }
    }

    /// Carries a request out and answers it.
    pub(crate) fn answer(&mut self, Request { id, command }: Request) {
        let range = command.offset() as usize..(command.offset() + command.length()) as usize;
        let Self { connection, disk, bodies, .. } = self;
        match command {
            Command::Read { .. } => {
                bodies.get_mut(&id).unwrap().copy_from_slice(&disk[range.clone()]);
                let mut blocks: Vec<(usize, usize)> = match self.shape {
                    Shape::Data => vec![(range.start, range.len())],
                    Shape::Blocks | Shape::Backwards => blocks(range),
                };
                if self.shape == Shape::Backwards {
                    blocks.reverse();
                }
                let mut reply = connection.reply(id).unwrap();
                for (start, length) in blocks {
                    if self.shape != Shape::Data && is_zero(&disk[start..][..length]) {
                        reply.hole(start as u64, length as u64).unwrap();
                    } else {
                        reply.data(start as u64, length as u64).unwrap();
                    }
                }
                reply.finish().unwrap();
                return;
            }
            Command::BlockStatus { .. } => {
                let names = connection.export().unwrap().contexts.to_vec();
                let mut reply = connection.reply(id).unwrap();
                for context in reply.awaited_contexts() {
                    let name = &names.iter().find(|known| known.id == context).unwrap().name;
                    let map = blocks(range.start..disk.len()).into_iter().map(|(start, length)| {
                        let status = status(name, &disk[start..][..length]);
                        Extent { length: length as u64, status }
                    });
                    reply.extents(context, map).unwrap();
                }
                reply.finish().unwrap();
                return;
            }
            Command::Write { length: 0, .. } => {}
            Command::Write { .. } => disk[range].copy_from_slice(&bodies[&id]),
            Command::Trim { .. } => {}
            Command::WriteZeroes { fast: true, .. } => {
                connection.reply(id).unwrap().error(ErrorCode::ENOTSUP, "not fast");
                return;
            }
            Command::WriteZeroes { .. } => disk[range].fill(0),
            Command::Resize { size, .. } => {
                disk.resize(size as usize, 0);
                connection.set_size(size).unwrap();
            }
            _ => {}
        }
        connection.reply(id).unwrap().finish().unwrap();
    }
}

/// The next piece of what there is to send.
pub(crate) fn prefix<'a>(
    segments: Segments<'_>,
    split: &mut Split,
    body: impl Fn(RequestId) -> &'a [u8],
) -> Vec<u8> {
    let mut rest = split.next(segments.clone().map(|segment| segment.len()).sum());
    let mut bytes = Vec::with_capacity(rest);
    for segment in segments {
        assert!(segment.len() > 0);
        let count = segment.len().min(rest);
        rest -= count;
        bytes.extend_from_slice(match segment {
            Segment::Control(control) => &control[..count],
            Segment::Body { id, offset, .. } => &body(id)[offset as usize..][..count],
        });
    }
    bytes
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// What the contexts of these tests say of a block.
pub(crate) fn status(context: &str, bytes: &[u8]) -> u64 {
    match context {
        "base:allocation" if is_zero(bytes) => {
            u64::from((AllocationFlags::HOLE | AllocationFlags::ZERO).bits())
        }
        "base:allocation" => 0,
        "x-test:wide" => u64::from(bytes[0]) << 40,
        _ => u64::from(bytes[0]),
    }
}

/// The blocks that a range touches, cut to it.
fn blocks(range: std::ops::Range<usize>) -> Vec<(usize, usize)> {
    let mut blocks = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let end = ((start / BLOCK + 1) * BLOCK).min(range.end);
        blocks.push((start, end - start));
        start = end;
    }
    blocks
}
