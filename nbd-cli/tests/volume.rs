//! `nbd volume`, `nbd serve volume:URL` on a local directory, and `nbd serve URL` by HTTP on loopback.
#![cfg(feature = "volume")]

#[path = "volume/exchange.rs"]
mod exchange;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::objects::{Manners, ObjectServer};
use nbd_testkit::peers::require;
use nbd_testkit::process::{Background, Finished, run, wait_until};
use nbd_testkit::raw::{Errno, RawClient, Request, flag};
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport, nbd_binary};
use nbd_testkit::{Endpoint, cases};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(100);

#[track_caller]
fn nbd(args: &[&str]) -> Finished {
    run(Command::new(nbd_binary()).args(args), LIMIT)
}

/// Ends a server in order, so that the next one need not wait.
fn end(mut server: NbdServe) {
    server.terminate();
    let status = server.wait_exit(LIMIT).expect("it ends");
    assert!(status.success(), "{status}: {}", server.stderr());
}

#[track_caller]
fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("it is JSON")
}

/// A new volume of 64 MiB in a directory.
fn new_volume(folder: &Path) -> String {
    let url = format!("file://{}/volumes/mail", folder.display());
    nbd(&["volume", "create", &url, "--size", "64M"]).success();
    url
}

fn serving(setup: Setup, backend: &str) -> NbdServe {
    setup.serve().arg(backend).start()
}

#[test]
fn a_volume_keeps_what_was_written_over_servers_snapshots_and_clones() {
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
    let folder = tempfile::tempdir().unwrap();
    let url = new_volume(folder.path());
    let copy = format!("file://{}/volumes/copy", folder.path().display());
    let server = serving(setup, &format!("volume:{url}"));
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(1000, b"first");
    // By the server, by way of the store.
    nbd(&["volume", "snapshot", &url, "monday"]).success();
    client.write(1000, b"later");
    client.finish();
    nbd(&["volume", "clone", &format!("{url}@monday"), &copy]).success();
    // The end of a server closes its volumes: what was not flushed is there.
    end(server);
    for (backend, expected) in [
        (format!("volume:{url}"), b"later"),
        (format!("volume:{url}@monday"), b"first"),
        (format!("volume:{copy}"), b"first"),
    ] {
        let server = serving(setup, &backend);
        let mut client = RawClient::go_simple(server.endpoint());
        assert_eq!(client.read(1000, 5), expected, "{backend}");
        client.finish();
        end(server);
    }
    assert!(
        nbd(&["volume", "check", &url]).success().contains("1 block is good, nothing is damaged")
    );
    let shown = nbd(&["volume", "info", &url]).success();
    assert!(shown.contains("67108864") && shown.contains("monday"), "{shown}");
    let documents = [
        nbd(&["volume", "info", "--json", &url]).success(),
        nbd(&["volume", "check", "--json", &url]).success(),
        nbd(&["volume", "list", "--json", &url]).success(),
    ];
    let [info, check, list] = documents.map(|text| json(&text));
    assert_eq!(
        (&info["size"], &info["snapshots"][0]["name"]),
        (&(64 << 20).into(), &"monday".into())
    );
    assert_eq!((&check["blocks"], &check["damage"]), (&1.into(), &Vec::<u8>::new().into()));
    assert_eq!(list[0]["url"], url);
    let refused = nbd(&["volume", "delete", "--yes", &url]).failure();
    assert!(refused.contains("delete the clones first"), "{refused}");
    let taken = nbd(&["volume", "snapshot", &url, "monday"]);
    assert_eq!(taken.status.code(), Some(1));
    let nothing = format!("{url}-of-nothing");
    for command in [
        &["info", &nothing][..],
        &["resize", &nothing, "1G"],
        &["resize", &nothing, "+1G"],
        &["snapshot", &nothing, "x"],
        &["clone", &nothing, &copy],
        &["check", &nothing],
        &["delete", "--yes", &nothing],
    ] {
        let refused = nbd(&[&["volume"], command].concat()).failure();
        assert!(refused.contains("there is no volume at"), "{command:?}: {refused}");
    }
    let asked = nbd(&["volume", "resize", &url, "1M"]).failure();
    assert!(asked.contains("to shrink") && asked.contains("--yes"), "{asked}");
    let asked = nbd(&["volume", "resize", &url, "-63M"]).failure();
    assert!(asked.contains("from 67108864 to 1048576 bytes"), "{asked}");
    nbd(&["volume", "resize", "--yes", &url, "1M"]).success();
    assert_eq!(nbd(&["volume", "resize", &url, "+31M"]).success(), "33554432\n");
    nbd(&["volume", "resize", &url, "-16M", "--yes"]).success();
    nbd(&["volume", "resize", &url, "--yes", "-8M"]).success();
    assert_eq!(json(&nbd(&["volume", "info", "--json", &url]).success())["size"], 8 << 20);
    for (size, code) in [("-8M", 1), ("-1G", 1), ("+8E", 64), ("-", 64), ("--yse", 64)] {
        let refused = nbd(&["volume", "resize", &url, size]);
        assert_eq!(refused.status.code(), Some(code), "{size}: {}", refused.stderr);
    }
    nbd(&["volume", "resize", &url, "64M"]).success();
    let asked = nbd(&["volume", "delete", &copy]).failure();
    assert!(asked.contains("--yes"), "{asked}");
    nbd(&["volume", "delete", "--yes", &copy]).success();
    nbd(&["volume", "delete", "--yes", &url]).success();
}

