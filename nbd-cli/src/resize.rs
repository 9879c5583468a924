//! `nbd resize`: makes a disk larger or smaller.

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use nbd_engine::counted;
use serde_json::json;

use crate::ask::ask;
use crate::exit::Failure;
use crate::new_size::NewSize;
use crate::target::{Place, Target};
use crate::tls::TlsArguments;
use crate::{json, output, quantity, target};

/// Change the size of an export, and write the new size in bytes.
///
/// The server has to offer it, as nbd serve does with --resize. What is added reads as zeroes; what is cut off is gone: on a
/// terminal it is asked first, elsewhere --yes is needed for that.
#[derive(Debug, Args)]
#[command(override_usage = "nbd resize [OPTIONS] <URI | [ COMMAND ARGS ]> <SIZE>")]
pub(crate) struct Arguments {
    /// The export's URI, or the command of a server between brackets, as with nbd info; and the size: so many bytes
    /// (512, 4k, 10M, 1G, 1T), with + or - in front so many more or less than now
    #[arg(value_name = "URI SIZE", required = true, num_args = 1..)]
    words: Vec<OsString>,

    /// How long the server may take for an answer: seconds, or a number with a suffix such as 500ms or 5m; 0 for no limit but
    /// that of 30 s while connecting
    #[arg(long, value_name = "T", default_value = "60", value_parser = quantity::duration)]
    timeout: Duration,

    /// Make it smaller without asking, by which its end is lost
    #[arg(long)]
    yes: bool,

    /// Write JSON: the sizes before and after, in bytes
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    tls: TlsArguments,
}

/// `nbd resize`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let places = target::places(&arguments.words)?;
    if let [Place::Word(size), place] = &places[..]
        && NewSize::parse(&size.to_string_lossy()).is_ok()
    {
        return Err(Failure::usage(format!(
            "the URI comes first, and then the size: nbd resize {place} {}",
            size.to_string_lossy()
        )));
    }
    let [place, Place::Word(size)] = &places[..] else {
        return Err(Failure::usage("give a URI and a size, such as nbd://HOST/EXPORT 10G"));
    };
    let size = NewSize::parse(&size.to_string_lossy()).map_err(Failure::Usage)?;
    let target = Target::open(place, arguments.timeout, &arguments.tls)?;
    arguments.tls.check_used(&[target.uri()])?;
    let client = target.connect(&target.config())?;
    let now = client.size();
    let refused = |why: String| Failure::failed(format!("cannot resize {}: {why}", target.name()));
    let check = || {
        if client.export().is_read_only() {
            return Err(refused("it is read-only, unless its server allows writes".into()));
        }
        if !client.export().can_resize() {
            let text =
                "the server does not offer it for this export (nbd serve does with --resize)";
            return Err(refused(text.into()));
        }
        let wanted = size.of(now).ok_or_else(|| {
            refused(format!(
                "it has {}, and can have no less than 0 and no more than 2^63 - 1",
                counted(now, "byte")
            ))
        })?;
        let unit = u64::from(client.export().block_size().minimum());
        if !wanted.is_multiple_of(unit) {
            return Err(refused(format!(
                "{} is no multiple of its block size, {unit}",
                counted(wanted, "byte")
            )));
        }
        if wanted < now && !arguments.yes {
            let name = target.name();
            ask("Shrink", &format!("{name} from {now} to {}", counted(wanted, "byte")))?;
        }
        client.resize(wanted).map_err(|error| target.explain(&error))?;
        Ok(wanted)
    };
    let result = check();
    client.disconnect();
    let size = result?;
    output::write(|out| match arguments.json {
        true => Ok(json::write(out, &json!({ "size": size, "previous-size": now }))?),
        false => Ok(writeln!(out, "{size}")?),
    })
}
