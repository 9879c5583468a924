//! `nbd dump`: an export's bytes, for people to read.

use std::io::{self, Write};
use std::ops::Range;

use clap::Args;
use nbd_blocking::Client;

use crate::colour::{self, Paint, Style};
use crate::exit::Failure;
use crate::output::{self, Failed};
use crate::target::Target;
use crate::{quantity, target, waiting};

/// Bytes of a line.
const LINE: usize = 16;

/// Bytes of a read, unless the blocks of the server are larger.
const CHUNK: u64 = 256 << 10;

/// How much is shown if no length is given.
const DEFAULT_LENGTH: u64 = 512;

/// Show bytes of an export, in hexadecimal and as text.
///
/// Each line has an offset and 16 bytes, as `hexdump -C` and `xxd` write them; a line of `*` stands for further lines like the
/// one before. The last line is the offset of the end.
///
/// OFFSET and LENGTH are numbers of bytes, such as 512, 4k, 10M, 1G or 0x7c00; without them the first 512 bytes are shown.
/// They can be given as options, too.
#[derive(Debug, Args)]
#[command(override_usage = "nbd dump [OPTIONS] <URI | [ COMMAND ARGS ]> [OFFSET [LENGTH]]")]
pub(crate) struct Arguments {
    /// Write the bytes as they are
    #[arg(long, conflicts_with = "json")]
    raw: bool,

    /// Write JSON: offset, length, and the bytes in hexadecimal
    #[arg(long)]
    json: bool,

    /// Where to begin, in place of OFFSET
    #[arg(long, value_name = "N", value_parser = quantity::size)]
    offset: Option<u64>,

    /// How much to show, in place of LENGTH
    #[arg(long, value_name = "N", value_parser = quantity::size)]
    length: Option<u64>,

    #[command(flatten)]
    colour: colour::Arguments,

    #[command(flatten)]
    target: target::Arguments,
}

/// `nbd dump`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (target, words) = arguments.target.open_with(2)?;
    let numbers: Vec<u64> = words
        .iter()
        .map(|word| quantity::size(&word.to_string_lossy()).map_err(Failure::Usage))
        .collect::<Result<_, _>>()?;
    let asked = [arguments.offset, arguments.length];
    if !numbers.is_empty() && asked.iter().any(Option::is_some) {
        return Err(Failure::usage(
            "OFFSET and LENGTH go behind the server, or into --offset and --length: leave one of the two out",
        ));
    }
    let [offset, length] = [0, 1].map(|index| asked[index].or(numbers.get(index).copied()));
    let client = target.connect(&target.config())?;
    let (size, offset) = (client.size(), offset.unwrap_or(0));
    let length = length.unwrap_or(DEFAULT_LENGTH.min(size.saturating_sub(offset)));
    let range = quantity::range(size, offset, length).map_err(Failure::Failed)?;
    let pieces = Pieces { target: &target, client: &client, rest: range.clone() };
    output::write(|out| match arguments {
        Arguments { raw: true, .. } => pieces.each(|bytes| out.write_all(bytes)),
        Arguments { json: true, .. } => {
            write!(out, "{{ \"offset\": {offset}, \"length\": {length}, \"bytes\": \"")?;
            pieces.each(|bytes| bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}")))?;
            Ok(writeln!(out, "\" }}")?)
        }
        Arguments { colour, .. } => {
            let mut lines = Lines::new(range, colour.paint(), out);
            pieces.each(|bytes| lines.add(bytes))?;
            Ok(lines.end()?)
        }
    })?;
    client.disconnect();
    Ok(())
}

/// What is read of a range.
struct Pieces<'a> {
    target: &'a Target,
    client: &'a Client,
    rest: Range<u64>,
}

