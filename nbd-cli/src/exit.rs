//! Exit codes, and the messages that go with them.

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::{habits, introduction, log, output, stderr, target, tips};

/// The command line is not understood, as in `sysexits.h`.
const USAGE: u8 = 64;

/// The answer is no, as nbdinfo says it.
const NO: u8 = 2;

/// Two disks differ, as cmp and qemu-img say it.
const DIFFER: u8 = 1;

/// Two disks could not be compared.
const UNDECIDED: u8 = 2;

/// A server ended before it had finished the requests in flight.
const CUT_OFF: u8 = 3;

/// A configuration file is at fault, as in `sysexits.h`.
const CONFIG: u8 = 78;

/// A fault of this program, as in `sysexits.h`.
pub(crate) const FAULT: u8 = 70;

/// The exit statuses, and what they mean, for the help and the manual pages.
pub(crate) const CODES: &[(&str, &str)] = &[
    (
        "0",
        "Success; the orderly end of a server; the answer yes of nbd info --can, --is and --has.",
    ),
    ("1", "Failure; for nbd bench also if a request failed. nbd compare: the disks differ."),
    ("2", "The answer no of nbd info --can, --is and --has. nbd compare: failure."),
    ("3", "nbd serve: requests were cut off at the end of --drain-timeout."),
    ("64", "The command line is at fault."),
    ("70", "A fault of nbd itself."),
    ("78", "nbd serve: the configuration file is at fault; a message shows where."),
    ("any", "nbd serve --run: that of the command."),
    (
        "128 + N",
        "Signal N ended the command. nbd serve: a second signal, 0.2 s after the first one or later, which ends it at once; the first one is an orderly end, with 0 or 3.",
    ),
];

/// Why the command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is at fault: exit code 64.
    Usage(String),
    /// A configuration file is at fault: exit code 78.
    Config(Vec<Fault>),
    /// Something else is: exit code 1.
    Failed(String),
    /// Several things are, each with a message: exit code 1.
    AllFailed(Vec<String>),
    /// Requests in flight were not finished in time: exit code 3.
    CutOff(String),
    /// A command that was run for the user failed with this exit code, which becomes ours; it has said why.
    Status(u8),
    /// Nothing failed, but the answer to the question is no: exit code 2, without a message.
    No,
    /// Two disks differ, which was written on standard output: exit code 1.
    Differ,
    /// It could not be found out whether they do: exit code 2.
    Undecided(String),
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where, and what.
    pub(crate) heading: String,
    /// The line of the file, with marks below, fit to be shown.
    pub(crate) excerpt: Vec<String>,
}

impl Fault {
    /// A fault of no line.
    pub(crate) fn of_text(text: &str) -> Self {
        Self { heading: text.to_owned(), excerpt: Vec::new() }
    }
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// All of them at once: the command line or the file is at fault if one of them says so.
    ///
    /// # Errors
    /// If there is one.
    pub(crate) fn all(failures: Vec<Self>) -> Result<(), Self> {
        let usage = failures.iter().position(|failure| matches!(failure, Self::Usage(_)));
        if let Some(index) = usage {
            return Err(failures.into_iter().nth(index).unwrap_or(Self::No));
        }
        let is_fault = failures.iter().any(|failure| matches!(failure, Self::Config(_)));
        let faults: Vec<Fault> = failures.into_iter().flat_map(Self::faults).collect();
        match faults.len() {
            0 => Ok(()),
            _ if is_fault => Err(Self::Config(faults)),
            1 => Err(Self::Failed(faults.into_iter().map(|fault| fault.heading).collect())),
            _ => Err(Self::AllFailed(faults.into_iter().map(|fault| fault.heading).collect())),
        }
    }

    /// What is wrong, each by itself.
    fn faults(self) -> Vec<Fault> {
        match self {
            Self::Config(faults) => faults,
            Self::AllFailed(texts) => texts.iter().map(|text| Fault::of_text(text)).collect(),
            other => vec![Fault::of_text(other.text())],
        }
    }

