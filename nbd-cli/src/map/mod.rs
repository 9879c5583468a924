//! `nbd map`: what a metadata context says of an export's ranges.

mod names;
mod picture;
mod print;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::exit::Failure;
use crate::target::Target;
use crate::{colour, output, quantity, target, waiting};

pub(crate) use print::Format;

/// The context that most servers have.
pub(crate) const ALLOCATION: &str = "base:allocation";

/// Show which ranges of an export are data, holes or zeroes, or what another metadata context says of them.
///
/// Each line has offset, length, type and what the type means, if that is known; with --totals it has the sum of the
/// lengths, their share, type and meaning.
#[derive(Debug, Args)]
#[command(override_usage = "nbd map [OPTIONS] <URI | [ COMMAND ARGS ]>")]
pub(crate) struct Arguments {
    /// The metadata context, such as qemu:allocation-depth or qemu:dirty-bitmap:NAME; nbd info lists them
    #[arg(short, long, value_name = "CONTEXT", default_value = ALLOCATION, value_parser = context)]
    context: String,

    /// Add up the ranges of each type
    #[arg(long)]
    totals: bool,

    /// Write JSON
    #[arg(long)]
    json: bool,

    /// Draw the ranges as an SVG picture into this file, rather than write text; a file that is there is replaced; - is
    /// standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "totals"])]
    svg: Option<PathBuf>,

    /// Where to begin, such as 0, 4k or 1G
    #[arg(long, value_name = "N", default_value = "0", value_parser = quantity::size)]
    offset: u64,

    /// How much to look at [default: up to the end]
    #[arg(long, value_name = "N", value_parser = quantity::size)]
    length: Option<u64>,

    #[command(flatten)]
    colour: colour::Arguments,

    #[command(flatten)]
    target: target::Arguments,
}

/// A metadata context's name.
pub(crate) fn context(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((namespace, _)) if !namespace.is_empty() => Ok(text.to_owned()),
        _ => Err("a context is a namespace, a colon and a name, such as base:allocation".into()),
    }
}

/// What is asked for, and how the answer is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) format: Format<'a>,
    pub(crate) form: Form<'a>,
    pub(crate) offset: u64,
    /// Up to the end if there is none.
    pub(crate) length: Option<u64>,
}

/// What is made of the ranges.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form<'a> {
    /// One after the other.
    Runs,
    /// Added up.
    Totals,
    /// A picture in a file.
    Picture(&'a Path),
}

impl<'a> From<Format<'a>> for Question<'a> {
    /// The ranges of all of the export.
    fn from(format: Format<'a>) -> Self {
        Self { format, form: Form::Runs, offset: 0, length: None }
    }
}

/// `nbd map`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { context, json, colour, svg, .. } = arguments;
    let form = match (svg, arguments.totals) {
        (Some(path), _) => Form::Picture(path),
        (None, true) => Form::Totals,
        (None, false) => Form::Runs,
    };
    let format = Format { context, json: *json, paint: colour.paint() };
    let (offset, length) = (arguments.offset, arguments.length);
    show(&arguments.target.open()?, Question { format, form, offset, length })
}

/// Shows a metadata context's ranges.
pub(crate) fn show(target: &Target, question: Question<'_>) -> Result<(), Failure> {
    let Question { format, form, offset, length } = question;
    let context = format.context;
    let client = target.connect(&target.config().with_contexts([context]))?;
    if !client.export().has_context(context) {
        let text = format!(
            "there is no metadata context '{context}' on {}; see which there are with nbd info {}",
            target.name(),
            target.word(target.uri().export())
        );
        client.disconnect();
        return Err(Failure::failed(text));
    }
    let size = client.size();
    let length = length.unwrap_or(size.saturating_sub(offset));
    let range = quantity::range(size, offset, length).map_err(Failure::Failed)?;
    let mut statuses = client.block_status_range(context, range.start, length).joined();
    let runs = std::iter::from_fn(|| {
        let (name, offset) = (target.name(), statuses.position());
        let _reported = waiting::on(move |seconds| {
            format!(
                "waiting for {name}: no reply for {seconds} s to a block status request at {offset}"
            )
        });
        statuses.next().map(|run| run.map_err(|error| target.explain(&error)))
    });
    match form {
        Form::Runs => output::write(|out| format.runs(runs, out)),
        Form::Totals => output::write(|out| format.totals(&target.name(), length, runs, out)),
        Form::Picture(path) => {
            let runs = runs.map(|run| run.map(|run| (run.range(), run.status)));
            picture::draw(&target.name(), context, range, runs)
                .and_then(|picture| picture::save(&picture, path))
        }
    }?;
    client.disconnect();
    Ok(())
}
