//! A disk with a write cache: it is slow, fails, finishes out of order, and loses its cache when the power does.

mod export;
mod image;

use core::fmt;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_engine::export::{ErrorCode, ExportError, Result};
use nbd_testkit::Random;

pub use export::Served;
use image::Image;

use crate::mutation::Mutation;
use crate::plan::DiskPlan;
use crate::stamp;
use crate::world::{World, note};

/// A disk. It outlives the servers that serve it. Cheap to clone: clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    world: World,
    plan: DiskPlan,
    mutation: Option<Mutation>,
    state: Mutex<State>,
}

struct State {
    image: Image,
    random: Random,
    /// Cells that the disk has at the moment.
    cells: u64,
    /// A failed flush was the last one of this server.
    gave_up: bool,
    /// Errors that were reported, and that no client has seen yet.
    unclaimed: BTreeMap<u32, u64>,
    /// How often each step was carried out on each of its cells.
    runs: BTreeMap<u64, u64>,
    /// What is wrong with what reached the disk.
    violations: Vec<String>,
    resized: bool,
    shut_down: bool,
    healed: bool,
    /// Cells and stamps that power cuts took back, and that were not written again.
    lost: BTreeSet<(u64, u64)>,
    hoard: Vec<Vec<u8>>,
}

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Read,
    Change,
    Trim,
    Flush,
    Other,
}

impl Disk {
    /// A disk full of zeroes.
    #[must_use]
    pub fn new(world: &World, plan: &DiskPlan, mutation: Option<Mutation>, seed: u64) -> Self {
        let state = State {
            image: Image::new(plan.cells),
            random: Random::new(seed),
            cells: plan.cells,
            gave_up: false,
            unclaimed: BTreeMap::new(),
            runs: BTreeMap::new(),
            violations: Vec::new(),
            resized: false,
            shut_down: false,
            healed: false,
            lost: BTreeSet::new(),
            hoard: Vec::new(),
        };
        let plan = plan.clone();
        let inner = Inner { world: world.clone(), plan, mutation, state: Mutex::new(state) };
        Self { inner: Arc::new(inner) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.inner.mutation == Some(mutation)
    }

    /// Whether a mutation is in force, and strikes this time.
    fn strikes(&self, mutation: Mutation, one_in: u64) -> bool {
        self.is(mutation) && self.state().random.one_in(one_in)
    }

    /// A new server takes the disk over: what it left in the cache stays there.
    pub fn reopen(&self) {
        self.state().gave_up = false;
    }

    /// The power is cut: of each cell, what is durable remains or any of what was in the cache.
    pub fn cut_power(&self) {
        let forgets = self.is(Mutation::DurableLost);
        let state = &mut *self.state();
        let lost = state.image.cut_power(&mut state.random, forgets);
        state.lost.extend(lost);
    }

    /// From now on it does all at once, and does not fail.
    pub fn heal(&self) {
        let mut state = self.state();
        state.healed = true;
        state.gave_up = false;
        // The last look is at all of it.
        state.cells = self.inner.plan.cells;
    }

    /// Its cells at the moment.
    #[must_use]
    pub fn cells(&self) -> u64 {
        self.state().cells
    }

    /// A client saw an error of this code; gives whether the disk has reported one that no other client saw.
    pub fn claim(&self, code: ErrorCode) -> bool {
        match self.state().unclaimed.get_mut(&code.0) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    /// Whether a power cut took back a stamp that a cell showed, and nobody wrote it again.
    #[must_use]
    pub fn has_lost(&self, cell: u64, stamp: u64) -> bool {
        self.state().lost.contains(&(cell, stamp))
    }

    /// Whether its size was ever changed.
    #[must_use]
    pub fn was_resized(&self) -> bool {
        self.state().resized
    }

    /// Whether it has ended connections by `ESHUTDOWN`.
    #[must_use]
    pub fn has_shut_down(&self) -> bool {
        self.state().shut_down
    }

    /// Steps that were carried out more than once on a cell.
    #[must_use]
    pub fn repeated(&self) -> Vec<u64> {
        let state = self.state();
        let repeated = state.runs.iter().filter(|(_, count)| **count > 1);
        repeated.map(|(stamp, _)| stamp::step_of(*stamp)).collect()
    }

    /// What was wrong with what reached the disk.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Takes its time, then fails if it is to.
    async fn begin(&self, verb: Verb) -> Result<()> {
        let plan = &self.inner.plan;
        if self.state().healed {
            return Ok(());
        }
        let delay = match plan.delay {
            0 => 0,
            longest => {
                let random = &mut self.state().random;
                let scale = if random.one_in(4) { longest } else { longest / 10 };
                random.below(scale + 1)
            }
        };
        if delay > 0 {
            self.inner.world.sleep(Duration::from_nanos(delay)).await;
        }
        let mut state = self.state();
        if plan.shuts_down_one_in > 0 && state.random.one_in(plan.shuts_down_one_in) {
            state.shut_down = true;
            return Err(state.report(ErrorCode::ESHUTDOWN));
        }
        let fails_one_in = match verb {
            Verb::Read => plan.read_fails_one_in,
            Verb::Change | Verb::Trim => plan.write_fails_one_in,
            Verb::Flush | Verb::Other => 0,
        };
        if fails_one_in > 0 && state.random.one_in(fails_one_in) {
            // A trim that lacks space would be reported as another error.
            let no_space = verb == Verb::Change && state.random.one_in(2);
            let code = if no_space { ErrorCode::ENOSPC } else { ErrorCode::EIO };
            return Err(state.report(code));
        }
        Ok(())
    }

    /// Whether a command stops between two cells, and for how long.
    async fn between_cells(&self) {
        let plan = &self.inner.plan;
        let stops = plan.torn_one_in > 0
            && !self.state().healed
            && self.state().random.one_in(plan.torn_one_in);
        if stops {
            let pause = self.state().random.below(plan.delay.max(1000));
            self.inner.world.sleep(Duration::from_nanos(pause)).await;
        }
    }

    fn note(&self, event: impl FnOnce() -> String) {
        note(&self.inner.world, || format!("disk: {}", event()));
    }
}

impl State {
    /// An error that clients may see from now on.
    fn report(&mut self, code: ErrorCode) -> ExportError {
        *self.unclaimed.entry(code.0).or_default() += 1;
        ExportError::new(code, "the disk was told to fail")
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("plan", &self.inner.plan).finish_non_exhaustive()
    }
}
