//! What clients may see: for each cell the writes that it may hold, by what the clients were told alone.
//!
//! Time is the order of what clients do and learn. A write is *settled* once it has happened or never will; it is *hidden*
//! once a later one was acknowledged, or seen, and *undurable* once a later one is known to be flushed. Writes that overlap
//! in time may be carried out in either order.

mod cell;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cell::CellHistory;

use crate::plan::Op;
use crate::stamp;

/// The oracle of one run. Cheap to clone: clones are the same oracle.
#[derive(Clone, Debug)]
pub struct Oracle {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    tick: u64,
    /// Power cuts so far.
    epoch: u64,
    cells: Vec<CellHistory>,
    open: BTreeMap<u64, Open>,
    next_token: u64,
    /// A client is at work that writes again what a power cut takes.
    keeping: bool,
    violations: Vec<String>,
    counts: Counts,
}

/// A request that has not ended.
#[derive(Clone, Copy, Debug)]
struct Open {
    op: Op,
    step: u64,
    issued: u64,
    epoch: u64,
    /// It is sent again when its connection is lost.
    resent: bool,
}

/// What has happened in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub requests: u64,
    pub acknowledged: u64,
    pub failed: u64,
    pub unknown: u64,
    pub cells_checked: u64,
    pub power_cuts: u64,
    pub servers: u64,
}

/// How a request ended, as its client saw it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Ended {
    /// It was acknowledged; a read or a block status with the cells' stamps, as far as they are known.
    Good(Vec<Option<u64>>),
    /// The server failed: part of it may have been done, and no more will be.
    Failed,
    /// It was never sent.
    NotDone,
    /// It may be carried out, or not, as long as the server lives.
    Unknown,
}

/// Names an open request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(u64);

impl Oracle {
    /// A disk of zeroes that nobody has touched.
    #[must_use]
    pub fn new(cells: u64) -> Self {
        let state = State {
            tick: 0,
            epoch: 0,
            cells: (0..cells).map(|_| CellHistory::new()).collect(),
            open: BTreeMap::new(),
            next_token: 0,
            keeping: false,
            violations: Vec::new(),
            counts: Counts::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tick += 1;
        state
    }

    /// What was found wrong.
    pub fn violation(&self, text: String) {
        self.state().violations.push(text);
    }

    /// All that was found wrong.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// What has happened.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Requests that have not ended.
    #[must_use]
    pub fn open(&self) -> Vec<(u64, Op)> {
        self.state().open.values().map(|open| (open.step, open.op)).collect()
    }

    /// A client is about to make a request, which is sent again with a lost connection if `resent`.
    #[must_use]
    pub fn begin(&self, op: Op, step: u64, resent: bool) -> Token {
        let state = &mut *self.state();
        let (token, issued, epoch) = (state.next_token, state.tick, state.epoch);
        state.next_token += 1;
        state.counts.requests += 1;
        state.open.insert(token, Open { op, step, issued, epoch, resent });
        for (index, cell, stamp) in changes(op, step) {
            if let Some(history) = state.cells.get_mut(cell as usize) {
                history.begin(token, stamp_of(stamp, step, index), issued, is_optional(op));
            }
        }
        Token(token)
    }

    /// A request has ended.
    pub fn end(&self, token: Token, ended: Ended) {
        let state = &mut *self.state();
        let Some(open) = state.open.remove(&token.0) else {
            state.violations.push(format!("a request has ended twice: {token:?}"));
            return;
        };
        match &ended {
            Ended::Good(_) => state.counts.acknowledged += 1,
            Ended::Failed | Ended::NotDone => state.counts.failed += 1,
            Ended::Unknown => state.counts.unknown += 1,
        }
        let now = state.tick;
        let survived = open.epoch == state.epoch;
        for (_, cell, _) in changes(open.op, open.step) {
            let Some(history) = state.cells.get_mut(cell as usize) else { continue };
            match ended {
                Ended::Good(_) if survived => history.acknowledge(token.0, now, forces(open.op)),
                // It may have been carried out before the power cut, or after it.
                Ended::Good(_) if open.resent => history.settle(token.0, now),
                Ended::Good(_) | Ended::Unknown => {}
                Ended::Failed => history.settle(token.0, now),
                Ended::NotDone => history.retract(token.0),
            }
        }
        let Ended::Good(stamps) = ended else { return };
        if open.op == Op::Flush && survived {
            state.cells.iter_mut().for_each(|history| history.flushed(open.issued));
        }
        if let Op::Read { cell, .. } | Op::Status { cell, .. } = open.op {
            for (index, stamp) in stamps.into_iter().enumerate() {
                let Some(stamp) = stamp else { continue };
                state.counts.cells_checked += 1;
                let index = cell + index as u64;
                let Some(history) = state.cells.get_mut(index as usize) else { continue };
                if let Err(why) = history.observe(stamp, open.issued, now, survived, state.keeping)
                {
                    let (step, op) = (open.step, open.op);
                    let whose = stamp::step_of(stamp);
                    let text = format!(
                        "step {step}, {op:?}: cell {index} shows step {whose} ({stamp:#x}), {why}"
                    );
                    state.violations.push(text);
                }
            }
        }
    }

    /// The server was replaced: what it has not done by now it won't do. With `power_cut`, its cache was lost.
    pub fn server_ended(&self, power_cut: bool) {
        let state = &mut *self.state();
        let now = state.tick;
        state.counts.servers += 1;
        let resent = |token: u64| state.open.get(&token).is_some_and(|open| open.resent);
        for history in &mut state.cells {
            history.settle_all(now, resent);
            match (power_cut, state.keeping) {
                (false, _) => {}
                (true, false) => history.cut_power(),
                (true, true) => history.cut_power_kept(),
            }
        }
        if power_cut {
            state.epoch += u64::from(!state.keeping);
            state.counts.power_cuts += 1;
        }
    }

    /// From now on a client is at work, or not any more, that keeps what it wrote and writes it again after a power cut, and
    /// is the only one that writes.
    pub fn keeps(&self, keeping: bool) {
        self.state().keeping = keeping;
    }

    /// The current moment.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.state().tick
    }
}

/// The cells that an operation changes: their index in it, their number, and whether to a stamp or to zero.
fn changes(op: Op, step: u64) -> impl Iterator<Item = (u64, u64, bool)> {
    debug_assert!(step > 0, "stamps are not zero");
    let (cell, count, stamped) = match op {
        Op::Write { cell, count, .. } => (cell, count, true),
        Op::Zero { cell, count, .. } | Op::Trim { cell, count, .. } => (cell, count, false),
        _ => (0, 0, false),
    };
    (0..count).map(move |index| (index, cell + index, stamped))
}

const fn stamp_of(stamped: bool, step: u64, index: u64) -> u64 {
    if stamped { stamp::of(step, index) } else { 0 }
}

/// What is trimmed may stay as it was.
const fn is_optional(op: Op) -> bool {
    matches!(op, Op::Trim { .. })
}

const fn forces(op: Op) -> bool {
    matches!(op, Op::Write { fua: true, .. } | Op::Zero { fua: true, .. })
}
