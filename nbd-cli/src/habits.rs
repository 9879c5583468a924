//! Hints for those whose hands know nbdkit, qemu-nbd, nbd-server, nbd-client or nbdinfo.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::feature;

/// What stands for a flag of another program: the subcommands in which it may be typed, the flag, what to do.
const FLAGS: &[(&str, &[&str], &str)] = &[
    ("serve", &["-f", "--foreground"], FOREGROUND),
    ("serve", &["--format", "--image-opts", "-l", "--load-snapshot"], AS_THEY_ARE),
    (
        "serve",
        &["--fork", "-b", "-d"],
        "nbd serve does not go to the background: start it by systemd, or with & and --pid-file",
    ),
    ("serve", &["-n", "--newstyle"], "newstyle is the default: leave it out"),
    ("serve", &["-o"], "--oldstyle for nbdkit's -o; --layer offset for qemu-nbd's"),
    (
        "serve",
        &["-4", "--ipv4-only", "-6", "--ipv6-only"],
        "give an address of that family: --ip-addr 127.0.0.1, or --ip-addr ::1",
    ),
    ("serve", &["--ipaddr", "--bind"], "--ip-addr ADDR"),
    ("serve", &["--exportname"], "--export-name NAME, or NAME= in front of what is to be served"),
    ("serve", &["-x"], "--export-name NAME, or NAME= in front of what is to be served"),
    ("serve", &["--filter", "--snapshot"], "--layer NAME"),
    ("serve", &["--readonly"], "--read-only"),
    ("serve", &["-k", "--socket"], "--unix PATH"),
    (
        "serve",
        &["-s", "--single"],
        "--stdio for one client on standard input and output; --max-connections 1 for one at a time",
    ),
    ("serve", &["--shared"], "--max-connections N"),
    ("serve", &["-t", "--persistent"], "the server stays when its clients have gone: leave it out"),
    ("serve", &["--threads"], "the number of threads follows the machine: leave it out"),
    ("serve", &["-P", "--pidfile"], "--pid-file PATH"),
    ("serve", &["-D", "--debug", "-T", "--trace"], "-v, twice for more"),
    (
        "serve",
        &["--log"],
        "messages go to standard error, and systemd's journal takes them from there: leave it out",
    ),
    ("serve", &["-B", "--bitmap"], "--track NAME"),
    (
        "serve",
        &["-u", "--user", "-g", "--group"],
        "start nbd serve as that user, by systemd or setpriv",
    ),
    ("serve", &["--exit-with-parent"], "--run COMMAND ends the server with the command"),
    ("serve", &["-c", "--connect"], "nbd attach URI gives a served disk a device"),
    ("serve", &["--disconnect"], "nbd detach DEVICE"),
    ("serve", &["-L", "--list"], "nbd list URI"),
    ("serve", &["--tls-creds", "--object"], "--tls require --tls-certificates DIR"),
    ("serve", &["--tls-authz"], "--tls-allow PATTERN"),
    ("serve", &["-C"], "--config FILE"),
    (
        "serve",
        &["--cache", "--nocache", "--aio", "--discard", "--detect-zeroes"],
        "there is nothing to choose: leave it out",
    ),
    ("bench", &["--iodepth"], "--depth N"),
    ("bench", &["--runtime"], "--time T"),
    ("bench", &["--numjobs"], "--connections N"),
    ("bench", &["--blocksize"], "--bs N"),
    ("bench", &["--size", "--filesize"], "--length N"),
    ("bench", &["--rwmixread"], "--read-percent N"),
    ("bench", &["--randseed"], "--seed N"),
    ("bench", &["--output-format"], "--json"),
    (
        "compare",
        &["-f", "-F", "-T", "-s"],
        "disks are compared as they are, and by size, too: leave it out, or take --length N",
    ),
    (
        "compare",
        &["-b", "-l", "--print-bytes", "--verbose"],
        "nbd dump shows the bytes at the offset where disks differ: leave it out",
    ),
    (
        "copy",
        &["-f", "-O"],
        "disks are copied as they are: leave it out, with the format, for raw ones, and put [ qemu-nbd -f FORMAT FILE ] in \
         the place of others",
    ),
    ("copy", &["-n", "--target-is-zero"], "disks are copied as they are: leave it out"),
];

