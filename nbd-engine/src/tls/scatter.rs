//! Where decrypted data goes.

use std::io::IoSliceMut;

/// Copies plaintext to slices, and what does not fit behind them to a vector.
pub(super) struct Scatter<'a, 'b> {
    slices: &'a mut [IoSliceMut<'b>],
    index: usize,
    offset: usize,
    pub(super) copied: usize,
}

impl<'a, 'b> Scatter<'a, 'b> {
    pub(super) fn new(slices: &'a mut [IoSliceMut<'b>]) -> Self {
        let mut scatter = Self { slices, index: 0, offset: 0, copied: 0 };
        scatter.skip_full();
        scatter
    }

    /// Whether every slice is full.
    pub(super) fn is_full(&self) -> bool {
        self.index == self.slices.len()
    }

    /// Copies as much as fits; returns the rest.
    pub(super) fn put<'d>(&mut self, mut data: &'d [u8]) -> &'d [u8] {
        while let Some(slice) = self.slices.get_mut(self.index)
            && !data.is_empty()
        {
            let room = &mut slice[self.offset..];
            let count = room.len().min(data.len());
            room[..count].copy_from_slice(&data[..count]);
            data = &data[count..];
            self.offset += count;
            self.copied += count;
            self.skip_full();
        }
        data
    }

    fn skip_full(&mut self) {
        while let Some(slice) = self.slices.get(self.index)
            && self.offset == slice.len()
        {
            (self.index, self.offset) = (self.index + 1, 0);
        }
    }
}
