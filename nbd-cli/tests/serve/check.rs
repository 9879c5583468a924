//! `--check`: what it finds is what would keep the server from starting, and nothing changes by it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nbd_testkit::process::{Finished, run, wait_until};

use super::{LIMIT, Serving, refuses, serve};

/// The names in a folder and below, with what is in the files.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut content = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            content.extend(self::content(&path));
        }
        content.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
    }
    content.sort();
    content
}

fn nbd(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
    command.args(words).current_dir(folder);
    command
}

/// Each line is a command line of `nbd serve` that fails, and a part of what it says. A check says the same, and changes
/// nothing.
#[test]
fn a_check_says_of_a_command_line_what_the_server_would() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("disk.img"), [5; 8192]).unwrap();
    fs::write(path.join("file"), [6; 8192]).unwrap();
    fs::create_dir(path.join("folder")).unwrap();
    let _live = UnixListener::bind(path.join("live")).unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let taken = format!("127.0.0.1:{port}");
    let overlay = &["--layer", "overlay:o", "--unix", "s", "disk.img"];
    let server = Serving::spawn(nbd(path, &["serve"]).args(overlay));
    for (words, says) in [
        (&["--port", &port, "disk.img"][..], "in use"),
        (&["--ip-addr", "192.0.2.1", "--port", "0", "--tls", "off", "disk.img"], "192.0.2.1"),
        (&["--ip-addr", "a..b", "disk.img"], "cannot find the address"),
        (&["--unix", "missing/s", "disk.img"], "mkdir -p missing"),
        (&["--unix", "file", "disk.img"], "not a socket"),
        (&["--unix", "file/s", "disk.img"], "file is no folder"),
        (&["--unix", "live", "disk.img"], "another server listens there"),
        (&["--unix", "new", "--control", "live", "disk.img"], "another server listens there"),
        (&["--unix", "new", "--control", "missing/c", "disk.img"], "mkdir -p missing"),
        (&["--unix", "new", "--metrics", &taken, "disk.img"], "another address for --metrics"),
        (&["--unix", "new", "--metrics", "unix:missing/m", "disk.img"], "mkdir -p missing"),
        (&["--unix", "new", "--pid-file", "missing/pid", "disk.img"], "--pid-file"),
        (&["--unix", "new", "--pid-file", "folder", "disk.img"], "--pid-file"),
        (&["--unix", "new", "--pid-file", "file/pid", "disk.img"], "--pid-file"),
        (&["--unix", "new", "--take-over", "missing", "disk.img"], "missing"),
        (&["--unix", "new", "--layer", "log:missing/log", "disk.img"], "make its folder first"),
        (&["--unix", "new", "--layer", "log:folder", "disk.img"], "it is a folder"),
        (
            &["--unix", "new", "--layer", "log:disk.img", "disk.img"],
            "is the disk of the default export",
        ),
        (&["--unix", "new", "--layer", "overlay:new.o", "missing.img"], "no such file"),
        (&["--unix", "new", "--layer", "overlay:missing/o", "disk.img"], "make its folder first"),
        (&["--unix", "new", "--layer", "overlay:file", "disk.img"], "is not an overlay file"),
        (&["--unix", "new", "--layer", "overlay:folder", "disk.img"], "is not an overlay file"),
        (&["--unix", "new", "--layer", "overlay:o", "disk.img"], "is in use; end the server"),
        (&["--unix", "new", "--layer", "overlay:n", "a=disk.img", "b=file"], "for one disk"),
    ] {
        let before = content(path);
        let checked = run(nbd(path, &["serve", "--check"]).args(words), LIMIT);
        assert!(content(path) == before, "{words:?}");
        assert!(checked.stderr.contains(says), "{words:?}: {}", checked.stderr);
        let served = run(nbd(path, &["serve"]).args(words), LIMIT);
        assert_eq!(checked.status.code(), served.status.code(), "{words:?}: {}", served.stderr);
        // The server warns before it finds that.
        let said = served.stderr.lines().filter(|line| !line.starts_with("nbd: warning: "));
        assert_eq!(Vec::from_iter(checked.stderr.lines()), Vec::from_iter(said), "{words:?}");
        assert_eq!(checked.stdout, "");
    }
    server.stop();
    // It belongs to the disk as it is.
    run(nbd(path, &["serve", "--check"]).args(overlay), LIMIT).success();
    fs::write(path.join("disk.img"), [7; 8192]).unwrap();
    // As long as it has nothing, it belongs to any.
    run(nbd(path, &["serve", "--check"]).args(overlay), LIMIT).success();
    let map = fs::File::options().write(true).open(path.join("o")).unwrap();
    map.write_all_at(&[1], 4096).unwrap();
    refuses(nbd(path, &["serve", "--check"]).args(overlay), 1, &["does not fit this disk"]);
}

