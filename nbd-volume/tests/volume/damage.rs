//! What a check finds in volumes whose tables were damaged, and what is read of snapshots that were deleted.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use nbd_testkit::{Random, cases};
use nbd_volume::{
    Damage, Error, Location, NewVolume, Options, Volume, check, create, delete, delete_snapshot,
    info, inspect, resize, snapshot,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::model::{flush, read, write};
use crate::{in_virtual_time, options};

const BLOCK: u64 = 4096;

/// Blocks of the volume.
const BLOCKS: u64 = 2000;

/// The tables of a volume.
async fn tables(store: &dyn ObjectStore) -> Vec<Path> {
    let listed = store.list(Some(&Path::from("v/compacted")));
    listed.map_ok(|object| object.location).try_collect().await.unwrap()
}

/// A volume of several tables, and which of its blocks are there. Half of them are written in runs.
async fn some_volume(location: &Location, random: &mut Random) -> BTreeSet<u64> {
    create(location, &NewVolume::of_size(BLOCKS * BLOCK)).await.unwrap();
    let mut there = BTreeSet::new();
    for _ in 0..2 + random.below(3) {
        let volume = Volume::open(location, &options()).await.unwrap();
        for _ in 0..1 + random.below(6) {
            let start = random.below(BLOCKS);
            let length = if random.below(2) == 0 { 1 } else { 1 + random.below(300) };
            for block in start..(start + length).min(BLOCKS) {
                // Not to be compressed, and never zero.
                let data: Vec<u8> = (0..BLOCK).map(|_| 1 + random.below(255) as u8).collect();
                write(&volume, &data, block * BLOCK).await.unwrap();
                there.insert(block);
            }
        }
        volume.close().await.unwrap();
    }
    there
}

fn is_in(block: u64, damage: &[Damage]) -> bool {
    damage.iter().any(|one| (one.offset..one.offset + one.length).contains(&(block * BLOCK)))
}

#[test]
fn each_damaged_part_is_reported_and_every_other_block_is_verified() {
    cases(6, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            let there = some_volume(&location, random).await;
            snapshot(&location, "kept").await.unwrap();
            let report = check(&location, None, |_| ()).await.unwrap();
            assert_eq!((report.blocks, &report.damage[..]), (there.len() as u64, &[][..]));
            let tables = tables(&*store).await;
            let changes = 1 + random.below(3);
            for _ in 0..changes {
                let path = &tables[random.below(tables.len() as u64) as usize];
                let Ok(found) = store.get(path).await else { continue };
                let bytes = found.bytes().await.unwrap();
                match random.below(8) {
                    0 => store.delete(path).await.unwrap(),
                    1 => {
                        let length = random.below(bytes.len() as u64) as usize;
                        store.put(path, bytes.slice(..length).into()).await.unwrap();
                    }
                    _ => {
                        let mut bytes = bytes.to_vec();
                        let at = random.below(bytes.len() as u64) as usize;
                        bytes[at] ^= 1 << random.below(8);
                        store.put(path, bytes.into()).await.unwrap();
                    }
                }
            }
            let opened = Volume::open_snapshot(&location, "kept", &options()).await;
            let report = check(&location, Some("kept"), |_| ()).await.unwrap();
            // Without a size it can't be opened, which is damage, too.
            let Ok(volume) = opened else {
                assert!(!report.damage.is_empty(), "{report:?}");
                return;
            };
            // What another table has as well can be read all the same.
            for block in 0..BLOCKS {
                let is_readable = read(&volume, block * BLOCK..(block + 1) * BLOCK).await.is_ok();
                assert!(is_readable || is_in(block, &report.damage), "{block} {report:?}");
            }
            let good = there.iter().filter(|block| !is_in(**block, &report.damage));
            assert_eq!(report.blocks, good.count() as u64, "{report:?}");
            // Each change is in one part of a table, or damages a table as a whole.
            assert!(report.damage.len() as u64 <= changes, "{changes} {report:?}");
            assert!(report.damage.is_sorted_by_key(|one| one.offset), "{report:?}");
        });
    });
}

