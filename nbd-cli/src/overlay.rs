//! `nbd overlay`: looks at overlay files, writes them to their base, or throws away what they have.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use nbd_engine::counted;
use nbd_engine::export::{
    Committed, OverlayError, commit_overlay, discard_overlay, overlay_summary,
};
use serde_json::json;

use crate::exit::Failure;
use crate::json;
use crate::output;

/// Commit, discard and look at the overlay files of nbd serve --layer overlay:FILE.
///
/// info looks at a file whether a server uses it or not. The others work on files that no server uses; of one in use, end
/// the server, or take its export away, first.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the size of the disk, the size of a block, and the bytes of the blocks that the overlay has
    ///
    /// Of an overlay that a server uses, what it had at its last flush.
    #[command(display_name = crate::NAME)]
    Info {
        /// Write JSON
        #[arg(long)]
        json: bool,

        /// The overlay file
        file: PathBuf,
    },
    /// Write what the overlay has to the disk that it was made for, and empty it
    ///
    /// If this is interrupted, run it again: until then the overlay can't be served, and the disk has a part of the
    /// changes.
    #[command(display_name = crate::NAME)]
    Commit {
        /// Write JSON
        #[arg(long)]
        json: bool,

        /// The overlay file
        file: PathBuf,
        /// The file or block device that the overlay was made for
        base: PathBuf,
    },
    /// Empty the overlay: the disk that it was made for shows again, and the file stays
    #[command(display_name = crate::NAME)]
    Discard {
        /// The overlay file
        file: PathBuf,
    },
}

/// `nbd overlay`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let failed = |error: OverlayError| Failure::failed(error.to_string());
    match &arguments.action {
        Action::Info { json, file } => {
            let summary = overlay_summary(file).map_err(failed)?;
            output::write(|out| {
                if *json {
                    let document = json!({
                        "size": summary.size,
                        "block-size": summary.block,
                        "present": summary.present,
                        "committing": summary.is_committing,
                        "in-use": summary.is_in_use,
                    });
                    return Ok(json::write(out, &document)?);
                }
                writeln!(out, "size     {}", summary.size)?;
                writeln!(out, "block    {}", summary.block)?;
                writeln!(out, "present  {}", summary.present)?;
                match (summary.is_committing, summary.is_in_use) {
                    (true, true) => writeln!(out, "a commit is under way")?,
                    (true, false) => writeln!(out, "a commit was interrupted: run it again")?,
                    (false, true) => writeln!(out, "in use: present is as of the last flush")?,
                    (false, false) => {}
                }
                Ok(())
            })
        }
        Action::Commit { json, file, base } => {
            let Committed { data, zeroes, .. } = commit_overlay(file, base).map_err(failed)?;
            output::write(|out| match json {
                true => Ok(json::write(out, &json!({ "written": data, "zeroed": zeroes }))?),
                false => Ok(writeln!(
                    out,
                    "{} written, {} zeroed",
                    counted(data, "byte"),
                    counted(zeroes, "byte")
                )?),
            })
        }
        Action::Discard { file } => discard_overlay(file).map_err(failed),
    }
}
