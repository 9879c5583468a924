//! The command line with what `--help` says beyond the declarations: examples, and exit statuses.

use core::fmt::Write;

use clap::{Command, CommandFactory};

use crate::{exit, man};

/// The command line as it is parsed. `-h` stays short.
pub(crate) fn command() -> Command {
    let command = crate::Cli::command();
    let names: Vec<String> =
        command.get_subcommands().map(|one| one.get_name().to_owned()).collect();
    let command = names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(&name, |one| {
            let one = with_negative_values(one);
            match one.get_after_help() {
                // Its own examples.
                Some(_) => one,
                None => one.after_long_help(examples(&name)),
            }
        })
    });
    command.after_long_help(format!("{}\n\n{}", examples(crate::NAME), exit_statuses()))
}

/// A number with a minus behind an option is its value, and refused in the words of that option rather than as an option
/// that there is not.
fn with_negative_values(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let is_option = argument.get_long().is_some() && argument.get_action().takes_values();
        argument.allow_negative_numbers(is_option)
    });
    command.mut_subcommands(with_negative_values)
}

fn examples(command: &str) -> String {
    let mut text = String::from("Examples:");
    for (does, line) in man::examples(command) {
        // Writing to a string does not fail.
        let _ = write!(text, "\n  # {}\n  {line}", does.trim_end_matches(':'));
    }
    text
}

fn exit_statuses() -> String {
    let mut text = String::from("Exit status:");
    let width = exit::CODES.iter().map(|(code, _)| code.len()).max().unwrap_or(0);
    for (code, meaning) in exit::CODES {
        let _ = write!(text, "\n  {code:<width$}  {meaning}");
    }
    text
}
