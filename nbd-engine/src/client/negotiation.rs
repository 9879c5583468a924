//! A connection before an export is entered.

mod enter;
mod options;

use core::fmt;
use core::future::poll_fn;
use core::ops::Range;
use core::task::{Context, Poll};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use nbd_proto::client::{Connection, Event, OptionError};
use nbd_proto::wire::{OptionCode, OptionReplyType};
use nbd_proto::{NoSession, RequestId, Uri, Wants};

use super::connect::reach_in_time;
use super::timer::Timer;
use super::{ClientConfig, Connector, CurrentRuntime, Error, Handshake, LostReason, TransportFrom};
use crate::maybe_tls::MaybeTls;
use crate::pump::{Handler, Incoming, Pump, Reception};
#[cfg(feature = "tls")]
use crate::tls::TlsClient;
use crate::transport::AnyTransport;

/// A connection to a server on which no export has been entered yet: the negotiation, one option at a time.
///
/// It answers what there is to know without entering: any number of questions, then [`enter`](Self::enter) or
/// [`abort`](Self::abort). What the server refuses, with [`Error::Refused`], or what can't be asked, with
/// [`Error::InvalidOption`], leaves it as it was: ask again, or for something else.
///
/// ```
/// # use nbd_engine::client::{Client, ClientConfig, CurrentRuntime, Error, Negotiation, Uri};
/// # async fn example<C: CurrentRuntime>(uri: &Uri) -> Result<Client<C>, Error> {
/// let mut negotiation = Negotiation::<C>::connect(uri, &ClientConfig::new()).await?;
/// for export in negotiation.list().await? {
///     println!("{:?} {}", export.name, export.description);
/// }
/// match negotiation.enter("disk").await {
///     Err(Error::Refused { .. }) => negotiation.enter("").await,
///     entered => entered,
/// }
/// # }
/// ```
///
/// What the [configuration](ClientConfig) asks for is negotiated on connecting: extended headers or structured replies,
/// unless they are switched off there to be asked for by hand.
///
/// Each question is bounded by [`ClientConfig::connect_timeout`]. No method is cancel-safe: once one of its futures was
/// dropped, or has failed with any other error, the connection is of no use any more. Dropping it closes the connection.
pub struct Negotiation<C> {
    /// `None` once the connection belongs to a client.
    pump: Option<Pump<Connection, MaybeTls<AnyTransport>>>,
    connector: C,
    config: ClientConfig,
    /// Where to make further connections to; `None` over a stream.
    uri: Option<Uri>,
    peer: Arc<str>,
    handshake: Handshake,
    timer: Timer,
}

impl<C: CurrentRuntime> Negotiation<C> {
    /// Connects to a server without entering an export; that of the URI is ignored. Receives the greeting and negotiates
    /// headers.
    ///
    /// Cancel-safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server can't be reached, [`Error::Protocol`] when it is not an NBD server,
    /// [`Error::Refused`] when it is not one that the configuration accepts, [`Error::TimedOut`], and
    /// [`Error::Unsupported`] for what this build can't do.
    ///
    /// # Panics
    /// Without a runtime, on those that are not global.
    pub async fn connect(uri: &Uri, config: &ClientConfig) -> Result<Self, Error> {
        Self::connect_by(C::current(), uri, config).await
    }

    /// The same over a byte stream of yours. Set `TCP_NODELAY` on TCP streams.
    ///
    /// Cancel-safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`connect`](Self::connect).
    ///
    /// # Panics
    /// Without a runtime, on those that are not global.
    pub async fn over<S>(stream: S, config: &ClientConfig) -> Result<Self, Error>
    where
        C: TransportFrom<S>,
    {
        let connector = C::current();
        let transport = connector.transport_from(stream);
        Self::over_transport(connector, transport, "stream", config).await
    }
}

/// # For adapters
impl<C: Connector> Negotiation<C> {
    /// [`connect`](Self::connect) by a given connector.
    ///
    /// Cancel-safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// See there.
    pub async fn connect_by(connector: C, uri: &Uri, config: &ClientConfig) -> Result<Self, Error> {
        #[cfg(feature = "tls")]
        let config = &super::tls::configure(uri, config)?;
        let transport = reach_in_time(&connector, uri, config.connect_timeout()).await?;
        // The export is none of its name: any can be asked about.
        let server = uri.clone().with_export("").unwrap_or_else(|_| uri.clone());
        Self::start(connector, transport, server.to_string().into(), config, Some(server)).await
    }

    /// [`over`](Self::over) by a given connector. `peer` names the server in errors.
    ///
    /// Cancel-safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// See there.
    pub async fn over_transport(
        connector: C,
        transport: AnyTransport,
        peer: impl Into<Arc<str>>,
        config: &ClientConfig,
    ) -> Result<Self, Error> {
        Self::start(connector, transport, peer.into(), config, None).await
    }

