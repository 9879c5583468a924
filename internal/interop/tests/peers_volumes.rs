//! Volumes on object storage, served by `nbd serve volume:URL` to the clients of others and to `nbd copy`: what they
//! write is there for the next server.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_interop::{MIB, sparse_image};
use nbd_testkit::objects::ObjectServer;
use nbd_testkit::peers::{Peer, require, skip};
use nbd_testkit::process::run;
use nbd_testkit::server::{NbdServe, Setup, nbd_binary};
use nbd_testkit::{assert_same_bytes, matrix};
use tempfile::TempDir;

matrix! {
    tcp_and_unix: [],
    unix: [
        info_describes_a_volume,
        qemu_images_are_converted_in_and_out,
        nbdcopy_copies_in_and_out_by_several_connections,
        copies_with_verify_are_identical,
        fio_verifies_what_several_connections_write,
        a_volume_is_copied_from_one_store_to_another,
    ],
}

const PATIENCE: Duration = Duration::from_secs(100);

/// The size of the volumes.
const SIZE: u64 = 32 * MIB;

/// What a volume lies in.
enum Store {
    Directory(TempDir),
    S3(ObjectServer),
}

impl Store {
    /// A local directory, and S3 by HTTP on loopback.
    fn both() -> [Self; 2] {
        let folder = TempDir::new().expect("a folder for a volume");
        [Self::Directory(folder), Self::S3(ObjectServer::start())]
    }

    fn url(&self) -> String {
        match self {
            Self::Directory(folder) => format!("file://{}/volume", folder.path().display()),
            Self::S3(_) => "s3://bucket/volume".to_owned(),
        }
    }

    /// What a program needs to find it.
    fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Directory(_) => Vec::new(),
            Self::S3(server) => server.environment().into(),
        }
    }

    /// Makes the volume. False if the `nbd` under test has none, and the test is to return.
    #[track_caller]
    fn create(&self) -> bool {
        let mut command = Command::new(nbd_binary());
        command.args(["volume", "create", &self.url(), "--size", &SIZE.to_string()]);
        let finished = run(command.envs(self.environment()), PATIENCE);
        if finished.stderr.contains("was built without volumes") {
            skip("the nbd under test has no volumes (cargo build -p nbd-cli --features volume)");
            return false;
        }
        finished.success();
        true
    }

    #[track_caller]
    fn serve(&self, setup: Setup) -> NbdServe {
        let mut serve = setup.serve();
        if let Self::S3(server) = self {
            let variables = server.environment().map(|(name, value)| format!("{name}={value}"));
            serve = serve.prepared_by(&format!("export {}", variables.join(" ")));
        }
        serve.arg(format!("volume:{}", self.url())).start()
    }
}

/// Ends a server in order: what it had in memory is in the store then.
#[track_caller]
fn end(mut server: NbdServe) {
    server.terminate();
    let status = server.wait_exit(PATIENCE).expect("it ends");
    assert!(status.success(), "{status}: {}", server.stderr());
}

/// Runs a test for a new volume in each store: what writes it gets an image and the server. The next server then has
/// what is in the image, which another program reads.
#[track_caller]
fn in_each_store(setup: Setup, test: impl Fn(&NbdServe, &Path)) {
    for store in Store::both() {
        let folder = TempDir::new().expect("a folder for an image");
        let image = folder.path().join("image");
        let data = sparse_image(&image, SIZE);
        if !store.create() {
            return;
        }
        let server = store.serve(setup);
        test(&server, &image);
        end(server);
        let server = store.serve(setup);
        verify(&server, &image, data);
        end(server);
    }
}

/// The volume has the bytes of the image, and no more data than that has in whole blocks.
#[track_caller]
fn verify(server: &NbdServe, image: &Path, data: u64) {
    let copy = server.dir().join("copy");
    let mut command = Command::new(nbd_binary());
    run(command.args(["copy", &server.uri("")]).arg(&copy), PATIENCE).success();
    let [found, expected] = [&copy, image].map(|path| std::fs::read(path).unwrap());
    assert_same_bytes(&found, &expected, "the volume");
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let totals = output(&nbdinfo, &["--map", "--totals", &server.uri("")]);
    let holes = SIZE - data;
    assert!(totals.split_whitespace().any(|word| word == holes.to_string()), "{totals}");
}

#[track_caller]
fn output(peer: &Peer, args: &[&str]) -> String {
    run(peer.command().args(args), PATIENCE).success()
}

