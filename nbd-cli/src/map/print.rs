//! The map, in nbdinfo's lines and with nbdinfo's keys.

use std::collections::BTreeMap;
use std::io::Write;

use nbd_blocking::client::StatusRun;
use serde_json::Value;

use super::names::{look, name};
use crate::colour::Paint;
use crate::exit::Failure;
use crate::output::Failed;

/// How many types are added up at most: no context has more than a few, and memory must not depend on the server.
const MAX_TYPES: usize = 65536;

/// How a map is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format<'a> {
    pub(crate) context: &'a str,
    pub(crate) json: bool,
    pub(crate) paint: Paint,
}

impl Format<'_> {
    /// Writes the runs as they come.
    pub(super) fn runs(
        self,
        runs: impl Iterator<Item = Result<StatusRun, Failure>>,
        out: &mut impl Write,
    ) -> Result<(), Failed> {
        let mut lines = Lines::new(self, out)?;
        for run in runs {
            let StatusRun { offset, length, status, .. } = run?;
            lines.line(
                status,
                format_args!("\"offset\": {offset}, \"length\": {length}"),
                format_args!("{offset:>10}  {length:>10}  {status:>3} "),
            )?;
        }
        lines.end()
    }

    /// Writes the sums of the runs of each type that a server reports, of `whole` bytes.
    pub(super) fn totals(
        self,
        server: &str,
        whole: u64,
        runs: impl Iterator<Item = Result<StatusRun, Failure>>,
        out: &mut impl Write,
    ) -> Result<(), Failed> {
        let mut totals = BTreeMap::<u64, u64>::new();
        for run in runs {
            let run = run?;
            *totals.entry(run.status).or_default() += run.length;
            if totals.len() > MAX_TYPES {
                let text = format!(
                    "{server} reports more than {MAX_TYPES} types of '{}', too many to add up: leave out --totals",
                    self.context
                );
                return Err(Failure::failed(text).into());
            }
        }
        let mut lines = Lines::new(self, out)?;
        for (status, size) in totals {
            let percent = 100.0 * size as f64 / whole as f64;
            lines.line(
                status,
                format_args!("\"size\": {size}, \"percent\": {percent}"),
                format_args!("{size:>10} {percent:>5.1}% {status:>3}"),
            )?;
        }
        lines.end()
    }
}

/// What has been written so far.
struct Lines<'a, W> {
    format: Format<'a>,
    out: W,
    first: bool,
}

impl<'a, W: Write> Lines<'a, W> {
    fn new(format: Format<'a>, mut out: W) -> Result<Self, Failed> {
        if format.json {
            out.write_all(b"[")?;
        }
        Ok(Self { format, out, first: true })
    }

    fn line(
        &mut self,
        status: u64,
        json: std::fmt::Arguments<'_>,
        text: std::fmt::Arguments<'_>,
    ) -> Result<(), Failed> {
        let (out, first) = (&mut self.out, std::mem::replace(&mut self.first, false));
        let name = name(self.format.context, status);
        if !self.format.json {
            let look = look(self.format.context, status);
            let line = match name {
                Some(name) => format!("{text} {name}"),
                None => text.to_string().trim_end().to_owned(),
            };
            return Ok(self.format.paint.line(look, format_args!("{line}"), out)?);
        }
        write!(out, "{}\n{{ {json}, \"type\": {status}", if first { "" } else { "," })?;
        if let Some(name) = name {
            write!(out, ", \"description\": {}", Value::from(name))?;
        }
        out.write_all(b" }")?;
        Ok(())
    }

    fn end(mut self) -> Result<(), Failed> {
        if self.format.json {
            self.out.write_all(b"\n]\n")?;
        }
        Ok(())
    }
}
