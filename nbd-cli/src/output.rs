//! Standard output, which may be a pipe that nobody reads to its end.

use std::io::{self, BufWriter, StdoutLock, Write};

use crate::descriptor;
use crate::exit::Failure;

/// Has something written to standard output. A reader that leaves early, such as `head`, is no failure.
pub(crate) fn write(
    tell: impl FnOnce(&mut BufWriter<StdoutLock<'static>>) -> Result<(), Failed>,
) -> Result<(), Failure> {
    descriptor::check_stdout().map_err(cannot_write)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let told = tell(&mut out);
    // What was found before a failure is worth seeing.
    let flushed = out.flush().map_err(Failed::Output);
    match told.and(flushed) {
        Ok(()) => Ok(()),
        Err(Failed::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Failed::Output(error)) => Err(cannot_write(error)),
        Err(Failed::Otherwise(failure)) => Err(failure),
    }
}

/// Standard output is of no use.
pub(crate) fn cannot_write(error: io::Error) -> Failure {
    Failure::failed(format!("cannot write to standard output: {error}"))
}

/// Why something was not written.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nobody takes it.
    Output(io::Error),
    /// It could not be had.
    Otherwise(Failure),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::Otherwise(failure)
    }
}

/// A text that came from a server, without what a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_invisible(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The characters that change the direction of a line, or that can't be seen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable("a\u{1b}[31m\n\u{202e}b"), "a\\u{1b}[31m\\n\\u{202e}b");
        assert_eq!(printable("Köln \"x\" \\"), "Köln \"x\" \\");
    }
}
