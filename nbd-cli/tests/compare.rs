//! `nbd compare`.

#[path = "copy/disk_server.rs"]
#[allow(dead_code, reason = "it is shared with the tests of copies")]
mod disk_server;
#[path = "copy/image.rs"]
mod image;
#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the tests of copies")]
mod support;

use std::process::Command;

use disk_server::{Disk, DiskServer};
use image::Image;
use nbd_testkit::peers;
use nbd_testkit::process::{Finished, run};
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport, nbd_binary};
use nbd_testkit::{LoopDevice, Random, cases};
use serde_json::Value;
use support::{Folder, SOON, noise};

const CASES: u64 = 40;

#[track_caller]
fn compare(words: &[&str]) -> Finished {
    run(Command::new(nbd_binary()).arg("compare").args(words), SOON)
}

/// The exit status, and what is on standard output. Nothing is said besides.
#[track_caller]
fn answer(words: &[&str]) -> (i32, String) {
    let finished = compare(words);
    assert_eq!(finished.stderr, "", "{words:?}");
    (finished.status.code().expect("it ends by itself"), finished.stdout)
}

/// What is said when it can't be found out.
#[track_caller]
fn undecided(words: &[&str], code: i32) -> String {
    let finished = compare(words);
    assert_eq!(finished.status.code(), Some(code), "{words:?}: {}", finished.stderr);
    assert_eq!(finished.stdout, "", "{words:?}");
    finished.stderr
}

fn serving(args: &[&str]) -> NbdServe {
    let setup = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };
    setup.serve().args(args.iter().copied()).start()
}

#[test]
fn the_status_and_the_offset_tell_whether_disks_differ() {
    let folder = Folder::new();
    let bytes = noise(1 << 20);
    let mut changed = bytes.clone();
    changed[700_001] ^= 1;
    let (one, other) = (folder.file("one", &bytes), folder.file("other", &bytes));
    let changed = folder.file("changed", &changed);
    assert_eq!(answer(&[&one, &other]), (0, String::new()));
    let text = format!("{one} and {changed} differ: the first difference is at offset 700001\n");
    assert_eq!(answer(&[&one, &changed]), (1, text));
    assert_eq!(answer(&["-n", "700001", &one, &changed]).0, 0);
    assert_eq!(answer(&["-n", "700002", &one, &changed]).0, 1);
    let server = serving(&[&changed]);
    assert_eq!(answer(&[&changed, &server.uri("")]).0, 0);
    assert_eq!(answer(&[&server.uri(""), &one]).0, 1);
}

#[test]
fn disks_of_different_sizes_differ_where_the_smaller_one_ends() {
    let folder = Folder::new();
    let bytes = noise(10_000);
    let (long, short) = (folder.file("long", &bytes), folder.file("short", &bytes[..7000]));
    let text = format!(
        "{long} and {short} differ: the first difference is at offset 7000; {long} has 10000 bytes, and {short} has 7000\n"
    );
    assert_eq!(answer(&[&long, &short]), (1, text));
    assert_eq!(answer(&["--length", "7000", &long, &short]), (0, String::new()));
    let empty = folder.file("empty", b"");
    assert_eq!(answer(&[&empty, &short]).0, 1);
    assert_eq!(answer(&[&empty, &empty]).0, 0);
    let said = undecided(&["--length", "7001", &long, &short], 2);
    assert!(said.contains("--length 7001 is more than both have"), "{said}");
}

#[test]
fn what_cannot_be_compared_is_no_difference() {
    let folder = Folder::new();
    let file = folder.file("file", b"x");
    for (word, code, says) in [
        (folder.text("missing").as_str(), 2, "cannot open"),
        ("nbd+unix:///?socket=/nonexistent", 2, "/nonexistent"),
        (folder.text("").as_str(), 2, "is a folder"),
        ("-", 64, "can't be read at any offset: write it to a file"),
        ("null:", 64, "nothing to be read"),
    ] {
        let said = undecided(&[&file, word], code);
        assert!(said.contains(says), "{says:?} is not in: {said}");
    }
    assert!(undecided(&[&file], 64).contains("give two disks to compare"));
    if peers::require("nbdkit").is_some() {
        let path = folder.file("large", &noise(1 << 20));
        let server = ["[", "nbdkit", "--filter=error", "memory", "1M", "error-pread=EIO"];
        let server = [&server[..], &["error-pread-rate=100%", "]"]].concat();
        let said = undecided(&[&[path.as_str()][..], &server].concat(), 2);
        assert!(said.contains("the comparison failed at offset"), "{said}");
    }
}

