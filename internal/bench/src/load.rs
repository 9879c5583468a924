//! The load generator: one connection, a fixed number of requests in flight, as cheap as can be.
//!
//! It must cost less than any server, or it measures itself. So all requests that are due leave in
//! one gathered write, replies are received many at a time, the data of a READ is dropped where it
//! landed and that of a WRITE is the same few pages every time. Verify mode gives all of that up
//! to see whether the server tells the truth.

use std::io::{self, Error, ErrorKind, IoSlice, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_testkit::{Pattern, Random};
use rustls::ClientConfig;

use crate::handshake::{self, Export};
use crate::mode::{Content, Mode};
use crate::socket::Socket;
use crate::vectored::{self, SliceList};
use crate::wire::{Cmd, EXTENDED_REQUEST_LEN, Request};

/// The most requests in flight.
///
/// The generator does not receive while it sends. That is safe as long as what the peer may have
/// to send meanwhile, or the requests themselves, fit a socket buffer: READ requests and WRITE
/// replies are small, and each run has just one of the two commands.
pub const MAX_DEPTH: usize = 128;

/// Bytes of one receive call.
const STAGING: usize = 256 * 1024;

/// A server that is silent for this long is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// READ or WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `NBD_CMD_READ`
    Read,
    /// `NBD_CMD_WRITE`
    Write,
}

/// Which offsets to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Any block, from a fixed seed.
    Random,
    /// One block after the other, again from the start at the end.
    Sequential,
}

/// What to ask for, and for how long.
#[derive(Clone, Debug)]
pub struct Load {
    /// READ or WRITE.
    pub direction: Direction,
    /// Which offsets.
    pub order: Order,
    /// Bytes of each request; offsets are multiples of it.
    pub block: u32,
    /// Requests in flight, from 1 to [`MAX_DEPTH`].
    pub depth: usize,
    /// Ask for nothing more after this time.
    pub duration: Option<Duration>,
    /// Ask for no more than this many requests.
    pub requests: Option<u64>,
    /// Seed of the random offsets.
    pub seed: u64,
    /// Write this pattern, or expect it in what is read. Slow.
    pub verify: Option<Pattern>,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of payload of those.
    pub bytes: u64,
    /// From the first request to the last reply.
    pub elapsed: Duration,
}

impl Outcome {
    /// Requests in a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// MiB of payload in a second.
    pub fn mib_rate(&self) -> f64 {
        self.bytes as f64 / (1024.0 * 1024.0) / self.elapsed.as_secs_f64()
    }
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Connection {
    stream: Socket,
    export: Export,
    mode: Mode,
}

impl Connection {
    /// Does the handshake for the export `name`; see [`handshake::go`].
    pub fn negotiate(stream: UnixStream, name: &str, mode: Mode) -> io::Result<Self> {
        bounded(&stream)?;
        let export = handshake::go(&stream, name, mode)?;
        Ok(Self { stream: Socket::plain(stream), export, mode })
    }

    /// The same inside of TLS.
    pub fn negotiate_tls(
        stream: UnixStream,
        name: &str,
        mode: Mode,
        config: Arc<ClientConfig>,
    ) -> io::Result<Self> {
        bounded(&stream)?;
        handshake::greet(&stream)?;
        handshake::start_tls(&stream)?;
        let mut stream = Socket::tls(stream, config)?;
        let export = handshake::enter(&mut stream, name, mode)?;
        Ok(Self { stream, export, mode })
    }

    /// The export that the server gave.
    pub fn export(&self) -> Export {
        self.export
    }

