//! The report for people, in nbdinfo's lines.

use std::io::{self, Write};

use super::contents;
use super::report::{Described, Report};
use crate::colour::{Paint, Style};
use crate::output::printable;

/// Writes a report.
pub(crate) fn write(report: &Report, paint: Paint, out: &mut impl Write) -> io::Result<()> {
    let tls = if report.tls { "with" } else { "without" };
    let (protocol, packets) = (report.protocol(), report.packets());
    let first = format_args!("protocol: {protocol} {tls} TLS, using {packets} packets");
    paint.line(Style::Minor, first, out)?;
    report.exports.iter().try_for_each(|export| one(export, paint, out))
}

fn one(export: &Described, paint: Paint, out: &mut impl Write) -> io::Result<()> {
    let name = printable(export.name()).replace('"', "\\\"");
    paint.line(Style::Main, format_args!("export=\"{name}\":"), out)?;
    let mut main =
        |key: &str, value: &str| paint.line(Style::Main, format_args!("\t{key}: {value}"), out);
    if let Some(text) = &export.description {
        main("description", &printable(text))?;
    }
    let (size, short) = (export.size.to_string(), export.short_size());
    match short == size {
        true => main("export-size", &size)?,
        false => main("export-size", &format!("{size} ({short})"))?,
    }
    if let Some(content) = &export.content {
        main("content", &printable(content))?;
    }
    if let Some(uri) = &export.uri {
        main("uri", uri)?;
    }
    if !export.contexts.is_empty() {
        paint.line(Style::Minor, format_args!("\tcontexts:"), out)?;
        for context in &export.contexts {
            paint.line(Style::Minor, format_args!("\t\t{}", printable(context)), out)?;
        }
    }
    for (name, value) in export.booleans() {
        let look = match (name, value) {
            ("is_rotational", _) => Style::Minor,
            ("is_read_only", _) => Style::Plain,
            (_, true) => Style::Good,
            (_, false) => Style::Bad,
        };
        paint.line(look, format_args!("\t{name}: {value}"), out)?;
    }
    for (name, value) in export.block_sizes() {
        paint.line(Style::Plain, format_args!("\t{name}: {value}"), out)?;
    }
    // nbdinfo has no such lines.
    if let Some(known) = &export.contents {
        paint.line(Style::Main, format_args!("\tcontents:"), out)?;
        for line in contents::lines(known) {
            let indent = line.len() - line.trim_start_matches('\t').len();
            let (indent, line) = line.split_at(indent);
            paint.line(Style::Main, format_args!("\t\t{indent}{}", printable(line)), out)?;
        }
    }
    Ok(())
}