    async fn start(
        connector: C,
        transport: AnyTransport,
        peer: Arc<str>,
        config: &ClientConfig,
        uri: Option<Uri>,
    ) -> Result<Self, Error> {
        let connection = Connection::new(config.protocol())?;
        let mut negotiation = Self {
            pump: Some(Pump::new(connection, MaybeTls::Plain(transport))),
            timer: Timer::new(connector.runtime()),
            connector,
            config: config.clone(),
            uri,
            peer,
            handshake: Handshake::Newstyle,
        };
        negotiation
            .bounded("the handshake", async |this| {
                loop {
                    match this.event().await? {
                        Event::YourTurn | Event::Ready => return Ok(()),
                        Event::OptionFailed { code, reply, message } => {
                            return Err(this.refused(None, code, reply, message));
                        }
                        _ => {}
                    }
                }
            })
            .await?;
        let connection = negotiation.connection()?;
        negotiation.handshake = if connection.is_fixed_newstyle() {
            Handshake::FixedNewstyle
        } else if connection.is_transmitting() {
            Handshake::Oldstyle
        } else {
            Handshake::Newstyle
        };
        Ok(negotiation)
    }
}

impl<C> Negotiation<C> {
    /// The server, as errors name it.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The handshake that the server speaks.
    #[must_use]
    pub const fn handshake(&self) -> Handshake {
        self.handshake
    }

    /// Whether the stream runs over TLS. See [`ExportDetails::is_tls`](super::ExportDetails::is_tls).
    #[must_use]
    pub fn is_tls(&self) -> bool {
        let negotiated = self.pump.as_ref().is_some_and(|pump| pump.machine.is_tls());
        negotiated || self.config.is_stream_in_tls()
    }

    /// Whether structured or extended replies were agreed on.
    #[must_use]
    pub fn is_structured(&self) -> bool {
        self.pump.as_ref().is_some_and(|pump| pump.machine.is_structured())
    }

