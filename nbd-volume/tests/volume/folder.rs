//! Volumes in local directories, which may go away, or can't be used.

use core::time::Duration;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nbd_engine::export::ErrorCode;
use nbd_testkit::cases;
use nbd_volume::{Location, NewVolume, Options, Volume, create};

use crate::model::{flush, read, write};
use crate::options;

const BLOCKS: u64 = 64;

fn in_real_time<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test)
}

fn impatient() -> Options {
    let mut options = options();
    options.patience = Duration::from_secs(1);
    options.lease = Duration::from_secs(1);
    options
}

async fn volume(folder: &Path, options: &Options) -> Volume {
    let location = Location::parse(&url(folder)).unwrap();
    create(&location, &NewVolume::of_size(BLOCKS * 4096)).await.unwrap();
    Volume::open(&location, options).await.unwrap()
}

/// Names are written as URLs have them.
fn url(folder: &Path) -> String {
    let path = folder.to_str().unwrap().replace('%', "%25").replace('#', "%23");
    format!("file://{}", path.replace(' ', "%20").replace('\u{e9}', "%C3%A9"))
}

fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| 1 + files(&entry.path())).sum()
}

/// Whatever is there instead by then.
#[test]
fn a_volume_whose_directory_is_moved_goes_on_there() {
    for replaced in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let (folder, away) = (place.path().join("a b%41#\u{e9}"), place.path().join("gone %2F#1"));
        in_real_time(async {
            let volume = volume(&folder, &impatient()).await;
            write(&volume, &[1; 4096], 0).await.unwrap();
            flush(&volume).await.unwrap();
            fs::rename(&folder, &away).unwrap();
            if replaced {
                fs::create_dir(&folder).unwrap();
            }
            write(&volume, &[2; 4096], 4096).await.unwrap();
            flush(&volume).await.unwrap();
            assert_eq!(files(&folder), 0, "nothing is made there");
            // Another server finds it, as if the first one had been killed; and that one notices.
            let location = Location::parse(&url(&away)).unwrap();
            let next = Volume::open(&location, &impatient()).await.unwrap();
            assert_eq!(read(&next, 0..4096).await.unwrap(), [1; 4096]);
            assert_eq!(read(&next, 4096..8192).await.unwrap(), [2; 4096]);
            write(&next, &[3; 4096], 0).await.unwrap();
            flush(&next).await.unwrap();
            let error = read(&volume, 0..4096).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::ESHUTDOWN, "{error}");
            next.close().await.unwrap();
        });
    }
}

#[test]
fn what_goes_to_a_directory_that_was_removed_fails_with_its_name() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("a b%41#\u{e9}");
    in_real_time(async {
        let volume = volume(&folder, &impatient()).await;
        write(&volume, &[1; 4096], 0).await.unwrap();
        flush(&volume).await.unwrap();
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        let written = write(&volume, &[2; 4096], 4096).await;
        let error = match written {
            Ok(()) => flush(&volume).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.code(), ErrorCode::EIO);
        assert!(error.text().contains(folder.to_str().unwrap()), "{error}");
        assert!(!error.text().contains("/proc/"), "{error}");
        assert_eq!(files(&folder), 0, "nothing is made there");
    });
}

/// At any moment, for any time.
#[test]
fn what_was_flushed_is_there_wherever_the_directory_was_meanwhile() {
    cases(6, |random| {
        let place = tempfile::tempdir().unwrap();
        let (folder, away) = (place.path().join("a b%41#\u{e9}"), place.path().join("gone %2F#1"));
        let over = AtomicBool::new(false);
        // So that the other server need not wait for long.
        let mut short = options();
        short.lease = Duration::from_secs(1);
        let pauses: Vec<_> = (0..40).map(|_| Duration::from_micros(random.below(30_000))).collect();
        in_real_time(async {
            let volume = volume(&folder, &short).await;
            let mut flushed = vec![0; BLOCKS as usize];
            std::thread::scope(|scope| {
                let moving = scope.spawn(|| {
                    for pair in pauses.chunks(2) {
                        std::thread::sleep(pair[0]);
                        fs::rename(&folder, &away).unwrap();
                        std::thread::sleep(pair[1]);
                        fs::rename(&away, &folder).unwrap();
                    }
                    over.store(true, Ordering::Release);
                });
                let runtime = tokio::runtime::Handle::current();
                tokio::task::block_in_place(|| {
                    let mut version = 0u8;
                    while !over.load(Ordering::Acquire) {
                        version = version % 250 + 1;
                        let block = random.below(BLOCKS);
                        runtime.block_on(async {
                            write(&volume, &[version; 4096], block * 4096).await.unwrap();
                            flush(&volume).await.unwrap();
                        });
                        flushed[block as usize] = version;
                    }
                });
                moving.join().unwrap();
            });
            // As if that one had been killed.
            let next = Volume::open(volume.location(), &short).await.unwrap();
            for (block, version) in (0u64..).zip(flushed) {
                let found = read(&next, block * 4096..(block + 1) * 4096).await.unwrap();
                assert_eq!(found, [version; 4096], "block {block}");
            }
            next.close().await.unwrap();
        });
    });
}
