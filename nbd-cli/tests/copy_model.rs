//! `nbd copy` of random sparse disks, through every route and by every option.

#[path = "copy/disk_server.rs"]
mod disk_server;
#[path = "copy/image.rs"]
mod image;
#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use core::time::Duration;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use disk_server::{Disk, DiskServer};
use image::Image;
use nbd_testkit::LoopDevice;
use nbd_testkit::server::nbd_binary;
use nbd_testkit::{Random, assert_same_bytes, cases};
use support::{Folder, read};

const CASES: u64 = 500;

/// How long a destination waits for further connections, so that there are copies over several.
const COMPANY: Duration = Duration::from_millis(100);

/// What a destination holds before, unless it is zero.
const OLD: u8 = 0xaa;

/// What can be on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Device,
    Server,
    Pipe,
}

/// One side, ready for the copy. What goes through a pipe is in the hands of the test.
#[derive(Debug)]
enum Side {
    File(String),
    Device(LoopDevice),
    Server(DiskServer),
    Pipe,
}

impl Side {
    fn word(&self) -> String {
        match self {
            Self::File(path) => path.clone(),
            Self::Device(device) => device.path.clone(),
            Self::Server(server) => server.uri(),
            Self::Pipe => "-".into(),
        }
    }
}

fn disk(random: &mut Random, bytes: Vec<u8>, minimum: u32) -> Disk {
    let (write_zeroes, multi_conn) = (!random.one_in(4), !random.one_in(3));
    Disk { bytes, runs: Vec::new(), minimum, write_zeroes, multi_conn, status: None }
}

fn minimum(random: &mut Random) -> u32 {
    1 << random.below(17)
}

fn source(random: &mut Random, kind: Kind, image: &mut Image, folder: &Folder) -> Side {
    match kind {
        Kind::File => {
            image.write(&folder.text("source"));
            Side::File(folder.text("source"))
        }
        Kind::Device => {
            image.pad(512);
            Side::Device(LoopDevice::new(&image.bytes))
        }
        Kind::Server => {
            let minimum = minimum(random);
            image.pad(minimum.into());
            let mut disk = disk(random, image.bytes.clone(), minimum);
            disk.runs.clone_from(&image.runs);
            disk.status = (!random.one_in(6)).then(|| Random::new(random.next()));
            Side::Server(DiskServer::start(disk))
        }
        Kind::Pipe => Side::Pipe,
    }
}

/// A destination, and what it is to hold afterwards.
fn destination(
    random: &mut Random,
    kind: Kind,
    image: &Image,
    old: u8,
    folder: &Folder,
) -> (Side, Vec<u8>) {
    let with_room = |random: &mut Random, block: usize| {
        let size = image.bytes.len().next_multiple_of(block) + block * random.below(4) as usize;
        let mut after = vec![old; size];
        after[..image.bytes.len()].copy_from_slice(&image.bytes);
        (vec![old; size], after)
    };
    match kind {
        Kind::File => {
            if random.one_in(2) {
                folder.file("to", &vec![OLD; random.below(2 * image.size() + 1) as usize]);
            }
            (Side::File(folder.text("to")), image.bytes.clone())
        }
        Kind::Device => {
            let (before, after) = with_room(random, 512);
            (Side::Device(LoopDevice::new(&before)), after)
        }
        Kind::Server => {
            let minimum = minimum(random);
            let (before, after) = with_room(random, minimum as usize);
            (Side::Server(DiskServer::start(disk(random, before, minimum))), after)
        }
        Kind::Pipe => (Side::Pipe, image.bytes.clone()),
    }
}

fn options(random: &mut Random, kinds: [Kind; 2], old: u8) -> Vec<String> {
    let mut options = Vec::new();
    let zero = old == 0 && kinds[1] != Kind::File;
    let streams = kinds.contains(&Kind::Pipe);
    for (option, times, possible) in [
        ("--no-extents", 5, true),
        ("--destination-is-zero", 2, zero),
        ("--allocated", 4, true),
        ("--synchronous", 10, true),
        ("--flush", 6, true),
        ("--verify", 6, !streams),
    ] {
        if possible && random.one_in(times) {
            options.push(option.into());
        }
    }
    for (option, values) in [
        ("--connections", &["1", "2", "3", "5"][..]),
        ("--requests", &["1", "2", "64"]),
        ("--request-size", &["1000", "4k", "20000", "64k", "100k", "1M"]),
        ("--sparse", &["0", "100", "512", "4k", "64k", "1M"]),
        ("--threads", &["1", "3"]),
        ("--queue-size", &["1", "64k"]),
    ] {
        if random.one_in(3) {
            options.extend([option.to_owned(), random.of(values).to_owned()]);
        }
    }
    options
}

/// How many connections a copy is asked to make, if it is. It may make fewer, where there is little to copy.
fn connections(options: &[String]) -> Option<usize> {
    let option = options.iter().position(|option| option == "--connections")?;
    options[option + 1].parse().ok()
}

/// Runs a copy that succeeds; gives what came out of it.
#[track_caller]
fn copy(options: &[String], [from, to]: [&Side; 2], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(nbd_binary());
    command.arg("copy").args(options).args([from.word(), to.word()]);
    let piped = |is: bool| if is { Stdio::piped() } else { Stdio::null() };
    command.stdin(piped(matches!(from, Side::Pipe))).stdout(piped(matches!(to, Side::Pipe)));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    assert_eq!(said, "", "{command:?}");
    output.stdout
}

#[test]
fn sparse_disks_arrive_whole_by_every_route_and_option() {
    let mut kinds = vec![Kind::File, Kind::Server, Kind::Server, Kind::Pipe];
    if LoopDevice::are_possible() {
        kinds.push(Kind::Device);
    }
    let (mut several, mut most) = (0, 0);
    cases(CASES, |random| {
        let folder = Folder::new();
        let mut image = Image::random(random);
        let kinds = [random.of(&kinds), random.of(&kinds)];
        if kinds.contains(&Kind::Device) && image.bytes.is_empty() {
            return;
        }
        let old = random.of(&[0, OLD]);
        let from = source(random, kinds[0], &mut image, &folder);
        let (to, wanted) = destination(random, kinds[1], &image, old, &folder);
        let options = options(random, kinds, old);
        if let (Side::Server(server), Some(wanted)) = (&to, connections(&options)) {
            server.gather(wanted, COMPANY);
        }
        let out = copy(&options, [&from, &to], &image.bytes);
        let mut found = Vec::new();
        match to {
            Side::File(path) => found = read(path),
            Side::Device(device) => {
                File::open(&device.path).unwrap().read_to_end(&mut found).unwrap();
            }
            Side::Server(server) => {
                let (connections, bytes) = server.finish();
                (found, most) = (bytes, most.max(connections));
                several += u64::from(connections > 1);
            }
            Side::Pipe => found = out,
        }
        assert_same_bytes(&found, &wanted, &format!("{kinds:?} {options:?}"));
        if let Side::Server(server) = from {
            assert!(server.finish().1 == image.bytes, "a source is only read");
        }
    });
    if std::env::var_os("NBD_SEED").is_none() {
        assert!(
            several > 5 && most > 2,
            "{several} copies over several connections, {most} at most"
        );
    }
}
