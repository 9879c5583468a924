//! The yardstick: the least work that an NBD server in user space can do.
//!
//! It trusts its client. There is one command loop: receive as much as there is, copy what WRITEs
//! brought into memory, answer all of it with one gathered write whose payload comes straight from
//! memory. No checks, no tasks, no hop to another thread, no allocation once it runs. What a real
//! server needs beyond this is the price of being one.
//!
//! The memory is behind a lock that is held during system calls, once for each of them and free of
//! contention with one connection, which is what is measured. A real server must not do that: two
//! connections take turns here, and the one waits for the other's slow client.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;

use crate::handshake;
use crate::vectored::{self, SliceList};
use crate::wire::{Cmd, REPLY_LEN, REQUEST_LEN, Request, SimpleReply};

/// What may be varied, to see what it is worth.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Bytes of the staging buffer: an upper bound on the requests of one receive call. More saves
    /// calls, but a batch that takes all that the client has in flight leaves both sides to wait
    /// for each other in turn.
    pub staging: usize,
    /// Bytes of staging that are offered behind the rest of a payload of [`Tuning::large`] bytes
    /// or more. What lands in staging is copied once more, and after a large payload it is likely
    /// that the next one is large as well.
    pub staging_after_large: usize,
    /// A payload of this many bytes is large.
    pub large: usize,
    /// `SO_SNDBUF` of each connection, if it is to be set.
    pub send_buffer: Option<usize>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            staging: 64 * 1024,
            staging_after_large: 4 * 1024,
            large: 64 * 1024,
            send_buffer: None,
        }
    }
}

/// A disk in memory and how to serve it.
#[derive(Debug)]
pub struct Yardstick {
    memory: RwLock<Vec<u8>>,
    tuning: Tuning,
}

impl Yardstick {
    /// A disk of `size` zero bytes, each page of which is in memory already.
    pub fn new(size: usize, tuning: Tuning) -> Self {
        let mut memory = vec![0; size];
        for page in memory.chunks_mut(4096) {
            // Opaque, or the compiler knows that it is zero and leaves it out.
            page[0] = std::hint::black_box(0);
        }
        Self { memory: RwLock::new(memory), tuning }
    }

