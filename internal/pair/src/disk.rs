//! Exports over an array of bytes. Requests wait until the test has them answered.

use core::ops::Range;
use std::collections::{HashMap, VecDeque};

use nbd_proto::server::{Connection, Event, Listing, LookupRefusal, Purpose};
use nbd_proto::wire::{AllocationFlags, ErrorCode, TransmissionFlags};
use nbd_proto::{Command, ContextInfo, ExportInfo, Extent, RequestId};

use crate::server::{Embedder, ServerEnd};

/// The granularity of holes.
pub const BLOCK: usize = 512;

/// What a read sends whose data was not supplied.
pub const FILL: u8 = 0xbb;

/// In what chunks a read is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// One for all.
    One,
    /// One for each block.
    Blocks,
    /// The same from the last block to the first.
    Backwards,
}

/// How a read is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// In what chunks.
    pub pieces: Pieces,
    /// Whether chunks that are zero are holes.
    pub holes: bool,
}

impl Shape {
    /// One chunk of data.
    pub const DATA: Self = Self { pieces: Pieces::One, holes: false };
    /// A chunk for each block, holes for those that are zero.
    pub const BLOCKS: Self = Self { pieces: Pieces::Blocks, holes: true };
    /// The same from the last block to the first.
    pub const BACKWARDS: Self = Self { pieces: Pieces::Backwards, holes: true };
}

/// A request that has not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the machine calls it.
    pub id: RequestId,
    /// What to do.
    pub command: Command,
}

/// Exports by name, all over the same bytes. The one called `private` can be asked about, not entered.
#[derive(Debug)]
pub struct Disk {
    /// The contents.
    pub bytes: Vec<u8>,
    /// What there is.
    pub exports: Vec<(String, ExportInfo)>,
    /// How reads are answered.
    pub shape: Shape,
    /// Requests in order of arrival.
    pub waiting: VecDeque<Request>,
    /// All events.
    pub seen: Vec<Event>,
    /// Requests whose data was given back.
    pub finished: Vec<RequestId>,
    /// Data to write, or that was read.
    bodies: HashMap<RequestId, Vec<u8>>,
}

/// An export that can do everything.
#[must_use]
pub fn full_export(size: u64) -> ExportInfo {
    let mut info = ExportInfo::new(size);
    info.flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
    info.description = Some("a test disk".into());
    info.contexts = vec![ContextInfo::base_allocation()];
    info.contexts.extend(ContextInfo::new("x-test:first-byte"));
    info.contexts.extend(ContextInfo::new("x-test:wide").map(ContextInfo::wide));
    info
}

/// The blocks that a range touches, cut to it: offsets and lengths.
#[must_use]
pub fn blocks(range: Range<usize>) -> Vec<(usize, usize)> {
    let mut blocks = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let end = ((start / BLOCK + 1) * BLOCK).min(range.end);
        blocks.push((start, end - start));
        start = end;
    }
    blocks
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The extents of a context in a range, not joined.
#[must_use]
pub fn extents(bytes: &[u8], range: Range<usize>, context: &str) -> Vec<Extent> {
    let extent = |(start, length)| {
        let block: &[u8] = &bytes[start..start + length];
        let status = match context {
            "base:allocation" if is_zero(block) => {
                u64::from((AllocationFlags::HOLE | AllocationFlags::ZERO).bits())
            }
            "base:allocation" => 0,
            "x-test:wide" => u64::from(block[0]) << 40,
            _ => u64::from(block[0]),
        };
        Extent { length: length as u64, status }
    };
    blocks(range).into_iter().map(extent).collect()
}

/// The bytes that a request is about.
#[must_use]
pub fn range(command: Command) -> Range<usize> {
    command.offset() as usize..(command.offset() + command.length()) as usize
}

impl Disk {
    /// A disk with these contents, and the exports `""` and `"disk"` over them.
    #[must_use]
    pub fn new(bytes: Vec<u8>, info: &ExportInfo) -> Self {
        Self {
            bytes,
            exports: vec![(String::new(), info.clone()), ("disk".into(), info.clone())],
            shape: Shape::DATA,
            waiting: VecDeque::new(),
            seen: Vec::new(),
            finished: Vec::new(),
            bodies: HashMap::new(),
        }
    }

