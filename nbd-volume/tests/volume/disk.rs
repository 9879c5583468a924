//! What clients see of a volume.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

use futures_util::future::join_all;
use nbd_engine::export::AsyncExport as _;
use nbd_testkit::{Random, cases};
use nbd_volume::{Location, NewVolume, Volume, create};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::time::sleep;

use crate::faulty::{Faults, Faulty};
use crate::model::{Change, compare, extents, flush, read, resize, write};
use crate::{in_virtual_time, options};

async fn new_volume(size: u64, block_size: u32) -> Volume {
    let location = Location::in_memory("disks/one");
    create(&location, &NewVolume::of_size(size).with_block_size(block_size)).await.unwrap();
    Volume::open(&location, &options()).await.unwrap()
}

fn some_range(random: &mut Random, size: u64) -> core::ops::Range<u64> {
    let start = random.below(size);
    start..start + 1 + random.below(size - start)
}

#[test]
fn whatever_is_written_is_read_and_holes_are_reported_as_they_are() {
    cases(12, |random| {
        let block_size = 4096 << random.below(5);
        let mut size = 1 + random.below(600_000);
        in_virtual_time(async {
            let mut volume = new_volume(size, block_size).await;
            let location = volume.location().clone();
            let mut disk = vec![0; size as usize];
            for _ in 0..40 {
                match random.below(12) {
                    0 => {
                        size = 1 + random.below(600_000);
                        resize(&volume, size).await.unwrap();
                        disk.resize(size as usize, 0);
                        assert_eq!(volume.size(), size);
                    }
                    1 => flush(&volume).await.unwrap(),
                    2 => {
                        volume.close().await.unwrap();
                        volume = Volume::open(&location, &options()).await.unwrap();
                    }
                    3..6 => compare(&volume, &disk, some_range(random, size)).await,
                    6 => compare_extents(&volume, &disk, block_size).await,
                    _ => {
                        let change = Change::draw(random, 0..size);
                        change.carry_out(&volume).await.unwrap();
                        change.apply(&mut disk);
                    }
                }
            }
            compare(&volume, &disk, 0..size).await;
            compare_extents(&volume, &disk, block_size).await;
        });
    });
}

/// Holes are the blocks that are zeroes.
async fn compare_extents(volume: &Volume, disk: &[u8], block_size: u32) {
    let mut offset = 0;
    for run in extents(volume).await {
        let end = (offset + run.length) as usize;
        assert_eq!(run.hole, run.zero);
        let blocks = disk[offset as usize..end].chunks(block_size as usize);
        let zeroes = blocks.map(|block| block.iter().all(|byte| *byte == 0));
        assert!(zeroes.into_iter().all(|zero| zero == run.hole), "{run:?} at {offset}");
        offset = end as u64;
    }
}

#[test]
fn writes_that_share_blocks_lose_nothing_of_each_other() {
    cases(8, |random| {
        let size = 5 * 4096;
        in_virtual_time(async {
            let volume = new_volume(size, 4096).await;
            let mut disk = vec![0; size as usize];
            for _ in 0..10 {
                // Neighbours, of any length, all at once.
                let mut changes = Vec::new();
                let mut start = 0;
                while start < size {
                    let end = (start + 1 + random.below(2500)).min(size);
                    changes.push(Change::draw(random, start..end));
                    start = end;
                }
                let done = changes.iter().map(|change| change.carry_out(&volume));
                for outcome in join_all(done).await {
                    outcome.unwrap();
                }
                changes.iter().for_each(|change| change.apply(&mut disk));
                compare(&volume, &disk, 0..size).await;
            }
        });
    });
}

