//! The clients, and how each is run.

use clap::ValueEnum;

/// The project's clients: another one is another entry here and in [`drive`](super::drive()).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ours {
    /// `nbd_blocking::Client`
    NbdBlocking,
    /// `nbd_tokio::Client` on a runtime of one thread
    NbdTokio,
    /// `nbd_tokio::Client` on a runtime of several threads
    NbdTokioThreads,
    /// `nbd_async_std::Client`
    NbdAsyncStd,
}

/// A client that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A C program on libnbd's asynchronous interface.
    Libnbd,
    /// fio's engine for NBD, which is on libnbd, too.
    Fio,
    /// One of the project's.
    Ours(Ours),
}

/// Name of what all are held against.
pub const LIBNBD: &str = "libnbd";

impl Client {
    /// What it is called on the command line and in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Libnbd => LIBNBD,
            Self::Fio => "fio-libnbd",
            Self::Ours(ours) => ours.name(),
        }
    }
}

impl Ours {
    /// Its name, also as an argument of `drive`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NbdBlocking => "nbd-blocking",
            Self::NbdTokio => "nbd-tokio",
            Self::NbdTokioThreads => "nbd-tokio-threads",
            Self::NbdAsyncStd => "nbd-async-std",
        }
    }
}

/// All clients, in the order of the tables.
pub fn catalogue() -> Vec<Client> {
    let ours = Ours::value_variants().iter().copied().map(Client::Ours);
    [Client::Libnbd, Client::Fio].into_iter().chain(ours).collect()
}
