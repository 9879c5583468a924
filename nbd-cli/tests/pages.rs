//! The pages for users: each command of their `console` blocks is run, and prints what the page says.
//!
//! A page's commands run one after the other in one shell, in a folder and a network of their own, so that a page may use
//! the ports that its readers would. A line `...` stands for any lines, and `...` in a line for any text. A command that
//! ends with `&` stays until the page ends; what it prints is its first line.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::server::nbd_binary;

#[path = "pages/typed.rs"]
mod typed;

const LIMIT: Duration = Duration::from_secs(120);

/// A command of a page, and what it prints.
pub(crate) struct Step {
    pub(crate) command: String,
    pub(crate) prints: Vec<String>,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// The commands of a page, in order.
fn steps(page: &str) -> Vec<Step> {
    let blocks = page.split("```console\n").skip(1);
    let lines = blocks.flat_map(|block| block.split_once("```").expect("the block ends").0.lines());
    let mut steps: Vec<Step> = Vec::new();
    let mut continues = false;
    for line in lines {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => {
                steps.push(Step { command: command.into(), prints: Vec::new() });
            }
            (None, Some(step)) if continues => {
                let _a_string_takes_everything = write!(step.command, "\n{line}");
            }
            (None, Some(step)) => step.prints.push(line.into()),
            (None, None) => panic!("a block begins with a command: {line}"),
        }
        continues =
            continues && line.ends_with('\\') || line.starts_with("$ ") && line.ends_with('\\');
    }
    steps
}

/// What stands before what a step prints.
fn mark(index: usize) -> String {
    format!("--- step {index}")
}

/// A script that carries the steps out.
fn script(steps: &[Step]) -> String {
    let mut script = String::from("exec 2>&1\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n");
    for (index, Step { command, .. }) in steps.iter().enumerate() {
        let command = command.replace("cargo run -r --", "nbd");
        let text = match command.strip_suffix('&') {
            None => command,
            // Job control is off, so that it reads nothing; it is there when it has printed a line.
            Some(command) => format!(
                "{command} >{index}.out & i=0\n\
                 until [ -s {index}.out ] || [ $i -ge 600 ]; do sleep 0.05; i=$((i + 1)); done\n\
                 head -n 1 {index}.out"
            ),
        };
        let mark = mark(index);
        let _a_string_takes_everything = write!(script, "echo '{mark}'\n{text}\n");
    }
    script
}

/// Whether a line is what the page has, in which `...` stands for any text.
fn fits(line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split("...");
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    true
}

/// Whether lines are what the page has, in which a line `...` stands for any lines.
fn fit(lines: &[&str], patterns: &[String]) -> bool {
    match patterns.split_first() {
        None => lines.is_empty(),
        Some((pattern, rest)) if pattern == "..." => {
            (0..=lines.len()).any(|skipped| fit(&lines[skipped..], rest))
        }
        Some((pattern, rest)) => {
            lines.split_first().is_some_and(|(line, after)| fits(line, pattern) && fit(after, rest))
        }
    }
}

/// Runs a page that needs these programs.
#[track_caller]
fn check(page: &str, needs: &[&str]) {
    if needs.iter().any(|program| peers::require(program).is_none()) {
        return;
    }
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let steps = steps(&text);
    assert!(!steps.is_empty(), "{page} has commands");
    check_steps(page, &steps);
}

/// Runs steps of a page.
#[track_caller]
pub(crate) fn check_steps(page: &str, steps: &[Step]) {
    let dir = tempfile::tempdir().unwrap();
    let mut path = vec![nbd_binary().parent().expect("it is in a folder").to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--map-root-user",
        "sh",
        "-c",
        "ip link set lo up && ip addr add 192.0.2.1 dev lo && exec bash -c \"$0\"",
    ]);
    command.arg(script(steps)).current_dir(dir.path());
    command.env("PATH", std::env::join_paths(path).expect("plain names"));
    let finished = run(&mut command, LIMIT);
    let mut rest = finished.stdout.as_str();
    for (index, step) in steps.iter().enumerate() {
        let (_, after) = rest.split_once(&format!("{}\n", mark(index))).unwrap_or_else(|| {
            panic!("{page}: '{}' is not reached: {}{rest}", step.command, finished.stderr)
        });
        let printed = after.split_once(&mark(index + 1)).map_or(after, |(printed, _)| printed);
        let lines: Vec<&str> = printed.lines().collect();
        assert!(fit(&lines, &step.prints), "{page}: '{}' prints\n{printed}", step.command);
        rest = after;
    }
}

#[test]
fn a_pattern_has_gaps() {
    for (line, pattern, expected) in [
        ("abc", "abc", true),
        ("abcd", "abc", false),
        ("pid 17: ok", "pid ...: ok", true),
        ("pid 17: bad", "pid ...: ok", false),
        ("abc", "...", true),
        ("a1b2c", "a...b...c", true),
        ("a1c2b", "a...b...c", false),
    ] {
        assert_eq!(fits(line, pattern), expected, "{line} {pattern}");
    }
    let patterns = ["a", "...", "b"].map(String::from);
    assert!(fit(&["a", "b"], &patterns) && fit(&["a", "x", "y", "b"], &patterns));
    assert!(!fit(&["a", "x"], &patterns));
}

#[test]
fn the_front_page_prints_what_it_says() {
    check("README.md", &["nbdinfo", "qemu-img", "ss"]);
}

#[test]
fn the_page_about_serving_prints_what_it_says() {
    check("docs/serving.md", &["nbdinfo", "nbdcopy", "qemu-img", "fio", "ss"]);
}

#[test]
fn the_page_about_clients_prints_what_it_says() {
    check("docs/clients.md", &["nbdkit", "qemu-img", "mke2fs", "ss"]);
}

#[test]
fn the_page_about_measuring_prints_what_it_says() {
    check("docs/bench.md", &["nbdkit", "ss"]);
}

#[test]
fn the_page_about_tls_prints_what_it_says() {
    check("docs/tls.md", &["nbdinfo", "ss"]);
}

#[test]
fn the_page_about_layers_prints_what_it_says() {
    check("docs/layers.md", &["qemu-io"]);
}

#[test]
fn the_page_about_operating_prints_what_it_says() {
    check("docs/operating.md", &["ss"]);
}

#[test]
fn the_page_about_the_configuration_prints_what_it_says() {
    check("docs/configuration.md", &[]);
}

#[test]
fn the_page_on_monitoring_prints_what_it_says() {
    check("docs/monitoring.md", &["curl"]);
}