/// It is refused before anything is made, by a check and by the server, in the same words and with the same status: that of
/// the file, with its line, unless the command line is at fault.
#[test]
fn no_two_places_of_a_server_are_one_however_they_are_spelled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("disk.img"), [5; 8192]).unwrap();
    fs::create_dir(path.join("a")).unwrap();
    std::os::unix::fs::symlink(path, path.join("link")).unwrap();
    let own = path.join("s").display().to_string();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let at = format!("127.0.0.1:{port}");
    let refused = |words: &[&str], code: i32, begins: &str, says: &str| {
        let before = content(path);
        let said = [&["--check"][..], &[]].map(|more| {
            let finished = run(nbd(path, &["serve"]).args(words).args(more), LIMIT);
            assert_eq!(finished.status.code(), Some(code), "{words:?}: {}", finished.stderr);
            assert_eq!(finished.stdout, "", "{words:?}");
            assert!(content(path) == before, "{words:?}");
            finished.stderr.lines().next().unwrap().to_owned()
        });
        assert_eq!(said[0], said[1], "{words:?}");
        assert!(said[0].starts_with(begins) && said[0].contains(says), "{words:?}: {}", said[0]);
    };
    let (both, one) = ("are both to be", "are at one place");
    let metrics = "where NBD clients connect: choose another address";
    for (words, says) in [
        (&["--control", "s", "-U", "./s"][..], one),
        (&["--control", &own, "-U", "s"], one),
        (&["--control", "link/s", "-U", "a/../s"], one),
        (&["--metrics", "unix:s", "-U", "./s"], one),
        (&["--metrics", "unix:link/s", "--control", "s", "-U", "n"], one),
        (&["--metrics", &port, "-p", &port], metrics),
        (&["--metrics", &at, "-p", &port, "-i", "localhost"], metrics),
        (&["--metrics", &at, "-p", &port, "-i", "0.0.0.0"], metrics),
        (&["--metrics", "10809"], metrics),
        (&["-U", "s", "--pid-file", "s"], both),
        (&["-U", "s", "--pid-file", "link/s"], one),
        (&["-U", "n", "--control", "s", "--pid-file", "s"], both),
        (&["-U", "n", "--metrics", "unix:s", "--pid-file", "./s"], one),
        (&["-U", "n", "--layer", "log:s", "--pid-file", "s"], both),
        (&["-U", "n", "--layer", "overlay:s", "--pid-file", "./s"], one),
        (&["-U", "n", "--pid-file", "link/disk.img"], one),
        (&["-U", "s", "--layer", "log:./s"], one),
        (&["-U", "n", "--take-over", "s", "--pid-file", "s"], both),
    ] {
        refused(&[words, &["disk.img"]].concat(), 64, "nbd: ", says);
    }
    let file = path.join("nbd.toml");
    let export = "[[export]]\nfile = 'disk.img'\n";
    for (line, text, says) in [
        (
            3,
            "[[listen]]\nunix = 's'\n[[listen]]\nunix = './s'\n".to_owned(),
            "two listeners are at one place",
        ),
        (
            3,
            format!("[[listen]]\nunix = 's'\n[[listen]]\nunix = '{own}'\n"),
            "two listeners are at one place",
        ),
        (3, "[server]\ncontrol = 'link/s'\n[[listen]]\nunix = 's'\n".into(), one),
        (2, "[server]\nmetrics = 'unix:s'\n[[listen]]\nunix = './s'\n".into(), one),
        (2, format!("[server]\nmetrics = '{at}'\n[[listen]]\ntcp = '{at}'\n"), metrics),
        (2, format!("[server]\nmetrics = '{at}'\n[[listen]]\ntcp = 'localhost:{port}'\n"), metrics),
        (1, "[[export]]\nname = 'a'\nmemory = '1M'\nlayers = ['log:a/../nbd.toml']\n".into(), one),
    ] {
        fs::write(&file, [&text, export].concat()).unwrap();
        refused(&["--config", "nbd.toml"], 78, &format!("nbd: nbd.toml:{line}:"), says);
    }
    // Of a file that is fine by itself, it is the command line.
    fs::write(&file, ["[server]\ncontrol = 's'\n[[listen]]\nunix = 'n'\n", export].concat())
        .unwrap();
    refused(&["--config", "nbd.toml", "--pid-file", "./s"], 64, "nbd: ", one);
    refused(&["--config", "nbd.toml", "--pid-file", "link/nbd.toml"], 64, "nbd: ", one);
    run(&mut nbd(path, &["serve", "--check", "--config", "nbd.toml", "--pid-file", "p"]), LIMIT)
        .success();
}

