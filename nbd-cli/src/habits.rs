//! Hints for those whose hands know nbdkit, qemu-nbd, nbd-server, nbd-client or nbdinfo.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::feature;

/// What stands for a flag of another program: the subcommands in which it may be typed, the flag, what to do.
const FLAGS: &[(&str, &[&str], &str)] = &[
    ("serve", &["-f", "--foreground"], FOREGROUND),
    ("serve", &["--format", "--image-opts", "--load-snapshot"], AS_THEY_ARE),
    (
        "serve",
        &["-l"],
        "for qemu-nbd's -l: disks are served as they are, without image formats and their snapshots: keep qemu-nbd; \
         --allow CIDR for each line of the file of nbd-server's",
    ),
    (
        "serve",
        &["--fork"],
        "nbd serve does not go to the background: start it by systemd, or with & and --pid-file",
    ),
    (
        "serve",
        &["-d"],
        "nbd detach DEVICE for qemu-nbd's -d; for nbd-server's: nbd serve stays in the foreground, leave it out",
    ),
    ("serve", &["--dont-fork"], FOREGROUND),
    ("serve", &["--newstyle"], NEWSTYLE),
    (
        "serve",
        &["-n"],
        "leave it out: newstyle, nbdkit's -n, is the default; and of the cache, qemu-nbd's -n, there is nothing to choose",
    ),
    (
        "serve",
        &["-o"],
        "--oldstyle for nbdkit's -o; --layer offset for qemu-nbd's; --print-config for nbd-server's",
    ),
    (
        "serve",
        &["-4", "--ipv4-only", "-6", "--ipv6-only"],
        "give an address of that family: --ip-addr 127.0.0.1, or --ip-addr ::1",
    ),
    ("serve", &["-b", "--ipaddr", "--bind"], "--ip-addr ADDR"),
    ("serve", &["--exportname"], "--export-name NAME, or NAME= in front of what is to be served"),
    ("serve", &["-x"], "--export-name NAME, or NAME= in front of what is to be served"),
    ("serve", &["--filter"], "--layer NAME"),
    ("serve", &["--snapshot", "--overlay", "--cow"], "--layer overlay, or --layer overlay:FILE"),
    ("serve", &["--delay"], "--layer delay:TIME"),
    ("serve", &["--rate"], "--layer rate:BYTES"),
    ("serve", &["--error"], "--layer error:ERRNO"),
    ("serve", &["--readonly"], "--read-only"),
    ("serve", &["-k", "--socket"], "--unix PATH"),
    (
        "serve",
        &["--single"],
        "--stdio for one client on standard input and output; --max-connections 1 for one at a time",
    ),
    (
        "serve",
        &["-s"],
        "--layer overlay for qemu-nbd's -s; --stdio for nbdkit's, one client on standard input and output, or \
         --max-connections 1 for one at a time",
    ),
    ("serve", &["--shared"], "--max-connections N"),
    ("serve", &["-M"], "--max-connections N"),
    ("serve", &["--persistent"], "the server stays when its clients have gone: leave it out"),
    ("serve", &["--threads"], "the number of threads follows the machine: leave it out"),
    (
        "serve",
        &["-t"],
        "leave it out: the server stays when its clients have gone, qemu-nbd's -t; and the number of threads, nbdkit's -t, \
         follows the machine",
    ),
    ("serve", &["--pidfile"], "--pid-file PATH"),
    ("serve", &["--partition"], "--layer partition:N"),
    (
        "serve",
        &["-P"],
        "--pid-file PATH for nbdkit's -P; --layer partition:N for that of older versions of qemu-nbd",
    ),
    ("serve", &["-D"], "--description TEXT for qemu-nbd's -D; -v for nbdkit's, twice for more"),
    ("serve", &["--debug", "-T", "--trace"], "-v, twice for more"),
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
    ("serve", &["--connect"], "nbd attach URI gives a served disk a device"),
    (
        "serve",
        &["-c"],
        "nbd attach URI, which gives a served disk a device, for qemu-nbd's -c; --layer overlay for nbd-server's",
    ),
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
    ("serve", &["--offset"], "--layer offset:N"),
    ("serve", &["--export"], "--export-name NAME, or NAME= in front of what is to be served"),
    ("serve", &["--new-style"], NEWSTYLE),
    ("serve", &["--old-style"], "--oldstyle"),
    ("serve", &["--no-fork"], FOREGROUND),
    ("serve", &["--stdin"], "--stdio"),
    ("serve", &["--handshake-limit"], "the handshake has a limit as it is: leave it out"),
    ("serve", &["--dump-config"], "--print-config shows what is configured"),
    ("serve", &["--dump-plugin"], "there are no plugins: leave it out"),
    (
        "serve",
        &[
            "--mask-handshake",
            "--no-sr",
            "--no-meta-contexts",
            "--swap",
            "--selinux-label",
            "--tls-hostname",
        ],
        "there is no such thing here: leave it out",
    ),
    (
        "attach",
        &["-N", "--name"],
        "the name of the export stands in the URI: nbd attach nbd://HOST/NAME",
    ),
    ("attach", &["-u", "--unix"], "nbd attach nbd+unix:///NAME?socket=PATH"),
    ("attach", &["-C"], "--connections N"),
    ("attach", &["-p"], "--persist"),
    ("attach", &["-R", "-r", "--readonly"], "--read-only"),
    ("attach", &["-d"], "nbd detach DEVICE"),
    ("attach", &["-l", "--list"], "nbd list URI"),
    ("attach", &["-c", "--check"], "nbd devices shows what is attached"),
    ("detach", &["-d", "--disconnect"], "leave it out: nbd detach DEVICE"),
    ("info", &["-l"], "nbd list URI"),
    ("map", &["--output"], "--json, or --totals"),
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

/// For nbdkit's `-n`.
const NEWSTYLE: &str = "newstyle is the default: leave it out";

/// For nbdkit's and nbd-server's `-f`.
const FOREGROUND: &str = "nbd serve stays in the foreground: leave it out";

/// For qemu-nbd's `-f FORMAT`, and what belongs to it.
const AS_THEY_ARE: &str = "disks are served as they are, without image formats: leave it out, with the format, for raw ones; \
                           for qcow2 and others take qemu-nbd, or convert them: qemu-img convert -O raw IMAGE disk.img";

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

/// The error without tips, where there is a [hint]: what looks alike is not what was meant.
pub(crate) fn without_tips(mut error: clap::Error) -> clap::Error {
    for tip in [
        ContextKind::Suggested,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedCommand,
    ] {
        error.remove(tip);
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
            // One behind a command, such as nbd volume, is of that.
            if given != subcommand {
                return None;
            }
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
    fn a_word_behind_a_command_is_no_command_of_others() {
        let error = Cli::command().try_get_matches_from(["nbd", "overlay", "ls"]).unwrap_err();
        assert_eq!(hint("overlay", &["ls".into()], &error), None);
        let error = Cli::command().try_get_matches_from(["nbd", "ls"]).unwrap_err();
        assert_eq!(hint("ls", &[], &error).unwrap(), "for 'ls': nbd list");
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

    /// The cells of the rows of a table, whose head begins so.
    fn rows<'a>(page: &'a str, head: &str) -> Vec<Vec<&'a str>> {
        let (_, table) = page.split_once(&format!("\n| {head}")).unwrap();
        let lines = table.lines().skip(2).take_while(|line| line.starts_with("| "));
        lines.map(|line| line.trim_matches(['|', ' ']).split(" | ").collect()).collect()
    }

    /// What stands in backquotes.
    fn code(cell: &str) -> Vec<&str> {
        cell.split('`').skip(1).step_by(2).collect()
    }

    /// What the programs have is typed, flag by flag, and the hint says what the page does: the same options and commands
    /// of ours, or that there is nothing to say.
    #[test]
    fn the_flags_of_other_programs_are_answered_as_the_page_says() {
        let page = include_str!("../../docs/migrate.md");
        let (mut typed, mut taken) = (0, Vec::new());
        for program in ["nbdkit 1.32 ", "qemu-nbd 10.0 ", "nbd-server's flags, 3.24 "] {
            for row in rows(page, program) {
                let [theirs, ours] = &*row else { panic!("two cells: {row:?}") };
                let (theirs, said) = (code(theirs), code(ours));
                let flags = theirs.iter().filter(|text| text.starts_with('-')).count();
                for (index, text) in theirs.iter().enumerate() {
                    // The remedy is that in the same order, where there are as many.
                    let said = if flags > 1 && said.len() == flags {
                        &said[index..=index]
                    } else {
                        &*said
                    };
                    let words =
                        Vec::from_iter(text.split(' ').skip_while(|word| !word.starts_with('-')));
                    let Some(flag) = words.first() else { continue };
                    let line = [&["nbd", "serve"], &*words].concat();
                    let Err(error) = Cli::command().try_get_matches_from(&line) else {
                        taken.push(*flag);
                        continue;
                    };
                    if error.kind() != ErrorKind::UnknownArgument {
                        // A flag of ours, with a word that stands for a value.
                        taken.push(*flag);
                        continue;
                    }
                    let words = Vec::from_iter(words.iter().map(OsString::from));
                    let hint = hint("serve", &words, &error);
                    let hint = hint.unwrap_or_else(|| panic!("{program}: {text} has no hint"));
                    let named = said.iter().filter_map(|said| {
                        let option =
                            said.split([' ', '=', ':']).next().filter(|word| word.starts_with('-'));
                        option.or_else(|| {
                            said.starts_with("nbd ")
                                .then(|| said.split_at(4).1.split(' ').next())?
                        })
                    });
                    let named = Vec::from_iter(named.filter(|word| *word != "serve"));
                    let is_right = match &*named {
                        _ if ours.contains("keep qemu-nbd") => hint.contains("take qemu-nbd"),
                        [] => hint.contains("leave it out") || hint.contains("NAME="),
                        named => named.iter().all(|word| hint.contains(word)),
                    };
                    let program = program.split([' ', '\'']).next().unwrap();
                    let others = ["nbdkit", "qemu-nbd", "nbd-server"];
                    let of_others =
                        others.iter().any(|other| hint.contains(&format!("{other}'s -")));
                    let is_its = !of_others || hint.contains(&format!("{program}'s"));
                    assert!(
                        is_right && is_its,
                        "{program}: {text} is {said:?} on the page: {hint}"
                    );
                    typed += 1;
                }
            }
        }
        assert!(typed > 25, "{typed}");
        for flag in taken {
            let name = flag.split('=').next().unwrap();
            let ours = ["-p", "-i", "-U", "-e", "-r", "-v", "--run", "--tls"];
            assert!(ours.contains(&name), "{flag} is taken");
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
