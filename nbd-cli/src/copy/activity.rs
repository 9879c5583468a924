//! What a thread of a copy waits for, to report why it takes long.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::Arc;

use super::moves::Moves;
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
    /// Those of streams: what moves does not stand still, however long a step takes.
    given: Option<Moves>,
    taken: Option<Moves>,
}

impl Activity {
    /// `given` is how often the source has given something, if it is a stream.
    pub(super) fn new(
        from: (&str, &Source),
        given: Option<Moves>,
        to: (&str, &Destination),
    ) -> Self {
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
        let taken = match to.1 {
            Destination::Stream(stream) => Some(stream.moves().clone()),
            _ => None,
        };
        let doing = Arc::new(Doing {
            given,
            taken,
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

impl Doing {
    fn step(&self) -> Step {
        Step::ALL[usize::from(self.step.load(Ordering::Relaxed)) % Step::ALL.len()]
    }
}

impl Waits for Doing {
    fn number(&self) -> Option<u64> {
        let number = self.number.load(Ordering::Acquire);
        let moves = match self.step() {
            Step::Next | Step::Read => &self.given,
            Step::Write => &self.taken,
            Step::ReadBack => &None,
        };
        let moves = moves.as_ref().map_or(0, Moves::count);
        (number % 2 == 1).then_some(number << 32 | moves & u64::from(u32::MAX))
    }

    fn text(&self, seconds: u64) -> String {
        let step = self.step();
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
    use super::super::feed::Feed;
    use super::super::sink::InOrder;
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
                given: None,
                taken: None,
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

    #[test]
    fn a_stream_that_moves_within_a_step_is_waited_for_anew() {
        let (given, _writer) = std::io::pipe().unwrap();
        let (mut reader, taken) = std::io::pipe().unwrap();
        let file = |end: std::os::fd::OwnedFd| std::fs::File::from(end);
        let feed = Feed::stream(file(given.into()), "in".into(), None);
        let mut sink = InOrder::new(file(taken.into()));
        let moves = sink.moves().clone();
        let destination = Destination::Stream(InOrder::new(tempfile::tempfile().unwrap()));
        let mut activity =
            Activity::new(("in", &Source::Stream), feed.moves(), ("out", &destination));
        Arc::get_mut(&mut activity.doing).unwrap().taken = Some(moves.clone());
        let doing = &activity.doing;
        let seen = activity.during(Step::Write, (0, 1 << 20), || {
            std::thread::scope(|scope| {
                scope.spawn(|| sink.zeroes(0, 1 << 20).unwrap());
                // Each part that is read makes room for another one.
                let mut seen = std::collections::BTreeSet::new();
                let mut left: usize = 1 << 20;
                while left > 0 {
                    seen.insert(doing.number().unwrap());
                    left -= std::io::Read::read(&mut reader, &mut [0; 4096]).unwrap();
                }
                seen
            })
        });
        assert!(seen.len() > 8, "{seen:?}");
        // What the destination takes says nothing of a source that stands still.
        activity.during(Step::Next, (0, 0), || {
            let before = doing.number();
            let count = moves.count();
            sink.zeroes(1 << 20, 10).unwrap();
            assert_eq!((doing.number(), moves.count()), (before, count + 1));
        });
    }
}
