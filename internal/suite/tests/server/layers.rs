//! Layers around exports of either kind, served.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nbd_blocking::export::{
    AnyExport, ErrorCode, Export, File, Injected, Injection, Memory, Slice,
};
use nbd_engine::proto::wire::CommandType;
use nbd_suite::Served;
use nbd_suite::exports::{Asynchronous, Disk};
use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::raw::{Errno, RawClient, Request};
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;

/// The same layer around memory, a file, and a disk whose work is a future.
fn each(injection: impl Fn() -> Injection, mut script: impl FnMut(&Served)) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB).unwrap();
    let file = File::open(file.path()).unwrap();
    for export in [
        AnyExport::new(Injected::new(Memory::new(MIB).unwrap(), injection())),
        AnyExport::new(Injected::new(file, injection())),
        AnyExport::new(Injected::new(Asynchronous(Disk::new(MIB)), injection())),
    ] {
        script(&Served::only(export));
    }
}

#[test]
fn requests_that_wait_hold_up_neither_others_of_their_client_nor_other_clients() {
    let hour = Duration::from_secs(3600);
    let slow_reads = || Injection::new(1).commands([CommandType::READ]).delay(hour..=hour);
    each(slow_reads, |served| {
        let mut one = RawClient::go_structured(served.endpoint());
        let reads: Vec<_> = (0..60).map(|index| Request::read(index * 512, 512)).collect();
        one.send_all(&reads);
        let mut other = RawClient::go_structured(served.endpoint());
        other.send_all(&reads);
        for client in [&mut other, &mut one] {
            client.write(4096, &[7; 4096]);
            client.call(&Request::flush()).ok();
        }
        // Both hang up while they wait, and the next ones are served.
        drop((one, other));
        let mut next = RawClient::go_structured(served.endpoint());
        next.write(0, &[1; 512]);
        next.finish();
    });
}

#[test]
fn injected_errors_and_short_delays_come_out_in_the_replies() {
    let soon = Duration::from_millis(1);
    let bad_writes = || {
        Injection::new(1).commands([CommandType::WRITE]).delay(soon..=soon).error(ErrorCode::EPERM)
    };
    each(bad_writes, |served| {
        let mut client = RawClient::go_structured(served.endpoint());
        for length in [1, 4096, 300_000] {
            client.call(&Request::write(0, &vec![7; length])).expect_error(Errno::EPERM);
        }
        assert_eq!(client.read(0, 4096), [0; 4096]);
        client.finish();
    });
}

/// Tables that another program made.
#[test]
fn partitions_are_where_nbdkit_put_them() {
    if ["nbdkit", "nbdcopy"].iter().any(|program| peers::require(program).is_none()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let parts: Vec<_> =
        (1..=6_u8).map(|number| vec![number; 100_000 * usize::from(number)]).collect();
    for (index, part) in parts.iter().enumerate() {
        fs::write(folder.path().join(format!("part{index}")), part).unwrap();
    }
    for (kind, numbers) in [("gpt", [1, 2, 3, 4, 5, 6]), ("mbr", [1, 2, 3, 5, 6, 7])] {
        let mut command = Command::new("nbdcopy");
        command.args(["[", "nbdkit", "partitioning"]);
        command.args((0..6).map(|index| format!("part{index}")));
        command.args([&format!("partition-type={kind}"), "]", "disk"]).current_dir(folder.path());
        let finished = run(&mut command, Duration::from_secs(60));
        assert!(finished.status.success(), "{}", finished.stderr);
        let disk = Arc::new(File::open(folder.path().join("disk")).unwrap());
        for (number, part) in numbers.into_iter().zip(&parts) {
            let slice = Slice::partition(Arc::clone(&disk), number).unwrap();
            // Files are rounded up to sectors.
            assert_eq!(slice.size(), (part.len() as u64).next_multiple_of(512), "{kind} {number}");
            let mut content = vec![0; part.len()];
            slice.read(&mut content, 0).unwrap();
            assert!(content == *part, "{kind} {number}");
        }
        assert!(Slice::partition(Arc::clone(&disk), 8).is_err());
    }
}
