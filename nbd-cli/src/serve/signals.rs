//! Signals. SIGTERM, SIGINT, SIGQUIT and SIGHUP ask the server to finish; the second of the first three ends it at once.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::first_signal;
use crate::ignored_signals::not_ignored;

/// Whether a terminal controls this process, so that a hang-up means that it is gone.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Calls `shut_down` at the first signal that asks for the end, and exits at the second one with the code that shells use
/// for it. SIGHUP and SIGQUIT stay ignored if they were when this process began, as `nohup` and shells have it.
///
/// Where no terminal controls the process, SIGHUP calls `reload` first, and ends the server only if that gives `false`.
pub(super) fn watch(
    shut_down: impl Fn() + Send + 'static,
    reload: impl Fn() -> bool + Send + 'static,
) -> io::Result<()> {
    let optional = not_ignored([SIGHUP, SIGQUIT]);
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(optional))?;
    let run = move || {
        let ends = |signal: &i32| *signal != SIGHUP || has_terminal() || !reload();
        if signals.forever().find(ends).is_none() {
            return;
        }
        tracing::info!("shutting down; a second signal ends at once");
        shut_down();
        first_signal::take_echo(&mut signals);
        // A terminal that closes may send SIGHUP twice, and systemd can be configured to send it after SIGTERM, so that it
        // is never a second one.
        if let Some(signal) = signals.forever().find(|signal| *signal != SIGHUP) {
            std::process::exit(128 + signal);
        }
    };
    std::thread::Builder::new().name("nbd-signals".into()).spawn(run)?;
    Ok(())
}
