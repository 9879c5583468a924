//! Lines that one shell runs in a folder, and what they print.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::process::run;
use nbd_testkit::server::nbd_binary;

const LIMIT: Duration = Duration::from_secs(120);

/// A line of a transcript.
pub(crate) struct Step {
    /// As it stands in the transcript.
    shown: String,
    /// What is run.
    line: String,
}

impl Step {
    pub(crate) fn new(shown: impl Into<String>, line: impl Into<String>) -> Self {
        Self { shown: shown.into(), line: line.into() }
    }
}

/// Runs lines in a folder, after a script that prepares it, and returns them with what they print and their statuses.
pub(crate) fn transcript(folder: &Path, prepare: &str, steps: &[Step]) -> String {
    let mut script = format!("exec 2>&1 </dev/null\n{prepare}\n");
    for (index, Step { line, .. }) in steps.iter().enumerate() {
        // What is not refused would serve for ever.
        let line = match line.as_str() {
            "nbd" => "nbd".into(),
            line => line.replacen("nbd ", "timeout 20 nbd ", 1),
        };
        let _a_string_takes_everything =
            write!(script, "echo '--- {index}'\n{line}\necho \"exit status $?\"\n");
    }
    let mut path = vec![nbd_binary().parent().expect("it is in a folder").to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(folder);
    command.env("PATH", std::env::join_paths(path).expect("plain names"));
    for variable in ["NBD_LOG", "LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "HOME", "TMPDIR"] {
        command.env_remove(variable);
    }
    let finished = run(command.env("NO_COLOR", "1"), LIMIT);
    let mut rest = finished.stdout.as_str();
    let mut text = String::new();
    for (index, Step { shown, .. }) in steps.iter().enumerate() {
        let (_, after) = rest.split_once(&format!("--- {index}\n")).unwrap_or_else(|| {
            panic!("'{shown}' is not reached: {}{}", finished.stdout, finished.stderr)
        });
        let said =
            after.split_once(&format!("--- {}\n", index + 1)).map_or(after, |(said, _)| said);
        let said = lasting(&said.replace(&folder.display().to_string(), "FOLDER"));
        let said: Vec<&str> = said.lines().map(str::trim_end).collect();
        let _a_string_takes_everything = writeln!(text, "$ {shown}\n{}\n", said.join("\n"));
        rest = after;
    }
    text
}

/// The same without what depends on the machine: the log, whose lines have times, and how many requests a time had.
fn lasting(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("Z  WARN "));
    let counted = |line: &str| match line.split_once(" requests failed;") {
        Some((_, rest)) => format!("nbd: N of N requests failed;{rest}"),
        None => line.to_owned(),
    };
    lines.map(counted).collect::<Vec<_>>().join("\n")
}
