//! How a server behaves towards its clients.

use core::time::Duration;

use nbd_proto::server::Config;

/// Bounds and deadlines of a server, with defaults that suit most.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// What the protocol's machine offers, and its bounds for one connection.
    pub config: Config,
    /// Connections at a time. Default 1024. With 1, no export is announced as one for several connections of a client
    /// (`CAN_MULTI_CONN`).
    pub max_connections: usize,
    /// How long listeners let connections above [`max_connections`](Self::max_connections) wait for others to end,
    /// counted from when the server became full; then they are closed at once, so that a client sees that it is refused.
    /// Default 1 second.
    pub admission_timeout: Duration,
    /// How long a client may take from connecting to choosing an export, besides a second for each export that was listed
    /// to it. Default 30 seconds.
    pub handshake_timeout: Duration,
    /// How long requests in flight may take once the server shuts down. Default 10 seconds.
    pub drain_timeout: Duration,
    /// Threads for exports that may block, started when needed. Default 16.
    pub max_workers: usize,
    /// Whether clients may resize exports that [can be resized](crate::export::Resizes). Default `true`: it is for the
    /// export to say. Any client could then cut a disk off that others use, so that a server of disks for many clients
    /// should say no.
    pub resize: bool,
    /// How long a connection whose client is quick asks for the next request before it goes to sleep, which spares both
    /// sides the cost of waking it. It never happens on a single processor, nor for more connections at a time than half
    /// of the processors. Default 30 microseconds; zero turns it off.
    pub busy_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            config: Config::default(),
            max_connections: 1024,
            admission_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            max_workers: 16,
            resize: true,
            busy_wait: Duration::from_micros(30),
        }
    }
}
