//! Exports that consist of another one.

use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use nbd_proto::Command;

use super::{
    Admit, BlockSize, Body, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite,
    CanWriteZeroes, ClientInfo, CloseReason, Contexts, Export, Result,
};

/// Methods of [`Export`] that do what those of the inner export do: `forward!(self, self.inner; size read ...)`. Those
/// that neither read nor change data are the same for an [`AsyncExport`](super::AsyncExport).
macro_rules! forward {
    ($self:ident, $inner:expr; $($method:ident)*) => {
        $( forward! { @$method $self, $inner } )*
    };
    (@size $self:ident, $inner:expr) => {
        fn size(&$self) -> u64 { $inner.size() }
    };
    (@refresh $self:ident, $inner:expr) => {
        fn refresh(&$self) { $inner.refresh(); }
    };
    (@read $self:ident, $inner:expr) => {
        fn read(&$self, buffer: &mut [u8], offset: u64) -> Result<()> {
            $inner.read(buffer, offset)
        }
    };
    (@never_blocks $self:ident, $inner:expr) => {
        fn never_blocks(&$self) -> bool { $inner.never_blocks() }
    };
    (@read_body $self:ident, $inner:expr) => {
        fn read_body(&$self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
            $inner.read_body(body, length, offset)
        }
    };
    (@try_read $self:ident, $inner:expr) => {
        fn try_read(&$self, body: &mut Body, length: usize, offset: u64) -> Option<Result<()>> {
            $inner.try_read(body, length, offset)
        }
    };
    (@block_size $self:ident, $inner:expr) => {
        fn block_size(&$self) -> BlockSize { $inner.block_size() }
    };
    (@block_size_required $self:ident, $inner:expr) => {
        fn block_size_required(&$self) -> bool { $inner.block_size_required() }
    };
    (@description $self:ident, $inner:expr) => {
        fn description(&$self) -> Option<String> { $inner.description() }
    };
    (@rotational $self:ident, $inner:expr) => {
        fn rotational(&$self) -> bool { $inner.rotational() }
    };
    (@multi_conn $self:ident, $inner:expr) => {
        fn multi_conn(&$self) -> bool { $inner.multi_conn() }
    };
    (@client_entered $self:ident, $inner:expr) => {
        fn client_entered(&$self, client: &ClientInfo) { $inner.client_entered(client); }
    };
    (@client_left $self:ident, $inner:expr) => {
        fn client_left(&$self, client: &ClientInfo, reason: &CloseReason) {
            $inner.client_left(client, reason);
        }
    };
    (@admission $self:ident, $inner:expr) => {
        fn admits(&$self) -> bool { $inner.admits() }
        fn admit(&$self, client: &ClientInfo, command: &Command) -> Admit {
            $inner.admit(client, command)
        }
        fn pace(&$self, client: &ClientInfo, command: &Command, now: Instant) -> Duration {
            $inner.pace(client, command, now)
        }
        fn begun(&$self, client: &ClientInfo, command: &Command, now: Instant) {
            $inner.begun(client, command, now);
        }
        fn finished(
            &$self, client: &ClientInfo, command: &Command, result: &Result<()>, took: Duration,
        ) {
            $inner.finished(client, command, result, took);
        }
    };
    (@can_write $self:ident, $inner:expr) => {
        fn can_write(&$self) -> Option<&dyn CanWrite> { $inner.can_write() }
    };
    (@can_flush $self:ident, $inner:expr) => {
        fn can_flush(&$self) -> Option<&dyn CanFlush> { $inner.can_flush() }
    };
    (@can_trim $self:ident, $inner:expr) => {
        fn can_trim(&$self) -> Option<&dyn CanTrim> { $inner.can_trim() }
    };
    (@can_write_zeroes $self:ident, $inner:expr) => {
        fn can_write_zeroes(&$self) -> Option<&dyn CanWriteZeroes> { $inner.can_write_zeroes() }
    };
    (@can_cache $self:ident, $inner:expr) => {
        fn can_cache(&$self) -> Option<&dyn CanCache> { $inner.can_cache() }
    };
    (@can_extents $self:ident, $inner:expr) => {
        fn can_extents(&$self) -> Option<&dyn CanExtents> { $inner.can_extents() }
    };
    (@contexts $self:ident, $inner:expr) => {
        fn contexts(&$self) -> Option<&dyn Contexts> { $inner.contexts() }
    };
    (@can_resize $self:ident, $inner:expr) => {
        fn can_resize(&$self) -> Option<&dyn CanResize> { $inner.can_resize() }
    };
}
pub(super) use forward;

/// An export in a box is an export, so that wrappers can be put around each other as a configuration says.
impl<E: Export + ?Sized> Export for Box<E> {
    forward! { self, (**self);
        size refresh read never_blocks read_body try_read block_size block_size_required description rotational multi_conn
        client_entered client_left admission
        can_write can_flush can_trim can_write_zeroes can_cache can_extents contexts can_resize
    }
}

/// An export that is shared is an export, so that one disk can be served in several ways.
impl<E: Export + ?Sized> Export for Arc<E> {
    forward! { self, (**self);
        size refresh read never_blocks read_body try_read block_size block_size_required description rotational multi_conn
        client_entered client_left admission
        can_write can_flush can_trim can_write_zeroes can_cache can_extents contexts can_resize
    }
}
