//! Where the payload of a write is collected.

use std::io::IoSliceMut;
use std::sync::Arc;

use nbd_proto::wire::ErrorCode;

use super::dispatch;
use crate::export::{Body, Export, ExportError, Page, allocate};
use crate::pump::MAX_ROOM;

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
    const MAX_KEPT: usize = 1 << 20;

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

    /// A page of that size; `None` if there is no memory for it.
    fn take(&mut self, size: usize) -> Option<Page> {
        match self.pages.pop() {
            Some(page) if page.len() == size => Some(page),
            _ => {
                let own = self.export.as_deref().and_then(dispatch::new_page);
                let own = own.filter(|page| page.len() == size);
                own.or_else(|| allocate(size).map(Page::from))
            }
        }
    }

    /// Keeps those that have come back and are not shared.
    pub(crate) fn sort(&mut self) {
        for mut page in self.returned.drain(..) {
            let room = (self.pages.len() + 1) * page.len() <= Self::MAX_KEPT;
            if room && page.get_mut().is_some() {
                self.pages.push(page);
            }
        }
    }
}

/// Fresh pages that a payload gets before any of it has arrived.
const FIRST_PAGES: usize = 4;

/// Where a payload lies that was not received in one piece.
#[derive(Debug, Default)]
pub(crate) enum Destination {
    /// It is not decided yet.
    #[default]
    Undecided,
    /// In the body's own buffer.
    Buffer,
    /// In pages of that size, which the export takes over.
    Pages(usize),
    /// It is dropped, since there is no room for it.
    Dropped(ExportError),
}

/// A payload that was not received in one piece.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) destination: Destination,
    pub(crate) pages: Vec<Page>,
}

