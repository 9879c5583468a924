//! Exports whose work is a future: remote storage, other protocols, anything that waits without a thread.

use core::ops::ControlFlow;
use core::pin::Pin;
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use nbd_proto::Command;

use super::any::Facts;
use super::forward::forward;
use super::{
    Admit, Allocation, BlockSize, Body, ClientInfo, CloseReason, ContextInfo, Extent, Fua, Result,
    ZeroMode,
};
use crate::server::{Mailbox, serve_requests};

/// The asynchronous counterpart of [`Export`](super::Export): the same methods, defaults and rules, written as
/// `async fn`. One method is missing: there is no [`refresh`](super::Export::refresh), so that [`size`](Self::size) has to
/// know the size at any time.
///
/// The futures of one connection run side by side, on the connection's own task, so they must not block. They have to
/// be cancel-safe: a future is dropped at the point that it has reached when its connection ends, and a write may then
/// be half done, as after a power cut before its reply. One that panics fails its request with `EIO`; the connection
/// goes on. The engine reuses the memory of the futures: a request allocates nothing unless the export does.
///
/// Wrappers such as [`ReadOnly`](super::ReadOnly) and [`Tracked`](super::Tracked) take exports of either kind.
///
/// ```
/// use nbd_engine::export::{AsyncCanWrite, AsyncExport, Result};
/// use std::sync::Mutex;
///
/// /// A disk that takes its time.
/// struct Slow(Mutex<Vec<u8>>);
///
/// impl AsyncExport for Slow {
///     fn size(&self) -> u64 {
///         1 << 20
///     }
///     async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
///         std::future::ready(()).await; // Something that takes time goes here.
///         let offset = offset as usize;
///         buffer.copy_from_slice(&self.0.lock().unwrap()[offset..offset + buffer.len()]);
///         Ok(())
///     }
///     fn can_write(&self) -> Option<impl AsyncCanWrite> {
///         Some(self)
///     }
/// }
///
/// impl AsyncCanWrite for Slow {
///     async fn write(&self, data: &[u8], offset: u64, _fua: bool) -> Result<()> {
///         std::future::ready(()).await;
///         let offset = offset as usize;
///         self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
///         Ok(())
///     }
/// }
/// ```
pub trait AsyncExport: Send + Sync + 'static {
    /// See [`Export::size`](super::Export::size).
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes at `offset`. See [`Export::read`](super::Export::read).
    ///
    /// # Errors
    /// The client gets it as the reply.
    fn read(&self, buffer: &mut [u8], offset: u64) -> impl Future<Output = Result<()>> + Send;

    /// Reads into a reply body: the same as [`read`](Self::read), for exports that have holes or bytes to share. A body
    /// of another length fails the request with `EIO`.
    ///
    /// # Errors
    /// The client gets it as the reply.
    fn read_body(
        &self,
        body: &mut Body,
        length: usize,
        offset: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        async move { self.read(body.fill(length)?, offset).await }
    }

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

    /// See [`Export::client_entered`](super::Export::client_entered).
    fn client_entered(&self, client: &ClientInfo) {
        let _ = client;
    }

    /// See [`Export::client_left`](super::Export::client_left), and
    /// [`ExportEntry::on_close`](super::ExportEntry::on_close) for how to clean up what takes a future.
    fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        let _ = (client, reason);
    }

    /// See [`Export::admits`](super::Export::admits).
    fn admits(&self) -> bool {
        false
    }

    /// See [`Layer::admit`](super::Layer::admit).
    fn admit(&self, client: &ClientInfo, command: &Command) -> Admit {
        let _ = (client, command);
        Admit::NOW
    }

    /// See [`Layer::pace`](super::Layer::pace).
    fn pace(&self, client: &ClientInfo, command: &Command, now: Instant) -> Duration {
        let _ = (client, command, now);
        Duration::ZERO
    }

    /// See [`Layer::begun`](super::Layer::begun).
    fn begun(&self, client: &ClientInfo, command: &Command, now: Instant) {
        let _ = (client, command, now);
    }

    /// See [`Layer::finished`](super::Layer::finished).
    fn finished(
        &self,
        client: &ClientInfo,
        command: &Command,
        result: &Result<()>,
        took: Duration,
    ) {
        let _ = (client, command, result, took);
    }

    /// The ability to write; an export without it is read-only.
    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        None::<Unable>
    }

    /// The ability to make written data durable.
    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        None::<Unable>
    }

    /// The ability to drop data.
    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        None::<Unable>
    }

    /// The ability to write zeroes without sending them.
    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        None::<Unable>
    }

    /// The ability to prepare for reads.
    fn can_cache(&self) -> Option<impl AsyncCanCache> {
        None::<Unable>
    }

    /// The ability to report holes, for `base:allocation`.
    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        None::<Unable>
    }

    /// The ability to report the status of blocks in metadata contexts of its own.
    fn contexts(&self) -> Option<impl AsyncContexts> {
        None::<Unable>
    }

    /// The ability to change the size. Clients are offered it unless
    /// [`ServerConfig::with_resize`](crate::server::ServerConfig::with_resize) says no.
    fn can_resize(&self) -> Option<impl AsyncCanResize> {
        None::<Unable>
    }
}

