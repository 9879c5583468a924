//! The core in an event loop of one's own: one thread, any number of clients, `poll(2)` and nothing else.
//!
//! ```text
//! cargo run --example poll_loop [ADDRESS:PORT | /PATH/OF/SOCKET] [MIB]
//! ```
//!
//! It serves a disk in memory, of 64 MiB or as many as are asked for, and prints its URI; try `nbdinfo URI`, `qemu-io -f raw URI` or `nbdcopy FILE URI`.
//!
//! The disk is one array, so that payload is never copied from buffer to buffer: what is written goes from the socket
//! straight to its place on the disk, and what is read goes from there to the socket, many replies in one gathered
//! write. An export that takes its time would keep a buffer for each place in flight instead, and call
//! [`Connection::reply`] when it is done: replies may be given in any order.

// An example has less to fear than the library. Offsets and lengths come from the core, which has checked them.
#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![allow(clippy::indexing_slicing)]

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use nbd_proto::server::{Config, Connection, Event, Incoming, Listing, LookupRefusal, Request};
use nbd_proto::wire::{ErrorCode, TransmissionFlags as Flags};
use nbd_proto::{Command, ExportInfo, Segment};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::ioctl_fionbio;
use rustix::net::{accept, sockopt::set_tcp_nodelay};

/// Clients at a time. What each of them can make the core hold is bounded by [`nbd_proto::Limits`].
const MOST_CLIENTS: usize = 1000;

/// Slices of one gathered write.
const MOST_SLICES: usize = 64;

/// Receive calls for one client before the others get their turn.
const MOST_FILLS: usize = 4;

struct Disk {
    bytes: Vec<u8>,
    info: ExportInfo,
}

struct Client {
    /// A socket of either kind, as anything to read and write.
    stream: File,
    connection: Connection,
    /// Received bytes; those in `start..end` were not looked at yet.
    staging: Vec<u8>,
    start: usize,
    end: usize,
    /// What is in flight, by [`nbd_proto::RequestId::index`].
    commands: Vec<Command>,
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let mib: u64 = arguments.next().map_or(Ok(64), |mib| mib.parse()).map_err(io::Error::other)?;
    let (listener, uri): (OwnedFd, _) = if place.contains('/') {
        (UnixListener::bind(&place)?.into(), format!("nbd+unix:///?socket={place}"))
    } else {
        let listener = TcpListener::bind(&place)?;
        let uri = format!("nbd://{}/", listener.local_addr()?);
        (listener.into(), uri)
    };
    ioctl_fionbio(&listener, true)?;
    println!("{uri}");
    let mut disk = Disk { bytes: vec![0; (mib << 20) as usize], info: ExportInfo::new(mib << 20) };
    // Memory is as durable as it gets, so that FLUSH and FUA have nothing to do.
    disk.info.flags = Flags::SEND_FLUSH | Flags::SEND_FUA | Flags::CAN_MULTI_CONN;
    disk.info.flags |= Flags::SEND_TRIM | Flags::SEND_WRITE_ZEROES;

    let mut clients: Vec<Client> = Vec::new();
    loop {
        // There is no clock in the core. A server for strangers would have a timeout here, and close clients that do
        // not get to `is_transmitting` in time.
        let mut sockets: Vec<_> = clients
            .iter()
            .map(|client| PollFd::new(&client.stream, client.interest()))
            .chain([PollFd::new(&listener, PollFlags::IN)])
            .collect();
        rustix::io::retry_on_intr(|| poll(&mut sockets, None))?;
        let ready: Vec<bool> = sockets.iter().map(|socket| !socket.revents().is_empty()).collect();

        let mut each = ready.iter();
        clients.retain_mut(|client| each.next() == Some(&false) || client.turn(&mut disk));
        if ready.last() == Some(&true) {
            take_in(&listener, &mut clients);
        }
    }
}

/// Takes in a client. Its greeting is queued, so that the next `poll` finds it ready.
fn take_in(listener: &OwnedFd, clients: &mut Vec<Client>) {
    match accept(listener).map_err(io::Error::from).and_then(Client::new) {
        Ok(client) if clients.len() < MOST_CLIENTS => clients.push(client),
        Ok(_) => {} // One too many: closed.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => eprintln!("a client can't be accepted: {error}"),
    }
}

/// What a call on a non-blocking socket did; `None` if it was not ready.
fn if_ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            Ok(None)
        }
        result => result.map(Some),
    }
}

