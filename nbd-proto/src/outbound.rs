//! The queue of things to send: bytes that the core owns and ranges of what the embedder holds.

use alloc::collections::VecDeque;
use alloc::vec::{self, Vec};

use crate::wire::{OptionCode, OptionReplyType};
use crate::{Error, Misuse, RequestId};

/// A run of bytes to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an embedder has to send every kind of segment")]
pub enum Segment<'a> {
    /// Bytes that the core owns; never empty.
    Control(&'a [u8]),
    /// Bytes that the embedder holds for a request; never empty.
    Body {
        /// Whose bytes: the data read on a server, the data to write on a client.
        id: RequestId,
        /// Where they start, counted from the request's own offset.
        offset: u64,
        /// How many.
        length: usize,
    },
}

impl Segment<'_> {
    /// The number of bytes; never zero.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no segment is empty")]
    pub const fn len(&self) -> usize {
        match self {
            Self::Control(bytes) => bytes.len(),
            Self::Body { length, .. } => *length,
        }
    }
}

/// The requests that are over after a transmission: what they held in buffers is yours again, and their ids are void.
///
/// An iterator that need not be run to its end: the core has freed the slots already.
#[derive(Debug)]
#[must_use = "the buffers of these requests are free"]
pub struct Finished<'a>(vec::Drain<'a, RequestId>);

impl<'a> Finished<'a> {
    pub(crate) fn drain(ids: &'a mut Vec<RequestId>) -> Self {
        Self(ids.drain(..))
    }
}

impl Iterator for Finished<'_> {
    type Item = RequestId;

    #[inline]
    fn next(&mut self) -> Option<RequestId> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Finished<'_> {}

/// Zeroes to send in place of holes, for clients that did not agree to holes.
static ZEROES: [u8; 16 << 10] = [0; 16 << 10];

