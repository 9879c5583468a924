//! Where the payload of a write is collected.

use std::io::IoSliceMut;
use std::sync::Arc;

use super::dispatch::{Page, Work};

/// Pages that wait to be received into again. They belong to one connection, see [`Pool`](crate::export::Pool).
#[derive(Debug, Default)]
pub(crate) struct SparePages {
    pages: Vec<Page>,
    /// Pages as they come back, before they are looked at.
    pub(crate) returned: Vec<Page>,
}

impl SparePages {
    /// Bytes that are kept at most.
    const KEPT: usize = 4 << 20;

    fn take(&mut self, size: usize) -> Page {
        match self.pages.pop() {
            Some(page) if page.len() == size => page,
            _ => core::iter::repeat_n(0, size).collect(),
        }
    }

    /// Keeps those that have come back and that nobody shares.
    pub(crate) fn sort(&mut self) {
        for mut page in self.returned.drain(..) {
            let room = (self.pages.len() + 1) * page.len() <= Self::KEPT;
            if room && Arc::get_mut(&mut page).is_some() {
                self.pages.push(page);
            }
        }
    }
}

/// The most slices that one receive call is given.
pub(crate) const MOST_SLICES: usize = 32;

/// A payload that does not lie in the staging buffer as a whole: in the body's buffer, or in pages.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) pages: Vec<Page>,
}

impl Payload {
    /// Makes room for `length` bytes: in pages of `page_size` if the export takes them, else in the body.
    pub(crate) fn prepare(
        &mut self,
        work: &mut Work,
        length: usize,
        page_size: Option<usize>,
        spare: &mut SparePages,
    ) {
        match page_size {
            Some(size) => {
                let count = length / size;
                self.pages.extend((0..count).map(|_| spare.take(size)));
            }
            None => {
                work.body.fill(length);
            }
        }
    }

    /// The room from `offset` on, `length` bytes at most, as slices.
    pub(crate) fn room<'a>(
        &'a mut self,
        work: &'a mut Work,
        offset: usize,
        length: usize,
        mut visit: impl FnMut(IoSliceMut<'a>) -> bool,
    ) {
        if self.pages.is_empty() {
            let buffer = work.body.buffer_mut();
            visit(IoSliceMut::new(&mut buffer[offset..offset + length]));
            return;
        }
        let (mut start, end) = (0, offset + length);
        for page in &mut self.pages {
            let size = page.len();
            let (from, to) = (offset.max(start), end.min(start + size));
            // Nobody shares a page that is still to be filled.
            if from < to
                && let Some(bytes) = Arc::get_mut(page)
                && !visit(IoSliceMut::new(&mut bytes[from - start..to - start]))
            {
                return;
            }
            start += size;
        }
    }

    /// Copies bytes to their place.
    pub(crate) fn put(&mut self, work: &mut Work, offset: usize, bytes: &[u8]) {
        let mut rest = bytes;
        self.room(work, offset, bytes.len(), |mut room| {
            let (head, tail) = rest.split_at(room.len());
            room.copy_from_slice(head);
            rest = tail;
            true
        });
    }
}
