//! Signals. SIGTERM, SIGINT, SIGQUIT and SIGHUP ask the server to finish; the second of the first three ends it at once.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::first_signal::FirstSignal;
use crate::ignored_signals::not_ignored;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// To finish; a [second](FirstSignal) time, to end at once.
    End,
    /// To finish. A terminal that closes may send it twice, and systemd can be configured to send it after SIGTERM, so that it
    /// never means more.
    HangUp,
}

/// Whether a terminal controls this process, so that a hang-up means that it is gone.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

const fn request(signal: i32) -> Request {
    match signal {
        SIGHUP => Request::HangUp,
        _ => Request::End,
    }
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    ShutDown,
    Exit,
    Nothing,
}

fn action(request: Request, first: Option<FirstSignal>) -> Action {
    match (request, first) {
        (_, None) => Action::ShutDown,
        (Request::End, Some(first)) if first.is_over() => Action::Exit,
        (Request::End | Request::HangUp, Some(_)) => Action::Nothing,
    }
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
        let mut first = None;
        for signal in signals.forever() {
            let hung_up = request(signal) == Request::HangUp;
            if hung_up && first.is_none() && !has_terminal() && reload() {
                continue;
            }
            match action(request(signal), first) {
                Action::ShutDown => {
                    first = Some(FirstSignal::now());
                    tracing::info!("shutting down; a second signal ends at once");
                    shut_down();
                }
                Action::Exit => std::process::exit(128 + signal),
                Action::Nothing => {}
            }
        }
    };
    std::thread::Builder::new().name("nbd-signals".into()).spawn(run)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_signal_ends_at_once_unless_it_is_a_hang_up() {
        let long_ago = FirstSignal::long_ago();
        for signal in [SIGINT, SIGTERM, SIGQUIT, SIGHUP] {
            assert_eq!(action(request(signal), None), Action::ShutDown);
            let second = if signal == SIGHUP { Action::Nothing } else { Action::Exit };
            assert_eq!(action(request(signal), Some(long_ago)), second);
        }
    }
}