/// See [`CanWrite`](super::CanWrite).
pub trait AsyncCanWrite: Send + Sync {
    /// Writes `data` at `offset`. `fua` is set with [`Fua::Native`] alone, and then the data is durable before this is
    /// ready; otherwise the engine flushes afterwards. A write whose future is dropped may be done in part.
    ///
    /// # Errors
    /// The client gets it as the reply, and takes the range for written in part.
    fn write(&self, data: &[u8], offset: u64, fua: bool)
    -> impl Future<Output = Result<()>> + Send;

    /// How force unit access is done, for all methods that write. The default is [`Fua::Emulated`]: they never
    /// see the flag, and the engine flushes afterwards.
    fn fua(&self) -> Fua {
        Fua::Emulated
    }
}

/// See [`CanFlush`](super::CanFlush).
pub trait AsyncCanFlush: Send + Sync {
    /// Makes durable whatever was written before this was called.
    ///
    /// # Errors
    /// The client gets it as the reply: anything written since the last good flush may be lost.
    fn flush(&self) -> impl Future<Output = Result<()>> + Send;
}

/// See [`CanTrim`](super::CanTrim), also for [long commands](super::CanTrim#long-commands).
pub trait AsyncCanTrim: Send + Sync {
    /// Drops the range or any part of it.
    ///
    /// # Errors
    /// The client gets it as the reply.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> impl Future<Output = Result<()>> + Send;
}

/// See [`CanWriteZeroes`](super::CanWriteZeroes), and [long commands](super::CanTrim#long-commands).
pub trait AsyncCanWriteZeroes: Send + Sync {
    /// Makes the range read as zeroes.
    ///
    /// # Errors
    /// The client gets it as the reply: [`not_fast`](super::ExportError::not_fast) for a fast zero that would be slow.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        mode: ZeroMode,
    ) -> impl Future<Output = Result<()>> + Send;

    /// See [`CanWriteZeroes::can_fast_zero`](super::CanWriteZeroes::can_fast_zero).
    fn can_fast_zero(&self) -> bool {
        true
    }
}

/// See [`CanCache`](super::CanCache), and [long commands](super::CanTrim#long-commands).
pub trait AsyncCanCache: Send + Sync {
    /// Prepares for reads of the range.
    ///
    /// # Errors
    /// The client gets it as the reply.
    fn cache(&self, offset: u64, length: u64) -> impl Future<Output = Result<()>> + Send;
}

/// What an asynchronous export reports runs to, one after the other, until it breaks off.
pub type Visitor<'a, T> = dyn FnMut(T) -> ControlFlow<()> + Send + 'a;