    /// Whether extended headers were agreed on.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.pump.as_ref().is_some_and(|pump| pump.machine.is_extended())
    }

    /// Ends the negotiation politely, by `NBD_OPT_ABORT`.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// When the server does not take note in time. There is nothing to be done about it.
    pub async fn abort(mut self) -> Result<(), Error> {
        if self.pump.is_none() {
            return Ok(());
        }
        self.bounded("disconnecting", async |this| {
            this.connection()?.disconnect();
            loop {
                match this.event().await {
                    Ok(_) => {}
                    Err(Error::Disconnected { .. }) => break,
                    // The server may close without an answer, and what it has not read makes that a reset (C-OPT-AB-05).
                    Err(Error::Connect { source, .. }) if is_hang_up(source.kind()) => break,
                    // In order or not, and with whatever reason TLS supposes: it was asked to.
                    #[cfg(feature = "tls")]
                    Err(Error::Tls { source, .. })
                        if is_hang_up(source.kind())
                            || source.kind() == io::ErrorKind::UnexpectedEof =>
                    {
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            let pump = this.pump()?;
            let closed = poll_fn(|cx| pump.poll_close_writing(cx)).await;
            match closed {
                Err(error) if !is_hang_up(error.kind()) => Err(this.broken(error.into())),
                _ => Ok(()),
            }
        })
        .await
    }

    fn pump(&mut self) -> Result<&mut Pump<Connection, MaybeTls<AnyTransport>>, Error> {
        let peer = &self.peer;
        let entered = || Error::Entered { peer: Arc::clone(peer) };
        self.pump.as_mut().ok_or_else(entered)
    }

    fn connection(&mut self) -> Result<&mut Connection, Error> {
        self.pump().map(|pump| &mut pump.machine)
    }

    /// Sends an option.
    fn ask(
        &mut self,
        send: impl FnOnce(&mut Connection) -> Result<(), OptionError>,
    ) -> Result<(), Error> {
        if self.handshake == Handshake::Oldstyle {
            let what = "it speaks the oldstyle handshake, which has one export and no options";
            return Err(Error::Unsupported { address: self.peer.to_string(), what });
        }
        let peer = Arc::clone(&self.peer);
        let connection = self.connection()?;
        if connection.is_closing() {
            return Err(Error::Disconnected { peer });
        }
        if connection.is_transmitting() {
            return Err(Error::Entered { peer });
        }
        Ok(send(connection)?)
    }

    /// The next event in answer to an option; `None` once it succeeded.
    async fn answer(&mut self, export: Option<&str>) -> Result<Option<Event>, Error> {
        match self.event().await? {
            Event::OptionDone { .. } => Ok(None),
            Event::OptionFailed { code, reply, message } => {
                Err(self.refused(export, code, reply, message))
            }
            event => Ok(Some(event)),
        }
    }

    fn refused(
        &self,
        export: Option<&str>,
        code: OptionCode,
        reply: OptionReplyType,
        text: String,
    ) -> Error {
        let refusal = NoSession::Option { code, reply };
        let export = export.map(Into::into);
        Error::Refused { peer: Arc::clone(&self.peer), export, refusal, text }
    }

    async fn bounded<R>(
        &mut self,
        what: &'static str,
        run: impl AsyncFnOnce(&mut Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let (timer, limit, peer) =
            (self.timer.clone(), self.config.connect_timeout(), Arc::clone(&self.peer));
        let result = timer.within(limit, run(self)).await;
        result.unwrap_or(Err(Error::TimedOut { peer, what, limit, sent: false }))
    }

    /// The next event. The end of the connection is an error.
    async fn event(&mut self) -> Result<Event, Error> {
        match poll_fn(|cx| self.poll_event(cx)).await? {
            Event::Closed(Err(nbd_proto::Error::Refused(refusal))) => {
                let (peer, text) = (Arc::clone(&self.peer), String::new());
                Err(Error::Refused { peer, export: None, refusal, text })
            }
            Event::Closed(Err(source)) => {
                Err(Error::Protocol { peer: Arc::clone(&self.peer), source })
            }
            Event::Closed(Ok(_)) => Err(Error::Disconnected { peer: Arc::clone(&self.peer) }),
            event => Ok(event),
        }
    }

    /// Writes what is to be written and reads up to the next event.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        let peer = Arc::clone(&self.peer);
        let pump = self.pump()?;
        if pump.machine.wants() == Wants::Closed {
            return Poll::Ready(Err(Error::Disconnected { peer }));
        }
        let mut next = NextEvent(None);
        loop {
            let moved = pump.send(&mut next, cx).and_then(|sent| {
                let received = pump.receive(&mut next, cx)?;
                Ok(sent || received)
            });
            if let Some(event) = next.0.take() {
                return Poll::Ready(Ok(event));
            }
            #[cfg(feature = "tls")]
            if pump.machine.wants() == Wants::Tls && !pump.is_unflushed() {
                match self.poll_tls(cx) {
                    Poll::Ready(Ok(())) => return self.poll_event(cx),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match moved {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
        }
    }

    /// Does the TLS handshake, once the server has agreed to it.
    #[cfg(feature = "tls")]
    fn poll_tls(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let peer = Arc::clone(&self.peer);
        let host = self.uri.as_ref().and_then(super::tls::host);
        let setup = |error| Error::TlsSetup(Arc::new(error));
        let tls = self.config.tls().map(|(_, tls)| tls.clone());
        let pump = self.pump()?;
        let begin = |transport| {
            // Where TLS was asked for by hand and nothing said of whom to trust: what the system trusts.
            let tls = tls.map_or_else(|| TlsClient::builder().build(), Ok)?;
            tls.connect(transport, host.as_deref())
        };
        let stream = pump.transport.tls(begin).map_err(setup)?;
        match stream.poll_handshake(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => {
                Poll::Ready(Err(Error::Tls { peer, source: Arc::new(error) }))
            }
            Poll::Ready(Ok(())) => {
                tracing::debug!(%peer, suite = stream.description(), "TLS begins");
                let established = pump.machine.tls_established();
                Poll::Ready(established.map_err(|misuse| self.broken(misuse.into())))
            }
        }
    }

    fn broken(&self, reason: LostReason) -> Error {
        match reason {
            // With TLS 1.3 a client is refused after its handshake has succeeded.
            #[cfg(feature = "tls")]
            LostReason::Transport(source)
                if self.pump.as_ref().is_some_and(|pump| pump.transport.has_failed_in_tls()) =>
            {
                Error::Tls { peer: Arc::clone(&self.peer), source }
            }
            LostReason::Transport(source) => {
                Error::Connect { address: self.peer.to_string(), source }
            }
            reason => Error::Lost { peer: Arc::clone(&self.peer), sent: false, reason },
        }
    }
}

/// Takes one event at a time: the answer to it may be another option. There are no requests.
struct NextEvent(Option<Event>);

impl Handler<Connection> for NextEvent {
    type Error = LostReason;

    fn event(
        &mut self,
        _: &mut Connection,
        event: Event,
        _: &[u8],
        _: &mut Context<'_>,
    ) -> Result<(), LostReason> {
        self.0 = Some(event);
        Ok(())
    }

    fn may_receive(&self) -> bool {
        self.0.is_none()
    }

    fn received(&mut self, _: &mut Connection, _: usize) {}

    fn sent(&mut self, _: usize, _: bool) {}

    fn reception(&mut self, _: Incoming, _: usize, _: &mut Context<'_>) -> Reception {
        Reception::Drop
    }

    fn room<'a>(&'a mut self, _: Incoming, _: impl FnMut(IoSliceMut<'a>) -> bool) {}

    fn body<'a>(&'a self, _: RequestId, _: Range<usize>, _: impl FnMut(IoSlice<'a>) -> bool) {}

    fn finished(&mut self, _: RequestId) {}
}

/// Whether an error is how the end of a connection looks.
fn is_hang_up(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(kind, Kind::ConnectionReset | Kind::BrokenPipe | Kind::NotConnected)
}

impl<C> fmt::Debug for Negotiation<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Negotiation")
            .field("peer", &self.peer)
            .field("handshake", &self.handshake)
            .finish_non_exhaustive()
    }
}
