//! Crashes at any moment, over a store that delays, fails and loses replies: what is left is a prefix of what was
//! done, and has all that was flushed.

use core::time::Duration;
use std::collections::HashSet;
use std::sync::Arc;

use nbd_testkit::{Random, cases};
use nbd_volume::{Location, NewVolume, Volume, create};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::faulty::{Faults, Faulty};
use crate::model::{Change, flush, read};
use crate::{in_virtual_time, options};

const SIZE: u64 = 24 * 4096 + 100;
const BLOCK: usize = 4096;

/// What a volume may hold: the states after each step since the last flush that was answered, and the changes between
/// them.
struct History {
    /// The first one is what was flushed.
    states: Vec<Vec<u8>>,
    /// The changes that lead from each state to the next one, which were in flight together.
    steps: Vec<Vec<Change>>,
}

impl History {
    fn new(state: Vec<u8>) -> Self {
        Self { states: vec![state], steps: Vec::new() }
    }

    fn step(&mut self, changes: &[Change]) {
        let mut state = self.states.last().unwrap().clone();
        changes.iter().for_each(|change| change.apply(&mut state));
        self.states.push(state);
        self.steps.push(changes.to_vec());
    }

    fn flushed(&mut self) {
        self.states.drain(..self.states.len() - 1);
        self.steps.clear();
    }

    /// Whether that is a state, or one between two of them: each block with some of the changes in flight, in some
    /// order. Changes of one step touch different bytes, so that their order is of no importance.
    fn allows(&self, found: &[u8]) -> bool {
        (0..self.states.len()).any(|index| {
            let changes = self.steps.get(index).map_or(&[][..], |step| step);
            self.is_between(&self.states[index], changes, found)
        })
    }

    fn is_between(&self, state: &[u8], changes: &[Change], found: &[u8]) -> bool {
        if state == found {
            return true;
        }
        let subsets = (0..1u32 << changes.len()).map(|subset| {
            let mut possible = state.to_vec();
            let chosen = changes.iter().enumerate().filter(|(i, _)| subset & 1 << i != 0);
            chosen.for_each(|(_, change)| change.apply(&mut possible));
            possible
        });
        let possible: Vec<Vec<u8>> = subsets.collect();
        found.chunks(BLOCK).enumerate().all(|(index, block)| {
            let options: HashSet<&[u8]> =
                possible.iter().filter_map(|disk| disk.chunks(BLOCK).nth(index)).collect();
            options.contains(block)
        })
    }
}

/// Up to three changes in different parts of the disk, which may share blocks.
fn some_changes(random: &mut Random) -> Vec<Change> {
    let count = 1 + random.below(3);
    let mut cuts: Vec<u64> = (1..count).map(|_| 1 + random.below(SIZE - 1)).collect();
    cuts.extend([0, SIZE]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| Change::draw(random, pair[0]..pair[1])).collect()
}

async fn one_life(store: &Arc<dyn ObjectStore>, random: &mut Random, history: &mut History) {
    let faults = Faults {
        fails: [0, 40, 12][random.below(3) as usize],
        loses_reply: [0, 40, 12][random.below(3) as usize],
        delay: random.below(30),
        ..Faults::default()
    };
    let way = Faulty::new(store, Random::new(random.below(u64::MAX)), faults);
    let location = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "v");
    let volume = Volume::open(&location, &options()).await.unwrap();
    let found = read(&volume, 0..SIZE).await.unwrap();
    assert!(history.allows(&found), "what is left is no state that there was since the last flush");
    // From here on that is the state; what was in memory alone is gone for good.
    *history = History::new(found);
    // What the volume holds now was replayed from the store.
    let moment = Duration::from_millis(random.below(1500));
    let life = async {
        for _ in 0..3 + random.below(12) {
            match random.below(5) {
                0 => {
                    flush(&volume).await.unwrap();
                    history.flushed();
                }
                1 => tokio::time::sleep(Duration::from_millis(random.below(1200))).await,
                2 => {
                    let found = read(&volume, 0..SIZE).await.unwrap();
                    assert!(found == *history.states.last().unwrap(), "a read sees something else");
                }
                _ => {
                    let changes = some_changes(random);
                    // Before it is carried out: it may be cut off in the middle.
                    history.step(&changes);
                    let done = changes.iter().map(|change| change.carry_out(&volume));
                    for outcome in futures_util::future::join_all(done).await {
                        outcome.unwrap();
                    }
                }
            }
        }
    };
    let _over = tokio::time::timeout(moment, life).await;
    way.cut();
}

#[test]
fn what_is_left_after_a_crash_is_a_prefix_with_all_that_was_flushed() {
    cases(40, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            create(&location, &NewVolume::of_size(SIZE)).await.unwrap();
            let mut history = History::new(vec![0; SIZE as usize]);
            for _ in 0..2 + random.below(3) {
                one_life(&store, random, &mut history).await;
            }
            let volume = Volume::open(&location, &options()).await.unwrap();
            let found = read(&volume, 0..SIZE).await.unwrap();
            assert!(history.allows(&found), "what is left is no state that there was");
        });
    });
}