/// Also the first part of a table, and those that begin at blocks of any number.
#[test]
fn a_changed_byte_of_data_takes_one_part_wherever_it_is() {
    cases(8, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            create(&location, &NewVolume::of_size(BLOCKS * BLOCK)).await.unwrap();
            let volume = Volume::open(&location, &options()).await.unwrap();
            let first = random.below(2) * random.below(BLOCKS / 2);
            let count = 200 + random.below(BLOCKS / 2 - 200);
            for block in first..first + count {
                let data: Vec<u8> = (0..BLOCK).map(|_| 1 + random.below(255) as u8).collect();
                write(&volume, &data, block * BLOCK).await.unwrap();
            }
            volume.close().await.unwrap();
            let mut largest = (0, Path::default());
            for path in tables(&*store).await {
                largest = largest.max((store.head(&path).await.unwrap().size, path));
            }
            let (length, path) = largest;
            let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
            // Behind the data are some KiB of filter and index, and its last part has the size of the volume as well.
            let data = length - length / 16 - (80 << 10);
            for _ in 0..6 {
                let mut changed = bytes.to_vec();
                let most = [64 << 10, data][random.below(2) as usize];
                let at = random.below(most.min(data));
                changed[at as usize] ^= 1 << random.below(8);
                store.put(&path, changed.into()).await.unwrap();
                let report = check(&location, None, |_| ()).await.unwrap();
                let [damage] = &report.damage[..] else { panic!("{at} of {length}: {report:?}") };
                let most = (64 << 10) + 2 * BLOCK;
                assert!((1..=most).contains(&damage.length), "{at} of {length}: {report:?}");
                let good = count - damage.length / BLOCK;
                assert_eq!(report.blocks, good, "{at} of {length}: {report:?}");
            }
        });
    });
}

/// A filter saves a look into its table, and nothing is lost with it.
#[test]
fn a_volume_is_read_and_written_without_a_filter_that_is_damaged() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Location::over(Arc::clone(&store), "v");
        create(&location, &NewVolume::of_size(BLOCKS * BLOCK)).await.unwrap();
        // Of one table, as small ones have no filters.
        let volume = Volume::open(&location, &Options::default()).await.unwrap();
        // With holes, which filters tell from blocks without a look at the table.
        let there = |block: u64| !block.is_multiple_of(3);
        for block in (0..BLOCKS).filter(|block| there(*block)) {
            write(&volume, &[1 + block as u8 % 99; BLOCK as usize], block * BLOCK).await.unwrap();
        }
        volume.close().await.unwrap();
        snapshot(&location, "kept").await.unwrap();
        let mut largest = (0, Path::default());
        for path in tables(&*store).await {
            largest = largest.max((store.head(&path).await.unwrap().size, path));
        }
        let (length, path) = largest;
        let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
        let mut filters = 0;
        for at in (length - (8 << 10)..length).step_by(180) {
            let mut changed = bytes.to_vec();
            changed[at as usize] ^= 0x5a;
            store.put(&path, changed.into()).await.unwrap();
            let report = check(&location, Some("kept"), |_| ()).await.unwrap();
            let opened = Volume::open_snapshot(&location, "kept", &options()).await;
            let is_of_filter = |damage: &Damage| damage.what.contains("its filter");
            if report.damage.iter().all(is_of_filter) {
                filters += report.damage.len();
                let volume = opened.unwrap();
                for block in 0..BLOCKS {
                    let byte = if there(block) { 1 + block as u8 % 99 } else { 0 };
                    let start = block * BLOCK;
                    let found = read(&volume, start..start + BLOCK).await.unwrap();
                    assert!(found.iter().all(|one| *one == byte), "block {block}");
                }
            } else if let Err(error) = opened {
                let text = error.to_string();
                assert!(text.contains("restore that object"), "{text}");
                let text = info(&location).await.unwrap_err().to_string();
                assert!(text.contains("it has the snapshots kept"), "{text}");
            }
            if filters == 3 && report.damage.iter().all(is_of_filter) {
                let volume = Volume::open(&location, &options()).await.unwrap();
                write(&volume, &[7; BLOCK as usize], 0).await.unwrap();
                resize(&location, 2 * BLOCKS * BLOCK).await.unwrap();
                volume.close().await.unwrap();
                assert_eq!(info(&location).await.unwrap().size, Some(2 * BLOCKS * BLOCK));
            }
        }
        assert!(filters >= 3, "{filters} bytes were of a filter");
    });
}

#[test]
fn a_damaged_volume_is_not_deleted_while_a_server_has_it_open() {
    cases(12, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            some_volume(&location, random).await;
            let volume = Volume::open(&location, &options()).await.unwrap();
            write(&volume, &[1; 4096], 0).await.unwrap();
            flush(&volume).await.unwrap();
            // Who has it open is in one of these.
            let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
            let data = ["v/wal/", "v/compacted/"];
            let is_data = |path: &Path| data.iter().any(|folder| path.as_ref().starts_with(folder));
            let log = objects.iter().map(|object| &object.location);
            let last = log.filter(|path| path.as_ref().starts_with("v/wal/")).max().cloned();
            for path in objects.iter().map(|object| &object.location).filter(|path| is_data(path)) {
                let bytes = store.get(path).await.unwrap().bytes().await.unwrap();
                match random.below(4) {
                    0 => continue,
                    // That of the log that is missing with nothing behind it can't be told from its end.
                    1 if Some(path) != last.as_ref() => store.delete(path).await.unwrap(),
                    _ => {
                        let length = random.below(bytes.len() as u64) as usize;
                        store.put(path, bytes.slice(..length).into()).await.unwrap();
                    }
                }
            }
            let refused = delete(&location).await;
            assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
            let left: Vec<_> = store.list(None).try_collect().await.unwrap();
            assert!(left.len() >= 2, "{left:?}");
        });
    });
}

