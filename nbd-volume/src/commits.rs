//! Handing changes of blocks to SlateDB: those of requests that come at the same time go in one batch, which costs little
//! more than one of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use slatedb::WriteBatch;
use tokio::sync::oneshot;

use crate::blocks::Result;
use crate::layout::block_key;
use crate::shared::Shared;

/// A block's index and its new content; an empty one is a hole.
pub(crate) type Change = (u64, Bytes);

/// How changes ended. All that went in one batch end in the same way.
type Outcome = core::result::Result<(), Arc<slatedb::Error>>;

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
    done: oneshot::Sender<Outcome>,
}

impl Commits {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds changes to those that wait. Returns whether it is for the caller to hand them over.
    fn add(&self, waiting: Waiting) -> bool {
        let mut state = self.state();
        state.waiting.push(waiting);
        !core::mem::replace(&mut state.busy, true)
    }

    /// What goes in the next batch. With nothing left it is for the next one that [adds](Self::add) to hand it over.
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
        state.waiting.clear();
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
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let next = self.shared.commits.next();
        self.ended = next.is_none();
        next
    }

    /// Hands over a batch.
    async fn hand_over(&self, waiting: Vec<Waiting>) {
        let mut batch = WriteBatch::new();
        let mut requests = Vec::with_capacity(waiting.len());
        for Waiting { changes, done } in waiting {
            for (index, block) in changes {
                match block.is_empty() {
                    true => batch.delete(block_key(index)),
                    false => batch.put_bytes(block_key(index), block),
                }
            }
            requests.push(done);
        }
        let outcome = self.shared.put(batch).await.map_err(Arc::new);
        for done in requests {
            // Fails if the request was given up.
            let _given_up = done.send(outcome.clone());
        }
    }

    /// Hands over this batch and all that come meanwhile.
    async fn go_on(mut self, mut waiting: Vec<Waiting>) {
        loop {
            self.hand_over(waiting).await;
            let Some(next) = self.next() else { return };
            waiting = next;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.commits.give_up();
        }
    }
}

impl Shared {
    /// Hands changes to SlateDB, which may make them wait for memory. With a lock of the blocks, so that no two changes
    /// of a block are in a batch.
    pub(crate) async fn commit(self: &Arc<Self>, changes: Vec<Change>) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        if self.commits.add(Waiting { changes, done }) {
            let mut turn = Turn { shared: Arc::clone(self), ended: false };
            if let Some(own) = turn.next() {
                turn.hand_over(own).await;
            }
            // What came meanwhile is not for this request to wait for.
            if let Some(others) = turn.next() {
                self.runtime.spawn(turn.go_on(others));
            }
        }
        match outcome.await {
            Ok(outcome) => outcome.map_err(|error| self.failed(&error)),
            // The runtime ends, with all that it had to do.
            Err(_) => Err(self.closed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    fn waiting(number: u64, bytes: usize) -> (Waiting, oneshot::Receiver<Outcome>) {
        let (done, outcome) = oneshot::channel();
        (Waiting { changes: vec![(number, Bytes::from(vec![1; bytes]))], done }, outcome)
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
