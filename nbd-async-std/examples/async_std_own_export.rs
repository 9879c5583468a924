//! An export of one's own whose work is a future: a disk with a volatile cache, every tenth read of which takes half a
//! second, as remote storage might.
//!
//! ```text
//! cargo run --features async-std --example async_std_own_export [ADDRESS:PORT or SOCKET PATH]
//! ```
//!
//! Run `qemu-img bench -f raw -d 16 -c 200 URI` against it: the client's other requests overtake the slow ones, since
//! the futures of a connection run side by side, and replies leave in the order in which they are ready.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use nbd_async_std::Server;
use nbd_async_std::export::{AsyncCanFlush, AsyncCanWrite, AsyncExport, ExportMap, Fua, Result};

struct Disk {
    /// What clients see.
    cache: RwLock<Vec<u8>>,
    /// What a power cut would leave.
    medium: Mutex<Vec<u8>>,
    reads: AtomicU64,
}

/// The size and reading are all that must be there. Offsets and lengths were checked before a method is called.
impl AsyncExport for Disk {
    fn size(&self) -> u64 {
        self.cache.read().unwrap().len() as u64
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        if number % 10 == 9 {
            eprintln!("the read at {offset:#x} takes its time");
            async_std::task::sleep(Duration::from_millis(500)).await; // No lock is held meanwhile.
        }
        let start = offset as usize;
        buffer.copy_from_slice(&self.cache.read().unwrap()[start..start + buffer.len()]);
        Ok(())
    }

    // The abilities that are returned are advertised to clients, and no others.
    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        Some(self)
    }
}

impl AsyncCanWrite for Disk {
    async fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
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

impl AsyncCanFlush for Disk {
    /// Makes durable whatever was answered before, whichever connection it came by.
    async fn flush(&self) -> Result<()> {
        self.medium.lock().unwrap().copy_from_slice(&self.cache.read().unwrap());
        Ok(())
    }
}

#[async_std::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (cache, medium) = (RwLock::new(vec![0; 16 << 20]), Mutex::new(vec![0; 16 << 20]));
    let disk = Disk { cache, medium, reads: AtomicU64::new(0) };
    let exports = ExportMap::new().with("", disk)?;
    let server = Server::new(exports);
    let place = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listening = if place.contains('/') {
        server.listen_unix(place)?
    } else {
        server.listen_tcp(&place).await?
    };
    println!("{:#}", listening.local_addr().uri("")?);
    server.wait().await;
    Ok(())
}
