//! What a command line says that there is not, and what was meant.
//!
//! The parser's own tips go by how many letters two words share at about the same place: it takes `mpa` for `compare`
//! rather than for `map`.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::{help, spelling};

/// The error with the tips for the nearest words, if there are any; otherwise with the tips that it had. `words` are those
/// of the command line.
pub(crate) fn with_nearest(mut error: clap::Error, words: &[OsString]) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let Some(given) = text(ContextKind::InvalidSubcommand) else { return error };
            let command = help::command();
            let known = within(&command, words).get_subcommands();
            let known = known.filter(|one| !one.is_hide_set()).map(Command::get_name);
            let nearest = spelling::nearest(&given, known);
            if !nearest.is_empty() {
                let nearest = nearest.into_iter().map(str::to_owned).collect();
                error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(nearest));
            }
        }
        ErrorKind::UnknownArgument => {
            let Some(given) = text(ContextKind::InvalidArg) else { return error };
            let Some(given) = given.strip_prefix("--") else { return error };
            let given = given.split_once('=').map_or(given, |(name, _)| name);
            let command = help::command();
            let known = within(&command, words).get_arguments();
            let known = known.filter(|one| !one.is_hide_set());
            let known =
                known.flat_map(|one| one.get_long_and_visible_aliases().unwrap_or_default());
            if let [nearest, ..] = spelling::nearest(given, known)[..] {
                let nearest = ContextValue::String(format!("--{nearest}"));
                error.insert(ContextKind::SuggestedArg, nearest);
            }
        }
        ErrorKind::InvalidValue => {
            let Some(given) = text(ContextKind::InvalidValue) else { return error };
            let known = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(known)) => known.clone(),
                _ => return error,
            };
            let nearest = spelling::nearest(&given, known.iter().map(String::as_str));
            if let [nearest, ..] = nearest[..] {
                let nearest = ContextValue::String(nearest.to_owned());
                error.insert(ContextKind::SuggestedValue, nearest);
            }
        }
        _ => {}
    }
    error
}

/// The innermost command that the line begins with.
fn within<'a>(mut command: &'a Command, words: &[OsString]) -> &'a Command {
    for word in words {
        match command.find_subcommand(word) {
            Some(inner) => command = inner,
            None => break,
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use nbd_testkit::{Random, cases};

    use super::*;
    use crate::spelling::tests::misspelt;

    /// What is said of a line that is refused.
    fn said(line: &[&str]) -> Option<String> {
        let words: Vec<OsString> = line.iter().map(OsString::from).collect();
        let whole = [OsString::from("nbd")].into_iter().chain(words.clone());
        let error = help::command().try_get_matches_from(whole).err()?;
        Some(with_nearest(error, &words).to_string())
    }

    /// Commands and those within them, by the words that lead there.
    fn commands(command: &Command, line: &[String], found: &mut Vec<Vec<String>>) {
        for one in command.get_subcommands().filter(|one| one.get_name() != "help") {
            let line = [line, &[one.get_name().to_owned()]].concat();
            commands(one, &line, found);
            found.push(line);
        }
    }

    fn of<'a, T>(random: &mut Random, these: &'a [T]) -> &'a T {
        &these[usize::try_from(random.below(these.len() as u64)).unwrap()]
    }

    #[test]
    fn a_command_with_one_mistake_is_among_the_tips() {
        let mut known = Vec::new();
        commands(&help::command(), &[], &mut known);
        assert!(known.len() > 20, "{known:?}");
        cases(2000, |random| {
            let line = of(random, &known);
            let (name, before) = line.split_last().unwrap();
            let word = misspelt(random, name);
            let also = [before, std::slice::from_ref(&word)].concat();
            // Another command, an option, or an argument of the command itself.
            if known.contains(&also) || word.starts_with('-') {
                return;
            }
            let line: Vec<&str> = also.iter().map(String::as_str).collect();
            let Some(text) = said(&line) else { return };
            if text.contains("unrecognized subcommand") {
                assert!(text.contains(&format!("'{name}'")), "{line:?} for {name}: {text}");
            }
        });
        assert!(said(&["mpa"]).unwrap().contains("a similar subcommand exists: 'map'"));
        assert!(said(&["sevre"]).unwrap().contains("'serve'"));
    }

    #[test]
    fn an_option_with_one_mistake_is_the_tip_or_one_as_near_is() {
        let command = help::command();
        let commands: Vec<_> = command.get_subcommands().collect();
        cases(1000, |random| {
            let command = of(random, &commands);
            let longs: Vec<_> = command.get_arguments().filter_map(|one| one.get_long()).collect();
            if longs.is_empty() {
                return;
            }
            let long = *of(random, &longs);
            let word = format!("--{}", misspelt(random, long));
            let Some(text) = said(&[command.get_name(), &word]) else { return };
            if text.contains("unexpected argument") {
                assert!(
                    text.contains("a similar argument exists: '--"),
                    "{word} for {long}: {text}"
                );
            }
        });
        let text = said(&["bench", "--lenght=1", "nbd://h"]).unwrap();
        assert!(text.contains("'--length'"), "{text}");
        let text = said(&["bench", "--rw", "raed", "nbd://h"]).unwrap();
        assert!(text.contains("'read'"), "{text}");
    }
}
