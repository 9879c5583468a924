//! The cache on disk: what it spares the store, and that nothing wrong is taken from it.

use std::fs;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use nbd_testkit::{Random, SmallFileSystem, cases};
use nbd_volume::{DiskCache, Error, Location, NewVolume, Options, Volume, create};
use tempfile::TempDir;

use crate::model::{flush, read, write};
use crate::options;

const SIZE: u64 = 6 << 20;

/// In real time, since files are read by threads.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test)
}

fn cached(directory: &Path) -> Options {
    let mut options = options();
    options.read_ahead = 1 << 20;
    options.disk_cache = Some(DiskCache::new(directory.to_owned(), DiskCache::MIN_BYTES));
    options
}

/// A volume with known content, all of it in tables.
async fn written(directory: &Path, random: &mut Random) -> (Location, Vec<u8>) {
    let location = Location::in_memory("cached/one");
    create(&location, &NewVolume::of_size(SIZE).with_block_size(16 << 10)).await.unwrap();
    let volume = Volume::open(&location, &cached(directory)).await.unwrap();
    let seed = random.below(1 << 32) | 1;
    let disk: Vec<u8> = (0..SIZE).map(|i| (((i >> 3) + 1).wrapping_mul(seed) >> 5) as u8).collect();
    let writes = disk.chunks(1 << 20).zip(0..);
    let writes = writes.map(|(data, index)| write(&volume, data, index << 20));
    join_all(writes).await.into_iter().for_each(|written| written.unwrap());
    flush(&volume).await.unwrap();
    volume.close().await.unwrap();
    (location, disk)
}

async fn read_all(volume: &Volume) -> Vec<u8> {
    let mut all = Vec::new();
    for start in (0..SIZE).step_by(256 << 10) {
        all.extend(read(volume, start..start + (256 << 10)).await.unwrap());
    }
    all
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_in_the_cache_is_not_fetched_again_by_the_next_server() {
    run(async {
        let directory = TempDir::new().unwrap();
        let (location, disk) = written(directory.path(), &mut Random::new(1)).await;
        let volume = Volume::open(&location, &options()).await.unwrap();
        volume.snapshot("monday").await.unwrap();
        volume.close().await.unwrap();
        // Snapshots, as nothing merges tables behind their backs.
        let mut fetched = Vec::new();
        for options in [options(), cached(directory.path()), cached(directory.path())] {
            let volume = Volume::open_snapshot(&location, "monday", &options).await.unwrap();
            let before = location.traffic().get_bytes;
            assert!(read_all(&volume).await == disk);
            fetched.push(location.traffic().get_bytes - before);
            volume.close().await.unwrap();
        }
        // Some of it by opening it.
        assert!(fetched[0] > SIZE / 2 && fetched[1] > SIZE / 2, "{fetched:?} bytes were fetched");
        assert!(fetched[2] < SIZE / 8, "{fetched:?} bytes were fetched");
    });
}

/// Damages a file, in one of the ways in which disks and people do.
fn damage(path: &Path, random: &mut Random) {
    // It may have been evicted since it was listed.
    let Ok(mut content) = fs::read(path) else { return };
    let length = content.len() as u64;
    // What is said of an object, such as its length, stays well formed but becomes wrong.
    if path.ends_with("_head") && random.below(2) == 0 {
        for byte in content.iter_mut().filter(|byte| byte.is_ascii_digit()) {
            if random.below(8) == 0 {
                *byte = b'1' + random.below(9) as u8;
            }
        }
        return fs::write(path, content).unwrap();
    }
    match random.below(6) {
        0 => fs::remove_file(path).unwrap(),
        1 => content.truncate(random.below(length + 1) as usize),
        2 => content.fill(0),
        3 => content.extend(vec![0x5a; 1 + random.below(5000) as usize]),
        4 if length > 0 => {
            let start = random.below(length) as usize;
            let end = (start + 1 + random.below(9000) as usize).min(content.len());
            content[start..end].iter_mut().for_each(|byte| *byte = random.below(256) as u8);
        }
        _ => {
            for _ in 0..1 + random.below(3) {
                if length > 0 {
                    content[random.below(length) as usize] ^= 1 << random.below(8);
                }
            }
        }
    }
    if path.exists() {
        fs::write(path, content).unwrap();
    }
}

#[test]
fn nothing_wrong_is_taken_from_a_damaged_cache() {
    cases(3, |random| {
        run(async {
            let directory = TempDir::new().unwrap();
            let (location, disk) = written(directory.path(), random).await;
            let volume = Volume::open(&location, &cached(directory.path())).await.unwrap();
            assert!(read_all(&volume).await == disk);
            volume.close().await.unwrap();
            let files = files(directory.path());
            assert!(files.len() > 4, "{files:?}");
            let often = 1 + random.below(4);
            for path in &files {
                if random.below(often) == 0 {
                    damage(path, random);
                }
            }
            let volume = Volume::open(&location, &cached(directory.path())).await.unwrap();
            assert!(read_all(&volume).await == disk);
            volume.close().await.unwrap();
        });
    });
}

#[test]
fn a_cache_that_vanishes_under_a_server_is_fetched_again() {
    run(async {
        let directory = TempDir::new().unwrap();
        let (location, disk) = written(directory.path(), &mut Random::new(3)).await;
        let volume = Volume::open(&location, &cached(directory.path())).await.unwrap();
        assert!(read_all(&volume).await == disk);
        // Nothing can be made there any more, as on a disk that is full.
        let elsewhere = TempDir::new().unwrap();
        let folders = fs::read_dir(directory.path()).unwrap();
        for (index, folder) in folders.map(|entry| entry.unwrap().path()).enumerate() {
            // The server still adds to it, and makes it anew: moved away it goes as a whole.
            let is_gone = (0..1000).any(|attempt| {
                fs::rename(&folder, elsewhere.path().join(format!("{index}-{attempt}"))).unwrap();
                fs::write(&folder, b"").is_ok()
            });
            assert!(is_gone, "the server is faster each time");
        }
        assert!(read_all(&volume).await == disk);
        write(&volume, &[7; 1 << 20], 0).await.unwrap();
        flush(&volume).await.unwrap();
        assert!(read(&volume, 0..1 << 20).await.unwrap() == vec![7; 1 << 20]);
        volume.close().await.unwrap();
    });
}

#[test]
fn a_second_server_does_without_the_cache_until_the_first_one_has_closed_the_volume() {
    run(async {
        let directory = TempDir::new().unwrap();
        let (location, disk) = written(directory.path(), &mut Random::new(4)).await;
        let first = Volume::open(&location, &cached(directory.path())).await.unwrap();
        first.snapshot("monday").await.unwrap();
        let before = files(directory.path());
        let open = || async {
            Volume::open_snapshot(&location, "monday", &cached(directory.path())).await.unwrap()
        };
        // A snapshot has a folder of its own, which one server has at a time.
        let (one, other) = (open().await, open().await);
        assert!(read_all(&one).await == disk && read_all(&other).await == disk);
        assert!(files(directory.path()).len() > before.len());
        for volume in [one, other, first] {
            volume.close().await.unwrap();
        }
        let folders = fs::read_dir(directory.path()).unwrap().count();
        let again = open().await;
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), folders);
        again.close().await.unwrap();
    });
}

