//! The disk as an export.

use core::ops::ControlFlow;
use core::time::Duration;

use nbd_engine::export::{
    Allocation, AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim,
    AsyncCanWrite, AsyncCanWriteZeroes, AsyncExport, ErrorCode, ExportError, Fua, Result, Visitor,
    ZeroMode,
};

use super::{Disk, Verb};
use crate::mutation::Mutation;
use crate::stamp;
use crate::world::OUTSIDE;

/// The disk as one server serves it.
#[derive(Clone, Debug)]
pub struct Served(pub Disk);

impl Served {
    fn cell(&self) -> u64 {
        self.0.inner.plan.cell
    }

    /// The cells of a range, which has to consist of whole ones.
    fn cells(&self, offset: u64, length: u64) -> core::ops::Range<u64> {
        let cell = self.cell();
        if !offset.is_multiple_of(cell) || !length.is_multiple_of(cell) {
            let text = format!("a range of {length} bytes at {offset} is not of whole cells");
            self.0.state().violations.push(text);
        }
        offset / cell..(offset + length).div_ceil(cell)
    }

    /// Changes cells one after the other. Gives the number of the last change.
    async fn change(
        &self,
        cells: core::ops::Range<u64>,
        stamp_of: impl Fn(u64) -> Option<u64>,
    ) -> u64 {
        let disk = &self.0;
        let mut last = 0;
        let skipped = disk.strikes(Mutation::WriteLost, 3);
        let half_done = disk.strikes(Mutation::WriteHalfDone, 2);
        let misplaced = disk.strikes(Mutation::WriteMisplaced, 4);
        let middle = (cells.start + cells.end).div_ceil(2);
        for index in cells {
            disk.between_cells().await;
            let Some(stamp) = stamp_of(index) else { continue };
            let mut state = disk.state();
            if skipped || half_done && index >= middle {
                continue;
            }
            let index = if misplaced && index + 1 < state.cells { index + 1 } else { index };
            last = state.image.write(index, stamp);
            state.lost.remove(&(index, stamp));
            if stamp != 0 {
                *state.runs.entry(stamp).or_default() += 1;
            }
            if disk.inner.plan.destage_one_in > 0
                && state.random.one_in(disk.inner.plan.destage_one_in)
            {
                let state = &mut *state;
                state.image.destage(&mut state.random);
            }
        }
        last
    }

    /// Makes what was just changed durable, if that is asked for.
    fn force(&self, cells: core::ops::Range<u64>, up_to: u64, fua: bool) {
        if fua && !self.0.is(Mutation::FuaIgnored) {
            let mut state = self.0.state();
            cells.for_each(|index| state.image.settle(index, up_to));
        }
    }

    /// Part of a change that failed may have been done.
    async fn fail_in_part(&self, offset: u64, length: u64, data: &[Option<u64>]) {
        let cells = self.cells(offset, length);
        let start = cells.start;
        let done = self.0.state().random.below(cells.end - cells.start + 1);
        let stamp_of = |index: u64| data.get((index - start) as usize).copied().flatten();
        self.change(start..start + done, stamp_of).await;
    }

    async fn write_stamps(
        &self,
        verb: Verb,
        offset: u64,
        stamps: Vec<Option<u64>>,
        fua: bool,
    ) -> Result<()> {
        let length = stamps.len() as u64 * self.cell();
        if let Err(error) = self.0.begin(verb).await {
            // What shuts down refuses.
            if error.code() != ErrorCode::ESHUTDOWN {
                self.fail_in_part(offset, length, &stamps).await;
            }
            let good = self.0.is(Mutation::FailedWriteReportedGood);
            return if good { Ok(()) } else { Err(error) };
        }
        let cells = self.cells(offset, length);
        let start = cells.start;
        if self.0.strikes(Mutation::ErrorFromNowhere, 6) {
            return Err(ExportError::new(ErrorCode::EPERM, "for no reason"));
        }
        let late = self.0.strikes(Mutation::WriteLate, 3);
        let twice = self.0.strikes(Mutation::WriteTwice, 2);
        if late || twice {
            let (again, stamps, cells) = (self.clone(), stamps.clone(), cells.clone());
            let world = self.0.inner.world.clone();
            world.clone().spawn(
                OUTSIDE,
                Box::pin(async move {
                    world.sleep(Duration::from_millis(3)).await;
                    let stamp_of = |index: u64| stamps[(index - start) as usize];
                    again.change(cells, stamp_of).await;
                }),
            );
        }
        if !late {
            let stamp_of = |index: u64| stamps[(index - start) as usize];
            let last = self.change(cells.clone(), stamp_of).await;
            self.force(cells, last, fua);
        }
        Ok(())
    }
}

