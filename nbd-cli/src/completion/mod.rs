//! `nbd completion`: completes command lines in shells.
//!
//! The scripts know nothing of the command line: they hand its words to `nbd completion --words -- LINE`, which answers one
//! candidate a line, with a tab and a description behind it. A script that was installed once fits every later version.

mod values;

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, complete};

use crate::exit::Failure;
use crate::output;

/// Write the script that completes nbd's command lines in a shell.
///
/// It completes commands, options, their values, files, and the exports of an nbd:// URI, for which it asks the server.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bash: nbd completion bash > ~/.local/share/bash-completion/completions/nbd
  zsh:  nbd completion zsh > ~/.zfunc/_nbd     (with fpath+=~/.zfunc in front of compinit in ~/.zshrc)
  fish: nbd completion fish > ~/.config/fish/completions/nbd.fish
  for this shell only, with bash or zsh: source <(nbd completion bash)
Folders that are not there have to be made first, by mkdir -p. The first line needs the package bash-completion; without it,
the last one does the same in ~/.bashrc.")]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_enum, value_name = "bash|zsh|fish", required = true)]
    shell: Option<Shell>,

    /// For the scripts: write what completes the last of the words after --
    #[arg(long, hide = true, conflicts_with = "shell")]
    words: bool,

    /// The words of the command line; the first is the name of the program
    #[arg(hide = true, last = true, requires = "words", value_name = "WORD")]
    line: Vec<OsString>,
}

/// The shells that there is a script for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// bash 4 or newer
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

impl Shell {
    const fn script(self) -> &'static str {
        match self {
            Self::Bash => include_str!("nbd.bash"),
            Self::Zsh => include_str!("nbd.zsh"),
            Self::Fish => include_str!("nbd.fish"),
        }
    }
}

/// `nbd completion`.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let text = match arguments.shell {
        Some(shell) => shell.script().as_bytes().to_vec(),
        None => lines(&candidates(arguments.line, env::current_dir().ok().as_deref())),
    };
    output::write(|out| Ok(out.write_all(&text)?))
}

/// What completes the last of the words; the first one is the name of the program. Relative paths are looked for in the
/// folder.
fn candidates(words: Vec<OsString>, folder: Option<&Path>) -> Vec<CompletionCandidate> {
    let last = words.len().saturating_sub(1);
    // Nothing completes what can't be understood so far. A person who presses a key has no use for an error.
    complete(&mut command(), words, last, folder).unwrap_or_default()
}

/// The command line, and what its values can be where that can't be seen from their types.
fn command() -> clap::Command {
    type Values = fn(&std::ffi::OsStr) -> Vec<CompletionCandidate>;
    const DYNAMIC: &[(&str, &str, Values)] = &[
        ("info", "words", values::server),
        ("list", "words", values::server),
        ("map", "words", values::server),
        ("dump", "words", values::server),
        ("bench", "words", values::server),
        ("resize", "words", values::server),
        ("copy", "words", values::server_or_path),
        ("compare", "words", values::server_or_path),
        #[cfg(target_os = "linux")]
        ("attach", "words", values::server),
        ("serve", "backends", values::backend),
        ("serve", "layer", values::layer),
        ("info", "can", values::feature),
        ("info", "cannot", values::feature),
    ];
    let known = crate::Cli::command();
    DYNAMIC.iter().fold(known, |command, (subcommand, argument, values)| {
        command.mut_subcommand(subcommand, |subcommand| {
            subcommand.mut_arg(argument, |arg| arg.add(ArgValueCompleter::new(*values)))
        })
    })
}

