//! SlateDB alone, with its own defaults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nbd_testkit::Random;
use slatedb::Db;
use slatedb::config::ScanOptions;
use slatedb::object_store::ObjectStore;

use super::run::Problem;
use crate::load::Order;
use crate::workload::SEED;

/// A database whose keys are numbers of values of one length.
#[derive(Clone)]
pub(super) struct Slate {
    db: Db,
    value: Bytes,
    /// How many values there can be.
    count: u64,
}

impl Slate {
    /// Opens a database of `size` bytes.
    pub(super) async fn open(
        path: &str,
        objects: Arc<dyn ObjectStore>,
        size: u64,
        value: usize,
    ) -> Result<Self, Problem> {
        let db = Db::open(path, objects).await?;
        Ok(Self { db, value: vec![0x5a; value].into(), count: size / value as u64 })
    }

    pub(super) async fn close(&self) -> Result<(), Problem> {
        Ok(self.db.close().await?)
    }

    /// Writes, with so many tasks, for some time or until everything was written once, and flushes. Returns values a
    /// second.
    pub(super) async fn write(
        &self,
        order: Order,
        depth: u64,
        duration: Option<Duration>,
    ) -> Result<f64, Problem> {
        let next = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let tasks = (0..depth).map(|task| {
            let (this, next) = (self.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                let mut random = Random::new(SEED ^ task);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    match duration {
                        Some(duration) if began.elapsed() >= duration => break,
                        None if number >= this.count => break,
                        _ => (),
                    }
                    let key = match order {
                        Order::Random => random.below(this.count),
                        Order::Sequential => number % this.count,
                    };
                    this.db.put_bytes(key_of(key), this.value.clone()).await?;
                }
                Ok::<_, slatedb::Error>(())
            })
        });
        for task in Vec::from_iter(tasks) {
            task.await??;
        }
        self.db.flush().await?;
        let written = next.load(Ordering::Relaxed).saturating_sub(depth);
        Ok(written as f64 / began.elapsed().as_secs_f64())
    }

    /// Puts and flushes, with so many tasks. Returns flushes a second.
    pub(super) async fn flush(&self, tasks: u64, duration: Duration) -> Result<f64, Problem> {
        let began = Instant::now();
        let tasks = (0..tasks).map(|task| {
            let this = self.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while began.elapsed() < duration {
                    this.db.put_bytes(key_of(task), this.value.clone()).await?;
                    this.db.flush().await?;
                    count += 1;
                }
                Ok::<_, slatedb::Error>(count)
            })
        });
        let mut flushes = 0;
        for task in Vec::from_iter(tasks) {
            flushes += task.await??;
        }
        Ok(f64::from(flushes) / began.elapsed().as_secs_f64())
    }

    /// Reads everything once, by so many scans at a time. Returns values a second.
    pub(super) async fn scan(&self, scans: u64) -> Result<f64, Problem> {
        let began = Instant::now();
        let share = self.count.div_ceil(scans);
        let tasks = (0..scans).map(|scan| {
            let this = self.clone();
            tokio::spawn(async move {
                let options = ScanOptions::default()
                    .with_read_ahead_bytes(4 << 20)
                    .with_max_fetch_tasks(4)
                    .with_cache_blocks(true);
                let range = key_of(scan * share)..key_of((scan + 1) * share);
                let mut found = this.db.scan_with_options(range, &options).await?;
                let mut count = 0u64;
                while found.next().await?.is_some() {
                    count += 1;
                }
                Ok::<_, slatedb::Error>(count)
            })
        });
        let mut read = 0;
        for task in Vec::from_iter(tasks) {
            read += task.await??;
        }
        if read != self.count {
            return Err(format!("SlateDB has {read} of {} values", self.count).into());
        }
        Ok(read as f64 / began.elapsed().as_secs_f64())
    }
}

fn key_of(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}