#[test]
fn a_volume_is_added_to_a_running_server() {
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
    let folder = tempfile::tempdir().unwrap();
    let url = new_volume(folder.path());
    let control = folder.path().join("control");
    let control = control.to_str().unwrap();
    let server = setup.serve().args(["--control", control, "memory:1M"]).start();
    nbd(&["export", control, "add", &format!("mail=volume:{url}")]).success();
    assert!(nbd(&["status", control]).success().contains("mail"));
    nbd(&["export", control, "remove", "mail"]).success();
    end(server);
}

#[test]
fn a_second_server_takes_over_and_clients_of_the_first_are_disconnected() {
    let setup = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };
    let folder = tempfile::tempdir().unwrap();
    let url = new_volume(folder.path());
    let first = serving(setup, &format!("volume:{url}"));
    let mut client = RawClient::go_simple(first.endpoint());
    client.write(0, b"flushed");
    client.call(&Request::flush()).ok();
    // Unless it was told not to.
    let refused =
        nbd(&["serve", "--port", "0", "--volume-exclusive", &format!("volume:{url}")]).failure();
    assert!(refused.contains("is open: process") && refused.contains("10s"), "{refused}");
    client.write(0, b"flushed");
    // It waits until the first one can't answer any more.
    let second = setup.serve().arg(format!("volume:{url}"));
    let process = Background::spawn(&mut second.command()).unwrap();
    let line = process.next_line(LIMIT).expect("it listens");
    let mut late = RawClient::go_simple(&Endpoint::parse(&line).unwrap());
    assert_eq!(late.read(0, 7), b"flushed");
    late.finish();
    client.wire().set_timeout(LIMIT);
    client.wire().drain_to_eof();
    // It stays, and says so to those who come late.
    let refused = nbd(&["info", &first.uri("")]).failure();
    assert!(refused.contains("does not serve the volume any more"), "{refused}");
}

#[test]
fn what_waiting_does_not_repair_is_reported_at_once_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().display();
    std::fs::write(format!("{folder}/file"), b"").unwrap();
    for (url, expected) in [
        (format!("file://{folder}/file/v"), "choose another directory"),
        ("file:///proc/no/v".to_owned(), "choose another one"),
        (format!("file://{folder}/x#y"), "write %23"),
    ] {
        let refused = nbd(&["volume", "create", &url, "--size", "1M"]).failure();
        assert!(refused.contains(expected) && !refused.contains("gave up"), "{refused}");
    }
    let server = "http://127.0.0.1:1";
    let refused = nbd(&["serve", "--port", "0", &format!("{server}/disk.raw")]).failure();
    assert!(refused.contains(&format!("{server} refuses the connection")), "{refused}");
    assert!(!refused.contains("retries"), "{refused}");
}