/// The candidates for a script. One that a line can't hold, or that a terminal would obey, is left out.
fn lines(candidates: &[CompletionCandidate]) -> Vec<u8> {
    let mut text = Vec::new();
    for candidate in candidates {
        let value = candidate.get_value().as_bytes();
        if String::from_utf8_lossy(value).contains(char::is_control) {
            continue;
        }
        text.extend_from_slice(value);
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        if let Some(first) = help.lines().next().filter(|line| !line.is_empty()) {
            text.push(b'\t');
            text.extend_from_slice(output::printable(first).as_bytes());
        }
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(words: &[&str]) -> Vec<String> {
        complete_in(None, words)
    }

    fn complete_in(folder: Option<&Path>, words: &[&str]) -> Vec<String> {
        let words = ["nbd"].iter().chain(words).map(OsString::from).collect();
        let text = String::from_utf8(lines(&candidates(words, folder))).unwrap();
        text.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn the_arguments_whose_values_are_looked_up_exist() {
        command().debug_assert();
    }

    #[test]
    fn every_subcommand_and_every_option_is_a_candidate() {
        let offered = complete(&[""]);
        for subcommand in crate::Cli::command().get_subcommands() {
            let name = subcommand.get_name();
            assert!(offered.contains(&name.to_owned()), "{name} is not in {offered:?}");
            let options = complete(&[name, "--"]);
            for argument in subcommand.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let Some(long) = argument.get_long() else { continue };
                assert!(options.contains(&format!("--{long}")), "{name} --{long}: {options:?}");
            }
        }
    }

    /// Behind an equals sign as behind a space, and nothing else.
    #[test]
    fn an_option_with_known_values_is_completed_by_these_alone() {
        fn visit(command: &clap::Command, words: &[&str]) -> usize {
            let mut options = 0;
            for option in command.get_arguments() {
                let Some(long) = option.get_long() else { continue };
                let known = option.get_possible_values();
                let known: Vec<_> = known.iter().map(|value| value.get_name()).collect();
                if known.is_empty() || !option.get_action().takes_values() {
                    continue;
                }
                let typed = format!("--{long}=");
                let words = [words, &[&*typed]].concat();
                let found = complete(&words);
                let expected: Vec<_> =
                    known.iter().map(|value| format!("--{long}={value}")).collect();
                assert_eq!(found, expected, "{words:?}");
                options += 1;
            }
            let below = command.get_subcommands().filter(|one| one.get_name() != "help");
            options
                + below.map(|one| visit(one, &[words, &[one.get_name()]].concat())).sum::<usize>()
        }
        assert!(visit(&command(), &[]) > 1);
    }

    #[test]
    fn features_and_layers_are_offered_and_can_be_used() {
        let typed = |words: [&str; 3]| complete(&words);
        for flag in ["--can", "--is", "--has", "--cannot"] {
            let features = typed(["info", flag, ""]);
            assert!(features.len() > 15 && features.contains(&"read-only".into()), "{features:?}");
            for feature in features {
                let line = ["nbd", "info", flag, &feature, "nbd://h"];
                command().try_get_matches_from(line).unwrap();
            }
        }
        assert_eq!(typed(["info", "--can", "fu"]), ["fua"]);
        assert_eq!(complete(&["info", "--can=fu"]), ["--can=fua"]);
        let layers = typed(["serve", "--layer", ""]);
        assert!(
            layers.contains(&"overlay".into()) && layers.contains(&"rate:".into()),
            "{layers:?}"
        );
        for layer in layers {
            // One with a colon needs a value.
            let parsed = layer.parse::<crate::serve::Layer>();
            assert_eq!(parsed.is_err(), layer.ends_with(':'), "{layer}: {parsed:?}");
        }
        assert_eq!(typed(["serve", "--layer", "ov"]), ["overlay"]);
        // Behind the name are a path and numbers.
        assert_eq!(typed(["serve", "--layer", "rate:1"]), [""; 0]);
    }

    /// Of options behind a space and behind `=`, and of positional arguments.
    #[test]
    fn every_path_is_completed_from_the_folder_and_from_the_root() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("two.toml"), "").unwrap();
        let absolute = folder.path().join("two.toml").into_os_string().into_string().unwrap();
        let paths = [("tw", "two.toml"), ("./t", "./two.toml")];
        let paths: Vec<_> =
            paths.into_iter().chain([(&absolute[..absolute.len() - 5], &*absolute)]).collect();
        fn visit(command: &clap::Command, words: &[&str], check: &mut dyn FnMut(&[&str], &str)) {
            let is_path = |argument: &&clap::Arg| {
                argument.get_value_hint() == clap::ValueHint::AnyPath && !argument.is_hide_set()
            };
            for argument in command.get_arguments().filter(is_path) {
                match (argument.get_long(), argument.get_index()) {
                    (Some(long), _) => {
                        check(&[words, &[&format!("--{long}")]].concat(), "");
                        check(words, &format!("--{long}="));
                    }
                    (None, Some(index)) => check(&[words, &vec!["x"; index - 1]].concat(), ""),
                    _ => (),
                }
            }
            for sub in command.get_subcommands() {
                visit(sub, &[words, &[sub.get_name()]].concat(), check);
            }
        }
        let mut seen = 0;
        let mut command = command();
        command.build();
        visit(&command, &[], &mut |words, option| {
            seen += 1;
            for (typed, whole) in &paths {
                let (typed, whole) = (format!("{option}{typed}"), format!("{option}{whole}"));
                let found = complete_in(Some(folder.path()), &[words, &[&typed]].concat());
                assert!(found.contains(&whole), "{words:?} {typed}: {found:?}");
            }
        });
        assert!(seen > 20, "{seen} arguments are paths");
    }

    #[test]
    fn what_a_terminal_would_obey_is_no_candidate() {
        let all = ["a", "b\nc", "d\u{1b}[2J", "e"].map(CompletionCandidate::new);
        assert_eq!(lines(&all), b"a\ne\n");
        let described = CompletionCandidate::new("a").help(Some("x\u{202e}\ny".into()));
        assert_eq!(lines(&[described]), b"a\tx\\u{202e}\n");
    }
}
