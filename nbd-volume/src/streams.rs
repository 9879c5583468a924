//! Which reads are sequential.

use core::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Remembers where the latest reads ended. Several clients, or several files of one client, may read in sequence.
#[derive(Debug, Default)]
pub(crate) struct Streams(Mutex<[Stream; Self::COUNT]>);

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    end: u64,
    /// Bytes that were read in sequence.
    length: u64,
    /// When it was last read from, as a count of reads.
    used: u64,
}

impl Streams {
    /// Sequences that are followed at the same time.
    const COUNT: usize = 16;

    /// What is read ahead at most, in bytes.
    const MAX_AHEAD: u64 = 4 << 20;

    /// Bytes around the end of a sequence in which its next read may begin: requests that are in flight together arrive
    /// in any order.
    const SLACK: u64 = 2 << 20;

    /// Reports a read of these bytes, and returns how many bytes beyond it should be read ahead: as many as were read
    /// in sequence, up to a bound.
    pub(crate) fn read(&self, bytes: &Range<u64>) -> u64 {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = streams.iter().map(|stream| stream.used).max().unwrap_or(0) + 1;
        let near = |stream: &&mut Stream| {
            stream.length > 0 && stream.end.abs_diff(bytes.start) <= Self::SLACK
        };
        let length = bytes.end - bytes.start;
        if let Some(stream) = streams.iter_mut().find(near) {
            stream.used = now;
            if bytes.end <= stream.end {
                // Earlier than others that are in flight.
                return 0;
            }
            let adjacent = stream.end.abs_diff(bytes.start) <= length;
            stream.length = if adjacent { stream.length + length } else { length };
            stream.end = bytes.end;
            return if adjacent { stream.length.min(Self::MAX_AHEAD) } else { 0 };
        }
        if let Some(oldest) = streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = Stream { end: bytes.end, length, used: now };
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_read_ahead_more_and_more() {
        let streams = Streams::default();
        let ahead: Vec<u64> =
            (0..2000u64).map(|i| streams.read(&(i * 4096..(i + 1) * 4096))).collect();
        assert_eq!(ahead[0], 0);
        assert!(ahead[1..].is_sorted());
        assert_eq!(ahead[1999], Streams::MAX_AHEAD);
    }

    #[test]
    fn reads_far_apart_are_not_read_ahead() {
        let streams = Streams::default();
        for i in 0..1000u64 {
            let start = (i * 7919 % 1000) << 30;
            assert_eq!(streams.read(&(start..start + 4096)), 0);
        }
    }

    #[test]
    fn several_sequences_are_followed() {
        let streams = Streams::default();
        let mut last = 0;
        for i in 0..64u64 {
            for base in 0..8u64 {
                let start = (base << 40) + i * 65536;
                last = streams.read(&(start..start + 65536));
            }
        }
        assert!(last > 1 << 20, "{last}");
    }
}
