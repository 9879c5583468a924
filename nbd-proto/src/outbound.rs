//! The queue of things to send: bytes that the core owns and places where the embedder's bytes go.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::{Misuse, RequestId};

/// A run of bytes to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Bytes that the core owns; never empty.
    Control(&'a [u8]),
    /// Bytes that the embedder holds for a request; never empty.
    Body {
        /// Whose bytes: the data read on a server, the data to write on a client.
        request: RequestId,
        /// Where they start, counted from the request's own offset.
        offset: u64,
        /// How many.
        length: usize,
    },
}

impl Segment<'_> {
    /// The number of bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Control(bytes) => bytes.len(),
            Self::Body { length, .. } => *length,
        }
    }

    /// Never true: there are no empty segments. Here for the sake of those who expect it beside `len`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Zeroes to send in place of holes, for clients that did not agree to holes.
static ZEROES: [u8; 16 << 10] = [0; 16 << 10];

/// What follows an entry's control bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    None,
    /// The embedder's bytes.
    Body {
        request: RequestId,
        offset: u64,
        length: usize,
    },
    /// Bytes of [`ZEROES`].
    Zeroes(usize),
}

impl Tail {
    const fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Body { length, .. } | Self::Zeroes(length) => *length,
        }
    }

    fn skip(&mut self, count: usize) {
        match self {
            Self::None => {}
            Self::Body { offset, length, .. } => {
                *offset = offset.saturating_add(count as u64);
                *length = length.saturating_sub(count);
            }
            Self::Zeroes(length) => *length = length.saturating_sub(count),
        }
    }
}

/// Control bytes, then a tail; maybe the end of a request.
#[derive(Clone, Copy, Debug)]
struct Entry {
    control: usize,
    tail: Tail,
    finishes: Option<RequestId>,
}

/// The queue. Control bytes of all entries lie one behind the other in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    control: Vec<u8>,
    /// Bytes of `control` that were sent.
    sent: usize,
    entries: VecDeque<Entry>,
    /// Bytes of `control` that no entry accounts for yet.
    open: usize,
    /// Bytes of all entries.
    queued: usize,
}

/// Sent control bytes are cut off the front once they are this many and more than what is left.
const COMPACT_AT: usize = 16 << 10;

impl Outbound {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Control bytes that wait to be sent.
    pub(crate) fn control_len(&self) -> usize {
        self.control.len().saturating_sub(self.sent)
    }

    /// Appends control bytes; they count once [`seal`](Self::seal) is called.
    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.control.extend_from_slice(bytes);
        self.open = self.open.saturating_add(bytes.len());
    }

    /// Appends control bytes by a function that only appends.
    pub(crate) fn put_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.control.len();
        write(&mut self.control);
        let written = self.control.len().saturating_sub(before);
        self.open = self.open.saturating_add(written);
    }

    /// Where the next control byte will stand, for [`patch`](Self::patch). Void after the next transmission.
    pub(crate) const fn position(&self) -> usize {
        self.control.len()
    }

    /// Overwrites control bytes that were put since the last transmission.
    pub(crate) fn patch<const N: usize>(&mut self, position: usize, bytes: [u8; N]) {
        if let Some(place) =
            self.control.get_mut(position..).and_then(|rest| rest.first_chunk_mut::<N>())
        {
            *place = bytes;
        }
    }

    /// Makes an entry of the control bytes put since the last one, and a tail.
    pub(crate) fn seal(&mut self, tail: Tail, finishes: Option<RequestId>) {
        let control = core::mem::take(&mut self.open);
        self.queued = self.queued.saturating_add(control).saturating_add(tail.len());
        if let Some(last) = self.entries.back_mut()
            && last.finishes.is_none()
            && last.tail == Tail::None
        {
            last.control = last.control.saturating_add(control);
            last.tail = tail;
            last.finishes = finishes;
        } else if control > 0 || tail.len() > 0 {
            self.entries.push_back(Entry { control, tail, finishes });
        }
    }

    /// Makes the last entry the end of a request.
    pub(crate) fn finish_last(&mut self, id: RequestId) {
        if let Some(last) = self.entries.back_mut() {
            last.finishes = Some(id);
        }
    }

    /// The bytes to send, in order.
    pub(crate) fn segments(&self) -> Segments<'_> {
        let control = self.control.get(self.sent..).unwrap_or_default();
        Segments { control, run: 0, tail: Tail::None, entries: self.entries.iter() }
    }

    /// Takes `count` bytes off the front. Requests whose last byte was among them are appended to `finished`.
    pub(crate) fn transmitted(
        &mut self,
        mut count: usize,
        finished: &mut VecDeque<RequestId>,
    ) -> Result<(), Misuse> {
        self.queued = self.queued.checked_sub(count).ok_or(Misuse::TooManyBytes)?;
        while let Some(front) = self.entries.front_mut() {
            let control = front.control.min(count);
            front.control = front.control.saturating_sub(control);
            self.sent = self.sent.saturating_add(control);
            count = count.saturating_sub(control);
            let tail = front.tail.len().min(count);
            front.tail.skip(tail);
            count = count.saturating_sub(tail);
            if front.control > 0 || front.tail.len() > 0 {
                break;
            }
            finished.extend(front.finishes);
            self.entries.pop_front();
        }
        if self.entries.is_empty() && self.open == 0 {
            self.control.clear();
            self.sent = 0;
        } else if self.sent >= COMPACT_AT && self.sent > self.control_len() {
            self.control.drain(..self.sent.min(self.control.len()));
            self.sent = 0;
        }
        Ok(())
    }
}

