//! The core in an event loop of one's own: one thread, any number of clients, `poll(2)` and nothing else.
//!
//! ```text
//! cargo run --example poll_loop [ADDRESS:PORT | /PATH/OF/SOCKET] [MIB]
//! ```
//!
//! It serves a disk in memory, of 64 MiB or as many as are asked for, and prints its URI; try `nbdinfo URI`,
//! `qemu-io -f raw URI` or `nbdcopy FILE URI`. Ctrl-C ends it; a Unix socket stays behind, and has to be removed before it is
//! started there again.
//!
//! In a project of its own it needs `nbd-proto` and `rustix = { version = "1", features = ["event", "net"] }`.
//!
//! The disk is one array, so that payload is never copied from buffer to buffer: what is written goes from the socket
//! straight to the disk, and what is read goes from there to the socket, many replies in one gathered
//! write. An export that takes its time would keep a buffer for each request in flight instead, and call
//! [`Connection::reply`] when it is done: replies may be given in any order.

// An example has less to fear than the library. Offsets and lengths come from the core, which has checked them.
#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![allow(clippy::indexing_slicing)]

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use nbd_proto::server::{Config, Connection, Event, Listing, LookupRefusal};
use nbd_proto::wire::{ErrorCode, TransmissionFlags as Flags};
use nbd_proto::{Command, ExportInfo, Misuse, RecvBuffer, RequestId, Segment, Wants};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::ioctl_fionbio;
use rustix::net::{accept, sockopt::set_tcp_nodelay};

/// Clients at a time. What each of them can make the core hold is bounded by [`nbd_proto::Limits`].
const MAX_CLIENTS: usize = 1000;

/// Slices of one gathered write.
const MAX_SLICES: usize = 64;

/// Receive calls for one client before the others get their turn.
const MAX_READS: usize = 16;

struct Disk {
    bytes: Vec<u8>,
    info: ExportInfo,
}

struct Client {
    /// A socket of either kind, as anything to read and write.
    stream: File,
    connection: Connection,
    received: RecvBuffer,
    /// Where the data of a read begins on the disk, by [`RequestId::index`].
    reads: Vec<usize>,
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let mib: u64 = arguments.next().map_or(Ok(64), |mib| mib.parse()).map_err(io::Error::other)?;
    let (listener, uri): (OwnedFd, _) = if address.contains('/') {
        (UnixListener::bind(&address)?.into(), format!("nbd+unix:///?socket={address}"))
    } else {
        let listener = TcpListener::bind(&address)?;
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
        // There is no clock in the core. A server for strangers would have a timeout here, and close clients that miss
        // one of the deadlines that the documentation names.
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
        Ok(client) if clients.len() < MAX_CLIENTS => clients.push(client),
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

/// Reads from a socket if it is ready, unless the client has had its turn.
fn read(mut stream: &File, room: &mut [u8], reads: &mut usize) -> io::Result<Option<usize>> {
    let Some(left) = reads.checked_sub(1) else { return Ok(None) };
    *reads = left;
    if_ready(stream.read(room))
}

impl Client {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&socket, true)?;
        let _unix = set_tcp_nodelay(&socket, true); // Replies leave at once.
        let (stream, connection) = (File::from(socket), Connection::new(Config::default()));
        Ok(Self { stream, connection, received: RecvBuffer::new(), reads: Vec::new() })
    }

    /// What the socket has to be ready for before there is anything to do.
    fn interest(&self) -> PollFlags {
        let mut events = PollFlags::empty();
        // A client that does not read its replies is not read from any more, once so many are in flight. As all
        // requests are answered at once, there is something to send then. A server that answers later may have nothing
        // to wait for on the socket, and has to leave it out of the set, since `poll` reports a hang-up unasked.
        let wants = self.connection.wants();
        events.set(PollFlags::IN, matches!(wants, Wants::Bytes { .. } | Wants::Payload { .. }));
        events.set(PollFlags::OUT, self.connection.segments().next().is_some());
        events
    }

    /// Does what can be done without waiting. Returns whether the connection goes on.
    fn turn(&mut self, disk: &mut Disk) -> bool {
        self.run(disk).unwrap_or_else(|error| {
            eprintln!("a client was closed: {error}");
            false
        })
    }

