//! The library alone: flushes a second, and what volumes ask their store for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_engine::export::{AsyncCanFlush as _, AsyncCanWrite as _, AsyncExport as _};
use nbd_volume::{Location, NewVolume, Options, Volume, create, info};

use super::run::Problem;
use super::stores::Store;

/// What a volume asked its store for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Requests that write, for each GiB that clients wrote.
    pub puts: f64,
    /// Bytes that were sent to the store, in times of those that clients wrote.
    pub written: f64,
    /// Bytes that lie there afterwards, in times of the data.
    pub stored: f64,
    /// Requests that read, for each GiB that clients read in sequence.
    pub gets: f64,
    /// Bytes that were fetched, in times of those that clients read.
    pub fetched: f64,
}

/// Opens a new volume in this process.
pub(super) async fn open_new(
    store: &Store,
    name: &str,
    size: u64,
    block_size: u32,
) -> Result<Volume, Problem> {
    let location = Location::over(store.objects()?, &store.path(name));
    create(&location, &NewVolume::of_size(size).with_block_size(block_size)).await?;
    Ok(Volume::open(&location, &Options::default()).await?)
}

/// Writes 4 KiB and flushes, with so many tasks. Returns flushes a second.
pub(super) async fn flush(volume: &Volume, tasks: u64, time: Duration) -> Result<f64, Problem> {
    let began = Instant::now();
    let tasks = (0..tasks).map(|task| {
        let volume = volume.clone();
        tokio::spawn(async move {
            let mut count = 0;
            while began.elapsed() < time {
                write(&volume, task << 16).await?;
                let flush = volume.can_flush().ok_or("the volume can't be written")?;
                flush.flush().await.map_err(|error| error.to_string())?;
                count += 1;
            }
            Ok::<_, String>(count)
        })
    });
    let mut flushes = 0;
    for task in Vec::from_iter(tasks) {
        flushes += task.await??;
    }
    Ok(f64::from(flushes) / began.elapsed().as_secs_f64())
}

async fn write(volume: &Volume, offset: u64) -> Result<(), String> {
    let write = volume.can_write().ok_or("the volume can't be written")?;
    write.write(&[0x5a; 4096], offset, false).await.map_err(|error| error.to_string())
}

/// Writes all of a new volume by 4 KiB in no order, closes it, and reads it in sequence by 128 KiB.
pub(super) async fn account(
    store: &Store,
    name: &str,
    size: u64,
    block_size: u32,
) -> Result<Account, Problem> {
    let volume = open_new(store, name, size, block_size).await?;
    let location = volume.location().clone();
    let before = location.traffic();
    let blocks = size / 4096;
    let tasks = (0..32).map(|task| {
        let volume = volume.clone();
        tokio::spawn(async move {
            for number in (task..blocks).step_by(32) {
                // Each once, far from the one before: the multiplier is odd, and the sizes are powers of two times it.
                let place = number.wrapping_mul(0x9e37_79b1) % blocks;
                write(&volume, place * 4096).await?;
            }
            Ok::<_, String>(())
        })
    });
    for task in Vec::from_iter(tasks) {
        task.await??;
    }
    volume.close().await?;
    let written = location.traffic();
    let stored = info(&location).await?.stored;
    let volume = Volume::open(&location, &Options::default()).await?;
    let opened = location.traffic();
    let volume = Arc::new(volume);
    let mut buffer = vec![0; 128 << 10];
    for offset in (0..size).step_by(buffer.len()) {
        volume.read(&mut buffer, offset).await.map_err(|error| error.to_string())?;
    }
    let read = location.traffic();
    volume.close().await?;
    let gib = size as f64 / f64::from(1 << 30);
    let times = |bytes: u64| bytes as f64 / size as f64;
    Ok(Account {
        puts: (written.puts - before.puts) as f64 / gib,
        written: times(written.put_bytes - before.put_bytes),
        stored: times(stored),
        gets: (read.gets - opened.gets) as f64 / gib,
        fetched: times(read.get_bytes - opened.get_bytes),
    })
}
