//! The client's side of a connection. See [`Connection`].
//!
//! # The run loop
//!
//! 1. Write what [`segments`](Connection::segments) offers, and report it by [`transmitted`](Connection::transmitted).
//! 2. Look at [`incoming`](Connection::incoming).
//! 3. For control bytes call [`next_event`](Connection::next_event) with what you have read, and act on the event.
//! 4. Move or drop payload bytes, and report them by [`payload_received`](Connection::payload_received).
//! 5. When neither reading nor writing gets on, wait for the socket, in both directions at once.
//! 6. Stop when [`is_finished`](Connection::is_finished), or on an error.
//!
//! Here is all of it, for a client that reads the beginning of an export over a blocking stream. (It writes all that it
//! has before it reads, which only those can do whose requests are small.)
//!
//! ```
//! use nbd_proto::client::{Config, Connection, Event, Incoming};
//! use nbd_proto::{Command, Segment};
//! use std::io::{self, Read, Write};
//!
//! fn read_start(mut stream: impl Read + Write, export: &str, length: u32) -> io::Result<Vec<u8>> {
//!     // The context of a request is its buffer.
//!     let mut connection = Connection::<Vec<u8>>::new(Config::for_export(export)).map_err(io::Error::other)?;
//!     let mut staging = vec![0; 64 << 10];
//!     let (mut start, mut end) = (0, 0);
//!     let mut data = Vec::new();
//!
//!     while !connection.is_finished() {
//!         // 1. Write. Only writes have a body.
//!         while let Some(Segment::Control(bytes)) = connection.segments().next() {
//!             let count = stream.write(bytes)?;
//!             connection.transmitted(count).unwrap();
//!         }
//!         // 2. What comes next?
//!         match connection.incoming() {
//!             Incoming::Payload { request, offset, remaining } => {
//!                 // 4. A payload goes to its buffer, from the staging buffer or straight from the stream.
//!                 let buffer = connection.context_mut(request).unwrap();
//!                 let place = &mut buffer[offset as usize..][..remaining as usize];
//!                 let count = if start < end { (&staging[start..end]).read(place)? } else { stream.read(place)? };
//!                 start = (start + count).min(end);
//!                 if count == 0 {
//!                     return Err(io::ErrorKind::UnexpectedEof.into());
//!                 }
//!                 connection.payload_received(count as u64).unwrap();
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
//!                     Some(Event::Ready) => {
//!                         let command = Command::Read { offset: 0, length, dont_fragment: false };
//!                         let buffer = vec![0; length as usize];
//!                         connection.submit(command, buffer).map_err(|(error, _)| io::Error::other(error))?;
//!                     }
//!                     Some(Event::Hole { request, offset, length }) => {
//!                         let buffer = connection.context_mut(request).unwrap();
//!                         buffer[offset as usize..][..length as usize].fill(0);
//!                     }
//!                     Some(Event::Completed { context, result, .. }) => {
//!                         result.map_err(io::Error::other)?;
//!                         data = context;
//!                         connection.disconnect();
//!                     }
//!                     None if start == end && connection.segments().next().is_none() => {
//!                         // 5. Nothing to write and nothing left to look at: wait for the server.
//!                         start = 0;
//!                         end = stream.read(&mut staging)?;
//!                         if end == 0 {
//!                             connection.end_of_stream().map_err(io::Error::other)?;
//!                         }
//!                     }
//!                     _ => {}
//!                 }
//!             }
//!             _ => {}
//!         }
//!     }
//!     Ok(data)
//! }
//!
//! // A server that knows neither extended headers nor structured replies, and does not wait for what it answers.
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
//! use nbd_proto::wire::*;
//! let reply = |code, reply, data: &[u8]| {
//!     let length = data.len() as u32;
//!     [&OptionReplyHeader { code, reply, length }.encode()[..], data].concat()
//! };
//! let info = ExportInfoReply { size: 4096, flags: TransmissionFlags::HAS_FLAGS };
//! let bytes = [
//!     &NewstyleGreeting { flags: HandshakeFlags::FIXED_NEWSTYLE }.encode()[..],
//!     &reply(OptionCode::EXTENDED_HEADERS, OptionReplyType::ERR_UNSUP, b""),
//!     &reply(OptionCode::STRUCTURED_REPLY, OptionReplyType::ERR_UNSUP, b""),
//!     &reply(OptionCode::GO, OptionReplyType::INFO, &info.encode()),
//!     &reply(OptionCode::GO, OptionReplyType::ACK, b""),
//!     &SimpleReplyHeader { error: ErrorCode::OK, cookie: 0 }.encode(),
//!     b"data",
//! ]
//! .concat();
//! let mut pipe = Pipe(io::Cursor::new(bytes), Vec::new());
//! assert_eq!(read_start(&mut pipe, "disk", 4)?, b"data");
//! # Ok::<(), io::Error>(())
//! ```
//!
//! # What becomes of what a server may send
//!
//! Where the specification mandates a hard disconnect, or a message is so wrong that nobody can tell where the next one
//! begins, the connection ends with an [`Error`](crate::Error). Where it leaves a choice, only the one request or
//! option fails.
//!
//! | message | case | what happens |
//! | --- | --- | --- |
//! | greeting | other magics | [`Malformed`] (C-HS-17) |
//! | | oldstyle, though [switched off](Config::oldstyle) or TLS is required | [`Refused`] |
//! | | unknown handshake flags | ignored (C-HS-13) |
//! | option reply | wrong magic, malformed data, an `ACK` with data | [`Malformed`] (C-OPT-16, C-OPT-LS-07) |
//! | | names another option, or is of a type that the option has not | [`PeerMisbehaved`] |
//! | | longer, or more of them, than [`Limits`](crate::Limits) allow | [`LimitExceeded`] (C-OPT-17) |
//! | | an error, known or not (C-OPT-18) | the option failed; the machine falls back (C-OPT-19) or leaves by `ABORT` |
//! | | `ERR_SHUTDOWN`, or an error to `STARTTLS` with TLS required | the machine leaves by `ABORT`, then [`Refused`] |
//! | `NBD_REP_INFO` | unknown type | ignored (C-OPT-GO-20) |
//! | | `ACK` to `GO` or `INFO` without a size | [`PeerMisbehaved`] (C-OPT-GO-23) |
//! | | size constraints | a preferred size that makes no sense is corrected; other nonsense is [`PeerMisbehaved`] |
//! | `NBD_REP_META_CONTEXT` | a number twice | [`PeerMisbehaved`] |
//! | `ACK` to `STARTTLS` | more bytes behind it | [`PeerMisbehaved`] (C-TLS-27) |
//! | answer to `EXPORT_NAME` | the server hangs up | [`Refused`] |
//! | any reply | wrong magic; a simple reply under extended headers, a structured one without negotiation | [`Malformed`] |
//! | | unknown cookie, a second reply, another offset than the request's | [`PeerMisbehaved`] (C-REP-STRUCT-07, C-EH-17) |
//! | | unknown error value | the request fails with `EINVAL` (C-REP-09) |
//! | | `ESHUTDOWN` | the request fails, and [`submit`](Connection::submit) refuses more (C-END-06) |
//! | | unknown reply flags | ignored (C-REP-STRUCT-03) |
//! | | arrives before the request was wholly sent | kept until it was |
//! | simple reply | to `READ` under structured replies, a success to `BLOCK_STATUS` | [`PeerMisbehaved`] (C-REP-STRUCT-08) |
//! | chunk | unknown type that is no error, or one that the command has not | [`PeerMisbehaved`] (C-REP-STRUCT-01) |
//! | | a length or a zero that its type does not allow | [`Malformed`] |
//! | | much longer than its type can need | [`LimitExceeded`] (C-SZ-19) |
//! | `NONE` | not the last one | [`PeerMisbehaved`] |
//! | `OFFSET_DATA`, `OFFSET_HOLE` | outside of the request, over earlier content or errors, a second one with `DF` | [`PeerMisbehaved`] (C-REP-STRUCT-05) |
//! | | in any order (C-REP-STRUCT-04) | accepted, in up to [`max_fragments`](crate::Limits::max_fragments) pieces |
//! | | after an `ERROR` | read and dropped (C-REP-STRUCT-06) |
//! | | a part is missing at the end, and no error was told | the request fails with `EIO` |
//! | `BLOCK_STATUS`, `BLOCK_STATUS_EXT` | a context that is not awaited, an extent of no length, a wrong count (C-EH-20) | [`PeerMisbehaved`], [`Malformed`] |
//! | | more than one extent, or a longer one, with `REQ_ONE` | [`PeerMisbehaved`] (C-CMD-BS-14) |
//! | | equal neighbours, too few extents, a last one that is too long (C-CMD-BS-13) | accepted |
//! | | a context is missing at the end, and no error was told | the request fails with `EIO` |
//! | `ERROR`, `ERROR_OFFSET` | message that does not fit, an error of zero | [`Malformed`] (C-REP-STRUCT-02) |
//! | | outside of the request | [`PeerMisbehaved`] |
//! | | more bytes than the known fields | ignored |
//! | error chunk of unknown type, `ERROR_OFFSET` to `FLUSH` or `RESIZE` | | the request fails (C-REP-STRUCT-02) |
//! | end of stream | after [`disconnect`](Connection::disconnect), or instead of the reply to `ABORT` (C-OPT-AB-05) | accepted |
//! | | otherwise | [`UnexpectedEnd`] |
//!
//! [`Malformed`]: crate::Error::Malformed
//! [`PeerMisbehaved`]: crate::Error::PeerMisbehaved
//! [`LimitExceeded`]: crate::Error::LimitExceeded
//! [`Refused`]: crate::Error::Refused
//! [`UnexpectedEnd`]: crate::Error::UnexpectedEnd

mod config;
mod connection;
mod event;
mod export;
mod negotiation;
mod option_check;
mod option_reply;
mod options;
mod pending;
mod progress;
mod question;
mod reply;
mod status;
mod submit;
mod transmission;

pub use config::{Config, Goal, TlsMode};
pub use connection::Connection;
pub use event::{CommandError, Event, Info};
pub use option_check::OptionError;
pub use submit::SubmitError;
