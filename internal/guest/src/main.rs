//! Power cuts: the disk of a virtual machine that loses its cache, a client inside of the machine that logs what was
//! acknowledged as durable, and the search for it afterwards. See `README.md` and the script `power-cut`.

mod disk;
mod plan;
mod verify;
mod write;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A disk that loses its cache, and what should survive that.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve an image on a Unix socket until standard input ends, then lose any part of what was not flushed
    Disk {
        /// The image, which is read at first and written in the end
        image: PathBuf,
        /// Where to listen
        socket: PathBuf,
        /// What is lost depends on this number
        #[arg(long)]
        seed: u64,
        /// Acknowledge flushes without doing anything, to see that it is noticed
        #[arg(long)]
        lies: bool,
    },
    /// Write to an export for ever, and say what is durable
    Write {
        /// The export
        uri: String,
        /// What is written depends on this number
        #[arg(long)]
        seed: u64,
    },
    /// Look for what was said to be durable
    Verify {
        /// The disk, or a file on it
        image: PathBuf,
        /// What was written
        #[arg(long)]
        seed: u64,
        /// What was said by `write`; other lines don't matter
        #[arg(long)]
        log: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Disk { image, socket, seed, lies } => disk::run(&image, &socket, seed, lies),
        Command::Write { uri, seed } => write::run(&uri, seed),
        Command::Verify { image, seed, log } => verify::run(&image, seed, &log),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-power-cut: {error}");
            ExitCode::FAILURE
        }
    }
}
