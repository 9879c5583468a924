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

/// Reads that follow each other, each byte once: on several connections they arrive in any order, but leave no gaps.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    start: u64,
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

    /// Bytes around the end of a sequence in which its next read may begin, if it is as long: those that clients have in
    /// flight.
    const SLACK: u64 = 32 << 20;

    /// Bytes that one request to the store fetches ahead, at most. Several such requests are in flight at the same
    /// time, which is what hides a store's latency and goes beyond the bandwidth of one connection.
    pub(crate) const MAX_PIECE: u64 = 4 << 20;

    /// And at least, as far as that many are to be read ahead.
    const MIN_PIECE: u64 = 512 << 10;

    /// What is read ahead for a sequence is divided into so many pieces.
    const PIECES: u64 = 8;

    /// A sequence is followed by so many times what was read of it: a distant store is to be busy soon.
    const GROWTH: u64 = 4;

    /// Reads for which a sequence that is not continued still has a share of what is read ahead.
    const LIVE: u64 = 1024;

    /// Streams for which at most so many bytes are read ahead, all together.
    pub(crate) fn new(max_ahead: u64) -> Self {
        Self { streams: Mutex::default(), max_ahead }
    }

    /// Reports a read of these bytes of a volume of that size, and returns what should be read ahead: some times what
    /// was read in sequence, up to a bound.
    pub(crate) fn read(&self, bytes: &Range<u64>, size: u64) -> Plan {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let now = streams.iter().map(|stream| stream.used).max().unwrap_or(0) + 1;
        let is_live = |stream: &&Stream| stream.used > 0 && now - stream.used < Self::LIVE;
        let live = streams.iter().filter(is_live).count().max(1) as u64;
        let mut joined =
            streams.iter_mut().filter_map(|stream| Some((stream.with(bytes)?, stream)));
        let (new, stream) = match joined.next() {
            Some((new, stream)) if new.length <= new.end - new.start => (new, stream),
            // What was read before is read again: that is no sequence any more.
            Some((_, stream)) => {
                *stream = Stream::new(bytes, now);
                return Plan::default();
            }
            None => {
                drop(joined);
                if let Some(oldest) = streams.iter_mut().min_by_key(|stream| stream.used) {
                    *oldest = Stream::new(bytes, now);
                }
                return Plan::default();
            }
        };
        *stream = new;
        stream.used = now;
        let ahead = stream.plan(self.max_ahead / live, size);
        Plan { ahead, length: stream.length }
    }
}

impl Stream {
    /// One that begins with a read.
    fn new(bytes: &Range<u64>, now: u64) -> Self {
        let Range { start, end } = *bytes;
        Self { start, end, length: end - start, planned: end, used: now }
    }

    /// The same with a read that may be one of it: that is near, and leaves no more than was read to others.
    fn with(&self, bytes: &Range<u64>) -> Option<Self> {
        let added = bytes.end - bytes.start;
        let slack = self.length.min(Streams::SLACK).max(added);
        let is_near = self.length > 0 && self.end.abs_diff(bytes.start) <= slack;
        let (start, end) = (self.start.min(bytes.start), self.end.max(bytes.end));
        let length = self.length + added;
        let is_dense = (end - start) / 2 <= length;
        (is_near && is_dense).then_some(Self { start, end, length, ..*self })
    }

    /// The pieces that are to be fetched next.
    fn plan(&mut self, max_ahead: u64, size: u64) -> Vec<Range<u64>> {
        let ahead = self.length.saturating_mul(Streams::GROWTH).min(max_ahead);
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
                assert!(planned <= end + MAX && planned <= (1 + Streams::GROWTH) * end);
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

    /// What several connections have in flight, in any order: what comes after the beginning is planned before it is read.
    #[test]
    fn requests_that_arrive_in_another_order_are_one_sequence() {
        cases(50, |random| {
            let streams = Streams::new(2 * MAX);
            let length = 4096 << random.below(8);
            let in_flight = 1 + random.below((MAX / 2 / length).min(256));
            let count = (128 << 20) / length;
            let mut waiting: Vec<u64> = (0..in_flight.min(count)).collect();
            let (mut planned, mut late) = (0, 0);
            for next in in_flight.. {
                if waiting.is_empty() {
                    break;
                }
                // The one that has waited for longest, or any.
                let one = if random.below(4) == 0 { random.below(waiting.len() as u64) } else { 0 };
                let start = waiting.remove(one as usize) * length;
                waiting.extend((next < count).then_some(next));
                late += u64::from(next > 4 * in_flight && start + length > planned);
                // Two sequences may begin, until one of them has the other's reads: what both plan is fetched once.
                for piece in streams.read(&(start..start + length), SIZE).ahead {
                    planned = planned.max(piece.end);
                }
            }
            let most = count / 50 + in_flight / 2;
            assert!(late <= most, "{late} of {count} reads, {in_flight} in flight");
        });
    }

    /// Somebody reads a file, and then here and there in it: that is no sequence.
    #[test]
    fn reads_in_no_order_are_no_sequence_even_where_one_was() {
        cases(50, |random| {
            let streams = Streams::new(MAX);
            for i in 0..512u64 {
                streams.read(&(i << 17..(i + 1) << 17), SIZE);
            }
            let (mut planned, mut followed) = (0, 0);
            for _ in 0..1000 {
                let start = random.below((64 << 20) / 4096) * 4096;
                let plan = streams.read(&(start..start + 4096), SIZE);
                followed += u64::from(plan.length > 0);
                planned += plan.ahead.iter().map(|piece| piece.end - piece.start).sum::<u64>();
            }
            assert!(followed < 50, "{followed} of 1000 continue something");
            assert!(planned < 1 << 20, "{planned} bytes are fetched for nothing");
        });
    }
}
