//! Reading in sequence: what it asks the store for, and that it never sees what was there before a change.

use core::cell::{Cell, RefCell};
use core::ops::ControlFlow;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use nbd_engine::export::{Allocation, AsyncCanCache as _, AsyncCanExtents as _, AsyncExport as _};
use nbd_testkit::{Random, cases};
use nbd_volume::{Location, NewVolume, Options, Volume, create};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::time::sleep;

use crate::faulty::{Faults, Faulty};
use crate::model::{Change, extents, read, resize, write};
use crate::{in_virtual_time, options};

const REQUEST: u64 = 128 << 10;

/// A volume whose blocks are all there, in tables of the store, and in no cache.
async fn written(size: u64, options: &Options) -> Volume {
    let location = Location::in_memory("sequences/one");
    // Few entries, which take most of the time.
    create(&location, &NewVolume::of_size(size).with_block_size(64 << 10)).await.unwrap();
    let volume = Volume::open(&location, options).await.unwrap();
    for start in (0..size).step_by(1 << 20) {
        write(&volume, &vec![(start >> 20) as u8 + 1; 1 << 20], start).await.unwrap();
    }
    volume.close().await.unwrap();
    Volume::open(&location, options).await.unwrap()
}

fn with_read_ahead() -> Options {
    let mut options = options();
    // Tables of 16 MiB.
    options.max_unflushed = 64 << 20;
    options.object_cache = 2 << 20;
    options.read_ahead = 32 << 20;
    options
}

/// The answer to one request for extents.
async fn runs(volume: &Volume, bytes: core::ops::Range<u64>) -> Vec<Allocation> {
    let mut runs = Vec::new();
    let visit = &mut |run| {
        runs.push(run);
        ControlFlow::Continue(())
    };
    let length = bytes.end - bytes.start;
    volume.can_extents().unwrap().extents(bytes.start, length, visit).await.unwrap();
    assert!(!runs.is_empty(), "nothing was reported");
    runs
}

#[test]
fn a_sequential_read_takes_a_request_for_several_mebibytes_at_any_depth() {
    in_virtual_time(async {
        // So few tables that none are merged meanwhile, which would count.
        let size: u64 = 48 << 20;
        let mut volume = written(size, &with_read_ahead()).await;
        for depth in [1, 16] {
            // Indexes of tables are fetched by the first one.
            read(&volume, size - 1..size).await.unwrap();
            let before = volume.location().traffic();
            let reads = (0..size / REQUEST).map(|i| {
                let volume = &volume;
                async move { (i, read(volume, i * REQUEST..(i + 1) * REQUEST).await.unwrap()) }
            });
            let mut reads = stream::iter(reads).buffer_unordered(depth);
            while let Some((i, bytes)) = reads.next().await {
                assert!(bytes == vec![((i * REQUEST) >> 20) as u8 + 1; REQUEST as usize], "{i}");
            }
            let after = volume.location().traffic();
            let (gets, fetched) = (after.gets - before.gets, after.get_bytes - before.get_bytes);
            assert!((8..128).contains(&gets), "{gets} requests at depth {depth}");
            assert!(fetched < size + size / 4, "{fetched} bytes at depth {depth}");
            drop(reads);
            volume.close().await.unwrap();
            let location = volume.location().clone();
            volume = Volume::open(&location, &with_read_ahead()).await.unwrap();
        }
    });
}

#[test]
fn a_cache_request_and_extents_take_few_requests_as_well() {
    in_virtual_time(async {
        let size: u64 = 16 << 20;
        let mut options = with_read_ahead();
        options.cache = 64 << 20;
        options.object_cache = 64 << 20;
        let volume = written(size, &options).await;
        let before = volume.location().traffic().gets;
        volume.can_cache().unwrap().cache(0, size).await.unwrap();
        let cached = volume.location().traffic().gets;
        assert!(cached - before < 40, "{} requests", cached - before);
        for start in (0..size).step_by(64 << 10) {
            read(&volume, start..start + 4096).await.unwrap();
        }
        // But for what looks whether another server writes.
        let hot = volume.location().traffic().gets;
        assert!(hot - cached < 10, "{} requests for what is cached", hot - cached);

        let location = volume.location().clone();
        volume.close().await.unwrap();
        let volume = Volume::open(&location, &options).await.unwrap();
        let before = volume.location().traffic().gets;
        assert_eq!(extents(&volume).await.len(), 1);
        let gets = volume.location().traffic().gets - before;
        assert!(gets < 60, "{gets} requests for extents");
    });
}

