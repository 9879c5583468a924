//! What all handles of an open object share, and how its requests wait.

use core::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use nbd_engine::export::{ExportError, Result};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::identity::Identity;
use super::options::ObjectOptions;
use super::parts::{PART, Parts, parts_of};
use super::schedule::{Arrival, Schedule};
use crate::Location;
use crate::streams::Streams;

/// An object that is open.
pub(super) struct Shared {
    pub(super) location: Location,
    pub(super) identity: Identity,
    pub(super) options: ObjectOptions,
    pub(super) runtime: Handle,
    pub(super) parts: Parts,
    schedule: Mutex<Schedule>,
    streams: Streams,
    /// What was changed about the object, once that was noticed.
    changed: OnceLock<String>,
}

impl Shared {
    pub(super) fn new(
        location: &Location,
        identity: Identity,
        options: &ObjectOptions,
        runtime: Handle,
    ) -> Self {
        let max_parts = usize::try_from(options.max_request / PART).unwrap_or(usize::MAX);
        Self {
            location: location.clone(),
            identity,
            options: options.clone(),
            runtime,
            parts: Parts::new(options.cache),
            schedule: Mutex::new(Schedule::new(options.requests, max_parts)),
            // What is there before it is read must not drive itself out.
            streams: Streams::new(options.read_ahead.min(options.cache / 4)),
            changed: OnceLock::new(),
        }
    }

    pub(super) fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object is another one now. Said once.
    pub(super) fn set_changed(&self, how: String) {
        if self.changed.set(how).is_ok() {
            self.parts.clear();
            tracing::error!("{}: its requests fail from now on", self.changed_text());
        }
    }

    pub(super) fn changed_text(&self) -> String {
        let how = self.changed.get().map_or("", String::as_str);
        format!("the object {} was changed while it was being served ({how})", self.location)
    }

    fn check_unchanged(&self) -> Result<()> {
        match self.changed.get() {
            None => Ok(()),
            Some(_) => Err(ExportError::io(self.changed_text())),
        }
    }

    /// The parts that hold these bytes, of which there is at least one, each whole.
    pub(super) async fn read(self: &Arc<Self>, bytes: &Range<u64>) -> Result<Vec<Bytes>> {
        self.check_unchanged()?;
        let ahead = self.streams.read(bytes, self.identity.size()).ahead;
        let mut found: Vec<Option<Bytes>> =
            parts_of(bytes).map(|part| self.parts.get(part)).collect();
        if !ahead.is_empty() || found.iter().any(Option::is_none) {
            let arrivals = self.ask(bytes, &mut found, &ahead);
            self.receive(arrivals, &mut found).await?;
        }
        self.check_unchanged()?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Has the parts that were not found fetched, and those that will soon be read in sequence.
    fn ask(
        self: &Arc<Self>,
        bytes: &Range<u64>,
        found: &mut [Option<Bytes>],
        ahead: &[Range<u64>],
    ) -> Vec<(usize, Arrival)> {
        let mut arrivals = Vec::new();
        let mut schedule = self.schedule();
        for ((index, part), found) in parts_of(bytes).enumerate().zip(found) {
            // What arrives is in the cache before the schedule forgets it.
            if found.is_none() {
                *found = self.parts.get(part);
            }
            if found.is_none() {
                arrivals.push((index, schedule.want(part)));
            }
        }
        for part in ahead.iter().flat_map(parts_of) {
            if !self.parts.contains(part) {
                schedule.prepare(part);
            }
        }
        drop(schedule);
        self.begin_requests();
        arrivals
    }

    /// Waits for parts that were asked for, at most as long as requests may wait.
    async fn receive(
        &self,
        arrivals: Vec<(usize, Arrival)>,
        found: &mut [Option<Bytes>],
    ) -> Result<()> {
        if arrivals.is_empty() {
            return Ok(());
        }
        let receiving = async {
            for (index, mut arrival) in arrivals {
                // The sender is dropped without an outcome only when the request panicked.
                let outcome = match arrival.wait_for(Option::is_some).await {
                    Ok(outcome) => outcome.clone(),
                    Err(_) => None,
                };
                found[index] = Some(match outcome {
                    Some(Ok(part)) => part,
                    Some(Err(reason)) => return Err(ExportError::io(reason.to_string())),
                    None => return Err(ExportError::io("the request was not carried out")),
                });
            }
            Ok(())
        };
        let waited = {
            let _context = self.runtime.enter();
            timeout(self.options.patience, receiving)
        };
        waited.await.unwrap_or_else(|_| Err(ExportError::io(self.gave_up(None))))
    }

    /// Begins the requests that may begin now.
    pub(super) fn begin_requests(self: &Arc<Self>) {
        loop {
            let next = self.schedule().next();
            let Some(run) = next else { return };
            self.runtime.spawn(Arc::clone(self).carry_out(run));
        }
    }

    /// The error of a request that waited in vain.
    pub(super) fn gave_up(&self, reason: Option<&str>) -> String {
        let (object, patience) = (&self.location, self.options.patience);
        let failure = self.location.watched().failure_within(patience);
        let reason = reason.or(failure.as_deref()).unwrap_or("it does not answer, or is too slow");
        format!("gave up after {patience:?} waiting for the store of {object}: {reason}")
    }
}
