//! Volumes that are closed before they are opened anew, by the same server or the next one: nothing that was written is
//! lost, and nobody waits for a lease, which is longer here than a test may take.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use nbd_testkit::Endpoint;
use nbd_testkit::process::{Background, Finished, wait_until};
use nbd_testkit::raw::{RawClient, Request};
use nbd_testkit::server::nbd_binary;
use tempfile::TempDir;

use super::{LIMIT, nbd, new_volume};

/// A folder with a volume, a configuration file, and where servers have their sockets.
struct Site {
    folder: TempDir,
    url: String,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = new_volume(folder.path());
        Self { folder, url }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file with these exports.
    fn configure(&self, exports: &[String]) {
        let (control, socket) = (self.text("control"), self.text("socket"));
        let head = format!("[server]\ncontrol = \"{control}\"\n[[listen]]\nunix = \"{socket}\"\n");
        std::fs::write(self.path("nbd.toml"), head + &exports.concat()).unwrap();
    }

    /// An export of the volume with a lease that no test waits for.
    fn export(&self, name: &str, more: &str) -> String {
        let url = &self.url;
        format!(
            "[[export]]\nname = \"{name}\"\nvolume = \"{url}\"\nvolume-lease = \"10m\"\n{more}\n"
        )
    }

    /// A directory in which there is no room for a cache of the volume, as is found out when it is opened: the folder of it is
    /// a file.
    fn useless_cache(&self) -> String {
        let cache = self.path("cache");
        let with_cache = format!("volume-cache = \"{}:1G\"", cache.display());
        self.configure(&[self.export("mail", &with_cache)]);
        end(self.start());
        for entry in std::fs::read_dir(&cache).unwrap() {
            let path = entry.unwrap().path();
            std::fs::remove_dir_all(&path).unwrap();
            std::fs::write(&path, b"").unwrap();
        }
        cache.display().to_string()
    }

    fn serve(&self, more: &[&str]) -> Background {
        let mut command = Command::new(nbd_binary());
        command.args(["serve", "--config", &self.text("nbd.toml")]).args(more);
        Background::spawn(&mut command).unwrap()
    }

    /// A server that serves.
    fn start(&self) -> Background {
        let server = self.serve(&[]);
        assert!(server.next_line(LIMIT).is_some(), "{}", server.stderr());
        let control = self.text("control");
        wait_until("it answers", LIMIT, || nbd(&["status", &control]).status.success());
        server
    }

    #[track_caller]
    fn client(&self, export: &str) -> RawClient {
        let mut client = RawClient::negotiate(&Endpoint::Unix(self.path("socket")));
        client.wire().set_timeout(LIMIT);
        client.go(export, &[]).expect("the export is there");
        client
    }

    #[track_caller]
    fn reads(&self, export: &str, expected: &[u8]) {
        let mut client = self.client(export);
        assert_eq!(client.read(0, expected.len() as u64), expected);
        client.finish();
    }

    fn reload(&self) -> Finished {
        nbd(&["reload", &self.text("control")])
    }

    /// What `nbd serve` with these arguments refuses to do.
    #[track_caller]
    fn refused(&self, more: &[&str]) -> String {
        nbd(&[&["serve"], more].concat()).failure()
    }
}

#[track_caller]
fn ends(mut server: Background) -> String {
    let status = server.wait_exit(LIMIT).expect("it ends");
    let said = server.stderr();
    assert!(status.success(), "{status}: {said}");
    said
}

#[track_caller]
fn end(server: Background) {
    server.terminate();
    ends(server);
}

