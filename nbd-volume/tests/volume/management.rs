//! What people do with volumes.

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use nbd_engine::export::AsyncExport as _;
use nbd_testkit::{Random, cases};
use nbd_volume::{
    Error, Location, NewVolume, Volume, check, clone, create, delete, delete_snapshot, info, list,
    resize, snapshot,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::faulty::{Faults, Faulty};
use crate::model::{read, write};
use crate::{in_virtual_time, options};

async fn new_volume() -> Location {
    let location = Location::in_memory("disks/one");
    create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
    location
}

#[test]
fn volumes_are_made_found_described_and_deleted() {
    in_virtual_time(async {
        let location = new_volume().await;
        let other = location.sibling("disks/deep/two");
        create(&other, &NewVolume::of_size(10 << 40).with_block_size(65536)).await.unwrap();
        let found = list(&location.sibling("disks")).await.unwrap();
        assert_eq!(found.len(), 2);
        let about = info(&other).await.unwrap();
        assert_eq!((about.size, about.block_size), (Some(10 << 40), 65536));
        assert!(about.writer.is_none() && about.snapshots.is_empty() && about.objects > 0);
        let error = create(&location, &NewVolume::of_size(1)).await.unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
        delete(&other).await.unwrap();
        assert_eq!(list(&location.sibling("disks")).await.unwrap().len(), 1);
        assert!(matches!(info(&other).await, Err(Error::NotFound { .. })));
        assert!(matches!(delete(&other).await, Err(Error::NotFound { .. })));
        // Its name is free again.
        create(&other, &NewVolume::of_size(1)).await.unwrap();
    });
}

#[test]
fn a_volume_inside_of_another_one_is_neither_made_nor_deleted_with_it() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Location::over(Arc::clone(&store), "disks/one");
        create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
        for prefix in ["disks", "disks/one/deep/two", "disks/one/wal/x"] {
            let other = location.sibling(prefix);
            let volume = NewVolume::of_size(1 << 20);
            for made in [create(&other, &volume).await, clone(&location, None, &other).await] {
                let error = made.unwrap_err();
                assert!(matches!(error, Error::Nested { .. }), "{prefix}: {error}");
                assert!(error.to_string().contains("memory:disks/one"), "{error}");
            }
            assert!(matches!(info(&other).await, Err(Error::NotFound { .. })), "{prefix}");
        }
        // A name that only begins alike is another one.
        create(&location.sibling("disks/one1"), &NewVolume::of_size(1)).await.unwrap();
        // As it could be made once.
        let inner = Path::from("disks/one/inner/nbd-volume.json");
        store.put(&inner, "{}".into()).await.unwrap();
        let error = delete(&location).await.unwrap_err();
        assert!(error.to_string().contains("memory:disks/one/inner"), "{error}");
        info(&location).await.unwrap();
        store.delete(&inner).await.unwrap();
        delete(&location).await.unwrap();
    });
}