#[test]
fn a_request_that_is_dropped_leaves_the_cache_as_the_database_is() {
    cases(20, |random| {
        in_virtual_time(async {
            let volume = new_volume(4 * 4096, 4096).await;
            write(&volume, &[1; 4 * 4096], 0).await.unwrap();
            for round in 2..10 {
                let data = vec![round; 1 + random.below(8000) as usize];
                let offset = random.below(4 * 4096 - data.len() as u64);
                let mut writing = Box::pin(write(&volume, &data, offset));
                for _ in 0..random.below(4) {
                    if futures_util::poll!(writing.as_mut()).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                drop(writing);
                // What it does is over when the blocks are free.
                read(&volume, 0..4 * 4096).await.unwrap();
            }
            let seen = read(&volume, 0..4 * 4096).await.unwrap();
            let location = volume.location().clone();
            volume.close().await.unwrap();
            let volume = Volume::open(&location, &options()).await.unwrap();
            assert!(read(&volume, 0..4 * 4096).await.unwrap() == seen);
        });
    });
}

#[test]
fn a_disk_of_the_largest_size_costs_nothing_where_nothing_is() {
    in_virtual_time(async {
        let size = i64::MAX as u64;
        let volume = new_volume(size, 4096).await;
        write(&volume, b"first", 0).await.unwrap();
        write(&volume, b"last", size - 4).await.unwrap();
        let runs = extents(&volume).await;
        assert_eq!(runs.iter().map(|run| run.hole).collect::<Vec<_>>(), [false, true, false]);
        let before = volume.location().traffic();
        Change::Zero(1..size - 1).carry_out(&volume).await.unwrap();
        Change::Trim(1..size - 1).carry_out(&volume).await.unwrap();
        assert_eq!(read(&volume, 0..5).await.unwrap(), b"f\0\0\0\0");
        assert_eq!(read(&volume, size - 4..size).await.unwrap(), b"\0\0\0t");
        let after = volume.location().traffic();
        assert!(after.gets - before.gets < 100, "{before:?} {after:?}");
    });
}

#[test]
fn zeroes_are_not_stored() {
    in_virtual_time(async {
        let volume = new_volume(1 << 20, 4096).await;
        write(&volume, &[0; 1 << 19], 0).await.unwrap();
        write(&volume, &[1; 4096], 8192).await.unwrap();
        write(&volume, &[0; 100], 300_000).await.unwrap();
        write(&volume, &[0; 4096], 8192).await.unwrap();
        let runs = extents(&volume).await;
        assert_eq!(runs.len(), 1);
        assert!(runs[0].hole && runs[0].zero);
    });
}

#[test]
fn flushes_at_the_same_time_share_uploads() {
    in_virtual_time(async {
        let volume = new_volume(1 << 20, 4096).await;
        let before = volume.location().traffic().puts;
        let flushes = (0..64u64).map(|index| {
            let volume = volume.clone();
            async move {
                write(&volume, &[1; 512], index * 8192).await.unwrap();
                flush(&volume).await.unwrap();
            }
        });
        join_all(flushes).await;
        let puts = volume.location().traffic().puts - before;
        assert!((1..=8).contains(&puts), "{puts} uploads for 64 flushes");
        // And one that has nothing to upload asks for nothing.
        let before = volume.location().traffic().puts;
        flush(&volume).await.unwrap();
        assert_eq!(volume.location().traffic().puts, before);
    });
}

/// Each waits for one upload of its own, whenever it began, and not for those of the others as well.
#[test]
fn clients_that_write_and_flush_in_turn_come_to_share_each_upload() {
    cases(8, |random| {
        in_virtual_time(async {
            const ROUNDS: u64 = 24;
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            create(&Location::over(Arc::clone(&store), "v"), &NewVolume::of_size(1 << 20))
                .await
                .unwrap();
            let slow = Faulty::new(&store, Random::new(1), Faults::default());
            let location = Location::over(Arc::clone(&slow) as Arc<dyn ObjectStore>, "v");
            let volume = Volume::open(&location, &options()).await.unwrap();
            let put = 10 + random.below(90);
            slow.slow_puts.store(put, Ordering::Release);
            let before = slow.puts.load(Ordering::Acquire);
            let clients: Vec<_> = (0..2 + random.below(16))
                .map(|client| (client, Duration::from_millis(random.below(put * 2))))
                .collect();
            let flushes = clients.iter().map(|(client, delay)| {
                let volume = volume.clone();
                async move {
                    sleep(*delay).await;
                    for round in 0..ROUNDS {
                        write(&volume, &[round as u8 + 1; 512], client * 8192).await.unwrap();
                        flush(&volume).await.unwrap();
                    }
                }
            });
            join_all(flushes).await;
            // Those of the first and the last rounds, in which not all take part, and those that SlateDB makes unasked.
            let uploads = slow.puts.load(Ordering::Acquire) - before;
            let most = ROUNDS + ROUNDS / 3;
            assert!(uploads <= most, "{uploads} uploads of {put} ms for {clients:?}");
            volume.close().await.unwrap();
        });
    });
}

#[test]
fn what_is_cut_off_is_gone_when_the_volume_grows_again() {
    in_virtual_time(async {
        let volume = new_volume(10_000, 4096).await;
        write(&volume, &[7; 10_000], 0).await.unwrap();
        resize(&volume, 5_000).await.unwrap();
        resize(&volume, 20_000).await.unwrap();
        let bytes = read(&volume, 0..20_000).await.unwrap();
        assert!(bytes[..5000].iter().all(|byte| *byte == 7));
        assert!(bytes[5000..].iter().all(|byte| *byte == 0));
        for size in [0, 1 << 63, u64::MAX] {
            assert!(resize(&volume, size).await.is_err(), "{size}");
        }
        assert_eq!(volume.size(), 20_000);
    });
}
