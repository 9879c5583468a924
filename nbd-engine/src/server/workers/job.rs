//! A command on its way through the workers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use atomic_waker::AtomicWaker;
use nbd_proto::Command;

use super::super::budget::Remainder;
use super::super::dispatch::{self, Work};
use super::super::pieces::Pieces;
use super::super::visit::Visit;
use crate::export::{Export, Result};

/// A command to carry out on a worker.
pub(crate) struct Job {
    slot: usize,
    command: Command,
    export: Arc<dyn Export>,
    work: Work,
    completions: Arc<Completions>,
    /// The client is in the export for as long as its requests are carried out.
    _visit: Option<Arc<Visit>>,
    /// How far a long command has got.
    pieces: Option<Pieces>,
}

/// A command that was carried out.
#[derive(Debug)]
pub(crate) struct Completion {
    /// Where the connection keeps the request.
    pub(crate) slot: usize,
    pub(crate) command: Command,
    pub(crate) work: Work,
    pub(crate) result: Result<()>,
}

impl Job {
    /// The command of the request in `slot`, whose result is reported to `completions`.
    pub(crate) fn new(
        slot: usize,
        command: Command,
        export: Arc<dyn Export>,
        work: Work,
        completions: Arc<Completions>,
        visit: Option<Arc<Visit>>,
    ) -> Self {
        let pieces = Pieces::new(command);
        Self { slot, command, export, work, completions, _visit: visit, pieces }
    }

    /// Carries out the command, or the next piece of a long one: gives back the job if there is more to do. A command
    /// whose connection is gone is dropped.
    pub(super) fn run_piece(mut self) -> Option<Self> {
        if self.completions.is_abandoned() {
            return None;
        }
        let run = || match &mut self.pieces {
            Some(pieces) => pieces.run_next(&*self.export),
            None => Some(dispatch::execute(&*self.export, self.command, &mut self.work)),
        };
        let Some(result) = dispatch::guarded(run).unwrap_or_else(|panic| Some(Err(panic))) else {
            return Some(self);
        };
        self.finish(result);
        None
    }

    /// Reports the result. By then the export is let go: who learns of the last result may end at once.
    fn finish(self, result: Result<()>) {
        let Self { slot, command, export, work, completions, _visit: visit, pieces } = self;
        drop((export, visit, pieces));
        completions.push(Completion { slot, command, work, result });
    }
}

/// Where a connection's finished jobs are collected.
#[derive(Debug, Default)]
pub(crate) struct Completions {
    finished: Mutex<Vec<Completion>>,
    /// The connection is gone: what has not begun need not be done.
    abandoned: AtomicBool,
    /// What running jobs hold when the connection is gone; given back when the last of them is.
    remainder: Mutex<Option<Remainder>>,
    pub(crate) waker: AtomicWaker,
}

impl Completions {
    /// The connection is gone. Jobs that are running hold `remainder` until they end.
    pub(crate) fn abandon(&self, remainder: Remainder) {
        *self.remainder.lock().unwrap_or_else(PoisonError::into_inner) = Some(remainder);
        self.abandoned.store(true, Ordering::Relaxed);
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    fn push(&self, completion: Completion) {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).push(completion);
        self.waker.wake();
    }

    /// Gives back memory, while nothing is running.
    pub(crate) fn shrink(&self) {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).shrink_to(0);
    }

    /// Swaps what has finished into `into`, which must be empty.
    pub(crate) fn take(&self, into: &mut Vec<Completion>) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        core::mem::swap(&mut *finished, into);
    }
}
