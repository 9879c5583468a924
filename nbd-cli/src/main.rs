//! The `nbd` command. Arguments, output and exit codes; the protocol and storage are the libraries' business.

mod ask;
#[cfg(target_os = "linux")]
mod attach;
mod bench;
mod bitmap;
#[cfg(feature = "tls")]
mod cert;
mod colour;
mod completion;
mod control;
mod copy;
mod descriptor;
mod dump;
mod exit;
mod export;
mod fault;
mod feature;
mod first_signal;
mod habits;
mod help;
mod ignored_signals;
mod info;
mod introduction;
mod journal;
mod json;
mod list;
mod log;
mod man;
mod map;
mod new_size;
mod output;
mod overlay;
// Those that the tests of examples leave out.
#[cfg(all(test, feature = "tls", target_os = "linux"))]
mod pages;
mod path_error;
mod patient;
mod private_folder;
#[cfg(feature = "tls")]
mod psk;
mod quantity;
mod resize;
mod retries;
mod serve;
mod spelling;
mod status;
mod stderr;
mod store;
mod sysfs;
mod target;
mod tips;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
mod units;
#[cfg(feature = "volume")]
mod volume;
mod waiting;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{FromArgMatches, Parser, Subcommand};
use rustix::process::Signal;

/// What `--version` calls us, whatever the subcommand.
const NAME: &str = "nbd";

/// Network block devices: serve disks over NBD, and look at, copy, measure and resize those of any server.
#[derive(Debug, Parser)]
#[command(name = NAME, version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(display_name = NAME)]
    Serve(Box<serve::Arguments>),
    #[command(display_name = NAME)]
    Info(info::Arguments),
    #[command(display_name = NAME)]
    List(list::Arguments),
    #[command(display_name = NAME)]
    Map(map::Arguments),
    #[command(display_name = NAME)]
    Dump(dump::Arguments),
    #[command(display_name = NAME)]
    Copy(copy::Arguments),
    #[command(display_name = NAME)]
    Compare(copy::CompareArguments),
    #[command(display_name = NAME)]
    Bench(bench::Arguments),
    #[command(display_name = NAME)]
    Resize(resize::Arguments),
    #[command(display_name = NAME)]
    Overlay(overlay::Arguments),
    #[command(display_name = NAME)]
    Bitmap(bitmap::Arguments),
    #[command(display_name = NAME)]
    Export(export::Arguments),
    #[command(display_name = NAME)]
    Reload(export::ReloadArguments),
    #[command(display_name = NAME)]
    Status(status::Arguments),
    #[command(display_name = NAME)]
    Disconnect(status::DisconnectArguments),
    #[cfg(target_os = "linux")]
    #[command(display_name = NAME)]
    Attach(attach::Arguments),
    #[cfg(target_os = "linux")]
    #[command(display_name = NAME)]
    Detach(attach::DetachArguments),
    #[cfg(target_os = "linux")]
    #[command(display_name = NAME)]
    Devices(attach::DevicesArguments),
    #[cfg(feature = "tls")]
    #[command(display_name = NAME)]
    Cert(cert::Arguments),
    #[cfg(feature = "tls")]
    #[command(display_name = NAME)]
    Psk(psk::Arguments),
    #[cfg(feature = "volume")]
    #[command(display_name = NAME)]
    Volume(volume::Arguments),
    #[command(display_name = NAME)]
    Completion(completion::Arguments),
    #[command(display_name = NAME)]
    Man(man::Arguments),
}

