//! `nbd copy` that a signal comes upon at any moment: it is complete, or interrupted.

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use nbd_testkit::process::{Background, wait_until};
use nbd_testkit::server::nbd_binary;
use nbd_testkit::{Random, cases};
use support::{Folder, MIB, SOON, assert_same, noise, read, try_copy};

const SIZE: usize = 8 * MIB;
const FINISHING: &str =
    "nbd: interrupted: finishing what is in flight; a second signal ends this at once\n";
const NOT_BEGUN: &str = "nbd: interrupted before the copy began\n";

/// A server of a file that takes its time, and its URI.
fn serve(folder: &Folder, file: &str) -> (Background, String) {
    let socket = folder.text(&format!("{file}.sock"));
    let mut command = Command::new(nbd_binary());
    command.args(["serve", "--layer", "rate:32M", "-U", &socket, &folder.text(file)]);
    let server = Background::spawn(&mut command).unwrap();
    assert!(server.next_line(SOON).is_some(), "{}", server.stderr());
    (server, format!("nbd+unix:///?socket={socket}"))
}

/// Runs a copy, and interrupts it when so many blocks of its destination are there, if it does not end before.
fn interrupted(words: &[&str], destination: &str, random: &mut Random) -> (ExitStatus, String) {
    let blocks = some_blocks(random);
    let mut command = Command::new(nbd_binary());
    let mut copying = Background::spawn(command.arg("copy").args(words)).unwrap();
    let written = || fs::metadata(destination).map_or(0, |metadata| metadata.blocks());
    while written() < blocks && copying.is_running() {
        thread::yield_now();
    }
    pause(random, blocks);
    copying.interrupt();
    let status = copying.wait_exit(SOON).expect("it ends");
    (status, copying.stderr())
}

/// Most moments are in the middle. What is special is the end, and the beginning.
fn some_blocks(random: &mut Random) -> u64 {
    let all = SIZE as u64 / 512;
    match random.below(4) {
        0 => 0,
        1 => random.below(all),
        _ => all - random.below(64),
    }
}

/// From the first moment on, when there is nothing to wait for.
fn pause(random: &mut Random, blocks: u64) {
    if blocks == 0 {
        thread::sleep(Duration::from_millis(random.below(60)));
    }
}

#[test]
fn a_copy_with_a_record_is_complete_or_goes_on() {
    cases(24, |random| {
        let folder = Folder::new();
        let data = noise(SIZE);
        folder.file("from", &data);
        let (to, record) = (folder.text("to"), folder.text("record"));
        let (_source, from) = serve(&folder, "from");
        // Onto a file, whose record is beside it, or onto a server, which may have much in flight, and which may be started
        // by the copy.
        let way = random.below(3);
        let record = if way == 0 { folder.text("to.nbd-copy") } else { record };
        if way > 0 {
            fs::File::create(&to).unwrap().set_len(SIZE as u64).unwrap();
        }
        let onto = (way == 1).then(|| serve(&folder, "to"));
        let program = nbd_binary().display().to_string();
        let words: &[&str] = match (&onto, way) {
            (Some((_server, onto)), _) => &["--resume", "--record", &record, &from, onto],
            (None, 0) => &["--resume", &from, &to],
            (None, _) => &[
                "--resume", "--record", &record, &from, "[", &program, "serve", "--layer",
                "rate:32M", &to, "]",
            ],
        };
        let (status, said) = interrupted(words, &to, random);
        let is_recorded = fs::metadata(&record).is_ok();
        match status.code() {
            Some(0) => {
                assert_eq!((said.as_str(), is_recorded), ("", false));
                return assert_same(&read(&to), &data);
            }
            Some(130) if said == NOT_BEGUN => {
                // What was not there before is not there now.
                let is_there = way == 0 && fs::metadata(&to).is_ok();
                assert_eq!((is_recorded, is_there), (false, false));
            }
            Some(130) => {
                assert!(is_recorded, "{said}");
                let last = said.strip_prefix(FINISHING).expect(&said);
                assert!(last.starts_with("nbd: interrupted; the same command "), "{said}");
                assert!(
                    last.ends_with(" of 8.0 MiB\n") || last.ends_with("begins anew\n"),
                    "{said}"
                );
            }
            // It did not watch for signals yet.
            _ => assert_eq!((status.signal(), said.as_str(), is_recorded), (Some(2), "", false)),
        }
        let finished = try_copy(words);
        // It goes on where it was said.
        let after = said.split_once("goes on after ").map(|(_, after)| after);
        let goes_on =
            after.map(|after| format!("nbd: going on with the interrupted copy after {after}"));
        assert_eq!(finished.stderr, goes_on.unwrap_or_default());
        finished.success();
        assert_same(&read(&to), &data);
        assert!(fs::metadata(&record).is_err());
    });
}

#[test]
fn a_copy_without_a_record_is_complete_or_no_success() {
    cases(8, |random| {
        let folder = Folder::new();
        let data = noise(SIZE);
        let (disk, to) = (folder.file("from", &data), folder.text("to"));
        let (_source, from) = serve(&folder, "from");
        let command = ["[", "nbd", "serve", "--layer", "rate:32M", &disk, "]", &to];
        let nbd = nbd_binary().display().to_string();
        let command = command.map(|word| if word == "nbd" { &nbd } else { word });
        // A server that was started for it is stopped first.
        let words: &[&str] = if random.one_in(2) { &[&from, &to] } else { &command };
        let (status, said) = interrupted(words, &to, random);
        assert_eq!(said, "");
        match status.code() {
            Some(0) => assert_same(&read(&to), &data),
            code => assert!(code == Some(130) || status.signal() == Some(2), "{status}"),
        }
    });
}

#[test]
fn signals_that_were_ignored_before_a_copy_began_do_not_interrupt_it() {
    cases(8, |random| {
        let folder = Folder::new();
        let data = noise(SIZE);
        folder.file("from", &data);
        let (to, record) = (folder.text("to"), folder.path("to.nbd-copy"));
        let (_source, from) = serve(&folder, "from");
        let all = ["HUP", "INT", "QUIT", "TERM"];
        let is_ignored = all.map(|_| random.one_in(2));
        let ignored = all.iter().zip(is_ignored).filter_map(|(name, is)| is.then_some(*name));
        let trap = Vec::from_iter(ignored.map(|name| format!("trap '' {name};"))).concat();
        let mut command = Command::new("sh");
        let script = format!("{trap} exec \"$0\" copy --resume \"$1\" \"$2\"");
        command.arg("-c").arg(script).arg(nbd_binary()).args([&from, &to]);
        let mut copying = Background::spawn(&mut command).unwrap();
        // It may even have ended by then.
        let has_begun = || fs::metadata(&record).is_ok() || !copying.is_running();
        wait_until("the copy has begun", SOON, has_begun);
        let sent = random.below(all.len() as u64) as usize;
        [Background::hang_up, Background::interrupt, Background::quit, Background::terminate][sent](
            &copying,
        );
        let status = copying.wait_exit(SOON).expect("it ends");
        if is_ignored[sent] {
            assert_eq!((status.code(), copying.stderr().as_str()), (Some(0), ""));
            assert_same(&read(&to), &data);
        } else if !status.success() {
            assert_eq!(status.code(), Some(128 + [1, 2, 3, 15][sent]), "{}", copying.stderr());
        }
    });
}