/// Whoever reads a table for the first time needs its index, which lies behind its data.
#[test]
fn the_index_of_a_table_is_fetched_for_all_who_read_it_at_once() {
    let mut indexes = 0;
    cases(4, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let faults = Faults { delay: 5, ..Faults::default() };
            let way = Faulty::new(&store, Random::new(random.below(1 << 32)), faults);
            let location = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "v");
            let size: u64 = 80 << 20;
            let volume = NewVolume::of_size(size).with_block_size(64 << 10);
            create(&location, &volume).await.unwrap();
            let mut options = with_read_ahead();
            options.object_cache = 64 << 20;
            let volume = Volume::open(&location, &options).await.unwrap();
            for start in (0..size).step_by(1 << 20) {
                write(&volume, &vec![1; 1 << 20], start).await.unwrap();
            }
            volume.close().await.unwrap();
            let volume = Volume::open(&location, &options).await.unwrap();
            way.gets.lock().unwrap().clear();
            // Here and there at once, or not, and then all of it in sequence.
            let reads = (0..random.below(2) * 32).map(|_| {
                let start = random.below(size - REQUEST);
                read(&volume, start..start + [1, 65536, REQUEST][random.below(3) as usize])
            });
            for bytes in futures_util::future::join_all(reads).await {
                assert!(bytes.unwrap().iter().all(|byte| *byte == 1));
            }
            let pause = Duration::from_millis(random.below(5));
            let reads = (0..size / REQUEST).map(|i| {
                let volume = &volume;
                async move {
                    sleep(pause).await;
                    read(volume, i * REQUEST..(i + 1) * REQUEST).await
                }
            });
            let mut reads = stream::iter(reads).buffer_unordered(1 + random.below(16) as usize);
            while let Some(bytes) = reads.next().await {
                bytes.unwrap();
            }
            let mut ends: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            for (path, end) in way.gets.lock().unwrap().drain(..) {
                if path.as_ref().contains("/compacted/") {
                    ends.entry(path.into()).or_default().push(end);
                }
            }
            assert!(ends.len() >= 2, "tables: {:?}", ends.keys());
            for (table, ends) in ends {
                // Behind the index are some KiB that the manifest has as well.
                let size = store.head(&table.as_str().into()).await.unwrap().size;
                if size < 1 << 20 {
                    continue;
                }
                let count = ends.iter().filter(|end| **end + 8192 > size).count();
                // What merges tables reads them for itself.
                assert!(count <= 2, "requests for the index of {table} of {size}: {ends:?}");
                indexes += count;
            }
        });
    });
    assert!(indexes > 0, "no index was fetched");
}

/// As a copy does: what is where is asked for, and then read.
#[test]
fn what_extents_were_asked_of_is_not_fetched_again_when_it_is_read() {
    in_virtual_time(async {
        let size: u64 = 48 << 20;
        let volume = written(size, &with_read_ahead()).await;
        read(&volume, size - 1..size).await.unwrap();
        let before = volume.location().traffic();
        let mut next = 0;
        while next < size {
            let runs = runs(&volume, next..size).await;
            let end = next + runs.iter().map(|run| run.length).sum::<u64>();
            assert!(end > next && runs.iter().all(|run| !run.hole), "{runs:?}");
            for start in (next..end).step_by(REQUEST as usize) {
                read(&volume, start..(start + REQUEST).min(end)).await.unwrap();
            }
            next = end;
        }
        let after = volume.location().traffic();
        let (gets, fetched) = (after.gets - before.gets, after.get_bytes - before.get_bytes);
        assert!(fetched < size + size / 4 && gets < 128, "{fetched} bytes by {gets} requests");
    });
}

