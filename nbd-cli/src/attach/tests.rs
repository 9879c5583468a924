//! Devices of a kernel that is played, over servers of this process.

use std::ffi::OsString;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use nbd_blocking::export::{
    CanResize, ClientInfo, Export, ExportMap, Memory, Result as ExportResult,
};
use nbd_blocking::{Listening, Server};
use nbd_testkit::process::wait_until;
use rustix::io::Errno;
use tempfile::TempDir;

use super::arguments::Arguments;
use super::device::{Device, Files};
use super::keeper::{Keeper, Wakers};
use super::netlink::Nbd;
use super::netlink::model::Model;
use super::{control, run};
use crate::exit::Failure;
use crate::target::{Place, Target};
use crate::tls::TlsArguments;

const SOON: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn arguments(words: &[&str]) -> Arguments {
    Line::parse_from(["attach", "nbd://unused"].iter().chain(words)).arguments
}

/// A folder with a server's socket, and what there would be in `/sys`.
struct Scene {
    folder: TempDir,
    model: Model,
    target: Target,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let uri = format!("nbd+unix:///disk?socket={}/socket", folder.path().display());
        let word = Place::Word(OsString::from(uri));
        let target =
            Target::open(&word, Duration::from_secs(60), &TlsArguments::default()).unwrap();
        Self { folder, model: Model::default(), target }
    }

    fn serve(&self, disk: Arc<impl Export>) -> Running {
        let server = Server::new(ExportMap::new().with("disk", disk).unwrap());
        let listening = server.listen_unix(self.folder.path().join("socket")).unwrap();
        Running { server, listening }
    }

    fn attach(&self, words: &[&str], device: u32) -> Result<Keeper<'_, Model>, Failure> {
        let nbd = Nbd::new(self.model.clone()).unwrap();
        let files = Files::under(self.folder.path());
        run::attach(nbd, &files, &self.target, &arguments(words), Some(Device(device)))
    }
}

/// A server, and its socket.
struct Running {
    server: Server,
    listening: Listening,
}

fn end(running: Running) {
    running.server.shut_down();
    running.server.wait();
    // The path is free then.
    running.listening.join();
}

fn disk(size: u64) -> Arc<Memory> {
    Arc::new(Memory::new(size).unwrap())
}

/// An export that is smaller than others, and counts its clients.
#[derive(Default)]
struct Smaller(AtomicUsize);

impl Export for Smaller {
    fn size(&self) -> u64 {
        1 << 19
    }

    fn read(&self, buffer: &mut [u8], _: u64) -> ExportResult<()> {
        buffer.fill(0);
        Ok(())
    }

