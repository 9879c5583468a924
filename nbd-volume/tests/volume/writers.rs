//! One writer at a time.

use core::time::Duration;
use std::sync::Arc;

use nbd_engine::export::{AsyncExport as _, ErrorCode};
use nbd_testkit::{Random, cases};
use nbd_volume::{Error, Location, NewVolume, Volume, create};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::faulty::{Faults, Faulty};
use crate::model::{flush, read, write};
use crate::{in_virtual_time, options};

#[test]
fn a_second_server_takes_over_and_the_first_one_answers_nothing_any_more() {
    in_virtual_time(async {
        let location = Location::in_memory("v");
        create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
        let old = Volume::open(&location, &options()).await.unwrap();
        write(&old, b"flushed", 0).await.unwrap();
        flush(&old).await.unwrap();
        write(&old, b"lost", 4096).await.unwrap();
        let new = Volume::open(&location, &options()).await.unwrap();
        assert!(old.until_lost().await.contains("another server"));
        for error in [
            flush(&old).await.unwrap_err(),
            write(&old, b"never", 8192).await.unwrap_err(),
            read(&old, 0..4).await.unwrap_err(),
        ] {
            assert_eq!(error.code(), ErrorCode::ESHUTDOWN, "{error}");
        }
        assert_eq!(read(&new, 0..7).await.unwrap(), b"flushed");
        assert_eq!(read(&new, 8192..8197).await.unwrap(), [0; 5]);
        write(&new, b"new", 8192).await.unwrap();
        flush(&new).await.unwrap();
        new.close().await.unwrap();
        let last = Volume::open(&location, &options()).await.unwrap();
        assert_eq!(read(&last, 8192..8195).await.unwrap(), b"new");
    });
}

#[test]
fn a_server_that_can_not_be_reached_is_waited_for_as_long_as_it_may_answer() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Location::over(Arc::clone(&store), "v");
        create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
        let way = Faulty::new(&store, Random::new(1), Faults::default());
        let cut_off = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "v");
        let old = Volume::open(&cut_off, &options()).await.unwrap();
        way.cut();
        let began = tokio::time::Instant::now();
        let new = Volume::open(&location, &options()).await.unwrap();
        assert!(began.elapsed() >= options().lease, "it was not waited for");
        // One that was closed in order is not waited for.
        new.close().await.unwrap();
        let began = tokio::time::Instant::now();
        let _last = Volume::open(&location, &options()).await.unwrap();
        assert!(began.elapsed() < options().lease, "it was waited for");
        drop(old);
    });
}

#[test]
fn an_exclusive_server_is_refused_while_another_one_is_alive_and_takes_over_a_dead_one() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Location::over(Arc::clone(&store), "v");
        create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
        let way = Faulty::new(&store, Random::new(1), Faults { delay: 400, ..Faults::default() });
        let own_way = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "v");
        let mut exclusive = options();
        exclusive.exclusive = true;
        exclusive.lease = Duration::from_secs(3);
        // Nobody has it.
        let old = Volume::open(&own_way, &exclusive).await.unwrap();
        for _ in 0..3 {
            let error = Volume::open(&location, &exclusive).await.unwrap_err();
            assert!(matches!(error, Error::Busy { .. }), "{error}");
            assert!(error.to_string().contains("a lease of 3s"), "{error}");
            // And was not disturbed.
            write(&old, b"mine", 0).await.unwrap();
            flush(&old).await.unwrap();
        }
        // Others may ask it for something at the same time.
        let (snapshot, refused) = tokio::join!(
            nbd_volume::snapshot(&location, "monday"),
            Volume::open(&location, &exclusive)
        );
        snapshot.unwrap();
        refused.unwrap_err();
        way.cut();
        let new = Volume::open(&location, &exclusive).await.unwrap();
        assert_eq!(read(&new, 0..4).await.unwrap(), b"mine");
        // One that was closed is not even asked.
        new.close().await.unwrap();
        let last = Volume::open(&location, &exclusive).await.unwrap();
        last.close().await.unwrap();
    });
}

#[test]
fn a_server_whose_lease_is_over_asks_the_store_before_it_answers() {
    in_virtual_time(async {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let way = Faulty::new(&store, Random::new(1), Faults::default());
        let location = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "v");
        create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
        let mut options = options();
        // Each answer needs a look of its own.
        options.lease = Duration::ZERO;
        let volume = Volume::open(&location, &options).await.unwrap();
        way.set_away(true);
        let error = write(&volume, b"x", 0).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::EIO);
        assert!(error.text().contains("the store is away"), "{error}");
    });
}

#[test]
fn nothing_that_was_flushed_is_lost_when_servers_take_over_from_each_other() {
    cases(10, |random| {
        in_virtual_time(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let location = Location::over(Arc::clone(&store), "v");
            create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
            let mut flushed = 0u8;
            let mut servers = Vec::new();
            for _ in 0..4 {
                let faults = Faults {
                    fails: 30,
                    loses_reply: 30,
                    delay: random.below(40),
                    ..Faults::default()
                };
                let way = Faulty::new(&store, Random::new(random.below(u64::MAX)), faults);
                let location = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "v");
                let server = Volume::open(&location, &options()).await.unwrap();
                let found = read(&server, 0..1).await.unwrap()[0];
                assert!(found >= flushed, "{found} is there, and {flushed} was flushed");
                let writer = {
                    let server = server.clone();
                    tokio::spawn(async move {
                        let mut flushed = found;
                        while flushed < u8::MAX {
                            let next = [flushed + 1];
                            if write(&server, &next, 0).await.is_err()
                                || flush(&server).await.is_err()
                            {
                                break;
                            }
                            flushed += 1;
                        }
                        flushed
                    })
                };
                tokio::time::sleep(Duration::from_millis(200 + random.below(1000))).await;
                servers.push((server, writer));
                // The next one takes over while this one writes.
                if servers.len() > 1 {
                    let (_, writer) = servers.remove(0);
                    flushed = flushed.max(writer.await.unwrap());
                }
            }
        });
    });
}

#[test]
fn a_closed_volume_is_lost_to_its_clients() {
    in_virtual_time(async {
        let location = Location::in_memory("v");
        create(&location, &NewVolume::of_size(1 << 20)).await.unwrap();
        let volume = Volume::open(&location, &options()).await.unwrap();
        volume.close().await.unwrap();
        volume.close().await.unwrap();
        assert_eq!(write(&volume, b"x", 0).await.unwrap_err().code(), ErrorCode::ESHUTDOWN);
        assert_eq!(volume.size(), 1 << 20);
    });
}
