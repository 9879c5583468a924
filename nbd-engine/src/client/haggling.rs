//! Before an export is entered: looking around on a server.

use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::io::{self, IoSlice};
use std::sync::Arc;

use nbd_proto::client::{Connection, Event, Incoming, OptionError};
use nbd_proto::wire::{OptionCode, OptionReplyType};
use nbd_proto::{LimitExceeded, Refusal, Segment};

use super::details::{ExportDetails, Handshake, Listing};
use super::options::INFO;
use super::session::Piece;
use super::timer::Timer;
use super::{Error, Invalid, Options};
use crate::runtime::Runtime;
use crate::staging::Staging;
use crate::transport::Transport;

/// A connection to a server on which no export has been entered yet.
///
/// It answers what there is to know without entering: any number of questions, then [`enter`](Self::enter) or
/// [`abort`](Self::abort). Each question is bounded by [`Options::connect_timeout`].
///
/// No method is cancel-safe: once one of its futures was dropped, or has failed by anything else than
/// [`Error::Refused`] and [`Error::Invalid`], the connection is of no use any more. Dropping it closes the connection.
///
/// TLS would begin in here. This build has none, and never asks for it.
pub struct Haggling<T> {
    connection: Connection<Piece>,
    transport: T,
    staging: Staging,
    peer: Arc<str>,
    timer: Timer,
    limit: Duration,
}

impl<T: Transport> Haggling<T> {
    /// Receives the greeting and agrees on headers. `peer` names the server in errors.
    ///
    /// # Errors
    /// When the server is no NBD server, or not one that the options allow.
    pub async fn start(
        transport: T,
        runtime: impl Runtime,
        peer: impl Into<Arc<str>>,
        options: &Options,
    ) -> Result<Self, Error> {
        let connection = Connection::new(options.config()).map_err(Invalid::Option)?;
        let mut haggling = Self {
            connection,
            transport,
            staging: Staging::new(),
            peer: peer.into(),
            timer: Timer::new(runtime),
            limit: options.connect_timeout,
        };
        haggling
            .bounded("the handshake", async |this| {
                loop {
                    match this.event().await? {
                        Event::Haggling | Event::Ready => return Ok(()),
                        Event::OptionFailed { code, reply, text } => {
                            return Err(this.refused("", code, reply, text));
                        }
                        _ => {}
                    }
                }
            })
            .await?;
        Ok(haggling)
    }

    /// The server, as errors name it.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The handshake that the server speaks.
    #[must_use]
    pub fn handshake(&self) -> Handshake {
        if self.connection.is_fixed_newstyle() {
            Handshake::FixedNewstyle
        } else if self.connection.is_transmitting() {
            Handshake::Oldstyle
        } else {
            Handshake::Newstyle
        }
    }

