//! Runs every copy by both tools, round after round.

use std::fs;
use std::io::{self, Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::arguments::CopyPlan;
use super::case::{Case, Place, Tool};
use super::image::{Image, make, same};
use crate::child::Running;
use crate::compare::{State, settle, start};
use crate::cpu::CpuSample;
use crate::process;
use crate::stats;

/// No copy takes so long.
const LIMIT: Duration = Duration::from_secs(600);

/// Both tools; the first is what the other is held against.
pub(super) const TOOLS: [Tool; 2] = [Tool::Nbdcopy, Tool::Nbd];

/// What one copy took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// Seconds from its start to its end.
    pub elapsed: f64,
    /// Seconds of CPU of the tool.
    pub cpu: f64,
    /// And of the server.
    pub server_cpu: f64,
}

/// What came of one case.
#[derive(Clone, Debug)]
pub struct Line {
    /// Whether it could be run.
    pub state: State,
    /// For each round, what each of the two tools took: nbdcopy first.
    pub rounds: Vec<[Took; 2]>,
}

impl Line {
    /// The median of a figure of the tool with this index.
    pub fn median(&self, tool: usize, figure: impl Fn(&Took) -> f64) -> Option<f64> {
        stats::median(self.rounds.iter().map(|round| figure(&round[tool])))
    }

    /// The median of the rounds' ratios of `nbd copy` to nbdcopy.
    pub fn ratio(&self, figure: impl Fn(&Took) -> f64) -> Option<f64> {
        stats::median(self.rounds.iter().map(|round| figure(&round[1]) / figure(&round[0])))
    }

    /// How far the ratios of the times are apart.
    pub fn spread(&self) -> Option<f64> {
        let ratios: Vec<f64> =
            self.rounds.iter().map(|round| round[1].elapsed / round[0].elapsed).collect();
        stats::spread(&ratios)
    }
}

/// Everything that came out, in the order of the plan.
#[derive(Clone, Debug)]
pub struct Standing {
    /// What nbdcopy says of its version; `None` if there is none.
    pub nbdcopy: Option<String>,
    /// A line for each case.
    pub lines: Vec<Line>,
}

impl Standing {
    /// Whether all that was asked for was measured.
    pub fn is_complete(&self) -> bool {
        self.nbdcopy.is_some() && self.lines.iter().all(|line| line.state == State::Ran)
    }
}

