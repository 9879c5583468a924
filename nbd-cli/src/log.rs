//! The log: on standard error, quiet unless something is wrong. Whoever logs never waits for its reader, and never fails:
//! lines go into a queue, from which a thread writes them. What does not fit or can't be written is dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::exit::Failure;
use crate::journal::{self, Prioritized, Priority};
use crate::{output, stderr};

/// Bytes of lines that wait for a slow reader.
const CAPACITY: usize = 256 << 10;

/// How long [`flush`] waits for each line, and for all of them.
const PATIENCE: Duration = Duration::from_secs(1);
const ALL_PATIENCE: Duration = Duration::from_secs(10);

static QUEUE: Queue = Queue::new();

/// Starts the log: warnings and errors; with `-v` how connections end, with `-vv` everything.
pub(crate) fn start(verbosity: u8) -> Result<(), Failure> {
    collect(verbosity);
    write()
}

/// The verbosity that NBD_LOG asks for, as many `-v` as it takes; `None` if it is not set, or empty.
pub(crate) fn of_environment() -> Result<Option<u8>, Failure> {
    let Some(word) = std::env::var_os("NBD_LOG").filter(|word| !word.is_empty()) else {
        return Ok(None);
    };
    let verbosity = ["warn", "info", "debug", "trace"].iter().position(|level| word == *level);
    match verbosity.and_then(|verbosity| u8::try_from(verbosity).ok()) {
        None => Err(Failure::usage(format!(
            "NBD_LOG is {}, which is no level: set it to warn, info, debug or trace",
            output::quoted(&word)
        ))),
        verbosity => Ok(verbosity),
    }
}

/// Has lines collected, for [`write()`] to write them. A server that is to be confined starts no thread before it is.
pub(crate) fn collect(verbosity: u8) {
    let level = match verbosity {
        0 => Level::WARN,
        1 => Level::INFO,
        2 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Line)
        .with_target(false)
        .with_ansi(false)
        // It would complain on standard error, and panic when that fails.
        .log_internal_errors(false);
    match journal::is_stderr() {
        true => subscriber.without_time().map_event_format(Prioritized).init(),
        false => subscriber.init(),
    }
}

/// Starts the thread that writes what was collected, and what is logged from now on.
pub(crate) fn write() -> Result<(), Failure> {
    let write = || QUEUE.write_all_to(|bytes| stderr::write(bytes, None));
    let thread = std::thread::Builder::new().name("nbd-log".into()).spawn(write);
    thread.map_err(|error| Failure::failed(format!("cannot start the log's thread: {error}")))?;
    QUEUE.lock().started = true;
    Ok(())
}

/// Logs whole lines, which have no level and no time of their own. Never waits.
pub(crate) fn lines(priority: Priority, text: &str) {
    QUEUE.push(journal::lines(priority, text).as_bytes());
}

/// Waits until all has been written that was logged so far, but not for a reader that takes nothing.
pub(crate) fn flush() {
    QUEUE.flush(PATIENCE, ALL_PATIENCE, |bytes| stderr::write(bytes, None));
}

/// Takes the lines of `tracing-subscriber`, each by one call.
struct Line;

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        QUEUE.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Queue {
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// An entry has been written, or was dropped.
    progressed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Whether there is a thread that writes.
    started: bool,
    entries: VecDeque<Entry>,
    /// In all entries.
    bytes: usize,
    /// Lines that did not fit behind the last entry.
    lost: u64,
    /// Lines before the first entry that could not be written.
    failed: u64,
    /// An entry is being written.
    writing: bool,
    /// Entries that were written, or dropped.
    written: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// Lines that were lost before this one.
    lost: u64,
    line: Vec<u8>,
}

