//! Exports that may block.

use core::time::Duration;
use std::time::Instant;

use nbd_proto::Command;

use super::{
    Admit, BlockSize, Body, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite,
    CanWriteZeroes, ClientInfo, CloseReason, Contexts, Result,
};

/// A disk that may block while it works: a file, a block device, memory, or anything of your own.
/// [`AsyncExport`](super::AsyncExport) is its counterpart for work that is a future.
///
/// All methods take `&self` and may be called from many threads at once, for one connection or for several. Offsets and
/// lengths are in bytes, and the core has checked them: they lie inside of the export, are aligned to its minimum block
/// size and not zero, and nothing writes to an export that can't be written. An export whose size can shrink has to
/// check the range again, since requests may come at the same time.
///
/// Only the size and reading are required. Each other ability is a small trait of its own: implement it, return
/// `Some(self)` from the method that is named after it, and clients are offered it. So what is advertised and what is
/// implemented can't disagree.
///
/// A method that fails gives an [`ExportError`](super::ExportError), whose code and text reach the client. One that
/// panics fails its request with `EIO`; the connection and the server go on, so that the export should be as sound
/// after a panic as after an error. When a connection ends while one of its requests is carried out, the method runs to
/// its end.
///
/// ```
/// use nbd_engine::export::{CanFlush, CanWrite, Export, Result};
/// use std::sync::RwLock;
///
/// struct Disk(RwLock<Vec<u8>>);
///
/// impl Export for Disk {
///     fn size(&self) -> u64 {
///         self.0.read().unwrap().len() as u64
///     }
///     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
///         let offset = offset as usize;
///         buffer.copy_from_slice(&self.0.read().unwrap()[offset..offset + buffer.len()]);
///         Ok(())
///     }
///     fn never_blocks(&self) -> bool {
///         true
///     }
///     fn can_write(&self) -> Option<&dyn CanWrite> {
///         Some(self)
///     }
/// }
///
/// impl CanWrite for Disk {
///     fn write(&self, data: &[u8], offset: u64, _fua: bool) -> Result<()> {
///         let offset = offset as usize;
///         self.0.write().unwrap()[offset..offset + data.len()].copy_from_slice(data);
///         Ok(())
///     }
/// }
/// ```
pub trait Export: Send + Sync + 'static {
    /// The size in bytes; what lies above 2^63 - 1 is not served. It may change, by [`CanResize`] or otherwise; every
    /// connection asks for it before it looks at new requests, so this must be quick. A request may have been checked
    /// against an earlier size. It should be a multiple of the minimum [`block_size`](Self::block_size): it is announced as it
    /// is, and clients can't ask for the rest of a block, which some take for a fault.
    fn size(&self) -> u64;

    /// Called before the size is reported to a client that enters the export or asks about it: the moment to look
    /// whether the medium has another size by now. It is called on the connection's own thread or task, so that it must
    /// not block. The default does nothing, which is right for exports that know their size at any time.
    fn refresh(&self) {}

    /// Fills `buffer`, of at most the maximum payload, with the bytes at `offset`. What stands in it before is
    /// arbitrary.
    ///
    /// # Errors
    /// The client gets it as the reply; the buffer is dropped.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Whether every method returns at once, so that the connection's own thread or task can call it. When `false`,
    /// the default, calls are made on worker threads, and a slow one holds up no other request.
    fn never_blocks(&self) -> bool {
        false
    }

    /// Reads `length` bytes into a reply body: the same as [`read`](Self::read), for exports that have holes or bytes
    /// to share, or that heed the read's [flags](Body::flags). A body of another length fails the request with `EIO`.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        self.read(body.fill(length)?, offset)
    }

    /// Reads if that can be done at once; `None` if it might block, with nothing done. It is called on the
    /// connection's own thread or task before a worker is asked.
    fn try_read(&self, body: &mut Body, length: usize, offset: u64) -> Option<Result<()>> {
        self.never_blocks().then(|| self.read_body(body, length, offset))
    }

    /// Size constraints. The default is no constraint: [`BlockSize::DEFAULT`]. Asked for each time that a client asks
    /// about the export or enters it, and binding for that client from then on.
    fn block_size(&self) -> BlockSize {
        BlockSize::DEFAULT
    }

    /// Whether clients that don't ask for the size constraints are refused, unless the minimum is one byte. Default
    /// `false`.
    fn block_size_required(&self) -> bool {
        false
    }

    /// A text for people who list the exports. Clients get no description without one, nor one of more than 4096 bytes
    /// or with a NUL. The default is `None`.
    fn description(&self) -> Option<String> {
        None
    }

    /// Whether the medium rotates, so that clients order their requests for it. Default `false`.
    fn rotational(&self) -> bool {
        false
    }

    /// Whether a flush on one connection covers what all of them wrote, and each sees at once what another wrote. True
    /// by default, since all connections share this one object; an export that keeps a cache a connection says no. Where
    /// each connection is given an object of its own, its entry says so by
    /// [`without_multi_conn`](super::ExportEntry::without_multi_conn).
    fn multi_conn(&self) -> bool {
        true
    }

    /// A client enters the export: its first request comes after this. Clients that only ask about the export, as some
    /// do before they enter, are not reported. Called on the connection's own thread or task, so it must not block; a
    /// panic is ignored.
    ///
    /// An export that keeps a state for each client may keep it by [`ClientInfo::connection`], or be made anew for each
    /// client by [`Exports::find`](super::Exports::find).
    fn client_entered(&self, client: &ClientInfo) {
        let _ = client;
    }

    /// A client that entered has left. Called exactly once for each [`client_entered`](Self::client_entered), however
    /// the connection ends, after the last of its requests has ended: on the connection's own thread or task, or on the
    /// worker thread that carried out that request, so it must not block. A panic is ignored.
    fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        let _ = (client, reason);
    }

    /// Whether [`admit`](Self::admit), [`pace`](Self::pace), [`begun`](Self::begun) and [`finished`](Self::finished) do
    /// anything. Asked once for each client, when it enters.
    fn admits(&self) -> bool {
        false
    }

    /// A request has arrived. See [`Layer::admit`](super::Layer::admit), which is where to implement it.
    fn admit(&self, client: &ClientInfo, command: &Command) -> Admit {
        let _ = (client, command);
        Admit::NOW
    }

    /// How long a request waits for its share of a rate. See [`Layer::pace`](super::Layer::pace).
    fn pace(&self, client: &ClientInfo, command: &Command, now: Instant) -> Duration {
        let _ = (client, command, now);
        Duration::ZERO
    }

    /// A request is carried out now. See [`Layer::begun`](super::Layer::begun).
    fn begun(&self, client: &ClientInfo, command: &Command, now: Instant) {
        let _ = (client, command, now);
    }

    /// A request has been carried out. See [`Layer::finished`](super::Layer::finished).
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
    fn can_write(&self) -> Option<&dyn CanWrite> {
        None
    }

    /// The ability to make written data durable.
    fn can_flush(&self) -> Option<&dyn CanFlush> {
        None
    }

    /// The ability to drop data.
    fn can_trim(&self) -> Option<&dyn CanTrim> {
        None
    }

    /// The ability to write zeroes without sending them.
    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        None
    }

    /// The ability to prepare for reads.
    fn can_cache(&self) -> Option<&dyn CanCache> {
        None
    }

    /// The ability to report holes, for `base:allocation`.
    fn can_extents(&self) -> Option<&dyn CanExtents> {
        None
    }

    /// The ability to report the status of blocks in metadata contexts of its own.
    fn contexts(&self) -> Option<&dyn Contexts> {
        None
    }

    /// The ability to change the size. Clients are offered it as far as the server's settings allow.
    fn can_resize(&self) -> Option<&dyn CanResize> {
        None
    }
}
