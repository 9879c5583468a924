//! `nbd map`.

use std::path::Path;

use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::raw::RawClient;
use serde_json::Value;

use super::{LIMIT, json, nbd, nbdinfo, nbdkit, ours, ours_with_data, qemu_nbd, told};

/// Compares a map in every format.
#[track_caller]
fn compare(context: &str, uri: &str) {
    let Some(peer) = peers::require("nbdinfo") else { return };
    let map = format!("--map={context}");
    for more in [&[][..], &["--totals"]] {
        let our = |args: &[&str]| {
            told(["map", "-c", context].iter().chain(args).chain(more).copied().chain([uri]))
        };
        let their = |args: &[&str]| {
            nbdinfo(&peer, [map.as_str()].iter().chain(args).chain(more).copied().chain([uri]))
        };
        assert_eq!(our(&[]), their(&[]));
        let [ours, theirs] = [our(&["--json"]), their(&["--json"])].map(|text| items(&text));
        assert!(!ours.is_empty());
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours.len(), theirs.len());
            for (key, their) in theirs {
                // nbdinfo writes six digits.
                match (key.as_str(), ours[key].as_f64(), their.as_f64()) {
                    ("percent", Some(a), Some(b)) => assert!((a - b).abs() < 1e-4, "{a} {b}"),
                    _ => assert_eq!(&ours[key], their, "{key}"),
                }
            }
        }
    }
}

#[track_caller]
fn items(text: &str) -> Vec<serde_json::Map<String, Value>> {
    let items = json(text);
    items.as_array().unwrap().iter().map(|item| item.as_object().unwrap().clone()).collect()
}

#[test]
fn qemu_nbds_contexts_are_mapped_as_by_nbdinfo() {
    let Some((server, _dir)) = qemu_nbd() else { return };
    for context in ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"] {
        compare(context, &server.endpoint().uri("disk"));
    }
}

#[test]
fn our_own_contexts_are_mapped_as_by_nbdinfo() {
    let server = ours_with_data();
    for context in ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"] {
        compare(context, &server.uri(""));
    }
}

/// What qemu-img takes for data, and for zeroes, of a server.
fn qemu_map(peer: &peers::Peer, uri: &str) -> Vec<(u64, u64, bool)> {
    let mut command = peer.command();
    let map = run(command.args(["map", "--output=json", "-f", "raw", uri]), LIMIT).success();
    let items = items(&map);
    let number = |item: &serde_json::Map<String, Value>, key: &str| item[key].as_u64().unwrap();
    items
        .iter()
        .map(|item| (number(item, "start"), number(item, "length"), item["zero"] == true))
        .collect()
}

#[test]
fn sparse_files_and_memory_are_mapped_alike_by_nbdinfo_qemu_img_and_us() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(32 << 20).unwrap();
    let file = format!("file={}", image.display());
    let server = ours().args([&file, "memory=memory:32M"]).start();
    let pieces = [(1 << 20, 300 << 10), (5 << 20, 1 << 16), (31 << 20, 1 << 20)];
    for export in ["file", "memory"] {
        let mut client = RawClient::negotiate(server.endpoint());
        client.go(export, &[]).unwrap();
        for (offset, length) in pieces {
            client.write(offset, &vec![0xa5; length]);
        }
        client.finish();
        let uri = server.uri(export);
        compare("base:allocation", &uri);
        let Some(peer) = peers::require("qemu-img") else { return };
        let ours = items(&told(["map", "--json", &uri]));
        let number = |item: &serde_json::Map<String, Value>, key: &str| item[key].as_u64().unwrap();
        let ours: Vec<_> = ours
            .iter()
            .map(|item| {
                let zero = number(item, "type") & 2 != 0;
                (number(item, "offset"), number(item, "length"), zero)
            })
            .collect();
        assert_eq!(ours, qemu_map(&peer, &uri), "{export}");
        let data: Vec<_> = ours.iter().filter(|(.., zero)| !zero).map(|one| one.0).collect();
        assert_eq!(data, pieces.map(|(offset, _)| offset), "{export}");
    }
}

#[test]
fn thousands_of_extents_are_mapped_as_by_nbdinfo() {
    let args = ["sparse-random", "512M", "seed=1", "runlength=65536"];
    let Some(server) = nbdkit(&args) else { return };
    compare("base:allocation", &server.endpoint().uri(""));
}

#[test]
fn base_allocation_is_what_is_shown_by_default() {
    let server = ours_with_data();
    let uri = server.uri("");
    assert_eq!(told(["map", &uri]), told(["map", "--context", "base:allocation", &uri]));
}

#[test]
fn neighbours_are_merged_across_replies() {
    let Some(server) = nbdkit(&["null", "20G"]) else { return };
    let map = told(["map", &server.endpoint().uri("")]);
    assert_eq!(map, "         0  21474836480    3  hole,zero\n");
}

