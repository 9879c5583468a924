//! Snapshots and clones that are made while clients write: each has all that was answered before it was asked for and
//! nothing that began after it was there, and never changes.

use core::cell::{Cell, RefCell};
use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;

use futures_util::future::{join, join_all};
use nbd_testkit::{Random, cases};
use nbd_volume::{Location, NewVolume, Volume, check, clone, create, delete_snapshot, snapshot};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::time::sleep;

use crate::faulty::{Faults, Faulty};
use crate::model::{Change, compare, flush, read};
use crate::{in_virtual_time, options};

const SIZE: u64 = 24 * 4096 + 100;
const BLOCK: u64 = 4096;

/// A client that changes bytes which are its own, one change after the other. The first and the last block may have
/// other clients' bytes, too.
struct Writer {
    region: Range<u64>,
    /// What the region held first, and after each change that was begun.
    states: RefCell<Vec<Vec<u8>>>,
    /// How many of the changes were answered.
    answered: Cell<usize>,
}

impl Writer {
    fn new(region: Range<u64>) -> Self {
        let state = vec![0; (region.end - region.start) as usize];
        Self { region, states: vec![state].into(), answered: Cell::new(0) }
    }

    /// How many changes were begun.
    fn begun(&self) -> usize {
        self.states.borrow().len() - 1
    }

    async fn change(&self, volume: &Volume, random: &mut Random) {
        let change = Change::draw(random, self.region.clone());
        let mut disk = vec![0; SIZE as usize];
        let bytes = self.region.start as usize..self.region.end as usize;
        disk[bytes.clone()].copy_from_slice(self.states.borrow().last().unwrap());
        change.apply(&mut disk);
        self.states.borrow_mut().push(disk[bytes].to_vec());
        change.carry_out(volume).await.unwrap();
        self.answered.set(self.begun());
    }

    async fn write_until(&self, over: &Cell<bool>, volume: &Volume, mut random: Random) {
        while !over.get() {
            sleep(Duration::from_millis(random.below(80))).await;
            match random.below(8) {
                0 => flush(volume).await.unwrap(),
                1 => {
                    let found = read(volume, self.region.clone()).await.unwrap();
                    assert!(found == *self.states.borrow().last().unwrap(), "a read differs");
                }
                _ => self.change(volume, &mut random).await,
            }
        }
    }

    /// Whether a disk has a state that the region had after so many changes, or one between two of them: each block
    /// with the later change or without it.
    fn had(&self, disk: &[u8], changes: Range<usize>) -> bool {
        let found = &disk[self.region.start as usize..self.region.end as usize];
        let states = self.states.borrow();
        (changes.start..=changes.end).any(|count| {
            let next = &states[(count + 1).min(changes.end)];
            let both = [&states[count], next];
            self.blocks()
                .all(|block| both.iter().any(|state| state[block.clone()] == found[block.clone()]))
        })
    }

    /// The bytes of each block, in the region.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let Range { start, end } = self.region;
        (start / BLOCK..end.div_ceil(BLOCK)).map(move |index| {
            let block = (index * BLOCK).max(start)..((index + 1) * BLOCK).min(end);
            (block.start - start) as usize..(block.end - start) as usize
        })
    }
}

/// Writers whose regions are the whole disk.
fn some_writers(random: &mut Random) -> Vec<Writer> {
    let mut cuts: Vec<u64> = (0..1 + random.below(4)).map(|_| 1 + random.below(SIZE - 1)).collect();
    cuts.extend([0, SIZE]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| Writer::new(pair[0]..pair[1])).collect()
}

/// A snapshot and what it holds.
struct Kept {
    name: String,
    /// It stays open, as at a server.
    open: Volume,
    disk: Vec<u8>,
}

/// A clone and what it should hold.
struct Cloned {
    location: Location,
    volume: Volume,
    disk: Vec<u8>,
}

impl Cloned {
    async fn diverge(&mut self, random: &mut Random) {
        for _ in 0..random.below(4) {
            let change = Change::draw(random, 0..SIZE);
            change.carry_out(&self.volume).await.unwrap();
            change.apply(&mut self.disk);
        }
        if random.one_in(2) {
            flush(&self.volume).await.unwrap();
        }
    }
}

/// One that makes snapshots and clones, and looks at them.
struct Keeper {
    /// The way of the server, and another one.
    volume: Volume,
    location: Location,
    snapshots: Vec<Kept>,
    clones: Vec<Cloned>,
    /// How many names it has given.
    names: u64,
}