/// Neither by a new export nor by another configuration file.
#[test]
fn what_a_running_server_has_for_itself_nothing_new_gets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let text = "[server]\ncontrol = 'c'\n[[listen]]\nunix = 's'\n[[export]]\nmemory = '1M'\n";
    fs::write(path.join("nbd.toml"), text).unwrap();
    let words = ["serve", "--config", "nbd.toml", "--pid-file", "p"];
    let server = Serving::spawn(&mut nbd(path, &words));
    let pid = || fs::read_to_string(path.join("p")).unwrap_or_default();
    wait_until("it is ready", LIMIT, || pid() == format!("{}\n", server.process.id()));
    let before = pid();
    for (name, what) in [("p", "the file of --pid-file"), ("nbd.toml", "the configuration file")] {
        let layer = format!("log:./{name}");
        let add = ["export", "c", "add", "--layer", &layer, "x=memory:1M"];
        let says = run(&mut nbd(path, &add), LIMIT).failure();
        assert!(says.contains(what) && says.contains("the request log of export 'x'"), "{says}");
    }
    fs::write(path.join("nbd.toml"), text.replace("unix = 's'", "unix = './c'")).unwrap();
    let says = run(&mut nbd(path, &["reload", "c"]), LIMIT).failure();
    assert!(says.contains("nbd.toml:3:1: the control socket, 'c', and"), "{says}");
    // Another spelling is no other socket: what is there stays, and is removed at the end.
    fs::write(path.join("nbd.toml"), text.replace("unix = 's'", "unix = './s'")).unwrap();
    run(&mut nbd(path, &["reload", "c"]), LIMIT).success();
    run(&mut nbd(path, &["info", "--size", "nbd+unix:///?socket=s"]), LIMIT).success();
    assert_eq!(pid(), before);
    let log = server.stopped();
    assert!(log.contains("stay in force"), "{log}");
    assert_eq!(content(path).len(), 1, "the file alone");
}

