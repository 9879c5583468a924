//! Servers that are killed under load, a few times each; and servers that lose data, which have to be found.

use nbd_endurance::kills::{Campaign, DiskKind, Server};
use nbd_endurance::process::Runtime;
use nbd_testkit::cases;
use nbd_testkit::peers::{require, skip};
use nbd_testkit::server::nbd_binary;

/// Kills of each kind of disk, on each runtime.
const KILLS: u64 = 6;

/// Kills within which a server that loses data has to be found. Any of them shows it, nearly.
const MAX_KILLS: u64 = 30;

#[track_caller]
fn campaign(server: Server, kind: DiskKind) -> Option<Campaign> {
    match Campaign::new(server, kind) {
        Ok(campaign) => Some(campaign),
        Err(why) => {
            assert_eq!(kind, DiskKind::Loop, "a file can be made: {why}");
            skip(&format!("kills of block devices, as no loop device can be made: {why}"));
            None
        }
    }
}

#[track_caller]
fn survives(runtime: Runtime, kind: DiskKind) {
    let server = Server::Nbd(nbd_binary(), runtime);
    let Some(mut campaign) = campaign(server, kind) else { return };
    cases(KILLS, |random| campaign.round(random.next()).unwrap());
    assert!(campaign.summary().kills > 0);
}

macro_rules! survives {
    ($($name:ident: $runtime:ident, $kind:ident;)*) => {$(
        #[test]
        fn $name() {
            survives(Runtime::$runtime, DiskKind::$kind);
        }
    )*};
}

survives! {
    acknowledged_writes_to_a_file_survive_kills_on_threads: Blocking, File;
    acknowledged_writes_to_a_file_survive_kills_on_tokio: Tokio, File;
    acknowledged_writes_to_a_file_survive_kills_on_async_std: AsyncStd, File;
    flushed_writes_are_behind_a_devices_cache_after_kills_on_threads: Blocking, Loop;
    flushed_writes_are_behind_a_devices_cache_after_kills_on_tokio: Tokio, Loop;
    flushed_writes_are_behind_a_devices_cache_after_kills_on_async_std: AsyncStd, Loop;
}

/// Kills of a volume's servers, each of which waits for the lease of the one before.
#[cfg(feature = "volume")]
#[test]
fn flushed_writes_to_a_volume_survive_kills() {
    let server = Server::Nbd(nbd_binary(), Runtime::Tokio);
    let mut campaign = Campaign::new(server, DiskKind::Volume).unwrap();
    cases(2, |random| campaign.round(random.next()).unwrap());
    assert!(campaign.summary().kills > 0);
}

fn other(name: &str, arguments: &[&str]) -> Option<Server> {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    Some(Server::Other(require(name)?.path, arguments))
}

/// How a server is found to lose data.
#[track_caller]
fn fault(server: Server, kind: DiskKind) -> Option<String> {
    let mut campaign = campaign(server, kind)?;
    let mut found = None;
    cases(MAX_KILLS, |random| {
        if found.is_none() {
            found = campaign.round(random.next()).err();
        }
    });
    Some(found.expect("it loses data").0)
}

#[test]
fn a_server_that_acknowledges_writes_before_it_writes_is_found() {
    let arguments =
        ["--foreground", "--unix", "SOCKET", "--filter=cache", "file", "DISK", "cache=unsafe"];
    let Some(server) = other("nbdkit", &arguments) else { return };
    if let Some(fault) = fault(server, DiskKind::File) {
        assert!(fault.starts_with("the disk after the kill has "), "{fault}");
    }
}

#[test]
fn a_server_that_acknowledges_flushes_and_does_nothing_is_found() {
    let arguments =
        ["--socket=SOCKET", "--persistent", "--shared=0", "--format=raw", "--cache=unsafe", "DISK"];
    let Some(server) = other("qemu-nbd", &arguments) else { return };
    if let Some(fault) = fault(server, DiskKind::Loop) {
        assert!(fault.starts_with("the medium behind the cache has "), "{fault}");
    }
}

/// What blames them is not what they are.
#[test]
fn the_same_servers_are_not_blamed_when_they_do_as_they_say() {
    let nbdkit = ["--foreground", "--unix", "SOCKET", "file", "DISK"];
    let qemu = [
        "--socket=SOCKET",
        "--persistent",
        "--shared=0",
        "--format=raw",
        "--cache=writeback",
        "DISK",
    ];
    let honest = [("nbdkit", &nbdkit[..], DiskKind::File), ("qemu-nbd", &qemu[..], DiskKind::Loop)];
    for (name, arguments, kind) in honest {
        let Some(server) = other(name, arguments) else { continue };
        cases(3, |random| {
            // Each on a disk of its own: qemu leaves out flushes before it has written anything itself, so that what a
            // server wrote that was killed is not flushed by the next one.
            let Some(mut campaign) = campaign(server.clone(), kind) else { return };
            campaign.round(random.next()).unwrap();
        });
    }
}
