//! Exports that a scenario has in hand.

mod asynchronous;
mod blocking;
mod gate;
mod scripted;
mod striped;

use std::path::Path;
use std::sync::Arc;

use nbd_engine::export::{AnyExport, Export, File, Memory};

pub use asynchronous::Asynchronous;
pub use blocking::Blocking;
pub use gate::Gate;
pub use scripted::{Call, Scripted};
pub use striped::{ASKED, HUGE, Striped};

/// A disk in memory whose work has to pass a gate.
#[derive(Debug)]
pub struct Disk {
    /// Where the bytes are.
    pub memory: Memory,
    /// Open at first.
    pub gate: Gate,
}

impl Disk {
    /// A disk of so many bytes.
    pub fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { memory: Memory::new(size).expect("it is small"), gate: Gate::default() })
    }

    fn memory(&self) -> &dyn Export {
        &self.memory
    }
}

/// The ways on which the engine carries out commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// On the connection's own thread or task.
    Inline,
    /// On the engine's worker threads.
    Workers,
    /// As futures beside the connection.
    Async,
    /// A file: at once where the kernel has the data, else on the workers.
    File,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Inline, Self::Workers, Self::Async, Self::File];

    /// Those on which several requests are at work at once, so that a [`Gate`] can hold them.
    pub const CONCURRENT: [Self; 2] = [Self::Workers, Self::Async];

    /// A disk of so many bytes, all zero; in `dir` if it is a file.
    pub fn export(self, size: u64, dir: &Path) -> AnyExport {
        match self {
            Self::Inline => AnyExport::new(Memory::new(size).expect("it is small")),
            Self::Workers | Self::Async => self.of(&Disk::new(size)),
            Self::File => {
                let path = dir.join("disk");
                let file = std::fs::File::create(&path).expect("a file");
                file.set_len(size).expect("a sparse file");
                AnyExport::new(File::open(path).expect("a disk"))
            }
        }
    }

    /// That disk, served by workers or by futures.
    ///
    /// # Panics
    /// For ways that can't wait for a gate.
    pub fn of(self, disk: &Arc<Disk>) -> AnyExport {
        match self {
            Self::Workers => AnyExport::new(Blocking(Arc::clone(disk))),
            Self::Async => AnyExport::new(Asynchronous(Arc::clone(disk))),
            Self::Inline | Self::File => panic!("{self:?} can't wait for a gate"),
        }
    }
}