/// S-OPT-GO-02, S-XF-06: as nbdinfo tells it.
fn info_describes_a_volume(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    for store in Store::both() {
        if !store.create() {
            return;
        }
        let server = store.serve(setup);
        let info = output(&nbdinfo, &[&server.uri("")]);
        for expected in [
            "export-size: 33554432 (32M)",
            "base:allocation",
            "is_read_only: false",
            "can_cache: true",
            "can_flush: true",
            "can_fua: true",
            "can_multi_conn: true",
            "can_trim: true",
            "can_zero: true",
            "block_size_minimum: 1",
            "block_size_preferred: 4096",
        ] {
            assert!(info.contains(expected), "{expected:?} is not in:\n{info}");
        }
        end(server);
    }
}

/// S-CMD-READ-01, S-CMD-WRITE-01, S-CMD-WZ-01: qemu-img compares what it has written, too.
fn qemu_images_are_converted_in_and_out(setup: Setup) {
    let Some(qemu_img) = require("qemu-img") else { return };
    in_each_store(setup, |server, image| {
        let (image, uri) = (image.to_str().unwrap(), &*server.uri(""));
        output(&qemu_img, &["convert", "-n", "-f", "raw", "-O", "raw", image, uri]);
        let verdict = output(&qemu_img, &["compare", "-f", "raw", "-F", "raw", image, uri]);
        assert!(verdict.contains("identical"), "{verdict}");
        let target = server.dir().join("target");
        let target = target.to_str().unwrap();
        output(&qemu_img, &["convert", "-f", "raw", "-O", "raw", uri, target]);
        assert_same_bytes(&std::fs::read(target).unwrap(), &std::fs::read(image).unwrap(), "image");
    });
}

/// S-XF-06, S-ORD-03: four connections, many requests in flight, into the volume and out of it.
fn nbdcopy_copies_in_and_out_by_several_connections(setup: Setup) {
    let Some(nbdcopy) = require("nbdcopy") else { return };
    in_each_store(setup, |server, image| {
        let (image, uri) = (image.to_str().unwrap(), &*server.uri(""));
        let target = server.dir().join("target");
        let target = target.to_str().unwrap();
        let load = ["--connections=4", "--requests=32", "--request-size=65536", "--flush"];
        output(&nbdcopy, &[&load[..], &[image, uri]].concat());
        output(&nbdcopy, &[&load[..], &[uri, target]].concat());
        assert_same_bytes(&std::fs::read(target).unwrap(), &std::fs::read(image).unwrap(), "copy");
    });
}

/// It reads back by other connections what it has written by four of them.
fn copies_with_verify_are_identical(setup: Setup) {
    in_each_store(setup, |server, image| {
        let mut command = Command::new(nbd_binary());
        command.args(["copy", "--verify", "--flush", "--connections", "4"]);
        run(command.arg(image).arg(server.uri("")), PATIENCE).success();
    });
}

/// S-ORD-04, S-CMD-FLUSH-01: four connections write blocks of many sizes at random offsets, with flushes between them,
/// and check each block. The next server has the blocks as well, for checks of nothing else.
fn fio_verifies_what_several_connections_write(setup: Setup) {
    let Some(fio) = require("fio") else { return };
    for store in Store::both() {
        if !store.create() {
            return;
        }
        for options in [&["--fsync=64"][..], &["--verify_only"]] {
            let server = store.serve(setup);
            let mut command = fio.command();
            command.current_dir(server.dir());
            command.args(["--name=verify", "--ioengine=nbd", "--iodepth=16", "--randrepeat=1"]);
            command.args([
                "--numjobs=4",
                "--size=2M",
                "--offset_increment=8M",
                "--group_reporting",
            ]);
            command.args(["--rw=randwrite", "--bsrange=512-64k"]);
            command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
            command.arg(format!("--uri={}", server.uri(""))).args(options);
            let report = run(&mut command, PATIENCE).success();
            assert!(report.contains("err= 0"), "{report}");
            end(server);
        }
    }
}

/// By a server for each volume.
fn a_volume_is_copied_from_one_store_to_another(setup: Setup) {
    let Some(nbdcopy) = require("nbdcopy") else { return };
    let folder = TempDir::new().expect("a folder for an image");
    let image = folder.path().join("image");
    let data = sparse_image(&image, SIZE);
    let stores = Store::both();
    if !stores.iter().all(Store::create) {
        return;
    }
    let [from, to] = stores.each_ref().map(|store| store.serve(setup));
    output(&nbdcopy, &["--flush", image.to_str().unwrap(), &from.uri("")]);
    output(&nbdcopy, &["--flush", &from.uri(""), &to.uri("")]);
    end(from);
    end(to);
    let server = stores[1].serve(setup);
    verify(&server, &image, data);
    end(server);
}
