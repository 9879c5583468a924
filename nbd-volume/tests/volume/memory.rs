//! What a volume has in memory, held against its bounds.

use std::sync::Arc;

use futures_util::TryStreamExt as _;
use nbd_support::counting::thread_held;
use nbd_testkit::Random;
use nbd_volume::{Location, NewVolume, Volume, create};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::model::{flush, read, write};
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
