//! Stock clients on an event loop that has the core and nothing else of the project.

use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_testkit::peers::{Peer, require};
use nbd_testkit::process::{Background, run};
use nbd_testkit::{Pattern, SOON, assert_same_bytes};
use tempfile::TempDir;

const SIZE: usize = 64 << 20;

/// The program, serving 64 MiB; killed when dropped.
struct PollLoop {
    uri: String,
    dir: TempDir,
    _process: Background,
}

impl PollLoop {
    fn start(place: impl FnOnce(&Path) -> String) -> Self {
        let dir = TempDir::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_poll_loop"));
        let process = Background::spawn(command.arg(place(dir.path()))).unwrap();
        let uri = process.next_line(SOON).expect("it prints its URI");
        Self { uri, dir, _process: process }
    }

    fn on_both_transports() -> [Self; 2] {
        [
            Self::start(|_| "127.0.0.1:0".into()),
            Self::start(|dir| dir.join("nbd.sock").display().to_string()),
        ]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An image as large as the disk, of which one MiB in four is data.
    fn image(&self) -> (PathBuf, Vec<u8>) {
        let mut bytes = vec![0; SIZE];
        for (at, part) in bytes.chunks_mut(4 << 20).enumerate() {
            part[..1 << 20].copy_from_slice(&Pattern(at as u64).bytes(0, 1 << 20));
        }
        let path = self.path("image");
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }
}

fn output(peer: &Peer, args: &[&str]) -> String {
    run(peer.command().args(args), SOON).success()
}

#[test]
fn qemu_img_copies_in_and_out() {
    let Some(qemu_img) = require("qemu-img") else { return };
    for server in PollLoop::on_both_transports() {
        let (image, bytes) = server.image();
        let (image, back) = (image.display().to_string(), server.path("back"));
        let raw = ["convert", "-n", "-f", "raw", "-O", "raw"];
        output(&qemu_img, &[&raw[..], &[&image, &server.uri]].concat());
        output(&qemu_img, &["compare", "-f", "raw", "-F", "raw", &image, &server.uri]);
        let out = back.display().to_string();
        output(&qemu_img, &["convert", "-f", "raw", "-O", "raw", &server.uri, &out]);
        assert_same_bytes(&std::fs::read(back).unwrap(), &bytes, "the copy");
    }
}

#[test]
fn qemu_io_finds_what_it_wrote() {
    let Some(qemu_io) = require("qemu-io") else { return };
    for server in PollLoop::on_both_transports() {
        let mut args = vec!["-f", "raw"];
        for line in [
            "write -P 0xa5 1234k 333k",
            "write -f -P 0x5a 7 1001",
            "write -z 1300k 4k",
            "flush",
            "read -P 0x5a 7 1001",
            "read -P 0xa5 1234k 66k",
            "read -P 0 1300k 4k",
            "read -P 0xa5 1304k 263k",
        ] {
            args.extend(["-c", line]);
        }
        args.push(&server.uri);
        let text = output(&qemu_io, &args);
        assert!(!text.contains("failed"), "{text}");
    }
}

#[test]
fn nbdinfo_and_nbdcopy_understand_it() {
    let (Some(nbdinfo), Some(nbdcopy)) = (require("nbdinfo"), require("nbdcopy")) else { return };
    for server in PollLoop::on_both_transports() {
        assert_eq!(output(&nbdinfo, &["--size", &server.uri]).trim(), SIZE.to_string());
        let (image, bytes) = server.image();
        let back = server.path("back");
        output(&nbdcopy, &["--flush", &image.display().to_string(), &server.uri]);
        output(&nbdcopy, &[&server.uri, &back.display().to_string()]);
        assert_same_bytes(&std::fs::read(back).unwrap(), &bytes, "the copy");
    }
}

#[test]
fn fio_verifies_random_writes() {
    let Some(fio) = require("fio") else { return };
    for server in PollLoop::on_both_transports() {
        let mut command = fio.command();
        command.current_dir(server.dir.path());
        command.args(["--name=verify", "--ioengine=nbd", "--iodepth=32", "--rw=randwrite"]);
        command.args(["--bs=16k", "--size=64M", "--verify=crc32c", "--verify_fatal=1"]);
        command.args(["--verify_state_save=0", &format!("--uri={}", server.uri)]);
        let report = run(&mut command, SOON).success();
        assert!(report.contains("err= 0"), "{report}");
    }
}