/// What follows an entry's control bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    None,
    /// The embedder's bytes.
    Body {
        id: RequestId,
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

    /// Cuts off the front; `count` is at most the length.
    fn skip(&mut self, count: usize) {
        match self {
            Self::None => {}
            Self::Body { offset, length, .. } => {
                *offset = offset.wrapping_add(count as u64);
                *length = length.wrapping_sub(count);
            }
            Self::Zeroes(length) => *length = length.wrapping_sub(count),
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
    /// Bytes of `control` that were sent or belong to an entry.
    sealed: usize,
    entries: VecDeque<Entry>,
    /// Bytes of all entries. (Many long bodies are more than the address space of a small machine.)
    queued: u64,
    /// The last option that was refused, and how.
    refused: Option<(OptionCode, OptionReplyType)>,
    fault: Option<&'static str>,
}

/// Sent control bytes are cut off the front once they are this many and more than what is left.
const COMPACT_AT: usize = 16 << 10;

impl Outbound {
    pub(crate) const fn refuses(&mut self, code: OptionCode, reply: OptionReplyType) {
        self.refused = Some((code, reply));
    }

    pub(crate) const fn take_refused(&mut self) -> Option<(OptionCode, OptionReplyType)> {
        self.refused.take()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Control bytes that wait to be sent.
    pub(crate) fn control_len(&self) -> usize {
        self.control.len().saturating_sub(self.sent)
    }

    /// Bytes that wait to be sent, those of bodies included.
    #[inline]
    pub(crate) const fn queued(&self) -> u64 {
        self.queued
    }

    /// A fault of this crate that would have put something wrong on the wire. The connection must end.
    #[inline]
    pub(crate) fn fault(&self) -> Option<Error> {
        self.fault.map(Error::Internal)
    }

    /// Remembers a fault; the first one counts.
    #[cold]
    pub(crate) fn fail(&mut self, what: &'static str) {
        self.fault.get_or_insert(what);
    }

    /// Forgets all that was not sent.
    pub(crate) fn clear(&mut self) {
        self.control.clear();
        self.sent = 0;
        self.sealed = 0;
        self.entries.clear();
        self.queued = 0;
    }

    /// Appends control bytes; they count once [`seal`](Self::seal) is called.
    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.control.extend_from_slice(bytes);
    }

    /// Appends control bytes by a function that only appends.
    pub(crate) fn put_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.control);
    }

    /// Where the next control byte will stand, for [`patch`](Self::patch). Void after the next transmission.
    #[inline]
    pub(crate) const fn position(&self) -> usize {
        self.control.len()
    }

    /// Overwrites control bytes that were put since the last transmission.
    #[inline]
    pub(crate) fn patch<const N: usize>(&mut self, position: usize, bytes: [u8; N]) {
        match self.control.get_mut(position..).and_then(|rest| rest.first_chunk_mut::<N>()) {
            Some(header) => *header = bytes,
            None => self.fail("a header was rewritten that is no longer queued"),
        }
    }

    /// The number of bytes that were put since `position`, as messages have it.
    pub(crate) fn length_since(&mut self, position: usize) -> u32 {
        let length = self.control.len().checked_sub(position).map(u32::try_from);
        match length {
            Some(Ok(length)) => length,
            _ => {
                self.fail("a message is longer than its header can say");
                0
            }
        }
    }

    /// Makes an entry of the control bytes put since the last one, and a tail.
    #[inline]
    pub(crate) fn seal(&mut self, tail: Tail, finishes: Option<RequestId>) {
        let Some(control) = self.control.len().checked_sub(self.sealed) else {
            return self.fail("more control bytes were sealed than put");
        };
        self.sealed = self.control.len();
        let length = (control as u64).saturating_add(tail.len() as u64);
        let Some(queued) = self.queued.checked_add(length) else {
            return self.fail("more than 2^64 bytes are queued");
        };
        self.queued = queued;
        if let Some(last) = self.entries.back_mut()
            && last.finishes.is_none()
            && last.tail == Tail::None
        {
            // Both are parts of one vector.
            last.control = last.control.saturating_add(control);
            last.tail = tail;
            last.finishes = finishes;
        } else if length > 0 {
            self.entries.push_back(Entry { control, tail, finishes });
        } else if finishes.is_some() {
            self.fail("a request ended without a byte");
        }
    }

    /// Makes the last entry the end of a request.
    #[inline]
    pub(crate) fn finish_last(&mut self, id: RequestId) {
        match self.entries.back_mut() {
            Some(last) if last.finishes.is_none() => last.finishes = Some(id),
            _ => self.fail("a request ended without a byte"),
        }
    }

    /// The bytes to send, in order.
    #[inline]
    pub(crate) fn segments(&self) -> Segments<'_> {
        let control = self.control.get(self.sent..).unwrap_or_default();
        Segments { control, run: 0, tail: Tail::None, entries: self.entries.iter() }
    }

    /// Takes `count` bytes off the front. Requests whose last byte was among them are appended to `finished`.
    #[inline]
    pub(crate) fn transmitted(
        &mut self,
        mut count: usize,
        finished: &mut impl Extend<RequestId>,
    ) -> Result<(), Misuse> {
        self.queued = self.queued.checked_sub(count as u64).ok_or(Misuse::TooManyBytes)?;
        while let Some(front) = self.entries.front_mut() {
            // Neither of these subtractions can go below zero.
            let control = front.control.min(count);
            front.control = front.control.wrapping_sub(control);
            self.sent = self.sent.saturating_add(control);
            count = count.wrapping_sub(control);
            let tail = front.tail.len().min(count);
            front.tail.skip(tail);
            count = count.wrapping_sub(tail);
            if front.control > 0 || front.tail.len() > 0 {
                break;
            }
            finished.extend(front.finishes);
            self.entries.pop_front();
        }
        if self.sent > self.sealed || count > 0 {
            self.fail("the queue does not add up");
        } else if self.sent == self.control.len() {
            self.control.clear();
            (self.sent, self.sealed) = (0, 0);
        } else if self.sent >= COMPACT_AT && self.sent > self.control_len() {
            self.control.drain(..self.sent);
            self.sealed = self.sealed.wrapping_sub(self.sent);
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
                Tail::Body { id, offset, length } => {
                    self.tail = Tail::None;
                    return Some(Segment::Body { id, offset, length });
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
    use crate::effort::up_to;
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
        let mut finished = Vec::new();
        queue.transmitted(5, &mut finished).unwrap();
        assert_eq!(finished, [a]);
        assert!(queue.segments().eq([Segment::Control(b"bbb")]));
        queue.transmitted(3, &mut finished).unwrap();
        assert_eq!(finished, [a, b]);
        assert!(queue.is_empty());
        assert_eq!(queue.transmitted(1, &mut finished), Err(Misuse::TooManyBytes));
    }

    #[test]
    fn finished_requests_are_reported_once_even_if_they_are_not_looked_at() {
        let (a, b) = ids();
        let mut ids = alloc::vec![a, b];
        let mut finished = Finished::drain(&mut ids);
        assert_eq!((finished.len(), finished.next()), (2, Some(a)));
        drop(finished);
        assert!(ids.is_empty());
    }

    #[test]
    fn what_would_be_wrong_on_the_wire_is_a_fault_with_a_name() {
        let (a, b) = ids();
        let mut queue = Outbound::default();
        queue.put(b"head");
        queue.seal(Tail::None, Some(a));
        assert_eq!(queue.fault(), None);
        queue.patch(0, *b"long!");
        let fault = queue.fault();
        assert!(matches!(fault, Some(Error::Internal(text)) if text.contains("header")));
        queue.finish_last(b);
        assert_eq!(queue.fault(), fault, "the first fault is the cause");
    }

    #[test]
    fn more_bytes_than_there_are_change_nothing() {
        let (a, b) = ids();
        let mut queue = Outbound::default();
        let mut finished = Vec::new();
        queue.put(b"head");
        queue.seal(Tail::Body { id: a, offset: 0, length: 6 }, Some(a));
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
        for step in (1..64).take(up_to(64)) {
            let mut queue = Outbound::default();
            queue.put(b"head");
            queue.seal(Tail::Body { id: a, offset: 2, length: 6 }, None);
            queue.seal(Tail::Zeroes(40_000), Some(a));
            queue.put(b"tail");
            queue.seal(Tail::None, Some(b));
            let mut sent = Vec::new();
            let mut finished = Vec::new();
            while !queue.is_empty() {
                let mut count = 0;
                for segment in queue.segments() {
                    assert!(segment.len() > 0);
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