#[test]
fn a_reload_with_other_options_of_a_volume_closes_it_before_it_is_opened_again() {
    let site = Site::new();
    site.configure(&[site.export("mail", "")]);
    let server = site.start();
    let mut client = site.client("mail");
    client.write(0, b"not flushed");
    site.configure(&[site.export("mail", "volume-memory = \"256M\"")]);
    assert_eq!(site.reload().success(), "replaced mail\n");
    client.wire().drain_to_eof();
    site.reads("mail", b"not flushed");
    // Nothing of it takes another opening.
    let mut client = site.client("mail");
    site.configure(&[site.export("mail", "volume-memory = \"256M\"\ndescription = \"x\"")]);
    assert_eq!(site.reload().success(), "altered mail\n");
    client.write(0, b"by the same client");
    client.finish();
    // By another name it is the same volume, which stays open.
    site.configure(&[site.export("post", "volume-memory = \"256M\"")]);
    assert_eq!(site.reload().success(), "added post\nremoved mail\n");
    site.reads("post", b"by the same client");
    // An export that was removed is closed before it is added again.
    let control = site.text("control");
    nbd(&["export", &control, "add", "memory=memory:1M"]).success();
    site.client("post").write(0, b"and removed");
    nbd(&["export", &control, "remove", "post"]).success();
    nbd(&["export", &control, "add", &format!("again=volume:{}", site.url)]).success();
    site.reads("again", b"and removed");
    end(server);
}

#[test]
fn a_volume_that_was_moved_goes_on_over_a_reload_that_does_not_open_it_anew() {
    let site = Site::new();
    site.configure(&[site.export("mail", "")]);
    let server = site.start();
    let mut client = site.client("mail");
    client.write(0, b"before");
    let path = std::path::Path::new(site.url.strip_prefix("file://").unwrap());
    let moved = path.with_file_name("moved");
    std::fs::rename(path, &moved).unwrap();
    site.configure(&[site.export("mail", "description = \"x\"")]);
    assert_eq!(site.reload().success(), "altered mail\n");
    client.write(6, b" and behind");
    client.call(&Request::flush()).ok();
    // It is not there for who would have to open it.
    site.configure(&[site.export("mail", "volume-memory = \"256M\"")]);
    assert!(site.reload().failure().contains("there is no volume"));
    assert_eq!(client.read(0, 17), b"before and behind");
    client.finish();
    end(server);
    let found = nbd(&["volume", "check", &format!("file://{}", moved.display())]).success();
    assert!(found.contains("nothing is damaged") && !path.exists(), "{found}");
}

#[test]
fn a_reload_that_can_not_open_a_volume_leaves_it_as_it_was() {
    let site = Site::new();
    let cache = format!("volume-cache = \"{}:1G\"", site.useless_cache());
    site.configure(&[site.export("mail", "")]);
    let server = site.start();
    site.client("mail").write(0, b"data");
    site.configure(&[site.export("mail", &cache)]);
    let refused = site.reload().failure();
    assert!(refused.contains("can't be a cache of volumes"), "{refused}");
    assert!(refused.contains("'mail' is served as before"), "{refused}");
    site.reads("mail", b"data");
    // What the volume has nothing to do with is found out before its clients notice anything.
    let mut client = site.client("mail");
    let no_folder = format!("volume-cache = \"{}/x:1G\"", site.text("nbd.toml"));
    site.configure(&[site.export("mail", &no_folder)]);
    assert!(site.reload().failure().contains("can't be a cache of volumes"));
    let missing = "[[export]]\nname = \"x\"\nfile = \"/no/such/disk\"\n".to_owned();
    site.configure(&[site.export("mail", "volume-memory = \"256M\""), missing]);
    assert!(site.reload().failure().contains("/no/such/disk"));
    assert_eq!(client.read(0, 4), b"data");
    client.finish();
    end(server);
}

