//! `nbd info`.

use std::io;
use std::process::{Command, Stdio};

use nbd_engine::proto::Uri;
use nbd_testkit::peers;
use nbd_testkit::process::{Background, run, wait_until};
use serde_json::Value;

use super::{LIMIT, command, json, nbd, nbdinfo, nbdkit, ours, ours_with_data, qemu_nbd, told};

/// Keys that younger versions of nbdinfo have.
const YOUNG: [&str; 2] = ["extended", "can_block_status_payload"];

/// Compares two answers key by key. nbdinfo's URIs of Unix sockets are written differently.
#[track_caller]
pub(super) fn assert_same_answer(ours: &Value, theirs: &Value) {
    let (Some(ours), Some(theirs)) = (ours.as_object(), theirs.as_object()) else {
        return assert_eq!(ours, theirs);
    };
    for (key, their) in theirs {
        let our = ours.get(key).unwrap_or_else(|| panic!("{key} is missing: {ours:?}"));
        match (key.as_str(), our, their) {
            ("exports", Value::Array(our), Value::Array(their)) => {
                assert_eq!(our.len(), their.len());
                our.iter().zip(their).for_each(|(our, their)| assert_same_answer(our, their));
            }
            ("uri", Value::String(our), Value::String(their)) if our.starts_with("nbd+unix") => {
                let [our, their] = [our, their].map(|text| text.parse::<Uri>().unwrap());
                assert_eq!(our, their);
            }
            _ => assert_eq!(our, their, "{key}"),
        }
    }
    for key in ours.keys() {
        assert!(theirs.contains_key(key) || YOUNG.contains(&key.as_str()), "{key} is ours alone");
    }
}

