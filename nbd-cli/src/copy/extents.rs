//! Where the source has zeroes: by block status from servers, by holes from files.

use std::fs::File;
use std::sync::Arc;

use nbd_blocking::Client;
use nbd_blocking::client::{ContextExtents, Error, Flags, Pending};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::plan::Run;
use crate::output;

/// The metadata context that tells of holes and zeroes.
pub(super) const ALLOCATION: &str = "base:allocation";

/// Of a range that reads as zeroes. A hole that does not say so may read as anything.
const STATE_ZERO: u64 = 2;

/// How much a server is asked about at a time: enough that few questions are asked, and little enough that the answers
/// stay small and the first one comes soon.
const WINDOW: u64 = 512 << 20;

/// Who knows where the zeroes are.
#[derive(Debug)]
pub(super) enum Extents {
    /// Nobody, or nobody is asked.
    Unknown,
    /// The server.
    Server(Status),
    /// The file system.
    File(Arc<File>),
    /// A test.
    #[cfg(test)]
    Known(Vec<Run>),
}

impl Extents {
    /// What is known of the bytes from `at` on, which follow those of the answer before; nothing if that is all.
    pub(super) fn next(&mut self, at: u64, end: u64) -> Vec<Run> {
        match self {
            Self::Unknown => Vec::new(),
            Self::Server(status) => status.next(at, end),
            Self::File(file) => file_run(file, at, end).into_iter().collect(),
            #[cfg(test)]
            Self::Known(runs) => std::mem::take(runs),
        }
    }
}

type Answer = Pending<Result<Vec<ContextExtents>, Error>>;

/// A server that is asked ahead: while one answer is used, the next is on its way.
#[derive(Debug)]
pub(super) struct Status {
    client: Client,
    asked: Option<(u64, Answer)>,
    over: bool,
}

impl Status {
    pub(super) fn new(client: Client) -> Self {
        Self { client, asked: None, over: false }
    }

    fn ask(&self, at: u64, end: u64) -> (u64, Answer) {
        let minimum = u64::from(self.client.block_size().minimum());
        let end = end.checked_next_multiple_of(minimum).unwrap_or(end).min(self.client.size());
        let length = WINDOW.min(end - at);
        (at, self.client.submit_block_status(at, length, Flags::empty()))
    }

    fn next(&mut self, at: u64, end: u64) -> Vec<Run> {
        if self.over {
            return Vec::new();
        }
        let asked = self.asked.take().filter(|(from, _)| *from == at);
        let (_, answer) = asked.unwrap_or_else(|| self.ask(at, end));
        let runs: Vec<Run> = match answer.wait() {
            Ok(contexts) => contexts
                .into_iter()
                .find(|one| &*one.context == ALLOCATION)
                .map(|one| one.extents)
                .unwrap_or_default()
                .into_iter()
                .map(|one| Run { length: one.length, zero: one.status & STATE_ZERO != 0 })
                .collect(),
            Err(error) => {
                // Without it the copy is slower, and as good.
                let error = output::printable(&error.to_string());
                tracing::warn!(
                    offset = at,
                    error,
                    "block status failed: reading everything from here on"
                );
                Vec::new()
            }
        };
        let next = runs.iter().fold(at, |sum, run| sum.saturating_add(run.length));
        self.over = next == at;
        if !self.over && next < end {
            self.asked = Some(self.ask(next, end));
        }
        runs
    }
}

/// The data or the hole at `at`. File systems that know of no holes say that all is data.
fn file_run(file: &File, at: u64, end: u64) -> Option<Run> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) if data > at => Some(Run { length: data - at, zero: true }),
        Ok(_) => {
            let hole = seek(file, SeekFrom::Hole(at)).ok()?;
            (hole > at).then(|| Run { length: hole - at, zero: false })
        }
        // There is nothing but a hole up to the end.
        Err(Errno::NXIO) => Some(Run { length: end - at, zero: true }),
        Err(_) => None,
    }
}
