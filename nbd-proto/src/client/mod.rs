//! The client's side of a connection. See [`Connection`].
//!
//! # The run loop
//!
//! Each turn does the first of these that there is to do:
//!
//! 1. Take the [next event](Connection::next_event) out of what you have received, and act on it. The last one is
//!    [`Event::Closed`], on every path: with the reason, after an [`Event::Abandoned`] for each request without an answer.
//! 2. Write what [`segments`](Connection::segments) offers, and report it by [`transmitted`](Connection::transmitted).
//! 3. Do what the connection [wants](Connection::wants): receive a payload into the buffer of its request (first what
//!    the receive buffer has, then from the stream), or anything else into the receive buffer. Report the end of the
//!    stream, or that it failed, by [`end_of_stream`](Connection::end_of_stream).
//!
//! A server may stop reading while it has replies to send. So a client that sends more than a socket buffer holds
//! must not wait in step 2 for the transport to take more: it waits for reading and writing at once, in step 3.
//!
//! Here is all of it, for a client that reads the beginning of an export over a blocking stream. It ends when the server
//! hangs up or refuses, and it stalls with a server that stalls: deadlines are the transport's. A client that reads all
//! of an export finds its size by [`export`](Connection::export) once it is [`Ready`](Event::Ready), and how much fits
//! into one request by [`RequestRules::max_length`](crate::RequestRules::max_length).
//!
//! The [crate's front page](crate#in-an-event-loop) says what to heed in an event loop.
//!
//! ```
//! use nbd_proto::client::{Config, Connection, Event};
//! use nbd_proto::{Command, RecvBuffer, Segment, Wants};
//! use std::error::Error;
//! use std::io::{self, Read, Write};
//!
#![doc = include_str!("../../doc/client_loop.rs")]
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
//! assert_eq!(fetch(&mut pipe, "disk", 4)?, b"data");
//! # Ok::<(), Box<dyn Error>>(())
//! ```
//!
//! # What becomes of what a server may send
//!
//! Where the specification mandates a hard disconnect, or where the start of the next message can't be found, the
//! connection ends with an [`Error`](crate::Error). Where it leaves a choice, only the one request or option fails.
//!
//! | message | case | what happens |
//! | --- | --- | --- |
//! | greeting | other magics | [`Malformed`] |
//! | | oldstyle, though [switched off](Config::oldstyle) or TLS is required | [`Refused`] |
//! | | unknown handshake flags | ignored |
//! | option reply | wrong magic, malformed data, an `ACK` with data | [`Malformed`] |
//! | | names another option, or has a type that this option does not have | [`PeerMisbehaved`] |
//! | | longer, or more of them, than [`Limits`](crate::Limits) allow | [`LimitExceeded`] |
//! | | an error, known or not | the option failed; the machine falls back, or ends the session by `ABORT` |
//! | | `ERR_SHUTDOWN`, or an error to `STARTTLS` with TLS required | the machine ends the session by `ABORT`, then [`Refused`] |
//! | `NBD_REP_INFO` | unknown type | ignored |
//! | | `ACK` to `GO` or `INFO` without a size | [`PeerMisbehaved`] |
//! | | size constraints | a preferred size that makes no sense is corrected; other nonsense is [`PeerMisbehaved`] |
//! | `NBD_REP_META_CONTEXT` | an id twice | [`PeerMisbehaved`] |
//! | `ACK` to `STARTTLS` | more bytes behind it | [`PeerMisbehaved`] |
//! | answer to `EXPORT_NAME` | the server hangs up | [`Refused`] |
//! | any reply | wrong magic; a simple reply under extended headers, a structured one without negotiation | [`Malformed`] |
//! | | unknown cookie, a second reply, another offset than the request's | [`PeerMisbehaved`] |
//! | | unknown error value | the request fails with `EINVAL` |
//! | | `ESHUTDOWN` | the request fails, and [`submit`](Connection::submit) refuses more |
//! | | unknown reply flags | ignored |
//! | | arrives before the request was completely transmitted | kept until it was |
//! | simple reply | to `READ` under structured replies, a success to `BLOCK_STATUS` | [`PeerMisbehaved`] |
//! | chunk | unknown type that is no error, or one that the command does not have | [`PeerMisbehaved`] |
//! | | a length or a zero that its type does not allow | [`Malformed`] |
//! | | much longer than its type can need | [`LimitExceeded`] |
//! | `NONE` | not the last one | [`PeerMisbehaved`] |
//! | `OFFSET_DATA`, `OFFSET_HOLE` | outside of the request, over earlier content or errors, a second one with `DF` | [`PeerMisbehaved`] |
//! | | in any order | accepted, in up to [`max_fragments`](crate::Limits::max_fragments) pieces |
//! | | after an `ERROR` | read and dropped |
//! | | a part is missing at the end, and no error was reported | the request fails with `EIO` |
//! | `BLOCK_STATUS`, `BLOCK_STATUS_EXT` | a context that is not awaited, an extent of no length, a wrong count | [`PeerMisbehaved`], [`Malformed`] |
//! | | more than one extent, or a longer one, with `REQ_ONE` | [`PeerMisbehaved`] |
//! | | equal neighbours, too few extents, a last one that is too long | accepted |
//! | | a context is missing at the end, and no error was reported | the request fails with `EIO` |
//! | `ERROR`, `ERROR_OFFSET` | message that does not fit, an error of zero | [`Malformed`] |
//! | | outside of the request | [`PeerMisbehaved`] |
//! | | more bytes than the known fields | ignored |
//! | error chunk of unknown type, `ERROR_OFFSET` to `FLUSH` or `RESIZE` | | the request fails |
//! | end of stream | after [`disconnect`](Connection::disconnect), or instead of the reply to `ABORT` | accepted |
//! | | otherwise | [`UnexpectedEnd`] |
//!
//! [`Malformed`]: crate::Error::Malformed
//! [`PeerMisbehaved`]: crate::Error::PeerMisbehaved
//! [`LimitExceeded`]: crate::Error::LimitExceeded
//! [`Refused`]: crate::Error::Refused
//! [`UnexpectedEnd`]: crate::Error::UnexpectedEnd

// The requirements behind the table, in its order. Greeting: C-HS-17, C-HS-20, C-HS-13. Option replies: C-OPT-16,
// C-OPT-LS-07, C-OPT-17, C-OPT-18, C-OPT-19, C-TRM-06, C-TLS-22, C-OPT-GO-20, C-OPT-GO-23, C-OPT-GO-25, S-OPT-SM-04,
// C-TLS-27, S-OPT-EN-02. Replies: C-REP-STRUCT-07, C-EH-17, C-REP-09, C-END-06, C-REP-STRUCT-03, C-REP-STRUCT-08,
// C-REP-STRUCT-01, C-SZ-19, C-REP-STRUCT-05, C-REP-STRUCT-04, C-REP-STRUCT-06, C-EH-20, C-CMD-BS-14, C-CMD-BS-13,
// C-REP-STRUCT-02. End of stream: C-OPT-AB-05.

mod config;
mod connection;
mod event;
mod export;
mod negotiation;
mod option_check;
mod option_reply;
mod options;
mod passage;
mod pending;
mod progress;
mod question;
mod reply;
mod script;
mod send;
mod status;
mod submit;
mod transmission;

pub use config::{Config, Goal, TlsMode};
pub use connection::Connection;
pub use event::{CommandError, Event, Info};
pub use option_check::OptionError;
pub use passage::Passage;
pub use submit::SubmitError;