#[test]
fn a_directory_that_can_not_be_a_cache_is_refused_with_what_to_do() {
    run(async {
        let directory = TempDir::new().unwrap();
        let (location, _) = written(directory.path(), &mut Random::new(5)).await;
        let file = directory.path().join("file");
        fs::write(&file, b"").unwrap();
        // It may also be found out before, and nothing is made.
        for (path, fits) in [("file", false), ("file/x", false), ("new/x", true), ("", true)] {
            let cache = DiskCache::new(directory.path().join(path), DiskCache::MIN_BYTES);
            assert_eq!(cache.check().is_ok(), fits, "{path}");
        }
        assert!(!directory.path().join("new").exists());
        assert!(DiskCache::new(directory.path().to_owned(), 1000).check().is_err());
        let mut options = cached(&file);
        let refused = Volume::open(&location, &options).await.unwrap_err();
        assert!(matches!(refused, Error::Cache { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("file") && text.contains("give a directory"), "{text}");
        options.disk_cache = Some(DiskCache::new(directory.path().to_owned(), 1000));
        let refused = Volume::open(&location, &options).await.unwrap_err();
        assert!(refused.to_string().contains("give at least 64M"), "{refused}");
    });
}

/// The cache itself may have filled it, which is no reason not to serve.
#[test]
fn a_cache_on_a_full_disk_keeps_what_it_has_and_the_volume_is_served() {
    let Some(small) = SmallFileSystem::mount(3) else { return };
    cases(6, |random| {
        run(async {
            let is_new = random.one_in(3);
            let directory = small.path(if is_new { "none" } else { "cache" });
            // More than there is room for, or all of it at once.
            let elsewhere = TempDir::new().unwrap();
            let (location, disk) =
                written(if is_new { elsewhere.path() } else { &directory }, random).await;
            let filler = small.path("filler");
            let _full = fs::write(&filler, vec![1; 4 << 20]).unwrap_err();
            let volume = Volume::open(&location, &cached(&directory)).await.unwrap();
            assert!(read_all(&volume).await == disk);
            write(&volume, &[7; 4096], 0).await.unwrap();
            flush(&volume).await.unwrap();
            assert_eq!(read(&volume, 0..4096).await.unwrap(), [7; 4096]);
            volume.close().await.unwrap();
            for path in [filler, directory] {
                let _gone = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
        });
    });
}
