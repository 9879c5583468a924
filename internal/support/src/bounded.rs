//! A bound for tests.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Far longer than anything should take: what is tested is that it ends.
const BOUND: Duration = Duration::from_secs(60);

/// Runs a test that must not hang.
///
/// # Panics
/// When the test does, or when it hangs.
#[track_caller]
pub fn bounded(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _nobody_waits = done.send(());
    });
    match ended.recv_timeout(BOUND) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the test hangs"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}