/// See [`CanExtents`](super::CanExtents).
///
/// ```
/// use nbd_engine::export::{Allocation, AsyncCanExtents, Result, Visitor};
///
/// /// A disk with data in every other megabyte.
/// struct Sparse;
///
/// impl AsyncCanExtents for Sparse {
///     async fn extents(
///         &self,
///         mut offset: u64,
///         length: u64,
///         visit: &mut Visitor<'_, Allocation>,
///     ) -> Result<()> {
///         let end = offset + length;
///         while offset < end {
///             let next = (offset | 0xf_ffff) + 1;
///             let hole = (offset >> 20) % 2 == 1;
///             if visit(Allocation { length: next - offset, hole, zero: hole }).is_break() {
///                 break;
///             }
///             offset = next;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait AsyncCanExtents: Send + Sync {
    /// Reports runs from `offset` on, without a gap, until `length` bytes are covered or the visitor breaks off.
    ///
    /// # Errors
    /// The client gets it as the reply, whatever runs were reported before.
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> impl Future<Output = Result<()>> + Send;
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

    /// Reports runs of one status in the context of that name, from `offset` on, without a gap, until `length` bytes
    /// are covered or the visitor breaks off.
    ///
    /// # Errors
    /// The client gets it as the reply, whatever runs were reported before.
    fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Extent>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// See [`Contexts::join`](super::Contexts::join).
    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        let _ = context;
        one | other
    }
}

/// See [`CanResize`](super::CanResize).
pub trait AsyncCanResize: Send + Sync {
    /// Makes [`AsyncExport::size`] be `size` bytes.
    ///
    /// # Errors
    /// `ENOSPC` where there is no space for that many. The size stays as it was, whatever the error.
    fn resize(&self, size: u64) -> impl Future<Output = Result<()>> + Send;
}

/// The type of an ability that an export does not have: there is no value of it.
enum Unable {}

/// Abilities by reference, so that an export returns `Some(self)`; and the abilities of [`Unable`].
macro_rules! abilities {
    ($(
        $trait:ident {
            $( async fn $work:ident($($argument:ident: $type:ty),*); )*
            $( fn $fact:ident($($fact_argument:ident: $fact_type:ty),*) -> $fact_result:ty; )*
        }
    )*) => { $(
        impl<T: $trait + ?Sized> $trait for &T {
            $( fn $work(&self, $($argument: $type),*) -> impl Future<Output = Result<()>> + Send {
                (**self).$work($($argument),*)
            } )*
            $( fn $fact(&self, $($fact_argument: $fact_type),*) -> $fact_result {
                (**self).$fact($($fact_argument),*)
            } )*
        }

        impl $trait for Unable {
            $( async fn $work(&self, $(_: $type),*) -> Result<()> { match *self {} } )*
            $( fn $fact(&self, $(_: $fact_type),*) -> $fact_result { match *self {} } )*
        }
    )* };
}

