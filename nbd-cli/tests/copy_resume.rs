//! `nbd copy --resume`: copies that are interrupted, and go on.

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nbd_testkit::process::Background;
use nbd_testkit::raw::{BlockSize, Cmd, Mode, flag};
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::nbd_binary;
use nbd_testkit::{LoopDevice, cases};
use support::{Folder, MIB, SOON, assert_same, copy, noise, read, refused, try_copy};

const SIZE: usize = 16 * MIB;
/// Bytes of a request.
const STEP: usize = MIB;
const ONE_BY_ONE: [&str; 7] =
    ["--resume", "--synchronous", "--request-size", "1M", "-S", "0", "--no-extents"];

/// Before a copy goes on, so much of it is compared with the source, by a read each.
const SAMPLES: usize = 16;

/// A connection that answers so many reads, and breaks at the next.
fn reads(count: usize) -> Script {
    reads_of(SIZE, count)
}

fn reads_of(size: usize, count: usize) -> Script {
    let script = Script::new(reads_export(size)).enter();
    (0..count).fold(script, |script, _| script.request(Cmd::READ).obey())
}

fn reads_export(size: usize) -> Export {
    let mut export = Export::new(Mode::Extended);
    export.size = size as u64;
    export
}

#[test]
fn an_interrupted_copy_goes_on_where_it_was() {
    let folder = Folder::new();
    let (to, record) = (folder.text("to"), folder.text("to.nbd-copy"));
    let all = SIZE / STEP;
    let server = ScriptedServer::unix([
        reads(5).header(Cmd::READ),
        reads(SAMPLES + 4).header(Cmd::READ),
        reads(SAMPLES + all - 9).header(Cmd::DISC),
        reads(all).header(Cmd::DISC),
    ]);
    let uri = server.endpoint().uri("");
    let words = [&ONE_BY_ONE[..], &[&uri, &to]].concat();
    let going_on = |done: usize| {
        format!("nbd: going on with the interrupted copy after {done}.0 MiB of 16.0 MiB\n")
    };
    for (done, before) in [(5, None), (9, Some(5))] {
        let said = refused(&words);
        assert!(
            said.contains(&format!("; the same command goes on after {done}.0 MiB of 16.0 MiB\n")),
            "{said}"
        );
        assert_eq!(said.contains("going on"), before.is_some(), "{said}");
        assert!(before.is_none_or(|before| said.starts_with(&going_on(before))), "{said}");
        assert!(said.contains(&format!("at offset {}:", done * STEP)), "{said}");
        let recorded = fs::read_to_string(&record).unwrap();
        assert!(recorded.contains(&format!("\"copied\": {}", done * STEP)), "{recorded}");
    }
    let finished = try_copy(&words);
    assert_eq!(finished.stderr, going_on(9));
    finished.success();
    assert!(fs::metadata(&record).is_err(), "the copy is complete, which needs no record");
    // Another copy of the same, which has no record, has everything from the beginning.
    let whole = folder.text("whole");
    copy(&[&ONE_BY_ONE[..], &[&uri, &whole]].concat());
    assert_same(&read(&to), &read(&whole));
    server.finish();
}

/// It was interrupted before the file had its size, or as it got it.
#[test]
fn a_file_of_which_nothing_is_copied_may_have_any_size() {
    let folder = Folder::new();
    let to = folder.text("to");
    let all = SIZE / STEP;
    let server = ScriptedServer::unix([reads(0).header(Cmd::READ), reads(all).header(Cmd::DISC)]);
    let uri = server.endpoint().uri("");
    let words = [&ONE_BY_ONE[..], &[&uri, &to]].concat();
    refused(&words);
    let recorded = fs::read_to_string(folder.text("to.nbd-copy")).unwrap();
    assert!(recorded.contains("\"copied\": 0"), "{recorded}");
    fs::File::options().write(true).open(&to).unwrap().set_len(5).unwrap();
    copy(&words);
    assert_eq!(fs::metadata(&to).unwrap().len(), SIZE as u64);
    server.finish();
}

