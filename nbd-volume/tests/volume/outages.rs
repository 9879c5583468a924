//! Stores that are away, too slow, or can't be relied on.

use core::time::Duration;
use std::sync::Arc;

use nbd_engine::export::ErrorCode;
use nbd_testkit::Random;
use nbd_volume::{Error, Location, NewVolume, Volume, create};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::faulty::{Faults, Faulty};
use crate::model::{flush, read, write};
use crate::{in_virtual_time, options};

async fn volume(faults: Faults) -> (Arc<Faulty>, Volume) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let way = Faulty::new(&store, Random::new(1), faults);
    let location = Location::over(Arc::clone(&way) as Arc<dyn ObjectStore>, "v");
    create(&location, &NewVolume::of_size(64 << 20)).await.unwrap();
    (way, Volume::open(&location, &options()).await.unwrap())
}

#[test]
fn requests_wait_for_a_store_that_is_away_for_a_while() {
    in_virtual_time(async {
        let (way, volume) = volume(Faults::default()).await;
        write(&volume, &[1; 4096], 0).await.unwrap();
        way.set_away(true);
        let flushing = flush(&volume);
        let back = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            way.set_away(false);
        };
        let (flushed, ()) = tokio::join!(flushing, back);
        flushed.unwrap();
    });
}

#[test]
fn what_waits_too_long_fails_with_the_reason_and_the_volume_goes_on_when_the_store_is_back() {
    // One that can still be read is no better for who writes.
    let ways = [
        (Faulty::set_away as fn(&Faulty, bool), "the store is away"),
        (Faulty::set_read_only, "the store is read-only"),
    ];
    for (set, reason) in ways {
        in_virtual_time(async {
            let (way, volume) = volume(Faults::default()).await;
            write(&volume, &[1; 4096], 0).await.unwrap();
            flush(&volume).await.unwrap();
            write(&volume, &[2; 4096], 4096).await.unwrap();
            set(&way, true);
            let began = tokio::time::Instant::now();
            let error = flush(&volume).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::EIO);
            assert!(error.text().contains(reason), "{error}");
            assert!(began.elapsed() >= options().patience);
            set(&way, false);
            flush(&volume).await.unwrap();
            let bytes = read(&volume, 0..8192).await.unwrap();
            assert!(
                bytes[..4096].iter().all(|byte| *byte == 1)
                    && bytes[4096..].iter().all(|byte| *byte == 2)
            );
        });
    }
}

#[test]
fn a_slow_store_slows_writers_down_instead_of_filling_memory() {
    in_virtual_time(async {
        let (way, volume) = volume(Faults::default()).await;
        way.set_away(true);
        let mut written = 0;
        // Nothing can be uploaded, so that writes have to stop.
        let error = loop {
            assert!(written < 64 << 20, "all of the disk fits in memory");
            match write(&volume, &[3; 1 << 18], written).await {
                Ok(()) => written += 1 << 18,
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), ErrorCode::EIO);
        assert!(written <= 2 * options().max_unflushed as u64, "{written} bytes are in memory");
        way.set_away(false);
        flush(&volume).await.unwrap();
        let bytes = read(&volume, 0..written).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 3));
    });
}

#[test]
fn closing_gives_up_a_store_that_stays_away_also_when_writes_wait_for_it() {
    for writes_wait in [false, true] {
        in_virtual_time(async {
            let (way, volume) = volume(Faults::default()).await;
            write(&volume, &[1; 4096], 0).await.unwrap();
            flush(&volume).await.unwrap();
            way.set_away(true);
            let mut offset = 4096;
            write(&volume, &[2; 4096], offset).await.unwrap();
            // Until there is no memory, so that a write holds its lock for as long as the store is away.
            while writes_wait && write(&volume, &[3; 1 << 18], offset).await.is_ok() {
                offset += 1 << 18;
            }
            let closing = tokio::time::timeout(2 * options().patience, volume.close());
            let error = closing.await.expect("it has a bound").unwrap_err();
            assert!(error.to_string().contains("the store is away"), "{error}");
            assert_eq!(read(&volume, 0..1).await.unwrap_err().code(), ErrorCode::ESHUTDOWN);
            way.set_away(false);
            let next = Volume::open(volume.location(), &options()).await.unwrap();
            assert_eq!(read(&next, 0..4096).await.unwrap(), [1; 4096]);
        });
    }
}

/// A store that overwrites whatever it is asked.
#[derive(Debug)]
struct Careless(InMemory);

impl core::fmt::Display for Careless {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a careless store")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(
        &self,
        path: &object_store::path::Path,
        payload: object_store::PutPayload,
        _options: object_store::PutOptions,
    ) -> object_store::Result<object_store::PutResult> {
        self.0.put_opts(path, payload, object_store::PutOptions::default()).await
    }

    async fn put_multipart_opts(
        &self,
        path: &object_store::path::Path,
        options: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(
        &self,
        path: &object_store::path::Path,
        options: object_store::GetOptions,
    ) -> object_store::Result<object_store::GetResult> {
        self.0.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: futures_util::stream::BoxStream<
            'static,
            object_store::Result<object_store::path::Path>,
        >,
    ) -> futures_util::stream::BoxStream<'static, object_store::Result<object_store::path::Path>>
    {
        self.0.delete_stream(paths)
    }

    fn list(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> futures_util::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>>
    {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> object_store::Result<object_store::ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &object_store::path::Path,
        to: &object_store::path::Path,
        options: object_store::CopyOptions,
    ) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[test]
fn a_store_that_does_not_honour_conditional_writes_is_refused() {
    in_virtual_time(async {
        let location = Location::over(Arc::new(Careless(InMemory::new())), "v");
        let error = create(&location, &NewVolume::of_size(1 << 20)).await.unwrap_err();
        assert!(matches!(error, Error::Unconditional { .. }), "{error}");
        assert!(error.to_string().contains("If-None-Match"), "{error}");
        // Nor is one opened that was moved there.
        let good: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        create(&Location::over(Arc::clone(&good), "v"), &NewVolume::of_size(1 << 20))
            .await
            .unwrap();
        let careless = InMemory::new();
        let descriptor = object_store::path::Path::from("v/nbd-volume.json");
        let copied = object_store::ObjectStoreExt::get(&*good, &descriptor).await.unwrap();
        let bytes = copied.bytes().await.unwrap();
        object_store::ObjectStoreExt::put(&careless, &descriptor, bytes.into()).await.unwrap();
        let location = Location::over(Arc::new(Careless(careless)), "v");
        let error = Volume::open(&location, &options()).await.unwrap_err();
        assert!(matches!(error, Error::Unconditional { .. }), "{error}");
    });
}
