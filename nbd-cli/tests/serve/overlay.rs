//! Overlay files: committed to a base which does not take it, and over what they were not made for.

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

/// What an overlay file lies over: layers between the disk, of so many bytes, and it.
const BELOW: [&[&str]; 6] = [
    &[],
    &["offset:128k"],
    &["offset:0,length=512k"],
    &["overlay:FOLDER/lower"],
    &["offset:128k", "overlay:FOLDER/lower"],
    &["overlay:FOLDER/lower", "offset:128k"],
];
const DISK: u64 = 1 << 20;

/// The options of those layers with the overlay over them.
fn stack(folder: &Path, below: &[&str]) -> Vec<String> {
    let layers = below.iter().copied().chain(["overlay:FOLDER/upper"]);
    let layers = layers.map(|layer| layer.replace("FOLDER", folder.to_str().unwrap()));
    layers.flat_map(|layer| ["--layer".into(), layer]).collect()
}

/// Writes random data where these layers are served, so that what is seen there is that array.
fn write(base: &Path, layers: &[String], model: &mut [u8], random: &mut nbd_testkit::Random) {
    let server = Serving::spawn(serve(["--port", "0"]).args(layers).arg(base));
    let mut client = RawClient::go_simple(&server.endpoint());
    for _ in 0..1 + random.below(3) {
        let offset = random.below(model.len() as u64 - 1);
        let length = 1 + random.below((model.len() as u64 - offset).min(100_000));
        let data = vec![1 + random.below(255) as u8; length as usize];
        client.call(&Request::write(offset, &data)).ok();
        model[offset as usize..][..data.len()].copy_from_slice(&data);
    }
    client.finish();
    server.stop();
}

/// Over what it was not made for an overlay shows nothing and is written nowhere: it is refused, by the check as well. Over
/// what it was made for it shows what was written, and where that is the whole disk, it can be written to that.
#[test]
fn an_overlay_fits_what_it_was_made_for_alone() {
    cases(20, |random| {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (base, upper, lower) =
            (folder.join("base"), folder.join("upper"), folder.join("lower"));
        fs::write(&base, vec![0; DISK as usize]).unwrap();
        let disk = fs::read(&base).unwrap();
        let (made, other) = (random.of(&BELOW), random.of(&BELOW));
        let has_lower = made.iter().any(|layer| layer.starts_with("overlay"));
        let layers = stack(folder, made);
        // The lower overlay has something of its own, which is seen through the upper one.
        let end = match made {
            [_, "overlay:FOLDER/lower"] | ["offset:128k"] | [_, "offset:128k"] => {
                DISK - (128 << 10)
            }
            [part] if part.contains("length") => DISK / 2,
            _ => DISK,
        };
        let mut model = vec![0; end as usize];
        if has_lower && made[made.len() - 1].starts_with("overlay") && random.one_in(2) {
            write(&base, &layers[..layers.len() - 2], &mut model, random);
        }
        write(&base, &layers, &mut model, random);
        let shows = |layers: &[String], model: &[u8], refused: bool| {
            let check = run(serve(["--check", "--port", "0"]).args(layers).arg(&base), LIMIT);
            if refused {
                for said in [check, run(serve(["-p", "0"]).args(layers).arg(&base), LIMIT)] {
                    let said = said.failure();
                    assert!(said.contains("the overlay '"), "{made:?} {layers:?}: {said}");
                }
                return;
            }
            check.success();
            let server = Serving::spawn(serve(["--port", "0"]).args(layers).arg(&base));
            let mut client = RawClient::go_simple(&server.endpoint());
            assert_same_bytes(&client.read(0, model.len() as u64), model, "the disk");
            client.finish();
            server.stop();
        };
        shows(&layers, &model, false);
        // Over another disk, or one that has changed, nothing is shown, and nothing becomes of it.
        let file = fs::File::options().write(true).open(&base).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(modified + std::time::Duration::from_secs(1)).unwrap();
        shows(&layers, &[], true);
        file.set_modified(modified).unwrap();
        shows(&layers, &model, false);
        if made != other {
            shows(&stack(folder, other), &[], true);
        }
        if has_lower && random.one_in(3) {
            // What lies below changes: the upper one has blocks of which a part is of what was there before.
            let below = match made {
                ["overlay:FOLDER/lower", _] => &layers[..2],
                _ => &layers[..layers.len() - 2],
            };
            write(&base, below, &mut vec![0; 512 << 10], random);
            shows(&layers, &[], true);
        }
        match made {
            [] => {
                commit(&upper, &base).success();
                assert_same_bytes(&fs::read(&base).unwrap(), &model, "the disk");
                shows(&layers, &model, false);
            }
            _ => {
                let said = commit(&upper, &base).failure();
                let part = said.contains("was made for a disk of") || said.contains("committed");
                assert!(part && said.contains("cop"), "{made:?}: {said}");
                assert_same_bytes(&fs::read(&base).unwrap(), &disk, "the disk");
            }
        }
        // What has nothing fits everything.
        let mut discard = Command::new(env!("CARGO_BIN_EXE_nbd"));
        run(discard.args(["overlay", "discard"]).arg(&upper), LIMIT).success();
        let _none = fs::remove_file(&lower);
        let layers = stack(folder, other);
        run(serve(["--check", "--port", "0"]).args(&layers).arg(&base), LIMIT).success();
        Serving::spawn(serve(["--port", "0"]).args(&layers).arg(&base)).stop();
    });
}