#[test]
fn a_check_of_a_file_reports_all_at_once_and_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("disk.img"), [5; 4096]).unwrap();
    fs::write(path.join("file"), "precious").unwrap();
    fs::write(path.join("other"), "precious").unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let text = format!(
        "[server]\ncontrol = 'none/c'\nmetrics = 'unix:none/m'\n\
         [[listen]]\ntcp = '127.0.0.1:{port}'\n[[listen]]\nunix = 'file'\n\
         [[export]]\nname = 'a'\nfile = 'disk.img'\nlayers = ['overlay:other', 'log:none/log']\n\
         [[export]]\nname = 'b'\nfile = 'missing.img'\n"
    );
    fs::write(path.join("nbd.toml"), text).unwrap();
    let before = content(path);
    let finished = run(&mut nbd(path, &["serve", "--check", "--config", "nbd.toml"]), LIMIT);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    for (line, says) in [
        (2, "none/c"),
        (3, "none/m"),
        (4, "in use"),
        (6, "not a socket"),
        (8, "is not an overlay file"),
        (8, "cannot write the request log"),
        (12, "missing.img"),
    ] {
        let at = format!("nbd: nbd.toml:{line}:");
        let found =
            finished.stderr.lines().any(|line| line.starts_with(&at) && line.contains(says));
        assert!(found, "{at} {says}: {}", finished.stderr);
    }
    assert_eq!(finished.stderr.lines().count(), 7, "{}", finished.stderr);
    assert!(content(path) == before);
}

/// What it has in use is no fault of its file; what another one has is.
#[test]
#[cfg(target_os = "linux")]
fn a_check_beside_the_server_of_the_same_file_finds_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("disk.img"), [5; 4096]).unwrap();
    let text = "[server]\ncontrol = 'c'\n[[listen]]\nunix = 's'\n\
                [[export]]\nfile = 'disk.img'\nlayers = ['overlay:o']\n";
    fs::write(path.join("nbd.toml"), text).unwrap();
    fs::write(path.join("other.toml"), text).unwrap();
    let server = Serving::spawn(&mut nbd(path, &["serve", "--config", "nbd.toml"]));
    let check = |file: &str| -> Finished {
        run(serve(["--check", "--config"]).arg(path.join(file)), LIMIT)
    };
    let finished = check("nbd.toml");
    for what in ["another server listens there", "the overlay"] {
        let says =
            |line: &str| line.contains(what) && line.contains("no fault if by the server of");
        assert!(finished.stderr.lines().any(says), "{what}: {}", finished.stderr);
    }
    finished.success();
    let finished = check("other.toml");
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(finished.stderr.lines().count(), 3, "{}", finished.stderr);
    server.stop();
    check("other.toml").success();
}

/// Whatever a running server has in use, a check beside it leaves no line in its log.
#[test]
fn a_running_server_does_not_notice_a_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let text = "[server]\ncontrol = 'c'\nmetrics = 'unix:m'\nlog = 'debug'\n[[listen]]\nunix = 's'\n\
                [[export]]\nmemory = '1M'\n";
    fs::write(path.join("nbd.toml"), text).unwrap();
    let server = Serving::spawn(&mut nbd(path, &["serve", "--config", "nbd.toml"]));
    run(&mut nbd(path, &["serve", "--check", "--config", "nbd.toml"]), LIMIT).success();
    run(&mut nbd(path, &["serve", "--unix", "s", "memory:1M"]), LIMIT).failure();
    // One that is noticed, after which all before it would be.
    run(&mut nbd(path, &["info", "--size", "nbd+unix:///?socket=s"]), LIMIT).success();
    let log = server.stopped();
    assert_eq!(log.matches("a client connected").count(), 1, "{log}");
    assert!(!log.contains("control socket"), "{log}");
}