#[test]
fn names_of_any_characters_are_listed_as_urls_that_open() {
    let folder = tempfile::tempdir().unwrap();
    let root = format!("file://{}", folder.path().display());
    let names = ["x%25", "x%2525", "B%C3%BCro/mail%40home", "a%20b%23c"];
    let urls = names.map(|name| format!("{root}/{name}"));
    for url in &urls {
        nbd(&["volume", "create", url, "--size", "1M"]).success();
    }
    let listed = nbd(&["volume", "list", &root]).success();
    let mut expected = urls.clone();
    expected.sort();
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    for url in listed.lines() {
        nbd(&["volume", "delete", "--yes", url]).success();
    }
    let left = std::fs::read_dir(folder.path()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    // What holds the volume of that name is not its own.
    assert_eq!(left, ["B\u{fc}ro"]);
}

#[test]
fn a_server_that_was_stopped_over_a_take_over_acknowledges_nothing_afterwards() {
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
    let folder = tempfile::tempdir().unwrap();
    let backend = format!("volume:{}", new_volume(folder.path()));
    let start = || setup.serve().args(["--volume-lease", "1s", &backend]).start();
    let first = start();
    let mut client = RawClient::go_simple(first.endpoint());
    client.write(0, b"flushed");
    client.call(&Request::flush()).ok();
    let signal = |signal| {
        let first = Pid::from_raw(first.id() as i32).expect("it runs");
        kill_process(first, signal).expect("it is there");
    };
    signal(Signal::STOP);
    let threads = format!("/proc/{}/task", first.id());
    wait_until("all of its threads are stopped", LIMIT, || {
        let tasks = std::fs::read_dir(&threads).expect("it is there");
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    });
    // It waits in the socket until the server goes on.
    client.send(&Request::write(0, b"late"));
    let second = start();
    let mut other = RawClient::go_simple(second.endpoint());
    assert_eq!(other.read(0, 7), b"flushed");
    other.write(0, b"newer..");
    other.call(&Request::flush()).ok();
    signal(Signal::CONT);
    client.wire().set_timeout(LIMIT);
    if let Some(reply) = client.wire().recv_or_gone(16, "a reply") {
        assert_ne!(reply[4..8], [0; 4], "it was acknowledged");
        client.wire().drain_to_eof();
    }
    assert_eq!(other.read(0, 7), b"newer..");
    other.finish();
}

#[test]
fn what_can_not_be_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let url = new_volume(folder.path());
    let missing = format!("volume:file://{}/none", folder.path().display());
    let served = format!("volume:{url}");
    let new = format!("{url}-of-nothing");
    for (args, expected) in [
        (vec!["volume", "create", &url, "--size", "1G"], "choose another URL"),
        (vec!["volume", "create", &url, "--size", "0"], "such as 10G"),
        (
            vec!["volume", "create", &new, "--size", "1G", "--encrypt"],
            "there is no key to encrypt the volume at",
        ),
        (vec!["volume", "create", "s3://user:secret@b/v", "--size", "1G"], "environment"),
        (vec!["serve", &missing], "nbd volume create"),
        (vec!["serve", "--sandbox", &served], "--sandbox"),
        (vec!["serve", "--read-only", &served], "nbd volume snapshot"),
        (vec!["serve", "--layer", "read-only", &served], "--layer"),
        (vec!["serve", "--check", &format!("{served}@none")], "no snapshot 'none'"),
    ] {
        let text = nbd(&args).failure();
        assert!(text.contains(expected) && !text.contains("secret"), "{args:?}: {text}");
    }
}

#[test]
fn a_volume_says_which_key_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/secret", folder.path().display());
    let command = |args: &[&str], key: Option<&str>| {
        let mut command = Command::new(nbd_binary());
        command.env_remove("NBD_VOLUME_KEY_FILE").arg("volume").args(args);
        if let Some(key) = key {
            let path = folder.path().join(key);
            std::fs::write(&path, key.repeat(64)).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            command.env("NBD_VOLUME_KEY_FILE", path);
        }
        run(&mut command, LIMIT).success()
    };
    command(&["create", &url, "--size", "10M", "--encrypt"], Some("a"));
    for (key, size) in [
        (Some("a"), "10485760"),
        (Some("b"), "not known: NBD_VOLUME_KEY_FILE has another key"),
        (None, "not known without the key: name its file"),
    ] {
        let text = command(&["info", &url], key);
        assert!(text.contains(&format!("size        {size}")), "{key:?}: {text}");
    }
}

