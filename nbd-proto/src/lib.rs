//! The Network Block Device protocol as a state machine that does no I/O.
//!
//! NBD lets a client use a range of bytes on a server as a disk. This crate turns bytes into handshake, option and
//! command events and back, and leaves sockets, threads, timers and storage to you. It needs `alloc` only, forbids
//! `unsafe`, and no input from a peer, nor any misuse of its methods, makes it panic.
//!
//! For a finished server or client take one of the adapters: `nbd-tokio`, `nbd-blocking` for threads, or `nbd-async-std`
//! for smol and async-std; for another runtime, `nbd-engine`. For an event loop of your own take this crate and write the
//! loop below.
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
//!    is valid and complete: carry it out now, and [`reply`](server::Connection::reply) when that is done. The
//!    last event is [`Closed`](server::Event::Closed), exactly once.
//! 2. [`segments`](server::Connection::segments): send what there is, by any write, and report how much went out by
//!    [`transmitted`](server::Connection::transmitted). It gives back the requests whose buffers are free.
//! 3. [`wants`](server::Connection::wants): receive what it asks for. Bytes go to a [`RecvBuffer`], from where
//!    `next_event` takes them; payload goes where it belongs, first [what the buffer has](RecvBuffer::copy_to), then
//!    from the stream. When a read gives nothing, the peer has closed its side: say so by
//!    [`end_of_stream`](server::Connection::end_of_stream).
//!
//! Offsets in a [`Command`] and in a reply ([`data`](server::Reply::data), [`hole`](server::Reply::hole),
//! [`error_at`](server::Reply::error_at)) count from the start of the export. Those of [`Segment::Body`],
//! [`Wants::Payload`] and a client's [`Hole`](client::Event::Hole) count from the request's own offset: they are
//! offsets into its buffer.
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
//! # In an event loop
//!
//! A peer may send all that it has before it reads anything. So when the transport takes no more in step 2, go on to
//! step 3 all the same, and then wait for both directions; where limits demand it, `wants` stops you by
//! [`Wants::Nothing`]. (`write_all` on a blocking stream, as above, waits for the peer to read; if that
//! peer waits likewise, neither goes on.)
//!
//! - Wait for the stream to be readable while `wants` is [`Wants::Bytes`] or [`Wants::Payload`], and to be writable
//!   while `segments` is not empty.
//! - Before you wait, have taken what the `RecvBuffer` holds, payload included, even if the socket has nothing more: no
//!   `poll` announces it. If you stop earlier, to be fair to others, remember that this connection has work left.
//! - While you wait for neither, because requests are carried out elsewhere, take the stream out of the set: `poll` and
//!   `epoll` report a hang-up unasked, again and again. If they report that writing can't succeed any more, drop the
//!   connection instead.
//!
//! `examples/poll_loop.rs` in the repository is such a loop, with `poll(2)`, for any number of clients.
//! [The guide](crate::guide) has both machines in one program, and TLS.
//!
//! # Deadlines
//!
//! There is no clock in the core, and a connection that is idle does no harm. What a server for strangers gives a
//! limited time:
//!
//! - **The handshake**: until [`is_transmitting`](server::Connection::is_transmitting).
//! - **Receiving**: while `wants` is [`Wants::Payload`] and nothing arrives.
//! - **Sending**: while `segments` is not empty and `transmitted` makes no progress. A client that asks for reads and
//!   never receives them keeps its connection without end otherwise; not even its disconnect is received while `wants` is
//!   [`Nothing`](Wants::Nothing).
//! - **Closing**: from [`is_closing`](server::Connection::is_closing) on, for what is still in flight.
//!
//! When the time is over, or the transport fails, drop the connection. A [client](client::Connection::end_of_stream)
//! calls `end_of_stream` before and takes the events up to `Closed`, which say of each request whether the server can
//! have carried it out.
//!
//! # Where to look
//!
//! [`server`] holds the server's machine and [`client`] the client's, [`wire`] the codec that both are made of,
//! [`Limits`] every bound on what a peer can make them hold, [`Uri`] the way to an export. Terms are those of the [NBD
//! specification](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), whose sections the documentation names:
//! export, option, request, command, cookie, chunk, extent, metadata context.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Rustdoc has a section for each Result that is public.
#![warn(clippy::missing_errors_doc)]
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
/// A guide to embedding the core. It has no items.
pub mod guide {
    #![doc = include_str!("../doc/guide_server.md")]
    #![doc = include_str!("../doc/server_loop.rs")]
    #![doc = include_str!("../doc/guide_client.md")]
    #![doc = include_str!("../doc/client_loop.rs")]
    #![doc = include_str!("../doc/guide.md")]
}
mod command;
mod coverage;
#[cfg(test)]
mod effort;
mod error;
mod export;
mod in_flight;
mod input;
mod limits;
#[cfg(test)]
mod messages;
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
    reason = "a message has the fields that it has on the wire: they don't grow"
)]
pub mod wire;

pub use command::Command;
pub use error::{Error, LimitExceeded, Misuse, NoSession, NotServed, PeerMisbehaved};
pub use export::{BlockSize, ContextInfo, ExportInfo, Extent, InvalidBlockSize};
pub use in_flight::RequestId;
pub use input::Input;
pub use limits::{Limits, OPTIONS_PER_EXPORT};
pub use outbound::{Finished, Segment, Segments};
pub use recv_buffer::RecvBuffer;
pub use request_rules::{InvalidRequest, RequestRules};
pub use uri::{Address, TlsParameters, TlsType, Uri, UriError};
pub use view::{ContextRefusal, ExportView, SelectedContext};
pub use wants::{OrderlyEnd, PauseReason, Wants};