    /// Accepts connections for ever, a thread for each.
    pub fn serve(self: Arc<Self>, listener: &UnixListener) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept()?;
            let yardstick = Arc::clone(&self);
            thread::Builder::new().name("connection".into()).spawn(move || {
                if let Err(error) = yardstick.serve_connection(&stream) {
                    eprintln!("yardstick: {error}");
                }
            })?;
        }
    }

    /// One connection, from the greeting to its end.
    pub fn serve_connection(&self, stream: &UnixStream) -> io::Result<()> {
        if let Some(bytes) = self.tuning.send_buffer {
            rustix::net::sockopt::set_socket_send_buffer_size(stream, bytes)?;
        }
        let size = self.read().len() as u64;
        match handshake::serve(stream, size) {
            Ok(true) => Session::new(self, stream).run(),
            Ok(false) => Ok(()),
            // Whoever only looked whether somebody listens.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A WRITE of which some payload has yet to come.
struct Partial {
    cookie: u64,
    missing: Range<usize>,
    length: usize,
}

/// The transmission phase of one connection.
struct Session<'a> {
    yardstick: &'a Yardstick,
    stream: &'a UnixStream,
    staging: Vec<u8>,
    /// The part of a header at the start of `staging`.
    kept: usize,
    partial: Option<Partial>,
    /// Headers of the replies to send, one after the other.
    headers: Vec<u8>,
    /// What follows each of those headers; empty but for READ.
    bodies: Vec<Range<usize>>,
    bodies_len: usize,
    slices: SliceList,
}

impl<'a> Session<'a> {
    fn new(yardstick: &'a Yardstick, stream: &'a UnixStream) -> Self {
        Self {
            yardstick,
            stream,
            staging: vec![0; yardstick.tuning.staging.max(REQUEST_LEN)],
            kept: 0,
            partial: None,
            headers: Vec::new(),
            bodies: Vec::new(),
            bodies_len: 0,
            slices: SliceList::default(),
        }
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let staged = match self.receive() {
                Ok(Some(staged)) => staged,
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let more = self.take_requests(staged)?;
            self.send_replies()?;
            if !more {
                return Ok(());
            }
        }
    }

    /// One receive call: the rest of a payload straight into memory, what follows into staging.
    ///
    /// Gives the filled length of staging, or `None` at the end of the stream.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        let Some(partial) = &mut self.partial else {
            let got = self.stream.read(&mut self.staging[self.kept..])?;
            return Ok((got > 0).then_some(self.kept + got));
        };
        let tuning = &self.yardstick.tuning;
        let offered = match partial.length {
            length if length >= tuning.large => tuning.staging_after_large.max(REQUEST_LEN),
            _ => usize::MAX,
        };
        let offered = offered.min(self.staging.len());
        let staging = &mut self.staging[..offered];
        let mut memory = self.yardstick.write();
        let body = memory.get_mut(partial.missing.clone()).ok_or(ErrorKind::InvalidInput)?;
        let mut into = [IoSliceMut::new(body), IoSliceMut::new(staging)];
        let got = self.stream.read_vectored(&mut into)?;
        if got == 0 {
            return Ok(None);
        }
        if got < partial.missing.len() {
            partial.missing.start += got;
            return Ok(Some(0));
        }
        let staged = got - partial.missing.len();
        let cookie = partial.cookie;
        self.partial = None;
        self.push_reply(cookie, 0..0);
        Ok(Some(staged))
    }

    /// Does what the requests in staging ask for; `false` after a soft disconnect.
    fn take_requests(&mut self, staged: usize) -> io::Result<bool> {
        let yardstick = self.yardstick;
        // Locked at the first WRITE of the batch. A READ of the same batch sees what was written,
        // which the specification leaves open.
        let mut memory = None;
        let mut at = 0;
        while let Some(header) = self.staging[at..staged].first_chunk::<REQUEST_LEN>() {
            let request = Request::decode_unchecked(header);
            at += REQUEST_LEN;
            let start = request.offset as usize;
            let length = request.length as usize;
            match request.command {
                Cmd::READ => self.push_reply(request.cookie, start..start + length),
                Cmd::WRITE => {
                    let here = length.min(staged - at);
                    let payload = &self.staging[at..at + here];
                    memory
                        .get_or_insert_with(|| yardstick.write())
                        .get_mut(start..start + here)
                        .ok_or(ErrorKind::InvalidInput)?
                        .copy_from_slice(payload);
                    at += here;
                    if here < length {
                        let missing = start + here..start + length;
                        self.partial = Some(Partial { cookie: request.cookie, missing, length });
                    } else {
                        self.push_reply(request.cookie, 0..0);
                    }
                }
                Cmd::DISC => return Ok(false),
                _ => self.push_reply(request.cookie, 0..0),
            }
        }
        self.staging.copy_within(at..staged, 0);
        self.kept = staged - at;
        Ok(true)
    }

    fn push_reply(&mut self, cookie: u64, body: Range<usize>) {
        SimpleReply { error: 0, cookie }.encode(&mut self.headers);
        self.bodies_len += body.len();
        self.bodies.push(body);
    }

    /// All replies in one gathered write.
    fn send_replies(&mut self) -> io::Result<()> {
        if self.bodies_len == 0 {
            let mut stream = self.stream;
            stream.write_all(&self.headers)?;
        } else {
            let memory = self.yardstick.read();
            let mut slices = self.slices.take();
            for (header, body) in self.headers.chunks(REPLY_LEN).zip(&self.bodies) {
                slices.push(IoSlice::new(header));
                if !body.is_empty() {
                    let body = memory.get(body.clone()).ok_or(ErrorKind::InvalidInput)?;
                    slices.push(IoSlice::new(body));
                }
            }
            vectored::write_all(self.stream, &mut slices)?;
            self.slices.put_back(slices);
        }
        self.headers.clear();
        self.bodies.clear();
        self.bodies_len = 0;
        Ok(())
    }
}