/// The server may have come back with larger blocks than those in which the copy was interrupted.
#[test]
fn a_copy_goes_on_at_the_beginning_of_a_block() {
    let folder = Folder::new();
    let to = folder.text("to");
    let mut export = Export::new(Mode::Extended);
    export.size = MIB as u64;
    let whole = Export::CONTENT.bytes(0, MIB);
    export.block_size = Some(BlockSize { minimum: 4096, preferred: 4096, maximum: 1 << 20 });
    let server = ScriptedServer::unix([
        reads_of(MIB, 5).header(Cmd::READ),
        Script::new(export).enter().serve(),
    ]);
    let uri = server.endpoint().uri("");
    let words = ["--resume", "--synchronous", "--request-size", "1000", "-S", "0", "--no-extents"];
    let words = [&words[..], &[&uri, &to]].concat();
    refused(&words);
    let recorded = fs::read_to_string(folder.text("to.nbd-copy")).unwrap();
    assert!(recorded.contains("\"copied\": 5000"), "{recorded}");
    copy(&words);
    assert_same(&read(&to), &whole);
    server.finish();
}

/// The source of a copy to a block device, and the size of a request there.
const SMALL: usize = MIB;
const SMALL_STEP: usize = 64 << 10;
const SMALL_ONE_BY_ONE: [&str; 7] =
    ["--resume", "--synchronous", "--request-size", "64k", "-S", "0", "--no-extents"];

#[test]
fn an_interrupted_copy_onto_a_block_device_goes_on_where_it_was() {
    if !LoopDevice::are_possible() {
        return;
    }
    let folder = Folder::new();
    let record = folder.text("record");
    let device = LoopDevice::new(&vec![7; SMALL + SMALL_STEP]);
    let all = SMALL / SMALL_STEP;
    let server = ScriptedServer::unix([
        reads_of(SMALL, 5).header(Cmd::READ),
        reads_of(SMALL, SAMPLES + 4).header(Cmd::READ),
        reads_of(SMALL, SAMPLES + all - 9).header(Cmd::DISC),
        reads_of(SMALL, all).header(Cmd::DISC),
    ]);
    let uri = server.endpoint().uri("");
    let words = [&SMALL_ONE_BY_ONE[..], &["--record", &record, &uri, &device.path]].concat();
    for done in [5, 9] {
        let said = refused(&words);
        assert!(said.contains(&format!("at offset {}:", done * SMALL_STEP)), "{said}");
        let recorded = fs::read_to_string(&record).unwrap();
        assert!(recorded.contains(&format!("\"copied\": {}", done * SMALL_STEP)), "{recorded}");
    }
    copy(&words);
    assert!(fs::metadata(&record).is_err(), "the copy is complete, which needs no record");
    let whole = folder.text("whole");
    copy(&[&SMALL_ONE_BY_ONE[..], &[&uri, &whole]].concat());
    let copied = read(&device.path);
    assert_same(&copied[..SMALL], &read(&whole));
    assert!(copied[SMALL..].iter().all(|byte| *byte == 7), "what the source does not have stays");
    server.finish();
}

