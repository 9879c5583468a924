//! Where the payload of a write is collected.

use std::io::IoSliceMut;
use std::sync::Arc;

use super::dispatch::{self, Work};
use crate::export::{Export, ExportError, Page};

/// Pages that wait to be received into again. They belong to one connection, see [`Pool`](crate::export::Pool).
#[derive(Default)]
pub(crate) struct SparePages {
    /// Where more come from, once the connection has an export that takes pages.
    pub(crate) export: Option<Arc<dyn Export>>,
    pages: Vec<Page>,
    /// Pages as they come back, before they are looked at.
    pub(crate) returned: Vec<Page>,
}

impl SparePages {
    /// Bytes that are kept at most: what one receive call takes. The export has more.
    const KEPT: usize = 1 << 20;

    /// Bytes that are kept at the moment.
    pub(crate) fn kept(&self) -> usize {
        self.pages.first().map_or(0, |page| page.len() * self.pages.len())
    }

    /// Frees all of them.
    pub(crate) fn clear(&mut self) {
        self.pages = Vec::new();
        self.returned = Vec::new();
    }

    fn has(&self, size: usize) -> bool {
        self.pages.last().is_some_and(|page| page.len() == size)
    }

    fn take(&mut self, size: usize) -> Page {
        match self.pages.pop() {
            Some(page) if page.len() == size => page,
            _ => {
                let own = self.export.as_deref().and_then(dispatch::new_page);
                own.filter(|page| page.len() == size).unwrap_or_else(|| vec![0; size].into())
            }
        }
    }

    /// Keeps those that have come back and that nobody shares.
    pub(crate) fn sort(&mut self) {
        for mut page in self.returned.drain(..) {
            let room = (self.pages.len() + 1) * page.len() <= Self::KEPT;
            if room && page.get_mut().is_some() {
                self.pages.push(page);
            }
        }
    }
}

/// Fresh pages that a payload gets before any of it has arrived.
const FIRST_PAGES: usize = 4;

/// The most slices that one receive call is given.
pub(crate) const MAX_SLICES: usize = 64;

/// A payload that does not lie in the staging buffer as a whole: in the body's buffer, or in pages.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) pages: Vec<Page>,
    /// Bytes of a page, 0 unless the payload lies in pages.
    page_size: usize,
    prepared: bool,
    failure: Option<ExportError>,
}

