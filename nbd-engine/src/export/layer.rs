//! Exports that consist of another one, of either kind, with something changed.
//!
//! A [`Layer`] says what is changed, once; [`Layered`] puts it around an [`Export`] (`layer/blocking.rs`) and around an
//! [`AsyncExport`](super::AsyncExport) (`layer/asynchronous.rs`).

mod admit;
mod alike;
mod asynchronous;
mod blocking;
#[cfg(test)]
pub(super) mod later;
#[cfg(all(test, target_os = "linux"))]
mod stacks;
#[cfg(test)]
mod tests;

use core::ops::{ControlFlow, Range};
use core::time::Duration;
use std::time::Instant;

use nbd_proto::{BlockSize, Command, ContextInfo, Extent};

use super::bounds::{inside, inside_for_writing};
use super::contexts::no_such_context;
use super::{Allocation, ClientInfo, CloseReason, ExportError, Result};
pub use admit::Admit;

/// What a wrapper changes of the export inside, said once for exports of either kind. The defaults change nothing.
///
/// [`Layered`] puts a layer around an [`Export`](super::Export) or an [`AsyncExport`](super::AsyncExport). The
/// constants say which of the methods are used, so that a layer costs nothing for what it leaves alone.
///
/// A layer can do without its own thread or timer: [`admit`](Self::admit) and [`pace`](Self::pace) return how long a
/// request waits, and the server keeps the request meanwhile, without a thread, whatever the kind of export and the
/// runtime. They are called on the connection's own thread or task and must not block; one that panics fails its
/// request with `EIO`. Requests reach them only by way of a server: whoever calls an export's methods by itself passes
/// them by.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::Duration;
///
/// use nbd_engine::export::{
///     Admit, ClientInfo, ErrorCode, Export, ExportError, Layer, Layered, Memory, Result,
/// };
/// use nbd_engine::proto::Command;
///
/// /// Counts what was read, and refuses trims on the first MiB.
/// #[derive(Default)]
/// struct Guarded {
///     read: AtomicU64,
/// }
///
/// impl Layer for Guarded {
///     const ADMITS: bool = true;
///
///     fn admit(&self, _client: &ClientInfo, command: &Command) -> Admit {
///         match command {
///             Command::Trim { offset, .. } if *offset < 1 << 20 => {
///                 Admit::refuse(ExportError::new(ErrorCode::EPERM, "the first MiB is kept"))
///             }
///             _ => Admit::NOW,
///         }
///     }
///
///     fn finished(&self, _: &ClientInfo, command: &Command, result: &Result<()>, _: Duration) {
///         if let (Command::Read { length, .. }, Ok(())) = (command, result) {
///             self.read.fetch_add(*length, Ordering::Relaxed);
///         }
///     }
/// }
///
/// let disk = Layered::with(Memory::new(1 << 30)?, Guarded::default());
/// assert_eq!(disk.size(), 1 << 30);
/// assert_eq!(disk.layer().read.load(Ordering::Relaxed), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Layer: Send + Sync + 'static {
    /// Whether the abilities to write, trim, zero and resize stay.
    const WRITABLE: bool = true;

    /// Whether the ability to resize stays, if [`WRITABLE`](Self::WRITABLE) does.
    const RESIZABLE: bool = true;

    /// Whether [`change`](Self::change) does anything.
    const OBSERVES: bool = false;

    /// Whether [`start`](Self::start) does anything. Ranges are then checked against [`size`](Self::size) once more,
    /// so that no request gets at what lies around the part.
    const MOVES: bool = false;

    /// Whether [`admit`](Self::admit), [`pace`](Self::pace), [`begun`](Self::begun) and [`finished`](Self::finished) do
    /// anything.
    const ADMITS: bool = false;

    /// The size in bytes, given that of the export inside, which it must not exceed.
    fn size(&self, inner: u64) -> u64 {
        inner
    }

    /// The offset of the first byte in the export inside, which [`size`](Self::size) has taken account of.
    fn start(&self) -> u64 {
        0
    }

    /// The size constraints.
    fn block_size(&self, inner: BlockSize) -> BlockSize {
        inner
    }

    /// Whether clients that don't ask for the constraints are refused.
    fn block_size_required(&self, inner: bool) -> bool {
        inner
    }

    /// A range is about to change. What this gives is dropped after the change, however it ended.
    fn change(&self, range: Range<u64>) -> impl Send {
        let _ = range;
    }

    /// The metadata contexts that come before those of the export inside, which reports extents or not. One that the
    /// export inside has, too, is the latter's unless its [source](Self::source) is [`Source::Layer`].
    fn contexts(&self, extents: bool) -> Vec<ContextInfo> {
        let _ = extents;
        Vec::new()
    }

    /// Where the status in a metadata context comes from.
    fn source(&self, context: &str) -> Source {
        let _ = context;
        Source::Inner
    }

    /// Reports the status in a context whose source is [`Source::Layer`]. See
    /// [`Contexts::status`](super::Contexts::status). The default knows no context.
    ///
    /// # Errors
    /// When the context is not there (any more), with [`no_such_context`](super::no_such_context).
    fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let _ = (context, offset, length, visit);
        Err(no_such_context())
    }

    /// A client enters, before its first request. See [`Export::client_entered`](super::Export::client_entered).
    fn client_entered(&self, client: &ClientInfo) {
        let _ = client;
    }

    /// A client that entered has left. See [`Export::client_left`](super::Export::client_left).
    fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        let _ = (client, reason);
    }

    /// A request has arrived, its payload included: whether it is to be delayed or refused. Called once for each.
    /// Requests that are delayed don't hold up others of the connection.
    fn admit(&self, client: &ClientInfo, command: &Command) -> Admit {
        let _ = (client, command);
        Admit::NOW
    }

    /// How long the request has to wait for its share of a rate from `now` on; zero if it may be carried out. Called
    /// after the delay of [`admit`](Self::admit), and again after the time that it returned. The requests of a
    /// connection are asked about in order: the next one only after the one before was carried out. `now` is the
    /// [runtime](crate::Runtime::now)'s time.
    fn pace(&self, client: &ClientInfo, command: &Command, now: Instant) -> Duration {
        let _ = (client, command, now);
        Duration::ZERO
    }

    /// The request is carried out now: neither this layer nor another one has it wait any longer.
    fn begun(&self, client: &ClientInfo, command: &Command, now: Instant) {
        let _ = (client, command, now);
    }

    /// The request has been carried out or refused, and its reply is about to be queued: `took` after it had arrived.
    /// Requests that are abandoned since their client is gone are not reported.
    fn finished(
        &self,
        client: &ClientInfo,
        command: &Command,
        result: &Result<()>,
        took: Duration,
    ) {
        let _ = (client, command, result, took);
    }
}

