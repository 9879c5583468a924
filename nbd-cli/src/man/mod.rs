//! `nbd man`: manual pages, made from the same declarations as the help.

mod page;
mod sections;

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory};

use crate::exit::Failure;
use crate::path_error;

pub(crate) use sections::examples;

/// Write the manual pages: nbd.1, and one for each command.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nbd man --dir ~/.local/share/man/man1
  man nbd-serve     (if ~/.local/bin is in PATH; else: MANPATH=~/.local/share/man: man nbd-serve)")]
pub(crate) struct Arguments {
    /// The folder, which is made if need be; pages that are there already are replaced
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// `nbd man`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let cannot = |what: &std::path::Path, error: &std::io::Error| {
        Failure::failed(format!("cannot write {}: {}", what.display(), path_error::why(error)))
    };
    fs::create_dir_all(&arguments.dir).map_err(|error| cannot(&arguments.dir, &error))?;
    for (name, text) in page::all(crate::Cli::command()) {
        let path = arguments.dir.join(name);
        fs::write(&path, text).map_err(|error| cannot(&path, &error))?;
    }
    Ok(())
}
