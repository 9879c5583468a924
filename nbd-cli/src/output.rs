//! Standard output, which may be a pipe that is not read to its end.

use std::ffi::OsStr;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::descriptor;
use crate::exit::Failure;
use crate::patient::Patient;

/// Standard output, in which writes wait for the reader even if the descriptor would not.
pub(crate) type Out = BufWriter<Patient<StdoutLock<'static>>>;

/// Writes to standard output. A reader that closes early, such as `head`, is no failure.
pub(crate) fn write(print: impl FnOnce(&mut Out) -> Result<(), Failed>) -> Result<(), Failure> {
    descriptor::check_stdout().map_err(cannot_write)?;
    let mut out = BufWriter::new(Patient(io::stdout().lock()));
    let printed = print(&mut out);
    // What was found before a failure is worth seeing.
    let flushed = out.flush().map_err(Failed::Output);
    match printed.and(flushed) {
        Ok(()) => Ok(()),
        Err(Failed::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Failed::Output(error)) => Err(cannot_write(error)),
        Err(Failed::Otherwise(failure)) => Err(failure),
    }
}

/// Standard output can't be written.
pub(crate) fn cannot_write(error: io::Error) -> Failure {
    Failure::failed(format!("cannot write to standard output: {error}"))
}

/// Why something was not written.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Standard output failed.
    Output(io::Error),
    /// The content could not be found out.
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

/// The name of an export in a table.
pub(crate) fn export_name(name: &str) -> String {
    if name.is_empty() { "(default)".into() } else { printable(name) }
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

/// A word for a shell: between quotes, unless there is nothing in it that needs them.
pub(crate) fn shell_word(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.:_-+=,@%[]".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A path for a shell, as an argument that no command takes for an option.
pub(crate) fn shell_path(path: &Path) -> String {
    match path.as_os_str().as_bytes().starts_with(b"-") {
        true => shell_word(Path::new(".").join(path).as_os_str()),
        false => shell_word(path.as_os_str()),
    }
}

/// An option and its value for a shell, as one argument where the value would be taken for another option.
#[cfg(feature = "tls")]
pub(crate) fn shell_option(option: &str, value: &OsStr) -> String {
    let between = if value.as_bytes().starts_with(b"-") { "=" } else { " " };
    format!("{option}{between}{}", shell_word(value))
}

/// The characters that change the direction of a line, or that can't be seen.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "tls")]
    #[test]
    fn a_value_that_looks_like_an_option_is_a_part_of_its_own() {
        let shown = |value: &str| shell_option("--add-client", value.as_ref());
        assert_eq!(shown("alice"), "--add-client alice");
        assert_eq!(shown("-x"), "--add-client=-x");
        assert_eq!(shown("--a b"), "--add-client='--a b'");
        assert_eq!(shown(""), "--add-client ''");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown() {
        assert_eq!(quoted(OsStr::from_bytes(b"caf\xe9 \xc3\xa9.img")), "'caf\\xe9 é.img'");
    }

    #[test]
    fn words_are_quoted_for_the_shell_if_they_have_to_be() {
        for (word, shown) in [
            ("nbd://[::1]:5", "nbd://[::1]:5"),
            ("nbd+unix:///?socket=/a", "'nbd+unix:///?socket=/a'"),
            ("it's", r"'it'\''s'"),
            ("a b", "'a b'"),
            ("-s", "-s"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(OsStr::new(word)), shown);
        }
        assert_eq!(shell_path(Path::new("-s")), "./-s");
        assert_eq!(shell_path(Path::new("a/b c")), "'a/b c'");
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable("a\u{1b}[31m\n\u{202e}b"), "a\\u{1b}[31m\\n\\u{202e}b");
        assert_eq!(printable("Köln \"x\" \\"), "Köln \"x\" \\");
    }
}
