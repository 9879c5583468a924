//! Parts of a volume's log that are cut off, emptied or missing: what was flushed is there, or its loss is reported.

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use nbd_testkit::{Random, cases};
use nbd_volume::{Error, Key, Location, NewVolume, Volume, check, create, info, inspect, snapshot};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::model::{flush, read, write};
use crate::{in_virtual_time, options};

const BLOCK: u64 = 4096;

/// Blocks of the volumes.
const BLOCKS: u64 = 60;

/// The parts of the log, in their order.
async fn parts(store: &dyn ObjectStore) -> Vec<Path> {
    let log = store.list(Some(&Path::from("v/wal"))).map_ok(|object| object.location);
    let mut log: Vec<Path> = log.try_collect().await.unwrap();
    log.sort();
    log
}

/// Writes and flushes blocks, with servers in between that crash, the last of them, too, or close the volume. Returns what
/// each block holds.
async fn some_log(location: &Location, random: &mut Random) -> Vec<u8> {
    let mut disk = vec![0; BLOCKS as usize];
    for _ in 0..1 + random.below(4) {
        let volume = Volume::open(location, &options()).await.unwrap();
        for _ in 0..random.below(6) {
            let (block, byte) = (random.below(BLOCKS), 1 + random.below(255) as u8);
            write(&volume, &[byte; BLOCK as usize], block * BLOCK).await.unwrap();
            flush(&volume).await.unwrap();
            disk[block as usize] = byte;
        }
        if random.one_in(4) {
            volume.close().await.unwrap();
        }
    }
    disk
}

/// Whether a volume can be opened, with all that was flushed.
async fn opens(location: &Location, disk: &[u8]) -> bool {
    let volume = match Volume::open(location, &options()).await {
        Ok(volume) => volume,
        Err(Error::Damaged { .. }) => return false,
        Err(error) => panic!("{error}"),
    };
    for (block, byte) in disk.iter().enumerate() {
        let start = block as u64 * BLOCK;
        let found = read(&volume, start..start + BLOCK).await.unwrap();
        assert!(found.iter().all(|one| one == byte), "block {block} has not what was flushed");
    }
    volume.close().await.unwrap();
    true
}

#[test]
fn what_was_flushed_is_there_or_a_part_of_the_log_is_reported_as_lost() {
    cases(60, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v").with_key(Key::new([7; 32]));
            let new = NewVolume::of_size(BLOCKS * BLOCK);
            let new = if random.one_in(2) { new.with_encryption() } else { new };
            create(&location, &new).await.unwrap();
            let disk = some_log(&location, random).await;
            let log = parts(&*store).await;
            let number = random.below(log.len() as u64) as usize;
            let path = &log[number];
            let bytes = store.get(path).await.unwrap().bytes().await.unwrap();
            assert!(!bytes.is_empty(), "a part that can't be told from one that was emptied");
            let length = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                // One that is missing at the end can't be told from its end.
                0 if number + 1 < log.len() => store.delete(path).await.unwrap(),
                1 => drop(store.put(path, bytes.slice(..length).into()).await.unwrap()),
                2 => {
                    let mut bytes = bytes.to_vec();
                    bytes[length] ^= 1 << random.below(8);
                    store.put(path, bytes.into()).await.unwrap();
                }
                _ => drop(store.put(path, Vec::new().into()).await.unwrap()),
            }
            let says_damaged = match check(&location, None, |_| ()).await {
                Ok(report) => !report.damage.is_empty(),
                Err(Error::Damaged { .. }) => true,
                Err(error) => panic!("{error}"),
            };
            if !opens(&location, &disk).await {
                assert!(says_damaged);
                assert!(matches!(info(&location).await, Err(Error::Damaged { .. })));
                store.put(path, bytes.into()).await.unwrap();
                assert!(opens(&location, &disk).await);
            } else {
                assert!(!says_damaged, "it can be opened");
            }
            assert_eq!(check(&location, None, |_| ()).await.unwrap().damage, []);
        });
    });
}

/// By which nobody notices that it is damaged.
#[test]
fn a_part_of_the_log_without_a_byte_is_named_wherever_it_is() {
    cases(20, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            create(&location, &NewVolume::of_size(BLOCKS * BLOCK)).await.unwrap();
            let before = parts(&*store).await.len();
            let volume = Volume::open(&location, &options()).await.unwrap();
            for block in 0..1 + random.below(5) {
                write(&volume, &[7; BLOCK as usize], block * BLOCK).await.unwrap();
                flush(&volume).await.unwrap();
            }
            drop(volume);
            let log = parts(&*store).await;
            let first = before + random.below((log.len() - before) as u64) as usize;
            let also = first + random.below((log.len() - first) as u64) as usize;
            for path in [&log[first], &log[also]] {
                store.put(path, Vec::new().into()).await.unwrap();
            }
            let name = log[first].filename().unwrap();
            let damaged = |error: Error| {
                let text = error.to_string();
                assert!(matches!(error, Error::Damaged { .. }) && text.contains(name), "{text}");
            };
            damaged(info(&location).await.unwrap_err());
            damaged(inspect(&location, None).await.unwrap_err());
            damaged(Volume::open(&location, &options()).await.unwrap_err());
            damaged(snapshot(&location, "late").await.unwrap_err());
            let report = check(&location, None, |_| ()).await.unwrap();
            let [damage] = &report.damage[..] else { panic!("{report:?}") };
            assert!(damage.length == 0 && damage.what.contains(name), "{report:?}");
            assert_eq!(parts(&*store).await, log, "a look has changed something");
            // As the message says.
            for path in &log[first..] {
                store.delete(path).await.unwrap();
            }
            Volume::open(&location, &options()).await.unwrap().close().await.unwrap();
            assert_eq!(check(&location, None, |_| ()).await.unwrap().damage, []);
        });
    });
}