#[test]
fn a_successor_gets_the_volume_without_waiting_and_nothing_is_lost() {
    let site = Site::new();
    site.configure(&[site.export("mail", "")]);
    let first = site.start();
    let mut client = site.client("mail");
    client.write(0, b"not flushed");
    // A path that is mistyped, an address that is taken: nothing happens to the one that runs.
    let refused =
        site.refused(&["--take-over", &site.text("contrl"), &format!("volume:{}", site.url)]);
    assert!(refused.contains("contrl"), "{refused}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = site.refused(&["--port", &port, &format!("volume:{}", site.url)]);
    assert!(refused.contains("in use"), "{refused}");
    assert_eq!(client.read(0, 11), b"not flushed");
    let control = site.text("control");
    let second = site.serve(&["--take-over", &control]);
    // Clients that come meanwhile wait.
    let mut number = 0_u64;
    let first = first;
    wait_until("the first one has ended", LIMIT, || {
        let mut client = site.client("mail");
        client.write(1 << 20 | number << 12, &[7]);
        client.finish();
        number += 1;
        !first.is_running()
    });
    ends(first);
    client.wire().drain_to_eof();
    site.reads("mail", b"not flushed");
    let mut client = site.client("mail");
    for number in 0..number {
        assert_eq!(client.read(1 << 20 | number << 12, 1), [7], "write {number}");
    }
    client.finish();
    end(second);
}

#[test]
fn a_successor_that_can_not_open_the_volume_gives_it_back() {
    let site = Site::new();
    let (control, cache) = (site.text("control"), format!("{}:1G", site.useless_cache()));
    site.configure(&[site.export("mail", "")]);
    let server = site.start();
    site.client("mail").write(0, b"data");
    let backend = format!("volume:{}", site.url);
    let refused = site.refused(&["--take-over", &control, "--volume-cache", &cache, &backend]);
    assert!(refused.contains("can't be a cache of volumes"), "{refused}");
    assert!(refused.contains("goes on") && refused.contains("is served as before"), "{refused}");
    site.reads("mail", b"data");
    // And can be replaced by a better one.
    let second = site.serve(&["--take-over", &control]);
    ends(server);
    site.reads("mail", b"data");
    end(second);
}

/// As the successor does it; see `nbd-cli/src/serve/control/take_over.rs`.
#[test]
fn a_successor_that_is_gone_leaves_the_volume_to_the_other_server() {
    let site = Site::new();
    site.configure(&[site.export("mail", "")]);
    let server = site.start();
    let mut client = site.client("mail");
    client.write(0, b"data");
    let mut successor = UnixStream::connect(site.path("control")).unwrap();
    successor.set_read_timeout(Some(LIMIT)).unwrap();
    let mut ask = |request: &str| {
        successor.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(&successor).read_line(&mut answer).unwrap();
        assert!(answer.starts_with("{\"ok\":"), "{answer}");
    };
    ask(r#"{"version":1,"verb":"take-over","arguments":{"discard_state":false}}"#);
    ask(r#"{"version":1,"verb":"hand-over","arguments":{"linger_ms":0}}"#);
    client.wire().drain_to_eof();
    // Nobody has it now, and clients wait.
    let about = nbd(&["volume", "info", "--json", &site.url]).success();
    assert!(about.contains("\"open\": false"), "{about}");
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| site.reads("mail", b"data"));
        drop(successor);
        waiting.join()
    });
    waiting.unwrap();
    // Clients are let in before that is said.
    wait_until("it says so", LIMIT, || server.stderr().contains("'mail' is served as before"));
    end(server);
}

#[test]
fn a_server_exports_a_volume_once_however_its_url_is_written() {
    let site = Site::new();
    let url = &site.url;
    nbd(&["volume", "snapshot", url, "monday"]).success();
    let encoded = url.replace("mail", "%6dail");
    let other = url.replace("file://", "file://localhost");
    let word = |name: &str, url: &str| format!("{name}=volume:{url}");
    for second in [url, &format!("{url}/"), &encoded, &other] {
        for check in [&["--check"][..], &["--port", "0"]] {
            let refused = site.refused(&[check, &[&word("a", url), &word("b", second)]].concat());
            assert!(refused.contains("'a' and 'b' are the same volume"), "{refused}");
        }
    }
    let snapshot =
        |name: &str| format!("[[export]]\nname = \"{name}\"\nvolume = \"{url}@mond%61y\"\n");
    site.configure(&[site.export("mail", ""), snapshot("one"), snapshot("two")]);
    let server = site.start();
    let mut client = site.client("mail");
    client.write(0, b"data");
    let control = site.text("control");
    let refused = nbd(&["export", &control, "add", &word("b", &encoded)]).failure();
    assert!(refused.contains("'mail' and 'b' are the same volume"), "{refused}");
    site.configure(&[site.export("mail", ""), site.export("b", "")]);
    assert!(site.reload().failure().contains("are the same volume"));
    client.call(&Request::flush()).ok();
    client.finish();
    site.reads("one", &[0; 4]);
    site.reads("two", &[0; 4]);
    end(server);
}

