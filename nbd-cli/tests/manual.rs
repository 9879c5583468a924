//! The manual pages, by what shows them to people.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::server::nbd_binary;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

/// All pages, in a folder.
fn pages() -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("share/man1");
    let made = run(Command::new(nbd_binary()).arg("man").arg("--dir").arg(&directory), LIMIT);
    assert_eq!(made.success(), "");
    let entries = std::fs::read_dir(directory).unwrap();
    let mut pages: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    (folder, pages)
}

fn name(page: &Path) -> &str {
    page.file_stem().unwrap().to_str().unwrap()
}

/// The words that begin with `--` in a text, up to where their values begin.
fn options(text: &str) -> Vec<&str> {
    let word = |c: char| c == '-' || c.is_ascii_alphanumeric();
    let words = text.split(|c: char| !word(c)).filter(|word| word.len() > 2);
    words.filter(|word| word.starts_with("--")).collect()
}

/// The commands that a help lists.
fn commands(help: &str) -> Vec<&str> {
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default();
    let lines = listed.split("\n\n").next().unwrap_or_default().lines();
    lines
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.trim_start().split(' ').next())
        .filter(|command| *command != "help")
        .collect()
}

#[test]
fn there_is_a_page_for_each_command() {
    let (_folder, pages) = pages();
    let help = run(Command::new(nbd_binary()).arg("--help"), LIMIT).success();
    let mut expected: Vec<String> =
        commands(&help).into_iter().map(|command| format!("nbd-{command}")).collect();
    expected.push("nbd".into());
    expected.sort();
    let mut found: Vec<&str> = pages.iter().map(|page| name(page)).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert!(found.len() > 7, "{help}");
}

#[test]
fn every_option_of_the_help_is_in_its_page() {
    let (_folder, pages) = pages();
    for page in &pages {
        // As it is read, not as it is written.
        let Some(shown) = shown(page) else { return };
        let mut command = Command::new(nbd_binary());
        if let Some(subcommand) = name(page).strip_prefix("nbd-") {
            command.arg(subcommand);
        }
        let mut help = run(command.arg("--help"), LIMIT).success();
        // Those of commands that have no page are told in this one.
        if let Some(subcommand) = name(page).strip_prefix("nbd-") {
            for nested in commands(&help.clone()) {
                let mut command = Command::new(nbd_binary());
                help += &run(command.args([subcommand, nested, "--help"]), LIMIT).success();
            }
        }
        let listed = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
        let mut count = 0;
        for option in listed.flat_map(|line| options(line.split("  ").next().unwrap())) {
            if option == "--version" {
                continue;
            }
            count += 1;
            assert!(options(&shown).contains(&option), "{}: {option}\n{shown}", page.display());
        }
        assert!(count > 0, "{help}");
        for heading in ["NAME", "SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"] {
            let is_there = shown.lines().any(|line| line == heading);
            assert!(is_there, "{}: {heading}\n{shown}", page.display());
        }
    }
}

/// A page as a terminal without styles shows it, if there is a program for it.
fn shown(page: &Path) -> Option<String> {
    let man = peers::require("man")?;
    let mut command = man.command();
    command.args(["--warnings", "--local-file"]).arg(page).env("MANWIDTH", "100");
    command.env("LC_ALL", "C.UTF-8").env("MAN_KEEP_FORMATTING", "").env("GROFF_NO_SGR", "1");
    let finished = run(&mut command, LIMIT);
    assert_eq!(finished.stderr, "", "{}", page.display());
    // Bold is a letter, a backspace and the letter again; a hyphen may be typographic.
    let mut text = String::new();
    for c in finished.success().chars() {
        match c {
            '\u{8}' => {
                text.pop();
            }
            '\u{2010}' | '\u{2212}' => text.push('-'),
            c => text.push(c),
        }
    }
    Some(text)
}

#[test]
fn mandoc_finds_no_fault_in_the_pages() {
    if peers::require("mandoc").is_none() {
        return;
    }
    let (_folder, pages) = pages();
    let mut command = Command::new("mandoc");
    let finished = run(command.args(["-T", "lint", "-W", "warning"]).args(&pages), LIMIT);
    // The pages bear no date: it would be that of the build.
    let told = finished.stdout.lines().filter(|line| !line.contains("missing date"));
    let told: Vec<&str> = told.collect();
    assert!(told.is_empty(), "{told:#?}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let mut command = Command::new(nbd_binary());
    let finished = run(command.args(["man", "--dir", "/dev/null/man"]), LIMIT);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("cannot write /dev/null/man: "), "{}", finished.stderr);
}