impl Keeper {
    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}-{}", self.names)
    }

    /// Makes a snapshot or a clone, in one of the ways that there are, and returns what it holds.
    async fn make(&mut self, random: &mut Random) -> Vec<u8> {
        if random.one_in(3) {
            let name = self.name("clone");
            let copy = self.location.sibling(&name);
            clone(&self.location, None, &copy).await.unwrap();
            return self.open_clone(copy).await;
        }
        let name = self.name("snapshot");
        match random.one_in(2) {
            true => self.volume.snapshot(&name).await.unwrap(),
            false => snapshot(&self.location, &name).await.unwrap(),
        }
        let open = Volume::open_snapshot(&self.location, &name, &options()).await.unwrap();
        let disk = read(&open, 0..SIZE).await.unwrap();
        self.snapshots.push(Kept { name, open, disk: disk.clone() });
        disk
    }

    async fn open_clone(&mut self, location: Location) -> Vec<u8> {
        let volume = Volume::open(&location, &options()).await.unwrap();
        let disk = read(&volume, 0..SIZE).await.unwrap();
        self.clones.push(Cloned { location, volume, disk: disk.clone() });
        disk
    }

    /// Makes a clone of a snapshot that was made before.
    async fn clone_an_old_one(&mut self, random: &mut Random) {
        if self.snapshots.is_empty() {
            return;
        }
        let name = self.name("clone");
        let copy = self.location.sibling(&name);
        let old = &self.snapshots[random.below(self.snapshots.len() as u64) as usize];
        clone(&self.location, Some(&old.name), &copy).await.unwrap();
        let expected = old.disk.clone();
        let found = self.open_clone(copy).await;
        assert!(found == expected, "a clone differs from its snapshot");
    }

    async fn compare(&self) {
        for kept in &self.snapshots {
            compare(&kept.open, &kept.disk, 0..SIZE).await;
        }
        for cloned in &self.clones {
            compare(&cloned.volume, &cloned.disk, 0..SIZE).await;
        }
    }

    /// Opens everything anew, which has nothing in memory, and compares it.
    async fn compare_anew(&self) {
        for kept in &self.snapshots {
            let anew = Volume::open_snapshot(&self.location, &kept.name, &options()).await.unwrap();
            compare(&anew, &kept.disk, 0..SIZE).await;
            let report = check(&self.location, Some(&kept.name), |_| ()).await.unwrap();
            assert!(report.damage.is_empty(), "{report:?}");
        }
        for cloned in &self.clones {
            cloned.volume.close().await.unwrap();
            let anew = Volume::open(&cloned.location, &options()).await.unwrap();
            compare(&anew, &cloned.disk, 0..SIZE).await;
            anew.close().await.unwrap();
        }
    }
}

#[test]
fn snapshots_and_clones_under_load_have_what_was_answered_and_never_change() {
    cases(6, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "origin");
            create(&location, &NewVolume::of_size(SIZE)).await.unwrap();
            let often = |random: &mut Random| [0, 40, 12][random.below(3) as usize];
            let faults = Faults {
                fails: often(random),
                loses_reply: often(random),
                delay: random.below(30),
                ..Faults::default()
            };
            let way = Faulty::new(&store, Random::new(random.below(u64::MAX)), faults);
            let own_way = Location::over(way, "origin");
            let mut options = options();
            options.lease = Duration::from_secs(1);
            let volume = Volume::open(&own_way, &options).await.unwrap();
            let writers = some_writers(random);
            let over = Cell::new(false);
            let writing = writers.iter().map(|writer| {
                let random = Random::new(random.next());
                writer.write_until(&over, &volume, random)
            });
            let writing = join_all(writing.collect::<Vec<_>>());
            let mut keeper = Keeper {
                volume: volume.clone(),
                location: location.clone(),
                snapshots: Vec::new(),
                clones: Vec::new(),
                names: 0,
            };
            let keeping = async {
                for _ in 0..2 + random.below(3) {
                    sleep(Duration::from_millis(random.below(1000))).await;
                    let answered: Vec<usize> =
                        writers.iter().map(|writer| writer.answered.get()).collect();
                    let disk = keeper.make(random).await;
                    for (writer, answered) in writers.iter().zip(answered) {
                        let region = &writer.region;
                        let changes = answered..writer.begun();
                        assert!(writer.had(&disk, changes), "{region:?} is not as it was");
                    }
                    if random.one_in(3) {
                        keeper.clone_an_old_one(random).await;
                    }
                    for cloned in &mut keeper.clones {
                        cloned.diverge(random).await;
                    }
                    keeper.compare().await;
                    if random.one_in(4) && !keeper.snapshots.is_empty() {
                        let kept = keeper.snapshots.swap_remove(0);
                        kept.open.close().await.unwrap();
                        delete_snapshot(&location, &kept.name).await.unwrap();
                    }
                }
                over.set(true);
            };
            join(keeping, writing).await;
            keeper.compare().await;
            volume.close().await.unwrap();
            keeper.compare_anew().await;
            let last = Volume::open(&location, &options).await.unwrap();
            for writer in &writers {
                let found = read(&last, writer.region.clone()).await.unwrap();
                assert!(found == *writer.states.borrow().last().unwrap(), "the origin differs");
            }
        });
    });
}