impl Command {
    /// Obeys NBD_LOG: raises the verbosity of commands that have one, and starts the log of others.
    fn log(&mut self) -> Result<(), exit::Failure> {
        let Some(verbosity) = log::of_environment()? else { return Ok(()) };
        match self {
            Self::Serve(arguments) => arguments.verbose = arguments.verbose.max(verbosity),
            Self::Copy(arguments) => arguments.raise_verbosity(verbosity),
            Self::Info(_)
            | Self::List(_)
            | Self::Map(_)
            | Self::Dump(_)
            | Self::Compare(_)
            | Self::Bench(_)
            | Self::Resize(_) => log::start(verbosity)?,
            _ => {}
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    // A file that has reached the limit of its size fails the write that ran into it, rather than end the process. What
    // can't be registered changes nothing.
    let _ignored = signal_hook::flag::register(Signal::XFSZ.as_raw(), Arc::default());
    let words = target::arguments(std::env::args_os());
    let parsed = help::command().try_get_matches_from(words);
    let mut command = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli.command,
        Err(error) => return exit::usage(error),
    };
    if let Err(failure) = command.log() {
        return exit::report(Err(failure));
    }
    let result = match command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Info(arguments) => info::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Map(arguments) => map::run(&arguments),
        Command::Dump(arguments) => dump::run(&arguments),
        Command::Copy(arguments) => copy::run(&arguments),
        Command::Compare(arguments) => copy::compare(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Resize(arguments) => resize::run(&arguments),
        Command::Overlay(arguments) => overlay::run(&arguments),
        Command::Bitmap(arguments) => bitmap::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Reload(arguments) => export::reload(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Disconnect(arguments) => status::disconnect(&arguments),
        #[cfg(target_os = "linux")]
        Command::Attach(arguments) => attach::run(&arguments),
        #[cfg(target_os = "linux")]
        Command::Detach(arguments) => attach::detach(&arguments),
        #[cfg(target_os = "linux")]
        Command::Devices(arguments) => attach::devices(&arguments),
        #[cfg(feature = "tls")]
        Command::Cert(arguments) => cert::run(&arguments),
        #[cfg(feature = "tls")]
        Command::Psk(arguments) => psk::run(&arguments),
        #[cfg(feature = "volume")]
        Command::Volume(arguments) => volume::run(&arguments),
        Command::Completion(arguments) => completion::run(arguments),
        Command::Man(arguments) => man::run(&arguments),
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

    #[test]
    fn the_readme_begins_with_all_commands() {
        let page = include_str!("../README.md");
        let list = page.split("\n\n").find(|part| part.starts_with("The `nbd` command:")).unwrap();
        let listed: Vec<_> = list.split('`').skip(1).step_by(2).collect();
        let cli = super::Cli::command();
        for subcommand in cli.get_subcommands() {
            let name = subcommand.get_name();
            assert!(listed.contains(&name), "{name} is not in {list}");
        }
        // In a build that has all.
        if cfg!(all(feature = "tls", target_os = "linux")) {
            for name in listed.iter().filter(|name| !["nbd", "volume"].contains(*name)) {
                assert!(cli.find_subcommand(name).is_some(), "there is no nbd {name}");
            }
        }
    }

    /// Gives each option of a command, and of those below it, values that may be none.
    fn ask(command: &clap::Command, line: &[&str], asked: &mut usize) {
        for subcommand in command.get_subcommands() {
            ask(subcommand, &[line, &[subcommand.get_name()]].concat(), asked);
        }
        for argument in command.get_arguments().filter(|known| known.get_action().takes_values()) {
            let Some(long) = argument.get_long() else { continue };
            for value in ["x", "", "-1", "1.5", "99999999999999999999999999999"] {
                let word = format!("--{long}={value}");
                let line = [line, &[&word, "nbd://h"]].concat();
                let parsed = super::Cli::command().try_get_matches_from(&line);
                let text = parsed.map_or_else(|error| error.to_string(), |_| String::new());
                for words in
                    ["invalid digit", "invalid float", "to fit", "cannot parse", "is not in "]
                {
                    assert!(!text.contains(words), "{line:?}: {text}");
                }
                *asked += 1;
            }
        }
    }

    /// A word, and numbers that fit no type, as the value of each option: what is wrong is said in words for people.
    #[test]
    fn no_option_answers_with_the_words_of_a_parser_for_programs() {
        let mut asked = 0;
        ask(&super::Cli::command(), &["nbd"], &mut asked);
        assert!(asked > 100, "{asked}");
    }
}
