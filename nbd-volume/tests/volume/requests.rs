//! What a server is asked for by way of the store, and what is left behind there.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nbd_engine::export::AsyncExport as _;
use nbd_testkit::Random;
use nbd_volume::{Location, NewVolume, Options, Volume, create, info, resize, snapshot};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::time::{Instant, sleep};

use crate::faulty::{Faults, Faulty};
use crate::model::read;
use crate::{in_virtual_time, options};

const SIZE: u64 = 1 << 20;

/// The store of a volume, the way of its server there, and that server.
async fn served() -> (Arc<dyn ObjectStore>, Arc<Faulty>, Volume) {
    served_with(&options()).await
}

async fn served_with(options: &Options) -> (Arc<dyn ObjectStore>, Arc<Faulty>, Volume) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    create(&Location::over(Arc::clone(&store), "v"), &NewVolume::of_size(SIZE)).await.unwrap();
    let way = Faulty::new(&store, Random::new(1), Faults::default());
    let location = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "v");
    let volume = Volume::open(&location, options).await.unwrap();
    (store, way, volume)
}

fn path() -> Path {
    Path::from("v/nbd-request.json")
}

async fn put(store: &Arc<dyn ObjectStore>, text: impl Into<String>) {
    store.put(&path(), text.into().into()).await.unwrap();
}

/// A letter from so many seconds after now.
fn letter(id: &str, seconds: i64, rest: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let since = now.saturating_add_signed(seconds);
    format!(r#"{{"id":"{id}","since":{since},{rest}}}"#)
}

const SHRINK: &str = r#""request":{"do":"resize","size":4096}"#;

#[test]
fn a_request_that_its_asker_has_given_up_is_not_carried_out() {
    for seconds in [-i64::from(u32::MAX), -1000, -200, 200, 1 << 40] {
        in_virtual_time(async {
            let (store, _, volume) = served().await;
            put(&store, letter("old", seconds, SHRINK)).await;
            sleep(Duration::from_secs(30)).await;
            assert_eq!(volume.size(), SIZE, "{seconds} s");
            // It holds up nobody.
            resize(volume.location(), 2 * SIZE).await.unwrap();
            assert_eq!(volume.size(), 2 * SIZE);
            assert!(store.head(&path()).await.is_err(), "something was left behind");
        });
    }
}

#[test]
fn what_was_left_behind_holds_up_nobody() {
    let long = "x".repeat(1 << 20);
    for text in [
        letter("late", 0, &format!(r#"{SHRINK},"answer":"done""#)),
        letter("late", 1000, &format!(r#"{SHRINK},"answer":{{"failed":"x"}}"#)),
        letter("unknown", 0, r#""request":{"do":"something-else"}"#),
        String::new(),
        "{}".to_owned(),
        long,
    ] {
        in_virtual_time(async {
            let (store, _, volume) = served().await;
            put(&store, text.clone()).await;
            snapshot(volume.location(), "s").await.unwrap();
            assert_eq!(info(volume.location()).await.unwrap().snapshots.len(), 1);
            assert_eq!(volume.size(), SIZE);
        });
    }
}

#[test]
fn what_takes_longer_than_the_lease_is_carried_out_while_clients_are_answered() {
    in_virtual_time(async {
        const SLOW: Duration = Duration::from_secs(20);
        // Leases are counted by the machine's clock, and not in virtual time.
        let mut options = options();
        options.lease = Duration::from_millis(100);
        let (store, way, volume) = served_with(&options).await;
        way.slow_puts.store(SLOW.as_millis() as u64, Ordering::Release);
        let asker = Location::over(Arc::clone(&store), "v");
        let asking = resize(&asker, 2 * SIZE);
        let reading = async {
            while volume.size() == SIZE {
                sleep(Duration::from_millis(100)).await;
            }
            let renewed = std::time::Instant::now();
            while renewed.elapsed() <= options.lease {
                std::hint::spin_loop();
            }
            let began = Instant::now();
            assert_eq!(read(&volume, 0..4).await.unwrap(), [0; 4]);
            assert!(began.elapsed() < SLOW / 2, "a client waits for a request of another one");
        };
        let (asked, ()) = tokio::join!(asking, reading);
        asked.unwrap();
        assert_eq!(info(&asker).await.unwrap().size, Some(2 * SIZE));
    });
}

#[test]
fn an_answer_replaces_its_own_request_alone() {
    for no_updates in [false, true] {
        in_virtual_time(async {
            let (store, way, volume) = served().await;
            way.no_updates.store(no_updates, Ordering::Release);
            way.slow_puts.store(15_000, Ordering::Release);
            put(&store, letter("first", 0, r#""request":{"do":"resize","size":8192}"#)).await;
            while volume.size() == SIZE {
                sleep(Duration::from_millis(100)).await;
            }
            // Its asker has gone, and another one has come.
            put(&store, letter("second", 0, r#""request":{"do":"ping"}"#)).await;
            for _ in 0..100 {
                let found = store.get(&path()).await.unwrap().bytes().await.unwrap();
                let found = String::from_utf8(found.to_vec()).unwrap();
                assert!(found.contains("second"), "{found}");
                if found.contains("done") {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
            panic!("the second request is not answered");
        });
    }
}
