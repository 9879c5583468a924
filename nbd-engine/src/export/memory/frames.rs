//! The memory of one disk: frames in use, frames that wait, and where they come from.
//!
//! Whatever thread drops a page, its frame comes back here and is the next one to be used. A few are kept as they are;
//! the memory of more goes back to the system, frame by frame, so that what is resident does not depend on which frames
//! of a slab are in use. A slab that is free as a whole is unmapped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::PAGE;
use super::account::Account;
use super::page::Page;
use super::slab::{self, FRAMES, Frame};

/// Frames that are kept with their memory while hardly any are in use, 256 KiB.
const MIN_KEPT: usize = 16;

/// Frames that are kept with their memory at most, 4 MiB: a few long writes in flight find theirs without asking the
/// system.
const MAX_KEPT: usize = 256;

/// Frames that the system is asked for at once. As many as are kept at least.
const BATCH: usize = MIN_KEPT;

/// The frames of a disk.
pub(super) struct Frames {
    state: Mutex<State>,
    account: Arc<Account>,
}

#[derive(Default)]
struct State {
    /// Frames that pages have.
    used: usize,
    /// Free ones that have memory, and are in the account as those that are used. Their content is arbitrary.
    warm: Vec<Frame>,
    /// Free ones without memory, by slab.
    cold: BTreeMap<usize, Vec<Frame>>,
}

impl State {
    /// Frames that may be kept with their memory: an eighth of those that are in use, within bounds.
    fn kept(&self) -> usize {
        (self.used / 8).clamp(MIN_KEPT, MAX_KEPT)
    }

    /// Up to `count` frames without memory, of the slab that comes first, so that others become free.
    fn take_cold(&mut self, count: usize) -> Vec<Frame> {
        let Some(mut entry) = self.cold.first_entry() else { return Vec::new() };
        let free = entry.get_mut();
        let frames = free.split_off(free.len().saturating_sub(count));
        if free.is_empty() {
            entry.remove();
        }
        frames
    }

    /// Adds frames without memory. Gives back slabs that are free as a whole.
    fn put_cold(&mut self, frames: impl IntoIterator<Item = Frame>) -> Vec<Vec<Frame>> {
        let mut whole = Vec::new();
        for frame in frames {
            let slab = frame.slab();
            let free = self.cold.entry(slab).or_default();
            free.push(frame);
            if free.len() == FRAMES {
                whole.extend(self.cold.remove(&slab));
            }
        }
        whole
    }
}

