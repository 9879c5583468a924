//! Finding exports by name.

use std::borrow::Cow;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
pub use nbd_proto::server::Purpose;

use super::{ClientInfo, ExportEntry, InvalidName, ListedExport};

/// Finds exports. Implement it to have exports come and go, or to decide by name and client;
/// [`ExportMap`](super::ExportMap) is for a fixed set.
///
/// Both questions are futures of the client's connection, which reads no further until they are answered, for at most
/// the server's handshake timeout. They are dropped before their end when that is over, or when the server shuts down
/// or drops the connection. One that panics is answered as [`Refusal::Policy`], with a text that says so.
///
/// ```
/// use nbd_engine::export::{
///     ClientInfo, ExportEntry, Exports, ListedExport, Lookup, Memory, PeerAddr, Refusal,
/// };
///
/// /// A scratch disk for each connection of a local user.
/// struct Scratch;
///
/// impl Exports for Scratch {
///     async fn list(&self, _client: &ClientInfo) -> Result<Vec<ListedExport>, Refusal> {
///         Ok(vec![ListedExport::new("scratch", "is lost at the end")?])
///     }
///
///     async fn find(&self, lookup: &Lookup<'_>) -> Result<ExportEntry, Refusal> {
///         if lookup.name != "scratch" {
///             return Err(Refusal::Unknown);
///         }
///         let PeerAddr::Unix(Some(peer)) = lookup.client.peer else {
///             return Err(Refusal::policy("scratch disks are for local users"));
///         };
///         let disk = Memory::new(1 << 30).map_err(|error| Refusal::policy(error.to_string()))?;
///         // Several connections of one client would have a disk each.
///         let entry = ExportEntry::new("scratch", disk)?.without_multi_conn();
///         Ok(entry.on_close(move |_client, reason| println!("user {}: {reason}", peer.uid)))
///     }
/// }
/// ```
pub trait Exports: Send + Sync + 'static {
    /// What this client sees listed.
    ///
    /// # Errors
    /// Why it sees no list.
    fn list(
        &self,
        client: &ClientInfo,
    ) -> impl Future<Output = Result<Vec<ListedExport>, Refusal>> + Send;

    /// The export of a name; the empty name asks for the default one.
    ///
    /// Clients ask several times for one use: to learn about an export ([`Purpose::Info`]), to select metadata contexts
    /// of it ([`Purpose::MetaContext`]) and to enter it ([`Purpose::Enter`]). The entry that the last one gives is the
    /// one that is used.
    ///
    /// The answers to the first two are made of the entry's size, limits, abilities and contexts, so that every purpose
    /// needs an entry whose export answers these as the one that is entered will. What is costly or belongs to one
    /// client, such as a new disk, is best made for [`Purpose::Enter`] alone, or on the first request; state for
    /// [`on_close`](ExportEntry::on_close), which is called after an `Enter` only, likewise.
    ///
    /// A client may have several connections, each of which enters. Give all of them the same export, or views of the
    /// same data; else say so by [`without_multi_conn`](ExportEntry::without_multi_conn), so that clients do with one.
    ///
    /// # Errors
    /// Why this client can't have it, with a text that reaches the client, unless the client asks by
    /// `NBD_OPT_EXPORT_NAME`, whose answer has no room for one: its connection ends instead.
    fn find(
        &self,
        lookup: &Lookup<'_>,
    ) -> impl Future<Output = Result<ExportEntry, Refusal>> + Send;
}

/// Shared exports, so that a program can keep them in hand.
impl<E: Exports> Exports for Arc<E> {
    fn list(
        &self,
        client: &ClientInfo,
    ) -> impl Future<Output = Result<Vec<ListedExport>, Refusal>> + Send {
        (**self).list(client)
    }

    fn find(
        &self,
        lookup: &Lookup<'_>,
    ) -> impl Future<Output = Result<ExportEntry, Refusal>> + Send {
        (**self).find(lookup)
    }
}

/// A client asks for an export.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Lookup<'a> {
    /// The name as the client gave it; empty for the default export.
    pub name: &'a str,
    /// What the client asks for.
    pub purpose: Purpose,
    /// The client.
    pub client: &'a ClientInfo,
}

impl<'a> Lookup<'a> {
    /// A look-up. The engine makes them; others are for tests.
    #[must_use]
    pub const fn new(name: &'a str, purpose: Purpose, client: &'a ClientInfo) -> Self {
        Self { name, purpose, client }
    }
}

/// Why a client can't have an export, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such export (`NBD_REP_ERR_UNKNOWN`).
    Unknown,
    /// The server does not give it to this client (`NBD_REP_ERR_POLICY`); the text says why.
    Policy(Cow<'static, str>),
    /// The server or the export shuts down (`NBD_REP_ERR_SHUTDOWN`); the text says more.
    ShuttingDown(Cow<'static, str>),
}

impl Refusal {
    /// [`Refusal::Policy`] with a text, of which clients see at most 4096 bytes, up to the first NUL.
    pub fn policy(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Policy(text.into())
    }

    /// [`Refusal::ShuttingDown`] with a text, of which clients see at most 4096 bytes, up to the first NUL.
    pub fn shutting_down(text: impl Into<Cow<'static, str>>) -> Self {
        Self::ShuttingDown(text.into())
    }

    /// What a client is told of a panic: that there is no such export would be wrong.
    pub(crate) const fn panicked() -> Self {
        Self::Policy(Cow::Borrowed("the server failed to look that up: its log says more"))
    }
}

/// An entry that can't go over the wire is none that a client can have.
impl From<InvalidName> for Refusal {
    fn from(error: InvalidName) -> Self {
        Self::policy(error.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("there is no such export"),
            Self::Policy(text) | Self::ShuttingDown(text) => f.write_str(text),
        }
    }
}

impl core::error::Error for Refusal {}

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send>>;

/// [`Exports`] behind a pointer. A question costs one box.
pub(crate) trait DynExports: Send + Sync {
    fn list(self: Arc<Self>, client: Arc<ClientInfo>) -> Boxed<Vec<ListedExport>>;
    fn find(
        self: Arc<Self>,
        name: String,
        purpose: Purpose,
        client: Arc<ClientInfo>,
    ) -> Boxed<ExportEntry>;
}

impl<E: Exports> DynExports for E {
    fn list(self: Arc<Self>, client: Arc<ClientInfo>) -> Boxed<Vec<ListedExport>> {
        Box::pin(guarded(async move { Exports::list(&*self, &client).await }))
    }

    fn find(
        self: Arc<Self>,
        name: String,
        purpose: Purpose,
        client: Arc<ClientInfo>,
    ) -> Boxed<ExportEntry> {
        Box::pin(guarded(async move {
            Exports::find(&*self, &Lookup::new(&name, purpose, &client)).await
        }))
    }
}

/// A look-up that panics ends neither the connection nor the server.
async fn guarded<T>(question: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    AssertUnwindSafe(question).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("the look-up of an export panicked");
        Err(Refusal::panicked())
    })
}
