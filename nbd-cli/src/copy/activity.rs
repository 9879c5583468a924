//! What a thread of a copy waits for, to report why it takes long.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::Arc;

use super::worker::{Destination, Source};
use crate::waiting::{self, Waits, Watched};

/// Something that may take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The source says what is to be done next: where it has data, or what comes out of a stream.
    Next,
    /// The source is read.
    Read,
    /// The destination is written.
    Write,
    /// The destination is read.
    ReadBack,
}

impl Step {
    const ALL: [Self; 4] = [Self::Next, Self::Read, Self::Write, Self::ReadBack];
}

/// How a side behaves.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Server,
    Disk,
    Stream,
}

/// What one thread does at the moment; reported when it takes long.
#[derive(Debug)]
pub(super) struct Activity {
    doing: Arc<Doing>,
    _watched: Watched,
}

#[derive(Debug)]
struct Doing {
    source: (String, Kind),
    destination: (String, Kind),
    /// Counts beginnings and ends: odd while there is something to wait for.
    number: AtomicU64,
    step: AtomicU8,
    offset: AtomicU64,
    length: AtomicU64,
}

impl Activity {
    pub(super) fn new(from: (&str, &Source), to: (&str, &Destination)) -> Self {
        let source = match from.1 {
            Source::Server(_) => Kind::Server,
            Source::Disk(_) => Kind::Disk,
            Source::Stream => Kind::Stream,
        };
        let destination = match to.1 {
            Destination::Server(_) => Kind::Server,
            Destination::Disk(_) => Kind::Disk,
            Destination::Stream(_) | Destination::Nowhere => Kind::Stream,
        };
        let doing = Arc::new(Doing {
            source: (from.0.to_owned(), source),
            destination: (to.0.to_owned(), destination),
            number: AtomicU64::new(0),
            step: AtomicU8::new(0),
            offset: AtomicU64::new(0),
            length: AtomicU64::new(0),
        });
        let waits: Arc<dyn Waits> = Arc::<Doing>::clone(&doing);
        Self { _watched: waiting::watch(waits), doing }
    }

    /// Does something that may take long, about bytes that are named by offset and length.
    pub(super) fn during<R>(&self, step: Step, bytes: (u64, u64), act: impl FnOnce() -> R) -> R {
        let doing = &*self.doing;
        doing.step.store(step as u8, Ordering::Relaxed);
        doing.offset.store(bytes.0, Ordering::Relaxed);
        doing.length.store(bytes.1, Ordering::Relaxed);
        doing.number.fetch_add(1, Ordering::Release);
        let result = act();
        doing.number.fetch_add(1, Ordering::Release);
        result
    }
}

impl Waits for Doing {
    fn number(&self) -> Option<u64> {
        let number = self.number.load(Ordering::Acquire);
        (number % 2 == 1).then_some(number)
    }

    fn text(&self, seconds: u64) -> String {
        let step = Step::ALL[usize::from(self.step.load(Ordering::Relaxed)) % Step::ALL.len()];
        let offset = self.offset.load(Ordering::Relaxed);
        let bytes = format!("{} at {offset}", size(self.length.load(Ordering::Relaxed)));
        let (name, kind) = match step {
            Step::Next | Step::Read => &self.source,
            Step::Write | Step::ReadBack => &self.destination,
        };
        let what = match (step, kind) {
            (Step::Next, Kind::Server) => "a question about holes".to_owned(),
            (Step::Next, _) => "a search for holes".to_owned(),
            (Step::Read | Step::ReadBack, _) => format!("a read of {bytes}"),
            (Step::Write, _) => format!("a write of {bytes}"),
        };
        match (step, kind) {
            (Step::Write, Kind::Stream) => {
                format!("waiting for {name}: nothing was taken for {seconds} s")
            }
            (_, Kind::Stream) => format!("waiting for {name}: no data for {seconds} s"),
            (_, Kind::Server) => format!("waiting for {name}: no reply for {seconds} s to {what}"),
            (_, Kind::Disk) => format!("waiting for {name}: {what} has taken {seconds} s so far"),
        }
    }
}

/// A number of bytes for people, without loss.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".into(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_wait_is_reported() {
        let name = |name: &str, kind| (name.to_owned(), kind);
        for (step, source, destination, said) in [
            (Step::Next, Kind::Server, Kind::Disk, "S: no reply for 4 s to a question about holes"),
            (Step::Next, Kind::Stream, Kind::Disk, "S: no data for 4 s"),
            (Step::Read, Kind::Server, Kind::Disk, "S: no reply for 4 s to a read of 1 MiB at 7"),
            (Step::Write, Kind::Disk, Kind::Server, "D: no reply for 4 s to a write of 1 MiB at 7"),
            (Step::Write, Kind::Disk, Kind::Disk, "D: a write of 1 MiB at 7 has taken 4 s so far"),
            (Step::Write, Kind::Disk, Kind::Stream, "D: nothing was taken for 4 s"),
            (
                Step::ReadBack,
                Kind::Disk,
                Kind::Disk,
                "D: a read of 1 MiB at 7 has taken 4 s so far",
            ),
        ] {
            let doing = Doing {
                source: name("S", source),
                destination: name("D", destination),
                number: AtomicU64::new(0),
                step: AtomicU8::new(0),
                offset: AtomicU64::new(0),
                length: AtomicU64::new(0),
            };
            let activity = Activity { doing: Arc::new(doing), _watched: waiting::none() };
            assert_eq!(activity.doing.number(), None);
            activity.during(step, (7, 1 << 20), || {
                assert!(activity.doing.number().is_some());
                assert_eq!(activity.doing.text(4), format!("waiting for {said}"));
            });
            assert_eq!(activity.doing.number(), None);
        }
    }
}
