//! Child processes that cannot outlive a test or hang it.

use core::fmt;
use core::time::Duration;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, Once};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

/// A running program; killed when dropped, and its error output shown if the test is failing.
pub struct Background {
    child: Child,
    what: String,
    lines: Mutex<Receiver<String>>,
    stderr: Arc<Mutex<Log>>,
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
        ignore_no_signals();
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
        let stderr = Arc::new(Mutex::new(Log::new(stderr)?));
        let collector = Arc::clone(&stderr);
        let (ending, stderr_ended) = mpsc::channel();
        thread::spawn(move || {
            let _ending: Sender<()> = ending;
            Log::collect(&collector);
        });
        let (lines, stderr_ended) = (Mutex::new(lines), Mutex::new(stderr_ended));
        Ok(Self { child, what, lines, stderr, stderr_ended })
    }

    /// The next line of its standard output; none when that ended or `timeout` has passed.
    pub fn next_line(&self, timeout: Duration) -> Option<String> {
        self.lines.lock().expect("no holder panics").recv_timeout(timeout).ok()
    }

    /// What it wrote to standard error so far: all of it, however busy the machine is.
    pub fn stderr(&self) -> String {
        let mut log = self.stderr.lock().expect("no holder panics");
        log.take();
        String::from_utf8_lossy(&log.written).into_owned()
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

    /// Whether it is still running. One that is not stays there to be signalled until it is waited for.
    pub fn is_running(&self) -> bool {
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid()), how), Ok(None))
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

    /// CPU time of the process so far, all of its threads and the kernel's part, to some 10 ms.
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(self.proc("stat")).expect("the process is running");
        // The name, which stands in parentheses, may have any character.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let ticks = |index: usize| fields[index].parse::<u64>().expect("a number of ticks");
        // The 14th and the 15th field, of which the first two are gone; a hundred ticks are a second (`USER_HZ`).
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
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

/// Standard error of a running program. Whoever asks for it reads what the pipe holds first; a thread does so when
/// nobody asks, so that the program never waits for a full pipe.
struct Log {
    pipe: Option<ChildStderr>,
    written: Vec<u8>,
}

impl Log {
    fn new(pipe: Option<ChildStderr>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            // Of this end alone: the program's end stays as it is.
            fcntl_setfl(pipe, OFlags::RDONLY | OFlags::NONBLOCK)?;
        }
        Ok(Self { pipe, written: Vec::new() })
    }

    /// Reads what is there now.
    fn take(&mut self) {
        let mut piece = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut piece) {
                Ok(count @ 1..) => self.written.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => self.pipe = None,
            }
        }
    }

    /// Reads what comes until it has ended.
    fn collect(log: &Mutex<Self>) {
        let lock = || log.lock().expect("no holder panics");
        let Some(pipe) = lock().pipe.as_ref().map(|pipe| pipe.as_fd().try_clone_to_owned()) else {
            return;
        };
        let pipe = pipe.expect("a descriptor is left");
        while lock().pipe.is_some() {
            let _ = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], None);
            lock().take();
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
    ignore_no_signals();
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

/// Has children begin with the default for the signals that end programs. Where tests are run by `nohup`, or in the
/// background of a shell, some are ignored, which children would inherit. A handler is what they don't.
fn ignore_no_signals() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            if ignored & (1 << (signal - 1)) != 0 {
                flag::register(signal, Arc::default()).expect("it can be handled");
            }
        }
    });
}

/// The signals that a process ignores, a bit for each, by what `/proc/PID/status` has.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
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
    fn children_ignore_no_signal_that_ends_programs() {
        let status = run(Command::new("cat").arg("/proc/self/status"), SOON).success();
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            assert_eq!(ignored(&status) & (1 << (signal - 1)), 0, "signal {signal}");
        }
    }

    #[test]
    fn nor_do_they_where_the_test_does() {
        let this = std::env::current_exe().unwrap();
        let name = "process::tests::children_ignore_no_signal_that_ends_programs";
        let mut shell = shell("trap '' HUP QUIT; exec \"$0\" --exact \"$1\"");
        let told = run(shell.arg(this).arg(name), SOON * 4).success();
        assert!(told.contains("1 passed"), "{told}");
    }

    #[test]
    fn cpu_time_is_that_of_the_process() {
        let busy = Background::spawn(&mut shell("echo ready; while :; do :; done")).unwrap();
        let idle = Background::spawn(Command::new("sleep").arg("1000")).unwrap();
        wait_until("it has used some CPU", SOON * 4, || busy.cpu_time() >= SOON / 50);
        assert!(idle.cpu_time() < SOON / 50);
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
    fn what_a_background_process_wrote_before_it_spoke_is_there_when_it_has_spoken() {
        let script = "for n in $(seq 300); do echo é$n >&2; echo $n; read answer <&3; done";
        let folder = tempfile::tempdir().unwrap();
        let answers = folder.path().join("answers");
        run(Command::new("mkfifo").arg(&answers), SOON).success();
        let script = format!("exec 3<>'{}'; {script}", answers.display());
        let process = Background::spawn(&mut shell(&script)).unwrap();
        for n in 1..=300 {
            assert_eq!(process.next_line(SOON).unwrap(), n.to_string());
            assert!(process.stderr().ends_with(&format!("é{n}\n")), "{n}: {}", process.stderr());
            std::fs::write(&answers, "\n").unwrap();
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
