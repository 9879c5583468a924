//! `nbd bitmap`: starts, clears and stops the dirty bitmaps of a server that runs.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::exit::Failure;
use crate::output;
use crate::serve::{ERROR, OK};
use crate::target::is_uri;

/// As long as all that others may ask of the server at the same time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Start, clear and stop dirty bitmaps while nbd serve --control runs.
///
/// A bitmap records what clients change, for incremental backups; it is the metadata context qemu:dirty-bitmap:NAME of
/// every export that can be written. When this ends well, it is done.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The socket that the server was given with --control
    #[arg(value_name = "CONTROL")]
    control: PathBuf,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the names of the bitmaps, one a line
    #[command(display_name = crate::NAME)]
    List,
    /// Add a bitmap with nothing dirty, and record from now on
    #[command(display_name = crate::NAME)]
    Start {
        /// Its name
        name: String,
    },
    /// Forget what is dirty, and go on recording
    #[command(display_name = crate::NAME)]
    Clear {
        /// Its name
        name: String,
    },
    /// Remove a bitmap
    #[command(display_name = crate::NAME)]
    Stop {
        /// Its name
        name: String,
    },
}

/// `nbd bitmap`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (verb, name) = match &arguments.action {
        Action::List => ("list", ""),
        Action::Start { name } => ("start", name.as_str()),
        Action::Clear { name } => ("clear", name.as_str()),
        Action::Stop { name } => ("stop", name.as_str()),
    };
    let path = &arguments.control;
    check(path)?;
    let answer = ask(path, verb, name).map_err(|error| {
        Failure::failed(format!(
            "no answer on the control socket {}: {error}; start the server with --control {0}",
            path.display()
        ))
    })?;
    if let Some(text) = answer.strip_prefix(ERROR) {
        return Err(Failure::failed(format!("cannot {verb} {text}")));
    }
    let Some(text) = answer.strip_prefix(OK) else {
        let path = path.display();
        return Err(Failure::failed(format!("what answers on {path} is no nbd serve --control")));
    };
    output::write(|out| {
        for name in text.split('\0').filter(|name| !name.is_empty()) {
            writeln!(out, "{}", output::printable(name))?;
        }
        Ok(())
    })
}

/// Tells what is clearly no control socket.
fn check(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    match path.metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => Err(Failure::failed(format!(
            "{shown} is not a socket: give the path that nbd serve --control has"
        ))),
        Err(_) if is_uri(path.as_os_str()) => Err(Failure::usage(format!(
            "{shown} is of no use here: give the path of the --control socket, not a URI"
        ))),
        _ => Ok(()),
    }
}

fn ask(path: &Path, verb: &str, name: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{verb}\n{name}").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    Ok(answer)
}