/// What `nbd reload` brings into force it names, and what it can't.
#[test]
fn a_reload_reports_what_is_in_force_and_what_takes_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let text = "[server]\ncontrol = 'c'\n[[listen]]\nunix = 's'\n[[export]]\nmemory = '1M'\n";
    fs::write(path.join("nbd.toml"), text).unwrap();
    let server = Serving::spawn(&mut nbd(path, &["serve", "--config", "nbd.toml"]));
    let reload = || run(&mut nbd(path, &["reload", "c"]), LIMIT).success();
    assert_eq!(reload(), "");
    let text = text.replace("control = 'c'", "control = 'd'\nlog = 'debug'\noldstyle = false");
    fs::write(path.join("nbd.toml"), text.replace("'s'", "'s'\n[[listen]]\ntcp = '127.0.0.1:0'"))
        .unwrap();
    let says = ["control", "log", "[[listen]]"];
    let says = says.map(|key| format!("{key}: takes a restart of the server\n"));
    assert_eq!(reload(), says.concat());
    let text = text
        .replace("[[listen]]", "max-connections = 3\n[access]\nallow = ['10.0.0.0/8']\n[[listen]]");
    fs::write(path.join("nbd.toml"), text).unwrap();
    let says = ["max-connections: in force\n", "[access]: in force\n"].concat();
    assert!(reload().starts_with(&says));
    assert_eq!(server.stopped().lines().count(), 2, "it warns of what takes a restart, too");
}

/// In whichever way two exports would use one file, both are named, at the start and later.
#[test]
fn a_file_is_for_one_disk_or_one_overlay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for name in ["a.img", "b.img"] {
        fs::write(path.join(name), [5; 4096]).unwrap();
    }
    std::os::unix::fs::symlink(path, path.join("link")).unwrap();
    let head = "[server]\ncontrol = 'c'\n[[listen]]\nunix = 's'\n";
    let export = |name: &str, layers: &str| {
        format!("[[export]]\nname = '{name}'\nfile = '{name}.img'\nlayers = [{layers}]\n")
    };
    let file = path.join("nbd.toml");
    for (first, second, says) in [
        ("'overlay:o'", "'overlay:link/o'", "exports 'a' and 'b' would both write to the overlay"),
        ("'overlay:b.img'", "", "is the disk of export 'b' and the overlay of export 'a'"),
        ("", "'log:a.img'", "is the disk of export 'a' and the request log of export 'b'"),
        ("'overlay:o'", "'log:o'", "the overlay of export 'a' and the request log of export 'b'"),
        ("'overlay:o', 'overlay:o'", "", "export 'a' has the overlay"),
    ] {
        let text = [head, &export("a", first), &export("b", second)].concat();
        fs::write(&file, text).unwrap();
        for check in [&["--check"][..], &[]] {
            let mut command = nbd(path, &["serve", "--config", "nbd.toml"]);
            refuses(command.args(check), 78, &[says]);
        }
        assert!(!path.join("o").exists());
    }
    // A log is for all that want it.
    fs::write(
        &file,
        [head, &export("a", "'overlay:o', 'log:l'"), &export("b", "'log:l'")].concat(),
    )
    .unwrap();
    let server = Serving::spawn(&mut nbd(path, &["serve", "--config", "nbd.toml"]));
    let add = ["export", "c", "add", "--layer", "overlay:o", "x=b.img"];
    let says = run(&mut nbd(path, &add), LIMIT).failure();
    assert!(says.contains("'a' and 'x' would both write to the overlay"), "{says}");
    // To open it anew takes that it is let go.
    fs::write(&file, [head, &export("renamed", "'overlay:o'"), &export("b", "'log:l'")].concat())
        .unwrap();
    fs::copy(path.join("a.img"), path.join("renamed.img")).unwrap();
    fs::write(
        &file,
        [head, &export("a", "'overlay:o', 'read-only'"), &export("b", "'log:l'")].concat(),
    )
    .unwrap();
    let says = run(&mut nbd(path, &["reload", "c"]), LIMIT).failure();
    let what = "its overlay 'o' is in use until it is gone and its clients have left";
    assert!(says.contains(what), "{says}");
    let log = server.stopped();
    assert!(log.contains(what) && log.contains("stay in force"), "it is logged, too: {log}");
}