impl Payload {
    /// Forgets the payload.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.page_size = 0;
        self.prepared = false;
        self.failure = None;
    }

    /// Whether the payload lies in pages.
    pub(crate) const fn in_pages(&self) -> bool {
        self.page_size != 0
    }

    /// Decides where `length` bytes go: to pages of `page_size` if the export takes them, else to the body. Does so
    /// once; the first byte may be long in coming.
    pub(crate) fn prepare(&mut self, work: &mut Work, length: usize, page_size: Option<usize>) {
        if core::mem::replace(&mut self.prepared, true) {
            return;
        }
        match page_size {
            Some(size) => self.page_size = size,
            None => self.failure = work.body.fill(length).err(),
        }
    }

    /// Why there is no room for the payload, which is to be dropped.
    pub(crate) const fn failure(&self) -> Option<&ExportError> {
        self.failure.as_ref()
    }

    /// The room from `offset` on, `length` bytes at most, as slices. Pages are taken as they are needed: a client has to
    /// send a payload to have memory spent on it.
    pub(crate) fn room<'a>(
        &'a mut self,
        work: &'a mut Work,
        offset: usize,
        length: usize,
        spare: &mut SparePages,
        mut visit: impl FnMut(IoSliceMut<'a>) -> bool,
    ) {
        if self.page_size == 0 {
            let buffer = work.body.buffer_mut();
            visit(IoSliceMut::new(&mut buffer[offset..offset + length]));
            return;
        }
        let (size, end) = (self.page_size, offset + length);
        let first = offset / size;
        let needed = end.div_ceil(size).min(first + MAX_SLICES);
        // Fresh memory is spent in step with what has arrived.
        let earned = first + (first + 1).max(FIRST_PAGES);
        while self.pages.len() < needed && (self.pages.len() < earned || spare.has(size)) {
            self.pages.push(spare.take(size));
        }
        for (number, page) in self.pages.iter_mut().enumerate().skip(first) {
            let start = number * size;
            let (from, to) = (offset.max(start), end.min(start + size));
            // Nobody shares a page that is still to be filled.
            if from < to
                && let Some(bytes) = page.get_mut()
                && !visit(IoSliceMut::new(&mut bytes[from - start..to - start]))
            {
                return;
            }
        }
    }

    /// Copies bytes to their place.
    pub(crate) fn put(
        &mut self,
        work: &mut Work,
        offset: usize,
        bytes: &[u8],
        spare: &mut SparePages,
    ) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let before = rest.len();
            self.room(work, at, before, spare, |mut room| {
                let (head, tail) = rest.split_at(room.len());
                room.copy_from_slice(head);
                rest = tail;
                true
            });
            at += before - rest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 4096;

    #[test]
    fn waiting_for_the_first_byte_takes_no_more_room_each_time() {
        let (mut payload, mut work, mut spare) = Default::default();
        let fresh = |payload: &mut Payload, work: &mut Work| payload.prepare(work, 3 * SIZE, None);
        fresh(&mut payload, &mut work);
        fresh(&mut payload, &mut work);
        assert_eq!(work.body.len(), 3 * SIZE);
        payload.put(&mut work, SIZE, b"abc", &mut spare);
        assert_eq!(&work.body.buffer()[SIZE..SIZE + 3], b"abc");
    }

    #[test]
    fn pages_are_taken_as_the_payload_arrives() {
        let (mut payload, mut work, mut spare) = <(Payload, Work, SparePages)>::default();
        payload.prepare(&mut work, 1000 * SIZE, Some(SIZE));
        assert!(payload.pages.is_empty());
        payload.put(&mut work, SIZE - 1, b"ab", &mut spare);
        assert_eq!(payload.pages.len(), 2);
        assert_eq!((payload.pages[0][SIZE - 1], payload.pages[1][0]), (b'a', b'b'));
        let mut slices = |from: usize, spare: &mut SparePages| {
            let mut count = 0;
            payload.room(&mut work, from * SIZE, (1000 - from) * SIZE, spare, |_| {
                count += 1;
                true
            });
            count
        };
        assert_eq!(slices(1, &mut spare), FIRST_PAGES, "little has arrived");
        assert_eq!(slices(16, &mut spare), 17, "as much again as has arrived");
        spare.pages.extend((0..200).map(|_| spare_page()));
        assert_eq!(slices(33, &mut spare), MAX_SLICES, "spare pages cost nothing");
    }

    #[test]
    fn bytes_for_more_pages_than_one_call_has_room_for_arrive_whole() {
        let (mut payload, mut work, mut spare) = <(Payload, Work, SparePages)>::default();
        let bytes: Vec<u8> = (0..100 * 16).map(|at| (at % 251) as u8).collect();
        payload.prepare(&mut work, 200 * 16, Some(16));
        payload.put(&mut work, 24, &bytes, &mut spare);
        let all = payload.pages.iter().flat_map(|page| page.to_vec()).collect::<Vec<_>>();
        assert_eq!(&all[24..24 + bytes.len()], bytes);
    }

    #[test]
    fn shared_pages_are_not_received_into_again() {
        let mut spare = SparePages::default();
        let page = spare.take(SIZE);
        let reader = page.clone();
        spare.returned.extend([page, spare_page()]);
        spare.sort();
        assert_eq!(spare.pages.len(), 1);
        assert!(!spare.take(SIZE).same(&reader));
    }

    fn spare_page() -> Page {
        vec![0; SIZE].into()
    }
}
