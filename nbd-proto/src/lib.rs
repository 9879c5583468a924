//! The Network Block Device protocol as a state machine that does no I/O.
//!
//! NBD lets a client use a range of bytes on a server as a disk. This crate turns bytes into handshake, option and
//! command events and back, and leaves sockets, threads, timers and storage to you. It needs `alloc` only, forbids
//! `unsafe`, and no input from a peer, nor any misuse of its methods, makes it panic.
//!
//! For a finished server or client take one of the adapters (`nbd-blocking`, `nbd-tokio`). For an event loop of your
//! own take this crate and write the loop below.
//!
//! # The run loop
//!
//! The payload of reads and writes, which is nearly all there is in a session, never enters the core. For what arrives
//! the core only says what it *is* ([`server::Connection::wants`]), and you put it where it belongs; for what goes out
//! it says whose turn it is ([`server::Connection::segments`]): its own bytes, or yours.
//!
//! The rule is one: **after whatever you reported, ask again, in this order.**
//!
//! 1. [`next_event`](server::Connection::next_event): act on the event, if there is one. A request that you are shown
//!    is valid, complete and to be carried out; [`reply`](server::Connection::reply) whenever you are done with it. The
//!    last event is [`Closed`](server::Event::Closed), exactly once.
//! 2. [`segments`](server::Connection::segments): send what there is, by any write, and report how much went out by
//!    [`transmitted`](server::Connection::transmitted). It gives back the requests whose buffers are free.
//! 3. [`wants`](server::Connection::wants): receive what it asks for. Bytes go to a [`RecvBuffer`], from where
//!    `next_event` takes them; payload goes where it belongs. When a read gives nothing, the peer has closed its side:
//!    say so by [`end_of_stream`](server::Connection::end_of_stream).
//!
//! A [`client::Connection`] is driven in the same way; [its module](client) has the client's loop. Here is all of the
//! server's, serving a small disk in memory to one client over any blocking stream. With [`Wants::Nothing`] a server
//! that works on requests elsewhere waits for those instead; this one answers at once, so that it never sees it.
//!
//! ```
//! # // Offsets and lengths come from the core, which has checked them.
//! # #![allow(clippy::cast_possible_truncation)]
//! use nbd_proto::server::{Config, Connection, Event, LookupRefusal, Reply};
//! use nbd_proto::{Command, ExportInfo, Misuse, RecvBuffer, RequestId, Segment, Wants};
//! use std::collections::HashMap;
//! use std::error::Error;
//! use std::io::{Read, Write};
//!
#![doc = include_str!("../doc/server_loop.rs")]
//!
//! // A client that chooses the default export by name, writes two bytes and reads them back.
//! # use std::io;
//! # struct Pipe(io::Cursor<Vec<u8>>, Vec<u8>);
//! # impl Read for Pipe {
//! #     fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
//! #         self.0.read(buffer)
//! #     }
//! # }
//! # impl Write for Pipe {
//! #     fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
//! #         self.1.write(bytes)
//! #     }
//! #     fn flush(&mut self) -> io::Result<()> {
//! #         Ok(())
//! #     }
//! # }
//! # use nbd_proto::wire::{CommandFlags, CommandType, CompactRequest, OptionCode, OptionHeader};
//! # let request = |command, offset, length| {
//! #     CompactRequest { flags: CommandFlags::empty(), command, cookie: 7, offset, length }.encode()
//! # };
//! # let mut bytes = vec![0, 0, 0, 3];
//! # bytes.extend(OptionHeader { code: OptionCode::EXPORT_NAME, length: 0 }.encode());
//! # bytes.extend(request(CommandType::WRITE, 1, 2));
//! # bytes.extend(b"hi");
//! # bytes.extend(request(CommandType::READ, 0, 4));
//! # bytes.extend(request(CommandType::DISC, 0, 0));
//! # let mut stream = Pipe(io::Cursor::new(bytes), Vec::new());
//! let mut disk = *b"....";
//! serve(&mut stream, &ExportInfo::new(4), &mut disk)?;
//! assert_eq!(&disk, b".hi.");
//! # assert!(stream.1.ends_with(b".hi."));
//! # Ok::<(), Box<dyn Error>>(())
//! ```
//!
//! # Where to look
//!
//! [`server`] holds the server's machine and [`client`] the client's, [`wire`] the codec that both are made of,
//! [`Limits`] every bound on what a peer can make them hold, [`Uri`] the way to an export. Terms are those of the NBD
//! specification: export, option, request, command, cookie, chunk, extent, metadata context.
#![no_std]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]
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
mod input;
mod limits;
mod outbound;
mod recv_buffer;
mod request_rules;
mod scratch;
pub mod server;
mod uri;
mod view;
mod wants;
#[expect(
    clippy::exhaustive_structs,
    clippy::exhaustive_enums,
    reason = "what is on the wire has the fields that it has: it does not grow"
)]
pub mod wire;

pub use command::Command;
pub use error::{Error, LimitExceeded, Misuse, NotServed, PeerMisbehaved, Refusal};
pub use export::{BlockSize, ContextInfo, ExportInfo, Extent, InvalidBlockSize};
pub use in_flight::RequestId;
pub use input::Input;
pub use limits::{Limits, OPTIONS_PER_EXPORT};
pub use outbound::{Finished, Segment, Segments};
pub use recv_buffer::RecvBuffer;
pub use request_rules::{InvalidRequest, RequestRules};
pub use uri::{Address, TlsParameters, TlsType, Uri, UriError};
pub use view::{ExportView, SelectedContext};
pub use wants::{CloseReason, PauseReason, Wants};
