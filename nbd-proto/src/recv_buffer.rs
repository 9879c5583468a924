//! The buffer between a transport and a machine.

use alloc::vec;
use alloc::vec::Vec;

use crate::Input;

/// Bytes that have been received and not yet consumed.
///
/// It holds no memory before the first byte is received, has 4 KiB then, which is enough for the negotiation, and grows
/// to 64 KiB for peers that keep it full: one receive call then brings many messages. It grows beyond that only when
/// more is received though nothing is consumed, which does not happen to an embedder that reads when
/// [`Wants::Bytes`](crate::Wants::Bytes) asks for it.
///
/// ```
/// use nbd_proto::{Input, RecvBuffer};
/// use std::io::Read;
///
/// let mut stream = &b"NBDMAGIC"[..];
/// let mut buffer = RecvBuffer::new();
/// let count = stream.read(buffer.spare_capacity_mut())?;
/// buffer.advance(count);
/// buffer.consume(3);
/// assert_eq!(buffer.unread(), b"MAGIC");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct RecvBuffer {
    buffer: Vec<u8>,
    start: usize,
    /// Never less than `start`, never more than the buffer's length.
    end: usize,
}

const SMALLEST: usize = 4 << 10;
const LARGEST: usize = 64 << 10;

impl RecvBuffer {
    /// An empty buffer, without memory yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Whether nothing is left to consume.
    #[must_use]
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Received bytes that were not consumed yet.
    #[must_use]
    #[inline]
    pub fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The first `count` bytes are used up. To consume more than there are consumes all of them.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.checked_add(count).map_or(self.end, |start| start.min(self.end));
    }

    /// Room to receive into, behind what is unread; never empty. Say how much of it was filled by
    /// [`advance`](Self::advance).
    ///
    /// May move what is unread to the front, and may enlarge the buffer.
    pub fn spare_capacity_mut(&mut self) -> &mut [u8] {
        let size = self.buffer.len();
        let was_full = self.end == size;
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end = self.unread_len();
            self.start = 0;
        }
        let wanted = match size {
            0 => SMALLEST,
            _ if was_full && size < LARGEST => size.saturating_mul(4).min(LARGEST),
            // Full, and the embedder consumes nothing.
            _ if self.end == size => size.saturating_mul(2),
            _ => size,
        };
        if self.end == 0 && wanted > size {
            // There is nothing to keep, so that nothing has to be copied.
            self.buffer = vec![0; wanted];
        } else {
            self.buffer.resize(wanted, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `count` bytes of the [spare room](Self::spare_capacity_mut) were filled. A count beyond the room
    /// counts as all of it.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        let size = self.buffer.len();
        self.end = self.end.checked_add(count).map_or(size, |end| end.min(size));
    }

    /// Moves bytes to the front of `destination`, as many as there are and as it has room for. Gives how many.
    #[inline]
    pub fn copy_to(&mut self, destination: &mut [u8]) -> usize {
        let unread = self.unread();
        let count = unread.len().min(destination.len());
        if let (Some(from), Some(to)) = (unread.get(..count), destination.get_mut(..count)) {
            to.copy_from_slice(from);
        }
        self.consume(count);
        count
    }

    /// Gives the memory back if nothing is unread: for connections that are idle. The buffer starts small again.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::new();
        }
    }

    const fn unread_len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }
}

impl Input for RecvBuffer {
    #[inline]
    fn unread(&self) -> &[u8] {
        self.unread()
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        self.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effort::{config, up_to};
    use alloc::collections::VecDeque;
    use proptest::prelude::*;

    #[test]
    fn it_starts_without_memory_grows_while_it_is_full_and_gives_all_back() {
        let mut buffer = RecvBuffer::new();
        assert_eq!(buffer.buffer.capacity(), 0);
        for expected in [4 << 10, 16 << 10, 64 << 10, 64 << 10] {
            let room = buffer.spare_capacity_mut().len();
            assert_eq!(room, expected);
            buffer.advance(room);
            buffer.shrink();
            assert_eq!(buffer.unread().len(), room, "what is unread is kept");
            buffer.consume(room);
        }
        let room = buffer.spare_capacity_mut().len();
        buffer.advance(room - 1);
        buffer.consume(usize::MAX);
        assert_eq!(buffer.spare_capacity_mut().len(), 64 << 10);
        buffer.shrink();
        assert_eq!(buffer.buffer.capacity(), 0);
    }

    #[test]
    fn a_peer_that_does_not_fill_it_keeps_it_small() {
        let mut buffer = RecvBuffer::new();
        for _ in 0..1000 {
            buffer.spare_capacity_mut();
            buffer.advance(100);
            buffer.consume(60);
            buffer.consume(60);
        }
        assert_eq!(buffer.buffer.len(), 4 << 10);
    }

    proptest! {
        #![proptest_config(config())]

        /// Whatever is done in whatever order: bytes come out as they went in, and there is always room.
        #[test]
        fn it_is_a_queue_that_always_has_room(steps in prop::collection::vec((0_u8..4, 0..up_to(20_000)), 1..60)) {
            let mut buffer = RecvBuffer::new();
            let mut model = VecDeque::new();
            let mut next = 0_u8;
            for (kind, count) in steps {
                match kind {
                    0 => {
                        let room = buffer.spare_capacity_mut();
                        prop_assert!(!room.is_empty());
                        let count = count.min(room.len());
                        for byte in &mut room[..count] {
                            *byte = next;
                            model.push_back(next);
                            next = next.wrapping_mul(31).wrapping_add(7);
                        }
                        buffer.advance(count);
                    }
                    1 => {
                        buffer.consume(count);
                        model.drain(..count.min(model.len()));
                    }
                    2 => {
                        let mut destination = vec![0; count];
                        let copied = buffer.copy_to(&mut destination);
                        prop_assert_eq!(copied, count.min(model.len()));
                        let expected: Vec<u8> = model.drain(..copied).collect();
                        prop_assert_eq!(&destination[..copied], &expected[..]);
                    }
                    _ => buffer.shrink(),
                }
                prop_assert!(model.iter().eq(buffer.unread()));
                prop_assert_eq!(buffer.is_empty(), model.is_empty());
            }
        }
    }
}