/// Bytes that a version is written to.
const SECTOR: u64 = 512;

/// What is known of a sector: changes have numbers.
#[derive(Clone, Debug, Default)]
struct Sector {
    /// The latest change that is over.
    done: u64,
    /// The latest one that has begun.
    begun: u64,
    /// Those that leave zeroes.
    zeroes: Vec<u64>,
}

/// Sectors that tasks change, each its own ones, while others read them.
struct Disk {
    volume: Volume,
    sectors: RefCell<Vec<Sector>>,
    writers: Cell<u64>,
}

impl Disk {
    fn begin(&self, sectors: core::ops::Range<u64>, zero: bool) -> u64 {
        let mut all = self.sectors.borrow_mut();
        let touched = &mut all[sectors.start as usize..sectors.end as usize];
        let version = touched.iter().map(|sector| sector.begun).max().unwrap_or(0) + 1;
        for sector in touched {
            sector.begun = version;
            if zero {
                sector.zeroes.push(version);
            }
        }
        version
    }

    fn end(&self, sectors: core::ops::Range<u64>, version: u64) {
        for sector in &mut self.sectors.borrow_mut()[sectors.start as usize..sectors.end as usize] {
            sector.done = version;
        }
    }

    /// Changes sectors of a part that belongs to this task alone.
    async fn change(&self, part: core::ops::Range<u64>, random: &mut Random) {
        for _ in 0..12 {
            let start = part.start + random.below(part.end - part.start);
            let end = start + 1 + random.below((part.end - start).min(64));
            let zero = random.below(3) == 0;
            let version = self.begin(start..end, zero);
            let bytes = start * SECTOR..end * SECTOR;
            let change = match (zero, random.below(2)) {
                (true, 0) => Change::Trim(bytes),
                (true, _) => Change::Zero(bytes),
                (false, _) => {
                    let words = (bytes.end - bytes.start) / 8;
                    Change::Write(version.to_le_bytes().repeat(words as usize), bytes.start)
                }
            };
            change.carry_out(&self.volume).await.unwrap();
            self.end(start..end, version);
            sleep(Duration::from_millis(random.below(30))).await;
        }
    }

    /// Cuts the volume and has it grow again: what was cut off is zeroes.
    async fn cut(&self, tail: core::ops::Range<u64>, random: &mut Random) {
        for _ in 0..3 {
            sleep(Duration::from_millis(random.below(200))).await;
            let start = tail.start + random.below(tail.end - tail.start);
            let version = self.begin(start..tail.end, true);
            resize(&self.volume, start * SECTOR).await.unwrap();
            resize(&self.volume, tail.end * SECTOR).await.unwrap();
            self.end(start..tail.end, version);
        }
    }

    /// Reads all in sequence, again and again, while others change it.
    async fn watch(&self, random: &mut Random) {
        let count = self.sectors.borrow().len() as u64;
        while self.writers.get() > 0 {
            let length = 1 + random.below(512);
            let mut start = random.below(length);
            while start < count {
                let end = (start + length).min(count);
                let earliest: Vec<u64> = self.sectors.borrow()[start as usize..end as usize]
                    .iter()
                    .map(|sector| sector.done)
                    .collect();
                let bytes = read(&self.volume, start * SECTOR..end * SECTOR).await.unwrap();
                let sectors = self.sectors.borrow();
                for (i, seen) in bytes.chunks(SECTOR as usize).enumerate() {
                    let number = start + i as u64;
                    let sector = &sectors[number as usize];
                    let version = u64::from_le_bytes(seen[..8].try_into().unwrap());
                    assert!(
                        seen.chunks(8).all(|word| word == &seen[..8]),
                        "sector {number} is torn"
                    );
                    let range = earliest[i]..=sector.begun;
                    let is_zeroed = || sector.zeroes.iter().any(|zero| range.contains(zero));
                    assert!(
                        (version > 0
                            && range.contains(&version)
                            && !sector.zeroes.contains(&version))
                            || (version == 0 && (earliest[i] == 0 || is_zeroed())),
                        "sector {number} has version {version}, expected one of {range:?}"
                    );
                }
                drop(sectors);
                start = end;
            }
            self.watch_extents().await;
        }
    }