abilities! {
    AsyncCanWrite {
        async fn write(data: &[u8], offset: u64, fua: bool);
        fn fua() -> Fua;
    }
    AsyncCanFlush { async fn flush(); }
    AsyncCanTrim { async fn trim(offset: u64, length: u64, fua: bool); }
    AsyncCanWriteZeroes {
        async fn write_zeroes(offset: u64, length: u64, mode: ZeroMode);
        fn can_fast_zero() -> bool;
    }
    AsyncCanCache { async fn cache(offset: u64, length: u64); }
    AsyncCanExtents {
        async fn extents(offset: u64, length: u64, visit: &mut Visitor<'_, Allocation>);
    }
    AsyncContexts {
        async fn status(context: &str, offset: u64, length: u64, visit: &mut Visitor<'_, Extent>);
        fn list() -> Vec<ContextInfo>;
        fn find(query: &str) -> Option<ContextInfo>;
        fn join(context: &str, one: u64, other: u64) -> u64;
    }
    AsyncCanResize { async fn resize(size: u64); }
}

/// An export that is shared is an export, so that one disk can be served in several ways.
impl<E: AsyncExport> AsyncExport for Arc<E> {
    forward! { self, (**self);
        size block_size block_size_required description rotational multi_conn
        client_entered client_left admission
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> impl Future<Output = Result<()>> + Send {
        (**self).read(buffer, offset)
    }

    fn read_body(
        &self,
        body: &mut Body,
        length: usize,
        offset: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        (**self).read_body(body, length, offset)
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        (**self).can_write()
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        (**self).can_flush()
    }

    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        (**self).can_trim()
    }

    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        (**self).can_write_zeroes()
    }

    fn can_cache(&self) -> Option<impl AsyncCanCache> {
        (**self).can_cache()
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        (**self).can_extents()
    }

    fn contexts(&self) -> Option<impl AsyncContexts> {
        (**self).contexts()
    }

    fn can_resize(&self) -> Option<impl AsyncCanResize> {
        (**self).can_resize()
    }
}

/// An [`AsyncExport`] behind a pointer.
///
/// A future that serves one request after the other stands in for a future for each request: it is boxed once for each
/// slot of a connection, and carries out everything in place.
pub(crate) trait DynAsyncExport: Send + Sync {
    fn size_now(&self) -> u64;
    fn facts(&self) -> Facts;
    fn find_context(&self, query: &str) -> Option<ContextInfo>;
    fn entered(&self, client: &ClientInfo);
    fn left(&self, client: &ClientInfo, reason: &CloseReason);
    fn wants_admission(&self) -> bool;
    fn admitted(&self, client: &ClientInfo, command: &Command) -> Admit;
    fn paced(&self, client: &ClientInfo, command: &Command, now: Instant) -> Duration;
    fn has_begun(&self, client: &ClientInfo, command: &Command, now: Instant);
    fn has_finished(
        &self,
        client: &ClientInfo,
        command: &Command,
        result: &Result<()>,
        took: Duration,
    );
    /// Carries out the requests that come by the mailbox, one at a time, without end.
    fn serve(self: Arc<Self>, mailbox: Mailbox) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl<E: AsyncExport> DynAsyncExport for E {
    fn size_now(&self) -> u64 {
        self.size()
    }

    fn facts(&self) -> Facts {
        let zeroes = self.can_write_zeroes();
        Facts {
            size: self.size(),
            block_size: self.block_size(),
            block_size_required: self.block_size_required(),
            description: self.description(),
            rotational: self.rotational(),
            multi_conn: self.multi_conn(),
            write: self.can_write().map(|ability| ability.fua()),
            flush: self.can_flush().is_some(),
            trim: self.can_trim().is_some(),
            fast_zero: zeroes.as_ref().is_some_and(|ability| ability.can_fast_zero()),
            write_zeroes: zeroes.is_some(),
            cache: self.can_cache().is_some(),
            extents: self.can_extents().is_some(),
            resize: self.can_resize().is_some(),
            contexts: self.contexts().map(|own| own.list()).unwrap_or_default(),
        }
    }

    fn find_context(&self, query: &str) -> Option<ContextInfo> {
        self.contexts()?.find(query)
    }

    fn entered(&self, client: &ClientInfo) {
        self.client_entered(client);
    }

    fn left(&self, client: &ClientInfo, reason: &CloseReason) {
        self.client_left(client, reason);
    }

    fn wants_admission(&self) -> bool {
        self.admits()
    }

    fn admitted(&self, client: &ClientInfo, command: &Command) -> Admit {
        self.admit(client, command)
    }

    fn paced(&self, client: &ClientInfo, command: &Command, now: Instant) -> Duration {
        self.pace(client, command, now)
    }

    fn has_begun(&self, client: &ClientInfo, command: &Command, now: Instant) {
        self.begun(client, command, now);
    }

    fn has_finished(
        &self,
        client: &ClientInfo,
        command: &Command,
        result: &Result<()>,
        took: Duration,
    ) {
        self.finished(client, command, result, took);
    }

    fn serve(self: Arc<Self>, mailbox: Mailbox) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(serve_requests(self, mailbox))
    }
}