    /// Sets `SO_SNDBUF`, which bounds how much of a WRITE is on its way at once.
    pub fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_send_buffer_size(self.stream.unix(), bytes)?)
    }

    /// Loads the server. An error reply is an error, and so is a reply to nothing.
    pub fn run(&mut self, load: &Load) -> io::Result<Outcome> {
        let mut run = Run::new(&mut self.stream, self.mode, load, self.export.size)?;
        let start = Instant::now();
        let requests = run.go(start).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => Error::new(ErrorKind::TimedOut, "the server is silent"),
            _ => error,
        })?;
        let elapsed = start.elapsed();
        Ok(Outcome { requests, bytes: requests * u64::from(load.block), elapsed })
    }

    /// Has what was written stored, and returns how long that took.
    pub fn flush(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        let mut header = Vec::with_capacity(EXTENDED_REQUEST_LEN);
        let request = Request { command: Cmd::FLUSH, cookie: 0, offset: 0, length: 0 };
        self.mode.encode(&request, &mut header);
        vectored::write_all(&mut self.stream, &mut [IoSlice::new(&header)])?;
        let mut reply = Vec::new();
        loop {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            reply.push(byte[0]);
            match self.mode.decode(&reply)?.map(|(reply, _)| reply.content) {
                Some(Content::Error(error)) => {
                    return Err(invalid(format!(
                        "the server replied to a flush with error {error}"
                    )));
                }
                Some(_) => return Ok(start.elapsed()),
                None => {}
            }
        }
    }

    /// Soft disconnect.
    pub fn disconnect(mut self) -> io::Result<()> {
        let mut header = Vec::with_capacity(EXTENDED_REQUEST_LEN);
        let request = Request { command: Cmd::DISC, cookie: 0, offset: 0, length: 0 };
        self.mode.encode(&request, &mut header);
        vectored::write_all(&mut self.stream, &mut [IoSlice::new(&header)])
    }
}

fn bounded(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// A place for a request in flight; the cookie is its index.
#[derive(Clone, Copy)]
struct Slot {
    offset: u64,
    /// Bytes of a READ of which no chunk has told yet.
    missing: u32,
    in_flight: bool,
}

/// READ data that has yet to come.
struct Body {
    slot: usize,
    /// Of the next byte.
    offset: u64,
    remaining: usize,
    /// Nothing of the reply follows.
    last: bool,
}

struct Run<'a> {
    stream: &'a mut Socket,
    mode: Mode,
    load: &'a Load,
    blocks: u64,
    random: Random,
    next_block: u64,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Requests that may still be made.
    allowance: u64,
    answered: u64,
    headers: Vec<u8>,
    /// The slots of `headers`.
    due: Vec<usize>,
    /// Payload of WRITE: one block, or one for each slot in verify mode.
    payload: Vec<u8>,
    staging: Vec<u8>,
    kept: usize,
    body: Option<Body>,
    slices: SliceList,
}

