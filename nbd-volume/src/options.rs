//! How a volume is opened.

use core::time::Duration;

use crate::DiskCache;

/// How a [`Volume`](crate::Volume) is opened: bounds of memory and of time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Bytes of written data that may be in memory alone; writes wait when there are more. Less than 8 MiB counts as
    /// 8 MiB; the default is 127 MiB. A quarter of it, but at most 16 MiB, is the size of the tables that are uploaded.
    pub max_unflushed: usize,
    /// Bytes that the cache of read and written blocks takes at most. The default is 88 MiB; 0 keeps none.
    pub cache: u64,
    /// Bytes that are fetched before they are asked for, at most, for all clients that read in sequence. A distant
    /// store needs more than it sends within its latency. The default is 68 MiB; 0 has nothing read ahead.
    pub read_ahead: u64,
    /// Bytes that the cache of what is read of the store's objects takes at most: the indexes and filters of tables,
    /// and parts of tables. The default is 59 MiB.
    pub object_cache: u64,
    /// Bytes of the store's objects that are being fetched at the same time for reads, at most; a third of them for
    /// finding out which blocks are there. Reads that need more wait for others. One that needs more than all takes that
    /// alone: 64 KiB, or 128 KiB with blocks of that size, of each table that may have a part of what it reads, of which
    /// there are up to 256 that were not merged yet; with 0 each read is alone. The default is 68 MiB.
    pub fetching: u64,
    /// A cache on a local disk, for what does not fit into memory. There is none by default.
    pub disk_cache: Option<DiskCache>,
    /// How long a request waits for a store that does not answer before it fails with `EIO`, and how long each step of
    /// opening and closing may take. The default is a minute. It has to be longer than the store takes for an answer.
    pub patience: Duration,
    /// How long requests are answered with success without looking whether another server has opened the volume. The
    /// default is ten seconds; the store is asked about five times as often. A second to ten minutes make sense: one
    /// that is shorter than an answer of the store has all requests fail after [`patience`](Self::patience), and a
    /// server that follows one that crashed waits for all of a long one, whatever its own is.
    pub lease: Duration,
    /// Whether opening a volume fails if another server has it open and is alive, rather than taking it over. Of two
    /// servers that open it at the same moment the later one may still take it over. The default is false.
    pub exclusive: bool,
    /// How often written data is uploaded when no client flushes. The default is a second; less than 10 ms counts as
    /// 10 ms.
    pub upload_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let rest = Self {
            max_unflushed: 0,
            cache: 0,
            read_ahead: 0,
            object_cache: 0,
            fetching: 0,
            disk_cache: None,
            patience: Duration::from_secs(60),
            lease: Duration::from_secs(10),
            exclusive: false,
            upload_interval: Duration::from_secs(1),
        };
        rest.with_memory(Self::DEFAULT_MEMORY)
    }
}

impl Options {
    /// The smallest bound of memory that makes sense, in bytes: see [`with_memory`](Self::with_memory).
    pub const MIN_MEMORY: u64 = 192 << 20;

    /// The bound of memory of the [default](Self::default) options, in bytes.
    pub const DEFAULT_MEMORY: u64 = 640 << 20;

    /// Bytes that a server takes without any of what is bounded: the program, and what some tens of MiB of requests that are
    /// in flight take.
    const FIXED_MEMORY: u64 = 152 << 20;

    /// The same with a bound for the memory of a server that has one volume open, in bytes, of at least
    /// [`MIN_MEMORY`](Self::MIN_MEMORY). 152 MiB are for the
    /// program and some tens of MiB of requests in flight. Of the rest, [`max_unflushed`](Self::max_unflushed) has 26 %,
    /// [`cache`](Self::cache) 18 %, [`object_cache`](Self::object_cache) 12 %, [`read_ahead`](Self::read_ahead) 14 % and
    /// [`fetching`](Self::fetching) 14 %, and the last 16 % are for what is being encoded and merged. The allocator is
    /// not accounted for exactly: measured, a server that calls [`reuse_large_buffers`](crate::reuse_large_buffers)
    /// stays below it.
    #[must_use]
    pub fn with_memory(self, bytes: u64) -> Self {
        let percent = (bytes.max(Self::MIN_MEMORY) - Self::FIXED_MEMORY) / 100;
        Self {
            max_unflushed: usize::try_from(26 * percent).unwrap_or(usize::MAX),
            cache: 18 * percent,
            object_cache: 12 * percent,
            fetching: 14 * percent,
            read_ahead: 14 * percent,
            ..self
        }
    }

    /// The smallest value of [`max_unflushed`](Self::max_unflushed).
    const MIN_UNFLUSHED: usize = 8 << 20;

    /// Bytes of unflushed data that SlateDB is given.
    pub(crate) fn unflushed(&self) -> usize {
        self.max_unflushed.max(Self::MIN_UNFLUSHED)
    }

    /// Bytes of a table that is uploaded, and of the log: that much is uploaded while the next one is filled.
    pub(crate) fn table_size(&self) -> usize {
        (self.unflushed() / 4).min(Self::MAX_TABLE)
    }

    /// More makes uploads no faster, but leaves them idle until there is as much.
    const MAX_TABLE: usize = 16 << 20;

    /// The smallest interval of anything that is done again and again: none would take all of a processor.
    const MIN_INTERVAL: Duration = Duration::from_millis(10);

    /// How often the store is asked whether another server has opened the volume.
    pub(crate) fn poll_interval(&self) -> Duration {
        (self.lease / 5).max(Self::MIN_INTERVAL)
    }

    /// How often SlateDB uploads what was written.
    pub(crate) fn upload_interval(&self) -> Duration {
        self.upload_interval.max(Self::MIN_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_again_without_a_pause() {
        let mut options = Options::default();
        (options.lease, options.upload_interval) = (Duration::ZERO, Duration::ZERO);
        assert_eq!(options.poll_interval(), Options::MIN_INTERVAL);
        assert_eq!(options.upload_interval(), Options::MIN_INTERVAL);
    }

    #[test]
    fn memory_is_divided_and_has_a_least_size() {
        for bytes in [0, Options::MIN_MEMORY, Options::DEFAULT_MEMORY, 1 << 40, u64::MAX] {
            let options = Options::default().with_memory(bytes);
            let parts = [
                options.max_unflushed as u64,
                options.cache,
                options.object_cache,
                options.read_ahead,
                options.fetching,
            ];
            let all: u64 = parts.iter().sum();
            let bound = bytes.max(Options::MIN_MEMORY) - Options::FIXED_MEMORY;
            let shared = bound / 25 * 21;
            assert!(all <= shared && shared - all < 100, "{bytes}: {parts:?}");
            assert!(options.max_unflushed >= Options::MIN_UNFLUSHED);
        }
    }
}
