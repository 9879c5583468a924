//! Completion, by real shells on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::server::{Runtime, Setup, Transport, nbd_binary};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const LIMIT: Duration = Duration::from_secs(60);

/// A shell that a person sits at.
struct Shell {
    child: Child,
    terminal: File,
    seen: String,
}

impl Shell {
    /// A shell that has read the lines of `setup`.
    fn start(words: &[&str], folder: &Path, setup: &str) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let path = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let end = File::options().read(true).write(true).open(path).unwrap();
        let stdio = || Stdio::from(end.try_clone().unwrap());
        // With the terminal as its own, as on a login.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).args(words).current_dir(folder);
        command.env("HOME", folder).env("TERM", "dumb").env_remove("PROMPT_COMMAND");
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let mut shell = Self { child, terminal: terminal.into(), seen: String::new() };
        shell.types(&format!("{setup}\necho REA''DY\n"));
        shell.waits_for("READY\r\n");
        shell
    }

    fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until this was written, and gives what came before.
    #[track_caller]
    fn waits_for(&mut self, wanted: &str) -> String {
        let mut piece = [0; 4096];
        loop {
            if let Some((before, after)) = self.seen.split_once(wanted) {
                let (before, after) = (before.to_owned(), after.to_owned());
                self.seen = after;
                return before;
            }
            let mut ready = [PollFd::new(&self.terminal, PollFlags::IN)];
            let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
            let events = poll(&mut ready, Some(&limit)).unwrap_or(0);
            let count = if events == 0 { 0 } else { self.terminal.read(&mut piece).unwrap_or(0) };
            assert!(count > 0, "{wanted:?} is not in {}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    }

    /// What becomes of a command line when the key for completion was pressed at its end.
    #[track_caller]
    fn completes(&mut self, line: &str) -> String {
        // Tab; then, from the beginning of the line, a command that writes the line.
        self.types(&format!("{line}\t\u{1}printf '%s|' G''OT: \u{5} E''ND\n"));
        self.waits_for("GOT:|");
        self.waits_for("|END|")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The shell ends with its terminal; what waits for it ends with it.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Completes commands, options, values, files and exports in that shell.
#[track_caller]
fn completes_all(words: &[&str], setup: impl Fn(&str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let nbd = nbd_binary().display().to_string();
    let script = folder.path().join("script");
    let name = Path::new(words[0]).file_name().unwrap().to_str().unwrap();
    let text = run(Command::new(&nbd).args(["completion", name]), LIMIT).success();
    std::fs::write(&script, text).unwrap();
    std::fs::write(folder.path().join("my disk.img"), "").unwrap();
    std::fs::create_dir(folder.path().join("images")).unwrap();
    std::fs::write(folder.path().join("images/root.img"), "").unwrap();
    let setup_of_server = Setup { runtime: Runtime::Tokio, transport: Transport::Tcp };
    let server = setup_of_server.serve().args(["alpha=memory:1M", "beta=memory:1M"]).start();
    let uri = server.uri("").trim_end_matches('/').to_owned();
    let mut shell = Shell::start(words, folder.path(), &setup(&script.display().to_string()));
    let mut completed = |words: &str| {
        let done = shell.completes(&format!("{nbd} {words}"));
        done.strip_prefix(&format!("{nbd}|")).unwrap_or_else(|| panic!("{done}")).to_owned()
    };
    for (typed, becomes) in [
        ("ser", "serve".to_owned()),
        ("serve --allocation", "serve|--allocation-depth".into()),
        ("serve --runtime tok", "serve|--runtime|tokio".into()),
        ("serve ima", "serve|images/".into()),
        ("serve images/ro", "serve|images/root.img".into()),
        ("serve x=images/ro", "serve|x=images/root.img".into()),
        ("serve my", "serve|my disk.img".into()),
        ("serve mem", "serve|memory:".into()),
        ("serve memory:", "serve|memory:".into()),
        ("serve x=memory:", "serve|x=memory:".into()),
        ("copy images/ro", "copy|images/root.img".into()),
        (&format!("info {uri}/al"), format!("info|{uri}/alpha")),
        (&format!("info --json {uri}/b"), format!("info|--json|{uri}/beta")),
        (&format!("copy {uri}/alpha {uri}/be"), format!("copy|{uri}/alpha|{uri}/beta")),
        ("info [ ./nbd serve images/r", "info|[|./nbd|serve|images/root.img".into()),
        ("info nbds+", "info|nbds+unix:///?socket=".into()),
        // Nothing completes these.
        ("serve --no-such-op", "serve|--no-such-op".into()),
        ("info nbd://127.0.0.1:1/a", "info|nbd://127.0.0.1:1/a".into()),
    ] {
        assert_eq!(completed(typed), becomes, "{}: {typed}", words[0]);
    }
}

#[test]
fn bash_completes_command_lines() {
    completes_all(&["bash", "--norc", "--noprofile", "-i"], |script| {
        format!(
            "bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; source {script}"
        )
    });
}

#[test]
fn zsh_completes_command_lines() {
    if peers::require("zsh").is_none() {
        return;
    }
    completes_all(&["zsh", "-f", "-i"], |script| {
        format!(
            "unsetopt nomatch; bindkey -e; autoload -Uz compinit; compinit -u -D; source {script}"
        )
    });
}

#[test]
fn fish_completes_command_lines() {
    if peers::require("fish").is_none() {
        return;
    }
    completes_all(&["fish", "--private", "-i"], |script| format!("source {script}"));
}