impl Pieces<'_> {
    /// Reads whole blocks, and gives the bytes of the range in order.
    fn each(mut self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), Failed> {
        let block = u64::from(self.client.export().block_size().minimum());
        let mut buffer = Vec::new();
        while !self.rest.is_empty() {
            let read = blocks(&self.rest, block, self.client.size());
            buffer.resize((read.end - read.start) as usize, 0);
            let (name, at) = (self.target.name(), read.start);
            let _reported = waiting::on(move |seconds| {
                format!("waiting for {name}: no reply for {seconds} s to a read at {at}")
            });
            self.client
                .read_exact_at(&mut buffer, read.start)
                .map_err(|error| self.target.explain(&error))?;
            let end = self.rest.end.min(read.end);
            take(&buffer[(self.rest.start - read.start) as usize..(end - read.start) as usize])?;
            self.rest.start = end;
        }
        Ok(())
    }
}

/// The blocks of the first bytes of a range which is not empty, up to the end of an export of `size` bytes.
fn blocks(range: &Range<u64>, block: u64, size: u64) -> Range<u64> {
    let start = range.start / block * block;
    let end = range.end.min(range.start.saturating_add(CHUNK)).next_multiple_of(block);
    start..end.min(size)
}

/// Lines of bytes, as they come.
struct Lines<W> {
    out: W,
    paint: Paint,
    /// Where the next line begins.
    offset: u64,
    /// Digits of an offset.
    width: usize,
    line: Vec<u8>,
    previous: Vec<u8>,
    /// Whether the last line is a `*`.
    repeats: bool,
}

impl<W: Write> Lines<W> {
    fn new(range: Range<u64>, paint: Paint, out: W) -> Self {
        let width = format!("{:x}", range.end).len().max(8);
        let (line, previous) = (Vec::with_capacity(LINE), Vec::with_capacity(LINE));
        Self { out, paint, offset: range.start, width, line, previous, repeats: false }
    }

    fn add(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (taken, rest) = bytes.split_at(bytes.len().min(LINE - self.line.len()));
            self.line.extend_from_slice(taken);
            bytes = rest;
            if self.line.len() == LINE {
                self.line()?;
            }
        }
        Ok(())
    }

    /// Writes what was collected, unless it is the same as before.
    fn line(&mut self) -> io::Result<()> {
        if self.line != self.previous {
            self.repeats = false;
            self.text()?;
        } else if !self.repeats {
            self.repeats = true;
            self.paint.line(Style::Minor, format_args!("*"), &mut self.out)?;
        }
        self.offset += self.line.len() as u64;
        std::mem::swap(&mut self.line, &mut self.previous);
        self.line.clear();
        Ok(())
    }

    fn text(&mut self) -> io::Result<()> {
        let mut text = format!("{:0width$x}", self.offset, width = self.width);
        for index in 0..LINE {
            text.push_str(if index % (LINE / 2) == 0 { "  " } else { " " });
            match self.line.get(index) {
                Some(byte) => text.push_str(&format!("{byte:02x}")),
                None => text.push_str("  "),
            }
        }
        text.push_str("  |");
        let shown = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '.' };
        text.extend(self.line.iter().map(shown));
        text.push('|');
        let empty = self.line.iter().all(|byte| *byte == 0);
        let style = if empty { Style::Minor } else { Style::Plain };
        self.paint.line(style, format_args!("{text}"), &mut self.out)
    }

    /// Writes the rest, and the offset of the end.
    fn end(mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            self.line()?;
        }
        writeln!(self.out, "{:0width$x}", self.offset, width = self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_within_the_export_are_read() {
        for (range, block, size, read) in [
            (0..1, 1, 1 << 20, 0..1),
            (1000..1001, 512, 1 << 20, 512..1024),
            (0..1 << 20, 1, 1 << 20, 0..CHUNK),
            (1..CHUNK + 5, 512, 1 << 20, 0..CHUNK + 512),
            (0..700, 512, 700, 0..700),
            (65_536..65_537, 65_536, 1 << 20, 65_536..131_072),
        ] {
            assert_eq!(blocks(&range, block, size), read, "{range:?} in blocks of {block}");
        }
    }
}
