//! The two servers of a runtime.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use nbd_testkit::process::Background;
use nbd_testkit::{Endpoint, Random};
use tempfile::TempDir;

use crate::process::{Runtime, serve};

/// Bytes of each file that is served.
pub(super) const FILE: u64 = 16 << 20;

/// The disk in memory that visitors use.
pub(super) const SCRATCH: &str = "scratch";

/// The file that a client of another's making verifies by way of a proxy that reconnects.
pub(super) const PROXIED: &str = "proxied";

/// How long a server may take to end.
const END: Duration = Duration::from_secs(30);

/// What all threads of a run share.
pub(super) struct Run {
    over: AtomicBool,
    end: Instant,
    faults: Mutex<Vec<String>>,
}

impl Run {
    pub(super) fn new(length: Duration) -> Self {
        let (over, faults) = (AtomicBool::new(false), Mutex::default());
        Self { over, end: Instant::now() + length, faults }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || Instant::now() >= self.end
    }

    /// Ends it early.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Something is wrong. The run goes on: the first fault may not be the only one.
    pub(super) fn fault(&self, text: String) {
        eprintln!("fault: {text}");
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    pub(super) fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The load is meant to be light: between two steps there are pauses. Ends with the run.
    pub(super) fn pause(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(200)));
        }
    }
}

/// A runtime's servers.
pub(super) struct Site {
    pub(super) runtime: Runtime,
    pub(super) program: PathBuf,
    pub(super) folder: TempDir,
    pub(super) steady: Mutex<Background>,
    pub(super) endpoint: Endpoint,
    restarted: Mutex<Background>,
    pub(super) restarts: AtomicU64,
}

impl Site {
    pub(super) fn new(program: &Path, runtime: Runtime) -> std::io::Result<Self> {
        let folder = TempDir::new()?;
        for name in ["steady", "restarted", "proxied"] {
            File::create(folder.path().join(name))?.set_len(FILE)?;
        }
        let file = folder.path().join("steady").display().to_string();
        let scratch = format!("{SCRATCH}=memory:4M");
        let (steady, endpoint) =
            serve(program, runtime, &folder.path().join("steady.sock"), &[&file, &scratch]);
        let restarted = Mutex::new(start_restarted(program, runtime, folder.path()));
        let (steady, restarts) = (Mutex::new(steady), AtomicU64::new(0));
        let program = program.to_owned();
        Ok(Self { runtime, program, folder, steady, endpoint, restarted, restarts })
    }

    /// The socket of the server that is restarted.
    pub(super) fn restarted_socket(&self) -> PathBuf {
        self.folder.path().join("restarted.sock")
    }

    /// Ends one server after the other, and starts its successor.
    pub(super) fn keep_restarting(&self, run: &Run, mut random: Random) {
        loop {
            run.pause(Duration::from_millis(5_000 + random.below(25_000)));
            if run.is_over() {
                return;
            }
            let mut running = self.restarted.lock().unwrap_or_else(PoisonError::into_inner);
            let gently = random.one_in(2);
            if gently {
                running.terminate();
            } else {
                running.kill();
            }
            self.expect_end(run, &mut running, gently);
            *running = start_restarted(&self.program, self.runtime, self.folder.path());
            self.restarts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends both; what they say meanwhile must be good.
    pub(super) fn close(&self, run: &Run) {
        for server in [&self.steady, &self.restarted] {
            let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
            server.terminate();
            self.expect_end(run, &mut server, true);
        }
    }

    fn expect_end(&self, run: &Run, server: &mut Background, gently: bool) {
        let name = self.runtime.name();
        match server.wait_exit(END) {
            None => run.fault(format!("{name}: a server did not end within {END:?}")),
            // 3: requests that were in flight were cut off.
            Some(status) if gently && !matches!(status.code(), Some(0 | 3)) => {
                run.fault(format!("{name}: a server ended with {status}: {}", server.stderr()));
            }
            Some(_) => {}
        }
        if server.stderr().contains("panicked") {
            run.fault(format!("{name}: a server panicked: {}", server.stderr()));
        }
    }
}

fn start_restarted(program: &Path, runtime: Runtime, folder: &Path) -> Background {
    let file = folder.join("restarted").display().to_string();
    let proxied = format!("{PROXIED}={}", folder.join("proxied").display());
    serve(program, runtime, &folder.join("restarted.sock"), &[&file, &proxied]).0
}
