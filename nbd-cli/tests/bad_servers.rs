//! Commands whose server does not mean well: it falls silent, forges messages, or never has enough.

use std::process::Command;
use std::time::Duration;

use nbd_testkit::process::{Finished, run};
use nbd_testkit::raw::{Mode, Opt, Rep};
use nbd_testkit::scripted::{Export, OptionAnswer, Script, ScriptedServer};
use nbd_testkit::server::nbd_binary;

const SOON: Duration = Duration::from_secs(60);

/// Runs a command on a server that plays these scripts, one for each connection.
fn on(scripts: Vec<Script>, words: &[&str], after: &[&str]) -> Finished {
    let server = ScriptedServer::unix(scripts);
    let uri = server.endpoint().uri("");
    run(Command::new(nbd_binary()).args(words).arg(&uri).args(after), SOON)
}

#[test]
fn a_server_that_falls_silent_is_waited_for_until_the_timeout() {
    let silent = || Script::new(Export::new(Mode::Extended)).enter().silence();
    let negotiating = || Script::new(Export::new(Mode::Extended)).until(Opt::GO).silence();
    for script in [silent(), negotiating()] {
        for (words, after) in [
            (&["map", "--timeout", "100ms"][..], &[][..]),
            (&["copy", "--timeout", "100ms"], &["null:"]),
        ] {
            let finished = on(vec![script.clone()], words, after);
            assert_eq!(finished.status.code(), Some(1), "{words:?}: {}", finished.stderr);
            assert!(finished.stderr.contains("longer than 100ms"), "{}", finished.stderr);
        }
    }
}

#[test]
fn a_servers_words_can_forge_no_line_of_ours() {
    let text = b"no\nnbd: all is well\x1b[2K\xe2\x80\xae";
    let answer = OptionAnswer::new(Rep::ERR_POLICY, text);
    let script = Script::new(Export::new(Mode::Simple)).until(Opt::GO).answer_option(answer);
    for words in [&["map"][..], &["info", "--size"]] {
        let finished = on(vec![script.clone()], words, &[]);
        assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert!(finished.stderr.contains(r"no\nnbd: all is well"), "{}", finished.stderr);
        let odd = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!finished.stderr.contains(odd), "{:?}", finished.stderr);
    }
}

#[test]
fn a_list_that_would_take_all_memory_ends() {
    let mut export = Export::new(Mode::Extended);
    export.contexts = (0..10_000).map(|n| (n, format!("x:{n:04000}"))).collect();
    let mut script = Script::new(export).until(Opt::LIST);
    for name in [b"a", b"b"] {
        let data = [&1_u32.to_be_bytes()[..], name].concat();
        script = script.answer_option(OptionAnswer::new(Rep::SERVER, &data));
    }
    let script = script.answer_option(OptionAnswer::ack()).go_on();
    let finished = on(vec![script], &["list"], &[]);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    let says = "the list ends before \"b\": the server reports more than 64 MiB";
    assert!(finished.stderr.contains(says), "{}", finished.stderr);
    assert!(finished.stdout.contains("export=\"a\"") && !finished.stdout.contains("export=\"b\""));
}