impl Queue {
    const fn new() -> Self {
        let state = State {
            started: false,
            entries: VecDeque::new(),
            bytes: 0,
            lost: 0,
            failed: 0,
            writing: false,
            written: 0,
        };
        Self { state: Mutex::new(state), filled: Condvar::new(), progressed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.bytes + line.len() > CAPACITY {
            state.lost += 1;
            return;
        }
        state.bytes += line.len();
        let lost = core::mem::take(&mut state.lost);
        state.entries.push_back(Entry { lost, line: line.into() });
        drop(state);
        self.filled.notify_one();
    }

    /// Writes what is pushed, without end.
    fn write_all_to(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        loop {
            self.write_one_to(&mut write);
        }
    }

    /// Writes the next line, after how many are missing before it; waits until there is something to write.
    fn write_one_to(&self, write: &mut impl FnMut(&[u8]) -> io::Result<()>) {
        let entry = self.next();
        let lost = match entry.lost {
            0 => String::new(),
            1 => "nbd: a line of the log was lost here\n".to_owned(),
            lost => format!("nbd: {lost} lines of the log were lost here\n"),
        };
        let mut text = journal::lines(Priority::Warning, &lost).into_bytes();
        text.extend_from_slice(&entry.line);
        let written = write(&text);
        let mut state = self.lock();
        state.writing = false;
        if written.is_err() {
            state.failed = entry.lost + u64::from(!entry.line.is_empty());
        }
        state.written += 1;
        self.progressed.notify_all();
    }

    fn next(&self) -> Entry {
        let mut state = self.lock();
        while state.left() == 0 {
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // None if there is nothing but a number of lost lines to write.
        let mut entry = state
            .entries
            .pop_front()
            .unwrap_or_else(|| Entry { lost: core::mem::take(&mut state.lost), line: Vec::new() });
        entry.lost += core::mem::take(&mut state.failed);
        state.bytes -= entry.line.len();
        state.writing = true;
        entry
    }

    /// Without a thread, `write` is called for what there is.
    fn flush(&self, each: Duration, all: Duration, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        let state = self.lock();
        if !state.started {
            let lines = state.entries.len();
            drop(state);
            (0..lines).for_each(|_| self.write_one_to(&mut write));
            return;
        }
        let end = Instant::now() + all;
        let goal = state.written + state.left();
        let mut state = state;
        while state.written < goal && state.left() > 0 {
            let before = state.written;
            let limit = each.min(end.saturating_duration_since(Instant::now()));
            let waiting = |state: &mut State| state.written == before && state.left() > 0;
            let waited = self.progressed.wait_timeout_while(state, limit, waiting);
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return;
            }
            state = after;
        }
    }
}

impl State {
    /// Entries that are being written, or are to be. After a failure nothing is tried before there is a new line.
    fn left(&self) -> u64 {
        let lost = self.lost > 0 && self.failed == 0;
        u64::from(self.writing) + self.entries.len() as u64 + u64::from(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has lines written, of which those fail whose number is among these.
    fn written(queue: &Queue, failing: impl Fn(usize) -> bool, rounds: usize) -> String {
        let mut text = Vec::new();
        for round in 0..rounds {
            let mut write = |bytes: &[u8]| match failing(round) {
                true => Err(io::ErrorKind::BrokenPipe.into()),
                false => {
                    text.extend_from_slice(bytes);
                    Ok(())
                }
            };
            queue.write_one_to(&mut write);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_where_they_are_missing() {
        let queue = Queue::new();
        for line in ["a\n", "b\n", "c\n", "d\n", "e\n", "f\n"] {
            queue.push(line.as_bytes());
        }
        let text = written(&queue, |round| [1, 2, 4].contains(&round), 6);
        let lost = "nbd: 2 lines of the log were lost here\n";
        assert_eq!(text, format!("a\n{lost}d\nnbd: a line of the log was lost here\nf\n"));
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_where_they_are_missing() {
        let queue = Queue::new();
        let long = vec![b'x'; CAPACITY - 1];
        queue.push(&long);
        for _ in 0..3 {
            queue.push(b"lost\n");
        }
        assert_eq!(written(&queue, |_| false, 1).len(), long.len());
        queue.push(b"next\n");
        assert_eq!(written(&queue, |_| false, 1), "nbd: 3 lines of the log were lost here\nnext\n");
        // Without a next line, too.
        queue.push(&long);
        queue.push(b"lost\n");
        assert!(written(&queue, |_| false, 2).ends_with("nbd: a line of the log was lost here\n"));
        assert_eq!(queue.lock().bytes, 0);
    }

    #[test]
    fn a_reader_that_takes_nothing_holds_up_neither_logging_nor_flushing() {
        static QUEUE: Queue = Queue::new();
        QUEUE.lock().started = true;
        let (blocked, release) = std::sync::mpsc::channel::<()>();
        let writer = std::thread::spawn(move || {
            QUEUE.write_one_to(&mut |_: &[u8]| {
                release.recv().unwrap();
                Ok(())
            });
        });
        for _ in 0..100_000 {
            QUEUE.push(b"a line that nobody reads\n");
        }
        assert!(QUEUE.lock().bytes <= CAPACITY);
        assert!(QUEUE.lock().lost > 0);
        QUEUE.flush(Duration::from_millis(1), ALL_PATIENCE, |_| panic!("a thread writes it"));
        blocked.send(()).unwrap();
        writer.join().unwrap();
    }

    /// A queue whose thread takes so long for each line.
    fn with_a_slow_reader(pause: Duration) -> &'static Queue {
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        queue.lock().started = true;
        std::thread::spawn(move || {
            queue.write_all_to(|_: &[u8]| {
                std::thread::sleep(pause);
                Ok(())
            });
        });
        queue
    }

    #[test]
    fn a_reader_that_takes_something_is_waited_for_whatever_comes_meanwhile() {
        let queue = with_a_slow_reader(Duration::from_millis(5));
        (0..100).for_each(|_| queue.push(b"a line\n"));
        std::thread::spawn(move || {
            loop {
                queue.push(b"and so on without an end\n");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // Less for each than for all of them.
        let day = Duration::from_secs(86400);
        queue.flush(Duration::from_secs(60), day, |_| panic!("a thread writes it"));
        assert!(queue.lock().written >= 100);
    }

    #[test]
    fn a_reader_that_takes_too_long_for_all_is_not_waited_for() {
        let queue = with_a_slow_reader(Duration::from_millis(5));
        (0..10_000).for_each(|_| queue.push(b"a line\n"));
        queue.flush(Duration::from_secs(60), Duration::from_millis(50), |_| panic!("it does"));
        assert!(queue.lock().left() > 0);
    }

    #[test]
    fn what_was_collected_before_there_is_a_thread_is_written_by_who_flushes() {
        let queue = Queue::new();
        for line in ["a\n", "b\n"] {
            queue.push(line.as_bytes());
        }
        let mut text = Vec::new();
        let mut write = |bytes: &[u8]| {
            text.extend_from_slice(bytes);
            Ok(())
        };
        queue.flush(PATIENCE, ALL_PATIENCE, &mut write);
        queue.flush(PATIENCE, ALL_PATIENCE, &mut write);
        assert_eq!(text, b"a\nb\n");
    }
}
