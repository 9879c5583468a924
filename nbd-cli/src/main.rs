//! The `nbd` command. Arguments, output and exit codes; the protocol and storage are the libraries' business.

mod exit;
mod log;
mod quantity;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Network block devices: serve disks over NBD.
#[derive(Debug, Parser)]
#[command(name = "nbd", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Arguments),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    let result = match cli.command {
        Command::Serve(arguments) => serve::run(arguments),
    };
    exit::report(result)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