    /// Events, then sending, then receiving, until none of them gets on.
    fn run(&mut self, disk: &mut Disk) -> io::Result<bool> {
        let mut reads = MAX_READS;
        loop {
            if let Some(event) = self.connection.next_event(&mut self.received) {
                if let Event::Closed(end) = event {
                    return end.map(|_reason| false).map_err(io::Error::other);
                }
                self.handle(event, disk).map_err(io::Error::other)?;
            } else if !self.send(disk)? && !self.receive(disk, &mut reads)? {
                return Ok(true);
            }
        }
    }

    fn handle(&mut self, event: Event, disk: &mut Disk) -> Result<(), Misuse> {
        match event {
            Event::List => {
                self.connection.answer_list([Listing { name: "", description: "in memory" }])
            }
            Event::Lookup(lookup) => {
                let known = lookup.name.is_empty();
                let answer = if known { Ok(&disk.info) } else { Err(LookupRefusal::Unknown) };
                self.connection.answer_lookup(answer).map(drop)
            }
            Event::Request { id, command } => self.carry_out(id, command, disk),
            _ => Ok(()),
        }
    }

    /// Carries out a request, which the core has found to be valid.
    fn carry_out(
        &mut self,
        id: RequestId,
        command: Command,
        disk: &mut Disk,
    ) -> Result<(), Misuse> {
        let mut reply = self.connection.reply(id)?;
        match command {
            Command::Read { offset, length, .. } => {
                // Only said to be there: `send` takes it from the disk when its turn has come.
                self.reads.resize(self.reads.len().max(id.index() + 1), 0);
                self.reads[id.index()] = offset as usize;
                reply.data(offset, length)?;
            }
            Command::Trim { offset, length, .. } | Command::WriteZeroes { offset, length, .. } => {
                disk.bytes[offset as usize..][..length as usize].fill(0);
            }
            // What is written is there already, and memory has nothing to flush.
            Command::Write { .. } | Command::Flush => {}
            // Not advertised, so it can't come.
            _ => {
                reply.error(ErrorCode::EINVAL, "this disk can't do that");
                return Ok(());
            }
        }
        reply.finish()
    }

    /// Sends what is queued, as far as the socket takes it at once. Says whether anything went out.
    fn send(&mut self, disk: &Disk) -> io::Result<bool> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut filled = 0;
        for (slice, segment) in slices.iter_mut().zip(self.connection.segments()) {
            *slice = IoSlice::new(match segment {
                Segment::Control(bytes) => bytes,
                Segment::Body { id, offset, length } => {
                    &disk.bytes[self.reads[id.index()]..][offset as usize..][..length]
                }
            });
            filled += 1;
        }
        if filled == 0 {
            return Ok(false);
        }
        let Some(count) = if_ready(self.stream.write_vectored(&slices[..filled]))? else {
            return Ok(false);
        };
        // A server with a buffer for each request would take those of the finished ones back here.
        self.connection.transmitted(count).map_err(io::Error::other)?.for_each(drop);
        Ok(count > 0)
    }

    /// Receives what is wanted, as far as it is there. Says whether anything came.
    fn receive(&mut self, disk: &mut Disk, reads: &mut usize) -> io::Result<bool> {
        let count = match self.connection.wants() {
            Wants::Bytes { .. } => {
                let count = read(&self.stream, self.received.spare_capacity_mut(), reads)?;
                self.received.advance(count.unwrap_or(0));
                count
            }
            // The payload of a write belongs on the disk: what of it was received already, and then the rest, as it
            // comes from the socket.
            Wants::Payload { command, offset, remaining, .. } => {
                let from = (command.offset() + offset) as usize;
                let room = &mut disk.bytes[from..][..remaining as usize];
                let count = match self.received.copy_to(room) {
                    0 => read(&self.stream, room, reads)?,
                    count => Some(count),
                };
                let moved = count.unwrap_or(0) as u64;
                self.connection.payload_received(moved).map_err(io::Error::other)?;
                count
            }
            _ => return Ok(false),
        };
        if count == Some(0) {
            // The client sends no more. What it asked for before is still answered.
            self.connection.end_of_stream();
        }
        Ok(count.is_some())
    }
}