/// What a process that was killed leaves of objects that it was writing goes with the volume, and nothing else does.
#[test]
fn a_deleted_volume_leaves_no_unfinished_objects_in_its_directory() {
    cases(6, |random| {
        let folder = tempfile::tempdir().unwrap();
        let url = new_volume(folder.path());
        let path = folder.path().join("volumes/mail");
        let mut foreign = false;
        for _ in 0..1 + random.below(5) {
            let number = random.below(40);
            let name = match random.below(5) {
                0 => format!("compacted/01J79C21YKR31J2BS1EFXJZ7MR.sst#{number}"),
                1 => format!("wal/{number:020}.sst#{number}"),
                2 => format!("manifest/{number:020}.manifest#{number}"),
                3 => format!("nbd-volume.json#{number}"),
                _ => {
                    foreign = true;
                    // What the store lists goes with the volume, whatever it is.
                    random.of(&["wal/a#1", "compacted/a.notes#12", "x.sst#1"]).to_owned()
                }
            };
            let file = path.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, b"a part").unwrap();
        }
        nbd(&["volume", "delete", "--yes", &url]).success();
        assert_eq!(path.exists(), foreign);
        if foreign {
            let left = run(
                Command::new("find").args([path.as_os_str(), "-type".as_ref(), "f".as_ref()]),
                LIMIT,
            );
            for line in left.success().lines() {
                let is_foreign = ["wal/a#1", "a.notes#12", "mail/x.sst#1"];
                assert!(is_foreign.iter().any(|end| line.ends_with(end)), "{line}");
            }
        }
    });
}

/// However its server refuses to say so.
#[test]
fn an_object_without_bytes_is_said_to_be_empty() {
    for (no_ranges, no_head) in [(false, false), (true, false), (false, true), (true, true)] {
        let store = ObjectServer::start();
        store.put("bucket/empty.img", Vec::new());
        store.set_manners(Manners { no_ranges, no_head, ..Manners::default() });
        let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
        let mut server = serving(setup, &format!("{}/bucket/empty.img", store.url()));
        server.terminate();
        assert!(server.wait_exit(LIMIT).expect("it ends").success());
        let log = server.stderr();
        assert!(log.contains("the object is empty"), "{no_ranges} {no_head}: {log}");
    }
}

#[test]
fn a_store_that_refuses_a_client_is_reported_with_the_names_of_the_credentials() {
    let store = ObjectServer::start();
    for status in [401, 403] {
        store.set_manners(Manners { status: Some(status), ..Manners::default() });
        for args in [
            &["volume", "info", "s3://bucket/v"][..],
            &["volume", "create", "s3://bucket/v", "--size", "1G"],
            &["volume", "list", "s3://bucket/v"],
            &["serve", "volume:s3://bucket/v"],
            &["serve", "s3://bucket/v"],
        ] {
            let mut command = Command::new(nbd_binary());
            let text = run(command.args(args).envs(store.environment()), LIMIT).failure();
            assert!(text.contains("refuses access"), "{args:?}: {text}");
            assert!(text.contains("AWS_ACCESS_KEY_ID"), "{args:?}: {text}");
        }
    }
}

/// An object of some MiB that is no repetition, by two URLs: of the web and of S3.
fn an_object(server: &ObjectServer) -> (Vec<u8>, [String; 2]) {
    let bytes: Vec<u8> = (0..3 << 20 | 123).map(|i: u64| ((i * 7919) >> 8) as u8).collect();
    server.put("bucket/disk.img", bytes.clone());
    (bytes, [format!("{}/bucket/disk.img", server.url()), "s3://bucket/disk.img".into()])
}

#[test]
fn an_object_is_a_disk_that_is_only_read() {
    let store = ObjectServer::start();
    let (bytes, urls) = an_object(&store);
    let setups = [
        Setup { runtime: Runtime::Tokio, transport: Transport::Tcp },
        Setup { runtime: Runtime::Blocking, transport: Transport::Unix },
    ];
    for (url, setup) in urls.iter().zip(setups) {
        let mut command = setup.serve().arg(url);
        command = command.args(["--volume-memory", "128M"]);
        let variables = store.environment().map(|(name, value)| format!("export {name}={value}"));
        let server = command.prepared_by(&variables.join("; ")).start();
        let mut client = RawClient::go_simple(server.endpoint());
        assert!(client.has_flag(flag::READ_ONLY) && client.has_flag(flag::CAN_MULTI_CONN));
        assert!(client.has_flag(flag::SEND_CACHE));
        assert_eq!(client.read(70_000, 200_000), &bytes[70_000..270_000]);
        client.finish();
        // By another implementation, from end to end, by several connections.
        if let Some(nbdcopy) = require("nbdcopy") {
            let copy = server.dir().join("copy");
            run(nbdcopy.command().arg(server.uri("")).arg(&copy), LIMIT).success();
            assert!(std::fs::read(copy).unwrap() == bytes);
        }
        end(server);
    }
}

