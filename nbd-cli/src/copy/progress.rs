//! How far the copy is: a bar on a terminal's standard error, or lines for a program.

use core::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::exit::Failure;
use crate::patient::Patient;
use crate::{descriptor, waiting};

/// With the rate and the time left.
const KNOWN: &str =
    "{prefix} {bar:18} {percent:>3}% {binary_bytes}/{binary_total_bytes} {rate} {eta} left";

/// The end of a stream is not known before it comes.
const UNKNOWN: &str = "{prefix} {binary_bytes} {rate}";

/// How far it is, as it is asked for on the command line.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Argument {
    /// Show a progress bar with rate and time left, if standard error is a terminal; or write lines such as 42/100 to the
    /// descriptor of that number, which the shell opens by 3>FILE
    #[arg(
        short,
        long,
        value_name = "FD",
        num_args = 0..=1,
        require_equals = true,
        value_parser = number
    )]
    progress: Option<Option<RawFd>>,
}

fn number(text: &str) -> Result<RawFd, String> {
    text.parse().map_err(|_| "give a descriptor's number, such as 3 with 3>FILE".into())
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Wanted {
    Nothing,
    Bar,
    Lines(Arc<Mutex<Lines>>),
}

impl Wanted {
    /// From `--progress` or `--progress=FD`. To be called before anything is opened.
    pub(super) fn new(argument: &Argument) -> Result<Self, Failure> {
        let number = match argument.progress {
            None => return Ok(Self::Nothing),
            Some(None) => return Ok(Self::Bar),
            Some(Some(number)) => number,
        };
        let useless = |why: &str| {
            Failure::usage(format!("--progress={number}: descriptor {number} {why}; try 3>FILE"))
        };
        let descriptor = descriptor::share(number).map_err(|_| useless("is not open"))?;
        let mode = fcntl_getfl(&descriptor).unwrap_or(OFlags::empty()) & OFlags::ACCMODE;
        if mode == OFlags::RDONLY {
            return Err(useless("is not open for writing"));
        }
        Ok(Self::Lines(Arc::new(Mutex::new(Lines::new(descriptor)))))
    }

    /// All is done, and durable if that was asked for: the last line, which a program may wait for.
    pub(super) fn done(&self) {
        if let Self::Lines(lines) = self {
            with(lines, |lines| lines.write(100));
        }
    }
}

/// Shared by all threads of a copy.
#[derive(Debug)]
pub(super) enum Progress {
    Silent,
    Bar(ProgressBar),
    Lines(Arc<Mutex<Lines>>),
}

impl Progress {
    /// Starts a phase, which is about that many bytes. The bar hides itself where there is no terminal.
    pub(super) fn start(wanted: &Wanted, phase: Phase, size: Option<u64>) -> Self {
        let bar = match wanted {
            Wanted::Nothing => return Self::Silent,
            Wanted::Lines(lines) => {
                with(lines, |lines| lines.start(phase, size));
                return Self::Lines(Arc::clone(lines));
            }
            // Nothing is drawn before it looks as it should.
            Wanted::Bar => ProgressBar::with_draw_target(size, ProgressDrawTarget::hidden()),
        };
        bar.set_prefix(phase.what);
        set_style(&bar, 0);
        bar.set_draw_target(ProgressDrawTarget::stderr());
        waiting::beside(Some(bar.clone()));
        Self::Bar(bar)
    }

    /// So many bytes are where they belong since before this run: they count as done, but not for the rate.
    pub(super) fn begins_at(&self, bytes: u64) {
        match self {
            Self::Bar(bar) if bytes > 0 => {
                set_style(bar, bytes);
                bar.set_position(bytes);
                // The bytes go into the estimate before that is cleared, which keeps their number as the one to go on from.
                bar.tick();
                bar.reset_eta();
            }
            _ => self.add(bytes),
        }
    }

    /// So many bytes more are where they belong.
    pub(super) fn add(&self, bytes: u64) {
        match self {
            Self::Silent => {}
            Self::Bar(bar) => bar.inc(bytes),
            Self::Lines(lines) => with(lines, |lines| lines.add(bytes)),
        }
    }

    /// Ends a phase. The bar stays as it is.
    pub(super) fn end(&self) {
        if let Self::Bar(bar) = self {
            waiting::beside(None);
            bar.abandon();
        }
    }
}

/// How a bar looks whose first bytes were copied before this run.
fn set_style(bar: &ProgressBar, earlier: u64) {
    let template = if bar.length().is_some() { KNOWN } else { UNKNOWN };
    if let Ok(style) = ProgressStyle::with_template(template) {
        let rate = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let rate = match state.is_finished() {
                true => state.pos().saturating_sub(earlier) as f64 / state.elapsed().as_secs_f64(),
                false => state.per_sec(),
            };
            // Without a line the bar has none.
            let _written = write!(out, "{}/s", BinaryBytes(rate as u64));
        };
        bar.set_style(style.with_key("rate", rate).progress_chars("=> "));
    }
}