/// How many bytes a server has been asked for.
fn read_bytes(control: &str) -> u64 {
    let words = ["status", "--json", "--interval=0", control];
    let text = run(Command::new(nbd_binary()).args(words), SOON).success();
    let status: Value = serde_json::from_str(&text).unwrap();
    status["exports"][0]["read_bytes"].as_u64().unwrap()
}

#[test]
fn what_both_sides_know_to_be_zero_is_not_read() {
    let folder = Folder::new();
    let control = folder.text("control");
    let servers = [serving(&["--control", &control, "memory:1G"]), serving(&["memory:1G"])];
    let [one, other] = servers.each_ref().map(|server| server.uri(""));
    assert_eq!(answer(&[&one, &other]), (0, String::new()));
    assert_eq!(read_bytes(&control), 0);
    let copy = ["copy", &folder.file("x", b"x"), &other];
    run(Command::new(nbd_binary()).args(copy), SOON).success();
    let text = answer(&[&one, &other]).1;
    assert!(text.contains("the first difference is at offset 0"), "{text}");
    assert!((1..1 << 20).contains(&read_bytes(&control)), "what one side has is read of both");
}

#[test]
fn programs_get_json_and_lines_of_progress() {
    let folder = Folder::new();
    let (one, other) = (folder.file("one", &noise(1 << 20)), folder.file("other", &noise(1000)));
    let (code, text) = answer(&["--json", &one, &other]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 1);
    assert_eq!(document["same"], false);
    assert_eq!(document["first-difference"], 1000);
    assert_eq!(document["b"], serde_json::json!({ "name": other, "size": 1000 }));
    let (code, text) = answer(&["--json", &one, &one]);
    assert_eq!(code, 0);
    assert!(text.contains("\"first-difference\": null"), "{text}");
    let lines = folder.text("lines");
    let shell = format!("exec \"$0\" compare --progress=3 {one} {one} 3>{lines}");
    run(Command::new("sh").args(["-c", &shell]).arg(nbd_binary()), SOON).success();
    let lines = std::fs::read_to_string(lines).unwrap();
    assert!(lines.starts_with("0/100\n") && lines.ends_with("\n100/100\n"), "{lines}");
}

/// A side of a comparison.
enum Side {
    File(String),
    Device(LoopDevice),
    Server(DiskServer),
}

impl Side {
    fn random(random: &mut Random, image: &Image, folder: &Folder, name: &str) -> Self {
        let kinds = if LoopDevice::are_possible() { 9 } else { 8 };
        match random.below(kinds) {
            0..4 => {
                image.write(&folder.text(name));
                Self::File(folder.text(name))
            }
            8 if !image.bytes.is_empty() && image.size().is_multiple_of(512) => {
                Self::Device(LoopDevice::new(&image.bytes))
            }
            _ => {
                let largest = image.size().trailing_zeros().min(16);
                let disk = Disk {
                    bytes: image.bytes.clone(),
                    runs: image.runs.clone(),
                    minimum: 1 << random.below(u64::from(largest) + 1),
                    write_zeroes: true,
                    multi_conn: !random.one_in(3),
                    status: (!random.one_in(6)).then(|| Random::new(random.next())),
                };
                Self::Server(DiskServer::start(disk))
            }
        }
    }

    fn word(&self) -> String {
        match self {
            Self::File(path) => path.clone(),
            Self::Device(device) => device.path.clone(),
            Self::Server(server) => server.uri(),
        }
    }
}

/// The same disk, but for a few bytes and for its size, or for nothing; cut into runs that are what they say.
fn altered(random: &mut Random, image: &Image) -> Image {
    let mut other = image.clone();
    for _ in 0..random.below(4) {
        if other.bytes.is_empty() {
            break;
        }
        let offset = random.below(other.size()) as usize;
        other.bytes[offset] ^= random.of(&[0, 1, 0xff]);
    }
    if random.one_in(3) {
        let size = random.below(2 * image.size() + 2);
        let size = if random.one_in(2) { size.next_multiple_of(512) } else { size };
        other.bytes.resize(size as usize, 0);
        other.runs.retain(|(end, _)| *end < size);
        other.runs.push((size, true));
    }
    let mut start = 0;
    for (end, zero) in &mut other.runs {
        *zero &= other.bytes[start..*end as usize].iter().all(|byte| *byte == 0);
        start = *end as usize;
    }
    other
}

/// Where two disks differ first.
fn difference(one: &[u8], other: &[u8]) -> Option<usize> {
    let common = one.len().min(other.len());
    let differs = |offset: &usize| one[*offset] != other[*offset];
    (0..common).find(differs).or((one.len() != other.len()).then_some(common))
}

