//! `nbd map`: what a metadata context says of an export's ranges.

mod names;
mod print;
mod walk;

use clap::Args;
use nbd_blocking::client::{Flags, Options};

use crate::exit::Failure;
use crate::{output, quantity, target};
use print::Format;
use walk::Walk;

/// The context that most servers have.
const ALLOCATION: &str = "base:allocation";

/// Show which ranges of an export are data, holes or zeroes, or what another metadata context says of them.
///
/// Each line has offset, length, type and what the type means, if that is known; with --totals it has the sum of the
/// lengths, their share, type and meaning.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The metadata context, such as qemu:allocation-depth or qemu:dirty-bitmap:NAME; nbd info tells which there are
    #[arg(short, long, value_name = "CONTEXT", default_value = ALLOCATION, value_parser = context)]
    context: String,

    /// Add up the ranges of each type
    #[arg(long)]
    totals: bool,

    /// Write JSON
    #[arg(long)]
    json: bool,

    /// Where to begin, such as 0, 4k or 1G
    #[arg(long, value_name = "N", default_value = "0", value_parser = quantity::size)]
    offset: u64,

    /// How much to look at [default: up to the end]
    #[arg(long, value_name = "N", value_parser = quantity::size)]
    length: Option<u64>,

    #[command(flatten)]
    target: target::Arguments,
}

fn context(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((namespace, _)) if !namespace.is_empty() => Ok(text.to_owned()),
        _ => Err("a context is a namespace, a colon and a name, such as base:allocation".into()),
    }
}

/// `nbd map`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let target = arguments.target.open()?;
    let mut options = Options::default();
    options.contexts = vec![arguments.context.clone()];
    let client = target.connect(&options)?;
    let context = arguments.context.as_str();
    if !client.has_context(context) {
        let text = format!(
            "{} has no metadata context '{context}' for this export; nbd info tells which there are",
            target.name()
        );
        client.disconnect();
        return Err(Failure::failed(text));
    }
    let (size, offset) = (client.size(), arguments.offset);
    let length = arguments.length.unwrap_or(size.saturating_sub(offset));
    let end = offset.checked_add(length).filter(|end| *end <= size).ok_or_else(|| {
        Failure::failed(format!(
            "the export has {size} bytes: choose an offset and a length within it"
        ))
    })?;
    let walk = Walk {
        range: offset..end,
        size,
        minimum: client.block_size().minimum().into(),
        extended: client.is_extended(),
    };
    let ask = |at, length| {
        let answer = client.block_status(at, length, Flags::empty());
        let answer = answer.map_err(|error| target.explain(&error))?;
        let extents = answer.into_iter().find(|one| &*one.context == context);
        Ok(extents.map(|one| one.extents).unwrap_or_default())
    };
    let format = Format { context, json: arguments.json };
    output::write(|out| match arguments.totals {
        true => format.totals(&walk, ask, out),
        false => format.runs(&walk, ask, out),
    })?;
    client.disconnect();
    Ok(())
}