/// A part of the work, all of which is 100 per cent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    pub(super) what: &'static str,
    /// The per cents that are its own.
    pub(super) from: u8,
    pub(super) to: u8,
}

/// Lines such as `42/100`, as nbdcopy writes them, but each of them once.
#[derive(Debug)]
pub(super) struct Lines {
    /// None when the reader has gone, which is no reason to end the copy.
    file: Option<Patient<File>>,
    phase: Phase,
    size: Option<u64>,
    done: u64,
    written: Option<u8>,
}

fn with(lines: &Mutex<Lines>, act: impl FnOnce(&mut Lines)) {
    act(&mut lines.lock().unwrap_or_else(PoisonError::into_inner));
}

impl Lines {
    fn new(descriptor: OwnedFd) -> Self {
        let phase = Phase { what: "", from: 0, to: 0 };
        Self { file: Some(Patient(descriptor.into())), phase, size: None, done: 0, written: None }
    }

    fn start(&mut self, phase: Phase, size: Option<u64>) {
        (self.phase, self.size, self.done) = (phase, size, 0);
        self.write(phase.from);
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        // Nobody knows how much of a stream there is.
        let Some(size) = self.size.filter(|size| *size > 0) else { return };
        let Phase { from, to, .. } = self.phase;
        let own = u128::from(to - from) * u128::from(self.done.min(size)) / u128::from(size);
        self.write((from + u8::try_from(own).unwrap_or(0)).min(99));
    }

    fn write(&mut self, percent: u8) {
        if self.written.is_some_and(|written| percent <= written) {
            return;
        }
        self.written = Some(percent);
        let line = format!("{percent}/100\n");
        if self.file.as_mut().is_some_and(|file| file.write_all(line.as_bytes()).is_err()) {
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use indicatif::TermLike;

    use super::*;

    /// What a copy in these steps writes.
    fn written(size: Option<u64>, steps: &[u64], verify: bool, done: bool) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let wanted = Wanted::Lines(Arc::new(Mutex::new(Lines::new(writer.into()))));
        let middle = if verify { 50 } else { 100 };
        let first = Phase { what: "copy", from: 0, to: middle };
        let second = Phase { what: "verify", from: 50, to: 100 };
        for phase in [Some(first), verify.then_some(second)].into_iter().flatten() {
            let progress = Progress::start(&wanted, phase, size);
            steps.iter().for_each(|bytes| progress.add(*bytes));
            progress.end();
        }
        if done {
            wanted.done();
        }
        drop(wanted);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        text.replace('\n', " ")
    }

    /// A wide terminal that keeps all that was ever written.
    #[derive(Clone, Debug, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            200
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// So much at once would be a rate that no disk has.
    const EARLIER: u64 = 1 << 60;

    #[test]
    fn bytes_of_an_earlier_run_are_done_and_in_no_rate() {
        let bar = ProgressBar::hidden();
        bar.set_length(EARLIER + 2);
        let progress = Progress::Bar(bar.clone());
        progress.begins_at(EARLIER);
        assert_eq!((bar.position(), bar.per_sec() as u64), (EARLIER, 0));
        progress.add(1);
        bar.tick();
        // A byte, in however short a time.
        assert!(bar.per_sec() <= 1e9, "{}", bar.per_sec());
    }

    #[test]
    fn the_rate_that_stays_is_that_of_this_run() {
        let terminal = Terminal::default();
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bar = ProgressBar::with_draw_target(Some(EARLIER), target);
        let progress = Progress::Bar(bar);
        progress.begins_at(EARLIER);
        progress.end();
        let shown = terminal.0.lock().unwrap().clone();
        assert!(shown.contains("100% 1.00 EiB/1.00 EiB 0 B/s"), "{shown}");
    }

    #[test]
    fn each_line_is_written_once_and_the_last_in_the_end() {
        let steps = [1, 499, 1, 1, 498];
        assert_eq!(written(Some(1000), &steps, false, true), "0/100 50/100 99/100 100/100 ");
        assert_eq!(written(Some(1000), &steps, false, false), "0/100 50/100 99/100 ");
        assert_eq!(written(Some(0), &[], false, true), "0/100 100/100 ");
        assert_eq!(written(Some(i64::MAX as u64), &[1 << 62], false, false), "0/100 50/100 ");
    }

    #[test]
    fn a_stream_has_no_lines_but_the_first_and_the_last() {
        assert_eq!(written(None, &[5, 1 << 40], false, true), "0/100 100/100 ");
    }

    #[test]
    fn copying_and_verifying_are_half_each() {
        let whole = "0/100 25/100 50/100 75/100 99/100 100/100 ";
        assert_eq!(written(Some(2), &[1, 1], true, true), whole);
    }
}
