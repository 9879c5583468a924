//! Metadata contexts of an export's own.

use core::ops::ControlFlow;

use nbd_proto::wire::ErrorCode;
use nbd_proto::{ContextInfo, Extent};

use super::{ExportError, Result};

/// The ability to report the status of blocks in metadata contexts of the export's own. Part of
/// [`Export`](super::Export).
///
/// `base:allocation` is not among them: it comes from [`CanExtents`](super::CanExtents). Clients choose contexts by
/// name, or by the part of the name up to any of its colons when they list them. Choose a namespace that the
/// specification allows: one that is registered, or `x-` and anything.
///
/// ```
/// use core::ops::ControlFlow;
/// use nbd_engine::export::{ContextInfo, Contexts, Export, Extent, Result};
///
/// /// A disk whose odd megabytes are worn out.
/// struct Worn;
///
/// impl Export for Worn {
///     fn size(&self) -> u64 {
///         16 << 20
///     }
///     fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
///         buffer.fill(0);
///         Ok(())
///     }
///     fn contexts(&self) -> Option<&dyn Contexts> {
///         Some(self)
///     }
/// }
///
/// impl Contexts for Worn {
///     fn list(&self) -> Vec<ContextInfo> {
///         ContextInfo::new("x-example:worn").into_iter().collect()
///     }
///     fn status(
///         &self,
///         _context: &str,
///         mut offset: u64,
///         length: u64,
///         visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
///     ) -> Result<()> {
///         let end = offset + length;
///         while offset < end {
///             let megabyte = offset >> 20;
///             let next = (megabyte + 1) << 20;
///             if visit(Extent { length: next - offset, status: megabyte & 1 }).is_break() {
///                 break;
///             }
///             offset = next;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Contexts: Send + Sync {
    /// The contexts that there are now, with 32 or 64 bits of status. They may come and go; a client that chose one
    /// which is gone gets the error of [`status`](Self::status).
    fn list(&self) -> Vec<ContextInfo>;

    /// A context for a query that names none of the list: for contexts with parameters in their names. It answers this
    /// query, by being [named so](ContextInfo::name) or by [saying so](ContextInfo::answering). Once a client has
    /// selected it, its [status](Self::status) is asked for by its name. Called on the connection's own thread or task,
    /// so it must not block.
    fn find(&self, query: &str) -> Option<ContextInfo> {
        let _ = query;
        None
    }

    /// Reports runs of one status in the context of that name, from `offset` on, without a gap, until `length` bytes
    /// are covered or the visitor breaks off. The last run may reach further. Reporting less is fine as long as it is
    /// something. Runs need not be aligned, nor `offset` after one that was not.
    ///
    /// # Errors
    /// The client gets it as the reply, whatever runs were reported before.
    fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()>;

    /// The status of a block that has parts of both: blocks are as large as the minimum block size, and 512 bytes at
    /// least, and clients get whole ones only. The default has the bits of either, which suits marks such as "dirty".
    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        let _ = context;
        one | other
    }
}

/// The error of a [status](Contexts::status) in a context that is not there, or no longer.
#[must_use]
pub fn no_such_context() -> ExportError {
    ExportError::new(ErrorCode::EINVAL, "the metadata context is not there any more")
}
