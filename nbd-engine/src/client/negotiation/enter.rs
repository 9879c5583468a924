//! From the negotiation to a client.

use std::sync::Arc;

use nbd_proto::client::Event;
use nbd_proto::wire::InfoType;

use super::super::ready::ReadyConnection;
use super::super::reconnect::Target;
use super::super::{Client, Connector, Entered, Error, ExportDetails};
use super::Negotiation;

/// # Entering an export
///
/// On success the negotiation is over: its connection is the client's, and every further question fails with
/// [`Error::Entered`]. What the server refuses leaves it as it was.
impl<C: Connector> Negotiation<C> {
    /// Enters an export in the best way that the server has: selects the configured metadata contexts, unless others were
    /// selected by hand for this export, and sends `NBD_OPT_GO`, or `NBD_OPT_EXPORT_NAME` to servers that know no other.
    /// Where the server allows it, makes as many [connections](super::super::ClientConfig::with_connections) as are
    /// configured, each in the same way as this one.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let this client into the export. (On `NBD_OPT_EXPORT_NAME` it can only
    /// do so by closing the connection.) When this connection has entered the export and a further one fails,
    /// [`Error::Unsupported`] if it finds another export, otherwise an error of
    /// [connecting](super::super::Client::connect_by); the negotiation is over then.
    pub async fn enter(&mut self, export: &str) -> Result<Client<C>, Error> {
        let first = self.enter_ready(export).await?;
        let target = self.target(&first);
        let mut further = Vec::new();
        if let Some(target) = target.as_ref().filter(|_| first.details.can_multi_conn()) {
            for _ in 1..self.config.connections() {
                let ready = target.connect().await?;
                if !ready.fits(&first) {
                    let what = "its connections don't lead to the same export";
                    return Err(Error::Unsupported { address: self.peer.to_string(), what });
                }
                further.push(ready);
            }
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

    /// The same; if that fails, the negotiation is aborted.
    pub(in super::super) async fn enter_or_abort(
        mut self,
        export: &str,
    ) -> Result<Client<C>, Error> {
        let entered = self.enter(export).await;
        if entered.is_err() {
            let _best_effort = self.abort().await;
        }
        entered
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
