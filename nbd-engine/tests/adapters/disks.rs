//! Exports whose behaviour a test decides.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use nbd_engine::export::{
    Allocation, AsyncExport, AsyncExtents, AsyncFlushes, AsyncTrims, AsyncWrites,
    AsyncWritesZeroes, Export, ExportFuture, ExportMap, Extents, Flushes, Fua, Handle, Result,
    Trims, Writes, WritesZeroes, ZeroMode,
};

use super::gate::Gate;

/// How the work of an export is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// At once, by the connection itself.
    Inline,
    /// By a thread that may block.
    Worker,
    /// By a future.
    Async,
}

pub(super) const KINDS: [Kind; 3] = [Kind::Inline, Kind::Worker, Kind::Async];

/// The size of all these disks.
pub(super) const SIZE: u64 = 1 << 20;

/// One unnamed export.
pub(super) fn only(export: Handle) -> ExportMap {
    ExportMap::new().with_handle("", None, export)
}

/// A method of an export that was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write { fua: bool },
    Trim { fua: bool },
    Zero { fua: bool },
    Flush,
    Extents,
}

type Act = Box<dyn Fn(Call) -> Result<()> + Send + Sync>;

/// A disk of zeroes that notes its calls, and does in each what the test says.
pub(super) struct Scripted {
    kind: Kind,
    act: Act,
    fua: Fua,
    flushes: bool,
    calls: Mutex<Vec<Call>>,
}

impl Scripted {
    /// One that has all abilities, does nothing and succeeds.
    pub(super) fn new(kind: Kind) -> Self {
        let (act, fua) = (Box::new(|_| Ok(())), Fua::Emulated);
        Self { kind, act, fua, flushes: true, calls: Mutex::default() }
    }

    /// What to do when a method is called.
    pub(super) fn doing(
        mut self,
        act: impl Fn(Call) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.act = Box::new(act);
        self
    }

    pub(super) fn with_native_fua(mut self) -> Self {
        self.fua = Fua::Native;
        self
    }

    pub(super) fn without_flush(mut self) -> Self {
        self.flushes = false;
        self
    }

    /// The disk, to ask later, and a server's exports with it as the only one.
    pub(super) fn share(self) -> (Arc<Self>, ExportMap) {
        let disk = Arc::new(self);
        let shared = Arc::clone(&disk);
        let handle = match disk.kind {
            Kind::Async => Handle::Async(shared),
            Kind::Inline | Kind::Worker => Handle::Blocking(shared),
        };
        (disk, only(handle))
    }

    /// Takes the calls so far.
    pub(super) fn take_calls(&self) -> Vec<Call> {
        core::mem::take(&mut self.calls.lock().unwrap())
    }

    fn call(&self, call: Call) -> Result<()> {
        self.calls.lock().unwrap().push(call);
        (self.act)(call)
    }

    fn call_later(&self, call: Call) -> ExportFuture<'_> {
        Box::pin(async move { self.call(call) })
    }
}

impl Export for Scripted {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(0);
        self.call(Call::Read)
    }

    fn never_blocks(&self) -> bool {
        self.kind == Kind::Inline
    }

    fn writes(&self) -> Option<&dyn Writes> {
        Some(self)
    }

    fn flushes(&self) -> Option<&dyn Flushes> {
        self.flushes.then_some(self)
    }

    fn trims(&self) -> Option<&dyn Trims> {
        Some(self)
    }

    fn writes_zeroes(&self) -> Option<&dyn WritesZeroes> {
        Some(self)
    }

    fn extents(&self) -> Option<&dyn Extents> {
        Some(self)
    }
}

impl Writes for Scripted {
    fn write(&self, _data: &[u8], _offset: u64, fua: bool) -> Result<()> {
        self.call(Call::Write { fua })
    }

    fn fua(&self) -> Fua {
        self.fua
    }
}

impl Flushes for Scripted {
    fn flush(&self) -> Result<()> {
        self.call(Call::Flush)
    }
}

impl Trims for Scripted {
    fn trim(&self, _offset: u64, _length: u64, fua: bool) -> Result<()> {
        self.call(Call::Trim { fua })
    }
}

impl WritesZeroes for Scripted {
    fn write_zeroes(&self, _offset: u64, _length: u64, mode: ZeroMode) -> Result<()> {
        self.call(Call::Zero { fua: mode.fua })
    }
}

impl Extents for Scripted {
    /// Tells nothing.
    fn extents(
        &self,
        _offset: u64,
        _length: u64,
        _visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        self.call(Call::Extents)
    }
}

