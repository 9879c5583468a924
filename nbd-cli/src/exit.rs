//! Exit codes, and the messages that go with them.

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::output;

/// The command line is not understood, as in `sysexits.h`.
const USAGE: u8 = 64;

/// The answer is no, as nbdinfo says it.
const NO: u8 = 2;

/// Why the command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is at fault: exit code 64.
    Usage(String),
    /// Something else is: exit code 1.
    Failed(String),
    /// Nothing failed, but the answer to the question is no: exit code 2, without a message.
    No,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }
}

/// What clap has to say: help and version are no errors.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            report(output::write(|_| Ok(error.print()?)))
        }
        _ => {
            // Nobody is left to be told when the terminal is gone.
            let _printed = error.print();
            ExitCode::from(USAGE)
        }
    }
}

/// Tells a failure, if there is one.
pub(crate) fn report(result: Result<(), Failure>) -> ExitCode {
    let (message, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::No) => return ExitCode::from(NO),
        Err(Failure::Usage(message)) => (message, ExitCode::from(USAGE)),
        Err(Failure::Failed(message)) => (message, ExitCode::FAILURE),
    };
    // Servers have their words in it, and might forge further lines.
    let _printed = writeln!(std::io::stderr(), "nbd: {}", output::printable(&message));
    code
}
