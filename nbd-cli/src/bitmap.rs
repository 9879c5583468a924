//! `nbd bitmap`: starts, clears and stops the dirty bitmaps of a server that runs.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use nbd_engine::export::{BitmapError, Tracker};
use serde_json::json;

use crate::control;
use crate::exit::Failure;
use crate::json;
use crate::output;
use crate::serve::{CLEAR, LIST, Named, START, STOP};

/// Start, clear and stop dirty bitmaps while nbd serve --control runs.
///
/// A bitmap records what clients change, for incremental backups; it is the metadata context qemu:dirty-bitmap:NAME of
/// every export that can be written, but not of files of a directory, nor of an export that is added after the bitmap was
/// started. When this ends well, it is done.
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
    List {
        /// Write JSON: an array of bitmaps
        #[arg(long)]
        json: bool,
    },
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
    let path = &arguments.control;
    let (word, verb, name) = match &arguments.action {
        Action::List { json } => {
            let names: Vec<String> = control::ask(path, LIST, &json!({}))?
                .map_err(|text| Failure::failed(format!("cannot list the bitmaps: {text}")))?;
            return output::write(|out| {
                if *json {
                    let bitmaps: Vec<_> =
                        names.iter().map(|name| json!({ "name": name })).collect();
                    return Ok(json::write(out, &bitmaps)?);
                }
                for name in &names {
                    writeln!(out, "{}", output::printable(name))?;
                }
                Ok(())
            });
        }
        Action::Start { name } => ("start", START, name),
        Action::Clear { name } => ("clear", CLEAR, name),
        Action::Stop { name } => ("stop", STOP, name),
    };
    if name.len() > Tracker::LONGEST_NAME {
        let error = BitmapError::InvalidName;
        return Err(Failure::failed(format!("cannot {word} the bitmap: {error}")));
    }
    control::ask(path, verb, &Named { name: name.clone() })?
        .map_err(|text| Failure::failed(format!("cannot {word} {text}")))
}