/// What to send next, in order. Write any prefix of it in any way, then report how many bytes went out.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    control: &'a [u8],
    /// Control bytes, of entries already passed, that were not given out yet.
    run: usize,
    tail: Tail,
    entries: alloc::collections::vec_deque::Iter<'a, Entry>,
}

impl<'a> Segments<'a> {
    fn take_control(&mut self) -> Option<Segment<'a>> {
        let run = core::mem::take(&mut self.run);
        let (head, rest) = self.control.split_at_checked(run)?;
        self.control = rest;
        (!head.is_empty()).then_some(Segment::Control(head))
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    #[inline]
    fn next(&mut self) -> Option<Segment<'a>> {
        loop {
            match self.tail {
                Tail::Body { request, offset, length } => {
                    self.tail = Tail::None;
                    return Some(Segment::Body { request, offset, length });
                }
                Tail::Zeroes(length) => {
                    let zeroes = ZEROES.get(..length).unwrap_or(&ZEROES);
                    self.tail = match length.saturating_sub(zeroes.len()) {
                        0 => Tail::None,
                        rest => Tail::Zeroes(rest),
                    };
                    return Some(Segment::Control(zeroes));
                }
                Tail::None => {}
            }
            // Entries without a tail (replies to writes) join into one run of control bytes.
            let Some(entry) = self.entries.next() else {
                return self.take_control();
            };
            self.run = self.run.saturating_add(entry.control);
            if entry.tail.len() > 0 {
                self.tail = entry.tail;
                if self.run > 0 {
                    return self.take_control();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_flight::InFlight;

    fn ids() -> (RequestId, RequestId) {
        let mut table = InFlight::<()>::new(2);
        (table.take().unwrap().0, table.take().unwrap().0)
    }

    #[test]
    fn replies_without_bodies_join_into_one_segment_and_finish_one_by_one() {
        let (a, b) = ids();
        let mut queue = Outbound::default();
        queue.put(b"aaaa");
        queue.seal(Tail::None, Some(a));
        queue.put(b"bbbb");
        queue.seal(Tail::None, Some(b));
        assert!(queue.segments().eq([Segment::Control(b"aaaabbbb")]));
        let mut finished = VecDeque::new();
        queue.transmitted(5, &mut finished).unwrap();
        assert_eq!(finished, [a]);
        assert!(queue.segments().eq([Segment::Control(b"bbb")]));
        queue.transmitted(3, &mut finished).unwrap();
        assert_eq!(finished, [a, b]);
        assert!(queue.is_empty());
        assert_eq!(queue.transmitted(1, &mut finished), Err(Misuse::TooManyBytes));
    }

    #[test]
    fn more_bytes_than_there_are_change_nothing() {
        let (a, b) = ids();
        let mut queue = Outbound::default();
        let mut finished = VecDeque::new();
        queue.put(b"head");
        queue.seal(Tail::Body { request: a, offset: 0, length: 6 }, Some(a));
        queue.put(b"tail");
        queue.seal(Tail::None, Some(b));
        queue.transmitted(5, &mut finished).unwrap();
        assert_eq!(queue.transmitted(10, &mut finished), Err(Misuse::TooManyBytes));
        assert_eq!(queue.segments().map(|segment| segment.len()).sum::<usize>(), 9);
        assert!(finished.is_empty());
        queue.transmitted(9, &mut finished).unwrap();
        assert_eq!(finished, [a, b]);
    }

    #[test]
    fn any_split_of_the_transmission_sends_the_same_bytes_and_never_an_empty_segment() {
        let (a, b) = ids();
        for step in 1..64 {
            let mut queue = Outbound::default();
            queue.put(b"head");
            queue.seal(Tail::Body { request: a, offset: 2, length: 6 }, None);
            queue.seal(Tail::Zeroes(40_000), Some(a));
            queue.put(b"tail");
            queue.seal(Tail::None, Some(b));
            let mut sent = Vec::new();
            let mut finished = VecDeque::new();
            while !queue.is_empty() {
                let mut count = 0;
                for segment in queue.segments() {
                    assert!(!segment.is_empty());
                    for at in 0..segment.len() {
                        if count == step * 997 {
                            break;
                        }
                        count += 1;
                        sent.push(match segment {
                            Segment::Control(bytes) => bytes[at],
                            Segment::Body { offset, .. } => {
                                u8::try_from(offset).unwrap() + at as u8
                            }
                        });
                    }
                }
                queue.transmitted(count, &mut finished).unwrap();
            }
            assert_eq!(sent.len(), 4 + 6 + 40_000 + 4);
            assert_eq!(&sent[..10], b"head\x02\x03\x04\x05\x06\x07");
            assert_eq!(&sent[40_010..], b"tail");
            assert_eq!(finished, [a, b]);
        }
    }
}
