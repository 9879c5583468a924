//! Which reads are sequential, and what is to be read ahead for them.

use core::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Remembers where the latest reads ended. Several clients, or several files of one client, may read in sequence.
#[derive(Debug)]
pub(crate) struct Streams {
    streams: Mutex<[Stream; Self::COUNT]>,
    /// What may be read ahead for all of them, in bytes.
    max_ahead: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    end: u64,
    /// Bytes that were read in sequence.
    length: u64,
    /// The end of what was planned to be read ahead.
    planned: u64,
    /// When it was last read from, as a count of reads.
    used: u64,
}

/// What a read is followed by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bytes that should be fetched now, by one request each, since they will be read soon.
    pub(crate) ahead: Vec<Range<u64>>,
    /// Bytes that were read in sequence up to here; 0 for a read that continues nothing.
    pub(crate) length: u64,
}

impl Streams {
    /// Sequences that are followed at the same time.
    const COUNT: usize = 16;

    /// Bytes around the end of a sequence in which its next read may begin: requests that are in flight together arrive
    /// in any order.
    const SLACK: u64 = 2 << 20;

    /// Bytes that one request to the store fetches ahead, at most. Several such requests are in flight at the same
    /// time, which is what hides a store's latency and goes beyond the bandwidth of one connection.
    pub(crate) const MAX_PIECE: u64 = 4 << 20;

    /// And at least, as far as that many are to be read ahead.
    const MIN_PIECE: u64 = 512 << 10;

    /// What is read ahead for a sequence is divided into so many pieces.
    const PIECES: u64 = 8;

    /// Reads for which a sequence that is not continued still has a share of what is read ahead.
    const LIVE: u64 = 1024;

    /// Streams for which at most so many bytes are read ahead, all together.
    pub(crate) fn new(max_ahead: u64) -> Self {
        Self { streams: Mutex::default(), max_ahead }
    }

    /// Reports a read of these bytes of a volume of that size, and returns what should be read ahead: as much as was
    /// read in sequence, up to a bound.
    pub(crate) fn read(&self, bytes: &Range<u64>, size: u64) -> Plan {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let now = streams.iter().map(|stream| stream.used).max().unwrap_or(0) + 1;
        let is_live = |stream: &&Stream| stream.used > 0 && now - stream.used < Self::LIVE;
        let live = streams.iter().filter(is_live).count().max(1) as u64;
        let near = |stream: &&mut Stream| {
            stream.length > 0 && stream.end.abs_diff(bytes.start) <= Self::SLACK
        };
        let length = bytes.end - bytes.start;
        if let Some(stream) = streams.iter_mut().find(near) {
            stream.used = now;
            if bytes.end <= stream.end {
                // Earlier than others that are in flight.
                return Plan { ahead: Vec::new(), length: stream.length };
            }
            let adjacent = stream.end.abs_diff(bytes.start) <= length;
            stream.end = bytes.end;
            if !adjacent {
                stream.length = length;
                stream.planned = bytes.end;
                return Plan::default();
            }
            stream.length = stream.length.saturating_add(length);
            let ahead = stream.plan(self.max_ahead / live, size);
            return Plan { ahead, length: stream.length };
        }
        if let Some(oldest) = streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = Stream { end: bytes.end, length, planned: bytes.end, used: now };
        }
        Plan::default()
    }
}

impl Stream {
    /// The pieces that are to be fetched next.
    fn plan(&mut self, max_ahead: u64, size: u64) -> Vec<Range<u64>> {
        let ahead = self.length.min(max_ahead);
        let piece = ahead / Streams::PIECES;
        let piece = piece.clamp(Streams::MIN_PIECE.min(ahead), Streams::MAX_PIECE);
        // What it has overtaken is fetched by the reads themselves.
        self.planned = self.planned.max(self.end);
        let target = self.end.saturating_add(ahead).min(size);
        let mut pieces = Vec::new();
        // Not before a whole piece is to be fetched, but at the end of the volume.
        while piece > 0
            && self.planned < target
            && (target - self.planned >= piece || target == size)
        {
            let end = (self.planned + piece).min(target);
            pieces.push(self.planned..end);
            self.planned = end;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    const MAX: u64 = 32 << 20;

    /// A volume that is far larger than what is read.
    const SIZE: u64 = 1 << 60;

    #[test]
    fn sequences_are_read_ahead_more_and_more_and_nothing_twice() {
        cases(20, |random| {
            let streams = Streams::new(MAX);
            let length = 4096 << random.below(7);
            let (mut planned, mut requests) = (length, 0);
            for i in 0..(128 << 20) / length {
                let plan = streams.read(&(i * length..(i + 1) * length), SIZE);
                for piece in plan.ahead {
                    // What was overtaken at the beginning is left out.
                    assert!(piece.start >= planned, "{piece:?} again");
                    assert!(piece.end - piece.start <= Streams::MAX_PIECE);
                    planned = piece.end;
                    requests += 1;
                }
                let end = (i + 1) * length;
                assert!(planned <= end + MAX && planned <= 2 * end);
                assert!(i < 2 || planned > end, "reads of {length} bytes are not followed");
            }
            assert!(requests < 100, "{requests} pieces");
        });
    }

    #[test]
    fn nothing_is_planned_beyond_the_end() {
        let streams = Streams::new(MAX);
        let size = (10 << 20) + 17;
        let mut planned = 0;
        for start in (0..size).step_by(128 << 10) {
            let end = (start + (128 << 10)).min(size);
            planned = streams.read(&(start..end), size).ahead.last().map_or(planned, |p| p.end);
        }
        assert_eq!(planned, size);
    }

    #[test]
    fn reads_far_apart_are_not_read_ahead() {
        let streams = Streams::new(MAX);
        for i in 0..1000u64 {
            let start = (i * 7919 % 1000) << 30;
            assert_eq!(streams.read(&(start..start + 4096), SIZE), Plan::default());
        }
    }

    #[test]
    fn several_sequences_are_followed_and_share_the_bound() {
        let streams = Streams::new(MAX);
        let mut planned = [0u64; 8];
        for i in 0..256u64 {
            for base in 0..8u64 {
                let start = (base << 40) + i * 65536;
                let end = start + 65536;
                let plan = streams.read(&(start..end), SIZE);
                planned[base as usize] =
                    plan.ahead.last().map_or(planned[base as usize], |p| p.end);
                if i > 16 {
                    let ahead = planned[base as usize] - end;
                    assert!((1..=MAX / 8).contains(&ahead), "{ahead} bytes are ahead");
                }
            }
        }
    }

    #[test]
    fn requests_that_arrive_in_another_order_are_one_sequence() {
        cases(20, |random| {
            let streams = Streams::new(MAX);
            let mut length = 0;
            for group in 0..64u64 {
                let mut order: Vec<u64> = (0..8).collect();
                for i in (1..order.len()).rev() {
                    order.swap(i, random.below(i as u64 + 1) as usize);
                }
                for i in order {
                    let start = (group * 8 + i) << 17;
                    length = length.max(streams.read(&(start..start + (1 << 17)), SIZE).length);
                }
            }
            assert!(length > 0);
        });
    }
}
