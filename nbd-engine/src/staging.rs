//! The buffer between a transport and the core.

/// Bytes that have been received and not yet looked at. Starts small, for clients that only haggle, and grows for those
/// that keep it full: one receive call then brings many requests.
#[derive(Debug)]
pub(crate) struct Staging {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

const SMALLEST: usize = 4 << 10;
const LARGEST: usize = 64 << 10;

impl Staging {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; SMALLEST], start: 0, end: 0 }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "no more is consumed than there is");
    }

    /// Gives back memory, if nothing is kept.
    pub(crate) fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::new();
        }
    }

    /// Room for bytes that nobody wants.
    pub(crate) fn scratch(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// The empty buffer, to be read into: say afterwards how much of it by [`filled`](Self::filled). Must be empty,
    /// which the core sees to: it eats partial messages.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.is_empty(), "leftovers are looked at before more is read");
        let was_full = self.end == self.buffer.len();
        if was_full && self.buffer.len() < LARGEST {
            self.buffer = vec![0; self.buffer.len() * 4];
        }
        self.start = 0;
        self.end = 0;
        &mut self.buffer
    }

    /// The first `count` bytes of the room were filled.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = count;
    }
}
