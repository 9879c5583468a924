//! The report for people, in nbdinfo's lines.

use std::io::{self, Write};

use super::report::{Described, Report};
use crate::output::printable;

/// Writes a report.
pub(crate) fn write(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let tls = if report.tls { "with" } else { "without" };
    let (protocol, packets) = (report.protocol(), report.packets());
    writeln!(out, "protocol: {protocol} {tls} TLS, using {packets} packets")?;
    report.exports.iter().try_for_each(|export| one(export, out))
}

fn one(export: &Described, out: &mut impl Write) -> io::Result<()> {
    let details = &export.details;
    writeln!(out, "export=\"{}\":", printable(&details.name).replace('"', "\\\""))?;
    if let Some(text) = &details.description {
        writeln!(out, "\tdescription: {}", printable(text))?;
    }
    write!(out, "\texport-size: {}", details.size)?;
    let short = export.short_size();
    match short == details.size.to_string() {
        true => writeln!(out)?,
        false => writeln!(out, " ({short})")?,
    }
    if let Some(content) = &export.content {
        writeln!(out, "\tcontent: {}", printable(content))?;
    }
    if let Some(uri) = &export.uri {
        writeln!(out, "\turi: {uri}")?;
    }
    if !export.contexts.is_empty() {
        writeln!(out, "\tcontexts:")?;
        for context in &export.contexts {
            writeln!(out, "\t\t{}", printable(context))?;
        }
    }
    for (name, value) in export.booleans() {
        writeln!(out, "\t{name}: {value}")?;
    }
    for (name, value) in export.block_sizes() {
        writeln!(out, "\t{name}: {value}")?;
    }
    Ok(())
}
