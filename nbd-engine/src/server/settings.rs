//! How a server behaves towards its clients.

use core::time::Duration;

use nbd_proto::server::Config;

/// Bounds and deadlines of a server, with defaults that suit most.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// What the protocol's machine offers, and its bounds for one connection.
    pub config: Config,
    /// Connections at a time; more wait in the listener's queue. Default 1024.
    pub max_connections: usize,
    /// How long a client may take from connecting to choosing an export. Default 30 seconds.
    pub handshake_timeout: Duration,
    /// How long requests in flight may take once the server shuts down. Default 10 seconds.
    pub drain_timeout: Duration,
    /// Threads for exports that may block, started when needed. Default 16.
    pub max_workers: usize,
    /// Whether clients may resize exports that [can be resized](crate::export::CanResize). Default `true`: it is for the
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
            handshake_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            max_workers: 16,
            resize: true,
            busy_wait: Duration::from_micros(30),
        }
    }
}
