//! What is recorded, and what is left of it however a copy ends.

use nbd_testkit::cases;

use super::*;
use crate::copy::disk::Disk;
use crate::copy::worker::tests::Zeroes;

/// A record beside a file that can be flushed, or of a device that can't.
fn record(folder: &Path, destination: &str) -> Record {
    let file = File::options().write(true).create(true).truncate(true).open(destination).unwrap();
    let marks = Mutex::new(Marks::default());
    let destination = Durable::Disk(Disk::new(file, false).unwrap());
    let path = folder.join("to.nbd-copy");
    let (writing, ends) = (Mutex::new(Writing::Open), AtomicBool::new(false));
    Record { path, sides: json!({}), size: 2 * STEP, destination, marks, writing, ends }
}

fn recorded(record: &Record) -> u64 {
    read(&record.path).unwrap().unwrap()["copied"].as_u64().unwrap()
}

#[test]
fn a_copy_fails_once_its_destination_could_not_be_flushed_and_records_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = record(folder.path(), "/dev/null");
    record.write(7).unwrap();
    record.done(0, STEP - 1);
    record.check().unwrap();
    record.done(STEP - 1, 2);
    assert!(record.check().unwrap_err().text().contains("cannot flush"));
    assert_eq!(recorded(&record), 7);
    // The system has reported it, and would not do so again.
    let file = File::create(folder.path().join("to")).unwrap();
    record.destination = Durable::Disk(Disk::new(file, false).unwrap());
    record.flush().unwrap_err();
    record.interrupted().unwrap_err();
    assert_eq!(recorded(&record), 7);
    // What is not known to be durable is copied again.
    assert_eq!(record.hint(), None);
}

#[test]
fn a_file_without_a_folder_is_in_that_of_the_process() {
    for (path, folder) in [("to", "."), ("a/to", "a"), ("/to", "/"), ("../to", "..")] {
        assert_eq!(folder_of(Path::new(path)), Path::new(folder));
    }
}

#[test]
fn a_record_is_written_when_a_step_was_copied_since() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let record = record(folder.path(), to.to_str().unwrap());
    record.done(0, STEP);
    assert_eq!(recorded(&record), STEP);
    record.done(STEP, STEP - 1);
    assert_eq!(recorded(&record), STEP);
    record.done(2 * STEP - 1, 1);
    assert_eq!(recorded(&record), 2 * STEP);
}

#[test]
fn what_is_not_there_needs_no_removal_and_is_no_record_and_anything_else_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    remove_if_there(&missing).unwrap();
    assert_eq!(read(&missing).unwrap(), None);
    remove_if_there(folder.path()).unwrap_err();
    assert!(read(folder.path()).unwrap_err().text().contains("cannot read"));
}

/// Each connection knows alone what its server may have lost.
#[test]
fn every_connection_that_wrote_is_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let mut record = record(folder.path(), "/dev/null");
    let [first, further] = [(); 2].map(|()| Zeroes::serve());
    record.destination = Durable::Server(Mutex::new(vec![first.client.clone()]));
    record.flush().unwrap();
    record.joins(&further.client);
    record.flush().unwrap();
    further.client.disconnect();
    assert!(record.flush().unwrap_err().text().contains("cannot flush"));
}

#[test]
fn an_interrupted_copy_records_what_is_done_and_a_wrong_one_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let record = record(folder.path(), to.to_str().unwrap());
    record.done(0, 5);
    record.done(9, 5);
    record.interrupted().unwrap();
    assert_eq!(recorded(&record), 5);
    assert_eq!(record.hint().unwrap(), "the same command goes on after 5 B of 512.0 MiB");
    record.restart().unwrap();
    assert_eq!((record.hint(), record.continues()), (None, None));
    assert_eq!((recorded(&record), record.reach()), (0, 0));
    record.complete().unwrap();
    assert!(read(&record.path).unwrap().is_none());
}

#[test]
fn a_record_that_can_not_be_replaced_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let record = record(folder.path(), to.to_str().unwrap());
    // A folder that is not empty is not replaced by a file.
    fs::create_dir_all(record.path.join("inside")).unwrap();
    record.done(0, 5);
    assert!(record.interrupted().unwrap_err().text().starts_with("cannot write"));
    assert_eq!(record.hint(), None);
    assert!(!new_path_of(&record.path).exists());
}

#[test]
fn the_record_of_a_copy_that_a_signal_ends_stays_as_it_was_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let record = record(folder.path(), to.to_str().unwrap());
    record.done(0, 5);
    assert!(!record.is_ending());
    record.ends().unwrap();
    assert!(record.is_ending());
    // Threads that are not through go on until the process ends.
    record.done(5, STEP);
    record.interrupted().unwrap();
    record.restart().unwrap();
    assert_eq!(recorded(&record), 5);
    assert_eq!(record.hint().unwrap(), "the same command goes on after 5 B of 512.0 MiB");
}

#[test]
fn marks_reach_as_far_as_there_is_no_gap() {
    cases(50, |random| {
        let mut pieces = Vec::new();
        let mut end = 0;
        for _ in 0..random.below(40) {
            let length = 1 + random.below(9);
            pieces.push((end, length));
            end += length;
        }
        let (mut marks, mut done) = (Marks::default(), vec![false; end as usize]);
        while !pieces.is_empty() {
            let (offset, length) = pieces.swap_remove(random.below(pieces.len() as u64) as usize);
            marks.add(offset, length);
            done[offset as usize..(offset + length) as usize].fill(true);
            let gap = done.iter().position(|done| !done).unwrap_or(done.len());
            assert_eq!(marks.reach, gap as u64);
        }
        assert!(marks.beyond.is_empty());
    });
}