#[test]
fn sizes_that_make_no_sense_are_refused_with_what_to_give() {
    in_virtual_time(async {
        let location = Location::in_memory("v");
        for (volume, expected) in [
            (NewVolume::of_size(0), "such as 10G"),
            (NewVolume::of_size(1 << 63), "2^63 - 1"),
            (NewVolume::of_size(1).with_block_size(512), "4k, 8k"),
            (NewVolume::of_size(1).with_block_size(5000), "4k, 8k"),
        ] {
            let error = create(&location, &volume).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(list(&location).await.unwrap().is_empty());
    });
}

#[test]
fn a_snapshot_keeps_what_was_there_whether_a_server_has_the_volume_open_or_not() {
    in_virtual_time(async {
        let location = new_volume().await;
        let volume = Volume::open(&location, &options()).await.unwrap();
        write(&volume, b"one", 0).await.unwrap();
        // By the server, which has not flushed.
        snapshot(&location, "first").await.unwrap();
        write(&volume, b"two", 0).await.unwrap();
        volume.close().await.unwrap();
        snapshot(&location, "second").await.unwrap();
        let volume = Volume::open(&location, &options()).await.unwrap();
        write(&volume, b"now", 0).await.unwrap();
        for (name, expected) in [("first", b"one"), ("second", b"two")] {
            let old = Volume::open_snapshot(&location, name, &options()).await.unwrap();
            assert_eq!(read(&old, 0..3).await.unwrap(), expected);
            assert!(old.can_write().is_none() && old.can_resize().is_none());
            let report = check(&location, Some(name), |_| ()).await.unwrap();
            assert_eq!((report.blocks, report.damage.len()), (1, 0));
        }
        assert_eq!(read(&volume, 0..3).await.unwrap(), b"now");
        let names = info(&location).await.unwrap().snapshots;
        assert_eq!(names.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["first", "second"]);
        let error = snapshot(&location, "first").await.unwrap_err().to_string();
        assert!(error.contains("another name"), "{error}");
        for name in ["", "a@b", "a/b", "a\nb"] {
            assert!(matches!(snapshot(&location, name).await, Err(Error::Invalid(_))), "{name}");
        }
        delete_snapshot(&location, "first").await.unwrap();
        let gone = Volume::open_snapshot(&location, "first", &options()).await.unwrap_err();
        assert!(matches!(gone, Error::NoSnapshot { .. }), "{gone}");
    });
}

#[test]
fn a_clone_has_the_content_and_then_its_own() {
    in_virtual_time(async {
        let location = new_volume().await;
        let volume = Volume::open(&location, &options()).await.unwrap();
        write(&volume, b"shared", 0).await.unwrap();
        let copy = location.sibling("disks/copy");
        // Under load, and not flushed.
        clone(&location, None, &copy).await.unwrap();
        assert!(info(&location).await.unwrap().snapshots.is_empty());
        write(&volume, b"origin", 4096).await.unwrap();
        let cloned = Volume::open(&copy, &options()).await.unwrap();
        assert_eq!(read(&cloned, 0..6).await.unwrap(), b"shared");
        write(&cloned, b"clone", 4096).await.unwrap();
        assert_eq!(read(&cloned, 4096..4102).await.unwrap(), b"clone\0");
        assert_eq!(read(&volume, 4096..4102).await.unwrap(), b"origin");
        volume.close().await.unwrap();
        cloned.close().await.unwrap();
        let error = delete(&location).await.unwrap_err();
        assert!(error.to_string().contains("delete the clones first"), "{error}");
        let cloned = Volume::open(&copy, &options()).await.unwrap();
        assert_eq!(read(&cloned, 0..6).await.unwrap(), b"shared");
        cloned.close().await.unwrap();
        delete(&copy).await.unwrap();
        delete(&location).await.unwrap();
    });
}

#[test]
fn a_clone_elsewhere_or_of_what_is_not_there_is_refused() {
    in_virtual_time(async {
        let location = new_volume().await;
        let elsewhere = Location::in_memory("copy");
        let error = clone(&location, None, &elsewhere).await.unwrap_err().to_string();
        assert!(error.contains("nbd copy"), "{error}");
        let copy = location.sibling("copy");
        let missing = clone(&location, Some("no"), &copy).await.unwrap_err();
        assert!(matches!(missing, Error::NoSnapshot { .. }), "{missing}");
        create(&copy, &NewVolume::of_size(1)).await.unwrap();
        let there = clone(&location, None, &copy).await.unwrap_err();
        assert!(matches!(there, Error::Exists { .. }), "{there}");
    });
}

#[test]
fn a_volume_is_resized_whether_a_server_has_it_open_or_not() {
    in_virtual_time(async {
        let location = new_volume().await;
        resize(&location, 2 << 20).await.unwrap();
        let volume = Volume::open(&location, &options()).await.unwrap();
        assert_eq!(volume.size(), 2 << 20);
        resize(&location, 3 << 20).await.unwrap();
        assert_eq!(volume.size(), 3 << 20);
        assert_eq!(info(&location).await.unwrap().size, Some(3 << 20));
        assert!(matches!(resize(&location, 0).await, Err(Error::Invalid(_))));
    });
}

/// Whatever an interrupted creation, clone or deletion has left: nothing stays of it.
#[test]
fn what_is_left_of_a_volume_can_be_deleted() {
    cases(30, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "remnant/one");
            create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
            let volume = Volume::open(&location, &options()).await.unwrap();
            write(&volume, &[1; 8192], 0).await.unwrap();
            volume.close().await.unwrap();
            let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
            let (all, keeps) = (random.below(2) == 0, random.below(4));
            for object in objects.iter().map(|object| &object.location) {
                let is_description = object.filename() == Some("nbd-volume.json");
                let is_manifest = object.as_ref().contains("/manifest/");
                if !is_description && (all || is_manifest || random.below(4) >= keeps) {
                    store.delete(object).await.unwrap();
                }
            }
            delete(&location).await.unwrap();
            let left: Vec<_> = store.list(None).try_collect().await.unwrap();
            assert!(left.is_empty(), "{left:?}");
        });
    });
}