impl<'a> Run<'a> {
    fn new(stream: &'a mut Socket, mode: Mode, load: &'a Load, size: u64) -> io::Result<Self> {
        let blocks = size.checked_div(u64::from(load.block)).unwrap_or(0);
        if blocks == 0 || !(1..=MAX_DEPTH).contains(&load.depth) {
            let text = format!("block {} or depth {} does not fit", load.block, load.depth);
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        if load.duration.is_none() && load.requests.is_none() {
            return Err(Error::new(ErrorKind::InvalidInput, "a load without an end"));
        }
        let copies = match (load.direction, load.verify) {
            (Direction::Read, _) => 0,
            (Direction::Write, None) => 1,
            (Direction::Write, Some(_)) => load.depth,
        };
        Ok(Self {
            stream,
            mode,
            load,
            blocks,
            random: Random::new(load.seed),
            next_block: 0,
            slots: vec![Slot { offset: 0, missing: 0, in_flight: false }; load.depth],
            free: (0..load.depth).rev().collect(),
            allowance: load.requests.unwrap_or(u64::MAX),
            answered: 0,
            headers: Vec::with_capacity(load.depth * EXTENDED_REQUEST_LEN),
            due: Vec::with_capacity(load.depth),
            payload: vec![0x5a; copies * load.block as usize],
            staging: vec![0; STAGING],
            kept: 0,
            body: None,
            slices: SliceList::default(),
        })
    }

    fn go(&mut self, start: Instant) -> io::Result<u64> {
        loop {
            self.prepare();
            self.send()?;
            if self.free.len() == self.slots.len() {
                return Ok(self.answered);
            }
            self.receive()?;
            if self.load.duration.is_some_and(|duration| start.elapsed() >= duration) {
                self.allowance = 0;
            }
        }
    }

    /// A request for every free slot.
    fn prepare(&mut self) {
        let command = match self.load.direction {
            Direction::Read => Cmd::READ,
            Direction::Write => Cmd::WRITE,
        };
        while self.allowance > 0
            && let Some(slot) = self.free.pop()
        {
            self.allowance -= 1;
            let block = match self.load.order {
                Order::Random => self.random.below(self.blocks),
                Order::Sequential => {
                    let block = self.next_block;
                    self.next_block = (block + 1) % self.blocks;
                    block
                }
            };
            let offset = block * u64::from(self.load.block);
            let length = self.load.block;
            let missing = if self.load.direction == Direction::Read { length } else { 0 };
            self.slots[slot] = Slot { offset, missing, in_flight: true };
            self.due.push(slot);
            let request = Request { command, cookie: slot as u64, offset, length };
            self.mode.encode(&request, &mut self.headers);
        }
    }

    /// Everything that is due in one gathered write.
    fn send(&mut self) -> io::Result<()> {
        if self.due.is_empty() {
            return Ok(());
        }
        let block = self.load.block as usize;
        let writes = self.load.direction == Direction::Write;
        if let (true, Some(pattern)) = (writes, self.load.verify) {
            for &slot in &self.due {
                let payload = &mut self.payload[slot * block..][..block];
                pattern.fill(self.slots[slot].offset, payload);
            }
        }
        let mut slices = self.slices.take();
        if writes {
            for (header, slot) in self.headers.chunks(self.mode.request_len()).zip(&self.due) {
                let copy = if self.load.verify.is_some() { *slot } else { 0 };
                slices.push(IoSlice::new(header));
                slices.push(IoSlice::new(&self.payload[copy * block..][..block]));
            }
        } else {
            slices.push(IoSlice::new(&self.headers));
        }
        vectored::write_all(&mut *self.stream, &mut slices)?;
        self.slices.put_back(slices);
        self.headers.clear();
        self.due.clear();
        Ok(())
    }

    /// One receive call and all replies in it.
    fn receive(&mut self) -> io::Result<()> {
        let got = match self.stream.read(&mut self.staging[self.kept..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let staged = self.kept + got;
        let mut at = 0;
        loop {
            if let Some(body) = &mut self.body {
                let here = body.remaining.min(staged - at);
                if let Some(pattern) = self.load.verify
                    && let data = &self.staging[at..at + here]
                    && let Some(wrong) = pattern.first_difference(body.offset, data)
                {
                    return Err(invalid(format!("wrong data at offset {wrong}")));
                }
                at += here;
                body.offset += here as u64;
                body.remaining -= here;
                if body.remaining > 0 {
                    break;
                }
                let (slot, last) = (body.slot, body.last);
                self.body = None;
                if last {
                    self.finish(slot)?;
                }
            }
            let Some((reply, length)) = self.mode.decode(&self.staging[at..staged])? else { break };
            at += length;
            let slot = reply.cookie as usize;
            if !self.slots.get(slot).is_some_and(|slot| slot.in_flight) {
                return Err(invalid(format!("a reply to nothing: cookie {:#x}", reply.cookie)));
            }
            self.take(slot, reply.content, reply.last)?;
        }
        self.staging.copy_within(at..staged, 0);
        self.kept = staged - at;
        Ok(())
    }

    /// What a header tells of the request in `slot`.
    fn take(&mut self, slot: usize, content: Content, last: bool) -> io::Result<()> {
        let Slot { offset: begin, missing, .. } = self.slots[slot];
        let (offset, length) = match content {
            Content::Error(error) => {
                return Err(invalid(format!("the server replied with error {error}")));
            }
            Content::Rest => (begin, missing),
            Content::Data { offset, length } | Content::Hole { offset, length } => (offset, length),
        };
        let inside = offset.checked_sub(begin).is_some_and(|skipped| {
            skipped + u64::from(length) <= u64::from(self.load.block) && length <= missing
        });
        if !inside {
            return Err(invalid("a chunk of something else than was asked for"));
        }
        match content {
            Content::Hole { .. } if self.load.verify.is_some() => {
                return Err(invalid(format!("wrong data at offset {offset}: a hole")));
            }
            // A chunk by itself brings no data; only the end of the reply asks whether any is due.
            Content::Rest if self.mode != Mode::Simple => {}
            Content::Data { .. } | Content::Rest if length > 0 => {
                self.slots[slot].missing -= length;
                self.body = Some(Body { slot, offset, remaining: length as usize, last });
                return Ok(());
            }
            _ => self.slots[slot].missing -= length,
        }
        if last { self.finish(slot) } else { Ok(()) }
    }

    fn finish(&mut self, slot: usize) -> io::Result<()> {
        if self.slots[slot].missing > 0 {
            return Err(invalid("a reply ended before all data was there"));
        }
        self.slots[slot].in_flight = false;
        self.free.push(slot);
        self.answered += 1;
        Ok(())
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, text.into())
}
