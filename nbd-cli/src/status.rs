//! `nbd status` and `nbd disconnect`: looks at a server that runs, and ends connections.

mod rates;
mod text;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::control;
use crate::exit::Failure;
use crate::output::{self, Failed};
use crate::quantity;
use crate::serve::{DISCONNECT, Disconnect, STATUS, Status};

/// Show what a server does while nbd serve --control runs: its connections, exports, buffers and threads.
///
/// It looks twice, and shows the rates in between. Sizes are in units of powers of 1024.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON, with all numbers in bytes and seconds
    #[arg(long)]
    json: bool,

    /// Show it again and again, until interrupted
    #[arg(long)]
    watch: bool,

    /// Time between the two looks, such as 500ms or 5s; 0 looks once and shows no rates
    #[arg(long, value_name = "T", default_value = "1s", value_parser = quantity::duration)]
    interval: Duration,

    /// The socket that the server was given with --control
    #[arg(value_name = "CONTROL")]
    control: PathBuf,
}

/// Disconnect a client while nbd serve --control runs.
///
/// Its requests in flight are finished; later ones are refused, as if the server shut down for this client alone. When this
/// ends well, the server has begun to do so. The client may connect again.
#[derive(Debug, Args)]
pub(crate) struct DisconnectArguments {
    /// The socket that the server was given with --control
    #[arg(value_name = "CONTROL")]
    control: PathBuf,

    /// The number of the client, as nbd status shows it
    #[arg(value_name = "CLIENT", value_parser = client)]
    client: u64,
}

fn client(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "give the number of a client, as nbd status shows it".into())
}

/// `nbd disconnect`.
pub(crate) fn disconnect(arguments: &DisconnectArguments) -> Result<(), Failure> {
    let request = Disconnect { client: arguments.client };
    control::ask(&arguments.control, DISCONNECT, &request)?
        .map_err(|text| Failure::failed(format!("cannot disconnect: {text}")))
}

/// `nbd status`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.watch && arguments.interval.is_zero() {
        return Err(Failure::usage("--watch needs an --interval above 0"));
    }
    output::write(|out| {
        let (mut status, mut time) = look(&arguments.control)?;
        if arguments.interval.is_zero() {
            return Ok(print(&status, arguments, out)?);
        }
        let redraws = arguments.watch && !arguments.json && io::stdout().is_terminal();
        loop {
            thread::sleep(arguments.interval);
            let (mut later, now) = look(&arguments.control)?;
            rates::add(&mut later, &status, now.duration_since(time));
            if redraws {
                // Home, and clear what is below.
                out.write_all(b"\x1b[H\x1b[J")?;
            }
            print(&later, arguments, out)?;
            if !arguments.watch {
                return Ok(());
            }
            if !redraws && !arguments.json {
                writeln!(out)?;
            }
            out.flush()?;
            (status, time) = (later, now);
        }
    })
}

fn look(control: &Path) -> Result<(Status, Instant), Failed> {
    let status = control::ask(control, STATUS, &json!({})).map_err(Failed::Otherwise)?;
    let status = status.map_err(|text| {
        Failed::Otherwise(Failure::failed(format!("cannot look at the server: {text}")))
    })?;
    Ok((status, Instant::now()))
}

fn print(status: &Status, arguments: &Arguments, out: &mut impl Write) -> io::Result<()> {
    if !arguments.json {
        return out.write_all(text::of(status).as_bytes());
    }
    // Of many, each has a line.
    match arguments.watch {
        true => serde_json::to_writer(&mut *out, status)?,
        false => serde_json::to_writer_pretty(&mut *out, status)?,
    }
    writeln!(out)
}
