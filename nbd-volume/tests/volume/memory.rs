//! What a volume has in memory, held against its bounds.

use core::future::Future;
use core::pin::pin;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use futures_util::future::{join, join_all};
use nbd_support::counting::thread_held;
use nbd_testkit::Random;
use nbd_volume::{Location, NewVolume, Options, Volume, create};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::faulty::{Faults, Faulty};
use crate::model::{extents, flush, read, write};
use crate::{in_virtual_time, options};

/// Bytes of what lies in the store, which is in memory, too.
async fn stored(store: &Arc<dyn ObjectStore>) -> isize {
    let sizes = store.list(None).map_ok(|object| object.size as isize);
    sizes.try_fold(0, async |sum, size| Ok(sum + size)).await.unwrap()
}

/// Of each long write one block is wanted by the cache, and by SlateDB until the others were overwritten.
#[test]
fn one_block_that_is_kept_of_a_long_write_does_not_keep_the_write_in_memory() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Location::over(Arc::clone(&store), "memory/one");
        create(&location, &NewVolume::of_size(1 << 30)).await.unwrap();
        let mut options = options();
        options.cache = 1 << 20;
        let volume = Volume::open(&location, &options).await.unwrap();
        let before = thread_held() - stored(&store).await;
        let mut random = Random::new(1);
        for number in 0..144 {
            let start = number * (256 << 10);
            let hot = start + random.below(64) * 4096;
            for _ in 0..4 {
                read(&volume, hot..hot + 4096).await.unwrap();
            }
            write(&volume, &[number as u8 + 1; 256 << 10], start).await.unwrap();
        }
        flush(&volume).await.unwrap();
        let held = thread_held() - stored(&store).await - before;
        // The cache, what SlateDB has of its tables, and the latest writes.
        assert!(held < 24 << 20, "{held} bytes are in memory");
        volume.close().await.unwrap();
    });
}

/// The most that this thread has in memory while a future is not ready.
async fn peak_during<T>(future: impl Future<Output = T>) -> (T, isize) {
    let mut peak = thread_held();
    let mut future = pin!(future);
    loop {
        let millisecond = tokio::time::sleep(Duration::from_millis(1));
        peak = peak.max(thread_held());
        tokio::select! {
            output = &mut future => return (output, peak.max(thread_held())),
            () = millisecond => {}
        }
    }
}

/// A volume whose blocks lie in many tables each of which has some of every range, with the disk that it is. Each block was
/// written so many times.
async fn scattered(
    store: &Arc<dyn ObjectStore>,
    options: &Options,
    times: usize,
    random: &mut Random,
) -> (Volume, Vec<u8>) {
    const BLOCK: usize = 4096;
    let location = Location::over(Arc::clone(store), "memory/scattered");
    let size: usize = 4 << 20;
    let new = NewVolume::of_size(size as u64).with_block_size(BLOCK as u32);
    create(&location, &new).await.unwrap();
    let volume = Volume::open(&location, options).await.unwrap();
    let mut disk = vec![0; size];
    for _ in 0..times {
        let mut blocks: Vec<usize> = (0..size / BLOCK).collect();
        while !blocks.is_empty() {
            let block = blocks.swap_remove(random.below(blocks.len() as u64) as usize);
            let data = &mut disk[block * BLOCK..(block + 1) * BLOCK];
            data.fill(1 + random.below(255) as u8);
            write(&volume, data, (block * BLOCK) as u64).await.unwrap();
        }
    }
    // Nothing is merged beside what reads a snapshot.
    volume.snapshot("now").await.unwrap();
    volume.close().await.unwrap();
    (Volume::open_snapshot(&location, "now", options).await.unwrap(), disk)
}

/// Any reads, and questions for what is there, all at the same time, of blocks each of which lies in another part of another
/// table than the one before it: what is fetched for them stays within its bound, and those that wait are fetched together.
#[test]
fn reads_that_fetch_far_more_than_they_return_stay_within_the_bound_of_memory() {
    in_virtual_time(async {
        let mut random = Random::new(1);
        for times in [1, 6] {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let faults = Faults { delay: 20, ..Faults::default() };
            let way = Faulty::new(&store, Random::new(1), faults);
            way.copies.store(true, Ordering::Release);
            let way: Arc<dyn ObjectStore> = way;
            let mut options = options();
            options.fetching = 3 << 20;
            options.object_cache = 256 << 10;
            options.read_ahead = 0;
            let (volume, disk) = scattered(&way, &options, times, &mut random).await;
            let size = disk.len() as u64;
            // Indexes and filters are fetched before.
            read(&volume, 0..4096).await.unwrap();
            for in_sequence in [false, true] {
                let before = (thread_held(), volume.location().traffic().gets);
                let mut next = random.below(size / 4);
                let longest = if in_sequence { 14 << 10 } else { 4096 << random.below(6) };
                let ranges: Vec<_> = (0..200)
                    .map(|_| {
                        let length = 1 + random.below(longest);
                        let start = if in_sequence { next } else { random.below(size - length) };
                        next = start + length;
                        start..start + length
                    })
                    .collect();
                let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                let reads = join_all(ranges.iter().map(|range| read(&volume, range.clone())));
                let looks = async {
                    match in_sequence {
                        true => Vec::new(),
                        false => join_all((0..4).map(|_| extents(&volume))).await,
                    }
                };
                let ((replies, _), peak) = peak_during(join(reads, looks)).await;
                for (range, reply) in ranges.iter().zip(replies) {
                    let expected = &disk[range.start as usize..range.end as usize];
                    assert!(reply.unwrap() == expected, "{range:?}");
                }
                let took = peak - before.0 - bytes as isize;
                // What is fetched, and in the caches; the blocks of those replies that were not put together yet.
                let blocks = bytes + 200 * 8192;
                let bound = 2 * (options.fetching + options.object_cache + options.cache) + blocks;
                let gets = volume.location().traffic().gets - before.1;
                assert!(
                    took < bound as isize,
                    "{took} bytes of {bound} for {bytes}, {times} times"
                );
                assert!(!in_sequence || gets < 300, "{gets} requests, {times} times");
            }
            volume.close().await.unwrap();
        }
    });
}