    fn client_entered(&self, _: &ClientInfo) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Numbers of devices that no other process that runs these tests has.
fn number(index: u32) -> u32 {
    1_000 * (std::process::id() % 1_000) + index
}

#[test]
fn the_kernel_gets_what_it_needs_and_speaks_for_itself() {
    let scene = Scene::new();
    let server = scene.serve(disk((1 << 20) + 700));
    let keeper = scene.attach(&["--timeout", "5", "--read-only"], 4).unwrap();
    assert_eq!(keeper.device(), Device(4));
    assert!(!keeper.has_to_stay());
    drop(keeper);
    scene.model.wait(4, |device| {
        let device = device?;
        assert_eq!((device.size, device.block_size), ((1 << 20) + 512, 512));
        assert_eq!((device.timeout, device.dead_timeout, device.flags & 3), (5, 30, 3));
        assert_eq!(device.backend, scene.target.uri().to_string());
        assert_eq!(device.sockets.len(), 1);
        Some(())
    });
    assert_eq!(scene.model.read(4, 0, 1 << 20, 512), [0; 512]);
    end(server);
}

#[test]
fn a_device_that_is_refused_leaves_no_connection() {
    let scene = Scene::new();
    let server = scene.serve(disk(1 << 20));
    for (errno, says) in [(Errno::BUSY, "in use already"), (Errno::PERM, "CAP_SYS_ADMIN")] {
        scene.model.refuse(errno.raw_os_error());
        let failure = scene.attach(&[], 0).unwrap_err();
        assert!(failure.text().contains(says), "{}", failure.text());
    }
    // It would wait for clients otherwise.
    end(server);
    let failure = scene.attach(&[], 0).unwrap_err();
    assert!(failure.text().contains("socket"), "{}", failure.text());
}

#[test]
fn a_kept_device_outlives_its_servers_and_grows_with_the_export() {
    let scene = Scene::new();
    let (first, index) = (disk(1 << 20), number(1));
    let mut server = scene.serve(Arc::clone(&first));
    let keeper = scene.attach(&["--persist", "--connections", "2"], index).unwrap();
    assert!(keeper.has_to_stay());
    let (wakers, [ending, resize]) = Wakers::new().unwrap();
    std::thread::scope(|scope| {
        // A panic closes them, which ends what stays with the device.
        let (mut ending, mut resize) = (ending, resize);
        let kept = scope.spawn(move || keeper.keep(&wakers));
        // Both connections are new ones.
        let replaced = |given: usize| {
            scene.model.wait(index, |device| {
                let device = device.filter(|device| device.given >= given + 2)?;
                device.is_alive().then_some((device.size, device.given))
            })
        };
        let mut given = 1;
        scene.model.write(index, 1, 4096, &[7; 512]);
        for _ in 0..3 {
            end(server);
            server = scene.serve(Arc::clone(&first));
            let (size, now) = replaced(given);
            assert_eq!(size, 1 << 20);
            given = now;
            for connection in [0, 1] {
                assert_eq!(scene.model.read(index, connection, 4096, 512), [7; 512]);
            }
        }
        // Another export is none of this device; that it is offered is no reason to give up.
        end(server);
        let other = Arc::new(Smaller::default());
        server = scene.serve(Arc::clone(&other));
        wait_until("it is looked at", SOON, || other.0.load(Ordering::Relaxed) >= 2);
        scene.model.wait(index, |device| (device?.given == given).then_some(()));
        // One that has grown is.
        end(server);
        let grown = disk(1 << 21);
        server = scene.serve(Arc::clone(&grown));
        assert_eq!(replaced(given).0, 1 << 21);
        assert_eq!(scene.model.read(index, 0, (2 << 20) - 512, 512), [0; 512]);
        grown.resize(1 << 22).unwrap();
        resize.write_all(&[0]).unwrap();
        given = scene.model.wait(index, |device| {
            device.filter(|device| device.size == 1 << 22).map(|device| device.given)
        });
        // Which is the same export from then on, too.
        end(server);
        server = scene.serve(Arc::clone(&grown));
        assert_eq!(replaced(given).0, 1 << 22);
        ending.write_all(&[0]).unwrap();
        kept.join().unwrap().unwrap();
        end(server);
    });
    scene.model.wait(index, |device| device.is_none().then_some(()));
}

#[test]
fn a_device_in_use_is_not_detached_by_a_signal_or_by_nbd_detach() {
    let scene = Scene::new();
    let (server, index) = (scene.serve(disk(1 << 20)), number(2));
    let keeper = scene.attach(&["--persist"], index).unwrap();
    let put = |name: &str, text: &str| {
        let path = scene.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put(&format!("sys/block/nbd{index}/dev"), "43:7\n");
    put("proc/self/mountinfo", "2 1 43:7 / /mnt rw - ext4 /dev/x rw\n");
    let (wakers, [ending, _resize]) = Wakers::new().unwrap();
    std::thread::scope(|scope| {
        let mut ending = ending;
        let kept = scope.spawn(move || keeper.keep(&wakers));
        ending.write_all(&[0]).unwrap();
        let why = control::ask(Device(index)).unwrap().unwrap().unwrap_err();
        assert!(why.contains("is mounted on /mnt; unmount it first"), "{why}");
        scene.model.read(index, 0, 0, 512);
        put("proc/self/mountinfo", "");
        assert_eq!(control::ask(Device(index)).unwrap(), Some(Ok(())));
        kept.join().unwrap().unwrap();
    });
    scene.model.wait(index, |device| device.is_none().then_some(()));
    assert_eq!(control::ask(Device(index)).unwrap(), None);
    end(server);
}

#[test]
fn a_device_that_another_program_detaches_ends_what_stays_with_it() {
    let scene = Scene::new();
    let (server, index) = (scene.serve(disk(1 << 20)), number(3));
    let keeper = scene.attach(&["--persist"], index).unwrap();
    let (wakers, _writers) = Wakers::new().unwrap();
    Nbd::new(scene.model.clone()).unwrap().disconnect(index).unwrap();
    keeper.keep(&wakers).unwrap();
    end(server);
}

#[test]
fn a_command_that_was_started_ends_with_its_device() {
    let scene = Scene::new();
    let index = number(4);
    let words = ["nbdkit", "--exit-with-parent", "memory", "1M"].map(OsString::from);
    if nbd_testkit::peers::require("nbdkit").is_none() {
        return;
    }
    let place = Place::Command(words.to_vec());
    let target = Target::open(&place, Duration::from_secs(60), &TlsArguments::default()).unwrap();
    let nbd = Nbd::new(scene.model.clone()).unwrap();
    let files = Files::under(scene.folder.path());
    let keeper = run::attach(nbd, &files, &target, &arguments(&[]), Some(Device(index))).unwrap();
    assert!(keeper.has_to_stay());
    scene.model.write(index, 0, 0, &[3; 512]);
    assert_eq!(scene.model.read(index, 0, 0, 512), [3; 512]);
    let (wakers, writers) = Wakers::new().unwrap();
    let asked = std::thread::scope(|scope| {
        let _writers = writers;
        let kept = scope.spawn(|| keeper.keep(&wakers));
        let asked = control::ask(Device(index)).unwrap();
        kept.join().unwrap().unwrap();
        asked
    });
    assert_eq!(asked, Some(Ok(())));
}