#[test]
fn a_copy_goes_on_to_the_same_disk_under_another_name_and_to_no_other_disk() {
    if !LoopDevice::are_possible() {
        return;
    }
    let folder = Folder::new();
    let (record, disk) = (folder.text("record"), folder.file("disk", &vec![7; SMALL]));
    let server = ScriptedServer::unix([
        reads_of(SMALL, 3).header(Cmd::READ),
        reads_of(SMALL, 0).header(Cmd::DISC),
        reads_of(SMALL, SAMPLES).serve(),
        reads_of(SMALL, SAMPLES + SMALL / SMALL_STEP - 3).header(Cmd::DISC),
    ]);
    let uri = server.endpoint().uri("");
    let to = |device: &LoopDevice| {
        try_copy(&[&SMALL_ONE_BY_ONE[..], &["--record", &record, &uri, &device.path]].concat())
    };
    let refused = |device: &LoopDevice| {
        let finished = to(device);
        assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
        finished.stderr
    };
    let device = LoopDevice::on(disk.as_ref());
    refused(&device);
    // Another disk of that size takes the number.
    drop(device);
    let other = LoopDevice::new(&vec![7; SMALL]);
    let said = refused(&other);
    assert!(said.contains("the destination") && said.contains("is not the one"), "{said}");
    let device = LoopDevice::on(disk.as_ref());
    // It was written to.
    let copied = read(&device.path);
    fs::write(&device.path, vec![0; SMALL_STEP]).unwrap();
    let said = refused(&device);
    assert!(said.contains("was written to since") && said.contains(&record), "{said}");
    fs::write(&device.path, &copied[..SMALL_STEP]).unwrap();
    to(&device).success();
    assert!(fs::metadata(&record).is_err(), "the copy is complete");
    server.finish();
}

/// A server for a file, and its URI.
fn serve(folder: &Folder, file: &str) -> (Background, String) {
    let socket = folder.text(&format!("{file}.sock"));
    let mut command = Command::new(nbd_binary());
    command.args(["serve", "-U", &socket, &folder.text(file)]);
    let server = Background::spawn(&mut command).unwrap();
    assert!(server.next_line(SOON).is_some(), "{}", server.stderr());
    (server, format!("nbd+unix:///?socket={socket}"))
}

/// Something is killed, by SIGKILL, when four more requests than recorded are copied.
#[test]
fn a_copy_onto_a_server_goes_on_after_it_or_the_server_was_killed() {
    let all = SMALL / SMALL_STEP;
    for the_server in [true, false] {
        let folder = Folder::new();
        let record = folder.text("record");
        folder.file("disk", &vec![7; SMALL + SMALL_STEP]);
        let source = ScriptedServer::unix([
            reads_of(SMALL, 5).header(Cmd::READ),
            reads_of(SMALL, SAMPLES + 4).header(Cmd::READ).silence(),
            reads_of(SMALL, SAMPLES + all - 5).header(Cmd::DISC),
            reads_of(SMALL, all).header(Cmd::DISC),
        ]);
        let (mut server, to) = serve(&folder, "disk");
        let from = source.endpoint().uri("");
        let words = [&SMALL_ONE_BY_ONE[..], &["--record", &record, &from, &to]].concat();
        let five = format!("\"copied\": {}", 5 * SMALL_STEP);
        refused(&words);
        assert!(fs::read_to_string(&record).unwrap().contains(&five));
        let mut command = Command::new(nbd_binary());
        let mut copying = Background::spawn(command.arg("copy").args(&words)).unwrap();
        source.wait_for_requests(6 + SAMPLES + 5);
        if the_server {
            server.kill();
            assert!(server.wait_exit(SOON).is_some());
            // What was copied since is not known to be durable, and is not recorded.
            copying.interrupt();
        } else {
            copying.kill();
        }
        assert!(copying.wait_exit(SOON).is_some());
        assert!(fs::read_to_string(&record).unwrap().contains(&five));
        if the_server {
            server = serve(&folder, "disk").0;
        }
        copy(&words);
        assert!(fs::metadata(&record).is_err(), "the copy is complete, which needs no record");
        let whole = folder.text("whole");
        copy(&[&SMALL_ONE_BY_ONE[..], &[&from, &whole]].concat());
        let copied = read(folder.text("disk"));
        assert_same(&copied[..SMALL], &read(&whole));
        assert!(copied[SMALL..].iter().all(|byte| *byte == 7));
        source.finish();
        drop(server);
    }
}