#[test]
fn a_server_that_serves_nothing_any_more_says_so_and_goes_on() {
    let site = Site::new();
    let backend = format!("volume:{}", site.url);
    let socket = site.text("first");
    let mut command = Command::new(nbd_binary());
    let first =
        Background::spawn(command.args(["serve", "--volume-lease", "1s", "-U", &socket, &backend]));
    let first = first.unwrap();
    assert!(first.next_line(LIMIT).is_some());
    let mut command = Command::new(nbd_binary());
    let second = Background::spawn(command.args(["serve", "-U", &site.text("socket"), &backend]));
    let second = second.unwrap();
    assert!(second.next_line(LIMIT).is_some(), "{}", second.stderr());
    wait_until("the first one says so", LIMIT, || {
        first.stderr().contains("no export left that it serves, and goes on")
    });
    assert!(first.is_running());
    end(second);
    end(first);
}

#[test]
fn an_at_sign_means_a_snapshot_for_every_command() {
    let site = Site::new();
    let url = &site.url;
    let with = format!("{url}@monday");
    for args in [
        &["volume", "create", &with, "--size", "1M"][..],
        &["volume", "info", &with],
        &["volume", "list", &with],
        &["volume", "resize", &with, "1G"],
        &["volume", "snapshot", &with, "x"],
        &["volume", "clone", url, &with],
    ] {
        let refused = nbd(args).failure();
        assert!(refused.contains("leave the snapshot out, or write %40"), "{args:?}: {refused}");
    }
    for args in [
        &["volume", "check", &with][..],
        &["volume", "clone", &with, &format!("{url}-2")],
        &["volume", "delete", "--yes", &with],
        &["serve", &format!("volume:{with}")],
    ] {
        let refused = nbd(args).failure();
        assert!(refused.contains("no snapshot 'monday'"), "{args:?}: {refused}");
    }
    for name in [".", "..", "a@b", "a/b", ""] {
        let refused = nbd(&["volume", "snapshot", url, name]).failure();
        assert!(refused.contains("can't be the name of a snapshot"), "{name}: {refused}");
    }
    // A name that has to be written otherwise in a URL.
    nbd(&["volume", "snapshot", url, "50% done"]).success();
    nbd(&["volume", "check", &format!("{url}@50%25%20done")]).success();
    nbd(&["volume", "delete", "--yes", &format!("{url}@50%25%20done")]).success();
    for (path, remedy) in [("a/../b", "without it"), (".", "without it"), ("a//b", "write one")] {
        let root = site.folder.path().display();
        let refused = nbd(&["volume", "create", &format!("file://{root}/{path}"), "--size", "1M"]);
        let refused = refused.failure();
        assert!(refused.contains(remedy), "{path}: {refused}");
    }
}

#[test]
fn where_there_is_no_volume_a_list_says_how_to_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    for more in [&[][..], &["--json"]] {
        let listed = nbd(&[&["volume", "list", &url], more].concat());
        assert_eq!(listed.status.code(), Some(0));
        assert!(listed.stderr.contains("nbd volume create"), "{}", listed.stderr);
        assert_eq!(listed.success(), if more.is_empty() { "" } else { "[]\n" });
    }
}
