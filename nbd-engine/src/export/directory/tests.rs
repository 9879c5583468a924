//! Directories with everything in them that is none of a client's business.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbd_testkit::cases;
use rustix::fs::Mode;

use super::*;
use crate::export::layer::later::wait;
use crate::export::{CanWrite, Kind, PeerAddr, Purpose, Tracked};

fn client() -> ClientInfo {
    ClientInfo::new(0, PeerAddr::Unix(None))
}

fn find(files: &Directory, name: &str) -> Result<ExportEntry, Refusal> {
    wait(files.find(&Lookup::new(name, Purpose::Enter, &client())))
}

fn list(files: &Directory) -> Vec<String> {
    let listed = wait(files.list(&client())).unwrap();
    listed.iter().map(|one| one.name().to_owned()).collect()
}

fn content(entry: &ExportEntry) -> Vec<u8> {
    let Kind::Blocking(export) = entry.export().kind() else { panic!("a file may block") };
    let mut bytes = vec![0; export.size() as usize];
    export.read(&mut bytes, 0).unwrap();
    bytes
}

fn address(entry: &ExportEntry) -> usize {
    let Kind::Blocking(export) = entry.export().kind() else { panic!("a file may block") };
    Arc::as_ptr(export).addr()
}

/// A directory `disks` beside a file `secret`.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let disks = outer.path().join("disks");
    fs::create_dir(&disks).unwrap();
    fs::write(outer.path().join("secret"), "secret").unwrap();
    (outer, disks)
}

#[test]
fn files_are_listed_and_found_as_they_come_and_go() {
    let (_outer, disks) = folder();
    let files = Directory::open(&disks).unwrap();
    assert!(list(&files).is_empty());
    fs::write(disks.join("b"), "bb").unwrap();
    fs::write(disks.join("a"), "a").unwrap();
    assert_eq!(list(&files), ["a", "b"]);
    let b = find(&files, "b").unwrap();
    assert_eq!((b.name(), content(&b)), ("b", b"bb".to_vec()));
    fs::remove_file(disks.join("b")).unwrap();
    assert_eq!(list(&files), ["a"]);
    assert_eq!(find(&files, "b").unwrap_err(), Refusal::Unknown);
    // Those that use it still do.
    assert_eq!(content(&b), b"bb");
}

