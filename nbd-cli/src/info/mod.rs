//! `nbd info`: what a server reports of an export, and what the export contains.

mod content;
mod contents;
mod feature;
mod json;
mod look;
mod report;
mod text;

use std::io::Write;

use clap::{ArgGroup, Args};

use crate::exit::Failure;
use crate::{colour, list, map, output, target};
use feature::Feature;

pub(crate) use content::content;
pub(crate) use contents::contents;
pub(crate) use feature::names as features;
pub(crate) use json::write as write_json;
pub(crate) use look::{greeting, look};
pub(crate) use report::{Described, Report};
pub(crate) use text::write as write_text;

/// Show what a server reports of an export, and what the export contains.
///
/// The line "contents" names partition tables, file systems and other formats that are known by their first bytes, with
/// labels and UUIDs; for that, up to 68 KiB are read of the export and of each partition. Servers say nothing about contents.
///
/// Questions (--can, --is, --has and their negations) print nothing: the exit code is 0 for yes, 2 for no, 1 when there is
/// no answer.
#[derive(Debug, Args)]
#[command(override_usage = "nbd info [OPTIONS] <URI | [ COMMAND ARGS ]>")]
#[command(group(ArgGroup::new("what").multiple(false)))]
pub(crate) struct Arguments {
    /// Write JSON
    #[arg(long)]
    json: bool,

    /// Have file(1) guess the content from its first 8 KiB, which are read from the server; it is an error if that fails
    /// [default: try to, without --list]
    #[arg(long, overrides_with = "no_content")]
    content: bool,

    /// Read nothing, and leave out what the export contains
    #[arg(long)]
    no_content: bool,

    /// Show all exports of the server, as nbd list does
    #[arg(short = 'L', long, group = "what")]
    list: bool,

    /// Show a metadata context's ranges, as nbd map does [default CONTEXT: base:allocation]
    #[arg(
        long,
        value_name = "CONTEXT",
        group = "what",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = map::ALLOCATION,
        value_parser = map::context
    )]
    map: Option<String>,

    /// With --map: add up the ranges of each type
    #[arg(long, alias = "total", requires = "map")]
    totals: bool,

    /// Write the size alone, in bytes
    #[arg(long, group = "what")]
    size: bool,

    /// Write the URI alone, as it is in the report
    #[arg(long, group = "what")]
    uri: bool,

    /// Ask whether the export can do something, or is something: block-status-payload, cache, connect, df,
    /// extended-headers, fast-zero, flush, fua, multi-conn, read, read-only, resize, rotational, structured-reply, tls,
    /// trim, write or zero; connect is whether it can be entered at all
    #[arg(long = "can", visible_aliases = ["is", "has"], value_name = "FEATURE", group = "what")]
    can: Option<Feature>,

    /// Ask the opposite; with connect it is a yes, and no failure, if there is no answer
    #[arg(
        long = "cannot",
        visible_aliases = ["isnt", "hasnt"],
        aliases = ["can-not", "cant", "is-not", "has-not"],
        value_name = "FEATURE",
        group = "what"
    )]
    cannot: Option<Feature>,

    #[command(flatten)]
    colour: colour::Arguments,

    #[command(flatten)]
    target: target::Arguments,
}

/// `nbd info`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let target = arguments.target.open()?;
    let (json, paint) = (arguments.json, arguments.colour.paint());
    if arguments.list {
        return list::show(&target, list::Format { json, content: arguments.content, paint });
    }
    if let Some(context) = &arguments.map {
        let format = map::Format { context, json, paint };
        let form = if arguments.totals { map::Form::Totals } else { map::Form::Runs };
        return map::show(&target, map::Question { form, ..format.into() });
    }
    if let Some(feature) = arguments.can {
        return answer(feature.holds(&target)?);
    }
    match arguments.cannot {
        // A server that can't be reached is an answer to this question, and the only way to a yes.
        Some(Feature::Connect) => return answer(Feature::Connect.holds(&target).is_err()),
        Some(feature) => return answer(!feature.holds(&target)?),
        None => {}
    }
    if arguments.uri {
        let uri = format!("{:#}", target.uri());
        return output::write(|out| match json {
            true => Ok(writeln!(out, "{}", serde_json::Value::from(uri))?),
            false => Ok(writeln!(out, "{uri}")?),
        });
    }
    if arguments.size {
        let client = target.connect(&target.config())?;
        let size = client.size();
        client.disconnect();
        return output::write(|out| Ok(writeln!(out, "{size}")?));
    }
    let (report, mut negotiation) = greeting(&target)?;
    let export = target.uri().export();
    let mut looked = look(&target, &mut negotiation, export);
    if looked.as_ref().is_err_and(|error| target.tries_again_after(error)) {
        negotiation = target.negotiate()?;
        looked = look(&target, &mut negotiation, export);
    }
    let mut described = looked.map_err(|error| target.explain(&error))?;
    let entered = target.enter(&mut negotiation, export);
    if let Err(error) = &entered
        && target.tries_again_after(error)
    {
        // Who asks for attempts wants the whole answer.
        return Err(target.explain(error));
    }
    let guessed = entered.map_err(|error| target.explain(&error)).and_then(|client| {
        // nbd-server 3.24 says the size on entering only.
        described.size = client.size();
        if !arguments.no_content {
            // What can't be read is an error only if it was asked for, of which the guess takes care.
            described.contents = contents(&client).unwrap_or_default();
        }
        let content = (!arguments.no_content).then(|| content(&target, &client)).transpose();
        client.disconnect();
        content
    });
    described.content = match guessed {
        Err(failure) if arguments.content => return Err(failure),
        guessed => guessed.unwrap_or_default(),
    };
    output::write(|out| {
        let report = Report { exports: vec![described], ..report };
        match json {
            true => Ok(write_json(&report, out)?),
            false => Ok(write_text(&report, paint, out)?),
        }
    })
}

fn answer(yes: bool) -> Result<(), Failure> {
    if yes { Ok(()) } else { Err(Failure::No) }
}
