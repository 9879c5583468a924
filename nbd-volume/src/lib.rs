//! Volumes on object storage: disks of an NBD server that outlive the machine, kept by
//! [SlateDB](https://slatedb.io) in S3, Google Cloud Storage, Azure Blob Storage or a local directory.
//!
//! A [`Volume`] is an [`AsyncExport`](nbd_engine::export::AsyncExport) over one SlateDB database. SlateDB brings the
//! write-ahead log, compaction, garbage collection, checkpoints, clones, and the fencing of an earlier writer; this
//! crate brings what makes a disk of that: sparse blocks, writes of any length and offset, flushes, and errors that
//! clients understand.
//!
//! # What is promised
//!
//! - A reply to a write says that the data is visible to every client, not that it is durable. A reply to a flush says
//!   that everything answered before it, on any connection, is in the object store. A crash at any moment leaves a
//!   prefix of the writes that contains all that was flushed. A write is atomic by block of the volume.
//! - Data that is not in the object store yet takes a bounded amount of memory
//!   ([`Options::max_unflushed`]): a slow store slows clients down.
//! - While the store can't be reached requests wait, and SlateDB tries again. What waits for longer than
//!   [`Options::patience`] fails with `EIO` and the store's last error; the volume goes on when the store is back.
//! - One writer. Opening a volume fences the server that had it open: that one fails flushes at once, and every request
//!   at the latest when its [lease](Options::lease) is over, with `ESHUTDOWN`. A new writer that follows one that
//!   did not close the volume waits for that long before it serves. With [`Options::exclusive`] opening fails instead
//!   if the other server is alive.
//!
//! An [`Object`] is something else: an object of a store, or a file of a web server, that is a disk as it is, for
//! reading.
//!
//! # Example
//!
//! ```no_run
//! use nbd_volume::{Location, NewVolume, Options, Volume, create};
//!
//! # async fn example() -> Result<(), nbd_volume::Error> {
//! let location = Location::parse("s3://bucket/volumes/mail")?;
//! create(&location, &NewVolume::of_size(10 << 30)).await?;
//! let volume = Volume::open(&location, &Options::default()).await?;
//! // Serve it: nbd_engine::export::ExportEntry::new("mail", volume.clone()).
//! volume.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! [The guide](crate::guide) goes on: serving a volume beside other exports, objects as disks, options, snapshots and
//! clones, what a program does with each error, other runtimes than tokio. An event loop of your own can be built on
//! [`nbd_engine::proto`].
//!
//! # Runtimes
//!
//! What waits for a store needs tokio. Futures of this crate have to be awaited in a tokio runtime with time and I/O
//! enabled, and panic elsewhere, except for two kinds that any executor can drive: those of the requests of an open
//! [`Volume`] or [`Object`], and [`Volume::until_lost`]. The runtime in which a volume or an object was opened has to
//! last as long: once it is shut down, requests fail with `EIO`.

#![cfg_attr(docsrs, feature(doc_cfg))]
// Rustdoc has a section for each Result that is public.
#![warn(clippy::missing_errors_doc)]

mod ahead;
mod allocator;
mod blocks;
mod cache;
mod commits;
mod database;
mod disk_cache;
mod encryption;
mod error;
mod exclusive;
mod export;
mod extents;
mod fences;
mod folder;
mod http;
mod key;
mod layout;
mod lease;
mod location;
mod locks;
mod manage;
mod manifest;
mod names;
mod object;
mod object_cache;
mod options;
mod outage;
mod patience;
mod pieces;
mod reads;
mod records;
mod replies;
mod room;
mod settings;
mod shared;
mod store;
mod streams;
mod uploads;
mod url;
mod volume;
mod wal;
mod watch;

pub use allocator::reuse_large_buffers;
pub use disk_cache::DiskCache;
pub use error::Error;
pub use key::Key;
pub use location::Location;
pub use manage::{
    Damage, Info, NewVolume, Report, Snapshot, Writer, check, clone, create, delete,
    delete_snapshot, info, inspect, list, resize, snapshot,
};
pub use object::{Object, ObjectOptions};
pub use options::Options;
pub use store::Traffic;
pub use volume::Volume;

/// A guide: volumes and objects in a program, from the first one to each error. It has no items.
pub mod guide {
    #![doc = include_str!("../doc/guide.md")]
}