#[test]
fn random_disks_are_compared_as_their_bytes_are() {
    let (mut same, mut differ) = (0, 0);
    cases(CASES, |random| {
        let folder = Folder::new();
        let mut image = Image::random(random);
        if random.one_in(2) {
            image.pad(random.of(&[512, 4096, 65536]));
        }
        let other = altered(random, &image);
        let sides = [
            Side::random(random, &image, &folder, "one"),
            Side::random(random, &other, &folder, "other"),
        ];
        let common = image.bytes.len().min(other.bytes.len());
        let mut expected = difference(&image.bytes, &other.bytes);
        let mut options = vec!["--json".to_owned()];
        if random.one_in(4) {
            let length = random.below(common as u64 + 1) as usize;
            options.extend(["--length".to_owned(), length.to_string()]);
            expected = difference(&image.bytes[..length], &other.bytes[..length]);
        }
        if random.one_in(5) {
            options.push("--no-extents".into());
        }
        if random.one_in(2) {
            options.extend(["--connections".to_owned(), random.of(&["1", "2", "3"]).to_owned()]);
        }
        let words: Vec<String> =
            options.iter().cloned().chain(sides.iter().map(Side::word)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (code, text) = answer(&words);
        let document: Value = serde_json::from_str(&text).unwrap();
        let found = document["first-difference"].as_u64();
        assert_eq!(found, expected.map(|offset| offset as u64), "{words:?}");
        assert_eq!(code, i32::from(expected.is_some()), "{words:?}");
        match expected {
            None => same += 1,
            Some(_) => differ += 1,
        }
        for side in sides {
            if let Side::Server(server) = side {
                server.finish();
            }
        }
    });
    if std::env::var_os("NBD_SEED").is_none() {
        assert!(same > 0 && differ > 0, "{same} {differ}");
    }
}

#[test]
fn several_connections_share_the_work() {
    let start = |bytes: &[u8]| {
        let server = DiskServer::start(Disk {
            bytes: bytes.to_vec(),
            runs: vec![(bytes.len() as u64, false)],
            minimum: 512,
            write_zeroes: true,
            multi_conn: true,
            status: Some(Random::new(1)),
        });
        // None has a request answered before there are two.
        server.gather(2, SOON);
        server
    };
    let mut bytes = noise(4 << 20);
    let one = start(&bytes);
    bytes[3_000_000] ^= 1;
    let other = start(&bytes);
    let text = answer(&["--connections", "2", &one.uri(), &other.uri()]).1;
    assert!(text.contains("at offset 3000000\n"), "{text}");
    assert_eq!((one.finish().0, other.finish().0), (2, 2));
}

/// The programs whose statuses are ours.
#[test]
fn qemu_img_and_cmp_say_the_same() {
    let Some(qemu) = peers::require("qemu-img") else { return };
    cases(20, |random| {
        let folder = Folder::new();
        let mut image = Image::random(random);
        // qemu counts in sectors.
        image.pad(512);
        let mut other = altered(random, &image);
        other.pad(512);
        let (one, two) = (folder.text("one"), folder.text("two"));
        image.write(&one);
        other.write(&two);
        let ours = compare(&[&one, &two]).status.code();
        let cmp = run(Command::new("cmp").args([&one, &two]), SOON);
        assert_eq!(ours, cmp.status.code(), "{}", cmp.stdout);
        let args = ["compare", "-s", "-f", "raw", "-F", "raw", &one, &two];
        let theirs = run(qemu.command().args(args), SOON);
        assert_eq!(ours, theirs.status.code(), "{}{}", theirs.stdout, theirs.stderr);
        if let Some(offset) = difference(&image.bytes, &other.bytes)
            && offset < image.bytes.len().min(other.bytes.len())
        {
            // Bytes are counted from 1 there.
            assert!(cmp.stdout.contains(&format!(" {},", offset + 1)), "{}", cmp.stdout);
        }
    });
}

#[test]
fn an_image_of_another_format_is_compared_by_its_server() {
    let tools = ["qemu-nbd", "qemu-img"].map(peers::require);
    let [Some(_), Some(img)] = tools else { return };
    let folder = Folder::new();
    let raw = folder.sparse("disk.img", &support::holey(8 << 20));
    let image = folder.text("disk.qcow2");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", &raw, &image];
    run(img.command().args(convert), SOON).success();
    let words = ["[", "qemu-nbd", "-r", "-f", "qcow2", &image, "]", &raw];
    assert_eq!(answer(&words), (0, String::new()));
}
