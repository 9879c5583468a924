//! Child processes that cannot outlive a test or hang it.

use core::fmt;
use core::time::Duration;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A running program; killed when dropped, and its error output shown if the test is failing.
pub struct Background {
    child: Child,
    what: String,
    lines: Mutex<Receiver<String>>,
    stderr: Arc<Mutex<String>>,
    /// Hangs up when standard error has ended.
    stderr_ended: Mutex<Receiver<()>>,
}

impl Background {
    /// Starts a program with nothing to read, its output collected.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        Self::spawn_with_stderr(command, Stdio::piped())
    }

    /// The same with another standard error, which is collected only if it is a new pipe.
    pub fn spawn_with_stderr(command: &mut Command, stderr: Stdio) -> io::Result<Self> {
        let what = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take();

        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody may be left to read it, but the program must not block on a full pipe.
                let _ = sender.send(line);
            }
        });
        let collected = Arc::new(Mutex::new(String::new()));
        let collector = Arc::clone(&collected);
        let (ending, stderr_ended) = mpsc::channel();
        thread::spawn(move || {
            let _ending: Sender<()> = ending;
            let Some(mut stderr) = stderr else { return };
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..count]);
                collector.lock().expect("no holder panics").push_str(&text);
            }
        });
        let (lines, stderr_ended) = (Mutex::new(lines), Mutex::new(stderr_ended));
        Ok(Self { child, what, lines, stderr: collected, stderr_ended })
    }

    /// The next line of its standard output; none when that ended or `timeout` has passed.
    pub fn next_line(&self, timeout: Duration) -> Option<String> {
        self.lines.lock().expect("no holder panics").recv_timeout(timeout).ok()
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("no holder panics").clone()
    }

    /// Asks it to end (SIGTERM).
    #[track_caller]
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to end as a terminal does (SIGINT).
    #[track_caller]
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Says that its terminal has closed (SIGHUP).
    #[track_caller]
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Asks it to end as a terminal does for Ctrl-\ (SIGQUIT).
    #[track_caller]
    pub fn quit(&self) {
        self.signal(Signal::QUIT);
    }

    /// Ends it without asking (SIGKILL).
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is ours and not reaped yet");
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has exited and all that it wrote is collected; none if it has not after `timeout`.
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let status = wait_exit(&mut self.child, timeout)?;
        // Children of its own may live on and hold the pipe open: no more than a moment is theirs.
        let ended = self.stderr_ended.lock().expect("no holder panics");
        let _ = ended.recv_timeout(Duration::from_secs(5));
        Some(status)
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory in bytes.
    #[track_caller]
    pub fn resident(&self) -> u64 {
        self.status_kib("VmRSS:") * 1024
    }

    /// Greatest resident memory so far, or since [`Background::forget_peak`], in bytes.
    #[track_caller]
    pub fn peak_resident(&self) -> u64 {
        self.status_kib("VmHWM:") * 1024
    }

    /// Starts the peak anew from what is resident now.
    #[track_caller]
    pub fn forget_peak(&self) {
        std::fs::write(self.proc("clear_refs"), "5").expect("the kernel resets peaks");
    }

    /// Number of threads.
    #[track_caller]
    pub fn threads(&self) -> u64 {
        self.status_kib("Threads:")
    }

    /// Number of open descriptors.
    #[track_caller]
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).expect("the process is running").count()
    }

    fn proc(&self, entry: &str) -> String {
        format!("/proc/{}/{entry}", self.child.id())
    }

    #[track_caller]
    fn status_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("the process is running");
        let line = status.lines().find(|line| line.starts_with(field));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.and_then(|number| number.parse().ok()).expect("the kernel reports it")
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.what, self.child.id())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let status = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {} ({status:?}) wrote:\n{}---", self.what, self.stderr());
        }
    }
}

/// What a program that ran to its end has left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    what: String,
}

impl Finished {
    /// The program must have succeeded; gives its standard output.
    #[track_caller]
    pub fn success(self) -> String {
        let Self { status, stdout, stderr, what } = self;
        assert!(status.success(), "{what}: {status}\n--- stdout\n{stdout}--- stderr\n{stderr}");
        stdout
    }

    /// The program must have failed by itself, not by a signal; gives its standard error.
    #[track_caller]
    pub fn failure(self) -> String {
        let Self { status, stdout, stderr, what } = self;
        let failed = status.code().is_some_and(|code| code != 0);
        assert!(failed, "{what}: {status}\n--- stdout\n{stdout}--- stderr\n{stderr}");
        stderr
    }
}

/// Runs a program to its end, which must come within `timeout`.
#[track_caller]
pub fn run(command: &mut Command, timeout: Duration) -> Finished {
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let status = wait_exit(&mut child, timeout);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let [stdout, stderr] = [stdout, stderr].map(|pipe| pipe.join().expect("no reader panics"));
    match status {
        Some(status) => Finished { status, stdout, stderr, what },
        None => panic!("{what}: no end after {timeout:?}\n{stdout}\n{stderr}"),
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits on the process itself rather than asking for it again and again.
fn wait_exit(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("a child of ours");
    let timeout = Timespec::try_from(timeout).expect("a short time");
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout));
    child.try_wait().expect("a child of ours")
}

/// Waits until a condition holds, which must be so within `timeout`: for states that nothing announces.
#[track_caller]
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < timeout, "not within {timeout:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn output_and_status_are_collected() {
        let finished = run(&mut shell("echo out; echo err >&2; exit 3"), SOON);
        assert_eq!((&*finished.stdout, &*finished.stderr), ("out\n", "err\n"));
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.failure(), "err\n");
    }

    #[test]
    #[should_panic(expected = "no end after")]
    fn a_program_that_does_not_end_is_killed() {
        run(Command::new("sleep").arg("1000"), Duration::from_millis(20));
    }

    #[test]
    #[should_panic(expected = "signal: 9")]
    fn death_by_a_signal_is_not_a_failure_that_was_asked_for() {
        run(&mut shell("kill -9 $$"), SOON).failure();
    }

    #[test]
    fn what_a_background_process_wrote_last_is_collected() {
        for _ in 0..100 {
            let mut process = Background::spawn(&mut shell("echo last >&2")).unwrap();
            process.wait_exit(SOON).unwrap();
            assert_eq!(process.stderr(), "last\n");
        }
    }

    #[test]
    fn a_background_process_is_watched_and_signalled() {
        let talking = Background::spawn(&mut shell("echo ready; exec sleep 1000")).unwrap();
        assert_eq!(talking.next_line(SOON).as_deref(), Some("ready"));
        // Its memory is measured that does not become another program meanwhile.
        let mut process = Background::spawn(Command::new("sleep").arg("1000")).unwrap();
        assert!(process.is_running());
        let resident = process.resident();
        assert!(resident > 0 && process.peak_resident() >= resident);
        assert!(process.open_files() >= 3 && process.threads() == 1);
        assert_eq!(process.wait_exit(Duration::from_millis(1)), None);
        process.terminate();
        assert!(process.wait_exit(SOON).is_some_and(|status| status.code().is_none()));
    }
}