/// For nbdkit's and nbd-server's `-f`.
const FOREGROUND: &str = "nbd serve stays in the foreground: leave it out";

/// For qemu-nbd's `-f FORMAT`, and what belongs to it.
const AS_THEY_ARE: &str = "disks are served as they are, without image formats: leave it out, with the format, for raw ones; \
                           for qcow2 and others take qemu-nbd, or convert them as in docs/migrate.md";

/// The image formats of qemu.
const FORMATS: [&str; 13] = [
    "raw",
    "qcow2",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "luks",
    "parallels",
    "bochs",
    "cloop",
    "dmg",
];

/// Whether `-f` has the name of an image format behind it, in the same word or as the next.
fn has_format(words: &[OsString]) -> bool {
    let is_format = |text: &str| FORMATS.contains(&text);
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        match word.strip_prefix("-f") {
            Some("") => return words.next().is_some_and(|next| is_format(&next)),
            Some(rest) if is_format(rest.trim_start_matches('=')) => return true,
            _ => {}
        }
    }
    false
}

/// Commands that some builds don't have.
const FEATURES: &[(&[&str], feature::Missing)] =
    &[(&["volume"], feature::VOLUMES), (&["cert", "psk"], feature::TLS)];

/// What stands for a command of another program.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["nbdinfo"], "nbd info"),
    (&["nbdcopy", "cp", "convert", "clone"], "nbd copy"),
    (&["client", "connect", "nbd-client", "mount"], "nbd attach"),
    (&["disconnect-device", "umount"], "nbd detach"),
    (&["server", "nbdkit", "qemu-nbd", "nbd-server", "daemon"], "nbd serve"),
    (&["hexdump", "xxd", "cat"], "nbd dump"),
    (&["ls"], "nbd list"),
    (&["fio", "benchmark", "speed", "perf"], "nbd bench"),
    (&["cmp", "diff", "verify"], "nbd compare"),
];

