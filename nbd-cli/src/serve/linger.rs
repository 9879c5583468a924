//! Time for the clients of a server that ends while another one is there, or about to come, for its sockets.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::sockets::Sockets;

/// How often a server looks whether a client is left.
const LOOK: Duration = Duration::from_millis(10);

/// How long clients of a server that systemd restarts may stay: enough for those that have begun to negotiate, or have little
/// to do. It is what a server that is replaced gives by default.
const RESTART: Duration = Duration::from_secs(1);

/// Waits until no client is left, but not longer than that.
pub(super) fn linger(limit: Duration, clients: impl Fn() -> usize) {
    let end = Instant::now().checked_add(limit);
    // No event says that the last client has gone, except to a server that shuts down.
    while clients() > 0 && end.is_none_or(|end| Instant::now() < end) {
        thread::sleep(LOOK);
    }
}

/// Ends a server whose sockets systemd keeps open: nobody accepts from them any more, so that clients that come wait for the
/// next server, and those that were accepted have some time. Returns at once.
pub(super) fn end_with_sockets_kept(
    sockets: Sockets,
    connections: impl Fn() -> usize + Send + 'static,
    shut_down: impl Fn() + Send + Sync + 'static,
) {
    let shut_down = Arc::new(shut_down);
    let at_the_end = Arc::clone(&shut_down);
    let lingering = move || {
        sockets.stop_accepting();
        linger(RESTART, connections);
        at_the_end();
    };
    // Not on the thread that waits for the next signal.
    if thread::Builder::new().name("nbd-linger".into()).spawn(lingering).is_err() {
        shut_down();
    }
}
