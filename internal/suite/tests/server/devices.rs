//! Files and block devices that grow, can't be written, or lose what was written to them: by loop devices, which need
//! root. Without, the tests are skipped, and fail in CI.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_blocking::ServerConfig;
use nbd_engine::export::{
    BlockSize, Export, ExportMap, File, ReadOnly, Tracked, WithBlockSize, ZeroMode, check_writable,
};
use nbd_proto::wire::ErrorCode;
use nbd_suite::Served;
use nbd_testkit::peers::skip;
use nbd_testkit::raw::{Errno, RawClient, Request, cmd_flag};
use tempfile::{NamedTempFile, TempDir};

const MIB: u64 = 1 << 20;

/// What a command printed.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program} {arguments:?} failed: {}", why.trim()))
        }
        Err(error) => Err(format!("{program} can't be run: {error}")),
    }
}

/// The same of a command without which the test is skipped.
#[track_caller]
fn require(program: &str, arguments: &[&str]) -> Option<String> {
    run(program, arguments).map_err(|why| skip(&why)).ok()
}

/// A block device that is a file.
struct Loop(PathBuf);

impl Loop {
    fn attach(options: &[&str], file: &Path) -> Option<Self> {
        let file = file.to_str().expect("folders for tests have plain names");
        let arguments = [options, &["--find", "--show", file]].concat();
        Some(Self(require("losetup", &arguments)?.into()))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("devices have plain names")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _detached = run("losetup", &["--detach", self.path()]);
    }
}

/// A file system in memory, in a folder of its own.
struct Mounted(TempDir);

impl Mounted {
    fn new(kind: &str, options: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().to_str().expect("folders for tests have plain names");
        require("mount", &["-t", kind, "-o", options, kind, path])?;
        Some(Self(folder))
    }

    /// A file of holes in it.
    fn file(&self, size: u64) -> PathBuf {
        let path = self.0.path().join("disk.img");
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _unmounted = run("umount", &["--lazy", self.0.path().to_str().unwrap_or_default()]);
    }
}

