//! The table of requests in flight, keyed by an index with a generation, never by the wire's cookie.

use alloc::vec::Vec;

/// Names a request in flight on one connection.
///
/// The index is small and reused, so that an embedder can keep its own data in a `Vec` beside the core's; the
/// generation tells a request from a later one in the same slot. So an id as a whole is not reused (or after 2^32
/// requests in one slot), and one that is out of date is found out: [`Misuse::NoSuchRequest`](crate::Misuse).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    index: u32,
    generation: u32,
}

impl RequestId {
    /// The slot in the table: below [`Limits::max_in_flight`](crate::Limits::max_in_flight), reused once the
    /// request is over.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// The cookie that a client gives a request: no two requests in flight share one.
    // C-REQ-18
    pub(crate) fn cookie(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.index)
    }

    /// The request that a cookie stands for, if any does: to be looked up in the table.
    pub(crate) fn from_cookie(cookie: u64) -> Option<Self> {
        let generation = u32::try_from(cookie >> 32).ok()?;
        let index = u32::try_from(cookie & u64::from(u32::MAX)).ok()?;
        Some(Self { index, generation })
    }
}

/// A slab of `T`, whose slots keep their `T` (and its allocations) between uses.
#[derive(Debug)]
pub(crate) struct InFlight<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    used: usize,
    limit: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    used: bool,
    value: T,
}

impl<T: Default> InFlight<T> {
    pub(crate) const fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), used: 0, limit }
    }

    pub(crate) const fn len(&self) -> usize {
        self.used
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.used >= self.limit as usize
    }

    /// Takes a free slot; its value is as its last user left it. `None` when the table is full.
    pub(crate) fn take(&mut self) -> Option<(RequestId, &mut T)> {
        if self.is_full() {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot { generation: 0, used: false, value: T::default() });
                index
            }
        };
        let slot = self.slots.get_mut(index as usize)?;
        slot.used = true;
        self.used = self.used.saturating_add(1);
        Some((RequestId { index, generation: slot.generation }, &mut slot.value))
    }

    pub(crate) fn get(&self, id: RequestId) -> Option<&T> {
        let slot = self.slots.get(id.index())?;
        (slot.used && slot.generation == id.generation).then_some(&slot.value)
    }

    pub(crate) fn get_mut(&mut self, id: RequestId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index())?;
        (slot.used && slot.generation == id.generation).then_some(&mut slot.value)
    }

    /// Frees a slot, and shows what is left in it. `None` for an id that is out of date.
    #[inline]
    pub(crate) fn release(&mut self, id: RequestId) -> Option<&T> {
        let slot = self.slots.get_mut(id.index())?;
        if !slot.used || slot.generation != id.generation {
            return None;
        }
        slot.used = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.used = self.used.saturating_sub(1);
        self.free.push(id.index);
        Some(&slot.value)
    }

    /// The values in use.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter(|slot| slot.used).map(|slot| &slot.value)
    }

    /// Takes the table apart from its end: each call gives one more value that is in use. Slots are not reused after
    /// that.
    pub(crate) fn pop(&mut self) -> Option<(RequestId, T)> {
        self.limit = 0;
        loop {
            let Slot { generation, used, value } = self.slots.pop()?;
            if used {
                self.used = self.used.saturating_sub(1);
                let index = u32::try_from(self.slots.len()).ok()?;
                return Some((RequestId { index, generation }, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_void_once_its_slot_is_reused() {
        let mut table = InFlight::<u8>::new(1);
        let (first, _) = table.take().unwrap();
        assert!(table.take().is_none(), "the table is full");
        assert!(table.release(first).is_some());
        assert!(table.release(first).is_none(), "it is free already");
        let (second, _) = table.take().unwrap();
        assert_eq!(first.index(), second.index());
        assert!(table.get(first).is_none());
        assert!(table.get_mut(second).is_some());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_cookie_names_its_request_and_no_other() {
        let mut table = InFlight::<u8>::new(2);
        let (first, _) = table.take().unwrap();
        let (second, _) = table.take().unwrap();
        assert_ne!(first.cookie(), second.cookie());
        assert_eq!(RequestId::from_cookie(second.cookie()), Some(second));
        table.release(second);
        let (third, _) = table.take().unwrap();
        assert_ne!(third.cookie(), second.cookie());
        assert!(table.get(RequestId::from_cookie(second.cookie()).unwrap()).is_none());
    }

    #[test]
    fn taking_the_table_apart_gives_each_value_in_use_once() {
        let mut table = InFlight::<u8>::new(3);
        let ids: Vec<_> = (0..3).map(|_| table.take().unwrap().0).collect();
        table.release(ids[1]);
        assert_eq!(table.iter().count(), 2);
        assert_eq!(table.pop().unwrap().0, ids[2]);
        assert_eq!(table.pop().unwrap().0, ids[0]);
        assert!(table.pop().is_none() && table.take().is_none());
        assert_eq!(table.len(), 0);
    }
}
