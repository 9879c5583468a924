//! What is served: the traits that an export implements, and the exports that come with the engine.

mod abilities;
mod any;
#[cfg(target_os = "linux")]
mod aside;
mod asynchronous;
mod blocking;
mod body;
mod bounds;
mod client;
mod contexts;
mod crc32;
mod depth;
#[cfg(target_os = "linux")]
mod directory;
mod entry;
mod error;
mod exports;
#[cfg(target_os = "linux")]
mod file;
mod forward;
mod injection;
mod layer;
mod map;
mod memory;
#[cfg(test)]
mod model;
mod overlay;
mod partition;
mod pool;
mod ranges;
mod rate_limit;
mod read_only;
mod request_log;
mod slice;
mod tracked;
mod with_block_size;
mod withdrawal;

pub use abilities::{
    Allocation, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite, CanWriteZeroes, Fua,
    TakesPages, ZeroMode,
};
pub(crate) use any::Kind;
pub use any::{AnyExport, IntoExport, kind};
pub use asynchronous::{
    AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim, AsyncCanWrite,
    AsyncCanWriteZeroes, AsyncContexts, AsyncExport, Visitor,
};
pub use blocking::Export;
pub use body::{Body, ReadFlags};
pub(crate) use body::{Piece, Shared};
pub use client::{ClientInfo, CloseReason, Peer, PeerAddr, TlsIdentity, UnixPeer};
pub use contexts::{Contexts, no_such_context};
pub use depth::{AllocationDepth, WithAllocationDepth};
#[cfg(target_os = "linux")]
pub use directory::{Directory, FileId};
pub use entry::{ExportEntry, InvalidName, ListedExport};
pub use error::{ExportError, Result};
pub(crate) use exports::DynExports;
pub use exports::{Exports, Lookup, Purpose, Refusal};
#[cfg(target_os = "linux")]
pub use file::{File, FileHoles, FileOptions, Missing, OpenError, check_writable, is_device_path};
pub use injection::{Injected, Injection};
pub use layer::{Admit, Layer, Layered, Source};
pub use map::ExportMap;
pub use memory::{Memory, Page, TooLarge};
pub use overlay::{AsyncStore, InMemory, Overlay, Store, TooManyBlocks};
#[cfg(target_os = "linux")]
pub use overlay::{
    BaseStamp, Committed, InFile, OverlayError, OverlayFile, OverlaySummary, check_overlay,
    commit_overlay, discard_overlay, overlay_summary,
};
pub use partition::{Partition, PartitionError, PartitionKind, PartitionTable, PartitionTableKind};
pub(crate) use pool::{Pool, allocate};
pub use rate_limit::{RateLimit, RateLimited, Rates};
pub use read_only::{NoWriting, ReadOnly};
pub use request_log::{Logged, RequestLog};
pub use slice::{ByteRange, Slice, SliceError};
pub use tracked::{BitmapError, Tracked, Tracker, Tracking};
pub use with_block_size::{Constraints, WithBlockSize};
pub use withdrawal::Withdrawal;

pub use nbd_proto::wire::{AllocationFlags, ErrorCode};
pub use nbd_proto::{BlockSize, ContextInfo, Extent};
