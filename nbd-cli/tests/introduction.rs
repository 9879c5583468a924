//! What a person sees first: `nbd` without a command, the examples of the help, the log.

use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers;
use nbd_testkit::process::{Finished, run};
use nbd_testkit::server::nbd_binary;

const SOON: Duration = Duration::from_secs(60);

#[track_caller]
fn nbd(words: &[&str]) -> Finished {
    run(Command::new(nbd_binary()).args(words), SOON)
}

#[test]
fn nbd_alone_shows_commands_that_work_as_they_stand() {
    if peers::require("ss").is_none() {
        return;
    }
    let finished = nbd(&[]);
    assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(64), ""));
    let lines = finished.stderr.lines().filter_map(|line| line.strip_prefix("  "));
    let commands: Vec<&str> =
        lines.map(|line| line.split_once('#').expect("what it does").0.trim_end()).collect();
    assert_eq!(commands.len(), 5, "{}", finished.stderr);
    let mut script = String::from("trap 'kill $(jobs -p) 2>/dev/null' EXIT\n");
    for command in commands {
        script.push_str(&match command.starts_with("nbd serve ") {
            // It is there when it has printed its address.
            true => format!(
                "{command} > address & i=0\n\
                 until [ -s address ] || [ $i -ge 600 ]; do sleep 0.05; i=$((i + 1)); done\n"
            ),
            false => format!("{command} || echo DID NOT WORK\n"),
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let mut path = vec![nbd_binary().parent().expect("it is in a folder").to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new("unshare");
    let shell = "ip link set lo up && exec bash -c \"$0\"";
    command.args(["--net", "--map-root-user", "sh", "-c", shell, &script]).current_dir(dir.path());
    command.env("PATH", std::env::join_paths(path).expect("plain names"));
    let shown = run(&mut command, SOON);
    assert_eq!(shown.stderr, "");
    assert!(!shown.stdout.contains("DID NOT WORK"), "{}", shown.stdout);
    for part in ["export-size: 67108864 (64M)", "00000000  ", "randread of 4.0 KiB on nbd://"] {
        assert!(shown.stdout.contains(part), "{part} is not in: {}", shown.stdout);
    }
}

#[test]
fn a_command_without_its_own_command_still_shows_its_usage() {
    for words in [&["bitmap"][..], &["export"]] {
        let finished = nbd(words);
        assert_eq!(finished.status.code(), Some(64));
        assert!(
            finished.stderr.contains(&format!("Usage: nbd {}", words[0])),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn help_has_examples_and_the_exit_statuses_and_its_short_form_has_neither() {
    let help = nbd(&["--help"]).success();
    for part in ["Examples:\n", "Exit status:\n", "\n  64 ", "\n  128 + N  "] {
        assert!(help.contains(part), "{part} is not in: {help}");
    }
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let commands = commands.lines().filter(|line| !line.starts_with("   "));
    for command in commands.map(|line| line.split_whitespace().next().unwrap()) {
        if command == "help" {
            continue;
        }
        let help = nbd(&[command, "--help"]).success();
        let examples = help.split("Examples:\n").nth(1).unwrap_or_else(|| panic!("{help}"));
        assert!(examples.contains(&format!("nbd {command} ")), "{examples}");
        assert!(examples.lines().all(|line| line.chars().count() <= 120), "{examples}");
    }
    assert!(!nbd(&["-h"]).success().contains("Exit status"));
    assert!(!nbd(&["map", "-h"]).success().contains("Examples"));
}

#[test]
fn the_log_is_what_the_environment_asks_for() {
    let binary = nbd_binary().display().to_string();
    let logged = |level: &str, words: &[&str]| {
        let mut command = Command::new(&binary);
        // The server that it starts has the same environment.
        command.env("NBD_LOG", level).args(words);
        run(&mut command, SOON)
    };
    let serve = |level: &str| {
        let run = format!("'{binary}' info \"$uri\"");
        logged(level, &["serve", "--port", "0", "--run", &run, "memory:1M"])
    };
    let (quiet, trace) = (serve("warn"), serve("trace"));
    assert_eq!(quiet.stderr, "");
    assert!(!trace.stderr.is_empty());
    assert_eq!(quiet.success().lines().count(), trace.success().lines().count());
    for words in [&["info", "nbd://localhost"][..], &["serve", "memory:1M"], &["copy", "a", "b"]] {
        let finished = logged("loud", words);
        assert_eq!(finished.status.code(), Some(64), "{words:?}");
        let says = "NBD_LOG is 'loud', which is no level: set it to warn, info, debug or trace";
        assert!(finished.stderr.contains(says), "{}", finished.stderr);
    }
}