#[track_caller]
fn compare(uri: &str) {
    let Some(peer) = peers::require("nbdinfo") else { return };
    let theirs = nbdinfo(&peer, ["--json", uri]);
    assert_same_answer(&json(&told(["info", "--json", uri])), &json(&theirs));
    // The lines for people have the same order and spelling, too.
    let kept = |text: &str| {
        let lines = text.lines().filter(|line| {
            let key = line.trim_start().split(':').next().unwrap_or_default();
            let is_theirs = key == "protocol" || key == "uri" && line.contains("nbd+unix");
            !is_theirs && !YOUNG.contains(&key)
        });
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(kept(&told(["info", uri])), kept(&nbdinfo(&peer, [uri])));
    assert_eq!(told(["info", "--size", uri]), nbdinfo(&peer, ["--size", uri]));
}

#[test]
fn nbdkit_is_described_as_by_nbdinfo() {
    for args in [
        &["memory", "1M"][..],
        &["-r", "memory", "1000"],
        &["--oldstyle", "memory", "1M"],
        &["--mask-handshake=0", "memory", "1M"],
        &["--no-sr", "null", "6E"],
        &["--filter=exportname", "memory", "1M", "default-export=first"],
        &[
            "--filter=blocksize-policy",
            "null",
            "1G",
            "blocksize-minimum=512",
            "blocksize-preferred=64k",
            "blocksize-maximum=256M",
        ],
    ] {
        let Some(server) = nbdkit(args) else { return };
        compare(&server.endpoint().uri(""));
    }
}

#[test]
fn qemu_nbd_is_described_as_by_nbdinfo() {
    let Some((server, _dir)) = qemu_nbd() else { return };
    compare(&server.endpoint().uri("disk"));
}

#[test]
fn the_size_is_what_a_client_gets_that_enters() {
    // nbd-server 3.24 reports 0 to clients that only ask.
    let Some(peer) = peers::require("nbd-server") else { return };
    let dir = tempfile::tempdir().unwrap();
    let [image, config] = ["image", "config"].map(|name| dir.path().join(name));
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    // Port 0 does not do, as the port that it becomes is not known.
    let address = nbd_testkit::own_ip();
    let lines = [
        "[generic]".into(),
        format!("listenaddr = {address}"),
        "port = 10807".into(),
        "allowlist = true".into(),
        "[a]".into(),
        format!("exportname = {}", image.display()),
    ];
    std::fs::write(&config, lines.join("\n") + "\n").unwrap();
    let uri = format!("nbd://{address}:10807/a");
    for (flags, says) in
        [(&["--size"][..], "1048576\n"), (&["--no-content"], "export-size: 1048576 (1M)\n")]
    {
        // In the foreground it serves a single client.
        let mut command = peer.command();
        let server = Background::spawn(command.arg("-d").arg("-C").arg(&config)).unwrap();
        let mut told = String::new();
        wait_until("nbd-server answers", LIMIT, || {
            let finished = nbd([&["info"], flags, &[&uri]].concat());
            told = finished.stdout;
            finished.status.success() || !server.is_running()
        });
        assert!(told.contains(says), "{flags:?}: {told}");
    }
}

#[test]
fn our_own_server_is_described_as_by_nbdinfo() {
    let server = ours_with_data();
    for export in ["", "other"] {
        compare(&server.uri(export));
    }
}

#[test]
fn a_default_export_has_the_name_that_the_server_gives_it() {
    let server = ours().args(["first=memory:1M", "second=memory:2M"]).start();
    compare(&server.uri(""));
    assert!(told(["info", &server.uri("")]).contains("\nexport=\"first\":\n"));
}

#[test]
fn uris_of_tcp_servers_are_written_as_by_nbdinfo() {
    let serve = |address: &str, port: &str| {
        let args = ["serve", "--ip-addr", address, "--port", port, "memory:1M", "b=memory:1M"];
        let server = Background::spawn(&mut command(args)).unwrap();
        let uri = server.next_line(LIMIT).unwrap_or_else(|| panic!("{}", server.stderr()));
        (server, uri)
    };
    // The usual port, on an address of this process alone.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let address = format!("127.{}.{b}.{}", a.wrapping_add(78) % 128 + 1, c.max(1));
    let (_usual, long) = serve(&address, "10809");
    let short = format!("nbd://{address}");
    assert_eq!(long, format!("{short}:10809/"));
    assert!(told(["info", &short]).contains(&format!("\turi: {long}\n")));
    assert!(told(["list", &short]).contains(&format!("\turi: {long}b\n")));
    let (_other, other) = serve("127.0.0.1", "0");
    for uri in [short, long, format!("nbd://{address}/b"), format!("{other}b")] {
        compare(&uri);
    }
}

#[test]
fn the_content_is_guessed_as_by_nbdinfo() {
    let Some(peer) = peers::require("nbdinfo") else { return };
    for args in [
        &["data", "data=\"MZ\" @510 0x55 0xaa", "size=1M"][..],
        &["memory", "0"],
        &["--oldstyle", "data", "data=\"hello\""],
    ] {
        let Some(server) = nbdkit(args) else { return };
        let uri = server.endpoint().uri("");
        let theirs = json(&nbdinfo(&peer, ["--json", &uri]));
        // Both leave it out where file(1) is missing.
        let content = theirs["exports"][0].get("content");
        assert_eq!(json(&told(["info", "--json", &uri]))["exports"][0].get("content"), content);
        let Some(content) = content else { return };
        for flags in [&["--content"][..], &["--no-content", "--content"]] {
            let ours = told(["info", "--json"].iter().chain(flags).chain([&&*uri]).copied());
            assert_eq!(&json(&ours)["exports"][0]["content"], content);
        }
        assert!(told(["info", "--content", &uri]).contains(content.as_str().unwrap()));
        for flags in [&["--no-content"][..], &["--content", "--no-content"]] {
            let ours = told(["info"].iter().chain(flags).chain([&&*uri]).copied());
            assert!(!ours.contains("content"), "{ours}");
        }
    }
}

#[test]
fn content_that_can_not_be_read_is_left_out_unless_asked_for() {
    let args = ["--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=1"];
    let Some(server) = nbdkit(&args) else { return };
    let uri = server.endpoint().uri("");
    let plain = told(["info", &uri]);
    assert!(!plain.contains("content") && plain.contains("export-size"), "{plain}");
    let asked = nbd(["info", "--content", &uri]);
    assert!(asked.failure().contains("NBD_EIO"));
    // A list reports all the rest.
    let list = nbd(["list", "--content", &uri]);
    assert_eq!((list.status.code(), list.stdout.as_str()), (Some(1), plain.as_str()));
}

#[test]
fn content_is_guessed_where_blocks_are_large() {
    for memory in ["memory:1M", "memory:64K"] {
        let server = ours().args(["--block-size", "64K", memory]).start();
        let asked = nbd(["info", "--content", &server.uri("")]);
        if asked.stderr.contains("install it") {
            eprintln!("skipped: no file(1)");
            return;
        }
        assert!(asked.success().contains("content: data\n"));
    }
}

#[test]
fn content_of_less_than_a_block_is_not_called_empty() {
    let args = ["--filter=blocksize-policy", "memory", "1000", "blocksize-minimum=4K"];
    let Some(server) = nbdkit(&args) else { return };
    let uri = server.endpoint().uri("");
    let plain = told(["info", &uri]);
    assert!(!plain.contains("content:") && plain.contains("export-size: 1000"), "{plain}");
    let asked = nbd(["info", "--content", &uri]).failure();
    assert!(asked.contains("has 1000 bytes, and the server reads no less than 4096"), "{asked}");
}

#[test]
fn questions_are_answered_as_by_nbdinfo() {
    let Some(peer) = peers::require("nbdinfo") else { return };
    let arguments = [&["-r", "null", "1M"][..], &["memory", "1M"], &["--oldstyle", "null", "1M"]];
    let servers: Vec<_> = arguments.into_iter().filter_map(nbdkit).collect();
    for uri in servers.iter().map(|server| server.endpoint().uri("")) {
        for (verb, features) in [
            ("--can", &["cache", "connect", "df", "fast-zero", "flush", "FUA", "multi_conn"][..]),
            ("--can", &["read", "structured-reply", "trim", "write", "zero"]),
            ("--is", &["read-only", "rotational", "tls"]),
        ] {
            for feature in features {
                let ours = nbd(["info", verb, feature, &uri]);
                let theirs = run(peer.command().args([verb, feature, &uri]), LIMIT);
                assert_eq!(ours.status.code(), theirs.status.code(), "{verb} {feature} {uri}");
                assert_eq!((ours.stdout, ours.stderr), Default::default());
            }
        }
    }
}

#[test]
fn negations_turn_the_answer_around() {
    let server = ours_with_data();
    let uri = server.uri("");
    for (arguments, code) in [
        (["--has", "extended-headers"], 0),
        (["--hasnt", "extended-headers"], 2),
        (["--isnt", "read-only"], 0),
        (["--can", "resize"], 2),
        (["--cannot", "resize"], 0),
        (["--cannot", "connect"], 2),
    ] {
        let finished = nbd(["info", arguments[0], arguments[1], &uri]);
        assert_eq!(finished.status.code(), Some(code), "{arguments:?}: {}", finished.stderr);
    }
}

#[test]
fn an_unreachable_server_is_an_error_unless_that_is_the_question() {
    let dir = tempfile::tempdir().unwrap();
    let uri = format!("nbd+unix:///?socket={}", dir.path().join("nobody").display());
    for arguments in [&["--can", "connect"][..], &["--is", "read-only"], &["--isnt", "tls"], &[]] {
        let finished = nbd(["info"].iter().chain(arguments).chain([&uri.as_str()]));
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(1), ""));
        assert!(finished.stderr.contains("nobody: No such file"), "{}", finished.stderr);
        assert!(finished.stderr.contains("start the server"), "{}", finished.stderr);
    }
    let finished = nbd(["info", "--cannot", "connect", &uri]);
    assert_eq!((finished.status.code(), finished.stderr.as_str()), (Some(0), ""));
}

