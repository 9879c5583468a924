//! An export whose requests are logged.

use core::fmt;
use core::time::Duration;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nbd_proto::Command;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::layer::{Layer, Layered};
use super::{ClientInfo, Result};

/// Another export, of either kind, each of whose requests is logged once it is over: a line with the connection, the
/// command, its offset and length, its result, and how long it took.
///
/// The lines are events of `tracing` at the level `INFO`, with the target `nbd_engine::requests`, or go to a file.
///
/// ```
/// use nbd_engine::export::{Logged, Memory, RequestLog};
///
/// let disk = Logged::new(Memory::new(1 << 20)?, RequestLog::new());
/// # let _ = disk;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Logged<E> = Layered<E, RequestLog>;

impl<E> Logged<E> {
    /// Logs the requests to `inner`.
    pub const fn new(inner: E, log: RequestLog) -> Self {
        Self::with(inner, log)
    }
}

/// The layer of [`Logged`]: where the lines go.
#[derive(Debug, Default)]
pub struct RequestLog {
    file: Option<LogFile>,
}

impl RequestLog {
    /// Lines go to the log of the program, by `tracing`.
    #[must_use]
    pub const fn new() -> Self {
        Self { file: None }
    }

    /// Lines are appended to a file, which is created if it is not there. A thread of its own writes them, so that a
    /// full or slow disk holds up no request: while 4096 lines wait, further ones are left out, and the next one says
    /// how many.
    ///
    /// Each line has the seconds since 1970, the number of the connection, the command with its flags, and `key=value`
    /// pairs:
    ///
    /// ```text
    /// 1764187200.000123 connection=7 write offset=4096 length=512 fua result=ok microseconds=81
    /// ```
    ///
    /// The thread begins with the first line. Dropping the log waits for the lines that it was given, for 5 seconds at most.
    ///
    /// # Errors
    /// When the file can't be opened for writing. A pipe that nobody reads is not waited for.
    pub fn to_file(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = fs::OpenOptions::new();
        let file = options.append(true).create(true).custom_flags(flags).open(path)?;
        // The thread that writes may wait.
        fcntl_setfl(&file, fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
        Ok(Self { file: Some(LogFile::new(Box::new(file))) })
    }
}

impl Layer for RequestLog {
    const ADMITS: bool = true;

    fn finished(
        &self,
        client: &ClientInfo,
        command: &Command,
        result: &Result<()>,
        took: Duration,
    ) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(file) = &self.file {
            let result = Outcome(result);
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            file.line(format!(
                "{}.{:06} connection={} {} result={result} microseconds={microseconds}\n",
                time.as_secs(),
                time.subsec_micros(),
                client.connection,
                Shown(command),
            ));
            return;
        }
        tracing::info!(
            target: "nbd_engine::requests",
            connection = client.connection,
            result = %Outcome(result),
            microseconds,
            "{}",
            Shown(command)
        );
    }
}

/// A command in a line.
struct Shown<'a>(&'a Command);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, flags): (_, &[(bool, &str)]) = match *self.0 {
            Command::Read { dont_fragment, .. } => ("read", &[(dont_fragment, "df")]),
            Command::Write { fua, .. } => ("write", &[(fua, "fua")]),
            Command::Flush => return f.write_str("flush"),
            Command::Trim { fua, .. } => ("trim", &[(fua, "fua")]),
            Command::Cache { .. } => ("cache", &[]),
            Command::WriteZeroes { fua, no_hole, fast, .. } => {
                ("write-zeroes", &[(fua, "fua"), (no_hole, "no-hole"), (fast, "fast")])
            }
            Command::BlockStatus { one, .. } => ("block-status", &[(one, "one")]),
            Command::Resize { size, .. } => return write!(f, "resize size={size}"),
            _ => ("other", &[]),
        };
        write!(f, "{name} offset={} length={}", self.0.offset(), self.0.length())?;
        let flags = flags.iter().filter(|(set, _)| *set);
        flags.into_iter().try_for_each(|(_, flag)| write!(f, " {flag}"))
    }
}

/// The result in a line.
struct Outcome<'a>(&'a Result<()>);

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(()) => f.write_str("ok"),
            Err(error) => fmt::Display::fmt(&error.code(), f),
        }
    }
}

/// How long the end of a log waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Lines that wait for the thread that writes them.
const QUEUE: usize = 4096;

/// The lines that are to be written, and the file.
type Waiting = (Receiver<String>, Box<dyn Write + Send>);

/// A file, by way of a thread that ends with it.
struct LogFile {
    /// `None` once it is being dropped.
    lines: Option<SyncSender<String>>,
    left_out: AtomicU64,
    is_running: AtomicBool,
    /// What the thread is to have, until it begins.
    waiting: Mutex<Option<Waiting>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl fmt::Debug for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFile").field("left_out", &self.left_out).finish_non_exhaustive()
    }
}

impl LogFile {
    fn new(file: Box<dyn Write + Send>) -> Self {
        let (lines, queue) = sync_channel(QUEUE);
        Self {
            lines: Some(lines),
            left_out: AtomicU64::new(0),
            is_running: AtomicBool::new(false),
            waiting: Mutex::new(Some((queue, file))),
            thread: Mutex::default(),
        }
    }

