//! The help of every command, as it stands in `help.txt`, and in `help-volume.txt` what the feature `volume` adds: a change
//! of the command line shows as a change of these files.
//!
//! `NBD_WRITE_REFERENCE=1 cargo test -p nbd-cli --test help` writes them anew, with `--features volume` the latter, too.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::process::run;
use nbd_testkit::server::nbd_binary;

const SOON: Duration = Duration::from_secs(60);

/// The help of a command, with one line for each paragraph and each option, whatever the width of the terminal.
fn help(words: &[&str]) -> String {
    let shown = run(Command::new(nbd_binary()).args(words).arg("--help"), SOON).success();
    let mut text = String::new();
    for line in shown.lines() {
        let line = line.trim_end();
        let starts = line.trim_start();
        // They are there if their features are.
        if starts.starts_with("- async-std:") || line.starts_with("  volume ") {
            continue;
        }
        // Columns are as wide as their longest word.
        let words = starts.split_whitespace().collect::<Vec<_>>().join(" ");
        let begins = line.is_empty()
            || text.ends_with("\n\n")
            || text.is_empty()
            // A command, or an exit status.
            || line.len() - starts.len() == 2
            || starts.starts_with('-')
            || starts.starts_with('#')
            || starts.starts_with("nbd ")
            || starts.starts_with("[default")
            || starts.starts_with("[possible")
            || line.ends_with(':');
        if !begins {
            let end = text.trim_end_matches('\n').len();
            text.truncate(end);
            text.push(' ');
        }
        text.push_str(&words);
        text.push('\n');
    }
    text
}

/// The commands of a command.
fn commands(words: &[&str]) -> Vec<String> {
    let shown = run(Command::new(nbd_binary()).args(words).arg("-h"), SOON).success();
    let Some((_, list)) = shown.split_once("Commands:\n") else { return Vec::new() };
    let list = list.split("\n\n").next().unwrap_or_default();
    let names = list.lines().filter(|line| !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Compares what there is with what was agreed on, or writes it if that is asked for.
#[track_caller]
fn compare(name: &str, all: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    if std::env::var_os("NBD_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, all).unwrap();
    }
    let agreed = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (is, was)) in all.lines().zip(agreed.lines()).enumerate() {
        let line = number + 1;
        assert_eq!(is, was, "line {line} of tests/{name}, which tests/help.rs says how to renew");
    }
    assert_eq!(all.lines().count(), agreed.lines().count(), "tests/{name} has other lines");
}

#[test]
fn the_help_of_every_command_is_the_one_that_was_agreed_on() {
    let (mut all, mut of_volumes) = (String::new(), String::new());
    let mut add = |words: &[&str]| {
        let text = if words.first() == Some(&"volume") { &mut of_volumes } else { &mut all };
        let _a_string_takes_everything =
            write!(text, "===== {}\n\n{}\n", [&["nbd"], words].concat().join(" "), help(words));
    };
    add(&[]);
    for command in commands(&[]) {
        add(&[&command]);
        for action in commands(&[&command]) {
            add(&[&command, &action]);
        }
    }
    compare("help.txt", &all);
    assert_eq!(of_volumes.is_empty(), !cfg!(feature = "volume"));
    if cfg!(feature = "volume") {
        compare("help-volume.txt", &of_volumes);
    }
}
