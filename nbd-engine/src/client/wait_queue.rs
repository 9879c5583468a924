//! A queue whose entries can leave from anywhere, however long it is.

/// First in, first out, but for those that are removed. Room is kept for as many entries as there ever were at a time,
/// so that an entry costs no allocation.
#[derive(Debug)]
pub(super) struct WaitQueue<T> {
    /// A list through the entries in use, and one through those that are free.
    entries: Vec<Entry<T>>,
    first: Option<usize>,
    last: Option<usize>,
    free: Option<usize>,
}

#[derive(Debug)]
struct Entry<T> {
    /// `None` if the entry is free.
    value: Option<T>,
    previous: Option<usize>,
    next: Option<usize>,
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), first: None, last: None, free: None }
    }
}

impl<T> WaitQueue<T> {
    /// Adds a value at the end. Gives the index that it has until it is taken out; another value may have it then.
    pub(super) fn push(&mut self, value: T) -> usize {
        let entry = Entry { value: Some(value), previous: self.last, next: None };
        let index = match self.free {
            Some(index) => {
                self.free = self.entries[index].next;
                self.entries[index] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        *self.link_after(self.last) = Some(index);
        self.last = Some(index);
        index
    }

    /// The value that has an index.
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.entries.get(index)?.value.as_ref()
    }

    /// Takes out the value that has an index.
    pub(super) fn remove(&mut self, index: usize) -> Option<T> {
        let entry = self.entries.get_mut(index)?;
        let value = entry.value.take()?;
        let (previous, next) = (entry.previous, entry.next);
        entry.next = self.free.replace(index);
        *self.link_after(previous) = next;
        match next {
            Some(next) => self.entries[next].previous = previous,
            None => self.last = previous,
        }
        Some(value)
    }

    /// Takes out the first value.
    pub(super) fn pop(&mut self) -> Option<T> {
        self.remove(self.first?)
    }

    /// Where the index of the entry stands that follows another one, or none.
    fn link_after(&mut self, previous: Option<usize>) -> &mut Option<usize> {
        match previous {
            Some(previous) => &mut self.entries[previous].next,
            None => &mut self.first,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push,
        Pop,
        Remove(prop::sample::Index),
        /// Of an index that may be that of no value.
        RemoveAny(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Push),
            1 => Just(Step::Pop),
            2 => any::<prop::sample::Index>().prop_map(Step::Remove),
            1 => (0..20_usize).prop_map(Step::RemoveAny),
        ]
    }

    proptest! {
        #[test]
        fn it_is_the_same_as_a_list_and_keeps_no_more_entries(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut queue = WaitQueue::default();
            // Index and value.
            let mut model: Vec<(usize, usize)> = Vec::new();
            let mut max = 0;
            for (value, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push => model.push((queue.push(value), value)),
                    Step::Pop => {
                        let first = (!model.is_empty()).then(|| model.remove(0).1);
                        prop_assert_eq!(queue.pop(), first);
                    }
                    Step::Remove(which) if !model.is_empty() => {
                        let (index, value) = model.remove(which.index(model.len()));
                        prop_assert_eq!(queue.remove(index), Some(value));
                        prop_assert_eq!(queue.remove(index), None);
                    }
                    Step::Remove(_) => {}
                    Step::RemoveAny(index) => {
                        let known = model.iter().position(|(known, _)| *known == index);
                        let value = known.map(|known| model.remove(known).1);
                        prop_assert_eq!(queue.remove(index), value);
                    }
                }
                max = max.max(model.len());
                for (index, value) in &model {
                    prop_assert_eq!(queue.get(*index), Some(value));
                }
            }
            prop_assert_eq!(queue.entries.len(), max);
            for (_, value) in model {
                prop_assert_eq!(queue.pop(), Some(value));
            }
            prop_assert_eq!(queue.pop(), None);
        }
    }
}
