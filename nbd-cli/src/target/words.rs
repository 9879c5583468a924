//! Brackets on the command line.

use std::ffi::{OsStr, OsString};
use std::fmt;

use crate::exit::Failure;

/// A word of the command line, or a command between brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A URI, a path, and so on.
    Word(OsString),
    /// `[ COMMAND ARGS ]`, without the brackets; never empty.
    Command(Vec<OsString>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "'{}'", word.to_string_lossy()),
            Self::Command(words) => {
                f.write_str("[ ")?;
                for word in words {
                    write!(f, "{} ", word.to_string_lossy())?;
                }
                f.write_str("]")
            }
        }
    }
}

/// The command line with a `--` in front of the first opening bracket, so that nobody takes the options of that command
/// for ours; or in front of the first number with a minus after `resize`, which is a size and no option.
pub(crate) fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.into_iter().collect();
    let ends = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
    let resizes = arguments.get(1).is_some_and(|word| word == "resize");
    let is_negative = |word: &OsStr| {
        let bytes = word.as_encoded_bytes();
        resizes && matches!(bytes, [b'-', digit, ..] if digit.is_ascii_digit())
    };
    let place = arguments[..ends].iter().position(|word| word == "[" || is_negative(word));
    if let Some(place) = place {
        arguments.insert(place, "--".into());
    }
    arguments
}

/// Whether a word is meant for a URI and not for a path, whatever its scheme: a path would be `./WORD://`.
pub(crate) fn is_uri(word: &OsStr) -> bool {
    let text = word.to_string_lossy();
    let Some((scheme, _)) = text.split_once("://") else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// A word as the shell takes it: between quotes, unless there is nothing in it that needs them.
pub(super) fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/.:_-+=,@%[]".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Tells words from commands.
pub(crate) fn places(words: &[OsString]) -> Result<Vec<Place>, Failure> {
    let bracket = |word: &OsString, which: &str| word.as_os_str() == OsStr::new(which);
    let mut places = Vec::new();
    let mut rest = words;
    while let [word, after @ ..] = rest {
        rest = after;
        if !bracket(word, "[") {
            places.push(Place::Word(word.clone()));
            continue;
        }
        let end = after.iter().position(|word| bracket(word, "]")).ok_or_else(|| {
            Failure::usage("'[' needs a ']' that is a word of its own: [ COMMAND ARGS ]")
        })?;
        if end == 0 {
            return Err(Failure::usage("there is no command between the brackets"));
        }
        places.push(Place::Command(after[..end].to_vec()));
        rest = &after[end + 1..];
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(Into::into).collect()
    }

    #[test]
    fn commands_are_between_brackets() {
        let found = places(&words("nbd://a [ nbdkit -o null ] b")).unwrap();
        let command = Place::Command(words("nbdkit -o null"));
        assert_eq!(found, [Place::Word("nbd://a".into()), command, Place::Word("b".into())]);
        assert_eq!(found[1].to_string(), "[ nbdkit -o null ]");
    }

    #[test]
    fn brackets_without_an_end_or_a_command_are_usage_errors() {
        for text in ["[ nbdkit null", "[ ]", "a [ ] b"] {
            assert!(matches!(places(&words(text)), Err(Failure::Usage(_))), "{text}");
        }
    }

    #[test]
    fn what_has_a_scheme_is_meant_for_a_uri() {
        for text in ["nbd://a", "NBD://a", "htp://x", "nbd+unix:///?socket=/a", "a-b.c://"] {
            assert!(is_uri(OsStr::new(text)), "{text}");
        }
        for text in ["./nbd://a", "/a://b", "://a", "1a://b", "a b://c", "nbd:a", "disk.img", ""] {
            assert!(!is_uri(OsStr::new(text)), "{text}");
        }
    }

    #[test]
    fn words_are_quoted_for_the_shell_if_they_have_to_be() {
        for (word, shown) in [
            ("nbd://[::1]:5", "nbd://[::1]:5"),
            ("nbd+unix:///?socket=/a", "'nbd+unix:///?socket=/a'"),
            ("it's", r"'it'\''s'"),
            ("a b", "'a b'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(OsStr::new(word)), shown);
        }
    }

    #[test]
    fn negative_sizes_are_no_options() {
        for (given, taken) in [
            ("nbd resize nbd://a -1G", "nbd resize nbd://a -- -1G"),
            ("nbd resize [ a ] -1G", "nbd resize -- [ a ] -1G"),
            ("nbd serve -p -1", "nbd serve -p -1"),
        ] {
            assert_eq!(arguments(words(given)), words(taken));
        }
    }

    #[test]
    fn the_options_of_a_command_are_not_ours() {
        assert_eq!(
            arguments(words("nbd info --size [ a -b ]")),
            words("nbd info --size -- [ a -b ]")
        );
        for text in ["nbd info -- [ a -b ]", "nbd info --json nbd://a"] {
            assert_eq!(arguments(words(text)), words(text));
        }
    }
}
