//! Overlay files that are committed to a base which does not take it.

use std::fs;
use std::path::Path;
use std::process::Command;

use nbd_testkit::process::{Finished, run};
use nbd_testkit::raw::{RawClient, Request};
use nbd_testkit::{SmallFileSystem, assert_same_bytes, cases};

use super::{LIMIT, Serving, serve};

fn commit(overlay: &Path, base: &Path) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
    run(command.args(["overlay", "commit"]).args([overlay, base]), LIMIT)
}

/// The message names the base and what to do, nothing is lost, and the same command goes on when the base has been mended.
#[test]
fn a_commit_that_its_base_does_not_take_goes_on_later() {
    const MIB: u64 = 1 << 20;
    let Some(small) = SmallFileSystem::mount(3) else { return };
    let (base, folder) = (small.path("base.img"), tempfile::tempdir().unwrap());
    let overlay = folder.path().join("overlay");
    cases(4, |random| {
        let _new = fs::remove_file(&base);
        small.remount("size=3m");
        fs::File::create(&base).unwrap().set_len(16 * MIB).unwrap();
        let layer = format!("overlay:{}", overlay.display());
        let server = Serving::spawn(serve(["--port", "0", "--layer", &layer]).arg(&base));
        let mut client = RawClient::go_simple(&server.endpoint());
        let mut model = vec![0; 16 << 20];
        for _ in 0..20 {
            let offset = random.below(15 * MIB);
            let data =
                vec![1 + random.below(255) as u8; (MIB / 2 + random.below(MIB / 2)) as usize];
            client.call(&Request::write(offset, &data)).ok();
            model[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        client.finish();
        server.stop();
        small.remount("ro");
        let said = commit(&overlay, &base).failure();
        let shown = base.display();
        let expected =
            format!("cannot commit to '{shown}': its file system or device is read-only");
        assert!(said.contains(&expected), "{said}");
        small.remount("rw");
        for _ in 0..2 {
            let said = commit(&overlay, &base).failure();
            let expected = format!("cannot write to '{shown}': ");
            assert!(
                said.contains(&expected) && said.contains("run the same command again"),
                "{said}"
            );
        }
        small.remount("size=32m");
        commit(&overlay, &base).success();
        assert_same_bytes(&fs::read(&base).unwrap(), &model, "the base");
        fs::remove_file(&overlay).unwrap();
    });
}

/// What is to make room needs none: an overlay that fills its file system is emptied in place.
#[test]
fn an_overlay_whose_file_system_is_full_is_committed_and_discarded() {
    const MIB: u64 = 1 << 20;
    let Some(small) = SmallFileSystem::mount(3) else { return };
    let (overlay, folder) = (small.path("overlay"), tempfile::tempdir().unwrap());
    let base = folder.path().join("base.img");
    cases(4, |random| {
        fs::File::create(&base).unwrap().set_len(16 * MIB).unwrap();
        let mut model = vec![0; 16 << 20];
        let layer = format!("overlay:{}", overlay.display());
        let server = Serving::spawn(serve(["--port", "0", "--layer", &layer]).arg(&base));
        let mut client = RawClient::go_simple(&server.endpoint());
        for _ in 0..random.below(20) {
            let offset = random.below(15 * MIB);
            let data = vec![1 + random.below(255) as u8; 1 + random.below(MIB / 20) as usize];
            client.call(&Request::write(offset, &data)).ok();
            model[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        client.finish();
        server.stop();
        // Not a byte is left for another file.
        let _full = fs::write(small.path("rest"), vec![1; 4 << 20]);
        match random.one_in(2) {
            true => {
                commit(&overlay, &base).success();
            }
            false => {
                model.fill(0);
                let mut discard = Command::new(env!("CARGO_BIN_EXE_nbd"));
                run(discard.args(["overlay", "discard"]).arg(&overlay), LIMIT).success();
            }
        }
        assert_same_bytes(&fs::read(&base).unwrap(), &model, "the base");
        fs::remove_file(small.path("rest")).unwrap();
        // It is an overlay of that base as it is now.
        let server = Serving::spawn(serve(["--port", "0", "--layer", &layer]).arg(&base));
        let mut client = RawClient::go_simple(&server.endpoint());
        assert_same_bytes(&client.read(0, 16 * MIB), &model, "the disk");
        client.finish();
        server.stop();
        fs::remove_file(&overlay).unwrap();
    });
}
