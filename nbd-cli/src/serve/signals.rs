//! SIGINT and SIGTERM: the first asks the server to finish, the second ends it. SIGXFSZ, which tells that a file has
//! reached the limit of its size, does nothing: the write that ran into it fails, and its client is told.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Its number on Linux; signal-hook has no name for it.
const SIGXFSZ: i32 = 25;

/// Calls `shut_down` at the first signal, and exits at the second with the code that shells use for it.
pub(super) fn watch(shut_down: impl Fn() + Send + 'static) -> io::Result<()> {
    // Without a handler of any kind it would end the process.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let run = move || {
        let mut asked = false;
        for signal in signals.forever() {
            if asked {
                std::process::exit(128 + signal);
            }
            asked = true;
            tracing::info!("shutting down; a second signal ends at once");
            shut_down();
        }
    };
    std::thread::Builder::new().name("nbd-signals".into()).spawn(run)?;
    Ok(())
}