#[test]
fn nothing_but_regular_files_of_the_directory_itself_is_listed_or_found() {
    let (outer, disks) = folder();
    fs::write(disks.join("disk"), "disk").unwrap();
    fs::write(disks.join(".hidden"), "hidden").unwrap();
    fs::create_dir(disks.join("folder")).unwrap();
    fs::write(disks.join("folder/inner"), "inner").unwrap();
    symlink("disk", disks.join("link")).unwrap();
    symlink(outer.path().join("secret"), disks.join("absolute")).unwrap();
    symlink("../secret", disks.join("relative")).unwrap();
    symlink(".", disks.join("here")).unwrap();
    symlink("/dev/zero", disks.join("device")).unwrap();
    symlink("missing", disks.join("dangling")).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, disks.join(name), kind, mode, device)
    };
    node("pipe", rustix::fs::FileType::Fifo, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(disks.join("socket")).unwrap();
    // Only root can make one.
    let _not_permitted = node("zero", rustix::fs::FileType::CharacterDevice, 0x105);
    fs::write(disks.join(OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
    for read_only in [false, true] {
        let files = Directory::open(&disks).unwrap().read_only(read_only);
        assert_eq!(list(&files), ["disk"]);
        for name in [
            "",
            ".",
            "..",
            "../secret",
            "../disks/disk",
            "./disk",
            "/etc/passwd",
            "folder",
            "folder/inner",
            "link",
            "absolute",
            "relative",
            "here",
            "here/disk",
            "device",
            "dangling",
            "pipe",
            "socket",
            "zero",
            ".hidden",
            "disk/",
            "disk\0",
            "disk/.",
            "\u{fffd}",
            "/proc/self/root/etc/passwd",
        ] {
            assert_eq!(find(&files, name).unwrap_err(), Refusal::Unknown, "{name:?}");
        }
        assert_eq!(find(&files, &"x".repeat(4096)).unwrap_err(), Refusal::Unknown);
        assert_eq!(content(&find(&files, "disk").unwrap()), b"disk");
    }
}

#[test]
fn no_name_whatever_is_in_it_leads_outside() {
    let (_outer, disks) = folder();
    fs::write(disks.join("disk"), "disk").unwrap();
    symlink("../secret", disks.join("s")).unwrap();
    let files = Directory::open(&disks).unwrap();
    cases(100, |random| {
        let parts =
            ["..", "/", ".", "secret", "disk", "s", "disks", "\0", "proc/self/fd/", "é", " "];
        let name: String = (0..=random.below(6)).map(|_| random.of(&parts)).collect();
        match find(&files, &name) {
            Ok(entry) => assert_eq!((entry.name(), content(&entry)), ("disk", b"disk".to_vec())),
            Err(refusal) => assert_eq!(refusal, Refusal::Unknown, "{name:?}"),
        }
    });
}

/// Somebody who may write to the directory replaces a file by links to what the server alone may read.
#[test]
fn a_name_that_is_swapped_all_the_time_never_leads_to_another_file() {
    let (outer, disks) = folder();
    let secret = outer.path().join("secret");
    fs::write(disks.join("disk"), "public").unwrap();
    let files = Directory::open(&disks).unwrap().read_only(true);
    let stop = AtomicBool::new(false);
    let swapped = thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            let (link, copy) = (disks.join(".link"), disks.join(".copy"));
            let mut swaps = 0;
            while !stop.load(Ordering::Relaxed) {
                symlink(&secret, &link).unwrap();
                fs::rename(&link, disks.join("disk")).unwrap();
                fs::write(&copy, "public").unwrap();
                fs::rename(&copy, disks.join("disk")).unwrap();
                swaps += 1;
            }
            swaps
        });
        let (mut found, mut missed) = (0, 0);
        let end = Instant::now() + Duration::from_secs(60);
        while (found < 100 || missed < 100) && Instant::now() < end {
            match find(&files, "disk") {
                Ok(entry) => {
                    assert_eq!(content(&entry), b"public");
                    found += 1;
                }
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::Unknown);
                    missed += 1;
                }
            }
            assert!(list(&files).len() <= 1);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(found > 0 && missed > 0, "{found} {missed}");
        swapping.join().unwrap()
    });
    assert!(swapped > 0);
}

#[test]
fn clients_of_one_file_share_it_and_its_layers_by_whichever_name() {
    let (_outer, disks) = folder();
    fs::write(disks.join("a"), vec![0; 4096]).unwrap();
    fs::hard_link(disks.join("a"), disks.join("b")).unwrap();
    fs::write(disks.join("c"), "c").unwrap();
    let opened = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&opened);
    let files = Directory::open(&disks).unwrap().with_layers(move |file, name| {
        noted.lock().unwrap().push(name.to_owned());
        assert_ne!(name, "d", "it panics for this one");
        if name == "c" {
            return Err("not this one".into());
        }
        Ok(Arc::new(Tracked::new(file)) as Arc<dyn Export>)
    });
    let (one, other) = (find(&files, "a").unwrap(), find(&files, "b").unwrap());
    assert_eq!(address(&one), address(&other));
    assert_eq!(*opened.lock().unwrap(), ["a"]);
    assert_eq!(find(&files, "c").unwrap_err(), Refusal::policy("not this one"));
    fs::write(disks.join("d"), "d").unwrap();
    assert_eq!(find(&files, "d").unwrap_err(), Refusal::panicked());
    opened.lock().unwrap().pop();
    // Once nobody uses it, it is closed.
    drop((one, other));
    find(&files, "b").unwrap();
    assert_eq!(*opened.lock().unwrap(), ["a", "c", "b"]);
}

#[test]
fn a_file_that_takes_anothers_name_is_another_export() {
    let (_outer, disks) = folder();
    fs::write(disks.join("disk"), "old").unwrap();
    let files = Directory::open(&disks).unwrap();
    let old = find(&files, "disk").unwrap();
    fs::write(disks.join("new"), "new").unwrap();
    fs::rename(disks.join("new"), disks.join("disk")).unwrap();
    let new = find(&files, "disk").unwrap();
    assert_ne!(address(&old), address(&new));
    assert_eq!((content(&old), content(&new)), (b"old".to_vec(), b"new".to_vec()));
    let Kind::Blocking(export) = new.export().kind() else { panic!("a file may block") };
    CanWrite::write(export.can_write().unwrap(), b"N", 0, false).unwrap();
    let mut byte = [0];
    fs::File::open(disks.join("disk")).unwrap().read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, *b"N");
}

