//! The disk: what is written goes into a cache, and a power cut leaves any part of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_blocking::Server;
use nbd_blocking::export::{
    CanFlush, CanWrite, Export, ExportError, ExportMap, Fua, Result as ExportResult,
};
use nbd_testkit::Random;

use crate::plan::SECTOR;

/// Contents of a sector since the last flush that are remembered: any of them may be what is left.
const VERSIONS: usize = 8;

/// Serves the image until standard input ends, and cuts the power.
pub(crate) fn run(
    image: &Path,
    socket: &Path,
    seed: u64,
    lies: bool,
) -> Result<(), Box<dyn Error>> {
    let disk = Arc::new(Disk::new(fs::read(image)?, lies));
    let server = Server::new(ExportMap::new().with("", Arc::clone(&disk))?);
    server.listen_unix(socket)?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    // The machine is off by now: nobody waits for an answer.
    server.shut_down();
    server.wait();
    let cut = disk.cut(&mut Random::new(seed));
    fs::write(image, &disk.state().durable)?;
    println!(
        "CUT: {} flushes; {} sectors in the cache, {} of them lost or older",
        cut.flushes, cut.cached, cut.lost
    );
    Ok(())
}

struct Disk {
    state: Mutex<State>,
    lies: bool,
}

struct State {
    durable: Vec<u8>,
    /// What was written to each sector since the last flush, in order.
    cache: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    flushes: u64,
}

/// What a power cut did.
#[derive(Debug)]
struct Cut {
    flushes: u64,
    cached: usize,
    lost: usize,
}

impl Disk {
    fn new(durable: Vec<u8>, lies: bool) -> Self {
        let state = State { durable, cache: BTreeMap::new(), flushes: 0 };
        Self { state: Mutex::new(state), lies }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves of each sector in the cache what was durable or any version since.
    fn cut(&self, random: &mut Random) -> Cut {
        let mut state = self.state();
        let cache = core::mem::take(&mut state.cache);
        let mut cut = Cut { flushes: state.flushes, cached: cache.len(), lost: 0 };
        for (sector, versions) in cache {
            let left = random.below(versions.len() as u64 + 1) as usize;
            cut.lost += usize::from(left < versions.len());
            if let Some(version) = left.checked_sub(1).map(|index| versions[index]) {
                state.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&version);
            }
        }
        cut
    }
}

impl Export for Disk {
    fn size(&self) -> u64 {
        self.state().durable.len() as u64
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> ExportResult<()> {
        let state = self.state();
        let offset = aligned(offset, buffer.len())?;
        for (room, sector) in buffer.chunks_exact_mut(SECTOR).zip(offset..) {
            match state.cache.get(&sector).and_then(|versions| versions.last()) {
                Some(version) => room.copy_from_slice(version),
                None => room.copy_from_slice(&state.durable[sector * SECTOR..][..SECTOR]),
            }
        }
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        true
    }

    fn block_size(&self) -> nbd_blocking::export::BlockSize {
        nbd_blocking::export::BlockSize::new(SECTOR as u32, 4096, 32 << 20).unwrap_or_default()
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        Some(self)
    }
}

impl CanWrite for Disk {
    fn write(&self, data: &[u8], offset: u64, _: bool) -> ExportResult<()> {
        let mut state = self.state();
        let offset = aligned(offset, data.len())?;
        for (content, sector) in data.as_chunks::<SECTOR>().0.iter().zip(offset..) {
            let versions = state.cache.entry(sector).or_default();
            if versions.len() == VERSIONS {
                versions.remove(0);
            }
            versions.push(*content);
        }
        Ok(())
    }

    /// As many disks have it: the machine flushes instead.
    fn fua(&self) -> Fua {
        Fua::Unsupported
    }
}

impl CanFlush for Disk {
    fn flush(&self) -> ExportResult<()> {
        let State { durable, cache, flushes } = &mut *self.state();
        *flushes += 1;
        if self.lies {
            return Ok(());
        }
        for (sector, versions) in core::mem::take(cache) {
            if let Some(version) = versions.last() {
                durable[sector * SECTOR..][..SECTOR].copy_from_slice(version);
            }
        }
        Ok(())
    }
}

/// The first sector of a request.
fn aligned(offset: u64, length: usize) -> ExportResult<usize> {
    let offset = offset as usize;
    match offset.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR) {
        true => Ok(offset / SECTOR),
        false => Err(ExportError::io("not whole sectors")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_leaves_what_was_flushed_and_any_part_of_the_rest() {
        let mut seen = [0; 4];
        for seed in 0..64 {
            let disk = Disk::new(vec![0; 2 * SECTOR], false);
            let write = |byte| disk.write(&[byte; 2 * SECTOR], 0, false).unwrap();
            write(1);
            disk.flush().unwrap();
            write(2);
            write(3);
            let mut read = [0; 2 * SECTOR];
            disk.read(&mut read, 0).unwrap();
            assert_eq!(read, [3; 2 * SECTOR]);
            disk.cut(&mut Random::new(seed));
            disk.read(&mut read, 0).unwrap();
            for sector in read.chunks(SECTOR) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector");
                seen[usize::from(sector[0])] += 1;
            }
        }
        assert!(seen[0] == 0 && seen[1..].iter().all(|count| *count > 0), "{seen:?}");
    }

    #[test]
    fn a_disk_that_lies_loses_what_was_flushed() {
        let disk = Disk::new(vec![0; SECTOR], true);
        let left = (0..64).filter(|seed| {
            disk.write(&[1; SECTOR], 0, false).unwrap();
            disk.flush().unwrap();
            disk.cut(&mut Random::new(*seed));
            let left = disk.state().durable[0];
            disk.state().durable[0] = 0;
            left == 0
        });
        assert!(left.count() > 0);
    }
}
