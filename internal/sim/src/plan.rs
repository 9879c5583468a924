//! What a run is made of, drawn from its seed before it begins: so that a run that fails can be made smaller.

mod draw;
mod parts;

use core::time::Duration;

use nbd_engine::client::Limits;
use nbd_testkit::Random;

pub use parts::Part;

use crate::net::Faults;

/// Everything that is decided up front about a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// What it was drawn from; also seeds what is decided during the run.
    pub seed: u64,
    /// The network.
    pub net: NetPlan,
    /// The disk that is served.
    pub disk: DiskPlan,
    /// The server.
    pub server: ServerPlan,
    /// The clients.
    pub clients: Vec<ClientPlan>,
    /// When and how the server is replaced.
    pub outages: Vec<Outage>,
}

/// Delays, sizes and faults of streams.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NetPlan {
    /// What each piece takes at least, in nanoseconds, and at most in addition.
    pub delay: (u64, u64),
    /// Bytes that a direction holds before its writer waits.
    pub window: usize,
    /// One of so many reads and writes moves only a part; zero for none.
    pub split_one_in: u64,
    /// One of so many connections fails as it is accepted; zero for none.
    pub accept_fails_one_in: u64,
    /// The faults of each stream's two directions, by the stream's number.
    pub faults: Vec<Faults>,
}

/// What happens to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamFault {
    /// After so many bytes in its direction.
    pub byte: u64,
    /// What happens.
    pub kind: StreamFaultKind,
    /// How long it lasts, in nanoseconds; a broken stream is reset after that.
    pub time: u64,
}

/// How a stream breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamFaultKind {
    /// It is reset at once.
    Reset,
    /// This direction ends in order, although the writer has more to say.
    End,
    /// Nothing arrives any more, in either direction.
    Silence,
    /// Nothing arrives for a while.
    Stall,
}

/// A disk with a write cache.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiskPlan {
    /// Bytes of a cell, which is written as a whole or not at all.
    pub cell: u64,
    /// Cells of the disk.
    pub cells: u64,
    /// The longest that a command takes, in nanoseconds.
    pub delay: u64,
    /// One of so many commands over several cells stops between two of them; zero for none.
    pub torn_one_in: u64,
    /// One of so many reads, changes and flushes fails; zero for none.
    pub read_fails_one_in: u64,
    /// See above.
    pub write_fails_one_in: u64,
    /// See above.
    pub flush_fails_one_in: u64,
    /// After a failed flush all others fail, until the server is replaced.
    pub failed_flush_is_final: bool,
    /// One of so many commands ends its connection as a shutdown does; zero for none.
    pub shuts_down_one_in: u64,
    /// The disk does FUA by itself.
    pub native_fua: bool,
    /// One of so many changes pushes another out of the cache.
    pub destage_one_in: u64,
}

/// What a server offers, and its bounds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerPlan {
    /// Bounds of a connection.
    pub limits: Limits,
    /// Bytes of memory for the buffers of all connections.
    pub buffer_memory: u64,
    /// What is offered.
    pub structured_replies: bool,
    /// See above.
    pub extended_headers: bool,
    /// Connections at a time.
    pub max_connections: usize,
    /// A connection runs until it has nothing to do.
    pub threads_of_its_own: bool,
    /// Clients that are to go are hung up on.
    pub hangs_up: bool,
}

/// A client and what it asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientPlan {
    /// Connections of the client.
    pub connections: usize,
    /// Those who wait drive the connections.
    pub caller_drives: bool,
    /// How long a request may take.
    pub request_timeout: Option<Duration>,
    /// What is asked for.
    pub structured_replies: bool,
    /// See above.
    pub extended_headers: bool,
    /// Requests in flight on a connection.
    pub max_in_flight: u32,
    /// Requests that follow each other, in lanes that run side by side.
    pub lanes: Vec<Vec<Step>>,
    /// Lost connections are replaced.
    pub reconnect: Option<ReconnectPlan>,
    /// When its process is killed, in nanoseconds.
    pub dies_at: Option<u64>,
}

/// How a client replaces lost connections.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReconnectPlan {
    /// Bytes of acknowledged writes that it keeps until they are flushed; `None` if the next flush reports what may be lost.
    pub kept: Option<u64>,
    /// Where its random delays begin.
    pub seed: u64,
    /// How long a server that owes replies may send nothing, in nanoseconds.
    pub silence: Option<u64>,
}

/// A request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Step {
    /// What is asked for.
    pub op: Op,
    /// The number of the step, unique in its plan: what it writes is marked with it.
    pub id: u64,
    /// How long the lane waits first, in nanoseconds.
    pub think: u64,
    /// When its future is dropped, in nanoseconds.
    pub cancel_after: Option<u64>,
    /// Which of several methods is used.
    pub form: u8,
}

/// What a request asks for. Ranges are in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the commands")]
pub enum Op {
    Read { cell: u64, count: u64 },
    Write { cell: u64, count: u64, fua: bool },
    Zero { cell: u64, count: u64, fua: bool, no_hole: bool, fast: bool },
    Trim { cell: u64, count: u64, fua: bool },
    Flush,
    Cache { cell: u64, count: u64 },
    Status { cell: u64, count: u64 },
    Resize { cells: u64 },
}

/// A server is replaced.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Outage {
    /// When, in nanoseconds after the former server's start.
    pub after: u64,
    /// How the former server ends.
    pub kind: OutageKind,
    /// How long there is none, in nanoseconds.
    pub down: u64,
    /// Clients hear of it only after that time, in nanoseconds.
    pub silent: Option<u64>,
}

/// How a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutageKind {
    /// By its shutdown.
    Orderly,
    /// It is killed; what it wrote is with the system.
    Kill,
    /// Its machine loses power: what was not flushed may be lost.
    PowerCut,
}

impl NetPlan {
    /// How long the next piece takes.
    pub(crate) fn delay(&self, random: &mut Random) -> Duration {
        let (least, more) = self.delay;
        // A few pieces take much longer.
        let more = if random.one_in(16) { more } else { more / 8 };
        Duration::from_nanos(least + random.below(more + 1))
    }

    /// Whether the next piece is moved in parts.
    pub(crate) fn splits(&self, random: &mut Random) -> bool {
        self.split_one_in > 0 && random.one_in(self.split_one_in)
    }

    pub(crate) fn faults_of(&self, stream: usize) -> Faults {
        self.faults.get(stream).copied().unwrap_or_default()
    }
}

impl Op {
    /// The cell behind its range, if it has one.
    #[must_use]
    pub const fn end(&self) -> Option<u64> {
        match *self {
            Self::Read { cell, count }
            | Self::Cache { cell, count }
            | Self::Status { cell, count }
            | Self::Write { cell, count, .. }
            | Self::Zero { cell, count, .. }
            | Self::Trim { cell, count, .. } => Some(cell + count),
            Self::Flush | Self::Resize { .. } => None,
        }
    }
}
