//! SIGINT and SIGTERM: the first asks the server to finish, the second ends it.

use std::io;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Calls `shut_down` at the first signal, and exits at the second with the code that shells use for it.
pub(super) fn watch(shut_down: impl Fn() + Send + 'static) -> io::Result<()> {
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
