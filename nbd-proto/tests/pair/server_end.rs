//! The server's machine with a disk behind it. Requests wait until the scenario has them answered.

use std::collections::HashMap;
use std::collections::VecDeque;

use nbd_proto::server::{
    Config, Connection, Event, Incoming, Listing, LookupRefusal, Purpose, Request,
};
use nbd_proto::wire::{AllocationFlags, ErrorCode};
use nbd_proto::{Command, Error, ExportInfo, Extent, RequestId, Segment, Segments};

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

pub(crate) struct ServerEnd {
    pub(crate) connection: Connection,
    pub(crate) disk: Vec<u8>,
    pub(crate) exports: Vec<(String, ExportInfo)>,
    pub(crate) shape: Shape,
    /// Requests whose payload has arrived, in order of arrival.
    pub(crate) waiting: VecDeque<Request>,
    /// Data to write, or that was read.
    bodies: HashMap<RequestId, Vec<u8>>,
    pub(crate) log: Vec<String>,
    pub(crate) error: Option<Error>,
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
            staging: Vec::new(),
        }
    }

    /// Sends one piece of what there is to send.
    pub(crate) fn send(&mut self, split: &mut Split) -> Vec<u8> {
        let bytes = prefix(self.connection.segments(), split, |request| &self.bodies[&request]);
        self.connection.transmitted(bytes.len()).unwrap();
        while let Some(id) = self.connection.next_finished() {
            self.bodies.remove(&id);
        }
        bytes
    }

    /// Takes a piece of what was received, and handles all that can be handled.
    pub(crate) fn receive(&mut self, piece: &[u8]) {
        self.staging.extend_from_slice(piece);
        while self.error.is_none() && self.step() {}
    }

    fn step(&mut self) -> bool {
        match self.connection.incoming() {
            Incoming::Control { need } => {
                let mut input = &self.staging[..];
                let before = input.len();
                match self.connection.next_event(&mut input) {
                    Ok(event) => {
                        let eaten = before - input.len();
                        assert!(event.is_none() || before >= need, "{event:?} came too early");
                        self.staging.drain(..eaten);
                        let happened = event.is_some();
                        event.into_iter().for_each(|event| self.event(event));
                        happened || eaten > 0
                    }
                    Err(error) => {
                        self.log.push(format!("error: {error}"));
                        self.error = Some(error);
                        false
                    }
                }
            }
            Incoming::Payload { request, offset, remaining } => {
                let count = self.staging.len().min(remaining as usize);
                let place = &mut self.bodies.get_mut(&request).unwrap()[offset as usize..];
                place[..count].copy_from_slice(&self.staging[..count]);
                self.staging.drain(..count);
                self.connection.payload_received(count as u64).unwrap();
                count > 0
            }
            Incoming::Discard { remaining } => {
                let count = self.staging.len().min(remaining as usize);
                self.staging.drain(..count);
                self.connection.payload_received(count as u64).unwrap();
                count > 0
            }
            Incoming::Tls => {
                assert!(self.staging.is_empty());
                false
            }
            Incoming::Terminated => {
                self.staging.clear();
                false
            }
            _ => false,
        }
    }

    fn event(&mut self, event: Event) {
        // Which place a request takes depends on how soon earlier ones were given back.
        self.log.push(match &event {
            Event::Request(request) => format!("{:?}", request.command),
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
            Event::Request(request) => {
                let length = request.command.buffer_length() as usize;
                if length > 0 {
                    self.bodies.insert(request.id, vec![0; length]);
                }
                self.waiting.push_back(request);
            }
            _ => {}
        }
    }

    /// Whether a request can be answered: all but writes whose payload is under way.
    pub(crate) fn is_complete(&self, request: &Request) -> bool {
        !matches!(self.connection.incoming(),
            Incoming::Payload { request: id, .. } if id == request.id)
    }

    /// Carries a request out and answers it.
    pub(crate) fn answer(&mut self, request: &Request) {
        let Request { id, command, .. } = *request;
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
                        reply.hole(start as u64, length as u32).unwrap();
                    } else {
                        reply.data(start as u64, length as u32).unwrap();
                    }
                }
                reply.finish().unwrap();
                return;
            }
            Command::BlockStatus { .. } => {
                let contexts: Vec<u32> = connection.awaited_contexts(id).to_vec();
                let names = connection.export().unwrap().contexts.to_vec();
                let mut reply = connection.reply(id).unwrap();
                for context in contexts {
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
            Command::Write { .. } => disk[range].copy_from_slice(&bodies[&id]),
            Command::Trim { .. } => {}
            Command::WriteZeroes { fast: true, .. } => {
                connection.reply(id).unwrap().error(ErrorCode::ENOTSUP, "not fast");
                return;
            }
            Command::WriteZeroes { .. } => disk[range].fill(0),
            Command::Resize { size } => {
                disk.resize(size as usize, 0);
                connection.set_size(size).unwrap();
            }
            _ => {}
        }
        connection.reply(id).unwrap().done().unwrap();
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
        assert!(!segment.is_empty());
        let count = segment.len().min(rest);
        rest -= count;
        bytes.extend_from_slice(match segment {
            Segment::Control(control) => &control[..count],
            Segment::Body { request, offset, .. } => &body(request)[offset as usize..][..count],
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
