//! An export of either kind.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_proto::{BlockSize, Command, ContextInfo};

use super::asynchronous::DynAsyncExport;
use super::{Admit, AsyncExport, ClientInfo, CloseReason, Export, Fua, Result};

/// An export that may block or one whose work is a future, shared by all connections. Cheap to clone: clones are the
/// same export.
///
/// ```
/// use nbd_engine::export::{AnyExport, Memory, ReadOnly};
/// use std::sync::Arc;
///
/// let disk = Arc::new(Memory::new(1 << 20)?);
/// // Two views of one disk.
/// let view = AnyExport::new(ReadOnly::new(Arc::clone(&disk)));
/// let disk = AnyExport::new(disk);
/// assert_eq!(view.size(), disk.size());
/// # Ok::<(), nbd_engine::export::TooLarge>(())
/// ```
#[derive(Clone)]
pub struct AnyExport {
    kind: Kind,
}

#[derive(Clone)]
pub(crate) enum Kind {
    Blocking(Arc<dyn Export>),
    Async(Arc<dyn DynAsyncExport>),
}

impl AnyExport {
    /// Shares an export of either kind.
    pub fn new<K>(export: impl IntoExport<K>) -> Self {
        export.into_export()
    }

    /// Shares an export that may block: [`new`](Self::new) for types that are of both kinds.
    pub fn new_blocking(export: impl Export) -> Self {
        Self { kind: Kind::Blocking(Arc::new(export)) }
    }

    /// Shares an export whose work is a future: [`new`](Self::new) for types that are of both kinds.
    pub fn new_async(export: impl AsyncExport) -> Self {
        Self { kind: Kind::Async(Arc::new(export)) }
    }

    /// An export that is shared already.
    #[cfg(target_os = "linux")]
    pub(super) const fn from_shared(export: Arc<dyn Export>) -> Self {
        Self { kind: Kind::Blocking(export) }
    }

    pub(crate) const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The size in bytes, as it is now.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::Blocking(export) => export.size(),
            Kind::Async(export) => export.size_now(),
        }
    }

    /// Has the export look whether its medium has another size by now.
    pub(crate) fn refresh(&self) {
        if let Kind::Blocking(export) = &self.kind {
            export.refresh();
        }
    }

    /// What is advertised of the export.
    pub(crate) fn facts(&self) -> Facts {
        match &self.kind {
            Kind::Blocking(export) => Facts {
                size: export.size(),
                block_size: export.block_size(),
                block_size_required: export.block_size_required(),
                description: export.description(),
                rotational: export.rotational(),
                multi_conn: export.multi_conn(),
                write: export.can_write().map(|writes| writes.fua()),
                flush: export.can_flush().is_some(),
                trim: export.can_trim().is_some(),
                write_zeroes: export.can_write_zeroes().is_some(),
                fast_zero: export.can_write_zeroes().is_some_and(|zeroes| zeroes.can_fast_zero()),
                cache: export.can_cache().is_some(),
                extents: export.can_extents().is_some(),
                resize: export.can_resize().is_some(),
                contexts: export.contexts().map(|own| own.list()).unwrap_or_default(),
            },
            Kind::Async(export) => export.facts(),
        }
    }

    /// A metadata context for a query that names none of [`Facts::contexts`].
    pub(crate) fn find_context(&self, query: &str) -> Option<ContextInfo> {
        match &self.kind {
            Kind::Blocking(export) => export.contexts()?.find(query),
            Kind::Async(export) => export.find_context(query),
        }
    }

    /// Whether the export is asked about each request.
    pub(crate) fn admits(&self) -> bool {
        match &self.kind {
            Kind::Blocking(export) => export.admits(),
            Kind::Async(export) => export.wants_admission(),
        }
    }

    /// See [`Layer::admit`](super::Layer::admit).
    pub(crate) fn admit(&self, client: &ClientInfo, command: &Command) -> Admit {
        match &self.kind {
            Kind::Blocking(export) => export.admit(client, command),
            Kind::Async(export) => export.admitted(client, command),
        }
    }

    /// See [`Layer::pace`](super::Layer::pace).
    pub(crate) fn pace(&self, client: &ClientInfo, command: &Command, now: Instant) -> Duration {
        match &self.kind {
            Kind::Blocking(export) => export.pace(client, command, now),
            Kind::Async(export) => export.paced(client, command, now),
        }
    }

    /// See [`Layer::begun`](super::Layer::begun).
    pub(crate) fn begun(&self, client: &ClientInfo, command: &Command, now: Instant) {
        match &self.kind {
            Kind::Blocking(export) => export.begun(client, command, now),
            Kind::Async(export) => export.has_begun(client, command, now),
        }
    }

    /// See [`Layer::finished`](super::Layer::finished).
    pub(crate) fn finished(
        &self,
        client: &ClientInfo,
        command: &Command,
        result: &Result<()>,
        took: Duration,
    ) {
        match &self.kind {
            Kind::Blocking(export) => export.finished(client, command, result, took),
            Kind::Async(export) => export.has_finished(client, command, result, took),
        }
    }

    pub(crate) fn client_entered(&self, client: &ClientInfo) {
        match &self.kind {
            Kind::Blocking(export) => export.client_entered(client),
            Kind::Async(export) => export.entered(client),
        }
    }

    pub(crate) fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        match &self.kind {
            Kind::Blocking(export) => export.client_left(client, reason),
            Kind::Async(export) => export.left(client, reason),
        }
    }
}

