//! What is measured, in which order.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

use nbd_volume::{Location, NewVolume, create};
use tokio::runtime::Runtime;

use super::account::{self, Account};
use super::arguments::VolumePlan;
use super::served::Served;
use super::slate::Slate;
use super::stores::{Place, Store};
use super::{BAR, HOT_BAR};
use crate::load::{Direction, Order};

/// Why something could not be measured.
pub(super) type Problem = Box<dyn Error + Send + Sync>;

/// Bytes of a request in sequence.
const LONG: u32 = 128 << 10;

/// Bytes of what is read again and again.
const HOT: u64 = 64 << 20;

/// One line: what both did.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The store.
    pub place: Place,
    /// Bytes of a block of the volume.
    pub block_size: u32,
    /// What was done.
    pub what: &'static str,
    /// How it is measured.
    pub unit: &'static str,
    /// SlateDB alone, or a file.
    pub other: f64,
    /// Ours.
    pub ours: f64,
    /// What ours is to be, in times of the other.
    pub bar: Option<f64>,
}

/// All that was measured.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// In the order of the tables.
    pub figures: Vec<Figure>,
    /// By store and block size.
    pub accounts: Vec<(Place, u32, Account)>,
    /// The most memory that `nbd serve` took while it wrote, in bytes.
    pub peaks: Vec<(Place, u32, u64)>,
}

/// Runs a plan.
///
/// # Errors
/// When something can't be measured, such as an `nbd` that was built without volumes, or when it is interrupted.
pub fn run(plan: &VolumePlan, interrupted: &AtomicBool) -> Result<Standing, Problem> {
    // For SlateDB alone, too: what is compared is the way of a request.
    nbd_volume::reuse_large_buffers();
    let runtime = Runtime::new()?;
    let mut standing = Standing::default();
    let (_file, mut file) = Served::file(&plan.nbd, &plan.folder, HOT)?;
    for place in &plan.places {
        let slate = runtime.block_on(slate(plan, *place))?;
        for (index, block_size) in plan.block_sizes.iter().enumerate() {
            if interrupted.load(Ordering::Acquire) {
                return Err("interrupted".into());
            }
            eprintln!("{}, blocks of {block_size} bytes", place.name());
            let (place, block_size, slate) = (*place, *block_size, &slate);
            let case =
                Case { plan, place, block_size, slate, read_blocks: slate.read_blocks[index] };
            case.run(&runtime, &mut file, &mut standing)?;
        }
    }
    file.end()?;
    Ok(standing)
}

/// What SlateDB did in a store.
#[derive(Debug)]
struct SlateRates {
    /// Values a second.
    write_small: f64,
    /// MiB a second.
    write_long: f64,
    read_long: f64,
    /// The same with values as long as the blocks of the volumes, in the plan's order.
    read_blocks: Vec<f64>,
    /// A second, with 1, 4 and 16 tasks.
    flushes: [f64; 3],
}

const TASKS: [u64; 3] = [1, 4, 16];

async fn slate(plan: &VolumePlan, place: Place) -> Result<SlateRates, Problem> {
    eprintln!("{}, SlateDB alone", place.name());
    let store = Store::new(place, &plan.folder)?;
    let open = |name: &str, value| {
        let (path, objects) = (store.path(name), store.objects());
        async move { Slate::open(&path, objects?, plan.size, value).await }
    };
    let small = open("small", 4096).await?;
    let write_small = small.write(Order::Random, 32, Some(plan.duration)).await?;
    let mut flushes = [0.0; 3];
    for (rate, tasks) in flushes.iter_mut().zip(TASKS) {
        *rate = small.flush(tasks, plan.duration).await?;
    }
    small.close().await?;
    let mib = f64::from(LONG) / f64::from(1 << 20);
    let long = open("long", LONG as usize).await?;
    let write_long = long.write(Order::Sequential, 8, None).await? * mib;
    long.close().await?;
    // Nothing is in its caches.
    let long = open("long", LONG as usize).await?;
    let read_long = long.scan(4).await? * mib;
    long.close().await?;
    let mut read_blocks = Vec::new();
    for block_size in &plan.block_sizes {
        let name = format!("blocks of {block_size}");
        let blocks = open(&name, *block_size as usize).await?;
        blocks.write(Order::Sequential, 32, None).await?;
        blocks.close().await?;
        let blocks = open(&name, *block_size as usize).await?;
        let mib = f64::from(*block_size) / f64::from(1 << 20);
        read_blocks.push(blocks.scan(4).await? * mib);
        blocks.close().await?;
    }
    Ok(SlateRates { write_small, write_long, read_long, read_blocks, flushes })
}

