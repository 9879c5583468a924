//! Brackets on the command line.

use std::ffi::{OsStr, OsString};
use std::fmt;

use clap::{Arg, Command};
use nbd_blocking::client::UriError;

use crate::exit::Failure;
use crate::{help, output};

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
/// for ours, which come before that, wherever they stood; or in front of the first number with a minus after `resize`, which
/// is a size and no option. `nbd help --help` is what `nbd --help` is.
pub(crate) fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.into_iter().collect();
    if matches!(&arguments[..], [_, help, flag] if help == "help" && (flag == "--help" || flag == "-h"))
    {
        arguments.remove(1);
    }
    let ends = arguments.iter().position(|word| word == "--").unwrap_or(arguments.len());
    let resizes = arguments.get(1).is_some_and(|word| word == "resize");
    let is_negative = |word: &OsStr| {
        let bytes = word.as_encoded_bytes();
        resizes && matches!(bytes, [b'-', digit, ..] if digit.is_ascii_digit())
    };
    let index = arguments[..ends].iter().position(|word| word == "[" || is_negative(word));
    let Some(index) = index else { return arguments };
    let mut places = arguments.split_off(index);
    if places[0] == "[" {
        let command = help::command();
        let subcommand = arguments.get(1).and_then(|name| command.find_subcommand(name));
        if let Some(subcommand) = subcommand {
            let is_option = |word: &OsStr| {
                word.len() > 1 && word.as_encoded_bytes()[0] == b'-' && !is_negative(word)
            };
            let options;
            (options, places) = outside_of_brackets(places, is_option, subcommand);
            arguments.extend(options);
        }
    }
    arguments.push("--".into());
    arguments.append(&mut places);
    arguments
}

/// Takes out the options that stand behind or between commands in brackets, with their values.
fn outside_of_brackets(
    words: Vec<OsString>,
    is_option: impl Fn(&OsStr) -> bool,
    command: &Command,
) -> (Vec<OsString>, Vec<OsString>) {
    let (mut options, mut places) = (Vec::new(), Vec::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "[" {
            places.push(word);
            // One that has no end is reported elsewhere.
            for inner in words.by_ref() {
                let ends = inner == "]";
                places.push(inner);
                if ends {
                    break;
                }
            }
        } else if word == "--" {
            places.extend(words.by_ref());
        } else if is_option(&word) {
            let value = takes_next(command, &word).then(|| words.next()).flatten();
            options.push(word);
            options.extend(value);
        } else {
            places.push(word);
        }
    }
    (options, places)
}

/// Whether the word behind an option is its value.
fn takes_next(command: &Command, option: &OsStr) -> bool {
    let Some(text) = option.to_str() else { return false };
    let takes_value = |argument: &Arg| {
        let can_be_left_out = argument.get_num_args().is_some_and(|count| count.min_values() == 0);
        argument.get_action().takes_values()
            && !argument.is_require_equals_set()
            && !can_be_left_out
    };
    if let Some(name) = text.strip_prefix("--") {
        let is_named = |argument: &&Arg| {
            argument.get_long() == Some(name)
                || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        };
        return command.get_arguments().find(is_named).is_some_and(takes_value);
    }
    // The first one of a group that takes a value has the rest of the group for it, if there is any.
    let mut letters = text.chars().skip(1);
    while let Some(letter) = letters.next() {
        let is_short = |argument: &&Arg| argument.get_short() == Some(letter);
        if command.get_arguments().find(is_short).is_some_and(takes_value) {
            return letters.next().is_none();
        }
    }
    false
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
            ("nbd resize [ a ] -- -1G", "nbd resize -- [ a ] -1G"),
            ("nbd resize [ a ] -1G --yes", "nbd resize --yes -- [ a ] -1G"),
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
        for (given, taken) in [
            ("nbd copy [ a -b ] --verify", "nbd copy --verify -- [ a -b ]"),
            ("nbd copy [ a ] out -S 0 -v", "nbd copy -S 0 -v -- [ a ] out"),
            (
                "nbd copy [ a ] --progress [ b -c ] -vS 0",
                "nbd copy --progress -vS 0 -- [ a ] [ b -c ]",
            ),
            ("nbd copy [ a ] -S0 - --connections 2", "nbd copy -S0 --connections 2 -- [ a ] -"),
            ("nbd copy [ a ] -- --verify", "nbd copy -- [ a ] --verify"),
            ("nbd info [ a --json", "nbd info -- [ a --json"),
        ] {
            assert_eq!(arguments(words(given)), words(taken), "{given}");
        }
        for text in ["nbd info -- [ a -b ]", "nbd info --json nbd://a"] {
            assert_eq!(arguments(words(text)), words(text));
        }
    }
}
