//! Handing changes of blocks to SlateDB: those of requests that come at the same time go in one batch, which costs little
//! more than one of them.

use core::mem::{replace, take};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nbd_engine::export::ExportError;
use slatedb::WriteBatch;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::blocks::Result;
use crate::layout::block_key;
use crate::locks::RangeLock;
use crate::shared::Shared;

/// A block's index and its new content; an empty one is a hole.
pub(crate) type Change = (u64, Bytes);

/// What a request has until its changes are carried out: its blocks, and room for their data.
pub(crate) type Held = (RangeLock, OwnedSemaphorePermit);

/// How changes ended. All that went in one batch end in the same way.
pub(crate) type Outcome = core::result::Result<(), Arc<slatedb::Error>>;

/// Bytes of one batch, beyond which no more requests join it. A batch is in the store as a whole or not at all.
const MAX_BATCH: usize = 4 << 20;

/// Changes that wait for their turn.
#[derive(Debug, Default)]
pub(crate) struct Commits(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether somebody hands over what waits.
    busy: bool,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    changes: Vec<Change>,
    /// Whether the cache learns of them, or forgets them.
    kept: bool,
    /// None if the request itself waits with what it has.
    _held: Option<Held>,
    done: oneshot::Sender<Outcome>,
}

impl Commits {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds changes to those that wait. Returns whether it is for the caller to have them handed over.
    fn add(&self, waiting: Waiting) -> bool {
        let mut state = self.state();
        state.waiting.push(waiting);
        !replace(&mut state.busy, true)
    }

    /// What goes in the next batch. With nothing left it is for the next one that [adds](Self::add) to have it handed
    /// over.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut state = self.state();
        let mut bytes = 0;
        let joins = |waiting: &&Waiting| {
            let before = bytes;
            bytes += waiting.bytes();
            before == 0 || bytes <= MAX_BATCH
        };
        let count = state.waiting.iter().take_while(joins).count();
        state.busy = count > 0;
        (count > 0).then(|| state.waiting.drain(..count).collect())
    }

    /// Nobody hands over what waits any more: its requests fail.
    fn give_up(&self) {
        let mut state = self.state();
        state.busy = false;
        // What they hold is released without this lock.
        let waiting = take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.changes.iter().map(|(_, block)| block.len().max(1)).sum()
    }
}

/// The task of handing over what waits, which one has at a time.
struct Turn {
    shared: Arc<Shared>,
    ended: bool,
}

impl Turn {
    /// Hands over all that waits and all that comes meanwhile.
    async fn go_on(mut self) {
        while let Some(waiting) = self.shared.commits.next() {
            let batch = Batch { shared: &self.shared, waiting };
            let outcome = self.shared.put(batch.to_write()).await;
            batch.end(&outcome.map_err(Arc::new));
        }
        self.ended = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.commits.give_up();
        }
    }
}

/// Changes that are handed over together. What is known of their blocks is set right before their locks are released,
/// also when this is dropped: then they may have been carried out or not.
struct Batch<'a> {
    shared: &'a Shared,
    waiting: Vec<Waiting>,
}

impl Batch<'_> {
    fn to_write(&self) -> WriteBatch {
        let mut batch = WriteBatch::new();
        for (index, block) in self.changes() {
            match block.is_empty() {
                true => batch.delete(block_key(*index)),
                false => batch.put_bytes(block_key(*index), block.clone()),
            }
        }
        batch
    }

    fn end(mut self, outcome: &Outcome) {
        let shared = self.shared;
        match outcome {
            Ok(()) => shared.ahead.forget(self.indexes()),
            Err(_) => self.forget(),
        }
        for mut waiting in take(&mut self.waiting) {
            if outcome.is_ok() {
                for (index, block) in take(&mut waiting.changes) {
                    match waiting.kept {
                        true => shared.cache.insert(index, block),
                        false => shared.cache.remove(index),
                    }
                }
            }
            let Waiting { _held: held, done, .. } = waiting;
            drop(held);
            // Fails if the request was given up.
            let _given_up = done.send(outcome.clone());
        }
    }

    /// What was known of the blocks does not count any more.
    fn forget(&self) {
        self.indexes().for_each(|index| self.shared.cache.remove(index));
        self.shared.ahead.forget(self.indexes());
    }

    fn indexes(&self) -> impl Iterator<Item = u64> {
        self.changes().map(|(index, _)| *index)
    }

    fn changes(&self) -> impl Iterator<Item = &Change> {
        self.waiting.iter().flat_map(|waiting| &waiting.changes)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Shared {
    /// Has changes handed to SlateDB, which may make them wait for memory, and reported to the caches. Their blocks have
    /// to be locked until then: by what is `held`, or by the caller. Once this has returned they are carried out, whether
    /// somebody waits for the outcome or not.
    pub(crate) fn commit(
        self: &Arc<Self>,
        changes: Vec<Change>,
        kept: bool,
        held: Option<Held>,
    ) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        if self.commits.add(Waiting { changes, kept, _held: held, done }) {
            self.runtime.spawn(Turn { shared: Arc::clone(self), ended: false }.go_on());
        }
        outcome
    }

    /// Waits for what became of [changes](Self::commit).
    pub(crate) async fn committed(&self, outcome: oneshot::Receiver<Outcome>) -> Result<()> {
        match outcome.await {
            Ok(outcome) => outcome.map_err(|error| self.failed(&error)),
            // With all that it had to do.
            Err(_) => Err(ExportError::io("the runtime of the volume has ended")),
        }
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    fn waiting(number: u64, bytes: usize) -> (Waiting, oneshot::Receiver<Outcome>) {
        let (done, outcome) = oneshot::channel();
        let changes = vec![(number, Bytes::from(vec![1; bytes]))];
        (Waiting { changes, kept: false, _held: None, done }, outcome)
    }

    #[test]
    fn what_comes_goes_once_in_its_order_by_bounded_batches() {
        cases(200, |random| {
            let commits = Commits::default();
            let (mut added, mut taken, mut busy) = (0, 0, false);
            let mut outcomes = Vec::new();
            for _ in 0..100 {
                if random.below(3) > 0 {
                    let (waiting, outcome) = waiting(added, random.below(2 << 20) as usize);
                    outcomes.push(outcome);
                    assert_eq!(commits.add(waiting), !busy, "one hands over at a time");
                    (added, busy) = (added + 1, true);
                } else if busy {
                    let next = commits.next();
                    assert_eq!(next.is_some(), taken < added);
                    busy = next.is_some();
                    let batch = next.unwrap_or_default();
                    let bytes: usize = batch.iter().map(Waiting::bytes).sum();
                    assert!(batch.len() <= 1 || bytes <= MAX_BATCH, "{bytes} bytes");
                    for waiting in batch {
                        assert_eq!(waiting.changes[0].0, taken);
                        taken += 1;
                    }
                }
            }
            commits.give_up();
            for outcome in outcomes {
                assert!(outcome.blocking_recv().is_err(), "nobody waits for ever");
            }
            assert!(commits.add(waiting(0, 1).0), "the next one hands over again");
        });
    }
}