impl Payload {
    /// Forgets the payload.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.destination = Destination::Undecided;
    }

    /// Frees all memory.
    pub(crate) fn free(&mut self) {
        *self = Self::default();
    }

    /// Whether it was decided where the payload goes.
    pub(crate) const fn is_decided(&self) -> bool {
        !matches!(self.destination, Destination::Undecided)
    }

    /// Decides where `length` bytes go: to pages of `page_size` if the export takes them, else to the body.
    pub(crate) fn decide(&mut self, body: &mut Body, length: usize, page_size: Option<usize>) {
        self.destination = match page_size {
            Some(size) => Destination::Pages(size),
            None => match body.fill(length) {
                Ok(_) => Destination::Buffer,
                Err(error) => Destination::Dropped(error),
            },
        };
    }

    /// Takes pages for what arrives next, in step with what has arrived: a client has to send a payload to have memory
    /// spent on it.
    pub(crate) fn provide_pages(&mut self, offset: usize, length: usize, spare: &mut SparePages) {
        let Destination::Pages(size) = self.destination else { return };
        let first = offset / size;
        let needed = (offset + length).div_ceil(size).min(first + MAX_ROOM);
        let earned = first + (first + 1).max(FIRST_PAGES);
        while self.pages.len() < needed && (self.pages.len() < earned || spare.has(size)) {
            match spare.take(size) {
                Some(page) => self.pages.push(page),
                None if self.pages.len() > first => return,
                None => {
                    let text = "the server has no memory left for the data";
                    self.pages.clear();
                    self.destination =
                        Destination::Dropped(ExportError::new(ErrorCode::ENOMEM, text));
                    return;
                }
            }
        }
    }

    /// The room from `offset` on, `length` bytes at most, as slices.
    pub(crate) fn room<'a>(
        &'a mut self,
        body: &'a mut Body,
        offset: usize,
        length: usize,
        mut visit: impl FnMut(IoSliceMut<'a>) -> bool,
    ) {
        let size = match self.destination {
            Destination::Pages(size) => size,
            Destination::Buffer => {
                visit(IoSliceMut::new(&mut body.buffer_mut()[offset..offset + length]));
                return;
            }
            Destination::Undecided | Destination::Dropped(_) => return,
        };
        let end = offset + length;
        for (number, page) in self.pages.iter_mut().enumerate().skip(offset / size) {
            let start = number * size;
            let (from, to) = (offset.max(start), end.min(start + size));
            // A page that is still to be filled is not shared.
            if from < to
                && let Some(bytes) = page.get_mut()
                && !visit(IoSliceMut::new(&mut bytes[from - start..to - start]))
            {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 4096;

    fn put(payload: &mut Payload, body: &mut Body, mut offset: usize, mut bytes: &[u8]) {
        let mut spare = SparePages::default();
        while !bytes.is_empty() {
            payload.provide_pages(offset, bytes.len(), &mut spare);
            let before = bytes.len();
            payload.room(body, offset, before, |mut room| {
                let (head, tail) = bytes.split_at(room.len());
                room.copy_from_slice(head);
                bytes = tail;
                true
            });
            assert!(bytes.len() < before, "there is always some room");
            offset += before - bytes.len();
        }
    }

    #[test]
    fn without_pages_the_payload_lies_in_the_body() {
        let (mut payload, mut body) = <(Payload, Body)>::default();
        payload.decide(&mut body, 3 * SIZE, None);
        assert_eq!(body.len(), 3 * SIZE);
        put(&mut payload, &mut body, SIZE, b"abc");
        assert_eq!(&body.buffer()[SIZE..SIZE + 3], b"abc");
    }

    #[test]
    fn a_payload_that_no_memory_is_left_for_is_dropped() {
        let (mut payload, mut body) = <(Payload, Body)>::default();
        payload.decide(&mut body, isize::MAX as usize, None);
        let Destination::Dropped(error) = &payload.destination else {
            panic!("there can't be so much")
        };
        assert_eq!(error.code(), ErrorCode::ENOMEM);
    }

    #[test]
    fn pages_are_taken_as_the_payload_arrives() {
        let (mut payload, mut body, mut spare) = <(Payload, Body, SparePages)>::default();
        payload.decide(&mut body, 1000 * SIZE, Some(SIZE));
        assert!(payload.pages.is_empty());
        put(&mut payload, &mut body, SIZE - 1, b"ab");
        assert_eq!((payload.pages[0][SIZE - 1], payload.pages[1][0]), (b'a', b'b'));
        let mut slices = |from: usize, spare: &mut SparePages| {
            let mut count = 0;
            payload.provide_pages(from * SIZE, (1000 - from) * SIZE, spare);
            payload.room(&mut body, from * SIZE, (1000 - from) * SIZE, |_| {
                count += 1;
                true
            });
            count
        };
        assert_eq!(slices(1, &mut spare), FIRST_PAGES, "little has arrived");
        assert_eq!(slices(16, &mut spare), 17, "as much again as has arrived");
        spare.pages.extend((0..200).map(|_| spare_page()));
        assert_eq!(slices(33, &mut spare), MAX_ROOM, "spare pages cost nothing");
    }

    #[test]
    fn bytes_for_more_pages_than_one_call_has_room_for_arrive_whole() {
        let (mut payload, mut body) = <(Payload, Body)>::default();
        let bytes: Vec<u8> = (0..100 * 16).map(|index| (index % 251) as u8).collect();
        payload.decide(&mut body, 200 * 16, Some(16));
        put(&mut payload, &mut body, 24, &bytes);
        let all = payload.pages.iter().flat_map(|page| page.to_vec()).collect::<Vec<_>>();
        assert_eq!(&all[24..24 + bytes.len()], bytes);
    }

    #[test]
    fn shared_pages_are_not_received_into_again() {
        let mut spare = SparePages::default();
        let page = spare.take(SIZE).unwrap();
        let reader = page.clone();
        spare.returned.extend([page, spare_page()]);
        spare.sort();
        assert_eq!(spare.kept(), SIZE);
        assert!(!spare.take(SIZE).unwrap().same(&reader));
    }

    fn spare_page() -> Page {
        vec![0; SIZE].into()
    }
}