impl AsyncExport for Scripted {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read<'a>(&'a self, buffer: &'a mut [u8], _offset: u64) -> ExportFuture<'a> {
        buffer.fill(0);
        self.call_later(Call::Read)
    }

    fn writes(&self) -> Option<&dyn AsyncWrites> {
        Some(self)
    }

    fn flushes(&self) -> Option<&dyn AsyncFlushes> {
        self.flushes.then_some(self)
    }

    fn trims(&self) -> Option<&dyn AsyncTrims> {
        Some(self)
    }

    fn writes_zeroes(&self) -> Option<&dyn AsyncWritesZeroes> {
        Some(self)
    }

    fn extents(&self) -> Option<&dyn AsyncExtents> {
        Some(self)
    }
}

impl AsyncWrites for Scripted {
    fn write<'a>(&'a self, _data: &'a [u8], _offset: u64, fua: bool) -> ExportFuture<'a> {
        self.call_later(Call::Write { fua })
    }

    fn fua(&self) -> Fua {
        self.fua
    }
}

impl AsyncFlushes for Scripted {
    fn flush(&self) -> ExportFuture<'_> {
        self.call_later(Call::Flush)
    }
}

impl AsyncTrims for Scripted {
    fn trim(&self, _offset: u64, _length: u64, fua: bool) -> ExportFuture<'_> {
        self.call_later(Call::Trim { fua })
    }
}

impl AsyncWritesZeroes for Scripted {
    fn write_zeroes(&self, _offset: u64, _length: u64, mode: ZeroMode) -> ExportFuture<'_> {
        self.call_later(Call::Zero { fua: mode.fua })
    }
}

impl AsyncExtents for Scripted {
    /// Tells nothing.
    fn extents(
        &self,
        _offset: u64,
        _length: u64,
        _most: usize,
    ) -> ExportFuture<'_, Vec<Allocation>> {
        Box::pin(async move { self.call(Call::Extents).map(|()| Vec::new()) })
    }
}

/// Bytes of a [`GatedDisk`] that lie behind one gate.
const BLOCK: u64 = 4096;

/// A disk whose first blocks lie behind a gate each, and the rest behind none. Each byte is the number of its block,
/// counted from one.
#[derive(Debug, Default)]
pub(super) struct GatedDisk {
    pub(super) gates: [Gate; 3],
}

impl GatedDisk {
    /// Where a block that is behind no gate begins.
    pub(super) const FREE: u64 = 3 * BLOCK;

    /// Where the block behind a gate begins.
    pub(super) const fn behind(gate: u64) -> u64 {
        gate * BLOCK
    }

    /// The disk, and a server's exports with it as the only one.
    pub(super) fn share(kind: Kind) -> (Arc<Self>, ExportMap) {
        let disk = Arc::new(Self::default());
        let shared = Arc::clone(&disk);
        let handle = match kind {
            Kind::Async => Handle::Async(shared),
            Kind::Inline | Kind::Worker => Handle::Blocking(shared),
        };
        (disk, only(handle))
    }

    fn gate(&self, offset: u64) -> Option<&Gate> {
        self.gates.get((offset / BLOCK) as usize)
    }

    const fn byte(offset: u64) -> u8 {
        (offset / BLOCK) as u8 + 1
    }
}

impl Export for GatedDisk {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.gate(offset).inspect(|gate| gate.pass());
        buffer.fill(Self::byte(offset));
        Ok(())
    }

    fn writes(&self) -> Option<&dyn Writes> {
        Some(self)
    }
}

impl Writes for GatedDisk {
    fn write(&self, _data: &[u8], offset: u64, _fua: bool) -> Result<()> {
        self.gate(offset).inspect(|gate| gate.pass());
        Ok(())
    }
}

impl AsyncExport for GatedDisk {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read<'a>(&'a self, buffer: &'a mut [u8], offset: u64) -> ExportFuture<'a> {
        Box::pin(async move {
            if let Some(gate) = self.gate(offset) {
                gate.passed().await;
            }
            buffer.fill(Self::byte(offset));
            Ok(())
        })
    }

    fn writes(&self) -> Option<&dyn AsyncWrites> {
        Some(self)
    }
}

impl AsyncWrites for GatedDisk {
    fn write<'a>(&'a self, _data: &'a [u8], offset: u64, _fua: bool) -> ExportFuture<'a> {
        Box::pin(async move {
            if let Some(gate) = self.gate(offset) {
                gate.passed().await;
            }
            Ok(())
        })
    }
}
