//! Which signals are a second one, by which a command ends at once.

use core::time::Duration;
use std::thread;

use signal_hook::iterator::Signals;

/// What comes within this time is still the first one: `timeout` sends its signal to the command, and then to the
/// command's process group.
const ECHO: Duration = Duration::from_millis(200);

/// Waits until all that is still the first signal has come.
pub(crate) fn wait_for_echo() {
    thread::sleep(ECHO);
}

/// The same, and takes it from `signals`: what they have from then on is a second one. When a signal came is not known, only
/// when it was looked at, which may be later on a busy machine. So what came before this looks does not count as a second
/// one, which can be sent again, whereas what an end without need loses is lost.
pub(crate) fn take_echo(signals: &mut Signals) {
    wait_for_echo();
    let _echo = signals.pending().count();
}