    /// The same failure of a command whose exit code 1 is an answer.
    pub(crate) fn undecided(self) -> Self {
        match self {
            Self::Failed(text) => Self::Undecided(text),
            other => other,
        }
    }

    /// The message, or the first one; empty where there is none.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Usage(text) | Self::Failed(text) | Self::CutOff(text) | Self::Undecided(text) => {
                text
            }
            Self::Config(faults) => faults.first().map_or("", |fault| &fault.heading),
            Self::AllFailed(texts) => texts.first().map_or("", String::as_str),
            Self::Status(_) | Self::No | Self::Differ => "",
        }
    }
}

/// Reports what clap found: help and version are no errors.
pub(crate) fn usage(error: clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            report(output::write(|_| Ok(error.print()?)))
        }
        // It does not say which argument, or that file names need not be UTF-8.
        ErrorKind::InvalidUtf8 => {
            let argument = std::env::args_os().skip(1).find(|argument| argument.to_str().is_none());
            report(Err(not_utf8(&argument.unwrap_or_default())))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if std::env::args_os().len() < 2 => {
            introduction::show();
            ExitCode::from(USAGE)
        }
        _ => {
            // The exit status remains when the terminal is gone.
            let words: Vec<_> = std::env::args_os().skip(1).collect();
            let subcommand = words.first().map(|word| word.to_string_lossy()).unwrap_or_default();
            let hint = habits::hint(&subcommand, words.get(1..).unwrap_or_default(), &error);
            let error = match hint {
                Some(_) => habits::without_tips(error),
                None => tips::with_nearest(habits::without_misleading_tip(error), &words),
            };
            let _printed = error.print();
            if let Some(hint) = hint {
                stderr::say_error(&hint, &[]);
            }
            ExitCode::from(USAGE)
        }
    }
}

/// A text that has to be UTF-8, such as the name of an export.
pub(crate) fn not_utf8(text: &OsStr) -> Failure {
    Failure::usage(format!(
        "{} is not UTF-8; only paths may contain other bytes",
        output::quoted(text)
    ))
}

/// Reports a failure, if there is one, after what was logged. Never returns if a signal ends this process.
pub(crate) fn report(result: Result<(), Failure>) -> ExitCode {
    target::conclude();
    let (message, code) = match result {
        Ok(()) => {
            log::flush();
            return ExitCode::SUCCESS;
        }
        Err(Failure::No) => return ExitCode::from(NO),
        Err(Failure::Differ) => return ExitCode::from(DIFFER),
        Err(Failure::Status(code)) => {
            log::flush();
            return ExitCode::from(code);
        }
        Err(Failure::Config(faults)) => {
            faults.iter().for_each(|fault| stderr::say_error(&fault.heading, &fault.excerpt));
            return ExitCode::from(CONFIG);
        }
        Err(Failure::AllFailed(messages)) => {
            messages.iter().for_each(|message| stderr::say_error(message, &[]));
            return ExitCode::FAILURE;
        }
        Err(Failure::Usage(message)) => (message, ExitCode::from(USAGE)),
        Err(Failure::Failed(message)) => (message, ExitCode::FAILURE),
        Err(Failure::Undecided(message)) => (message, ExitCode::from(UNDECIDED)),
        Err(Failure::CutOff(message)) => (message, ExitCode::from(CUT_OFF)),
    };
    stderr::say_error(&message, &[]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_in_the_table_and_the_page_has_the_same_one() {
        for code in [NO, CUT_OFF, USAGE, FAULT, CONFIG, 0, 1] {
            let text = code.to_string();
            assert_eq!(CODES.iter().filter(|(code, _)| *code == text).count(), 1, "{text}");
        }
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/exit-status.md");
        let page = std::fs::read_to_string(page).unwrap();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
        let expected: Vec<String> =
            CODES.iter().map(|(code, meaning)| format!("| {code} | {meaning} |")).collect();
        assert_eq!(rows, expected);
    }
}
