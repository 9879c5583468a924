//! What takes long is reported on standard error: whatever waits for longer than two seconds if that is a terminal or `-v`
//! was given, and otherwise, as in a script, for longer than ten.

use core::time::Duration;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use indicatif::ProgressBar;

use crate::{output, stderr};

/// When the first report is due while a person looks. Each further one is due after as long again.
const FIRST: Duration = Duration::from_secs(2);

/// The same where nobody may look: what is slow is not worth a line in a log yet, what does not answer is.
const FIRST_UNSEEN: Duration = Duration::from_secs(10);

/// The longest time between two reports.
const LONGEST: Duration = Duration::from_secs(60);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

/// Something that may wait.
pub(crate) trait Waits: Send + Sync {
    /// A number that changes with each wait; `None` while there is none.
    fn number(&self) -> Option<u64>;

    /// What has been waited for, after so many seconds, such as `waiting for X: no reply for 4 s`.
    fn text(&self, seconds: u64) -> String;
}

static BOARD: Mutex<Board> =
    Mutex::new(Board { first: None, runs: false, next: 0, entries: Vec::new(), bar: None });

struct Board {
    /// When the first report of a wait is due; none before the start.
    first: Option<Duration>,
    runs: bool,
    next: u64,
    entries: Vec<Entry>,
    bar: Option<ProgressBar>,
}

struct Entry {
    id: u64,
    waits: Arc<dyn Waits>,
    number: Option<u64>,
    since: Instant,
    first: Duration,
    due: Duration,
}

fn board() -> MutexGuard<'static, Board> {
    BOARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports from now on; early if a person is there to see it.
pub(crate) fn start(verbose: bool) {
    let seen = verbose || std::io::stderr().is_terminal();
    let first = if seen { FIRST } else { FIRST_UNSEEN };
    let mut board = board();
    board.first = Some(board.first.map_or(first, |earlier| earlier.min(first)));
}

/// A bar on the terminal, or none any more, which reports must not get into.
pub(crate) fn beside(bar: Option<ProgressBar>) {
    board().bar = bar;
}

/// A message as by [`stderr::say`], without getting into the bar.
pub(crate) fn say(message: &str) {
    let bar = board().bar.clone();
    match bar {
        Some(bar) => bar.suspend(|| stderr::say(message)),
        None => stderr::say(message),
    }
}

/// Something that may wait, until it is dropped.
#[derive(Debug)]
#[must_use = "nothing is reported after it is dropped"]
pub(crate) struct Watched(Option<u64>);

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            board().entries.retain(|entry| entry.id != id);
        }
    }
}

/// Nothing that waits.
#[cfg(test)]
pub(crate) fn none() -> Watched {
    Watched(None)
}

/// Reports what waits until the result is dropped.
pub(crate) fn watch(waits: Arc<dyn Waits>) -> Watched {
    let mut board = board();
    let Some(first) = board.first else { return Watched(None) };
    if !board.runs {
        // Without a thread nothing is reported, which is no reason to fail.
        let started = thread::Builder::new().name("nbd-waiting".into()).spawn(run);
        board.runs = started.is_ok();
    }
    let (id, number) = (board.next, waits.number());
    board.next += 1;
    board.entries.push(Entry { id, waits, number, since: Instant::now(), first, due: first });
    Watched(Some(id))
}

/// Reports a single wait, which ends when the result is dropped. The text is made of the seconds that have passed.
pub(crate) fn on(text: impl Fn(u64) -> String + Send + Sync + 'static) -> Watched {
    struct Once<F>(F);
    impl<F: Fn(u64) -> String + Send + Sync> Waits for Once<F> {
        fn number(&self) -> Option<u64> {
            Some(0)
        }

        fn text(&self, seconds: u64) -> String {
            (self.0)(seconds)
        }
    }
    watch(Arc::new(Once(text)))
}

fn run() {
    loop {
        thread::sleep(LOOK);
        let mut board = board();
        let Some(text) = report(&mut board.entries, Instant::now()) else { continue };
        let line = format!("nbd: {}", output::printable(&text));
        // There is no reader when the terminal is gone.
        let write = || drop(writeln!(std::io::stderr(), "{line}"));
        match &board.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

/// What there is to say at a moment: of those that a report is due for, the one that waits for longest.
fn report(entries: &mut [Entry], now: Instant) -> Option<String> {
    let mut longest: Option<(Duration, &Entry)> = None;
    for entry in entries {
        let number = entry.waits.number();
        if number.is_none() || number != entry.number {
            (entry.number, entry.since, entry.due) = (number, now, entry.first);
            continue;
        }
        let waited = now.saturating_duration_since(entry.since);
        if waited < entry.due {
            continue;
        }
        entry.due = (2 * entry.due).min(entry.due + LONGEST);
        if longest.is_none_or(|(longest, _)| longest < waited) {
            longest = Some((waited, entry));
        }
    }
    longest.map(|(waited, entry)| entry.waits.text(waited.as_secs()))
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Numbered(AtomicU64, &'static str);

    impl Waits for Numbered {
        fn number(&self) -> Option<u64> {
            match self.0.load(Ordering::Relaxed) {
                0 => None,
                number => Some(number),
            }
        }

        fn text(&self, seconds: u64) -> String {
            format!("{} {seconds}", self.1)
        }
    }

    #[test]
    fn what_waits_longest_is_reported_less_and_less_often_and_what_goes_on_never() {
        let waits = [(1, "busy"), (1, "stuck"), (0, "idle")];
        let waits = waits.map(|(number, name)| Arc::new(Numbered(AtomicU64::new(number), name)));
        let start = Instant::now();
        let entry = |(id, waits): (u64, &Arc<Numbered>)| {
            let waits: Arc<dyn Waits> = Arc::<Numbered>::clone(waits);
            Entry { id, number: waits.number(), waits, since: start, first: FIRST, due: FIRST }
        };
        let mut entries: Vec<_> = (0..).zip(&waits).map(entry).collect();
        let mut said = Vec::new();
        for second in 1..=200 {
            if second < 150 {
                waits[0].0.fetch_add(1, Ordering::Relaxed);
            }
            said.extend(report(&mut entries, start + Duration::from_secs(second)));
        }
        let stuck =
            ["stuck 2", "stuck 4", "stuck 8", "stuck 16", "stuck 32", "stuck 64", "stuck 124"];
        let busy = ["busy 2", "busy 4", "busy 8", "busy 16", "busy 32", "stuck 184"];
        assert_eq!(said, [&stuck[..], &busy].concat());
    }
}