impl AsyncExport for Served {
    fn size(&self) -> u64 {
        self.0.state().cells * self.cell()
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let disk = &self.0;
        disk.begin(Verb::Read).await?;
        let cells = self.cells(offset, buffer.len() as u64);
        let size = self.cell() as usize;
        let stale = disk.strikes(Mutation::ReadFromDurable, 2);
        for (index, bytes) in cells.zip(buffer.chunks_mut(size)) {
            disk.between_cells().await;
            let state = disk.state();
            let stamp = if stale { state.image.durable(index) } else { state.image.read(index) };
            drop(state);
            stamp::fill(bytes, stamp);
        }
        if disk.strikes(Mutation::MemoryLeaked, 4) {
            core::mem::forget(vec![0u8; 100]);
        }
        if disk.is(Mutation::MemoryHoarded) {
            disk.state().hoard.push(vec![0; 1 << 20]);
        }
        Ok(())
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        Some(self)
    }

    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        Some(self)
    }

    fn can_cache(&self) -> Option<impl AsyncCanCache> {
        Some(self)
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        Some(self)
    }

    fn can_resize(&self) -> Option<impl AsyncCanResize> {
        Some(self)
    }
}

impl AsyncCanWrite for Served {
    async fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let mut stamps = Vec::new();
        for bytes in data.chunks(self.cell() as usize) {
            let stamp = stamp::read(bytes);
            if stamp.is_none_or(|stamp| stamp == 0) {
                let text = format!("a write at {offset} has data that no client wrote");
                self.0.state().violations.push(text);
            }
            stamps.push(stamp);
        }
        self.0.note(|| format!("write at {offset}, fua {fua}: {stamps:x?}"));
        self.write_stamps(Verb::Change, offset, stamps, fua).await
    }

    fn fua(&self) -> Fua {
        if self.0.inner.plan.native_fua { Fua::Native } else { Fua::Emulated }
    }
}

impl AsyncCanFlush for Served {
    async fn flush(&self) -> Result<()> {
        let disk = &self.0;
        let changes = disk.state().image.changes();
        let plan = &disk.inner.plan;
        disk.begin(Verb::Flush).await?;
        let mut state = disk.state();
        let fails = plan.flush_fails_one_in > 0 && state.random.one_in(plan.flush_fails_one_in);
        if fails || state.gave_up {
            state.gave_up |= plan.failed_flush_is_final;
            let state = &mut *state;
            state.image.destage(&mut state.random);
            return Err(state.report(ErrorCode::EIO));
        }
        let up_to = if state.random.one_in(2) { changes } else { state.image.changes() };
        if disk.is(Mutation::FlushNotDone) && state.random.one_in(3) {
            return Ok(());
        }
        let forgets = disk.is(Mutation::FlushForgetsTheLatest);
        state.image.flush(if forgets { changes.saturating_sub(1) } else { up_to });
        drop(state);
        disk.note(|| format!("flushed up to change {up_to}"));
        Ok(())
    }
}

impl AsyncCanTrim for Served {
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let cells = self.cells(offset, length);
        let mut stamps = Vec::new();
        for _ in cells {
            // What is trimmed reads as zeroes, or as before.
            let zeroed = self.0.state().random.one_in(2);
            stamps.push(zeroed.then_some(0));
        }
        self.write_stamps(Verb::Trim, offset, stamps, fua).await
    }
}

impl AsyncCanWriteZeroes for Served {
    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        if mode.fast && self.0.state().random.one_in(2) {
            return Err(self.0.state().report(ErrorCode::ENOTSUP));
        }
        let count = self.cells(offset, length).count();
        self.write_stamps(Verb::Change, offset, vec![Some(0); count], mode.fua).await
    }
}

impl AsyncCanCache for Served {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        self.cells(offset, length);
        self.0.begin(Verb::Read).await
    }
}

impl AsyncCanExtents for Served {
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        let disk = &self.0;
        disk.begin(Verb::Other).await?;
        for index in self.cells(offset, length) {
            disk.between_cells().await;
            let zero = disk.state().image.read(index) == 0;
            let allocation = Allocation { length: self.cell(), hole: zero, zero };
            if let ControlFlow::Break(()) = visit(allocation) {
                break;
            }
        }
        Ok(())
    }
}

impl AsyncCanResize for Served {
    async fn resize(&self, size: u64) -> Result<()> {
        self.0.begin(Verb::Other).await?;
        let mut state = self.0.state();
        let max = self.0.inner.plan.cells;
        if size > max * self.cell() || !size.is_multiple_of(self.cell()) {
            return Err(state.report(ErrorCode::EINVAL));
        }
        state.cells = size / self.cell();
        state.resized = true;
        Ok(())
    }
}
