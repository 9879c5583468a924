//! How an object is opened.

use core::time::Duration;

use super::parts::PART;

/// How an [`Object`](crate::Object) is opened: bounds of memory, of requests and of time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ObjectOptions {
    /// Bytes that the cache of what was read takes at most. The default is 224 MiB.
    pub cache: u64,
    /// Bytes that are fetched before they are asked for, at most, for all clients that read in sequence; they go to the
    /// [cache](Self::cache), of which they take no more than a quarter. The default is 28 MiB; 0 has nothing read ahead.
    pub read_ahead: u64,
    /// Requests to the store at the same time, at most. The default is 8; 0 counts as 1.
    pub requests: usize,
    /// Bytes that one request asks for at most, in whole parts of 64 KiB. The default is 4 MiB; less than one part
    /// counts as one.
    pub max_request: u64,
    /// How long a request of a client waits for a store that does not answer before it fails with `EIO`. The default is
    /// a minute. It has to be longer than the store takes for an answer.
    pub patience: Duration,
}

impl Default for ObjectOptions {
    fn default() -> Self {
        Self {
            cache: 224 << 20,
            read_ahead: 28 << 20,
            requests: 8,
            max_request: 4 << 20,
            patience: Duration::from_secs(60),
        }
    }
}

impl ObjectOptions {
    /// The smallest bound of memory that makes sense, in bytes: see [`with_memory`](Self::with_memory).
    pub const MIN_MEMORY: u64 = 32 << 20;

    /// The same with a bound for the memory of an object, of at least [`MIN_MEMORY`](Self::MIN_MEMORY): an eighth of it
    /// at most is for what is being received, and the rest for the cache, of which [`read_ahead`](Self::read_ahead) has an
    /// eighth.
    #[must_use]
    pub fn with_memory(self, bytes: u64) -> Self {
        let bytes = bytes.max(Self::MIN_MEMORY);
        let requests = self.requests.max(1) as u64;
        let max_request = (bytes / 8 / requests).clamp(PART, Self::default().max_request);
        let cache = bytes.saturating_sub(requests.saturating_mul(max_request));
        let read_ahead = self.read_ahead.min(cache / 8);
        Self { cache, read_ahead, max_request, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_for_the_cache_and_for_requests() {
        for (bytes, expected) in [(0, 32 << 20), (32 << 20, 32 << 20), (1 << 30, 1 << 30)] {
            let options = ObjectOptions::default().with_memory(bytes);
            let receiving = options.requests as u64 * options.max_request;
            assert_eq!(options.cache + receiving, expected);
            assert!(receiving <= expected / 8, "{options:?}");
        }
        let many = ObjectOptions { requests: usize::MAX, ..ObjectOptions::default() };
        assert_eq!(many.with_memory(1 << 30).cache, 0);
        let options = ObjectOptions::default();
        let same = options.clone().with_memory(256 << 20);
        assert_eq!((options.cache, options.read_ahead), (same.cache, same.read_ahead));
    }
}
