//! A disk with a cache that a crash of its server loses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_engine::export::{
    CanFlush, CanTrim, CanWrite, CanWriteZeroes, Export, ExportError, Fua, Result, ZeroMode,
};

/// What is left of the data when the server dies, and what clients see until then. Made for any number of servers, one
/// after the other: each serves a [`Life`] of it.
#[derive(Debug)]
pub struct Volatile {
    images: Mutex<Images>,
}

#[derive(Debug)]
struct Images {
    durable: Vec<u8>,
    visible: Vec<u8>,
    crashes: u64,
}

impl Volatile {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(size: usize) -> Arc<Self> {
        let images = Images { durable: vec![0; size], visible: vec![0; size], crashes: 0 };
        Arc::new(Self { images: Mutex::new(images) })
    }

    fn images(&self) -> MutexGuard<'_, Images> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The export of a server that lives until the next [crash](Self::crash).
    #[must_use]
    pub fn life(self: &Arc<Self>) -> Life {
        Life { disk: Arc::clone(self), number: self.images().crashes }
    }

    /// Loses whatever was not flushed. What earlier [lives](Self::life) are still asked for fails, and changes nothing.
    pub fn crash(&self) {
        let Images { durable, visible, crashes } = &mut *self.images();
        visible.copy_from_slice(durable);
        *crashes += 1;
    }

    /// Makes everything durable, as a server does that ends well.
    pub fn write_back(&self) {
        let Images { durable, visible, .. } = &mut *self.images();
        durable.copy_from_slice(visible);
    }

    /// How often it crashed.
    #[must_use]
    pub fn crashes(&self) -> u64 {
        self.images().crashes
    }

    /// Bytes that would survive a crash.
    #[must_use]
    pub fn durable(&self, offset: usize, length: usize) -> Vec<u8> {
        self.images().durable[offset..offset + length].to_vec()
    }
}

/// The [`Volatile`] disk as one server has it, from its start to its crash.
#[derive(Clone, Debug)]
pub struct Life {
    disk: Arc<Volatile>,
    number: u64,
}

impl Life {
    fn images(&self) -> Result<MutexGuard<'_, Images>> {
        let images = self.disk.images();
        match images.crashes == self.number {
            true => Ok(images),
            false => Err(ExportError::io("the server is dead")),
        }
    }

    fn change(
        &self,
        offset: u64,
        length: usize,
        fua: bool,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        let Images { durable, visible, .. } = &mut *self.images()?;
        let range = offset as usize..offset as usize + length;
        change(&mut visible[range.clone()]);
        if fua {
            durable[range.clone()].copy_from_slice(&visible[range]);
        }
        Ok(())
    }
}

impl Export for Life {
    fn size(&self) -> u64 {
        self.disk.images().visible.len() as u64
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let offset = offset as usize;
        buffer.copy_from_slice(&self.images()?.visible[offset..offset + buffer.len()]);
        Ok(())
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
}

impl CanWrite for Life {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.change(offset, data.len(), fua, |room| room.copy_from_slice(data))
    }

    fn fua(&self) -> Fua {
        Fua::Native
    }
}

impl CanFlush for Life {
    fn flush(&self) -> Result<()> {
        let Images { durable, visible, .. } = &mut *self.images()?;
        durable.copy_from_slice(visible);
        Ok(())
    }
}

impl CanTrim for Life {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        self.change(offset, length as usize, fua, |room| room.fill(0))
    }
}

impl CanWriteZeroes for Life {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.change(offset, length as usize, mode.fua, |room| room.fill(0))
    }
}
