//! `nbd export` and `nbd reload`: what a server that runs serves is changed.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, json};

use crate::control;
use crate::exit::Failure;
use crate::json;
use crate::output;
use crate::serve::{Changes, EXPORT_ADD, EXPORT_REMOVE, ExportName, RELOAD, export_of};

/// Add exports to a server and remove them while nbd serve --control runs.
///
/// What is changed this way lasts until the server ends or reads its configuration file again.
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
    /// Serve one more export
    #[command(display_name = crate::NAME)]
    Add {
        /// Refuse to write; a file is opened for reading only
        #[arg(short, long)]
        read_only: bool,

        /// Text for people who list the exports
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,

        /// Put a layer around it, as for nbd serve; can be given several times, the first one is nearest to the disk
        ///
        /// The path of an overlay or of a log is one of this folder, if it does not begin with /.
        #[arg(long, value_name = "NAME[:...]")]
        layer: Vec<String>,

        /// What to serve, as for nbd serve. The path of a file is one of this folder, if it does not begin with /
        #[arg(value_name = "[NAME=]BACKEND")]
        backend: OsString,
    },
    /// Serve an export no longer, and disconnect its clients: requests in flight are finished
    #[command(display_name = crate::NAME)]
    Remove {
        /// Its name
        name: String,
    },
}

/// Have a server read its configuration file again while nbd serve --control runs.
///
/// Writes what has changed, one export or key a line, and the keys whose values take a restart of the server. A file that is at
/// fault changes nothing.
#[derive(Debug, Args)]
pub(crate) struct ReloadArguments {
    /// Write JSON: an object with an array of names for each kind of change
    #[arg(long)]
    json: bool,

    /// The socket that the server was given with --control
    #[arg(value_name = "CONTROL")]
    control: PathBuf,
}

/// `nbd export`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let control = &arguments.control;
    match &arguments.action {
        Action::Add { read_only, description, layer, backend } => {
            let mut export = export_of(backend, layer)?;
            export.read_only = *read_only;
            export.description.clone_from(description);
            change(control, EXPORT_ADD, &export, "add the export")
        }
        Action::Remove { name } => {
            change(control, EXPORT_REMOVE, &ExportName { name: name.clone() }, "remove the export")
        }
    }
    .map(drop)
}

/// `nbd reload`.
pub(crate) fn reload(arguments: &ReloadArguments) -> Result<(), Failure> {
    let changes = change(&arguments.control, RELOAD, &json!({}), "read the configuration again")?;
    output::write(|out| {
        if arguments.json {
            let keys = [("settings", &changes.settings), ("restart", &changes.restart)];
            let named = changes.named().into_iter().chain(keys);
            let named = named.map(|(what, names)| (what.to_owned(), json!(names)));
            return Ok(json::write(out, &Map::from_iter(named))?);
        }
        for (what, names) in changes.named() {
            for name in names {
                writeln!(out, "{what} {}", output::export_name(name))?;
            }
        }
        for key in &changes.settings {
            writeln!(out, "{key}: in force")?;
        }
        for key in &changes.restart {
            writeln!(out, "{key}: takes a restart of the server")?;
        }
        Ok(())
    })
}

fn change(
    control: &Path,
    verb: &str,
    arguments: &impl Serialize,
    what: &str,
) -> Result<Changes, Failure> {
    control::ask(control, verb, arguments)?
        .map_err(|text| Failure::failed(format!("cannot {what}: {text}")))
}
