//! CPU time of a process, from `/proc`.
//!
//! `/proc/PID/stat` counts in ticks of some 10 ms but knows threads that have ended;
//! `/proc/PID/task/TID/schedstat` counts nanoseconds but only of threads that still run. Both are
//! taken, and the ticks are believed only where they show that a thread took time with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Error, ErrorKind};
use std::time::Duration;

/// Nanoseconds of a tick, of which there are 100 in a second (`USER_HZ`) wherever Rust runs on
/// Linux. To ask the kernel for it is what rustix can't do under valgrind.
const TICK: u64 = 10_000_000;

/// What a process had used at some moment.
#[derive(Clone, Debug, Default)]
pub struct CpuSample {
    /// Nanoseconds of each thread.
    threads: BTreeMap<u32, u64>,
    /// User and system time of the process, in ticks.
    ticks: u64,
}

impl CpuSample {
    /// Reads the sample of process `pid`. A process that runs at this moment is up to a tick of
    /// the scheduler ahead of it, so ask when it is idle.
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let thread = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // A thread may end meanwhile, and a kernel may be built without these figures.
            if let (Some(thread), Ok(text)) =
                (thread, fs::read_to_string(entry.path().join("schedstat")))
                && let Some(nanos) = parse_schedstat(&text)
            {
                threads.insert(thread, nanos);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let ticks = parse_stat(&stat).ok_or_else(|| {
            Error::new(ErrorKind::InvalidData, "/proc/PID/stat is not understood")
        })?;
        Ok(Self { threads, ticks })
    }

    /// CPU time from an earlier sample to this one.
    pub fn since(&self, earlier: &Self) -> Duration {
        let threads: u64 = self
            .threads
            .iter()
            .map(|(thread, now)| now - now.min(earlier.threads.get(thread).unwrap_or(&0)))
            .sum();
        // User and system time are rounded one by one, at both ends.
        let ticks = self.ticks.saturating_sub(earlier.ticks);
        let lost = ticks.saturating_sub(2) * TICK > threads;
        Duration::from_nanos(if lost { ticks * TICK } else { threads })
    }
}

/// The CPU time that `/proc/PID/stat` tells of, to some ticks. It is still there once the process
/// has ended, as long as nobody has waited for it.
pub fn time_in_stat(text: &str) -> Option<Duration> {
    parse_stat(text).map(|ticks| Duration::from_nanos(ticks * TICK))
}

/// The first figure: nanoseconds on a CPU.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The sum of `utime` and `stime`, the 14th and 15th field. The 2nd is the program's name in
/// parentheses, in which anything may be.
fn parse_stat(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_behind_a_name_with_parentheses() {
        let text = "17 (a) b) S 1 2 3 4 5 6 7 8 9 10 21 22 13 14";
        assert_eq!(parse_stat(text), Some(43));
        assert_eq!(parse_stat("17 (a S 1"), None);
    }

    #[test]
    fn time_of_a_thread_that_ended_is_counted_in_ticks() {
        let before = CpuSample { threads: [(1, 5), (2, 7)].into(), ticks: 10 };
        let still = CpuSample { threads: [(1, 25), (2, 7), (3, 4)].into(), ticks: 11 };
        assert_eq!(still.since(&before), Duration::from_nanos(24));
        let ended = CpuSample { threads: [(1, 25)].into(), ticks: 30 };
        assert_eq!(ended.since(&before), Duration::from_nanos(20 * TICK));
    }

    #[test]
    fn this_process_has_a_sample() {
        let sample = CpuSample::of(std::process::id()).expect("a sample of this process");
        assert_eq!(sample.since(&sample), Duration::ZERO);
    }
}