#[test]
fn an_export_that_is_not_there_is_named() {
    let server = ours_with_data();
    let stderr = nbd(["info", &server.uri("nowhere")]).failure();
    let says = "nbd: there is no export \"nowhere\" on nbd+unix:///?socket=";
    assert!(stderr.starts_with(says), "{stderr}");
    // What is to be done can be pasted.
    let paste = stderr.trim_end().rsplit_once(" with nbd ").expect("a command").1;
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" {paste}"), env!("CARGO_BIN_EXE_nbd")]);
    assert!(run(&mut shell, LIMIT).success().contains("export=\"other\":\n"), "{paste}");
}

#[test]
fn the_uri_is_printed_without_asking_the_server() {
    assert_eq!(told(["info", "--uri", "nbd://localhost"]), "nbd://localhost:10809/\n");
    assert_eq!(told(["info", "--uri", "--json", "NBD://[::1]:1/a"]), "\"nbd://[::1]:1/a\"\n");
}

#[test]
fn usage_errors_name_what_is_wrong() {
    for (arguments, says) in [
        (&["info"][..], "URI"),
        (&["info", "--can", "dance", "nbd://"], "multi-conn"),
        (&["info", "--size", "--can", "trim", "nbd://"], "--size"),
        (&["info", "disk.img"], "'disk.img' is not an NBD URI"),
        (
            &["info", "Cargo.toml"],
            "'Cargo.toml' is a file and no NBD URI: give [ nbd serve Cargo.toml ]",
        ),
        (&["info", "nbd://127.0.0.1:99999"], "\"99999\" at 16 is not a number from 1 to 65535"),
        (&["info", "nbd://a", "nbd://b"], "leave out 'nbd://b'"),
        (&["info", "[", "nbdkit", "null"], "']'"),
        (&["info", "[", "]"], "no command"),
    ] {
        let finished = nbd(arguments);
        assert_eq!(finished.status.code(), Some(64), "{arguments:?}");
        assert!(finished.stderr.contains(says), "{says:?} is not in: {}", finished.stderr);
    }
}

#[test]
fn a_reader_that_closes_early_is_no_failure() {
    let server = ours_with_data();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = command(["info", &server.uri("")]);
    let ended = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), &b""[..]));
}

#[test]
fn what_a_disk_contains_is_named_unless_nothing_is_to_be_read() {
    let Some(peer) = peers::require("mke2fs") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let label = "a\u{1b}[31m\" b";
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    let arguments = ["-q", "-t", "ext4", "-L", label, "-U", uuid];
    run(peer.command().args(arguments).arg(&path), LIMIT).success();
    for sizes in ["1:4k:1M", "64k:64k:1M"] {
        let server = ours().args(["--block-size", sizes, path.to_str().unwrap()]).start();
        let uri = server.uri("");
        let shown = told(["info", &uri]);
        // A terminal obeys nothing of a label.
        let line = format!(
            "\tcontents:\n\t\text4 file system, label \"a\\u{{1b}}[31m\\\" b\", UUID {uuid}\n"
        );
        assert!(shown.ends_with(&line), "{shown}");
        let contents = serde_json::json!({ "type": "ext4", "label": label, "uuid": uuid });
        for words in [&["info", "--json", &uri][..], &["list", "--content", "--json", &uri]] {
            let shown = json(&told(words.iter().copied()));
            assert_eq!(shown["exports"][0]["contents"], contents, "{words:?}");
        }
        assert!(!told(["info", "--no-content", &uri]).contains("contents"));
    }
}