fn id(path: &Path) -> FileId {
    FileId::of(&fs::metadata(path).unwrap())
}

fn is_withdrawn(entry: &ExportEntry) -> bool {
    entry.withdrawal().unwrap().is_withdrawn()
}

#[test]
fn what_is_left_out_is_neither_found_nor_listed_by_any_name_and_leaves_its_clients() {
    let (_outer, disks) = folder();
    for name in ["a", "b"] {
        fs::write(disks.join(name), name).unwrap();
    }
    fs::hard_link(disks.join("a"), disks.join("c")).unwrap();
    let files = Directory::open(&disks).unwrap();
    let [a, b] = ["a", "b"].map(|name| find(&files, name).unwrap());
    files.leave_out([id(&disks.join("a"))]);
    assert_eq!((is_withdrawn(&a), is_withdrawn(&b)), (true, false));
    assert_eq!(list(&files), ["b"]);
    for name in ["a", "c"] {
        assert_eq!(find(&files, name).unwrap_err(), Refusal::Unknown);
    }
    // It is back, and not what is being withdrawn from its clients.
    files.leave_out([]);
    assert_eq!(list(&files), ["a", "b", "c"]);
    let again = find(&files, "a").unwrap();
    assert!(!is_withdrawn(&again) && address(&again) != address(&a));
    assert_eq!(address(&find(&files, "c").unwrap()), address(&again));
    assert_eq!(address(&find(&files, "b").unwrap()), address(&b));
}

#[test]
fn a_directory_that_is_withdrawn_leaves_all_clients_and_those_that_come_late() {
    let (_outer, disks) = folder();
    for name in ["a", "b"] {
        fs::write(disks.join(name), name).unwrap();
    }
    let files = Directory::open(&disks).unwrap();
    let a = find(&files, "a").unwrap();
    assert!(!is_withdrawn(&a));
    files.withdraw();
    assert!(is_withdrawn(&a));
    assert!(is_withdrawn(&find(&files, "b").unwrap()));
}

#[test]
fn a_long_list_is_cut_and_sorted() {
    let (_outer, disks) = folder();
    for number in 0..300 {
        fs::write(disks.join(format!("{number:05}")), "").unwrap();
    }
    let names = list(&Directory::open(&disks).unwrap());
    assert_eq!(names.len(), 300);
    assert_eq!(
        names.iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
}

#[test]
fn what_is_no_directory_is_an_error() {
    let (outer, disks) = folder();
    for path in [outer.path().join("secret"), disks.join("missing")] {
        Directory::open(path).unwrap_err();
    }
}

#[test]
fn only_so_many_look_ups_run_at_a_time_and_more_are_refused() {
    let (_outer, disks) = folder();
    fs::write(disks.join("one"), "1").unwrap();
    let directory = Directory::open(&disks).unwrap();
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let hang = || {
        let gate = Arc::clone(&gate);
        directory.inner.aside.try_run(move || drop(gate.lock()))
    };
    let running: Vec<_> = (0..MAX_LOOKUPS).map(|_| hang().unwrap()).collect();
    let refused = wait(directory.list(&client())).unwrap_err();
    assert_eq!(refused, Refusal::policy("the file system is busy: try again later"));
    drop(held);
    running.into_iter().for_each(|one| wait(one).unwrap());
    // A thread is free a moment after its answer.
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(refused) = wait(directory.list(&client())) {
        assert!(Instant::now() < end, "{refused:?}");
        thread::yield_now();
    }
}

#[test]
fn a_directory_that_cant_be_read_refuses_lists_with_words() {
    let (outer, disks) = folder();
    let refused = |directory: &Directory| {
        let refused = wait(directory.list(&client())).unwrap_err();
        assert_eq!(refused, Refusal::policy("the directory can't be read"));
    };
    let mut directory = Directory::open(&disks).unwrap();
    assert!(list(&directory).is_empty());
    fs::remove_dir(&disks).unwrap();
    refused(&directory);
    // What the system does not read, whoever asks.
    let inner = Arc::get_mut(&mut directory.inner).unwrap();
    inner.folder = fs::File::open(outer.path().join("secret")).unwrap().into();
    refused(&directory);
}
