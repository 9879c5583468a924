//! Volumes and objects over stores in memory, in virtual time: what they hold, whatever the store does. Objects also by
//! HTTP.

mod crashes;
mod damage;
mod disk;
mod disk_cache;
mod encryption;
mod faulty;
mod folder;
mod log;
mod management;
mod memory;
mod model;
mod names;
mod objects;
mod outages;
mod requests;
mod sequences;
mod snapshots;
mod writers;

use core::future::Future;
use core::time::Duration;

use nbd_support::counting::Counting;
use nbd_volume::Options;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a test in virtual time, which passes as soon as everything waits.
fn in_virtual_time<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(test)
}

/// Options with small caches, so that blocks are read from the database.
fn options() -> Options {
    let mut options = Options::default();
    options.max_unflushed = 8 << 20;
    options.cache = 64 << 10;
    options.object_cache = 1 << 20;
    options.patience = Duration::from_secs(60);
    options
}