    fn look_up(&self, name: &str, purpose: Purpose) -> Result<&ExportInfo, LookupRefusal<'_>> {
        match self.exports.iter().find(|(known, _)| known == name) {
            Some(_) if name == "private" && purpose == Purpose::Enter => {
                Err(LookupRefusal::Policy("not for you"))
            }
            Some((_, info)) => Ok(info),
            None => Err(LookupRefusal::Unknown),
        }
    }

    /// Carries a request out and answers it.
    fn answer(&mut self, connection: &mut Connection, Request { id, command }: Request) {
        let range = range(command);
        let contexts = connection.export().map(|view| view.contexts.to_vec()).unwrap_or_default();
        if let Command::Resize { size, .. } = command {
            connection.set_size(size).expect("an export is in use");
        }
        let mut reply = connection.reply(id).expect("it waits");
        match command {
            Command::Read { .. } => {
                self.bodies.insert(id, self.bytes[range.clone()].to_vec());
                let mut pieces = match self.shape.pieces {
                    Pieces::One => vec![(range.start, range.len())],
                    Pieces::Blocks | Pieces::Backwards => blocks(range),
                };
                if self.shape.pieces == Pieces::Backwards {
                    pieces.reverse();
                }
                for (start, length) in pieces {
                    let hole = self.shape.holes && is_zero(&self.bytes[start..][..length]);
                    let (offset, length) = (start as u64, length as u64);
                    let told =
                        if hole { reply.hole(offset, length) } else { reply.data(offset, length) };
                    told.expect("it is a part");
                }
            }
            Command::BlockStatus { .. } => {
                for id in reply.awaited_contexts() {
                    let context = contexts.iter().find(|known| known.id == id);
                    let name = &context.expect("it was selected").name;
                    let map = extents(&self.bytes, range.start..self.bytes.len(), name);
                    reply.extents(id, map).expect("it is awaited");
                }
            }
            Command::Write { .. } if range.is_empty() => {}
            Command::Write { .. } => self.bytes[range].copy_from_slice(&self.bodies[&id]),
            Command::WriteZeroes { fast: true, .. } => {
                return reply.error(ErrorCode::ENOTSUP, "not fast");
            }
            Command::Trim { .. } | Command::WriteZeroes { .. } => self.bytes[range].fill(0),
            Command::Resize { size, .. } => self.bytes.resize(size as usize, 0),
            _ => {}
        }
        reply.finish().expect("it is complete");
    }
}

impl ServerEnd<Disk> {
    /// Carries a request out and answers it.
    pub fn answer(&mut self, request: Request) {
        let role = &mut **self;
        role.embedder.answer(&mut role.connection, request);
    }
}

impl Embedder for Disk {
    fn event(&mut self, connection: &mut Connection, event: &Event) {
        match event {
            Event::List => {
                let listings = self.exports.iter().map(|(name, info)| Listing {
                    name,
                    description: info.description.as_deref().unwrap_or_default(),
                });
                connection.answer_list(listings).expect("it was asked");
            }
            Event::Lookup(lookup) => {
                let answer = self.look_up(&lookup.name, lookup.purpose);
                connection.answer_lookup(answer).expect("it was asked");
            }
            &Event::Request { id, command } => {
                let payload = self.bodies.get(&id).map_or(0, Vec::len);
                assert_eq!(payload as u64, command.payload_length(), "not before its payload");
                self.waiting.push_back(Request { id, command });
            }
            _ => {}
        }
        self.seen.push(event.clone());
    }

    fn payload(&mut self, request: RequestId, _command: Command, offset: u64, bytes: &[u8]) {
        let body = self.bodies.entry(request).or_default();
        assert_eq!(body.len() as u64, offset);
        body.extend_from_slice(bytes);
    }

    fn body(&self, request: RequestId, offset: u64, length: usize, out: &mut Vec<u8>) {
        match self.bodies.get(&request) {
            Some(body) => out.extend_from_slice(&body[offset as usize..][..length]),
            None => out.resize(out.len() + length, FILL),
        }
    }

    fn finished(&mut self, request: RequestId) {
        self.bodies.remove(&request);
        self.finished.push(request);
    }
}
