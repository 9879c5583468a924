//! Standard output, which may be a pipe that nobody reads to its end.

use std::ffi::OsStr;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::os::unix::ffi::OsStrExt;

use crate::descriptor;
use crate::exit::Failure;
use crate::patient::Patient;

/// Standard output, in which writes wait for the reader even if the descriptor would not.
pub(crate) type Out = BufWriter<Patient<StdoutLock<'static>>>;

/// Has something written to standard output. A reader that leaves early, such as `head`, is no failure.
pub(crate) fn write(tell: impl FnOnce(&mut Out) -> Result<(), Failed>) -> Result<(), Failure> {
    descriptor::check_stdout().map_err(cannot_write)?;
    let mut out = BufWriter::new(Patient(io::stdout().lock()));
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

/// A word of the command line for a message: bytes that are not UTF-8 as `\xNN`.
pub(crate) fn quoted(word: &OsStr) -> String {
    let mut text = String::from("'");
    for chunk in word.as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.push('\'');
    text
}

/// The characters that change the direction of a line, or that can't be seen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_shown() {
        assert_eq!(quoted(OsStr::from_bytes(b"caf\xe9 \xc3\xa9.img")), "'caf\\xe9 é.img'");
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable("a\u{1b}[31m\n\u{202e}b"), "a\\u{1b}[31m\\n\\u{202e}b");
        assert_eq!(printable("Köln \"x\" \\"), "Köln \"x\" \\");
    }
}