/// Without its manifest a volume looks like one that is to be made: it is never made anew, nor blamed on another server.
#[test]
fn a_manifest_that_is_missing_or_damaged_is_reported_by_its_name_and_nothing_is_changed() {
    cases(20, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            some_volume(&location, random).await;
            snapshot(&location, "kept").await.unwrap();
            let objects = async || -> BTreeMap<Path, Bytes> {
                let listed = store.list(None).map_ok(|object| object.location);
                let mut objects = BTreeMap::new();
                for path in listed.try_collect::<Vec<_>>().await.unwrap() {
                    let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
                    objects.insert(path, bytes);
                }
                objects
            };
            let all = objects().await;
            let manifests = all.iter().filter(|(path, _)| path.as_ref().contains("/manifest/"));
            let manifests = manifests.filter(|(path, _)| path.as_ref().ends_with(".manifest"));
            let manifests = Vec::from_iter(manifests);
            let (newest, content) = *manifests.last().unwrap();
            let length = content.len() as u64;
            let is_missing = random.one_in(3);
            if is_missing {
                for (path, _) in &manifests {
                    store.delete(path).await.unwrap();
                }
            } else if random.one_in(2) {
                let cut = content.slice(..random.below(length.min(64)) as usize);
                store.put(newest, cut.into()).await.unwrap();
            } else {
                let mut bytes = content.to_vec();
                for byte in &mut bytes[8..60] {
                    *byte = random.next() as u8;
                }
                store.put(newest, bytes.into()).await.unwrap();
            }
            let before = objects().await;
            let says = if is_missing { "no manifest in" } else { newest.filename().unwrap() };
            let damaged = |error: Option<Error>| {
                let text = error.as_ref().map(ToString::to_string).unwrap_or_default();
                let is_damaged = matches!(error, Some(Error::Damaged { .. }));
                assert!(is_damaged && text.contains(says), "{text:?}");
            };
            damaged(info(&location).await.err());
            damaged(inspect(&location, None).await.err());
            damaged(inspect(&location, Some("kept")).await.err());
            damaged(check(&location, None, |_| ()).await.err());
            damaged(check(&location, Some("kept"), |_| ()).await.err());
            damaged(Volume::open(&location, &options()).await.err());
            damaged(Volume::open_snapshot(&location, "kept", &options()).await.err());
            let mut exclusive = options();
            exclusive.exclusive = true;
            damaged(Volume::open(&location, &exclusive).await.err());
            assert!(objects().await == before, "something was changed");
            // Restored, it is as it was.
            for (path, bytes) in manifests {
                store.put(path, bytes.clone().into()).await.unwrap();
            }
            inspect(&location, None).await.unwrap();
            assert!(objects().await == all, "a look has changed something");
            assert_eq!(check(&location, None, |_| ()).await.unwrap().damage, []);
        });
    });
}

#[test]
fn a_snapshot_that_is_deleted_while_it_is_read_gives_its_data_or_an_error() {
    cases(5, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            create(&location, &NewVolume::of_size(200 * BLOCK)).await.unwrap();
            let fill = async |volume: &Volume, byte: u8| {
                for block in 0..200 {
                    write(volume, &[byte; BLOCK as usize], block * BLOCK).await.unwrap();
                }
            };
            let volume = Volume::open(&location, &options()).await.unwrap();
            fill(&volume, 1).await;
            volume.close().await.unwrap();
            snapshot(&location, "kept").await.unwrap();
            let small = Options::default().with_memory(Options::MIN_MEMORY);
            let kept = Volume::open_snapshot(&location, "kept", &small).await.unwrap();
            let some = random.below(200);
            assert_eq!(read(&kept, some * BLOCK..some * BLOCK + 1).await.unwrap(), [1]);
            let earlier = tables(&*store).await;
            delete_snapshot(&location, "kept").await.unwrap();
            let volume = Volume::open(&location, &options()).await.unwrap();
            fill(&volume, 2).await;
            volume.close().await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            // As they are collected.
            for path in earlier {
                store.delete(&path).await.unwrap();
            }
            for block in 0..200 {
                if let Ok(data) = read(&kept, block * BLOCK..(block + 1) * BLOCK).await {
                    assert!(data.iter().all(|byte| *byte == 1), "block {block}");
                }
            }
            let again = Volume::open_snapshot(&location, "kept", &options()).await;
            assert!(again.is_err());
        });
    });
}
