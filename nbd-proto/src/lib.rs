//! The Network Block Device protocol as a state machine that does no I/O.
//!
//! NBD lets a client use a range of bytes on a server as a disk. This crate turns bytes into handshake, option and
//! command events and back, and leaves sockets, threads, timers and storage to you. It needs `alloc` only, forbids
//! `unsafe`, and no input from a peer, nor any misuse of its methods, makes it panic.
//!
//! Those who want a finished server or client take one of the adapters (`nbd-blocking`, `nbd-tokio`). Those who have an
//! event loop of their own take this crate and write the loop below.
//!
//! # The run loop
//!
//! The payload of reads and writes, which is nearly all there is in a session, never enters the core. For what arrives
//! the core only says what it *is* ([`server::Connection::incoming`]), and you put it where it belongs; for what
//! leaves it says whose turn it is ([`server::Connection::segments`]): its own bytes, or yours.
//!
//! 1. Write what [`segments`](server::Connection::segments) offers, report it by
//!    [`transmitted`](server::Connection::transmitted), and take back the buffers of
//!    [`next_finished`](server::Connection::next_finished).
//! 2. Look at [`incoming`](server::Connection::incoming).
//! 3. For control bytes call [`next_event`](server::Connection::next_event) with what you have read, and act on the
//!    event.
//! 4. Move or drop payload bytes, and report them by [`payload_received`](server::Connection::payload_received).
//! 5. When neither reading nor writing gets on, wait for the socket (or for whatever works on the requests).
//! 6. Stop when [`is_finished`](server::Connection::is_finished), or on an error.
//!
//! A [`client::Connection`] is driven in the same way; [its module](client) has the client's loop. Here is all of the
//! server's, serving a small disk in memory to one client over any blocking stream:
//!
//! ```
//! use nbd_proto::server::{Config, Connection, Event, Incoming, LookupRefusal};
//! use nbd_proto::{Command, ExportInfo, Segment};
//! use std::io::{self, Read, Write};
//!
//! fn serve(mut stream: impl Read + Write, disk: &mut [u8]) -> io::Result<()> {
//!     let mut connection = Connection::new(Config::default());
//!     let mut staging = vec![0; 64 << 10];
//!     let (mut start, mut end) = (0, 0);
//!     let mut export = ExportInfo::new(disk.len() as u64);
//!     export.flags = nbd_proto::wire::TransmissionFlags::SEND_FLUSH;
//!     // One buffer for each place in flight; requests name their place by an index.
//!     let mut buffers: Vec<Vec<u8>> = Vec::new();
//!     let mut commands: Vec<Option<Command>> = Vec::new();
//!
//!     while !connection.is_finished() {
//!         // 1. Write. (A gathered write would send all segments at once.)
//!         while let Some(segment) = connection.segments().next() {
//!             let count = match segment {
//!                 Segment::Control(bytes) => stream.write(bytes)?,
//!                 Segment::Body { request, offset, length } => {
//!                     let from = offset as usize;
//!                     stream.write(&buffers[request.index()][from..from + length])?
//!                 }
//!             };
//!             connection.transmitted(count).unwrap();
//!             while connection.next_finished().is_some() {}
//!         }
//!         // 2. What comes next?
//!         let mut written = None;
//!         match connection.incoming() {
//!             Incoming::Payload { request, offset, remaining } => {
//!                 // 4. A payload goes to its buffer, from the staging buffer or straight from the stream.
//!                 let from = offset as usize;
//!                 let place = &mut buffers[request.index()][from..from + remaining as usize];
//!                 let count = if start < end { (&staging[start..end]).read(place)? } else { stream.read(place)? };
//!                 start = (start + count).min(end);
//!                 if count == 0 {
//!                     return Err(io::ErrorKind::UnexpectedEof.into());
//!                 }
//!                 connection.payload_received(count as u64).unwrap();
//!                 if count as u64 == remaining {
//!                     written = Some(request);
//!                 }
//!             }
//!             Incoming::Discard { remaining } if start < end => {
//!                 let count = remaining.min((end - start) as u64);
//!                 start += count as usize;
//!                 connection.payload_received(count).unwrap();
//!             }
//!             Incoming::Control { .. } => {
//!                 // 3. Control bytes are the core's.
//!                 let mut input = &staging[start..end];
//!                 let event = connection.next_event(&mut input).map_err(io::Error::other)?;
//!                 start = end - input.len();
//!                 match event {
//!                     Some(Event::List) => connection.answer_list([]).unwrap(),
//!                     Some(Event::Lookup(lookup)) => {
//!                         let answer = if lookup.name.is_empty() { Ok(&export) } else { Err(LookupRefusal::Unknown) };
//!                         connection.answer_lookup(answer).unwrap();
//!                     }
//!                     Some(Event::Request(request)) => {
//!                         let (index, length) = (request.id.index(), request.command.length() as usize);
//!                         let places = buffers.len().max(index + 1);
//!                         buffers.resize(places, Vec::new());
//!                         commands.resize(places, None);
//!                         buffers[index].resize(length, 0);
//!                         commands[index] = Some(request.command);
//!                         let mut reply = connection.reply(request.id);
//!                         match (request.command, &mut reply) {
//!                             (Command::Read { offset, length: bytes, .. }, Ok(read)) => {
//!                                 let from = offset as usize;
//!                                 buffers[index].copy_from_slice(&disk[from..from + length]);
//!                                 read.data(offset, bytes).unwrap();
//!                                 reply.unwrap().finish().unwrap();
//!                             }
//!                             (Command::Flush, Ok(_)) => reply.unwrap().done().unwrap(),
//!                             _ => {} // A write: its payload comes first.
//!                         }
//!                     }
//!                     None if start == end && connection.segments().next().is_none() => {
//!                         // 5. Nothing to write and nothing left to look at: wait for the client.
//!                         start = 0;
//!                         end = stream.read(&mut staging)?;
//!                         if end == 0 {
//!                             let _ = connection.end_of_stream();
//!                         }
//!                     }
//!                     _ => {}
//!                 }
//!             }
//!             _ => {
//!                 start = 0;
//!                 end = stream.read(&mut staging)?;
//!             }
//!         }
//!         if let Some(id) = written {
//!             if let Some(Command::Write { offset, length, .. }) = commands[id.index()] {
//!                 let from = offset as usize;
//!                 disk[from..from + length as usize].copy_from_slice(&buffers[id.index()]);
//!             }
//!             connection.reply(id).unwrap().done().unwrap();
//!         }
//!     }
//!     Ok(())
//! }
//!
//! // A client that chooses the default export by name, writes two bytes and reads them back.
//! struct Pipe(io::Cursor<Vec<u8>>, Vec<u8>);
//! impl Read for Pipe {
//!     fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
//!         self.0.read(buffer)
//!     }
//! }
//! impl Write for Pipe {
//!     fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
//!         self.1.write(bytes)
//!     }
//!     fn flush(&mut self) -> io::Result<()> {
//!         Ok(())
//!     }
//! }
//! use nbd_proto::wire::{CommandFlags, CommandType, CompactRequest, OptionCode, OptionHeader};
//! let request = |command, offset, length| {
//!     CompactRequest { flags: CommandFlags::empty(), command, cookie: 7, offset, length }.encode()
//! };
//! let mut bytes = vec![0, 0, 0, 3];
//! bytes.extend(OptionHeader { code: OptionCode::EXPORT_NAME, length: 0 }.encode());
//! bytes.extend(request(CommandType::WRITE, 1, 2));
//! bytes.extend(b"hi");
//! bytes.extend(request(CommandType::READ, 0, 4));
//! bytes.extend(request(CommandType::DISC, 0, 0));
//! let mut pipe = Pipe(io::Cursor::new(bytes), Vec::new());
//! let mut disk = *b"....";
//! serve(&mut pipe, &mut disk)?;
//! assert_eq!(&disk, b".hi.");
//! assert!(pipe.1.ends_with(b".hi."));
//! # Ok::<(), io::Error>(())
//! ```
//!
//! # Where to look
//!
//! [`server`] holds the server's machine and [`client`] the client's, [`wire`] the codec that both are made of,
//! [`Limits`] every bound on what a peer can make them hold, [`Uri`] the way to an export. Terms are those of the NBD
//! specification: export, option, request, command, cookie, chunk, extent, metadata context.
#![no_std]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod client;
mod command;
mod coverage;
mod error;
mod export;
mod in_flight;
mod limits;
mod outbound;
mod scratch;
pub mod server;
mod uri;
pub mod wire;

pub use command::Command;
pub use error::{Error, LimitExceeded, Misuse, PeerMisbehaved, Refusal};
pub use export::{BlockSize, ContextInfo, ExportInfo, Extent, InvalidBlockSize};
pub use in_flight::RequestId;
pub use limits::{Limits, OPTIONS_PER_EXPORT};
pub use outbound::{Segment, Segments};
pub use uri::{Address, TlsParameters, TlsType, Uri, UriError};
