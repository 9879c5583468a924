//! What is known of the durability of a file's data, and how it comes to be known.
//!
//! The kernel reports a failed write-back once for each open file description, marks the lost pages clean, and reports
//! success from then on: there is no way to find out afterwards which writes were lost. A description is shared by all
//! connections of an export. So the first failed sync puts the file into a failed state, in which no sync succeeds any
//! more; and the syncs of a file run one after the other, since of two at the same time one could consume
//! the error and the other report success before the state is known.
//!
//! Those that wait while a sync runs are all answered by the next one, so that this costs little: a sync writes back
//! what all of them wrote.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;

use crate::export::{ExportError, Result};

/// The durability of one open file description.
#[derive(Debug)]
pub(super) struct Durability {
    /// Shared by all exports of the same file: two of them can have the same description, by `dup`.
    shared: Arc<Shared>,
    /// The number of the last sync of this description that succeeded. Written under the lock of `shared`. It says
    /// nothing of other descriptions, to which the kernel reports other errors.
    succeeded: AtomicU64,
    /// What the file is called in the log.
    name: String,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A sync is over.
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Syncs that were begun, which number them.
    begun: u64,
    running: bool,
    /// Those that wait for the one that runs.
    #[cfg(test)]
    waiting: u64,
    /// How the first sync that failed did so.
    failed: Option<Errno>,
}

/// A file, whatever its paths and descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Identity {
    Regular { device: u64, inode: u64 },
    Block { device: u64 },
}

/// The files that have exports at the moment.
static OPEN: Mutex<Option<HashMap<Identity, Weak<Shared>>>> = Mutex::new(None);

impl Durability {
    /// Joins the other exports of the file.
    pub(super) fn of(metadata: &fs::Metadata, block_device: bool, name: String) -> Self {
        let identity = if block_device {
            Identity::Block { device: metadata.rdev() }
        } else {
            Identity::Regular { device: metadata.dev(), inode: metadata.ino() }
        };
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get_or_insert_default();
        let shared = open.get(&identity).and_then(Weak::upgrade).unwrap_or_else(|| {
            // An inode number is used again once the file is not open any more.
            open.retain(|_, shared| shared.strong_count() > 0);
            let shared = Arc::default();
            open.insert(identity, Arc::downgrade(&shared));
            shared
        });
        Self { shared, succeeded: AtomicU64::new(0), name }
    }

    /// Makes durable what was written before this was called. `call` does it; it is the only way to do so.
    ///
    /// Any failure is final, an interruption too: the kernel may have consumed an error on the way to it.
    pub(super) fn sync(
        &self,
        call: impl FnOnce() -> core::result::Result<(), Errno>,
    ) -> Result<()> {
        let mut state = self.lock();
        // One that runs already may have gone past the latest writes.
        let needed = state.begun + 1;
        loop {
            if let Some(errno) = state.failed {
                return Err(failed_earlier(errno));
            }
            if self.succeeded.load(Ordering::Relaxed) >= needed {
                return Ok(());
            }
            if !state.running {
                break;
            }
            #[cfg(test)]
            {
                state.waiting += 1;
            }
            state = self.shared.over.wait(state).unwrap_or_else(PoisonError::into_inner);
            #[cfg(test)]
            {
                state.waiting -= 1;
            }
        }
        state.begun += 1;
        state.running = true;
        let number = state.begun;
        drop(state);
        // Should the call panic, this stays what is known of it.
        let mut running = Running { durability: self, number, result: Err(Errno::IO) };
        running.result = call();
        let result = running.result;
        drop(running);
        result.map_err(failed_now)
    }

    /// Returns once so many wait for the sync that runs.
    #[cfg(test)]
    pub(super) fn await_waiting(&self, count: u64) {
        let begun = std::time::Instant::now();
        while self.lock().waiting < count {
            assert!(begun.elapsed().as_secs() < 60, "they don't wait");
            std::thread::yield_now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sync that is under way.
struct Running<'a> {
    durability: &'a Durability,
    number: u64,
    result: core::result::Result<(), Errno>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Durability { shared, succeeded, name } = self.durability;
        let mut state = self.durability.lock();
        state.running = false;
        match self.result {
            Ok(()) => succeeded.store(self.number, Ordering::Relaxed),
            Err(errno) => {
                state.failed.get_or_insert(errno);
                tracing::error!(
                    file = name,
                    error = %errno,
                    "flushing failed: what was written since the last flush may be lost; every flush and FUA \
                     request fails until the file is opened anew (check the storage, then restart the server)"
                );
            }
        }
        drop(state);
        shared.over.notify_all();
    }
}

fn failed_now(errno: Errno) -> ExportError {
    let error = ExportError::from(std::io::Error::from(errno));
    let text = format!(
        "flushing failed: {}; what was written since the last flush may be lost",
        Reason(errno)
    );
    error.with_text(text)
}

/// `EIO` whatever the first failure was: to free some space, as `ENOSPC` suggests, brings nothing back.
fn failed_earlier(errno: Errno) -> ExportError {
    ExportError::io(format!(
        "an earlier flush failed: {}; what was written before may be lost, and no flush succeeds until the file is \
         opened anew",
        Reason(errno)
    ))
}

struct Reason(Errno);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from(self.0).fmt(f)
    }
}
