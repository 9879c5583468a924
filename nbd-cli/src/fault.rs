//! Panics of a server. One in a request of an export fails that request. Any other one leaves a server that looks alive and
//! is not, without its listener or its signals for example: it ends the process.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};

use nbd_engine::server::is_request_guarded;

use crate::journal::Priority;
use crate::{exit, log};

/// From now on every panic is logged, and ends the process unless it fails a request only.
pub(crate) fn end_on_panic() {
    panic::set_hook(Box::new(|info| {
        log::lines(Priority::Error, &describe(info));
        if !is_request_guarded() {
            log::flush();
            std::process::exit(i32::from(exit::FAULT));
        }
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = info.location().map(|location| format!(" at {location}")).unwrap_or_default();
    let what = text(info.payload());
    let end = match is_request_guarded() {
        true => "the request failed",
        false => "the server ends",
    };
    let mut line = format!(
        "nbd: internal fault, please report it: {what} (thread {thread}{location}); {end}\n"
    );
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        line.push_str(&format!("{backtrace}\n"));
    }
    line
}

fn text(payload: &(dyn Any + Send)) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or(payload.downcast_ref::<&str>().copied()).unwrap_or("a panic")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;
    use std::time::Duration;

    use nbd_blocking::{Client, Server};
    use nbd_engine::export::{Export, ExportMap, Result as ExportResult};
    use nbd_testkit::process::{Finished, run};

    use super::*;

    /// Reads of it panic.
    struct Bad;

    impl Export for Bad {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn read(&self, _: &mut [u8], _: u64) -> ExportResult<()> {
            panic!("a bad export");
        }
    }

    /// A test of this program in a process of its own, since a hook is for all threads, and the process may end.
    fn in_own_process(test: &str) -> Finished {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = format!("fault::tests::{test}");
        command.args(["--exact", &name, "--ignored", "--nocapture"]);
        run(&mut command, Duration::from_secs(60))
    }

    #[test]
    #[ignore = "ends its process; run by a_panic_of_a_thread_ends_the_process"]
    fn panicking() {
        log::start(0).unwrap_or_else(|_| panic!("the log starts"));
        end_on_panic();
        let _panics =
            std::thread::Builder::new().name("some-task".into()).spawn(|| panic!("oh no"));
        // The process ends meanwhile.
        std::thread::park();
    }

    #[test]
    fn a_panic_of_a_thread_ends_the_process() {
        let finished = in_own_process("panicking");
        assert_eq!(finished.status.code(), Some(i32::from(exit::FAULT)), "{}", finished.stderr);
        assert!(finished.stderr.contains("oh no (thread some-task at"), "{}", finished.stderr);
        assert!(finished.stderr.contains("the server ends"), "{}", finished.stderr);
    }

    #[test]
    #[ignore = "sets a hook for its process; run by a_panic_of_an_export_fails_the_request"]
    fn serving() {
        log::start(0).unwrap_or_else(|_| panic!("the log starts"));
        end_on_panic();
        let server = Server::new(ExportMap::new().with("", Bad).unwrap());
        let listening = server.listen_tcp("127.0.0.1:0").unwrap();
        let uri = format!("{:#}", listening.local_addr().uri("").unwrap());
        let client = Arc::new(Client::connect(&uri).unwrap());
        for _ in 0..2 {
            client.read_exact_at(&mut [0; 512], 0).unwrap_err();
        }
        log::flush();
    }

    #[test]
    fn a_panic_of_an_export_fails_the_request() {
        let finished = in_own_process("serving");
        assert!(finished.status.success(), "{}", finished.stderr);
        assert_eq!(finished.stderr.matches("a bad export").count(), 2, "{}", finished.stderr);
        assert!(finished.stderr.contains("the request failed"), "{}", finished.stderr);
    }
}
