//! What a server uses, second by second, and whether that is flat.

use core::fmt;

use nbd_testkit::process::Background;

/// What a process uses at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Resident memory in bytes.
    pub resident: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Sample {
    /// Asks the kernel about a process that runs.
    pub(super) fn of(process: &Background) -> Self {
        Self {
            resident: process.resident(),
            descriptors: process.open_files() as u64,
            threads: process.threads(),
        }
    }

    const fn fields(self) -> [u64; 3] {
        [self.resident, self.descriptors, self.threads]
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident, descriptors, threads } = self;
        let mib = *resident as f64 / f64::from(1 << 20);
        write!(f, "{mib:6.1} MiB, {descriptors:3} descriptors, {threads:3} threads")
    }
}

/// By how much the last third's median may exceed the middle third's: a share in percent, and so much in any case.
/// Resident memory in bytes, descriptors, threads. Visitors come and go, so that a median may be one client more.
pub const MARGINS: [(u64, u64); 3] = [(5, 2 << 20), (5, 3), (5, 3)];

/// Samples at regular intervals.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<Sample>);

/// Whether a series is flat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Medians of the middle third.
    pub middle: Sample,
    /// Medians of the last third.
    pub last: Sample,
    /// The last third is within the margins of the middle one. What is less is no leak.
    pub is_flat: bool,
}

impl Series {
    /// Adds one.
    pub fn push(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The medians from one sample on; none if there are no samples.
    pub fn median_since(&self, first: usize) -> Option<Sample> {
        median(self.0.get(first..)?)
    }

    /// Compares the last third with the middle one; none for less than three samples. The first third is left out: caches
    /// fill, threads are started.
    pub fn verdict(&self) -> Option<Verdict> {
        let third = self.0.len() / 3;
        let end = self.0.len();
        let middle = median(&self.0[third..end - third])?;
        let last = median(&self.0[end - third..])?;
        let mut pairs = middle.fields().into_iter().zip(last.fields()).zip(MARGINS);
        let within = |((middle, last), (percent, plus)): ((u64, u64), (u64, u64))| {
            last <= middle + plus.max(middle * percent / 100)
        };
        Some(Verdict { middle, last, is_flat: pairs.all(within) })
    }
}

fn median(samples: &[Sample]) -> Option<Sample> {
    let of = |field: fn(&Sample) -> u64| {
        let mut values: Vec<u64> = samples.iter().map(field).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    };
    Some(Sample {
        resident: of(|sample| sample.resident)?,
        descriptors: of(|sample| sample.descriptors)?,
        threads: of(|sample| sample.threads)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: impl Iterator<Item = [u64; 3]>) -> Series {
        let sample =
            |[resident, descriptors, threads]: [u64; 3]| Sample { resident, descriptors, threads };
        Series(values.map(sample).collect())
    }

    #[test]
    fn what_grows_in_the_beginning_and_then_no_more_is_flat() {
        let flat = series((0..300u64).map(|at| [(at.min(100) + at % 7) << 20, at.min(90), 9]));
        assert!(flat.verdict().unwrap().is_flat);
    }

    #[test]
    fn a_slow_leak_of_each_kind_is_found() {
        let still = [50 << 20, 40, 20];
        for kind in 0..3 {
            let leak = [1 << 20, 1, 1][kind];
            let leaking = series((0..300).map(|at| {
                let mut sample = still;
                sample[kind] += at * leak / 10;
                sample
            }));
            assert!(!leaking.verdict().unwrap().is_flat, "{kind}");
        }
        assert!(series((0..300).map(|_| still)).verdict().unwrap().is_flat);
    }

    #[test]
    fn peaks_of_a_moment_do_not_count() {
        let peaks = series((0..300).map(|at| [if at % 5 == 4 { 1 << 40 } else { 1 << 20 }, 3, 3]));
        assert!(peaks.verdict().unwrap().is_flat);
    }

    #[test]
    fn too_few_samples_say_nothing() {
        assert_eq!(series([[1, 1, 1]; 2].into_iter()).verdict(), None);
        assert_eq!(Series::default().median_since(0), None);
    }
}
