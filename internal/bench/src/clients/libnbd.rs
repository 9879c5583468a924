//! libnbd: a C program of ours, built when it is needed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::load::{Direction, Load};
use crate::process;

const SOURCE: &str = include_str!("libnbd_loop.c");

/// What to do where it can't be built.
const REMEDY: &str = "install a C compiler, pkg-config and libnbd's development files \
                      (on Debian: apt-get install gcc pkg-config libnbd-dev)";

/// A compiler takes no longer.
const BUILD: Duration = Duration::from_secs(120);

/// Builds the program in `folder`. The error says what is missing.
pub(super) fn build(folder: &Path) -> Result<PathBuf, String> {
    let missing = |what: String| format!("{what}; {REMEDY}");
    let run = |command: &mut Command| {
        let name = command.get_program().to_string_lossy().into_owned();
        match process::run(command, BUILD) {
            Ok(finished) if finished.status.success() => Ok(finished.output),
            Ok(finished) => Err(missing(format!("{name} failed, {}", finished.complaint()))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(missing(format!("there is no {name}")))
            }
            Err(error) => Err(missing(format!("{name}: {error}"))),
        }
    };
    let flags = run(Command::new("pkg-config").args(["--cflags", "--libs", "libnbd"]))?;
    let (source, program) = (folder.join("libnbd_loop.c"), folder.join("libnbd_loop"));
    fs::write(&source, SOURCE).map_err(|error| format!("{}: {error}", source.display()))?;
    let mut compile = Command::new("cc");
    compile.args(["-O2", "-o"]).arg(&program).arg(&source).args(flags.split_whitespace());
    run(&mut compile)?;
    Ok(program)
}

/// The version that it is linked with.
pub(super) fn version() -> Option<String> {
    let mut command = Command::new("pkg-config");
    let finished = process::run(command.args(["--modversion", "libnbd"]), BUILD).ok()?;
    finished.status.success().then(|| finished.output.trim().to_owned())
}

/// The command that carries out a load.
pub(super) fn command(program: &Path, socket: &Path, export: &str, load: &Load) -> Command {
    let op = match load.direction {
        Direction::Read => "read",
        Direction::Write => "write",
    };
    let mut command = Command::new(program);
    command.arg(socket).arg(export).arg(op).args([
        load.block.to_string(),
        load.depth.to_string(),
        load.duration.map_or(0.0, |limit| limit.as_secs_f64()).to_string(),
        load.requests.unwrap_or(0).to_string(),
        load.seed.to_string(),
    ]);
    command
}
