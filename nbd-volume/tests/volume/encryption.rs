//! Volumes that are encrypted: what lies in the store, and what a key is good for.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use nbd_testkit::cases;
use nbd_volume::{
    Error, Key, Location, NewVolume, Volume, check, clone, create, delete, info, inspect, resize,
    snapshot,
};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::model::{Change, compare, flush, read, write};
use crate::{in_virtual_time, options};

fn key(byte: u8) -> Key {
    Key::new([byte; 32])
}

fn encrypted(size: u64) -> NewVolume {
    NewVolume::of_size(size).with_encryption()
}

/// What everything that is written here begins with.
const MARK: &[u8] = b"a secret of 32 bytes, not random";

/// What lies in the store and was not there before.
async fn objects(
    store: &Arc<dyn ObjectStore>,
    before: &mut HashSet<String>,
) -> Vec<(String, Vec<u8>)> {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut objects = Vec::new();
    for object in listed {
        // Objects don't change, but for one that says what the volume is.
        if !before.insert(object.location.to_string()) {
            continue;
        }
        // Some are collected meanwhile.
        if let Ok(found) = store.get(&object.location).await {
            let bytes = found.bytes().await.unwrap().to_vec();
            objects.push((object.location.to_string(), bytes));
        }
    }
    objects
}

#[test]
fn nothing_that_was_written_is_found_in_the_store() {
    for is_encrypted in [true, false] {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "secret/one").with_key(key(1));
            let new = match is_encrypted {
                true => encrypted(16 << 20),
                false => NewVolume::of_size(16 << 20),
            };
            create(&location, &new).await.unwrap();
            let volume = Volume::open(&location, &options()).await.unwrap();
            // Enough for tables.
            let data = MARK.repeat((1 << 20) / MARK.len());
            let (mut seen, mut before) = (HashSet::new(), HashSet::new());
            for round in 0..5u64 {
                write(&volume, &data, round << 20).await.unwrap();
                flush(&volume).await.unwrap();
                for (path, bytes) in objects(&store, &mut before).await {
                    for (name, secret) in [("data", MARK), ("server", b"\"host\":".as_slice())] {
                        if bytes.windows(secret.len()).any(|window| window == secret) {
                            assert!(!is_encrypted, "{path} shows the {name}");
                            seen.insert((name, path.split('/').nth(2).unwrap_or("").to_owned()));
                        }
                    }
                }
            }
            // The test can find it where it is not encrypted: in the log and in tables.
            let expected = [("data", "wal"), ("data", "compacted"), ("server", "wal")];
            for (name, folder) in expected {
                assert!(is_encrypted || seen.contains(&(name, folder.to_owned())), "{seen:?}");
            }
            volume.close().await.unwrap();
        });
    }
}

#[test]
fn an_encrypted_volume_holds_what_is_written_over_openings_snapshots_and_clones() {
    cases(2, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(store, "secret/model").with_key(key(2));
            let size: u64 = 600_000;
            create(&location, &encrypted(size)).await.unwrap();
            let mut disk = vec![0; size as usize];
            for _ in 0..3 {
                let volume = Volume::open(&location, &options()).await.unwrap();
                for _ in 0..12 {
                    let change = Change::draw(random, 0..size);
                    change.carry_out(&volume).await.unwrap();
                    change.apply(&mut disk);
                }
                flush(&volume).await.unwrap();
                compare(&volume, &disk, 0..size).await;
                volume.close().await.unwrap();
            }
            snapshot(&location, "monday").await.unwrap();
            let kept = Volume::open_snapshot(&location, "monday", &options()).await.unwrap();
            compare(&kept, &disk, 0..size).await;
            kept.close().await.unwrap();
            assert!(check(&location, None, |_| ()).await.unwrap().damage.is_empty());

            // A clone has the same key, and goes on alone.
            let copy = location.sibling("secret/clone");
            clone(&location, Some("monday"), &copy).await.unwrap();
            let volume = Volume::open(&copy, &options()).await.unwrap();
            let change = Change::Write(vec![9; 5000], 77);
            change.carry_out(&volume).await.unwrap();
            change.apply(&mut disk);
            compare(&volume, &disk, 0..size).await;
            volume.close().await.unwrap();
            assert!(info(&copy).await.unwrap().encrypted);
        });
    });
}

#[test]
fn without_the_key_or_with_another_one_nothing_is_done_and_the_error_says_so() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let plain = Location::over(store, "secret/keys");
        // There is no volume yet that could be said to be encrypted.
        let refused = create(&plain, &encrypted(1 << 20)).await.unwrap_err();
        assert!(matches!(&refused, Error::Invalid(text) if text.contains("NBD_VOLUME_KEY_FILE")));
        let location = plain.clone().with_key(key(3));
        create(&location, &encrypted(1 << 20)).await.unwrap();
        let volume = Volume::open(&location, &options()).await.unwrap();
        write(&volume, &[7; 5000], 0).await.unwrap();
        flush(&volume).await.unwrap();
        for (wrong, text) in [
            (plain.clone(), "NBD_VOLUME_KEY_FILE"),
            (plain.clone().with_key(key(4)), "another key"),
        ] {
            let refusals = [
                Volume::open(&wrong, &options()).await.map(drop),
                inspect(&wrong, None).await,
                check(&wrong, None, |_| ()).await.map(drop),
                snapshot(&wrong, "monday").await,
                resize(&wrong, 2 << 20).await,
            ];
            for (number, refused) in refusals.into_iter().enumerate() {
                let refused = refused.unwrap_err().to_string();
                assert!(refused.contains(text), "{number}: {refused}");
            }
            // What is in the clear is known.
            let about = info(&wrong).await.unwrap();
            assert!(about.encrypted && about.size.is_none() && about.stored > 5000, "{about:?}");
            // The server that has it open answers.
            assert!(matches!(delete(&wrong).await, Err(Error::Busy { .. })));
        }
        // And the server that has it open was not disturbed.
        write(&volume, &[8; 5000], 0).await.unwrap();
        flush(&volume).await.unwrap();
        assert_eq!(read(&volume, 0..5000).await.unwrap(), vec![8; 5000]);
        volume.close().await.unwrap();
        resize(&location, 2 << 20).await.unwrap();
        // One whose key is lost can be deleted.
        delete(&plain).await.unwrap();
        assert!(matches!(info(&location).await, Err(Error::NotFound { .. })));
    });
}
