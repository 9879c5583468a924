//! Options, one by one (section "Option types").

use nbd_proto::LimitExceeded;
use nbd_proto::client::Event;
use nbd_proto::wire::{InfoType, OptionCode};

use super::super::config::INFO;
use super::super::{Error, ExportDetails, Listing};
use super::Negotiation;

/// Bytes of memory for one answer.
const MAX_ANSWER: u64 = 128 << 20;

// STARTTLS belongs here, once there is TLS.

/// # Options
///
/// All of these fail with [`Error::Unsupported`] on servers that speak the oldstyle handshake, with
/// [`Error::InvalidOption`] for what must not be sent, such as a name of more than 4096 bytes, and with
/// [`Error::Entered`] once an export was entered.
impl<C> Negotiation<C> {
    /// `NBD_OPT_LIST`: the exports that the server lists; there may be others.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not list its exports, [`Error::Protocol`] when the list takes more than
    /// 128 MiB.
    pub async fn list(&mut self) -> Result<Vec<Listing>, Error> {
        self.bounded("the list of exports", async |this| {
            this.ask(|connection| connection.list())?;
            let mut answer = Collected::new(OptionCode::LIST);
            while let Some(event) = this.answer(None).await? {
                if let Event::Listed { name, description } = event {
                    let bytes = held(&name) + held(&description);
                    this.collect(&mut answer, bytes, Listing::new(name, description))?;
                }
            }
            Ok(answer.items)
        })
        .await
    }

    /// `NBD_OPT_INFO`: what the server says of an export without entering it. On a server with the oldstyle handshake,
    /// what it said of its one export.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, or the server describes it only on entering.
    pub async fn info(&mut self, export: &str) -> Result<ExportDetails, Error> {
        self.info_with(export, &INFO).await
    }

    /// `NBD_OPT_INFO` that asks for these items, each at most once. The size and the flags come in any case; others may
    /// come, too.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// As for [`info`](Self::info).
    pub async fn info_with(
        &mut self,
        export: &str,
        items: &[InfoType],
    ) -> Result<ExportDetails, Error> {
        let in_tls = self.config.is_stream_in_tls();
        if let Some(entered) = self.connection()?.export() {
            return Ok(ExportDetails::entered(export, &entered, in_tls));
        }
        self.bounded("the description of an export", async |this| {
            this.ask(|connection| connection.info(export, items))?;
            let mut details = ExportDetails::new(export, this.connection()?, in_tls);
            while let Some(event) = this.answer(Some(export)).await? {
                if let Event::Info(info) = event {
                    details.learn(info);
                }
            }
            Ok(details)
        })
        .await
    }

    /// `NBD_OPT_STRUCTURED_REPLY`.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not have them, [`Error::InvalidOption`] when they are agreed on already.
    pub async fn structured_replies(&mut self) -> Result<(), Error> {
        self.bounded("structured replies", async |this| {
            this.ask(|connection| connection.structured_reply())?;
            this.drain(None).await
        })
        .await
    }

    /// `NBD_OPT_EXTENDED_HEADERS`.
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not have them, [`Error::InvalidOption`] when they are agreed on already.
    pub async fn extended_headers(&mut self) -> Result<(), Error> {
        self.bounded("extended headers", async |this| {
            this.ask(|connection| connection.extended_headers())?;
            this.drain(None).await
        })
        .await
    }

    /// `NBD_OPT_LIST_META_CONTEXT`: the metadata contexts of an export that match any of the queries; all that there
    /// are, without queries. (Some servers list none without queries.)
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, [`Error::InvalidOption`] without structured replies or extended
    /// headers.
    pub async fn list_meta_contexts(
        &mut self,
        export: &str,
        queries: &[&str],
    ) -> Result<Vec<String>, Error> {
        self.bounded("the list of metadata contexts", async |this| {
            this.ask(|connection| connection.list_meta_context(export, queries))?;
            this.contexts(export, OptionCode::LIST_META_CONTEXT).await
        })
        .await
    }

    /// `NBD_OPT_SET_META_CONTEXT`: selects the metadata contexts of an export that match any of the queries, in place of
    /// all that were selected before, and gives them; none without queries. They hold if that same export is
    /// entered, in place of those of the [configuration](super::super::ClientConfig::with_contexts).
    ///
    /// Not cancel-safe: see [`Negotiation`].
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, [`Error::InvalidOption`] without structured replies or extended
    /// headers.
    pub async fn set_meta_contexts(
        &mut self,
        export: &str,
        queries: &[&str],
    ) -> Result<Vec<String>, Error> {
        self.bounded("the selection of metadata contexts", async |this| {
            this.ask(|connection| connection.set_meta_context(export, queries))?;
            this.contexts(export, OptionCode::SET_META_CONTEXT).await
        })
        .await
    }

    /// The metadata contexts that an answer names.
    async fn contexts(&mut self, export: &str, code: OptionCode) -> Result<Vec<String>, Error> {
        let mut answer = Collected::new(code);
        while let Some(event) = self.answer(Some(export)).await? {
            if let Event::MetaContext { name, .. } = event {
                let bytes = held(&name);
                self.collect(&mut answer, bytes, name)?;
            }
        }
        Ok(answer.items)
    }

    async fn drain(&mut self, export: Option<&str>) -> Result<(), Error> {
        while self.answer(export).await?.is_some() {}
        Ok(())
    }

    /// Keeps a part of an answer, within bounds.
    fn collect<T>(&self, answer: &mut Collected<T>, bytes: usize, item: T) -> Result<(), Error> {
        answer.bytes = answer.bytes.saturating_add(bytes as u64);
        if answer.bytes > MAX_ANSWER {
            let (code, limit) = (answer.code, MAX_ANSWER);
            let source = LimitExceeded::OptionReplyBytes { code, limit }.into();
            return Err(Error::Protocol { peer: self.peer.clone(), source });
        }
        answer.items.push(item);
        Ok(())
    }
}

/// What a text takes. A short one takes what the allocator rounds it up to, at least.
fn held(text: &str) -> usize {
    text.len().max(16) + size_of::<String>()
}

/// The parts of an answer so far.
struct Collected<T> {
    code: OptionCode,
    bytes: u64,
    items: Vec<T>,
}

impl<T> Collected<T> {
    const fn new(code: OptionCode) -> Self {
        Self { code, bytes: 0, items: Vec::new() }
    }
}