fn image(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

#[test]
fn a_read_only_device_is_refused_for_writing_at_open() {
    let file = image(MIB);
    let Some(device) = Loop::attach(&["--read-only"], file.path()) else { return };
    let open = || fs::OpenOptions::new().read(true).write(true).open(device.path()).unwrap();
    let by_path = File::open(device.path()).unwrap_err();
    assert_eq!(by_path.kind(), ErrorKind::ReadOnlyFilesystem);
    let by_descriptor = File::from_std(open()).unwrap_err();
    let check = check_writable(&open()).unwrap_err();
    assert_eq!(check.kind(), ErrorKind::ReadOnlyFilesystem);
    for text in [by_path.to_string(), by_descriptor.to_string(), check.to_string()] {
        assert!(text.ends_with("is read-only; open it read-only too"), "{text}");
    }
    let disk = File::options().read_only(true).open(device.path()).unwrap();
    assert!(disk.can_write().is_none());
    assert_eq!(disk.size(), MIB);
}

#[test]
fn a_device_that_can_be_written_is_accepted() {
    let file = image(MIB);
    let Some(device) = Loop::attach(&[], file.path()) else { return };
    let open = fs::OpenOptions::new().read(true).write(true).open(device.path()).unwrap();
    check_writable(&open).unwrap();
    assert!(File::from_std(open).unwrap().can_write().is_some());
}

/// Clients that enter see the new size; those that are in keep theirs, and may go on.
fn grows(path: &Path, export: impl Export, grow: impl FnOnce()) {
    let size = export.size();
    let config = ServerConfig::new().with_resize(false);
    let served = Served::start(ExportMap::new().with("", export).unwrap(), config);
    let mut early = RawClient::go_structured(served.endpoint());
    assert_eq!(early.export().size, size);
    grow();
    let mut asking = RawClient::negotiate(served.endpoint());
    assert_eq!(asking.info("", &[]).unwrap().size, 2 * size, "{}", path.display());
    asking.finish();
    let mut late = RawClient::go_structured(served.endpoint());
    assert_eq!(late.export().size, 2 * size);
    late.write(2 * size - 512, &[7; 512]);
    assert_eq!(late.read(2 * size - 512, 512), [7; 512]);
    early.write(0, &[8; 512]);
    early.call(&Request::read(size, 512)).expect_error(Errno::EINVAL);
    early.call(&Request::write(size, &[1; 512])).expect_error(Errno::ENOSPC);
    assert_eq!(late.read(0, 512), [8; 512]);
    late.finish();
    early.finish();
}

#[test]
fn clients_that_enter_see_a_file_that_grew() {
    for wrap in [false, true] {
        let file = image(MIB);
        let disk = File::open(file.path()).unwrap();
        let grow = || file.as_file().set_len(2 * MIB).unwrap();
        if wrap {
            let sizes = BlockSize::new(512, 4096, 1 << 20).unwrap();
            grows(file.path(), Tracked::new(WithBlockSize::new(disk, sizes)), grow);
        } else {
            grows(file.path(), disk, grow);
        }
    }
}

#[test]
fn clients_that_enter_see_a_device_that_grew() {
    let file = image(MIB);
    let Some(device) = Loop::attach(&[], file.path()) else { return };
    let disk = File::open(device.path()).unwrap();
    assert!(disk.can_resize().is_none(), "no client can do that");
    grows(&device.0, disk, || {
        file.as_file().set_len(2 * MIB).unwrap();
        run("losetup", &["--set-capacity", device.path()]).expect("it can be told to grow");
    });
}

#[test]
fn clients_that_enter_a_file_that_was_cut_off_keep_its_size_and_get_errors() {
    let file = image(2 * MIB);
    let served = Served::only(File::open(file.path()).unwrap());
    file.as_file().set_len(MIB).unwrap();
    let mut client = RawClient::go_structured(served.endpoint());
    assert_eq!(client.export().size, 2 * MIB);
    client.call(&Request::read(MIB, 512)).expect_error(Errno::EIO);
    client.call(&Request::write(MIB, &[1; 512])).expect_error(Errno::EIO);
    client.call(&Request::write_zeroes(MIB, 512)).expect_error(Errno::EIO);
    assert_eq!(client.read(MIB - 512, 512), [0; 512]);
    client.finish();
}

/// The device's file system is full, so that it takes writes and can't keep them: as a thin volume in a pool that is
/// full, or a disk that fails.
#[test]
fn a_failed_write_back_fails_every_flush_on_every_connection() {
    let Some(full) = Mounted::new("tmpfs", "size=1M") else { return };
    let path = full.file(4 * MIB);
    for wrap in [false, true] {
        let Some(device) = Loop::attach(&[], &path) else { return };
        let disk = File::open(device.path()).unwrap();
        let beside = Served::only(ReadOnly::new(File::open(device.path()).unwrap()));
        let served = if wrap { Served::only(Tracked::new(disk)) } else { Served::only(disk) };
        let mut clients = [(); 3].map(|()| RawClient::go_structured(served.endpoint()));
        let (writer, others) = clients.split_first_mut().unwrap();
        writer.write(0, &vec![5; 3 << 20]);
        let error = others[0].call(&Request::flush()).error();
        assert!([Some(Errno::EIO), Some(Errno::ENOSPC)].contains(&error), "{error:?}");
        for client in &mut clients {
            for request in [
                Request::flush(),
                Request::flush(),
                Request::write(0, &[6; 512]).flags(cmd_flag::FUA),
                Request::write_zeroes(0, 512).flags(cmd_flag::FUA),
                Request::trim(0, 512).flags(cmd_flag::FUA),
            ] {
                client.call(&request).expect_error(Errno::EIO);
            }
            // The rest goes on.
            client.call(&Request::write(0, &[6; 512])).ok();
            assert_eq!(client.read(0, 512), [6; 512]);
        }
        let mut reader = RawClient::go_structured(beside.endpoint());
        reader.call(&Request::flush()).expect_error(Errno::EIO);
        reader.finish();
        clients.into_iter().for_each(RawClient::finish);
    }
}

/// The kernel drops what is cached of the range before it finds out that the device can't do it.
#[test]
fn a_fast_zero_that_a_device_refuses_keeps_what_was_written() {
    let Some(plain) = Mounted::new("ramfs", "mode=700") else { return };
    let path = plain.file(MIB);
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let Some(device) = Loop::attach(&[], &path) else { return };
    let disk = File::open(device.path()).unwrap();
    let data = vec![2; 64 << 10];
    disk.can_write().unwrap().write(&data, 0, false).unwrap();
    let mode = ZeroMode { fast: true, ..ZeroMode::default() };
    let error = disk.can_write_zeroes().unwrap().write_zeroes(0, 64 << 10, mode).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ENOTSUP);
    disk.can_trim().unwrap().trim(0, 64 << 10, false).unwrap();
    let mut found = vec![0; 64 << 10];
    disk.read(&mut found, 0).unwrap();
    assert!(found == data, "what was acknowledged is gone");
}
