//! Whether each hint names what there is, and each flag of the other programs has one.

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

/// The hint for a command line.
fn hint_of(line: &str) -> Option<String> {
    let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
    let given = [OsString::from("nbd")].into_iter().chain(words.iter().cloned());
    let error = Cli::command().try_get_matches_from(given).unwrap_err();
    hint(words[0].to_str().unwrap(), &words[1..], &error)
}

/// By their own usage texts: nbd-server 3.24, nbd-client 3.24, nbdkit 1.32 and qemu-nbd 10.0.
#[test]
fn each_flag_of_the_other_programs_is_taken_or_has_a_hint() {
    let of_servers = "-r -m -c -C -l -p -o -M -V --read-only --multi-file --copy-on-write --config-file --authorize-file \
        --pid-file --output-config --max-connections --version \
        --ipv4-only --ipv6-only --debug --dump-config --dump-plugin --exit-with-parent --export --export-name \
        --exportname --filter --foreground --no-fork --group --ip-addr --ipaddr --log --mask-handshake --new-style \
        --newstyle --no-sr --old-style --oldstyle --pidfile --port --readonly --readwrite --run --selinux-label --single \
        --stdin --swap --threads --tls --tls-certificates --tls-psk --tls-verify-peer --unix --user --verbose --vsock \
        -4 -6 -D -e -f -g -i -n -P -s -t -u -U -v \
        --bind --socket --shared --persistent --description --handshake-limit --offset --allocation-depth --bitmap --list \
        --object --tls-creds --tls-authz --tls-hostname --trace --fork --connect --disconnect --format --snapshot \
        --load-snapshot --nocache --cache --aio --discard --detect-zeroes --image-opts -b -k -x -A -B -L -T -d";
    let of_client = "-name -N -block-size -b -timeout -t -swap -s -sdp -S -persist -p -nofork -n -systemd-mark -m \
        -nonetlink -L -readonly -R -size -B -preinit -P -u -d -c -l --list -F -certfile -K -keyfile -A -cacertfile -H \
        -tlshostname -x -enable-tls -V --version";
    for (command, flags) in [("serve", of_servers), ("attach", of_client), ("detach", "-d -c")] {
        for flag in flags.split_whitespace() {
            let words = ["nbd", command, flag, "1", "nbd://localhost/"];
            let Err(error) = Cli::command().try_get_matches_from(words) else { continue };
            if error.kind() != ErrorKind::UnknownArgument {
                continue;
            }
            let words = Vec::from_iter(words[2..].iter().map(OsString::from));
            let hint = hint(command, &words, &error);
            let hint = hint.unwrap_or_else(|| panic!("nbd {command} {flag} has no hint"));
            assert!(hint.starts_with(&format!("for '{flag}'")), "{flag}: {hint}");
        }
    }
}

#[test]
fn a_filter_is_answered_with_its_layer_or_with_what_there_is_instead() {
    let layers = include_str!("../../../docs/layers.md");
    for filter in "blocksize blocksize-policy cache cacheextents checkwrite cow ddrescue delay error exitlast exitwhen \
        exportname ext2 extentlist fua gzip ip limit log luks multi-conn nocache noextents nofilter noparallel nozero \
        offset partition pause protect rate readahead retry retry-request scan stats swab tar tls-fallback truncate xz"
        .split_whitespace()
    {
        for line in [format!("serve --filter={filter} disk"), format!("serve --filter {filter} disk")] {
            let hint = hint_of(&line).unwrap();
            let named = hint.split("--layer ").nth(1).map(|rest| rest.split([':', ',', ' ']).next().unwrap());
            match named.filter(|_| hint.starts_with("for '--filter': --layer")) {
                Some(layer) => assert!(layers.contains(&format!("`{layer}")), "there is no layer {layer}"),
                None => assert!(hint.contains("no such layer"), "{filter}: {hint}"),
            }
        }
    }
    let all: Vec<_> = Cli::command().get_subcommands().flat_map(flags).collect();
    for name in ["stats", "ip", "limit", "exitlast", "blocksize", "swab"] {
        for word in
            of_filter(name).split([' ', ';', ',', ':']).filter(|word| word.starts_with("--"))
        {
            assert!(all.iter().any(|flag| flag == word), "there is no {word}");
        }
    }
}

#[test]
fn a_name_and_a_disk_in_two_words_are_to_be_one() {
    let hint = hint_of("export control add e1 memory:1M").unwrap();
    assert_eq!(
        hint,
        "for 'memory:1M': the name and what is to be served are one word: e1=memory:1M"
    );
    assert_eq!(hint_of("export control add e1=memory:1M x"), None);
    assert_eq!(hint_of("export control add --none e1"), None);
}

#[test]
fn a_format_behind_the_flag_for_the_foreground_is_meant_for_qemu() {
    let hint = |line: &[&str]| {
        let words: Vec<OsString> = line.iter().map(OsString::from).collect();
        let given = ["nbd", "serve"].into_iter().chain(line.iter().copied());
        let error = Cli::command().try_get_matches_from(given).unwrap_err();
        hint("serve", &words, &error).unwrap()
    };
    for line in
        [&["-f", "disk"][..], &["-f"], &["disk", "-f"], &["-f", "./raw"], &["--foreground", "raw"]]
    {
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
    let page = include_str!("../../../docs/migrate.md");
    let (mut typed, mut taken) = (0, Vec::new());
    for program in ["nbdkit 1.32 ", "qemu-nbd 10.0 ", "nbd-server's flags, 3.24 "] {
        for row in rows(page, program) {
            let [theirs, ours] = &*row else { panic!("two cells: {row:?}") };
            let (theirs, said) = (code(theirs), code(ours));
            let flags = theirs.iter().filter(|text| text.starts_with('-')).count();
            for (index, text) in theirs.iter().enumerate() {
                // The remedy is that in the same order, where there are as many.
                let said =
                    if flags > 1 && said.len() == flags { &said[index..=index] } else { &*said };
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
                        said.starts_with("nbd ").then(|| said.split_at(4).1.split(' ').next())?
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
                let of_others = others.iter().any(|other| hint.contains(&format!("{other}'s -")));
                let is_its = !of_others || hint.contains(&format!("{program}'s"));
                assert!(is_right && is_its, "{program}: {text} is {said:?} on the page: {hint}");
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
    let named =
        named.chain(FLAGS.iter().map(|(_, _, text)| *text).filter(|text| text.starts_with("nbd ")));
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