#[test]
fn a_volume_that_a_server_has_open_is_not_deleted() {
    in_virtual_time(async {
        let location = new_volume().await;
        let volume = Volume::open(&location, &options()).await.unwrap();
        let error = delete(&location).await.unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        volume.close().await.unwrap();
        delete(&location).await.unwrap();
    });
}

/// Whether a server has a volume open is found out over the store, which may fail then.
#[test]
fn a_volume_is_not_deleted_when_it_is_unknown_whether_a_server_has_it_open() {
    cases(20, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
            let volume = Volume::open(&location, &options()).await.unwrap();
            write(&volume, b"kept", 0).await.unwrap();
            let faults = Faults { fails: 1 + random.below(4), ..Faults::default() };
            let way = Faulty::new(&store, Random::new(random.below(1 << 32)), faults);
            let error = delete(&Location::over(way, "v")).await.unwrap_err();
            assert!(matches!(error, Error::Busy { .. } | Error::Store { .. }), "{error}");
            volume.close().await.unwrap();
            let volume = Volume::open(&location, &options()).await.unwrap();
            assert_eq!(read(&volume, 0..4).await.unwrap(), b"kept");
        });
    });
}

#[test]
fn volumes_of_later_formats_and_damaged_ones_are_refused() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Location::over(Arc::clone(&store), "v");
        create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
        let path = Path::from("v/nbd-volume.json");
        let there = store.get(&path).await.unwrap().bytes().await.unwrap();
        let long = " ".repeat(1 << 20) + std::str::from_utf8(&there).unwrap();
        for (text, expected) in [
            (r#"{"format":4,"something":"else"}"#, "format 4"),
            (r#"{"format":0,"block_size":4096,"id":"x"}"#, "format 0"),
            (r#"{"format":1,"block_size":1000,"id":"x"}"#, "block size"),
            (r#"{"format":1}"#, "not understood"),
            // Folders are named after identities.
            (r#"{"format":1,"block_size":4096,"id":"../../../home"}"#, "identity"),
            (r#"{"format":1,"block_size":4096,"id":"/home"}"#, "identity"),
            (r#"{"format":1,"block_size":4096,"id":""}"#, "identity"),
            // One that is far too long is not received.
            (&long, "not understood"),
            ("", "not understood"),
        ] {
            store.put(&path, text.to_owned().into()).await.unwrap();
            let error = Volume::open(&location, &options()).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("memory:v"), "{error}");
        }
        let missing = Volume::open(&location.sibling("w"), &options()).await.unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    });
}

#[test]
fn a_check_finds_what_was_changed_in_the_store() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Location::over(Arc::clone(&store), "v");
        create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
        let volume = Volume::open(&location, &options()).await.unwrap();
        for block in 0..100u64 {
            write(&volume, &[block as u8 + 1; 4096], block * 4096).await.unwrap();
        }
        volume.close().await.unwrap();
        let report = check(&location, None, |_| ()).await.unwrap();
        assert_eq!((report.blocks, report.damage.len()), (100, 0));
        let tables: Vec<Path> = {
            use futures_util::TryStreamExt;
            let listed = store.list(Some(&Path::from("v/compacted")));
            listed.map_ok(|object| object.location).try_collect().await.unwrap()
        };
        assert!(!tables.is_empty());
        for path in tables {
            let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
            let mut bytes = bytes.to_vec();
            if bytes.len() > 100_000 {
                bytes[50_000] ^= 1;
            }
            store.put(&path, bytes.into()).await.unwrap();
        }
        let report = check(&location, None, |_| ()).await.unwrap();
        assert!(!report.damage.is_empty() && report.blocks < 100, "{report:?}");
    });
}
