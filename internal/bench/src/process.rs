//! Programs that are run to their end: how long that took, and what it cost.

use std::fs;
use std::io::{self, Error, ErrorKind, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::cpu;

/// How often it is looked whether a program has ended: the precision of [`Finished::elapsed`].
const LOOK: Duration = Duration::from_millis(1);

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// How long it ran.
    pub elapsed: Duration,
    /// The CPU time of all its threads, to some 10 ms.
    pub cpu: Duration,
    /// What it wrote to standard output.
    pub output: String,
    /// And to standard error.
    pub errors: String,
}

impl Finished {
    /// The last thing that it complained about.
    pub fn complaint(&self) -> String {
        let last = self.errors.lines().rev().find(|line| !line.trim().is_empty());
        let text = last.map_or("it said nothing", str::trim);
        format!("{}: {}", self.status, text.chars().take(200).collect::<String>())
    }
}

/// Runs a program to its end, which is brought about if it does not come within `limit`. What it
/// writes must fit a pipe.
///
/// # Errors
/// Of kind [`ErrorKind::NotFound`] when there is no such program, [`ErrorKind::TimedOut`] when it
/// had to be ended.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<Finished> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::other("a process id out of range"))?;
    // It stays a zombie until its CPU time was read.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while waitid(WaitId::Pid(pid), options)?.is_none() {
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            let text = format!("it did not end within {} s", limit.as_secs());
            return Err(Error::new(ErrorKind::TimedOut, text));
        }
        thread::sleep(LOOK);
    }
    let elapsed = start.elapsed();
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let cpu = cpu::time_in_stat(&stat).unwrap_or_default();
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    if let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) {
        stdout.read_to_end(&mut output)?;
        stderr.read_to_end(&mut errors)?;
    }
    Ok(Finished {
        status: child.wait()?,
        elapsed,
        cpu,
        output: String::from_utf8_lossy(&output).into(),
        errors: String::from_utf8_lossy(&errors).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_program_is_run_to_its_end() {
        let mut command = Command::new("sh");
        let finished = run(command.args(["-c", "echo out; echo oh no >&2; exit 3"]), SOON);
        let finished = finished.expect("a shell");
        assert_eq!((finished.status.code(), finished.output.as_str()), (Some(3), "out\n"));
        assert!(finished.complaint().ends_with("oh no"), "{}", finished.complaint());
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_and_one_that_is_not_there_is_not_found() {
        let mut endless = Command::new("sleep");
        let error = run(endless.arg("1000"), Duration::from_millis(1)).expect_err("no end");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let error = run(&mut Command::new("/nonexistent/program"), SOON).expect_err("no program");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
