//! `nbd serve` as those see it who run it: what it prints, its exit codes, and how it ends.

mod access;
mod activation;
mod addresses;
mod captive;
mod check;
mod config;
mod directory;
mod end;
mod exports;
mod limits;
mod log;
mod overlay;
mod replace;
mod replace_page;
mod stdio;
mod supervisor;
mod usage;

use std::process::Command;
use std::time::Duration;

use nbd_testkit::Endpoint;
use nbd_testkit::process::{Background, Finished, run};

/// The longest that anything may take that should happen by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// All that `--runtime` knows.
const RUNTIMES: [&str; 3] = ["tokio", "async-std", "blocking"];

/// `nbd serve` with arguments, not run yet.
fn serve<T: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = T>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
    command.arg("serve").args(arguments);
    command
}

/// A server that has said where it listens.
struct Serving {
    process: Background,
    uri: String,
}

impl Serving {
    #[track_caller]
    fn start<T: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = T>) -> Self {
        Self::spawn(&mut serve(arguments))
    }

    #[track_caller]
    fn spawn(command: &mut Command) -> Self {
        let process = Background::spawn(command).expect("the binary is there");
        let Some(uri) = process.next_line(LIMIT) else {
            panic!("no URI was printed, but this: {}", process.stderr());
        };
        Self { process, uri }
    }

    #[track_caller]
    fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&self.uri).unwrap_or_else(|| panic!("{:?} is no URI", self.uri))
    }

    /// Waits for its end by itself; gives the exit code, and what it wrote to standard error.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.process.wait_exit(LIMIT).expect("the server ends");
        (status.code(), self.process.stderr())
    }

    /// Asks it to end and expects that it ends well, having printed nothing more.
    #[track_caller]
    fn stop(self) {
        assert_eq!(self.stopped(), "");
    }

    /// The same of a server that others can reach in the clear: it has warned of that, once, and of nothing else.
    #[track_caller]
    fn stop_after_warning(self) {
        let said = self.stopped();
        let warning = "in the clear; encrypt by --tls require, or listen on 127.0.0.1";
        assert!(
            said.starts_with("nbd: warning: whoever reaches ") && said.contains(warning),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }

    /// Asks it to end and expects that it ends well; gives what it wrote to standard error.
    #[track_caller]
    fn stopped(self) -> String {
        self.process.terminate();
        let more = self.process.next_line(LIMIT);
        assert_eq!(more, None, "more was printed than the URI");
        let (code, said) = self.end();
        assert_eq!(code, Some(0), "{said}");
        said
    }
}

/// Runs a server that can't start, and checks its exit code and that its only message says these things.
#[track_caller]
fn refuses(command: &mut Command, code: i32, says: &[&str]) -> Finished {
    let finished = run(command, LIMIT);
    assert_eq!(finished.status.code(), Some(code), "{}", finished.stderr);
    assert_eq!(finished.stdout, "", "nothing is served");
    for text in says {
        assert!(finished.stderr.contains(text), "{text:?} is not in: {}", finished.stderr);
    }
    finished
}