    /// What is reported as a hole may be zeroes. What may have been changed meanwhile can be either.
    async fn watch_extents(&self) {
        let done = |sector: &Sector| sector.done;
        let earliest: Vec<u64> = self.sectors.borrow().iter().map(done).collect();
        // The rest is cut off now and then.
        let end = earliest.len() as u64 / 2 * SECTOR;
        let mut offset = 0;
        while offset < end {
            let runs = runs(&self.volume, offset..end).await;
            for run in runs {
                let numbers = offset / SECTOR..(offset + run.length) / SECTOR;
                offset += run.length;
                for number in numbers.filter(|_| run.hole) {
                    let sector = &self.sectors.borrow()[number as usize];
                    let range = earliest[number as usize]..=sector.begun;
                    let may_be_zero = sector.zeroes.iter().any(|zero| range.contains(zero));
                    assert!(may_be_zero, "sector {number} of {range:?} is in a hole");
                }
            }
        }
    }
}

#[test]
fn what_was_read_ahead_is_never_older_than_what_was_written_since() {
    cases(4, |random| {
        in_virtual_time(async {
            let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let faults = Faults { delay: 1 + random.below(40), ..Faults::default() };
            let seed = random.below(u64::MAX);
            let store = Faulty::new(&inner, Random::new(seed), faults);
            let location = Location::over(store, "sequences/model");
            let block_size = 4096 << random.below(3);
            let size: u64 = 3 << 20;
            let new = NewVolume::of_size(size).with_block_size(block_size);
            create(&location, &new).await.unwrap();
            let mut options = with_read_ahead();
            options.cache = 128 << 10;
            options.read_ahead = (256 << 10) << random.below(5);
            let volume = Volume::open(&location, &options).await.unwrap();
            let count = size / SECTOR;
            let disk = Disk {
                volume: volume.clone(),
                sectors: RefCell::new(vec![Sector::default(); count as usize]),
                writers: Cell::new(0),
            };
            // All of it is in tables at first.
            let version = disk.begin(0..count, false);
            for start in (0..size).step_by(1 << 18) {
                let data = version.to_le_bytes().repeat((1 << 18) / 8);
                write(&volume, &data, start).await.unwrap();
            }
            disk.end(0..count, version);
            volume.close().await.unwrap();
            let volume = Volume::open(&location, &options).await.unwrap();
            let disk = Disk { volume, ..disk };

            // Parts that share blocks with each other, and a tail that is cut off.
            let tail = count - count / 6;
            let part = tail / 4;
            let mut seeds = (0..7).map(|_| Random::new(random.below(u64::MAX)));
            let disk = &disk;
            let mut tasks = FuturesUnordered::new();
            for (number, mut random) in seeds.by_ref().take(5).enumerate() {
                disk.writers.set(disk.writers.get() + 1);
                tasks.push(futures_util::FutureExt::boxed_local(async move {
                    match number as u64 {
                        4 => disk.cut(tail..count, &mut random).await,
                        number => {
                            let end = if number == 3 { tail } else { (number + 1) * part + 3 };
                            let start = if number == 0 { 0 } else { number * part + 3 };
                            disk.change(start..end, &mut random).await;
                        }
                    }
                    disk.writers.set(disk.writers.get() - 1);
                }));
            }
            for mut random in seeds {
                tasks.push(futures_util::FutureExt::boxed_local(async move {
                    disk.watch(&mut random).await;
                }));
            }
            while tasks.next().await.is_some() {}
            disk.volume.close().await.unwrap();
        });
    });
}
