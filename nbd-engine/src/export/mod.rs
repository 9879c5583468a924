//! What is served: the traits that an export implements, and the exports that come with the engine.

mod abilities;
mod any;
mod asynchronous;
mod blocking;
mod body;
mod bounds;
mod client;
mod contexts;
mod depth;
mod entry;
mod error;
mod exports;
#[cfg(target_os = "linux")]
mod file;
mod forward;
mod layer;
mod map;
mod memory;
#[cfg(test)]
mod model;
mod pool;
mod ranges;
mod read_only;
mod tracked;
mod with_block_size;

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
pub use entry::{ExportEntry, InvalidName, ListedExport};
pub use error::{ExportError, Result};
pub(crate) use exports::DynExports;
pub use exports::{Exports, Lookup, Purpose, Refusal};
#[cfg(target_os = "linux")]
pub use file::{File, FileHoles, FileOptions, Missing, OpenError, check_writable, is_device_path};
pub use layer::Layered;
pub use map::ExportMap;
pub use memory::{Memory, Page, TooLarge};
pub(crate) use pool::{Pool, allocate};
pub use read_only::{NoWriting, ReadOnly};
pub use tracked::{BitmapError, Tracked, Tracker, Tracking};
pub use with_block_size::{Constraints, WithBlockSize};

pub use nbd_proto::wire::{AllocationFlags, ErrorCode};
pub use nbd_proto::{BlockSize, ContextInfo, Extent};