#[test]
fn a_copy_does_not_go_on_onto_another_export_or_one_that_was_written_to() {
    let folder = Folder::new();
    let record = folder.text("record");
    let disk = folder.file("disk", &vec![7; SMALL]);
    folder.file("other", &vec![7; SMALL + 1]);
    let source = ScriptedServer::unix([
        reads_of(SMALL, 3).header(Cmd::READ),
        reads_of(SMALL, 0).header(Cmd::DISC),
        reads_of(SMALL, SAMPLES).serve(),
    ]);
    let from = source.endpoint().uri("");
    let (_server, to) = serve(&folder, "disk");
    let onto =
        |to: &str| refused(&[&SMALL_ONE_BY_ONE[..], &["--record", &record, &from, to]].concat());
    onto(&to);
    let (_server, other) = serve(&folder, "other");
    let said = onto(&other);
    assert!(said.contains("the destination") && said.contains("is not the one"), "{said}");
    assert!(said.contains(&format!("it has {} bytes instead of {SMALL}", SMALL + 1)), "{said}");
    fs::write(&disk, vec![0; SMALL]).unwrap();
    let said = onto(&to);
    assert!(said.contains("was written to since") && said.contains(&record), "{said}");
    assert_eq!(read(&disk), vec![0; SMALL], "nothing was written");
}

