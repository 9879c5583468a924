//! `nbd copy` of something onto itself is refused where that can be known, and nothing else is.

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use std::process::Command;

use nbd_testkit::LoopDevice;
use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::server::{Runtime, Setup, Transport, nbd_binary};
use support::{Folder, MIB, SOON, assert_same, copy, nbdkit, noise, read, refused};

const SETUP: Setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };

/// The commands of servers of this file, between brackets.
fn servers(file: &str) -> Vec<Vec<String>> {
    let nbd = nbd_binary().display().to_string();
    let mut servers = vec![vec![nbd, "serve".into(), file.into()]];
    if peers::require("nbdkit").is_some() {
        servers.push(["nbdkit", "file", file].map(str::to_owned).to_vec());
    }
    if peers::require("qemu-nbd").is_some() {
        servers.push(["qemu-nbd", "-f", "raw", file].map(str::to_owned).to_vec());
    }
    servers
}

fn bracketed(server: &[String]) -> Vec<&str> {
    let words = server.iter().map(String::as_str);
    ["["].into_iter().chain(words).chain(["]"]).collect()
}

#[test]
fn a_file_that_the_other_side_serves_is_left_alone() {
    let folder = Folder::new();
    let bytes = noise(MIB);
    let file = folder.file("file", &bytes);
    let (hard, soft) = (folder.text("hard"), folder.text("soft"));
    std::fs::hard_link(&file, &hard).unwrap();
    std::os::unix::fs::symlink(&file, &soft).unwrap();
    let path = std::fs::canonicalize(&file).unwrap();
    let (serves, writes) = (
        format!("serves ({})", path.display()),
        format!("serves and writes to ({})", path.display()),
    );
    for server in servers(&file) {
        let server = bracketed(&server);
        for name in [&*file, &*hard, &*soft] {
            let said = refused(&[&server[..], &[name]].concat());
            assert!(said.contains(&serves), "{said}");
            let said = refused(&[&[name], &server[..]].concat());
            assert!(said.contains(&writes), "{said}");
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"exec "$@" - >>"$FILE""#, "sh"]).arg(nbd_binary()).arg("copy");
        let finished = run(shell.args(&server).env("FILE", &file), SOON);
        assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
        for other in servers(&hard) {
            let said = refused(&[&server[..], &bracketed(&other)[..]].concat());
            // qemu-nbd has its own way to keep others out.
            assert!(said.contains("both serve") || said.contains("lock"), "{said}");
        }
        assert_same(&read(&file), &bytes);
    }
    let server = SETUP.serve().arg(&file).start();
    let said = refused(&[&server.uri(""), &hard]);
    assert!(said.contains("serves"), "{said}");
    assert_same(&read(&file), &bytes);
}

/// By whatever name the server has its socket: that is what the system shows of it.
#[test]
fn a_server_is_found_however_its_socket_is_named() {
    let folder = Folder::new();
    let bytes = noise(MIB);
    let file = folder.file("file", &bytes);
    std::fs::create_dir(folder.text("real")).unwrap();
    std::os::unix::fs::symlink("real", folder.text("link")).unwrap();
    let root = std::path::Path::new(&file).parent().unwrap();
    let absolute = |name: &str| root.join(name).display().to_string();
    for (bound, asked) in [
        ("a.sock".to_owned(), absolute("a.sock")),
        ("./b.sock".to_owned(), absolute("b.sock")),
        ("link/c.sock".to_owned(), absolute("real/c.sock")),
        (absolute("link/d.sock"), absolute("real/d.sock")),
        (absolute("real/e.sock"), absolute("link/../real/e.sock")),
    ] {
        let mut command = Command::new(nbd_binary());
        command.args(["serve", "-U", &bound, "file"]).current_dir(root);
        let server = nbd_testkit::process::Background::spawn(&mut command).unwrap();
        assert!(server.next_line(SOON).is_some(), "{bound}: {}", server.stderr());
        let said = refused(&[&format!("nbd+unix:///?socket={asked}"), &file]);
        assert!(said.contains("serves"), "{bound}: {said}");
        assert_same(&read(&file), &bytes);
    }
}

/// What a server runs is no part of it: the files that a copy has open itself are not those of the server.
#[test]
fn a_copy_that_the_server_runs_may_write_to_what_is_there() {
    let folder = Folder::new();
    let nbd = nbd_binary().display().to_string();
    let source = folder.file("source", &noise(MIB));
    let (to, text) = (folder.path("to"), folder.text("to"));
    let copies = [
        format!("'{nbd}' copy \"$uri\" '{text}'"),
        format!("'{nbd}' copy --resume \"$uri\" '{text}'"),
        format!("'{nbd}' copy \"$uri\" - | cat > '{text}'"),
    ];
    for (copy, runtime) in copies.iter().zip(["tokio", "blocking", "tokio"]) {
        let mut served = Command::new(&nbd);
        served.args(["serve", "--runtime", runtime, "-r", &source, "--run", copy]);
        for _ in 0..2 {
            run(&mut served, SOON).success();
            assert_same(&read(&text), &noise(MIB));
        }
        // The server's own disk is refused as ever.
        let mut onto_itself = Command::new(&nbd);
        let itself = format!("'{nbd}' copy \"$uri\" '{source}'");
        let said =
            run(onto_itself.args(["serve", "-r", &source, "--run", &itself]), SOON).failure();
        assert!(said.contains("is what") && said.contains("serves"), "{said}");
        std::fs::remove_file(&to).unwrap();
    }
    let Some(peer) = peers::require("nbdkit") else { return };
    let copy = format!("'{nbd}' copy \"nbd+unix:///?socket=$unixsocket\" '{text}'");
    for _ in 0..2 {
        let mut served = peer.command();
        run(served.args(["-r", "-U", "-", "file", &source, "--run", &copy]), SOON).success();
        assert_same(&read(&text), &noise(MIB));
    }
}

#[test]
fn a_loop_device_is_its_file() {
    if !LoopDevice::are_possible() {
        return;
    }
    let bytes = noise(MIB);
    let device = LoopDevice::new(&bytes);
    let (path, file) = (device.path.as_str(), device.file());
    for words in [[path, &file], [&file, path], [path, path]] {
        let said = refused(&words);
        assert!(said.contains("the same file"), "{said}");
    }
    for (served, local) in [(path, &*file), (&*file, path)] {
        let server = &servers(served)[0];
        let said = refused(&[&bracketed(server)[..], &[local]].concat());
        assert!(said.contains("serves"), "{said}");
    }
    assert_same(&read(&file), &bytes);
}

#[test]
fn what_only_looks_alike_is_copied() {
    let folder = Folder::new();
    let bytes = noise(MIB);
    let (one, two) = (folder.file("one", &bytes), folder.file("two", &noise(MIB / 2)));
    std::fs::File::options().write(true).open(&two).unwrap().set_len(MIB as u64).unwrap();
    // Two exports of one server, and two servers.
    let server = SETUP.serve().args([format!("a={one}"), format!("b={two}")]).start();
    copy(&["--verify", &server.uri("a"), &server.uri("b")]);
    assert_same(&read(&two), &bytes);
    // A file of the server's to another of its exports.
    copy(&["--verify", &one, &server.uri("b")]);
    drop(server);
    for server in servers(&one) {
        copy(&[&bracketed(&server)[..], &[&folder.text("to")]].concat());
        copy(&[&[&*folder.text("to")], &bracketed(&server)[..]].concat());
        for other in servers(&two) {
            copy(&[&bracketed(&server)[..], &bracketed(&other)].concat());
        }
    }
    let Some(peer) = peers::require("nbdkit") else { return };
    // A log that both write to.
    let log = format!("logfile={}", folder.text("log"));
    let [(_from, from), (_to, to)] =
        [&one, &two].map(|file| nbdkit(&peer, &["--filter=log", "file", file, &log]));
    copy(&["--verify", &from, &to]);
    let Some(img) = peers::require("qemu-img") else { return };
    // What an image lies on is copied to the image.
    let overlay = folder.text("overlay");
    let mut create = img.command();
    create.args(["create", "-q", "-f", "qcow2", "-b", &one, "-F", "raw", &overlay]);
    run(&mut create, SOON).success();
    copy(&["--verify", &one, "[", "qemu-nbd", "-f", "qcow2", &overlay, "]"]);
}
