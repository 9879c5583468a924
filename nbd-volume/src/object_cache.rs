//! The cache of what is read of the store's objects.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use async_trait::async_trait;
use moka::future::Cache;
use slatedb::Error;
use slatedb::db_cache::moka::{MokaCache, MokaCacheOptions};
use slatedb::db_cache::{CacheFetch, CacheLoader, CachedEntry, CachedKey, DbCache, SplitCache};

use crate::Options;

/// A cache for parts of tables, and one for their indexes and filters, which would be driven out by the former.
pub(crate) fn object_cache(options: &Options) -> Arc<dyn DbCache> {
    let half = options.object_cache / 2;
    let parts = MokaCacheOptions { max_capacity: half, ..MokaCacheOptions::default() };
    let cache = SplitCache::new()
        .with_block_cache(Some(Arc::new(MokaCache::new_with_opts(parts))))
        .with_meta_cache(Some(Arc::new(Indexes::new(half))));
    Arc::new(cache.build())
}

/// A cache of indexes and filters, each of which is loaded once for all that wait for it: a table that is read for the first
/// time has many reads at once.
struct Indexes(Cache<CachedKey, CachedEntry>);

impl Indexes {
    /// One of at most so many bytes.
    fn new(max_bytes: u64) -> Self {
        let weigh =
            |_: &CachedKey, entry: &CachedEntry| u32::try_from(entry.size()).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(max_bytes).weigher(weigh).build())
    }

    async fn fetch(&self, key: CachedKey, loader: CacheLoader) -> Result<CacheFetch, Error> {
        if let Some(entry) = self.0.get(&key).await {
            return Ok(CacheFetch::hit(entry));
        }
        let cache = self.0.clone();
        // A task of its own: those who wait must not depend on whether the first of them goes on to be polled.
        let load = tokio::spawn(async move {
            let loaded = AtomicBool::new(false);
            let load = async {
                loaded.store(true, Ordering::Relaxed);
                loader().await.map_err(|error| error.to_string())
            };
            let entry = cache.try_get_with(key, load).await?;
            Ok(match loaded.into_inner() {
                true => CacheFetch::miss(entry),
                false => CacheFetch::hit(entry),
            })
        });
        // Whoever gets an error loads it without the cache, and reports what that ends with.
        let failed = |why: Arc<String>| Error::unavailable(why.to_string());
        load.await.map_err(|error| Error::unavailable(error.to_string()))?.map_err(failed)
    }
}

#[async_trait]
impl DbCache for Indexes {
    async fn get_block(&self, key: &CachedKey) -> Result<Option<CachedEntry>, Error> {
        Ok(self.0.get(key).await)
    }

    async fn get_index(&self, key: &CachedKey) -> Result<Option<CachedEntry>, Error> {
        Ok(self.0.get(key).await)
    }

    async fn get_filter(&self, key: &CachedKey) -> Result<Option<CachedEntry>, Error> {
        Ok(self.0.get(key).await)
    }

    async fn get_stats(&self, key: &CachedKey) -> Result<Option<CachedEntry>, Error> {
        Ok(self.0.get(key).await)
    }

    async fn fetch_index(&self, key: CachedKey, loader: CacheLoader) -> Result<CacheFetch, Error> {
        self.fetch(key, loader).await
    }

    async fn fetch_filter(&self, key: CachedKey, loader: CacheLoader) -> Result<CacheFetch, Error> {
        self.fetch(key, loader).await
    }

    async fn fetch_stats(&self, key: CachedKey, loader: CacheLoader) -> Result<CacheFetch, Error> {
        self.fetch(key, loader).await
    }

    async fn insert(&self, key: CachedKey, entry: CachedEntry) {
        self.0.insert(key, entry).await;
    }

    async fn remove(&self, key: &CachedKey) {
        self.0.invalidate(key).await;
    }

    fn entry_count(&self) -> u64 {
        self.0.entry_count()
    }
}