/// The error of an option that there is not, without the tip to give it behind `--`, as if it were the name of a file.
pub(crate) fn without_misleading_tip(mut error: clap::Error) -> clap::Error {
    let is_misleading = |tip: &clap::builder::StyledStr| tip.to_string().contains("as a value");
    let Some(ContextValue::StyledStrs(tips)) = error.remove(ContextKind::Suggested) else {
        return error;
    };
    let tips: Vec<_> = tips.into_iter().filter(|tip| !is_misleading(tip)).collect();
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

/// A hint for a command line that clap refused; `words` are those behind the subcommand.
pub(crate) fn hint(subcommand: &str, words: &[OsString], error: &clap::Error) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let given = context(ContextKind::InvalidArg)?;
            let flag = given.split_once('=').map_or(given, |(flag, _)| flag);
            let known =
                |entry: &&(&str, &[&str], &str)| entry.0 == subcommand && entry.1.contains(&flag);
            let (_, _, text) = FLAGS.iter().find(known)?;
            let text = match *text {
                FOREGROUND if flag == "-f" && has_format(words) => AS_THEY_ARE,
                text => text,
            };
            Some(format!("for '{flag}': {text}"))
        }
        ErrorKind::InvalidSubcommand => {
            let given = context(ContextKind::InvalidSubcommand)?;
            if let Some((_, missing)) = FEATURES.iter().find(|(names, _)| names.contains(&given)) {
                return Some(missing.text());
            }
            let known = COMMANDS.iter().find(|(names, _)| names.contains(&given));
            known.map(|(_, command)| format!("for '{given}': {command}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::Cli;

    /// The names of a subcommand's flags.
    fn flags(command: &clap::Command) -> Vec<String> {
        let flags = command.get_arguments().flat_map(|argument| {
            let long = argument.get_long_and_visible_aliases().unwrap_or_default();
            let short = argument.get_short().map(|short| format!("-{short}"));
            long.into_iter().map(|long| format!("--{long}")).chain(short).collect::<Vec<_>>()
        });
        flags.collect()
    }

    #[test]
    fn a_format_behind_the_flag_for_the_foreground_is_meant_for_qemu() {
        let hint = |line: &[&str]| {
            let words: Vec<OsString> = line.iter().map(OsString::from).collect();
            let given = ["nbd", "serve"].into_iter().chain(line.iter().copied());
            let error = Cli::command().try_get_matches_from(given).unwrap_err();
            hint("serve", &words, &error).unwrap()
        };
        for line in [
            &["-f", "disk"][..],
            &["-f"],
            &["disk", "-f"],
            &["-f", "./raw"],
            &["--foreground", "raw"],
        ] {
            assert_eq!(hint(line).split_once(": ").unwrap().1, FOREGROUND, "{line:?}");
        }
        for format in FORMATS {
            for line in [
                &["-f", format, "disk"][..],
                &["disk", "-f", format],
                &[&format!("-f{format}"), "disk"],
                &[&format!("-f={format}"), "disk"],
                &["--format", format, "disk"],
                &[&format!("--format={format}"), "disk"],
            ] {
                assert_eq!(hint(line).split_once(": ").unwrap().1, AS_THEY_ARE, "{line:?}");
            }
        }
    }

    #[test]
    fn an_unknown_option_is_not_taken_for_the_name_of_a_file() {
        for (subcommand, flags, _) in FLAGS {
            for flag in *flags {
                let parsed = Cli::command().try_get_matches_from(["nbd", subcommand, flag, "x"]);
                // Some are taken without being shown.
                let Err(error) = parsed else { continue };
                let text = without_misleading_tip(error).to_string();
                assert!(!text.contains("as a value"), "nbd {subcommand} {flag}: {text}");
            }
        }
        // A tip that helps stays.
        let error = Cli::command().try_get_matches_from(["nbd", "serve", "--prot", "1"]);
        let text = without_misleading_tip(error.unwrap_err()).to_string();
        assert!(text.contains("'--port'"), "{text}");
    }

    #[test]
    fn a_command_that_this_build_lacks_is_answered_with_its_feature() {
        let cli = Cli::command();
        for (names, missing) in FEATURES {
            for name in names.iter().filter(|name| cli.find_subcommand(name).is_none()) {
                let error = cli.clone().try_get_matches_from(["nbd", name, "x"]).unwrap_err();
                assert_eq!(hint(name, &[], &error), Some(missing.text()));
            }
        }
    }

    #[test]
    fn hints_name_what_there_is_and_no_flag_of_ours_has_one() {
        let cli = Cli::command();
        let all: Vec<_> = cli.get_subcommands().flat_map(flags).collect();
        for (subcommand, theirs, text) in FLAGS {
            let ours = flags(cli.find_subcommand(subcommand).unwrap());
            for flag in *theirs {
                assert!(!ours.iter().any(|our| our == flag), "{flag} is known to nbd {subcommand}");
            }
            let words = text.split([' ', ';', ',', ':']).filter(|word| word.starts_with("--"));
            for word in words {
                assert!(all.iter().any(|flag| flag == word), "there is no {word}");
            }
        }
        let named = COMMANDS.iter().map(|(_, command)| *command);
        let named = named
            .chain(FLAGS.iter().map(|(_, _, text)| *text).filter(|text| text.starts_with("nbd ")));
        for text in named {
            let command = text.split(' ').nth(1).unwrap();
            assert!(cli.find_subcommand(command).is_some(), "there is no nbd {command}");
        }
        for (names, missing) in FEATURES {
            let built = match missing.feature {
                "volume" => cfg!(feature = "volume"),
                "tls" => cfg!(feature = "tls"),
                other => panic!("{other}"),
            };
            for name in *names {
                assert_eq!(cli.find_subcommand(name).is_some(), built, "{name}");
            }
        }
        for name in COMMANDS.iter().flat_map(|(names, _)| *names) {
            assert!(cli.find_subcommand(name).is_none(), "nbd {name} exists");
        }
    }
}
