//! A soak of a few seconds: that the long one does what it says.

use core::sync::atomic::AtomicBool;
use core::time::Duration;

use nbd_endurance::process::Runtime;
use nbd_endurance::soak::{Options, run};
use nbd_testkit::peers::require;
use nbd_testkit::server::nbd_binary;

#[test]
fn a_short_soak_has_no_faults() {
    if require("fio").is_none() {
        return;
    }
    let options = Options {
        program: nbd_binary(),
        runtimes: vec![Runtime::Tokio],
        length: Duration::from_secs(2),
        seed: 0,
    };
    // Two seconds say nothing of what grows.
    let report = run(&options, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.faults, Vec::<String>::new());
}
