//! Colours for people, on the same parts as nbdinfo's; bold where that has black, which not every terminal shows.

use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Whether to use colours.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// Use colours [default: if standard output is a terminal, and NO_COLOR is not set]
    #[arg(
        long = "color",
        visible_alias = "colour",
        aliases = ["colors", "colours"],
        overrides_with = "no_color"
    )]
    color: bool,

    /// Use no colours
    #[arg(long = "no-color", visible_alias = "no-colour", aliases = ["no-colors", "no-colours"])]
    no_color: bool,
}

impl Arguments {
    pub(crate) fn paint(self) -> Paint {
        let by_default = || {
            std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty())
                && io::stdout().is_terminal()
        };
        Paint { on: self.color || !self.no_color && by_default() }
    }
}

/// What a line is to its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    /// The main information.
    Main,
    /// Of minor interest.
    Minor,
    Good,
    Bad,
}

/// Writes lines in colour, or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// Writes a line.
    pub(crate) fn line(
        self,
        style: Style,
        text: fmt::Arguments<'_>,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let code = match style {
            Style::Main => 1,
            Style::Minor => 90,
            Style::Good => 32,
            Style::Bad => 31,
            Style::Plain => 0,
        };
        if self.on && code != 0 {
            writeln!(out, "\x1b[{code}m{text}\x1b[0m")
        } else {
            writeln!(out, "{text}")
        }
    }
}
