//! Changes to what is served, of all kinds and one after the other.

use std::path::Path;

use nbd_testkit::{Random, cases};

use super::*;

/// Some exports, each with one of a few names, sizes and settings.
fn exports(random: &mut Random, folder: &Path) -> Vec<Export> {
    let mut exports = Vec::new();
    for name in ["a", "b", "c", "d"] {
        if random.below(3) == 0 {
            continue;
        }
        let memory = Backend::Memory(1 << (10 + random.below(2)));
        let is_folder = name == "d" && random.below(2) == 0;
        let file = folder.join(["Cargo.toml", "src/main.rs"][random.below(2) as usize]);
        let backend = match random.below(2) {
            _ if is_folder => Backend::Directory(folder),
            0 if name == "c" => Backend::File(&file),
            _ => memory,
        };
        let mut export = Export::new(name, backend);
        export.read_only = random.below(2) == 0 || matches!(backend, Backend::File(_));
        export.description = (random.below(2) == 0).then(|| "a text".into());
        export.tls_only = random.below(4) == 0;
        if !export.read_only && !is_folder {
            export.track = (0..random.below(3)).map(|name| name.to_string()).collect();
        }
        exports.push(export);
    }
    let first = random.below(exports.len().max(1) as u64) as usize;
    exports.rotate_left(first);
    exports
}

fn config(exports: Vec<Export>) -> Config {
    Config { exports, ..Config::default() }
}

/// What a change from one to the other does, by the rules of the documentation.
fn expected(before: &[Export], after: &[Export]) -> Result<Changes, ()> {
    let find = |exports: &[Export], name: &str| {
        exports.iter().find(|export| export.label() == name).cloned()
    };
    let mut changes = Changes::default();
    for export in after {
        let label = export.label().into_owned();
        let Some(earlier) = find(before, &label) else {
            changes.added.push(label);
            continue;
        };
        let opens = earlier.backend() != export.backend()
            || earlier.read_only != export.read_only
            || earlier.track.is_empty() != export.track.is_empty();
        if opens || export.tls_only && !earlier.tls_only {
            let is_memory = |export: &Export| matches!(export.backend(), Ok(Backend::Memory(_)));
            let in_memory = !earlier.read_only && is_memory(&earlier);
            if !earlier.track.is_empty() || in_memory && is_memory(export) {
                return Err(());
            }
            changes.replaced.push(label);
        } else if earlier != *export {
            changes.altered.push(label);
        }
    }
    let gone = before.iter().map(|export| export.label().into_owned());
    changes.removed = gone.filter(|name| find(after, name).is_none()).collect();
    changes.removed.sort();
    Ok(changes)
}

#[test]
fn whatever_changes_what_stays_is_the_same_disk_and_what_goes_is_withdrawn() {
    cases(300, |random| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut now = exports(random, folder);
        let live = Live::open(&config(now.clone())).unwrap();
        for _ in 0..6 {
            let next = exports(random, folder);
            let before = live.0.disks.lock().unwrap().clone();
            let prepared = live.prepare(&config(next.clone()));
            let expected = expected(&now, &next);
            assert_eq!(prepared.is_ok(), expected.is_ok(), "{now:?} {next:?}");
            let Ok(prepared) = prepared else { continue };
            let names = |disks: &[Arc<Disk>]| {
                disks.iter().map(|disk| disk.export.name.clone()).collect::<Vec<_>>()
            };
            let first = now.iter().find(|export| !export.is_directory());
            let default = live.served().map.get("").map(|entry| entry.name().to_owned());
            assert_eq!(default, first.map(|export| export.name.clone()));
            let changes = prepared.commit();
            assert_eq!(Ok(&changes), expected.as_ref());
            let after = live.0.disks.lock().unwrap().clone();
            assert_eq!(names(&after), next.iter().map(|e| e.name.clone()).collect::<Vec<_>>());
            for disk in &before {
                let name = &disk.export.label().into_owned();
                let goes = changes.removed.contains(name) || changes.replaced.contains(name);
                assert_eq!(disk.opened.withdrawal.is_withdrawn(), goes, "{name}");
                let stays = after.iter().any(|later| Arc::ptr_eq(&later.opened, &disk.opened));
                assert_eq!(stays, !goes, "{name}");
            }
            for (disk, export) in after.iter().zip(&next) {
                assert!(!disk.opened.withdrawal.is_withdrawn());
                if export.is_directory() {
                    assert!(matches!(disk.what, What::Files(_)));
                    continue;
                }
                let served = live.served();
                let entry = served.map.get(&export.name).expect("it is served");
                let size = match export.backend() {
                    Ok(Backend::File(path)) => path.metadata().unwrap().len(),
                    Ok(Backend::Memory(size)) => size,
                    other => panic!("{other:?}"),
                };
                assert_eq!(entry.export().size(), size);
                assert_eq!(entry.is_tls_required(), export.tls_only);
                let bitmaps = disk.opened.tracker.as_ref().map(|tracker| tracker.names());
                let mut bitmaps = bitmaps.unwrap_or_default();
                bitmaps.sort();
                assert_eq!(bitmaps, export.track);
            }
            now = next;
        }
    });
}

#[test]
fn what_can_not_be_opened_changes_nothing() {
    let live = Live::open(&config(vec![Export::new("a", Backend::Memory(1))])).unwrap();
    let missing = Export::new("b", Backend::File("/no/such/disk".as_ref()));
    let next = config(vec![Export::new("c", Backend::Memory(1)), missing]);
    assert!(live.prepare(&next).is_err());
    let served = live.served();
    assert!(served.map.get("a").is_some() && served.map.get("c").is_none());
    assert!(!live.0.disks.lock().unwrap()[0].opened.withdrawal.is_withdrawn());
}