    /// Whether the stream runs over TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.connection.is_tls()
    }

    /// Whether structured or extended replies were agreed on.
    #[must_use]
    pub const fn is_structured(&self) -> bool {
        self.connection.is_structured()
    }

    /// Whether extended headers were agreed on.
    #[must_use]
    pub const fn is_extended(&self) -> bool {
        self.connection.is_extended()
    }

    /// The exports that the server lists; there may be others.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not list its exports, [`Error::Protocol`] when the list takes more than
    /// 128 MiB.
    pub async fn list(&mut self) -> Result<Vec<Listing>, Error> {
        self.needs_options()?;
        self.bounded("the list of exports", async |this| {
            this.connection.list().map_err(Invalid::Option)?;
            let (mut exports, mut room) = (Vec::new(), Room::new(OptionCode::LIST));
            while let Some(event) = this.answer("").await? {
                if let Event::Server { name, description } = event {
                    room.take(&[&name, &description]).map_err(|error| this.protocol(error))?;
                    exports.push(Listing { name, description });
                }
            }
            Ok(exports)
        })
        .await
    }

    /// What the server tells of an export without entering it.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, or the server only tells those who enter.
    pub async fn info(&mut self, export: &str) -> Result<ExportDetails, Error> {
        if let Some(entered) = self.connection.export() {
            return Ok(ExportDetails::entered(export, &entered));
        }
        self.bounded("the description of an export", async |this| {
            this.connection.info(export, &INFO).map_err(Invalid::Option)?;
            let mut details = ExportDetails::new(export);
            while let Some(event) = this.answer(export).await? {
                if let Event::Info(info) = event {
                    details.learn(info);
                }
            }
            Ok(details)
        })
        .await
    }

    /// The metadata contexts of an export that match any of the queries; all that there are, without queries.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, [`Error::Invalid`] when headers without metadata contexts were
    /// agreed, [`Error::Protocol`] when the list takes more than 128 MiB.
    pub async fn list_meta_contexts(
        &mut self,
        export: &str,
        queries: &[impl AsRef<str> + Sync],
    ) -> Result<Vec<String>, Error> {
        self.needs_options()?;
        self.bounded("the list of metadata contexts", async |this| {
            this.connection.list_meta_context(export, queries).map_err(Invalid::Option)?;
            let mut contexts = Vec::new();
            let mut room = Room::new(OptionCode::LIST_META_CONTEXT);
            while let Some(event) = this.answer(export).await? {
                if let Event::MetaContext { name, .. } = event {
                    room.take(&[&name]).map_err(|error| this.protocol(error))?;
                    contexts.push(name);
                }
            }
            Ok(contexts)
        })
        .await
    }

    /// Enters an export, with those of the metadata contexts that it has. When that fails the connection is left.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let this client into the export.
    pub async fn enter(mut self, export: &str, contexts: &[String]) -> Result<Entered<T>, Error> {
        let entered = self
            .bounded("entering the export", async |this| this.try_enter(export, contexts).await)
            .await;
        if let Err(error) = entered {
            let _best_effort = self.abort().await;
            return Err(error);
        }
        let Self { connection, transport, staging, peer, .. } = self;
        let Some(view) = connection.export() else {
            return Err(Error::Disconnected { peer });
        };
        let details = ExportDetails::entered(export, &view);
        Ok(Entered { connection, transport, staging, peer, details })
    }

    async fn try_enter(&mut self, export: &str, contexts: &[String]) -> Result<(), Error> {
        if self.connection.is_transmitting() {
            return Ok(());
        }
        if !contexts.is_empty() {
            match self.connection.set_meta_context(export, contexts) {
                // Who can't have contexts goes without.
                Err(OptionError::NeedsStructuredReplies | OptionError::NeedsFixedNewstyle) => {}
                Err(error) => return Err(Invalid::Option(error).into()),
                Ok(()) => match self.drain(export).await {
                    Ok(()) | Err(Error::Refused { .. }) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        self.connection.enter(export).map_err(Invalid::Option)?;
        loop {
            match self.event().await? {
                Event::Ready => return Ok(()),
                Event::OptionFailed { code, reply, text } => {
                    return Err(self.refused(export, code, reply, text));
                }
                _ => {}
            }
        }
    }

    /// Leaves the server politely.
    ///
    /// # Errors
    /// When the server does not take note in time. There is nothing to be done about it.
    pub async fn abort(mut self) -> Result<(), Error> {
        self.bounded("leaving", async |this| {
            this.connection.disconnect();
            loop {
                match this.event().await {
                    Ok(Event::Disconnected) => break,
                    Ok(_) => {}
                    // The server may close without an answer (C-OPT-AB-05), and what it has not read makes that a reset.
                    Err(Error::Connect { source, .. }) if is_hang_up(source.kind()) => break,
                    Err(error) => return Err(error),
                }
            }
            let closed = poll_fn(|cx| Pin::new(&mut this.transport).poll_close(cx)).await;
            match closed {
                Err(error) if !is_hang_up(error.kind()) => Err(this.broken(error)),
                _ => Ok(()),
            }
        })
        .await
    }

    fn needs_options(&self) -> Result<(), Error> {
        if self.handshake() == Handshake::Oldstyle {
            let what = "it speaks the oldstyle handshake, which has one export and no options";
            return Err(Error::Unsupported { address: self.peer.to_string(), what });
        }
        Ok(())
    }

    async fn drain(&mut self, export: &str) -> Result<(), Error> {
        while self.answer(export).await?.is_some() {}
        Ok(())
    }

    /// The next event in answer to an option; `None` once it succeeded.
    async fn answer(&mut self, export: &str) -> Result<Option<Event<Piece>>, Error> {
        match self.event().await? {
            Event::OptionDone { .. } => Ok(None),
            Event::OptionFailed { code, reply, text } => {
                Err(self.refused(export, code, reply, text))
            }
            event => Ok(Some(event)),
        }
    }

    fn refused(
        &self,
        export: &str,
        code: OptionCode,
        reply: OptionReplyType,
        text: String,
    ) -> Error {
        let refusal = Refusal::Option { code, reply };
        Error::Refused { peer: Arc::clone(&self.peer), export: export.into(), refusal, text }
    }

    async fn bounded<R>(
        &mut self,
        what: &'static str,
        run: impl AsyncFnOnce(&mut Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let (timer, limit, peer) = (self.timer.clone(), self.limit, Arc::clone(&self.peer));
        let result = timer.within(limit, run(self)).await;
        result.unwrap_or(Err(Error::TimedOut { peer, what, limit, sent: false }))
    }

    fn event(&mut self) -> impl Future<Output = Result<Event<Piece>, Error>> {
        poll_fn(|cx| self.poll_event(cx))
    }

    /// Writes what is to be written and reads up to the next event.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event<Piece>, Error>> {
        loop {
            self.write(cx).map_err(|error| self.broken(error))?;
            let Incoming::Control { need } = self.connection.incoming() else {
                return match self.connection.incoming() {
                    Incoming::Paused(_) => Poll::Pending,
                    _ => Poll::Ready(Err(Error::Disconnected { peer: Arc::clone(&self.peer) })),
                };
            };
            if need == 0 || !self.staging.is_empty() {
                let mut input = self.staging.bytes();
                let event = self.connection.next_event(&mut input);
                let rest = input.len();
                let eaten = self.staging.bytes().len() - rest;
                self.staging.consume(eaten);
                if let Some(event) = event.map_err(|error| self.protocol(error))? {
                    return Poll::Ready(Ok(event));
                }
                // There may be something to answer.
                if eaten > 0 || need == 0 {
                    continue;
                }
            }
            let read = Pin::new(&mut self.transport).poll_read(cx, self.staging.room());
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                Poll::Ready(Ok(0)) => {
                    self.staging.filled(0);
                    self.connection.end_of_stream().map_err(|error| self.protocol(error))?;
                }
                Poll::Ready(Ok(count)) => self.staging.filled(count),
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Some(Segment::Control(bytes)) = self.connection.segments().next() {
            let slices = [IoSlice::new(bytes)];
            match Pin::new(&mut self.transport).poll_write_vectored(cx, &slices) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => {
                    self.connection.transmitted(written?).map_err(io::Error::other)?;
                }
            }
        }
        Ok(())
    }

    fn broken(&self, error: io::Error) -> Error {
        Error::Connect { address: self.peer.to_string(), source: Arc::new(error) }
    }

    fn protocol(&self, error: nbd_proto::Error) -> Error {
        let peer = Arc::clone(&self.peer);
        match error {
            nbd_proto::Error::Refused(refusal) => {
                Error::Refused { peer, export: String::new(), refusal, text: String::new() }
            }
            source => Error::Protocol { peer, source },
        }
    }
}

/// Room for the replies to one option that are collected.
struct Room {
    code: OptionCode,
    left: u64,
}

impl Room {
    /// Bytes of memory for one list.
    const BYTES: u64 = 128 << 20;

    const fn new(code: OptionCode) -> Self {
        Self { code, left: Self::BYTES }
    }

    fn take(&mut self, texts: &[&String]) -> Result<(), nbd_proto::Error> {
        // A short text takes what the allocator rounds it up to, at least.
        let held = |text: &&String| text.len().max(16) + size_of::<String>();
        let needed: usize = texts.iter().map(held).sum();
        let exceeded = LimitExceeded::OptionReplyBytes { code: self.code, limit: Self::BYTES };
        self.left = self.left.checked_sub(needed as u64).ok_or(exceeded)?;
        Ok(())
    }
}

/// Whether an error is how the end of a connection looks.
fn is_hang_up(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(kind, Kind::ConnectionReset | Kind::BrokenPipe | Kind::NotConnected)
}

impl<T> fmt::Debug for Haggling<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Haggling").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// A connection on which an export was entered and nothing was asked for yet: what a
/// [`Client`](super::Client) is made of.
pub struct Entered<T> {
    pub(super) connection: Connection<Piece>,
    pub(super) transport: T,
    pub(super) staging: Staging,
    pub(super) peer: Arc<str>,
    pub(super) details: ExportDetails,
}

impl<T> Entered<T> {
    /// What the server told of the export.
    #[must_use]
    pub const fn details(&self) -> &ExportDetails {
        &self.details
    }
}

impl<T> fmt::Debug for Entered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered")
            .field("peer", &self.peer)
            .field("details", &self.details)
            .finish_non_exhaustive()
    }
}