/// Where the status in a metadata context comes from, and how that of a block with parts of both is found.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Source {
    /// From the export inside.
    Inner,
    /// From its extents, by this mapping; the larger status wins.
    Extents(fn(Allocation) -> u64),
    /// From the layer; bits of either are set.
    Layer,
}

/// An export in a [`Layer`], such as [`ReadOnly`](super::ReadOnly).
///
/// Layers are put around each other: `Layered<Layered<Memory, A>, B>` has `A` next to the memory. A stack that a
/// configuration makes up goes by `Box<dyn Export>`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layered<E, L> {
    pub(super) inner: E,
    pub(super) layer: L,
}

impl<E, L> Layered<E, L> {
    /// An export with a layer around it.
    pub const fn with(inner: E, layer: L) -> Self {
        Self { inner, layer }
    }

    /// The layer.
    pub const fn layer(&self) -> &L {
        &self.layer
    }

    /// The export inside, without the layer.
    pub fn into_inner(self) -> E {
        self.inner
    }
}

impl<E, L> AsRef<E> for Layered<E, L> {
    fn as_ref(&self) -> &E {
        &self.inner
    }
}

/// The error of an ability that an export had when it was asked, and has no more.
fn gone() -> ExportError {
    ExportError::io("the export can't do that any more")
}

/// A resize changes what lies between the sizes.
const fn resized(old: u64, new: u64) -> Range<u64> {
    if old < new { old..new } else { new..old }
}

/// The range of a change, wherever it may be.
const fn range(offset: u64, length: u64) -> Range<u64> {
    offset..offset.saturating_add(length)
}

/// A kind of check of a range against the size.
#[derive(Clone, Copy)]
enum For {
    Reading,
    Writing,
}

impl<E, L: Layer> Layered<E, L> {
    /// The offset in the export inside, whose size is `inner`.
    #[inline]
    fn moved(
        &self,
        inner: impl FnOnce() -> u64,
        offset: u64,
        length: u64,
        what: For,
    ) -> Result<u64> {
        if !L::MOVES {
            return Ok(offset);
        }
        let size = self.layer.size(inner());
        match what {
            For::Reading => inside(offset, length, size)?,
            For::Writing => inside_for_writing(offset, length, size)?,
        }
        Ok(offset + self.layer.start())
    }

    /// A command as the export inside gets it.
    fn moved_command(&self, command: &Command) -> Command {
        if !L::MOVES || !command.has_range() {
            return *command;
        }
        command.with_range(command.offset().saturating_add(self.layer.start()), command.length())
    }

    /// The bytes from `offset` to the end of a layer that moves: what the export inside reports beyond lies outside.
    fn bytes_left(&self, inner: impl FnOnce() -> u64, offset: u64) -> u64 {
        if L::MOVES { self.layer.size(inner()).saturating_sub(offset) } else { u64::MAX }
    }

    /// Where the status in a context comes from, given the contexts that the export inside has by itself.
    fn source(&self, context: &str, inner: impl FnOnce() -> Option<Vec<ContextInfo>>) -> Source {
        match self.layer.source(context) {
            Source::Extents(_)
                if inner().is_some_and(|list| list.iter().any(|one| one.name() == context)) =>
            {
                Source::Inner
            }
            source => source,
        }
    }
}

/// Cuts a run that reaches further than the bytes which are left of a layer; `None` if nothing is.
fn cut(left: &mut u64, length: u64) -> Option<u64> {
    let length = length.min(*left);
    *left -= length;
    (length > 0).then_some(length)
}