#[test]
fn an_object_that_changes_or_can_not_be_read_is_an_error_with_words() {
    let store = ObjectServer::start();
    let (_, [url, _]) = an_object(&store);
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
    let mut server = serving(setup, &format!("{url}?signature=secret"));
    let mut client = RawClient::go_simple(server.endpoint());
    store.put("bucket/disk.img", vec![1; 3 << 20 | 123]);
    client.call(&Request::read(1 << 20, 4096)).expect_error(Errno::EIO);
    client.call(&Request::read(0, 4096)).expect_error(Errno::EIO);
    client.finish();
    server.terminate();
    assert!(server.wait_exit(LIMIT).expect("it ends").success());
    let log = server.stderr();
    assert_eq!(log.matches("its requests fail from now on").count(), 1, "{log}");
    assert!(!log.contains("secret"), "{log}");
    let missing = nbd(&["serve", "--check", &format!("{}/bucket/none", store.url())]).failure();
    assert!(missing.contains("there is no object"), "{missing}");
    store.set_manners(Manners { no_ranges: true, ..Manners::default() });
    let whole = nbd(&["serve", "--check", &url]).failure();
    assert!(whole.contains("download it"), "{whole}");
}

/// The superuser may use all files, so that somebody else has to try.
#[test]
fn a_directory_that_this_user_can_not_use_is_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let volume = folder.path().join("v");
    let url = format!("file://{}", volume.display());
    nbd(&["volume", "create", &url, "--size", "64M"]).success();
    // So that the log has a part.
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
    let server = serving(setup, &format!("volume:{url}"));
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(0, b"first");
    client.call(&Request::flush()).ok();
    client.finish();
    end(server);
    let mut whole = vec![volume.clone()];
    while let Some(path) = whole.pop() {
        let is_folder = path.is_dir();
        let mode = if is_folder { 0o777 } else { 0o666 };
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        if is_folder {
            whole.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    // What else is there concerns nobody who serves it.
    let foreign = volume.join("lost+found");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::set_permissions(&foreign, Permissions::from_mode(0o000)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    // Where everybody can get at it.
    let program = folder.path().join("nbd");
    std::fs::copy(nbd_binary(), &program).unwrap();
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words);
        if is_root {
            command.uid(65534).gid(65534);
        }
        run(&mut command, LIMIT)
    };
    let served = format!("volume:{url}");
    as_nobody(&["serve", "--check", "--port", "0", &served]).success();
    std::fs::remove_dir(&foreign).unwrap();
    let log = std::fs::read_dir(volume.join("wal")).unwrap().next().unwrap().unwrap().path();
    for (path, mode) in [
        (volume.clone(), 0o555),
        (volume.join("wal"), 0o555),
        (volume.join("manifest"), 0o333),
        (log, 0o000),
    ] {
        let before = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let lines: [&[&str]; 6] = [
            &["volume", "info", &url],
            &["volume", "check", &url],
            &["serve", "--check", "--port", "0", &served],
            &["serve", "--port", "0", &served],
            &["volume", "snapshot", &url, "monday"],
            &["volume", "resize", &url, "1G"],
        ];
        // Who only reads need not write.
        let reads = usize::from(mode == 0o555);
        lines[..reads].iter().for_each(|words| drop(as_nobody(words).success()));
        for words in &lines[reads..] {
            let said = as_nobody(words).failure();
            assert!(said.contains(&format!("{} can't be used", path.display())), "{said}");
            assert!(said.contains("this user may"), "{said}");
            assert!(!said.contains("gave up"), "{said}");
        }
        std::fs::set_permissions(&path, before).unwrap();
    }
}