/// A store with volumes of a block size.
struct Case<'a> {
    plan: &'a VolumePlan,
    place: Place,
    block_size: u32,
    slate: &'a SlateRates,
    /// What SlateDB reads in sequence with values of that size, in MiB a second.
    read_blocks: f64,
}

impl Case<'_> {
    fn run(
        &self,
        runtime: &Runtime,
        file: &mut Served,
        standing: &mut Standing,
    ) -> Result<(), Problem> {
        let Self { plan, place, block_size, slate, read_blocks } = *self;
        let store = Store::new(place, &plan.folder)?;
        let time = Ok(plan.duration);
        let mib = f64::from(LONG) / f64::from(1 << 20);
        let mut add = |what, unit, other, ours, bar| {
            standing.figures.push(Figure { place, block_size, what, unit, other, ours, bar });
        };
        self.create(runtime, &store, "small", plan.size)?;
        let mut served = Served::volume(plan, &store, "small")?;
        let ours = served.run(Direction::Write, Order::Random, 4096, 32, time)?;
        add("write 4k, 32 in flight", "/s", slate.write_small, ours, Some(BAR));
        let peak = served.peak();
        served.end()?;

        self.create(runtime, &store, "long", plan.size)?;
        let mut served = Served::volume(plan, &store, "long")?;
        let ours = served.fill(plan.size)? * mib;
        add("write 128k in sequence, 8 in flight", "MiB/s", slate.write_long, ours, Some(BAR));
        let peak = peak.max(served.peak());
        served.end()?;
        let mut served = Served::volume(plan, &store, "long")?;
        let all = Err(plan.size / u64::from(LONG));
        let ours = served.run(Direction::Read, Order::Sequential, LONG, 8, all)? * mib;
        add("read 128k in sequence, 8 in flight", "MiB/s", slate.read_long, ours, Some(BAR));
        add("read 128k in sequence, values of a block", "MiB/s", read_blocks, ours, None);
        served.end()?;
        let mut served = Served::volume(plan, &store, "long")?;
        let ours = served.run(Direction::Read, Order::Sequential, LONG, 1, all)? * mib;
        add("read 128k in sequence, 1 in flight", "MiB/s", slate.read_long, ours, None);
        served.end()?;

        let volume = runtime.block_on(account::open_new(&store, "flush", HOT, block_size))?;
        for (index, (what, tasks)) in ["flushes, 1 task", "flushes, 4 tasks", "flushes, 16 tasks"]
            .into_iter()
            .zip(TASKS)
            .enumerate()
        {
            let ours = runtime.block_on(account::flush(&volume, tasks, plan.duration))?;
            add(what, "/s", slate.flushes[index], ours, None);
        }
        runtime.block_on(volume.close())?;

        self.create(runtime, &store, "hot", HOT)?;
        let mut served = Served::volume(plan, &store, "hot")?;
        served.fill(HOT)?;
        let hot = |served: &mut Served| served.run(Direction::Read, Order::Random, 4096, 32, time);
        hot(&mut served)?;
        let (other, ours) = (hot(file)?, hot(&mut served)?);
        add("read 4k of 64M, 32 in flight (file:)", "/s", other, ours, Some(HOT_BAR));
        served.end()?;

        let account = account::account(&store, "account", plan.size, block_size);
        standing.accounts.push((place, block_size, runtime.block_on(account)?));
        standing.peaks.push((place, block_size, peak));
        Ok(())
    }

    fn create(
        &self,
        runtime: &Runtime,
        store: &Store,
        name: &str,
        size: u64,
    ) -> Result<(), Problem> {
        let location = Location::over(store.objects()?, &store.path(name));
        let volume = NewVolume::of_size(size).with_block_size(self.block_size);
        Ok(runtime.block_on(create(&location, &volume))?)
    }
}