    /// Begins the thread with the first line rather than with the log: a server that confines itself does so before it
    /// has threads.
    fn run(&self) {
        if self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((queue, file)) = waiting else { return };
        let thread = thread::Builder::new().name("nbd-request-log".into());
        match thread.spawn(move || write_lines(&queue, file)) {
            Ok(thread) => {
                *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
            }
            Err(error) => tracing::error!(%error, "cannot write the request log: no thread for it"),
        }
    }

    fn line(&self, line: String) {
        self.run();
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        let line = match left_out {
            0 => line,
            _ => format!("{left_out} lines were left out\n{line}"),
        };
        let sent = self.lines.as_ref().is_some_and(|lines| lines.try_send(line).is_ok());
        if !sent {
            self.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
        }
    }
}

/// What was logged before is written before the end.
impl Drop for LogFile {
    fn drop(&mut self) {
        self.lines = None;
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        let begun = Instant::now();
        while !thread.is_finished() {
            if begun.elapsed() > LAST_LINES {
                tracing::error!("the last lines of a request log are lost: its file takes none");
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Writes lines, as many at a time as there are.
fn write_lines(queue: &Receiver<String>, mut file: impl Write) {
    let mut text = String::new();
    while let Ok(line) = queue.recv() {
        text.clear();
        text.push_str(&line);
        queue.try_iter().take(QUEUE).for_each(|line| text.push_str(&line));
        if let Err(error) = file.write_all(text.as_bytes()) {
            tracing::error!(%error, "cannot write the request log; it ends here");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::export::{ExportError, PeerAddr};

    #[test]
    fn a_line_has_the_command_with_its_flags_and_the_error() {
        let shown = |command| Shown(&command).to_string();
        assert_eq!(shown(Command::write(4096, 512).with_fua()), "write offset=4096 length=512 fua");
        assert_eq!(
            shown(Command::write_zeroes(0, 8).with_no_hole().with_fast()),
            "write-zeroes offset=0 length=8 no-hole fast"
        );
        assert_eq!(shown(Command::flush()), "flush");
        assert_eq!(shown(Command::resize(7)), "resize size=7");
        assert_eq!(Outcome(&Err(ExportError::io("x"))).to_string(), "NBD_EIO");
    }

    #[test]
    fn lines_are_in_the_file_in_order_once_the_log_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.log");
        for _ in 0..2 {
            let log = RequestLog::to_file(&path).unwrap();
            let client = ClientInfo::new(3, PeerAddr::Unix(None));
            for number in 0..100 {
                log.finished(&client, &Command::read(number, 1), &Ok(()), Duration::from_micros(5));
            }
        }
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 200);
        for (number, line) in lines.iter().enumerate() {
            let end = format!(
                " connection=3 read offset={} length=1 result=ok microseconds=5",
                number % 100
            );
            assert!(line.ends_with(&end), "{line}");
        }
        RequestLog::to_file(folder.path().join("none/requests.log")).unwrap_err();
    }

    /// Not even at the end.
    #[test]
    fn a_pipe_that_is_not_read_holds_up_the_end_for_a_while_only() {
        let (read, write) = io::pipe().unwrap();
        let log = RequestLog { file: Some(LogFile::new(Box::new(write))) };
        let client = ClientInfo::new(3, PeerAddr::Unix(None));
        // More than a pipe holds.
        for number in 0..3000 {
            log.finished(&client, &Command::read(number, 1), &Ok(()), Duration::from_micros(5));
        }
        drop(log);
        drop(read);
    }

    #[test]
    fn a_file_that_takes_no_lines_holds_nobody_up_and_they_are_counted() {
        /// Is written only when the test lets go.
        struct Slow(Arc<Mutex<()>>, Arc<Mutex<Vec<u8>>>);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                drop(self.0.lock().unwrap());
                self.1.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (gate, written) = (Arc::default(), Arc::<Mutex<Vec<u8>>>::default());
        let held = Mutex::lock(&gate).unwrap();
        let file = LogFile::new(Box::new(Slow(Arc::clone(&gate), Arc::clone(&written))));
        // Let go of before the file, whose end waits for it.
        let held = held;
        let count = 4 * QUEUE as u64;
        (0..count).for_each(|_| file.line("x\n".into()));
        drop(held);
        // Some of those that come now are written, the number of those that were left out before them.
        let mut further = 0;
        while file.left_out.load(Ordering::Relaxed) > 0 {
            file.line("x\n".into());
            further += 1;
            thread::yield_now();
        }
        drop(file);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let (mut lines, mut left_out) = (0, 0);
        for line in text.lines() {
            match line.strip_suffix(" lines were left out") {
                Some(number) => left_out += number.parse::<u64>().unwrap(),
                None => lines += 1,
            }
        }
        assert_eq!(lines + left_out, count + further);
        // No more than the queue, and what the thread had taken from it, was kept meanwhile.
        assert!(left_out >= QUEUE as u64, "{left_out}");
    }
}
