//! An overlay in a file over an export whose work is a future: what may block is done on other threads.

use core::mem;
use core::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Held, InFile};
use crate::export::overlay::{AsyncStore, Changes, block_buffer};
use crate::export::{Allocation, Body, CanExtents, Export, ExportError, Result, Visitor};

/// Runs of allocation that a thread finds at a time.
const RUNS: usize = 1024;

impl InFile {
    /// Has a thread do something with the file.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Held) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let held = Arc::clone(&self.held);
        self.aside.run(move || work(&held)).await.ok_or_else(no_answer)?
    }
}

/// No thread could be started, or it panicked.
pub(super) fn no_answer() -> ExportError {
    ExportError::io("no thread could use the file of the overlay")
}

impl AsyncStore for InFile {
    type Held = Held;

    async fn run<T: Send + 'static>(
        &self,
        data: &[u8],
        work: impl FnOnce(&Held, &[u8]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut copy = block_buffer(data.len() as u64)?;
        copy.copy_from_slice(data);
        self.aside(move |held| work(held, &copy)).await
    }

    async fn patch_async(&self, data: &[u8], offset: u64) -> Result<()> {
        let ability =
            self.held.data.can_write().filter(|_| self.held.begun.load(Ordering::Acquire));
        match ability.and_then(|ability| ability.try_write(data, offset, false)) {
            Some(result) => result,
            None => self.run(data, move |held, data| held.patch(data, offset)).await,
        }
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut copy = block_buffer(buffer.len() as u64)?;
        let read = move |held: &Held| held.data.read(&mut copy, offset).map(|()| copy);
        buffer.copy_from_slice(&self.aside(read).await?);
        Ok(())
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        if let Some(result) = self.held.data.try_read(body, length, offset) {
            return result;
        }
        // The thread has the buffer meanwhile. One that panics, or a request that is cancelled, takes it along.
        let mut lent = mem::take(body);
        let read = move |held: &Held| {
            let result = held.data.read_body(&mut lent, length, offset);
            Ok((lent, result))
        };
        let (lent, result) = self.aside(read).await?;
        *body = lent;
        result
    }

    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        let (mut offset, end) = (offset, offset + length);
        while offset < end {
            let runs = self.aside(move |held| held.runs(offset, end - offset)).await?;
            for run in &runs {
                if visit(*run).is_break() {
                    return Ok(());
                }
                offset = offset.saturating_add(run.length);
            }
            if runs.is_empty() {
                return Err(ExportError::io("the status of the overlay's file is incomplete"));
            }
        }
        Ok(())
    }
}

impl Held {
    /// The first runs of a range.
    fn runs(&self, offset: u64, length: u64) -> Result<Vec<Allocation>> {
        let mut runs = Vec::new();
        self.data.extents(offset, length, &mut |run| {
            runs.push(run);
            if runs.len() < RUNS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(runs)
    }
}
