//! Brackets on the command line.

use std::ffi::{OsStr, OsString};
use std::fmt;

use nbd_blocking::client::UriError;

use crate::exit::Failure;
use crate::output;

/// A word of the command line, or a command between brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A URI, a path, and so on.
    Word(OsString),
    /// `[ COMMAND ARGS ]`, without the brackets; never empty.
    Command(Vec<OsString>),
}

impl Place {
    /// The word, if it is one.
    pub(crate) const fn word(&self) -> Option<&OsString> {
        match self {
            Self::Word(word) => Some(word),
            Self::Command(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "'{}'", word.to_string_lossy()),
            Self::Command(words) => {
                f.write_str("[ ")?;
                for word in words {
                    write!(f, "{} ", output::shell_word(word))?;
                }
                f.write_str("]")
            }
        }
    }
}

/// The command line with a `--` in front of the first opening bracket, so that the options of that command are not taken
/// for ours; or in front of the first number with a minus after `resize`, which is a size and no option.
pub(crate) fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.into_iter().collect();
    let ends = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
    let resizes = arguments.get(1).is_some_and(|word| word == "resize");
    let is_negative = |word: &OsStr| {
        let bytes = word.as_encoded_bytes();
        resizes && matches!(bytes, [b'-', digit, ..] if digit.is_ascii_digit())
    };
    let index = arguments[..ends].iter().position(|word| word == "[" || is_negative(word));
    if let Some(index) = index {
        arguments.insert(index, "--".into());
    }
    arguments
}

/// Whether a word is meant for a URI and not for a path: one of any scheme with `://`, or of a scheme of NBD even without
/// the slashes, such as the `nbd:HOST:PORT` of old clients. A path would be `./WORD`.
pub(crate) fn is_uri(word: &OsStr) -> bool {
    let text = word.to_string_lossy();
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    if is_nbd_scheme(scheme) {
        return true;
    }
    rest.starts_with("//")
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// Whether a scheme is `nbd` or `nbds`, alone or with a transport such as in `nbd+unix`.
fn is_nbd_scheme(scheme: &str) -> bool {
    let protocol = scheme.split_once('+').map_or(scheme, |(protocol, _)| protocol);
    ["nbd", "nbds"].iter().any(|known| protocol.eq_ignore_ascii_case(known))
}

/// The URI that a word was meant for, if it looks like a server's address: `HOST:PORT`, `[IPV6]:PORT`, either with
/// `/EXPORT`, or what old clients take, `nbd:HOST:PORT` and `nbd:unix:PATH`. A file may have the name of an address.
pub(super) fn meant_uri(word: &OsStr) -> Option<String> {
    let text = word.to_str()?;
    let (protocol, address) = match text.split_once(':') {
        // What is wrong with it is said elsewhere; a guess could turn off the encryption that was asked for.
        Some((scheme, rest)) if is_nbd_scheme(scheme) && rest.starts_with("//") => return None,
        Some((scheme, rest)) if is_nbd_scheme(scheme) => {
            let encrypts = scheme.as_bytes().get(3).is_some_and(|c| c.eq_ignore_ascii_case(&b's'));
            (if encrypts { "nbds" } else { "nbd" }, rest.trim_start_matches('/'))
        }
        _ => ("nbd", text),
    };
    if address.len() < text.len()
        && let Some(path) = address.strip_prefix("unix:")
    {
        return Some(format!("{protocol}+unix:///?socket={path}"));
    }
    let (authority, _) = address.split_once('/').unwrap_or((address, ""));
    let (host, port) = authority.rsplit_once(':')?;
    let is_port = port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => {
            host.contains(':') && host.chars().all(|c| c.is_ascii_hexdigit() || ":.".contains(c))
        }
        None => host.starts_with(|c: char| c.is_ascii_alphanumeric()) && host.chars().all(is_name),
    };
    (is_port && is_host).then(|| format!("{protocol}://{address}"))
}

/// What is wrong with a URI, with the scheme that the command has besides those of the protocol's library.
pub(super) fn uri_error(error: UriError) -> String {
    match error {
        UriError::UnknownScheme(_) => format!("{error}, nor nbd+ssh"),
        _ => error.to_string(),
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
        for text in [
            "nbd://a",
            "NBD://a",
            "htp://x",
            "nbd+unix:///?socket=/a",
            "a-b.c://",
            "nbd:a",
            "nbds:a:1",
            "Nbd+Unix:/a",
            "nbds+vsock:1:2",
            "nbd:",
        ] {
            assert!(is_uri(OsStr::new(text)), "{text}");
        }
        for text in [
            "./nbd://a",
            "./nbd:a",
            "/a://b",
            "://a",
            "1a://b",
            "a b://c",
            "a:1",
            "nbdx:a",
            "nbd",
            "nbd+unix",
            "disk.img",
            "",
        ] {
            assert!(!is_uri(OsStr::new(text)), "{text}");
        }
    }

    #[test]
    fn addresses_are_known_and_become_uris() {
        for (text, meant) in [
            ("localhost:10809", "nbd://localhost:10809"),
            ("10.0.0.1:1", "nbd://10.0.0.1:1"),
            ("my-host.example:65535/a/b", "nbd://my-host.example:65535/a/b"),
            ("[::1]:10809", "nbd://[::1]:10809"),
            ("[::ffff:1.2.3.4]:10809/x", "nbd://[::ffff:1.2.3.4]:10809/x"),
            ("nbd:localhost:10809", "nbd://localhost:10809"),
            ("NBD:/localhost:10809", "nbd://localhost:10809"),
            ("nbd:unix:/tmp/socket", "nbd+unix:///?socket=/tmp/socket"),
            ("nbds:localhost:10809", "nbds://localhost:10809"),
            ("NBDS:unix:/tmp/socket", "nbds+unix:///?socket=/tmp/socket"),
        ] {
            assert_eq!(meant_uri(OsStr::new(text)).as_deref(), Some(meant), "{text}");
            meant.parse::<nbd_blocking::client::Uri>().unwrap();
        }
        for text in [
            "disk.img",
            "./localhost:10809",
            "/a:1",
            "a:",
            ":1",
            "a:65536",
            "a:+1",
            "a:1b",
            "a b:1",
            "a:b:1",
            "[a]:1",
            "[fe80::1%eth0]:1",
            "nbds://localhost:1/?tls-verify-peer=false",
            "nbd://localhost:99999",
            "unix:/a",
            "nbd:a",
            "",
        ] {
            assert_eq!(meant_uri(OsStr::new(text)), None, "{text}");
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
