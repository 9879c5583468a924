//! Exports whose work is a future: remote storage, other protocols, anything that waits without a thread.

use core::pin::Pin;

use super::{Allocation, BlockSize, ContextInfo, Extent, Fua, Result, ZeroMode};

/// What the methods of an [`AsyncExport`] give: a future in a box, so that exports of many kinds can be served side by
/// side. `Box::pin(async move { ... })` makes one.
pub type ExportFuture<'a, T = ()> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// The asynchronous twin of [`Export`](super::Export): the same verbs, the same defaults, the same rules.
///
/// Futures of one connection run side by side, on the connection's own task, so they must not block. A future is
/// dropped where it stands when its connection ends; a write may then be half done, as after a power cut before its
/// reply.
///
/// ```
/// use nbd_engine::export::{AsyncExport, ExportFuture};
///
/// /// A disk of zeroes that takes its time.
/// struct Slow;
///
/// impl AsyncExport for Slow {
///     fn size(&self) -> u64 {
///         1 << 20
///     }
///     fn read<'a>(&'a self, buffer: &'a mut [u8], _offset: u64) -> ExportFuture<'a> {
///         Box::pin(async move {
///             std::future::ready(()).await; // Something that takes time goes here.
///             buffer.fill(0);
///             Ok(())
///         })
///     }
/// }
/// ```
pub trait AsyncExport: Send + Sync + 'static {
    /// See [`Export::size`](super::Export::size).
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes at `offset`.
    fn read<'a>(&'a self, buffer: &'a mut [u8], offset: u64) -> ExportFuture<'a>;

    /// See [`Export::block_size`](super::Export::block_size).
    fn block_size(&self) -> BlockSize {
        BlockSize::DEFAULT
    }

    /// See [`Export::block_size_required`](super::Export::block_size_required).
    fn block_size_required(&self) -> bool {
        false
    }

    /// See [`Export::description`](super::Export::description).
    fn description(&self) -> Option<String> {
        None
    }

    /// See [`Export::rotational`](super::Export::rotational).
    fn rotational(&self) -> bool {
        false
    }

    /// See [`Export::multi_conn`](super::Export::multi_conn).
    fn multi_conn(&self) -> bool {
        true
    }

    /// The ability to write; an export without it is read-only.
    fn writes(&self) -> Option<&dyn AsyncWrites> {
        None
    }

    /// The ability to make written data durable.
    fn flushes(&self) -> Option<&dyn AsyncFlushes> {
        None
    }

    /// The ability to drop data.
    fn trims(&self) -> Option<&dyn AsyncTrims> {
        None
    }

    /// The ability to write zeroes without sending them.
    fn writes_zeroes(&self) -> Option<&dyn AsyncWritesZeroes> {
        None
    }

    /// The ability to prepare for reads.
    fn caches(&self) -> Option<&dyn AsyncCaches> {
        None
    }

    /// The ability to tell holes from data, for `base:allocation`.
    fn extents(&self) -> Option<&dyn AsyncExtents> {
        None
    }

    /// The ability to tell the status of blocks in metadata contexts of its own.
    fn contexts(&self) -> Option<&dyn AsyncContexts> {
        None
    }

    /// The ability to change the size. Clients are offered it as far as the server's settings allow.
    fn resizes(&self) -> Option<&dyn AsyncResizes> {
        None
    }
}

/// See [`Writes`](super::Writes).
pub trait AsyncWrites: Send + Sync {
    /// Writes `data` at `offset`.
    fn write<'a>(&'a self, data: &'a [u8], offset: u64, fua: bool) -> ExportFuture<'a>;

    /// How force unit access is done, for all methods that write.
    fn fua(&self) -> Fua {
        Fua::Emulated
    }
}

/// See [`Flushes`](super::Flushes).
pub trait AsyncFlushes: Send + Sync {
    /// Makes durable whatever was written before this was called.
    fn flush(&self) -> ExportFuture<'_>;
}

/// See [`Trims`](super::Trims).
pub trait AsyncTrims: Send + Sync {
    /// Drops the range or any part of it.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> ExportFuture<'_>;
}

/// See [`WritesZeroes`](super::WritesZeroes).
pub trait AsyncWritesZeroes: Send + Sync {
    /// Makes the range read as zeroes.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> ExportFuture<'_>;
}

/// See [`Caches`](super::Caches).
pub trait AsyncCaches: Send + Sync {
    /// Prepares for reads of the range.
    fn cache(&self, offset: u64, length: u64) -> ExportFuture<'_>;
}

/// See [`Extents`](super::Extents).
pub trait AsyncExtents: Send + Sync {
    /// Tells the runs of the range, from `offset` on and without a gap; at least one, at most `most`.
    fn extents(&self, offset: u64, length: u64, most: usize) -> ExportFuture<'_, Vec<Allocation>>;
}

/// See [`Contexts`](super::Contexts).
pub trait AsyncContexts: Send + Sync {
    /// See [`Contexts::list`](super::Contexts::list).
    fn list(&self) -> Vec<ContextInfo>;

    /// See [`Contexts::find`](super::Contexts::find).
    fn find(&self, query: &str) -> Option<ContextInfo> {
        let _ = query;
        None
    }

    /// Tells the runs of the range in the context of that name, from `offset` on and without a gap; at least one, at
    /// most `most`.
    fn status<'a>(
        &'a self,
        context: &'a str,
        offset: u64,
        length: u64,
        most: usize,
    ) -> ExportFuture<'a, Vec<Extent>>;

    /// See [`Contexts::join`](super::Contexts::join).
    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        let _ = context;
        one | other
    }
}

/// See [`Resizes`](super::Resizes).
pub trait AsyncResizes: Send + Sync {
    /// Makes [`AsyncExport::size`] be `size`.
    fn resize(&self, size: u64) -> ExportFuture<'_>;
}