impl fmt::Debug for AnyExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Blocking(_) => "AnyExport(blocking)",
            Kind::Async(_) => "AnyExport(async)",
        })
    }
}

/// What an export says of itself, whichever kind it is.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) size: u64,
    pub(crate) block_size: BlockSize,
    pub(crate) block_size_required: bool,
    pub(crate) description: Option<String>,
    pub(crate) rotational: bool,
    pub(crate) multi_conn: bool,
    /// How FUA is done, of an export that can be written.
    pub(crate) write: Option<Fua>,
    pub(crate) flush: bool,
    pub(crate) trim: bool,
    pub(crate) write_zeroes: bool,
    pub(crate) fast_zero: bool,
    pub(crate) cache: bool,
    pub(crate) extents: bool,
    pub(crate) resize: bool,
    /// The metadata contexts of its own.
    pub(crate) contexts: Vec<ContextInfo>,
}

/// What becomes an [`AnyExport`]: every [`Export`], every [`AsyncExport`], and an [`AnyExport`] itself.
///
/// The parameter is inferred; it says which of these the type is. For a type that is both there are
/// [`AnyExport::new_blocking`] and [`AnyExport::new_async`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an export",
    label = "neither `Export` nor `AsyncExport` is implemented for it"
)]
pub trait IntoExport<Kind> {
    /// Shares the export.
    fn into_export(self) -> AnyExport;
}

/// The parameters of [`IntoExport`].
pub mod kind {
    /// An [`Export`](crate::export::Export).
    #[derive(Debug)]
    #[non_exhaustive]
    pub struct Blocking;
    /// An [`AsyncExport`](crate::export::AsyncExport).
    #[derive(Debug)]
    #[non_exhaustive]
    pub struct Async;
    /// An [`AnyExport`](crate::export::AnyExport).
    #[derive(Debug)]
    #[non_exhaustive]
    pub struct Any;
}

impl<E: Export> IntoExport<kind::Blocking> for E {
    fn into_export(self) -> AnyExport {
        AnyExport::new_blocking(self)
    }
}

impl<E: AsyncExport> IntoExport<kind::Async> for E {
    fn into_export(self) -> AnyExport {
        AnyExport::new_async(self)
    }
}

impl IntoExport<kind::Any> for AnyExport {
    fn into_export(self) -> AnyExport {
        self
    }
}
