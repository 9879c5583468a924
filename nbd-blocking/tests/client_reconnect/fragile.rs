//! A disk that breaks its connections, or shuts down, in the calls that a test chooses, and that loses its cache.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nbd_blocking::Client;
use nbd_blocking::client::{ClientConfig, Reconnect};
use nbd_blocking::export::{
    Allocation, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite, CanWriteZeroes,
    Export, ExportError, Fua, Memory, Result, ZeroMode,
};

use super::serial::{Breaker, serve};

pub(crate) const SIZE: u64 = 1 << 20;

/// A read of the first byte from here on is a call of its own, by the name `marked`.
pub(crate) const MARK: u64 = SIZE - 512;

/// What happens in a call, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The connection breaks before anything is carried out.
    BreakBefore,
    /// It breaks once everything is carried out.
    BreakAfter,
    /// The server answers that it shuts down, and carries nothing out.
    ShutDownBefore,
    /// It answers that once everything is carried out.
    ShutDownAfter,
}

/// A disk that has a plan for some calls, for as often as planned.
#[derive(Clone)]
pub(crate) struct Fragile(Arc<Inner>);

struct Inner {
    /// What clients see.
    memory: Memory,
    /// What survives a crash.
    durable: Mutex<Vec<u8>>,
    size: AtomicU64,
    breaker: Breaker,
    plan: Mutex<Option<(&'static str, Moment, u32)>>,
    calls: Mutex<Vec<&'static str>>,
}

impl Fragile {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            memory: Memory::new(4 * SIZE).unwrap(),
            durable: Mutex::new(vec![0; 4 * SIZE as usize]),
            size: AtomicU64::new(SIZE),
            breaker: Breaker::default(),
            plan: Mutex::default(),
            calls: Mutex::default(),
        }))
    }

    pub(crate) fn plan(&self, call: &'static str, moment: Moment, times: u32) {
        *self.0.plan.lock().unwrap() = Some((call, moment, times));
        self.0.calls.lock().unwrap().clear();
    }

    pub(crate) fn calls(&self, call: &str) -> usize {
        self.0.calls.lock().unwrap().iter().filter(|known| **known == call).count()
    }

    pub(crate) fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    pub(crate) fn connect(&self, config: ClientConfig) -> (Client, tempfile::TempDir) {
        let (uri, folder) = serve(self.clone(), &self.0.breaker);
        let config = config.with_contexts(["base:allocation"]);
        (Client::connect_with(&uri.parse().unwrap(), &config).unwrap(), folder)
    }

    pub(crate) fn connect_by(&self, reconnect: Reconnect) -> (Client, tempfile::TempDir) {
        self.connect(ClientConfig::new().with_reconnect(reconnect))
    }

    /// The server dies, with all connections and whatever was not flushed, and the next one is there at once.
    pub(crate) fn crash(&self) {
        let durable = self.0.durable.lock().unwrap();
        self.0.memory.can_write().unwrap().write(&durable, 0, false).unwrap();
        self.0.breaker.break_all();
    }

    /// Whether these bytes, or the whole disk's, survive a crash.
    fn persist(&self, offset: u64, length: u64) {
        let range = offset as usize..(offset + length) as usize;
        self.0.memory.read(&mut self.0.durable.lock().unwrap()[range], offset).unwrap();
    }

    fn is_due(&self, call: &str, moment: Moment) -> bool {
        let mut plan = self.0.plan.lock().unwrap();
        match &mut *plan {
            Some((planned, at, times @ 1..)) if (*planned, *at) == (call, moment) => {
                *times -= 1;
                true
            }
            _ => false,
        }
    }

    fn call(&self, call: &'static str, run: impl FnOnce(&Memory) -> Result<()>) -> Result<()> {
        self.0.calls.lock().unwrap().push(call);
        if self.is_due(call, Moment::BreakBefore) {
            self.0.breaker.break_all();
        }
        if self.is_due(call, Moment::ShutDownBefore) {
            return Err(ExportError::shutting_down("by plan"));
        }
        run(&self.0.memory)?;
        if self.is_due(call, Moment::BreakAfter) {
            self.0.breaker.break_all();
        }
        match self.is_due(call, Moment::ShutDownAfter) {
            true => Err(ExportError::shutting_down("by plan")),
            false => Ok(()),
        }
    }

    /// A change of these bytes.
    fn change(
        &self,
        call: &'static str,
        bytes: (u64, u64),
        fua: bool,
        run: impl FnOnce(&Memory) -> Result<()>,
    ) -> Result<()> {
        self.call(call, |memory| {
            run(memory)?;
            if fua {
                self.persist(bytes.0, bytes.1);
            }
            Ok(())
        })
    }
}

impl Export for Fragile {
    fn size(&self) -> u64 {
        self.0.size.load(Ordering::Relaxed)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let call = if offset == MARK { "marked" } else { "read" };
        self.call(call, |memory| memory.read(buffer, offset))
    }

    fn never_blocks(&self) -> bool {
        true
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

    fn can_cache(&self) -> Option<&dyn CanCache> {
        Some(self)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }

    fn can_resize(&self) -> Option<&dyn CanResize> {
        Some(self)
    }
}

impl CanWrite for Fragile {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.change("write", (offset, data.len() as u64), fua, |memory| {
            memory.can_write().unwrap().write(data, offset, fua)
        })
    }

    fn fua(&self) -> Fua {
        Fua::Native
    }
}

impl CanFlush for Fragile {
    fn flush(&self) -> Result<()> {
        self.call("flush", |_| {
            self.persist(0, 4 * SIZE);
            Ok(())
        })
    }
}

impl CanTrim for Fragile {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        self.change("trim", (offset, length), fua, |memory| {
            memory.can_trim().unwrap().trim(offset, length, fua)
        })
    }
}

impl CanWriteZeroes for Fragile {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.change("write zeroes", (offset, length), mode.fua, |memory| {
            memory.can_write_zeroes().unwrap().write_zeroes(offset, length, mode)
        })
    }
}

impl CanCache for Fragile {
    fn cache(&self, _: u64, _: u64) -> Result<()> {
        self.call("cache", |_| Ok(()))
    }
}

impl CanExtents for Fragile {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> core::ops::ControlFlow<()>,
    ) -> Result<()> {
        self.call("extents", |memory| memory.can_extents().unwrap().extents(offset, length, visit))
    }
}

impl CanResize for Fragile {
    fn resize(&self, size: u64) -> Result<()> {
        self.call("resize", |_| {
            self.0.size.store(size, Ordering::Relaxed);
            Ok(())
        })
    }
}
