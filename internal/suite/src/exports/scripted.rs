//! A disk that does what a scenario says.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use nbd_engine::export::{
    Allocation, AnyExport, AsyncCanExtents, AsyncCanFlush, AsyncCanTrim, AsyncCanWrite,
    AsyncCanWriteZeroes, AsyncExport, CanExtents, CanFlush, CanTrim, CanWrite, CanWriteZeroes,
    Export, ExportMap, Fua, Result, Visitor, ZeroMode,
};

use super::Way;

/// A method of an export that was called, and whether the data was to be durable at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named after the methods")]
pub enum Call {
    Read,
    Write { fua: bool },
    Trim { fua: bool },
    Zero { fua: bool },
    Flush,
    Extents,
}

type Act = Box<dyn Fn(Call) -> Result<()> + Send + Sync>;

/// A disk of zeroes that notes its calls, and does in each what the scenario says. It tells no extents.
pub struct Scripted {
    way: Way,
    act: Act,
    fua: Fua,
    flushes: bool,
    calls: Mutex<Vec<Call>>,
}

impl Scripted {
    /// Its size, in bytes.
    pub const SIZE: u64 = 1 << 20;

    /// The ways of carrying out commands for which there is one.
    pub const WAYS: [Way; 3] = [Way::Inline, Way::Workers, Way::Async];

    /// One that has all abilities, does nothing and succeeds.
    pub fn new(way: Way) -> Self {
        let (act, fua) = (Box::new(|_| Ok(())), Fua::Emulated);
        Self { way, act, fua, flushes: true, calls: Mutex::default() }
    }

    /// What to do when a method is called.
    #[must_use]
    pub fn doing(mut self, act: impl Fn(Call) -> Result<()> + Send + Sync + 'static) -> Self {
        self.act = Box::new(act);
        self
    }

    /// Takes FUA itself.
    #[must_use]
    pub fn with_native_fua(mut self) -> Self {
        self.fua = Fua::Native;
        self
    }

    /// Has no flush.
    #[must_use]
    pub fn without_flush(mut self) -> Self {
        self.flushes = false;
        self
    }

    /// The disk, to ask later, and a server's exports with it as the only one.
    pub fn share(self) -> (Arc<Self>, ExportMap) {
        let disk = Arc::new(self);
        let shared = Arc::clone(&disk);
        let handle = match disk.way {
            Way::Async => AnyExport::new_async(shared),
            Way::Inline | Way::Workers | Way::File => AnyExport::new_blocking(shared),
        };
        (disk, ExportMap::new().with("", handle).expect("a short name"))
    }

    /// Takes the calls so far.
    pub fn take_calls(&self) -> Vec<Call> {
        core::mem::take(&mut self.calls.lock().expect("no panic while it is held"))
    }

    fn call(&self, call: Call) -> Result<()> {
        self.calls.lock().expect("no panic while it is held").push(call);
        (self.act)(call)
    }
}

impl Export for Scripted {
    fn size(&self) -> u64 {
        Self::SIZE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(0);
        self.call(Call::Read)
    }

    fn never_blocks(&self) -> bool {
        self.way == Way::Inline
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        self.flushes.then_some(self)
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

impl CanWrite for Scripted {
    fn write(&self, _data: &[u8], _offset: u64, fua: bool) -> Result<()> {
        self.call(Call::Write { fua })
    }

    fn fua(&self) -> Fua {
        self.fua
    }
}

impl CanFlush for Scripted {
    fn flush(&self) -> Result<()> {
        self.call(Call::Flush)
    }
}

impl CanTrim for Scripted {
    fn trim(&self, _offset: u64, _length: u64, fua: bool) -> Result<()> {
        self.call(Call::Trim { fua })
    }
}

impl CanWriteZeroes for Scripted {
    fn write_zeroes(&self, _offset: u64, _length: u64, mode: ZeroMode) -> Result<()> {
        self.call(Call::Zero { fua: mode.fua })
    }
}

impl CanExtents for Scripted {
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
        Self::SIZE
    }

    async fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(0);
        self.call(Call::Read)
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        self.flushes.then_some(self)
    }

    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        Some(self)
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        Some(self)
    }
}

impl AsyncCanWrite for Scripted {
    async fn write(&self, _data: &[u8], _offset: u64, fua: bool) -> Result<()> {
        self.call(Call::Write { fua })
    }

    fn fua(&self) -> Fua {
        self.fua
    }
}

impl AsyncCanFlush for Scripted {
    async fn flush(&self) -> Result<()> {
        self.call(Call::Flush)
    }
}

impl AsyncCanTrim for Scripted {
    async fn trim(&self, _offset: u64, _length: u64, fua: bool) -> Result<()> {
        self.call(Call::Trim { fua })
    }
}

impl AsyncCanWriteZeroes for Scripted {
    async fn write_zeroes(&self, _offset: u64, _length: u64, mode: ZeroMode) -> Result<()> {
        self.call(Call::Zero { fua: mode.fua })
    }
}

impl AsyncCanExtents for Scripted {
    async fn extents(
        &self,
        _offset: u64,
        _length: u64,
        _visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        self.call(Call::Extents)
    }
}
