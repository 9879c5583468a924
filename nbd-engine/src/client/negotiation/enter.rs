//! From the negotiation to a client.

use std::sync::Arc;

use nbd_proto::client::Event;
use nbd_proto::wire::InfoType;

use super::super::ready::ReadyConnection;
use super::super::reconnect::Target;
use super::super::{Client, Connector, Entered, Error, ExportDetails, NoSession, OptionCode};
use super::Negotiation;

/// # Entering an export
///
/// On success the negotiation is over: its connection is the client's, and every further question fails with
/// [`Error::Entered`]. What the server refuses leaves it as it was.
impl<C: Connector> Negotiation<C> {
    /// Enters an export in the best way that the server has: selects the configured metadata contexts, unless others were
    /// selected by hand for this export, and sends `NBD_OPT_GO`, or `NBD_OPT_EXPORT_NAME` to servers that know no other.
    /// Where the server allows it, makes up to as many [connections](super::super::ClientConfig::with_connections) as are
    /// configured, each in the same way as this one.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let this client into the export. (On `NBD_OPT_EXPORT_NAME` it can only
    /// do so by closing the connection.) When this connection has entered the export, and a further one fails in a way that
    /// is not [transient](Error::is_transient): [`Error::Unsupported`] if it finds another export, otherwise an error of
    /// [connecting](super::super::Client::connect_by); the negotiation is over then.
    pub async fn enter(&mut self, export: &str) -> Result<Client<C>, Error> {
        let first = self.enter_ready(export).await?;
        self.client_of(first).await
    }

    /// A client of this connection, and of further ones: fewer than are configured if the server has no room for more, which
    /// none can say but by closing a connection, or by not accepting it. Takes it exclusively since transports are not
    /// `Sync`, which the future of a shared one would have to be.
    pub(in super::super) async fn client_of(
        &mut self,
        first: ReadyConnection,
    ) -> Result<Client<C>, Error> {
        if let Some(refused) = first.details.contexts_refused() {
            let (peer, reply, message) = (&*first.peer, refused.reply, &*refused.message);
            tracing::warn!(peer, %reply, message, "the server refused to select metadata contexts: there is no block status");
        }
        let target = self.target(&first);
        let wanted = if first.details.can_multi_conn() { self.config.connections() } else { 1 };
        let mut further = Vec::new();
        while let Some(target) = target.as_ref().filter(|_| 1 + further.len() < wanted) {
            let ready = match target.connect().await {
                Err(error) if error.is_transient() || is_about_contexts(&error) => {
                    let connections = 1 + further.len();
                    tracing::info!(%error, connections, wanted, "going on with the connections there are");
                    break;
                }
                result => result?,
            };
            if !ready.fits(&first) {
                let what = "its connections don't lead to the same export";
                return Err(Error::Unsupported { address: self.peer.to_string(), what });
            }
            further.push(ready);
        }
        Ok(Client::new(first, further, target, &self.connector, &self.config))
    }

    /// A further connection, once its headers are negotiated.
    pub(in super::super) async fn enter_ready(
        &mut self,
        export: &str,
    ) -> Result<ReadyConnection, Error> {
        self.bounded("entering the export", async |this| this.enter_export(export).await).await?;
        self.ready(export)
    }

    /// Where connections lead that are made after this one; `None` over a stream, which can't be made again.
    fn target(&self, first: &ReadyConnection) -> Option<Target<C>> {
        let uri = self.uri.as_ref()?;
        Some(Target::of_first(&self.connector, uri, &self.config, &first.details))
    }

    /// Its connection, with the export entered; if that fails, the negotiation is aborted.
    pub(in super::super) async fn enter_or_abort(
        mut self,
        export: &str,
    ) -> Result<(Self, ReadyConnection), Error> {
        match self.enter_ready(export).await {
            Ok(ready) => Ok((self, ready)),
            Err(error) => {
                let _best_effort = self.abort().await;
                Err(error)
            }
        }
    }

    /// `NBD_OPT_GO` that asks for these items, each at most once. No metadata contexts are selected but those that were
    /// selected by hand, and there is this connection only.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let this client into the export, or does not know the option.
    pub async fn go(&mut self, export: &str, items: &[InfoType]) -> Result<Client<C>, Error> {
        self.bounded("entering the export", async |this| {
            this.ask(|connection| connection.go(export, items))?;
            this.ready_or_refused(export).await
        })
        .await?;
        let first = self.ready(export)?;
        let target = self.target(&first);
        Ok(Client::new(first, Vec::new(), target, &self.connector, &self.config))
    }

    /// `NBD_OPT_EXPORT_NAME`. No metadata contexts are selected but those that were selected by hand, and there is this
    /// connection only.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the server closes the connection, which is how it refuses an export here: the negotiation
    /// is over then. [`Error::InvalidOption`] once extended headers are agreed on.
    pub async fn export_name(&mut self, export: &str) -> Result<Client<C>, Error> {
        self.bounded("entering the export", async |this| {
            this.ask(|connection| connection.export_name(export))?;
            this.ready_or_refused(export).await
        })
        .await?;
        let first = self.ready(export)?;
        let target = self.target(&first);
        Ok(Client::new(first, Vec::new(), target, &self.connector, &self.config))
    }

    /// Enters an export as [`enter`](Self::enter) does, by this connection only, and hands over the connection.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// As for [`enter`](Self::enter), and [`Error::Unsupported`] when the server sends something that nobody asked for.
    pub async fn hand_over(&mut self, export: &str) -> Result<Entered, Error> {
        let ready = self.enter_ready(export).await?;
        if !ready.pump.is_idle() {
            let what = "it sends replies to requests that nobody has made";
            return Err(Error::Unsupported { address: ready.peer.to_string(), what });
        }
        Ok(Entered::new(ready))
    }

    async fn enter_export(&mut self, export: &str) -> Result<(), Error> {
        if self.connection()?.is_transmitting() {
            return Ok(());
        }
        self.ask(|connection| connection.enter(export))?;
        self.ready_or_refused(export).await
    }

    async fn ready_or_refused(&mut self, export: &str) -> Result<(), Error> {
        loop {
            match self.event().await {
                Ok(Event::Ready) => return Ok(()),
                Ok(Event::OptionFailed { code, reply, message }) => {
                    return Err(self.refused(Some(export), code, reply, message));
                }
                Ok(_) => {}
                Err(Error::Refused { peer, export: None, refusal, text }) => {
                    let export = Some(export.to_owned());
                    return Err(Error::Refused { peer, export, refusal, text });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The connection once an export was entered.
    fn ready(&mut self, export: &str) -> Result<ReadyConnection, Error> {
        let peer = match &self.uri {
            None => Arc::clone(&self.peer),
            Some(uri) => match uri.clone().with_export(export) {
                Ok(uri) => uri.to_string().into(),
                Err(_) => Arc::clone(&self.peer),
            },
        };
        let in_tls = self.config.is_stream_in_tls();
        let entered = || Error::Entered { peer: Arc::clone(&self.peer) };
        let pump = self.pump.take().ok_or_else(entered)?;
        let gone = || Error::Disconnected { peer: Arc::clone(&self.peer) };
        let view = pump.machine.export().ok_or_else(gone)?;
        let (details, rules) = (ExportDetails::entered(export, &view, in_tls), view.rules());
        Ok(ReadyConnection { pump, peer, details, rules })
    }
}

/// Whether a server did not select the contexts that the first connection has.
fn is_about_contexts(error: &Error) -> bool {
    let Error::Refused { refusal: NoSession::Option { code, .. }, .. } = error else {
        return false;
    };
    *code == OptionCode::SET_META_CONTEXT
}