impl Client {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&socket, true)?;
        let _unix = set_tcp_nodelay(&socket, true); // Replies leave at once.
        let (stream, connection) = (File::from(socket), Connection::new(Config::default()));
        let staging = vec![0; 64 << 10];
        Ok(Self { stream, connection, staging, start: 0, end: 0, commands: Vec::new() })
    }

    /// What the socket has to be ready for before there is anything to do.
    fn interest(&self) -> PollFlags {
        let mut events = PollFlags::empty();
        // Who does not read its replies is not read from any more, once so many are in flight.
        let incoming = self.connection.incoming();
        let closed = matches!(incoming, Incoming::Paused(_) | Incoming::Tls | Incoming::Terminated);
        events.set(PollFlags::IN, !closed);
        events.set(PollFlags::OUT, self.connection.segments().next().is_some());
        events
    }

    /// Does what can be done without waiting. Gives whether the client stays.
    fn turn(&mut self, disk: &mut Disk) -> bool {
        let result = self.run(disk);
        if let Err(error) = &result {
            eprintln!("a client was closed: {error}");
        }
        result.is_ok() && !self.connection.is_finished()
    }

    /// Afterwards the invariant holds: whatever was received has been handled, or waits for replies to leave; and
    /// nothing is queued, or the socket takes no more.
    fn run(&mut self, disk: &mut Disk) -> io::Result<()> {
        let mut fills = MOST_FILLS;
        loop {
            let received = self.receive(disk, &mut fills)?;
            let sent = self.send(disk)?;
            if !received && !sent {
                return Ok(());
            }
        }
    }

    /// Handles what arrives. Gives whether anything did.
    fn receive(&mut self, disk: &mut Disk, fills: &mut usize) -> io::Result<bool> {
        let mut progress = false;
        loop {
            let staged = &self.staging[self.start..self.end];
            match self.connection.incoming() {
                // Bytes of the protocol are the core's. With a need of 0 an event waits for no more bytes.
                Incoming::Control { need } if need == 0 || !staged.is_empty() => {
                    let mut input = staged;
                    let event = self.connection.next_event(&mut input).map_err(io::Error::other)?;
                    self.start = self.end - input.len();
                    if let Some(event) = event {
                        self.handle(event, disk)?;
                    }
                }
                // The payload of a write belongs on the disk: what of it is here already, and then the rest, as it
                // comes from the socket.
                Incoming::Payload { request, offset, remaining } => {
                    let from = (self.commands[request.index()].offset() + offset) as usize;
                    let place = &mut disk.bytes[from..from + remaining as usize];
                    let count = if staged.is_empty() {
                        let Some(count) = if_ready(self.stream.read(place))? else {
                            return Ok(progress);
                        };
                        count
                    } else {
                        let count = place.len().min(staged.len());
                        place[..count].copy_from_slice(&staged[..count]);
                        self.start += count;
                        count
                    };
                    if count == 0 {
                        self.end_of_stream();
                        return Ok(progress);
                    }
                    self.connection.payload_received(count as u64).map_err(io::Error::other)?;
                    if count as u64 == remaining {
                        let reply = self.connection.reply(request).map_err(io::Error::other)?;
                        reply.done().map_err(io::Error::other)?;
                    }
                }
                // The payload of a request that was refused.
                Incoming::Discard { remaining } if !staged.is_empty() => {
                    let count = remaining.min(staged.len() as u64);
                    self.start += count as usize;
                    self.connection.payload_received(count).map_err(io::Error::other)?;
                }
                Incoming::Control { .. } | Incoming::Discard { .. } if *fills > 0 => {
                    *fills -= 1;
                    match if_ready(self.stream.read(&mut self.staging))? {
                        None => return Ok(progress),
                        Some(0) => self.end_of_stream(),
                        Some(count) => (self.start, self.end) = (0, count),
                    }
                }
                _ => return Ok(progress),
            }
            progress = true;
        }
    }

    /// The client will send no more. What it asked for before is still answered.
    fn end_of_stream(&mut self) {
        if let Err(error) = self.connection.end_of_stream() {
            eprintln!("a client hung up: {error}");
        }
        while self.connection.next_finished().is_some() {}
    }

    fn handle(&mut self, event: Event, disk: &mut Disk) -> io::Result<()> {
        let result = match event {
            Event::List => {
                self.connection.answer_list([Listing { name: "", description: "in memory" }])
            }
            Event::Lookup(lookup) => {
                let known = lookup.name.is_empty();
                let answer = if known { Ok(&disk.info) } else { Err(LookupRefusal::Unknown) };
                self.connection.answer_lookup(answer).map(drop)
            }
            Event::Request(request) => self.begin(request, disk),
            _ => Ok(()),
        };
        result.map_err(io::Error::other)
    }

    /// Carries out a request, which the core has found to be valid.
    fn begin(&mut self, request: Request, disk: &mut Disk) -> Result<(), nbd_proto::Misuse> {
        let Request { id, command } = request;
        let places = self.commands.len().max(id.index() + 1);
        self.commands.resize(places, command);
        self.commands[id.index()] = command;
        if matches!(command, Command::Write { .. }) {
            return Ok(()); // Its payload comes first.
        }
        let mut reply = self.connection.reply(id)?;
        match command {
            Command::Read { offset, length, .. } => {
                // Only said to be there: `send` takes it from the disk when its turn has come.
                reply.data(offset, length)?;
                reply.finish()
            }
            Command::Trim { offset, length, .. } | Command::WriteZeroes { offset, length, .. } => {
                disk.bytes[offset as usize..(offset + length) as usize].fill(0);
                reply.done()
            }
            Command::Flush => reply.done(),
            // Not advertised, so it can't come.
            _ => {
                reply.error(ErrorCode::EINVAL, "this disk can't do that");
                Ok(())
            }
        }
    }

    /// Sends what is queued, as far as the socket takes it. Gives whether anything left.
    fn send(&mut self, disk: &Disk) -> io::Result<bool> {
        let mut progress = false;
        loop {
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            let mut filled = 0;
            for (slice, segment) in slices.iter_mut().zip(self.connection.segments()) {
                *slice = IoSlice::new(match segment {
                    Segment::Control(bytes) => bytes,
                    Segment::Body { request, offset, length } => {
                        let from = (self.commands[request.index()].offset() + offset) as usize;
                        &disk.bytes[from..from + length]
                    }
                });
                filled += 1;
            }
            if filled == 0 {
                return Ok(progress);
            }
            let Some(count) = if_ready(self.stream.write_vectored(&slices[..filled]))? else {
                return Ok(progress);
            };
            self.connection.transmitted(count).map_err(io::Error::other)?;
            // Places whose replies have left are free again. A server with a buffer for each would take it back here.
            while self.connection.next_finished().is_some() {}
            progress = true;
        }
    }
}