/// Runs the plan; `interrupted` ends it early. The tools take turns.
///
/// # Errors
/// When it was interrupted, or there is no room for the images.
pub fn run(plan: &CopyPlan, interrupted: &AtomicBool) -> io::Result<Standing> {
    let line = Line { state: State::Ran, rounds: Vec::new() };
    let mut standing = Standing { nbdcopy: None, lines: vec![line; plan.cases.len()] };
    standing.nbdcopy = match process::run(Command::new(&plan.nbdcopy).arg("--version"), LIMIT) {
        Ok(finished) => Some(finished.output.trim().into()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if standing.nbdcopy.is_none() {
        for line in &mut standing.lines {
            line.state = State::Missing;
        }
        return Ok(standing);
    }
    let room = Room::new(plan)?;
    for image in [Image::Dense, Image::HalfSparse] {
        let concerned = |at: &usize| plan.cases[*at].image == image;
        let places: Vec<usize> = (0..plan.cases.len()).filter(concerned).collect();
        if places.is_empty() {
            continue;
        }
        make(&room.image, image, plan.size)?;
        for round in 0..plan.rounds as usize {
            for &at in &places {
                let (case, line) = (&plan.cases[at], &mut standing.lines[at]);
                if line.state != State::Ran {
                    continue;
                }
                eprintln!("round {} of {}: {}", round + 1, plan.rounds, case.name);
                match one_round(plan, &room, case, round) {
                    Ok(took) => line.rounds.push(took),
                    Err(state) => line.state = state,
                }
                if interrupted.load(Ordering::Relaxed) {
                    return Err(ErrorKind::Interrupted.into());
                }
                if let State::Failed(why) = &line.state {
                    eprintln!("    {why}");
                }
            }
        }
    }
    Ok(standing)
}

/// A folder for an image and its copy.
struct Room {
    _folder: tempfile::TempDir,
    image: PathBuf,
    copy: PathBuf,
}

impl Room {
    fn new(plan: &CopyPlan) -> io::Result<Self> {
        // The image and its copy, or the image and a server's memory, and some for the programs.
        let needed = plan.size.saturating_mul(2).saturating_add(256 << 20);
        let stat = rustix::fs::statvfs(&plan.folder)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = available(&meminfo).unwrap_or(u64::MAX);
        if free.min(memory) < needed {
            let text = format!(
                "{} MiB are needed in {} and there are {}, with {} MiB of memory available; try a smaller --size",
                needed >> 20,
                plan.folder.display(),
                free >> 20,
                memory >> 20
            );
            return Err(Error::new(ErrorKind::StorageFull, text));
        }
        let folder = tempfile::Builder::new().prefix("nbd-bench").tempdir_in(&plan.folder)?;
        let (image, copy) = (folder.path().join("image"), folder.path().join("copy"));
        Ok(Self { _folder: folder, image, copy })
    }
}

/// Bytes of memory that can be had, by `/proc/meminfo`.
pub(super) fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// One copy by each tool.
fn one_round(plan: &CopyPlan, room: &Room, case: &Case, round: usize) -> Result<[Took; 2], State> {
    let nothing = Took { elapsed: 0.0, cpu: 0.0, server_cpu: 0.0 };
    let mut took = [nothing; 2];
    // Each tool is the first as often as the other.
    for at in [round % 2, (round + 1) % 2] {
        took[at] = one_copy(plan, room, case, TOOLS[at], round == 0)?;
    }
    Ok(took)
}

fn one_copy(
    plan: &CopyPlan,
    room: &Room,
    case: &Case,
    tool: Tool,
    check: bool,
) -> Result<Took, State> {
    // A server of its own for each, so that none finds what the other has left behind.
    let server = match case.to {
        Place::File | Place::Null => case.from.source(plan, &room.image),
        _ => case.to.destination(plan),
    };
    let Some(server) = server else {
        return Err(State::Failed("a copy without a server".into()));
    };
    let running = start(&server)?;
    let uri = format!("nbd+unix:///?socket={}", running.socket().display());
    let [from, to] = match case.to {
        Place::File => [uri.as_ref(), room.copy.as_os_str()],
        Place::Null => [uri.as_ref(), "null:".as_ref()],
        _ => [room.image.as_os_str(), uri.as_ref()],
    };
    let mut command = match tool {
        Tool::Nbdcopy => Command::new(&plan.nbdcopy),
        Tool::Nbd => {
            let mut command = Command::new(&plan.nbd);
            command.arg("copy");
            command
        }
    };
    command.args([from, to]);
    let result = timed(&mut command, &running);
    let result = result.and_then(|took| {
        let wrong = || Error::other("the copy is not the same as the image");
        let pattern = case.from == Place::NbdkitPattern;
        match check && case.to == Place::File && !pattern && !same(&room.image, &room.copy)? {
            true => Err(wrong()),
            false => Ok(took),
        }
    });
    remove(&room.copy);
    result.map_err(|error| {
        State::Failed(format!("{tool:?}: {error}; server: {}", running.complaint()))
    })
}

fn timed(command: &mut Command, running: &Running) -> io::Result<Took> {
    settle();
    let before = CpuSample::of(running.pid())?;
    let finished = process::run(command, LIMIT)?;
    settle();
    let after = CpuSample::of(running.pid())?;
    if !finished.status.success() {
        return Err(Error::other(finished.complaint()));
    }
    Ok(Took {
        elapsed: finished.elapsed.as_secs_f64(),
        cpu: finished.cpu.as_secs_f64(),
        server_cpu: after.since(&before).as_secs_f64(),
    })
}

/// There need not be one.
fn remove(copy: &Path) {
    let _none = fs::remove_file(copy);
}
