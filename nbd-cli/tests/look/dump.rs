//! `nbd dump`.

use nbd_testkit::Random;
use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::server::NbdServe;

use super::{LIMIT, command, json, nbd, ours, told};

/// A server of a file.
fn server(bytes: &[u8], args: &[&str]) -> (NbdServe, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, bytes).unwrap();
    let path = path.display().to_string();
    (ours().args(args.iter().copied().chain([path.as_str()])).start(), dir)
}

#[test]
fn lines_are_those_of_hexdump() {
    let mut disk = [0; 512];
    disk[..27].copy_from_slice(b"0123456789abcdefEFI PART~\x7f\x80");
    (disk[48], disk[255]) = (7, 1);
    let (server, _dir) = server(&disk, &[]);
    let shown = told(["dump", &server.uri(""), "0", "0x100"]);
    let by_options = ["dump", "--offset", "0", "--length=0x100", &server.uri("")];
    assert_eq!(told(by_options), shown);
    let by_length = told(["dump", &server.uri(""), "--length", "1"]);
    assert_eq!(by_length, told(["dump", &server.uri(""), "0", "1"]));
    let by_offset = told(["dump", &server.uri(""), "--offset", "37"]);
    assert_eq!(by_offset, told(["dump", &server.uri(""), "37"]));
    for option in ["--offset=1", "--length=1"] {
        let refused = nbd(["dump", option, &server.uri(""), "1"]);
        assert_eq!(refused.status.code(), Some(64), "{}", refused.stderr);
        assert!(refused.stderr.contains("leave one of the two out"), "{}", refused.stderr);
    }
    let lines = "\
00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|
00000010  45 46 49 20 50 41 52 54  7e 7f 80 00 00 00 00 00  |EFI PART~.......|
00000020  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
00000030  07 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
00000040  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
*
000000f0  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 01  |................|
00000100
";
    assert_eq!(shown, lines);
    let shown = told(["dump", &server.uri(""), "15", "37"]);
    let lines = "\
0000000f  66 45 46 49 20 50 41 52  54 7e 7f 80 00 00 00 00  |fEFI PART~......|
0000001f  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
0000002f  00 07 00 00 00                                    |.....|
00000034
";
    assert_eq!(shown, lines);
}

#[test]
fn any_range_is_what_the_disk_has() {
    let mut random = Random::new(7);
    let size = 700 << 10;
    let mut disk = vec![0; size];
    for byte in &mut disk[..300 << 10] {
        *byte = random.next() as u8;
    }
    for block in ["1", "512", "64k"] {
        let (server, _dir) = server(&disk, &["--block-size", block]);
        // Disks are cut to whole blocks.
        let size = if block == "64k" { 640 << 10 } else { size };
        for _ in 0..4 {
            let offset = random.below(size as u64) as usize;
            let length = random.below((size - offset) as u64 + 1) as usize;
            let words = [offset.to_string(), format!("{length:#x}")];
            let ask = |flag: &str| {
                let words = ["dump", flag, &server.uri(""), &words[0], &words[1]].map(String::from);
                command(words.iter().filter(|word| !word.is_empty()))
            };
            let expected = &disk[offset..offset + length];
            let raw = ask("--raw").output().unwrap();
            assert!(raw.status.success() && raw.stdout == expected, "{words:?}");
            let text = json(&run(&mut ask("--json"), LIMIT).success());
            let hex: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(
                text["bytes"] == hex.as_str()
                    && text["offset"] == offset
                    && text["length"] == length
            );
        }
    }
}

#[test]
fn hexdump_agrees() {
    let Some(hexdump) = peers::require("hexdump") else { return };
    let mut random = Random::new(3);
    let disk: Vec<u8> = (0..40).flat_map(|_| [random.below(2) as u8; 16]).collect();
    let (server, dir) = server(&disk, &[]);
    let theirs = run(hexdump.command().arg("-C").arg(dir.path().join("disk")), LIMIT).success();
    assert_eq!(told(["dump", &server.uri(""), "0", "640"]), theirs);
}

#[test]
fn what_is_not_there_is_named() {
    let (server, _dir) = server(&[1; 1000], &[]);
    let uri = server.uri("");
    for (words, code, says) in [
        (&["1001"][..], 1, "the export has 1000 bytes"),
        (&["0", "1001"], 1, "the export has 1000 bytes"),
        (&["first"], 64, "'first' is not a size"),
        (&["0", "1", "2"], 64, "leave out '2'"),
        (&["0", "9223372036854775808"], 64, "too large"),
    ] {
        let finished = nbd(["dump", uri.as_str()].iter().chain(words));
        assert_eq!(finished.status.code(), Some(code), "{words:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(says), "{says:?} is not in: {}", finished.stderr);
    }
    assert_eq!(told(["dump", &uri, "1000"]), "000003e8\n");
}