#[test]
fn an_empty_export_has_an_empty_map() {
    let Some(server) = nbdkit(&["null", "0"]) else { return };
    let uri = server.endpoint().uri("");
    assert_eq!(told(["map", &uri]), "");
    assert_eq!(told(["map", "--totals", &uri]), "");
    assert_eq!(json(&told(["map", "--json", &uri])), json("[]"));
    assert_eq!(json(&told(["map", "--json", "--totals", &uri])), json("[]"));
}

#[test]
fn a_range_is_cut_out_and_is_what_totals_are_of() {
    let args = ["--block-size", "4k", "memory:1M"];
    let server = ours().args(args).start();
    let uri = server.uri("");
    let range = ["--offset", "1000", "--length", "8k", uri.as_str()];
    let map = told(["map"].into_iter().chain(range));
    assert_eq!(map, "      1000        8192    3  hole,zero\n");
    let totals = told(["map", "--totals"].into_iter().chain(range));
    assert_eq!(totals, "      8192 100.0%   3 hole,zero\n");
    assert_eq!(told(["map", "--offset", "1M", &uri]), "");
}

#[test]
fn a_range_outside_the_export_is_refused() {
    let server = ours().arg("memory:1M").start();
    let uri = server.uri("");
    for range in [&["--offset", "2M"][..], &["--length", "1025k"], &["--offset=1", "--length=1M"]] {
        let stderr = nbd(["map"].iter().chain(range).chain([&uri.as_str()])).failure();
        assert!(stderr.contains("has 1048576 bytes"), "{stderr}");
    }
}

#[test]
fn a_context_that_is_not_there_is_named_with_a_remedy() {
    let server = ours().arg("memory:1M").start();
    for context in ["no:such", "qemu:"] {
        let finished = nbd(["map", "-c", context, &server.uri("")]);
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(1), ""));
        assert!(finished.stderr.contains(&format!("'{context}'")), "{}", finished.stderr);
        let paste = format!("see which there are with nbd info '{}'", server.uri(""));
        assert!(finished.stderr.contains(&paste), "{}", finished.stderr);
    }
}

#[test]
fn a_context_without_a_namespace_is_a_usage_error() {
    for context in ["nonsense", "", ":x"] {
        let finished = nbd(["map", "-c", context, "nbd://localhost"]);
        assert_eq!(finished.status.code(), Some(64), "{context:?}");
        assert!(finished.stderr.contains("base:allocation"), "{}", finished.stderr);
    }
}

#[test]
fn a_picture_has_what_the_map_has() {
    let server = ours_with_data();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("map.svg").display().to_string();
    assert_eq!(told(["map", "--svg", &file, &server.uri("")]), "");
    let picture = std::fs::read_to_string(&file).unwrap();
    for text in
        ["data: 114688 bytes, 1.4 %", "hole,zero: 8273920 bytes, 98.6 %", "8388608 bytes from 0"]
    {
        assert!(picture.contains(text), "{text:?} is not in: {picture}");
    }
    // All that is open is closed: it can be parsed.
    let [opened, closed] = ["<text", "</text>"].map(|tag| picture.matches(tag).count());
    assert!(opened == closed && picture.ends_with("</svg>\n"), "{picture}");
    let nowhere = nbd(["map", "--svg", "/no/such/folder/map.svg", &server.uri("")]).failure();
    assert!(nowhere.contains("cannot write '/no/such/folder/map.svg'"), "{nowhere}");
}

/// What is no file stays what it is, and gets the picture, as programs that write in place have it.
#[test]
fn a_picture_goes_through_links_and_pipes_and_to_standard_output() {
    let server = ours_with_data();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let draw = |to: &Path| told(["map", "--svg", to.to_str().unwrap(), &server.uri("")]);
    assert_eq!(draw(&path("map.svg")), "");
    let picture = std::fs::read_to_string(path("map.svg")).unwrap();
    for target in ["map.svg", "new.svg"] {
        let link = path("link");
        std::os::unix::fs::symlink(target, &link).unwrap();
        assert_eq!(draw(&link), "");
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(path(target)).unwrap(), picture);
        std::fs::remove_file(link).unwrap();
    }
    let pipe = path("pipe");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
    let read = {
        let pipe = pipe.clone();
        std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap())
    };
    assert_eq!(draw(&pipe), "");
    assert_eq!(read.join().unwrap(), picture);
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&pipe.metadata().unwrap().file_type()));
    for standard_output in ["-", "/dev/stdout"] {
        assert_eq!(draw(Path::new(standard_output)), picture);
    }
    // What was written to it before stays, also if it has no name any more.
    let script = r#"exec 3>"$1/out" 4<"$1/out"; rm "$1/out"; printf before >&3; "$0" map --svg /dev/stdout "$2" >&3; cat <&4"#;
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_nbd")]).arg(dir.path()).arg(server.uri(""));
    assert_eq!(run(&mut shell, LIMIT).success(), format!("before{picture}"));
}