#[test]
fn the_record_of_a_file_is_beside_it_and_that_of_anything_else_where_it_is_said() {
    let folder = Folder::new();
    let (from, to) = (folder.file("from", &noise(MIB)), folder.text("to"));
    let record = folder.text("record");
    let usage = |words: &[&str], wanted: &str| {
        let finished = try_copy(words);
        assert_eq!(finished.status.code(), Some(64), "{words:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(wanted), "{words:?}: {}", finished.stderr);
    };
    usage(&["--resume", "--record", &record, &from, &to], "is beside it");
    assert!(fs::metadata(&to).is_err());
    usage(&["--record", &record, &from, &to], "--resume");
    let mut export = Export::new(Mode::Extended);
    export.size = MIB as u64;
    let flushed = Script::new(export.clone()).enter();
    export.flags &= !flag::SEND_FLUSH;
    let server = ScriptedServer::unix([flushed.serve(), Script::new(export).enter().serve()]);
    let uri = server.endpoint().uri("");
    usage(&["--resume", &from, &uri], ", a server; say where to keep it by --record FILE");
    usage(&["--resume", "--record", &record, &from, &uri], "can't be flushed");
    if LoopDevice::are_possible() {
        let device = LoopDevice::new(&vec![7; MIB]);
        usage(&["--resume", &from, &device.path], "--record FILE");
        assert!(read(&device.path).iter().all(|byte| *byte == 7), "it was not written to");
    }
}

#[test]
fn a_copy_that_was_not_interrupted_is_like_any_other() {
    let folder = Folder::new();
    let data = noise(3 * MIB + 17);
    let (from, to) = (folder.file("from", &data), folder.text("to"));
    for _ in 0..2 {
        copy(&["--resume", &from, &to]);
        assert_same(&read(&to), &data);
        assert!(fs::metadata(folder.path("to.nbd-copy")).is_err());
    }
}

#[test]
fn a_copy_does_not_go_on_with_anything_else() {
    let folder = Folder::new();
    let (to, record) = (folder.text("to"), folder.path("to.nbd-copy"));
    let server = ScriptedServer::unix([reads(2).header(Cmd::READ)]);
    refused(&[&ONE_BY_ONE[..], &[&server.endpoint().uri(""), &to]].concat());
    let kept = fs::read(&record).unwrap();
    let partial = read(&to);

    // Another source.
    let data = noise(SIZE);
    let other = folder.file("other", &data);
    let said = refused(&["--resume", &other, &to]);
    assert!(said.contains("the source") && said.contains("to.nbd-copy"), "{said}");
    // Not a record.
    fs::write(&record, "{}").unwrap();
    let said = refused(&["--resume", &other, &to]);
    assert!(said.contains("no record"), "{said}");
    fs::write(&record, &kept).unwrap();
    assert_same(&read(&to), &partial);

    // Without --resume everything is copied, and the record is not true any more.
    copy(&[&other, &to]);
    assert_same(&read(&to), &data);
    assert!(!record.exists());
}

#[test]
fn a_source_or_a_destination_that_was_changed_is_noticed() {
    let folder = Folder::new();
    let (to, record) = (folder.text("to"), folder.path("to.nbd-copy"));
    let server =
        ScriptedServer::unix([reads(3).header(Cmd::READ), reads(0).serve(), reads(0).serve()]);
    let uri = server.endpoint().uri("");
    let words = [&ONE_BY_ONE[..], &[&uri, &to]].concat();
    refused(&words);
    let file = fs::OpenOptions::new().write(true).open(&to).unwrap();
    file.set_len(5).unwrap();
    let said = refused(&words);
    let differs = format!("it has 5 bytes instead of {SIZE}; remove that file");
    assert!(said.contains("the destination") && said.contains(&differs), "{said}");
    // Another file of that name.
    fs::remove_file(&to).unwrap();
    fs::write(folder.path("new"), vec![0; SIZE]).unwrap();
    fs::rename(folder.path("new"), &to).unwrap();
    let said = refused(&words);
    assert!(said.contains("the destination") && said.contains("it is another file;"), "{said}");
    assert!(record.exists());
}

/// Whatever somebody does to a destination of which a part is copied: the copy is refused, or right.
#[test]
fn a_destination_that_was_replaced_is_not_gone_on_with() {
    let folder = Folder::new();
    let to = folder.path("to");
    let text = folder.text("to");
    let whole = Export::CONTENT.bytes(0, SIZE);
    cases(12, |random| {
        for path in [&to, &folder.path("to.nbd-copy"), &folder.path("aside")] {
            fs::remove_file(path).ok();
        }
        let copied = 1 + random.below((SIZE / STEP - 1) as u64) as usize;
        let server = ScriptedServer::unix([
            reads(copied).header(Cmd::READ),
            Script::new(reads_export(SIZE)).enter().serve(),
        ]);
        let uri = server.endpoint().uri("");
        let words = [&ONE_BY_ONE[..], &[&uri, &text]].concat();
        refused(&words);
        let partial = read(&text);
        let is_same = match random.below(6) {
            // The next file may get the number of the one before.
            0 => {
                fs::remove_file(&to).unwrap();
                let file = fs::File::create(&to).unwrap();
                file.set_len(SIZE as u64).unwrap();
                false
            }
            1 => {
                fs::remove_file(&to).unwrap();
                fs::write(&to, noise(SIZE)).unwrap();
                false
            }
            // In its place.
            2 => {
                fs::File::create(&to).unwrap().set_len(SIZE as u64).unwrap();
                false
            }
            3 => {
                fs::write(&to, noise(SIZE)).unwrap();
                false
            }
            4 => {
                fs::rename(&to, folder.path("aside")).unwrap();
                fs::rename(folder.path("aside"), &to).unwrap();
                true
            }
            _ => {
                fs::write(&to, &partial).unwrap();
                true
            }
        };
        let finished = try_copy(&words);
        assert_eq!(finished.status.success(), is_same, "{}", finished.stderr);
        if is_same {
            assert_same(&read(&text), &whole);
        } else {
            assert!(
                finished.stderr.contains("remove that file to begin anew"),
                "{}",
                finished.stderr
            );
        }
    });
}

#[test]
fn what_can_not_be_resumed_is_said() {
    let folder = Folder::new();
    let from = folder.file("from", &noise(MIB));
    // Nobody opens its other end.
    let pipe = folder.text("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    for (from, to) in [
        (&*from, "null:"),
        (&from, "-"),
        (&from, "/dev/stdout"),
        (&from, &pipe),
        (&pipe, &folder.text("to")),
    ] {
        let finished = try_copy(&["--resume", from, to]);
        assert_eq!(finished.status.code(), Some(64), "{to}: {}", finished.stderr);
        assert!(finished.stderr.contains("--resume"), "{to}: {}", finished.stderr);
    }
}

#[test]
fn a_copy_that_is_refused_leaves_no_destination_that_was_not_there() {
    let folder = Folder::new();
    let (from, to) = (folder.file("from", &noise(MIB)), folder.text("to"));
    let record = folder.file("to.nbd-copy", b"{}");
    for words in [&["--resume", &from, &to][..], &["--resume", "-", &to], &["--verify", "-", &to]] {
        let finished = try_copy(words);
        assert!(!finished.status.success(), "{words:?}");
        assert!(fs::metadata(&to).is_err(), "{words:?} left the destination: {}", finished.stderr);
    }
    // What was there stays, even if it is empty.
    folder.file("to", b"");
    refused(&["--resume", &from, &to]);
    assert_eq!(fs::metadata(&to).unwrap().len(), 0);
    assert_eq!(fs::read(&record).unwrap(), b"{}");
}

/// Nothing else says how far it is: the record is written every 256 MiB.
#[test]
fn a_signal_has_what_is_done_recorded() {
    let folder = Folder::new();
    let (to, record) = (folder.text("to"), folder.path("to.nbd-copy"));
    // As `timeout` sends it: to the program, and to its process group. On a busy machine the other one may come later.
    let interrupted = || {
        let server = ScriptedServer::unix([reads(3).header(Cmd::READ).silence(), reads(0).serve()]);
        let uri = server.endpoint().uri("");
        let words = [&ONE_BY_ONE[..], &[&uri, &to]].concat();
        let mut command = Command::new(nbd_binary());
        let mut copying = Background::spawn(command.arg("copy").args(&words)).unwrap();
        // Three of them are copied when the fourth is asked for, which is never answered.
        server.wait_for_requests(4);
        let began = Instant::now();
        copying.interrupt();
        thread::sleep(Duration::from_millis(1));
        copying.interrupt();
        let both = began.elapsed() < Duration::from_millis(100);
        let status = copying.wait_exit(SOON).expect("it ends");
        assert_eq!(status.code(), Some(130));
        if both {
            return Some((server, copying.stderr()));
        }
        for left in [&to, &record.display().to_string()] {
            drop(fs::remove_file(left));
        }
        None
    };
    let (server, said) = (0..100).find_map(|_| interrupted()).expect("a moment of peace");
    let finishing =
        "nbd: interrupted: finishing what is in flight; a second signal ends this at once\n";
    let goes_on = "nbd: interrupted; the same command goes on after 3.0 MiB of 16.0 MiB\n";
    assert_eq!(said, [finishing, goes_on].concat());
    let recorded = fs::read_to_string(&record).unwrap();
    assert!(recorded.contains(&format!("\"copied\": {}", 3 * STEP)), "{recorded}");
    copy(&[&ONE_BY_ONE[..], &[&server.endpoint().uri(""), &to]].concat());
    assert!(!record.exists());
    server.finish();
}

#[test]
fn a_copy_without_a_record_says_nothing_of_going_on() {
    let folder = Folder::new();
    let server =
        ScriptedServer::unix([reads(2).header(Cmd::READ), reads(2).header(Cmd::READ).silence()]);
    let (uri, to) = (server.endpoint().uri(""), folder.text("to"));
    let words = [&ONE_BY_ONE[1..], &[&uri, &to]].concat();
    let said = refused(&words);
    assert!(!said.contains("the same command"), "{said}");
    let mut command = Command::new(nbd_binary());
    let mut copying = Background::spawn(command.arg("copy").args(&words)).unwrap();
    server.wait_for_requests(6);
    copying.interrupt();
    assert!(copying.wait_exit(SOON).is_some());
    assert_eq!(copying.stderr(), "");
}

#[test]
fn what_a_killed_copy_left_of_a_new_record_goes_with_the_next_one() {
    let folder = Folder::new();
    let data = noise(MIB);
    let (from, to) = (folder.file("from", &data), folder.text("to"));
    for words in [&["--resume", &from, &to][..], &[&from, &to]] {
        folder.file("to.nbd-copy.new", b"{ \"nbd co");
        copy(words);
        assert_same(&read(&to), &data);
        let left = fs::read_dir(folder.path("to").parent().unwrap()).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
