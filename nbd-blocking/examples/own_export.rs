//! An export of one's own: a disk with a volatile cache, every tenth read of which takes half a second.
//!
//! ```text
//! cargo run --example own_export [ADDRESS:PORT or SOCKET PATH]
//! ```
//!
//! Run `qemu-img bench -f raw -d 16 -c 200 URI` against it: the client's other requests overtake the slow ones, since
//! workers carry them out side by side, and replies leave in the order in which the work ends.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use nbd_blocking::Server;
use nbd_blocking::export::{CanFlush, CanWrite, Export, ExportMap, Fua, Result};

struct Disk {
    /// What clients see.
    cache: RwLock<Vec<u8>>,
    /// What a power cut would leave.
    medium: Mutex<Vec<u8>>,
    reads: AtomicU64,
}

/// The size and reading are all that must be there. Offsets and lengths were checked before a method is called.
impl Export for Disk {
    fn size(&self) -> u64 {
        self.cache.read().unwrap().len() as u64
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        if number % 10 == 9 {
            eprintln!("the read at {offset:#x} takes its time");
            std::thread::sleep(Duration::from_millis(500)); // No lock is held meanwhile.
        }
        let start = offset as usize;
        buffer.copy_from_slice(&self.cache.read().unwrap()[start..start + buffer.len()]);
        Ok(())
    }

    // The abilities that are returned are advertised to clients, and no others.
    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        Some(self)
    }
}

impl CanWrite for Disk {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let range = offset as usize..offset as usize + data.len();
        // Locked first, so that both see writes in the same order.
        let mut medium = self.medium.lock().unwrap();
        self.cache.write().unwrap()[range.clone()].copy_from_slice(data);
        if fua {
            // This write alone is durable before it is answered.
            medium[range].copy_from_slice(data);
        }
        Ok(())
    }

    /// `write` sees to it. With [`Fua::Emulated`], the default, the engine would call `flush` after `write`.
    fn fua(&self) -> Fua {
        Fua::Native
    }
}

impl CanFlush for Disk {
    /// Makes durable whatever was answered before, whichever connection it came by.
    fn flush(&self) -> Result<()> {
        self.medium.lock().unwrap().copy_from_slice(&self.cache.read().unwrap());
        Ok(())
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let (cache, medium) = (RwLock::new(vec![0; 16 << 20]), Mutex::new(vec![0; 16 << 20]));
    let disk = Disk { cache, medium, reads: AtomicU64::new(0) };
    let server = Server::new(ExportMap::new().with("", disk)?);
    let place = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listening =
        if place.contains('/') { server.listen_unix(place)? } else { server.listen_tcp(&place)? };
    println!("{:#}", listening.local_addr().uri("")?);
    server.wait();
    Ok(())
}