impl Frames {
    pub(super) fn new(account: Arc<Account>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), account })
    }

    pub(super) const fn account(&self) -> &Arc<Account> {
        &self.account
    }

    // No panic can come between the changes of a state that belong together.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page that `fill` fills. Its content before is arbitrary, of this disk. `None` if there is no memory.
    pub(super) fn page(self: &Arc<Self>, fill: impl FnOnce(&mut [u8])) -> Option<Page> {
        let mut frame = self.take()?;
        fill(frame.bytes_mut());
        Some(Page::from_frame(frame, Arc::clone(self)))
    }

    fn take(&self) -> Option<Frame> {
        let mut state = self.state();
        if let Some(frame) = state.warm.pop() {
            state.used += 1;
            return Some(frame);
        }
        drop(state);
        // Several at once, as the next ones are likely to be wanted, too. Alone if there is little left.
        let count =
            [BATCH, 1].into_iter().find(|count| self.account.charge((count * PAGE) as u64))?;
        let mut frames = self.take_cold(count);
        self.account.discharge(((count - frames.len()) * PAGE) as u64);
        slab::populate(&mut frames);
        // The first of neighbours comes first.
        frames.reverse();
        let frame = frames.pop()?;
        let mut state = self.state();
        state.used += 1;
        state.warm.extend(frames);
        // Other threads may have done the same.
        self.return_surplus(state);
        Some(frame)
    }

    /// Up to `count` frames without memory; none if there is no address space for more.
    fn take_cold(&self, count: usize) -> Vec<Frame> {
        let frames = self.state().take_cold(count);
        if !frames.is_empty() {
            return frames;
        }
        // Others need not wait for the system. If they map a slab, too, both are used up one after the other.
        let mapped = slab::map();
        let mut state = self.state();
        match mapped {
            Ok(frames) => {
                if let Some(first) = frames.first() {
                    state.cold.insert(first.slab(), frames);
                }
            }
            Err(error) => tracing::debug!(%error, "a disk in memory gets no more of it"),
        }
        state.take_cold(count)
    }

    /// Takes back frames that were in use.
    pub(super) fn give_back(&self, frames: impl IntoIterator<Item = Frame>) {
        let mut state = self.state();
        let before = state.warm.len();
        state.warm.extend(frames);
        state.used -= state.warm.len() - before;
        self.return_surplus(state);
    }

    /// Returns the memory of free frames to the system if there are more with memory than are kept.
    fn return_surplus(&self, mut state: MutexGuard<'_, State>) {
        let kept = state.kept();
        if state.warm.len() <= kept {
            return;
        }
        // More than need be, so that the system isn't asked for each frame. Those that came last are in a processor's
        // cache.
        let surplus = state.warm.len() - kept / 2;
        let mut surplus: Vec<Frame> = state.warm.drain(..surplus).collect();
        drop(state);
        if !slab::discard(&mut surplus) {
            // They are used again at least, as they are.
            self.state().warm.extend(surplus);
            return;
        }
        self.account.discharge((surplus.len() * PAGE) as u64);
        let whole = self.state().put_cold(surplus);
        // Unmapped with the lock free.
        drop(whole);
    }

    /// Takes back pages as far as they are not shared. The others come when their last owner drops them.
    pub(super) fn give_back_pages(&self, pages: Vec<Page>) {
        self.give_back(pages.into_iter().filter_map(Page::into_frame).collect::<Vec<_>>());
    }

    /// Frames that have memory without being in use, and slabs that are mapped though nothing of them is in use.
    #[cfg(test)]
    pub(super) fn idle(&self) -> (usize, usize) {
        let state = self.state();
        (state.warm.len(), state.cold.values().filter(|free| free.len() == FRAMES).count())
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let warm = self.state().warm.len();
        self.account.discharge((warm * PAGE) as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const P: u64 = PAGE as u64;

    fn frames() -> Arc<Frames> {
        Frames::new(Account::fixed(1 << 30))
    }

    fn pages(frames: &Arc<Frames>, count: usize) -> Vec<Page> {
        (0..count).map(|_| frames.page(|bytes| bytes.fill(1)).unwrap()).collect()
    }

    #[test]
    fn a_page_that_was_given_back_is_the_next_one() {
        let frames = frames();
        let page = frames.page(|bytes| bytes.fill(7)).unwrap();
        let address = page.as_ptr();
        thread::spawn(move || drop(page)).join().unwrap();
        assert_eq!(frames.page(|_| {}).unwrap().as_ptr(), address);
    }

    #[test]
    fn a_shared_page_comes_back_with_its_last_owner() {
        let frames = frames();
        let page = frames.page(|_| {}).unwrap();
        let shared = page.clone();
        let idle = frames.idle().0;
        frames.give_back_pages(vec![page]);
        assert_eq!(frames.idle().0, idle);
        drop(shared);
        assert_eq!(frames.idle().0, idle + 1);
    }

    #[test]
    fn few_frames_are_kept_and_whole_slabs_are_unmapped() {
        let frames = frames();
        let all = pages(&frames, 5 * FRAMES + 3);
        frames.give_back_pages(all);
        let (warm, whole) = frames.idle();
        assert!(warm <= MIN_KEPT, "{warm}");
        assert_eq!(whole, 0);
        assert_eq!(frames.account.held(), warm as u64 * P);
        // Those that are kept lie in few slabs, so that most are gone.
        assert!(frames.state().cold.len() <= warm);
    }

    #[test]
    fn what_is_held_follows_what_is_in_use_whatever_is_freed() {
        let frames = frames();
        let mut used = pages(&frames, 16 * FRAMES);
        // Every second page, so that no slab is free as a whole; one by one and by threads.
        let mut odd = false;
        let freed: Vec<Page> = used
            .extract_if(.., |_| {
                odd = !odd;
                odd
            })
            .collect();
        thread::scope(|scope| {
            let mut freed = freed.into_iter();
            for _ in 0..4 {
                let share: Vec<_> = freed.by_ref().take(2 * FRAMES).collect();
                scope.spawn(|| share.into_iter().for_each(drop));
            }
        });
        let bound = (used.len() + MAX_KEPT) as u64 * P;
        assert!(frames.account.held() <= bound, "{} of {bound}", frames.account.held());
        used.clear();
        assert!(frames.account.held() <= MIN_KEPT as u64 * P);
    }

    #[test]
    fn without_memory_there_is_no_page_and_one_that_comes_back_is_one() {
        let frames = Frames::new(Account::fixed(3 * P + 1));
        let mut all = pages(&frames, 3);
        assert!(frames.page(|_| {}).is_none());
        all.pop();
        assert!(frames.page(|_| {}).is_some());
    }

    #[test]
    fn a_disk_that_is_gone_leaves_nothing_in_the_account() {
        let account = Account::fixed(1 << 30);
        let frames = Frames::new(Arc::clone(&account));
        let mut all = pages(&frames, 100);
        let last = all.pop();
        drop(all);
        drop(frames);
        assert!(account.held() >= P, "one page is still shared");
        drop(last);
        assert_eq!(account.held(), 0);
    }
}
