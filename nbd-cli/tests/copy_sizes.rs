//! `nbd copy` of files whose size changes while they are copied, and with few descriptors.

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use std::fs::OpenOptions;
use std::io::Read;
use std::process::{Command, Stdio};

use nbd_testkit::process::run;
use nbd_testkit::raw::{Cmd, Mode};
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::{Runtime, Setup, Transport, nbd_binary};
use support::{Folder, MIB, SOON, assert_same, copy, noise, read, refused};

/// Copies a file to a pipe, of which so many bytes are read before the file gets another size. What the copy says.
#[track_caller]
fn resized(folder: &Folder, bytes: &[u8], taken: usize, size: u64) -> String {
    let source = folder.sparse("source", bytes);
    let mut command = Command::new(nbd_binary());
    command.args(["copy", &source, "-"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut vec![0; taken]).unwrap();
    OpenOptions::new().write(true).open(&source).unwrap().set_len(size).unwrap();
    std::io::copy(&mut pipe, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn a_file_that_becomes_shorter_is_not_filled_up_with_zeroes() {
    let folder = Folder::new();
    let mut frag = vec![0; 24 * MIB];
    for part in frag.chunks_mut(MIB) {
        part[..MIB / 2].copy_from_slice(&noise(MIB / 2));
    }
    // Cut within data, within a hole, and in one piece without any.
    for (bytes, size) in [(&frag, 12 * MIB + 100), (&frag, 12 * MIB - 100), (&noise(24 * MIB), MIB)]
    {
        let said = resized(&folder, bytes, 1, size as u64);
        assert!(said.contains("became shorter") && said.contains(&size.to_string()), "{said}");
    }
}

#[test]
fn a_size_that_changes_after_the_last_byte_was_read_is_noticed() {
    let folder = Folder::new();
    // The last piece was read when a part of it was taken, and is more than a pipe holds.
    let taken = 2 * MIB - 200_000;
    for size in [0, MIB, 3 * MIB] {
        let said = resized(&folder, &noise(2 * MIB), taken, size as u64);
        let numbers = format!("from 2097152 to {size} bytes");
        assert!(said.contains("has changed its size") && said.contains(&numbers), "{said}");
    }
}

#[test]
fn a_destination_that_gets_another_size_is_noticed() {
    let folder = Folder::new();
    let to = folder.text("to");
    let script = Script::new(Export::new(Mode::Extended)).enter();
    let server = ScriptedServer::unix([script.request(Cmd::READ).hold().obey().serve()]);
    let uri = server.endpoint().uri("");
    let said = std::thread::scope(|scope| {
        let copying = scope.spawn(|| refused(&["-C", "1", "--no-extents", &uri, &to]));
        server.wait_for_requests(1);
        // It has its size before anything is read.
        OpenOptions::new().write(true).open(&to).unwrap().set_len(2 << 20).unwrap();
        server.release();
        copying.join().expect("it is refused")
    });
    assert!(said.contains("from 1048576 to 2097152 bytes"), "{said}");
    server.finish();
}

#[test]
fn files_without_a_meaningful_size_are_read_to_their_end() {
    let folder = Folder::new();
    let to = folder.text("to");
    copy(&["/proc/version", &to]);
    assert_same(&read(&to), &read("/proc/version"));
    let empty = folder.file("empty", b"");
    copy(&["--verify", &empty, &to]);
    assert_eq!(read(&to), b"");
}

#[test]
fn a_file_that_has_less_than_its_size_says_did_not_become_shorter() {
    // Its size is that of a page.
    let path = "/sys/kernel/uevent_seqnum";
    let Ok(bytes) = std::fs::read(path) else {
        eprintln!("SKIPPED: a file with less than its size says, as there is no {path}");
        return;
    };
    let folder = Folder::new();
    let to = folder.text("to");
    let said = refused(&[path, &to]);
    let size = std::fs::metadata(path).unwrap().len();
    let wanted = format!("only {} bytes could be read, though its size is {size}", bytes.len());
    assert!(said.contains(&wanted), "{wanted} is not in: {said}");
}

#[test]
fn few_descriptors_end_in_a_copy_or_a_message() {
    let folder = Folder::new();
    let bytes = noise(MIB);
    let (source, to) = (folder.file("source", &bytes), folder.text("to"));
    let server =
        Setup { runtime: Runtime::Blocking, transport: Transport::Unix }.serving("memory:1M");
    let uri = server.uri("");
    for [from, to] in [[&source, &to], [&source, &uri], [&uri, &to], [&uri, &uri]] {
        let mut copies = 0;
        // With fewer the program itself can't be loaded.
        for count in 4..20 {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("ulimit -n {count}; exec \"$@\""), "sh"]);
            let finished = run(command.arg(nbd_binary()).args(["copy", from, to]), SOON);
            match finished.status.code() {
                Some(0) => copies += 1,
                Some(1) => assert!(finished.stderr.starts_with("nbd: "), "{}", finished.stderr),
                code => panic!("{from} to {to} with {count}: {code:?} {}", finished.stderr),
            }
        }
        assert!(copies > 0, "{from} to {to}");
    }
    assert_same(&read(&to), &bytes);
}