/// Their fences have no bytes, and need none.
#[test]
fn volumes_of_earlier_formats_are_opened_after_a_crash() {
    cases(8, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            create(&location, &NewVolume::of_size(BLOCKS * BLOCK)).await.unwrap();
            let descriptor = Path::from("v/nbd-volume.json");
            let bytes = store.get(&descriptor).await.unwrap().bytes().await.unwrap();
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            let text = text.replace("\"format\":3", "\"format\":1");
            store.put(&descriptor, text.into()).await.unwrap();
            let disk = some_log(&location, random).await;
            assert_eq!(info(&location).await.unwrap().format, 1);
            for path in parts(&*store).await.iter().skip(1) {
                let size = store.head(path).await.unwrap().size;
                assert!(size == 0 || size > 10, "{path} has {size} bytes");
            }
            assert_eq!(check(&location, None, |_| ()).await.unwrap().damage, []);
            assert!(opens(&location, &disk).await);
        });
    });
}

#[test]
fn a_part_of_the_log_that_is_cut_off_is_damage_however_little_is_left() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Location::over(Arc::clone(&store), "v");
        create(&location, &NewVolume::of_size(200 * BLOCK)).await.unwrap();
        let volume = Volume::open(&location, &options()).await.unwrap();
        write(&volume, &[1; 4096], 0).await.unwrap();
        flush(&volume).await.unwrap();
        let log: Vec<_> = store.list(Some(&Path::from("v/wal"))).try_collect().await.unwrap();
        let last = log.iter().max_by_key(|part| &part.location);
        let path = &last.expect("what was flushed").location;
        let bytes = store.get(path).await.unwrap().bytes().await.unwrap();
        for length in 0..bytes.len().min(64) {
            store.put(path, bytes.slice(..length).into()).await.unwrap();
            let found = info(&location).await;
            assert!(matches!(found, Err(Error::Damaged { .. })), "{length}: {found:?}");
        }
        store.put(path, bytes.into()).await.unwrap();
        info(&location).await.unwrap();
    });
}

/// SlateDB takes the first one that is missing for the end of the log.
#[test]
fn a_part_of_the_log_that_is_missing_is_damage_and_not_its_end() {
    cases(12, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            create(&location, &NewVolume::of_size(200 * BLOCK)).await.unwrap();
            snapshot(&location, "kept").await.unwrap();
            let volume = Volume::open(&location, &options()).await.unwrap();
            // Each is a part, and the first one may be long.
            let mut parts_by_block = Vec::new();
            for block in 0..2 + random.below(10) {
                write(&volume, &[7; BLOCK as usize], block * BLOCK).await.unwrap();
                flush(&volume).await.unwrap();
                parts_by_block.push(parts(&*store).await.len());
            }
            let log = parts(&*store).await;
            let block = random.below(parts_by_block.len() as u64 - 1);
            let missing = parts_by_block[block as usize] - 1;
            let bytes = store.get(&log[missing]).await.unwrap().bytes().await.unwrap();
            // Some of those behind it as well, though not the last one.
            let also = missing + 1 + random.below((log.len() - missing - 1) as u64) as usize;
            let mut others = Vec::new();
            for path in &log[missing + 1..also] {
                others.push((path, store.get(path).await.unwrap().bytes().await.unwrap()));
            }
            for path in &log[missing..also] {
                store.delete(path).await.unwrap();
            }
            let name = log[missing].filename().unwrap();
            let damaged = |error: Error| {
                let text = error.to_string();
                assert!(matches!(error, Error::Damaged { .. }) && text.contains(name), "{text}");
            };
            damaged(info(&location).await.unwrap_err());
            damaged(Volume::open(&location, &options()).await.unwrap_err());
            let report = check(&location, None, |_| ()).await.unwrap();
            let [damage] = &report.damage[..] else { panic!("{report:?}") };
            assert!(damage.length == 0 && damage.what.contains(name), "{report:?}");
            let kept = check(&location, Some("kept"), |_| ()).await.unwrap();
            assert_eq!(kept.damage, []);
            if random.below(2) == 0 {
                store.put(&log[missing], bytes.into()).await.unwrap();
                for (path, bytes) in others {
                    store.put(path, bytes.into()).await.unwrap();
                }
                assert_eq!(check(&location, None, |_| ()).await.unwrap().damage, []);
                let volume = Volume::open(&location, &options()).await.unwrap();
                let whole = 0..parts_by_block.len() as u64 * BLOCK;
                assert!(read(&volume, whole).await.unwrap().iter().all(|byte| *byte == 7));
            } else {
                for path in &log[also..] {
                    store.delete(path).await.unwrap();
                }
                let volume = Volume::open(&location, &options()).await.unwrap();
                assert!(
                    read(&volume, 0..block * BLOCK).await.unwrap().iter().all(|byte| *byte == 7)
                );
                write(&volume, &[9; BLOCK as usize], block * BLOCK).await.unwrap();
                volume.close().await.unwrap();
                assert_eq!(check(&location, None, |_| ()).await.unwrap().damage, []);
            }
        });
    });
}
