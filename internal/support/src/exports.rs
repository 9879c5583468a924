//! Exports that tests of clients play with.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use nbd_engine::export::{
    Allocation, BlockSize, CanExtents, CanFlush, CanTrim, CanWrite, CanWriteZeroes, Export, Memory,
    Result, ZeroMode,
};

/// Reads and writes from here on wait at the gate.
pub const GATED: u64 = 1 << 20;

/// A disk of 2 MiB whose second half is behind a gate.
#[derive(Debug)]
pub struct Gate {
    disk: Memory,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    waiting: usize,
}

/// Opens a [`Gate`].
#[derive(Clone, Debug, Default)]
pub struct Key(Arc<(Mutex<State>, Condvar)>);

impl Gate {
    /// A closed gate, and its key.
    pub fn new() -> (Self, Key) {
        let key = Key::default();
        (Self { disk: Memory::new(2 * GATED).unwrap(), state: Arc::clone(&key.0) }, key)
    }

    fn pass(&self, offset: u64) {
        if offset < GATED {
            return;
        }
        let (state, changed) = &*self.state;
        let mut state = state.lock().unwrap();
        state.waiting += 1;
        changed.notify_all();
        while !state.open {
            state = changed.wait(state).unwrap();
        }
        state.waiting -= 1;
    }
}

impl Key {
    /// Lets everything pass from now on.
    pub fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().open = true;
        changed.notify_all();
    }

    /// Waits until so many requests wait at the gate.
    ///
    /// # Panics
    /// When another test has panicked with the gate.
    pub fn await_waiting(&self, count: usize) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        while state.waiting < count {
            state = changed.wait(state).unwrap();
        }
    }
}

/// A server must be able to end even when a test fails.
impl Drop for Key {
    fn drop(&mut self) {
        if thread::panicking() {
            self.open();
        }
    }
}

impl Export for Gate {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.pass(offset);
        self.disk.read(buffer, offset)
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        self.disk.can_flush()
    }
}

impl CanWrite for Gate {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.pass(offset);
        self.disk.can_write().unwrap().write(data, offset, fua)
    }
}

/// A disk in memory with size constraints.
#[derive(Debug)]
pub struct Blocks(pub Memory, pub BlockSize);

impl Export for Blocks {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.read(buffer, offset)
    }

    fn never_blocks(&self) -> bool {
        true
    }

    fn block_size(&self) -> BlockSize {
        self.1
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        self.0.can_write()
    }
}

/// A disk that remembers what was done to it: data is durable once flushed, by any connection.
#[derive(Debug, Default)]
pub struct Journal {
    /// Offsets of what was written, in order.
    pub written: Mutex<Vec<u64>>,
    /// The same of what is durable.
    pub durable: Mutex<Vec<u64>>,
}

/// The journal as an export.
#[derive(Debug)]
pub struct Journaled(pub Arc<Journal>);

impl Export for Journaled {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn read(&self, buffer: &mut [u8], _: u64) -> Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        Some(self)
    }

    fn can_trim(&self) -> Option<&dyn CanTrim> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        Some(self)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }
}

impl CanWrite for Journaled {
    fn write(&self, _: &[u8], offset: u64, _: bool) -> Result<()> {
        self.0.written.lock().unwrap().push(offset);
        Ok(())
    }
}

impl CanFlush for Journaled {
    fn flush(&self) -> Result<()> {
        let written = self.0.written.lock().unwrap().clone();
        *self.0.durable.lock().unwrap() = written;
        Ok(())
    }
}

impl CanTrim for Journaled {
    fn trim(&self, offset: u64, _: u64, _: bool) -> Result<()> {
        self.0.written.lock().unwrap().push(offset);
        Ok(())
    }
}

impl CanWriteZeroes for Journaled {
    fn write_zeroes(&self, offset: u64, _: u64, _: ZeroMode) -> Result<()> {
        self.0.written.lock().unwrap().push(offset);
        Ok(())
    }
}

impl CanExtents for Journaled {
    /// Data and holes of 64 KiB in turn.
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        const RUN: u64 = 64 << 10;
        let mut at = offset;
        while at < offset + length {
            let hole = (at / RUN) % 2 == 1;
            let run = RUN - at % RUN;
            if visit(Allocation { length: run, hole, zero: hole }).is_break() {
                break;
            }
            at += run;
        }
        Ok(())
    }
}
