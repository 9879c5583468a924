//! Clients that come, go and die.

use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use nbd_testkit::process::Background;
use nbd_testkit::raw::{Mode, RawClient, Request, Wire};
use nbd_testkit::{Pattern, Random};

use super::site::{Run, SCRATCH, Site};

/// Connections of silent clients at a time.
const MAX_SILENT: usize = 8;

/// What visitors do.
pub(super) const KINDS: [&str; 7] = [
    "clean",
    "cut off in a request",
    "replies unread",
    "garbage",
    "silent",
    "half-closed",
    "killed program",
];

/// Has one client after the other visit the server that stays; gives how many there were of each kind.
pub(super) fn keep_visiting(site: &Site, run: &Run, mut random: Random) -> [u64; KINDS.len()] {
    let mut counts = [0; KINDS.len()];
    let mut silent = Vec::new();
    while !run.is_over() {
        let kind = random.below(KINDS.len() as u64) as usize;
        let visit = AssertUnwindSafe(|| visit(kind, site, run, &mut random, &mut silent));
        match catch_unwind(visit) {
            Ok(()) => counts[kind] += 1,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let (name, kind) = (site.runtime.name(), KINDS[kind]);
                run.fault(format!("{name}: a visitor ({kind}): {text:?}"));
            }
        }
        run.pause(Duration::from_millis(random.below(200)));
    }
    counts
}

fn visit(kind: usize, site: &Site, run: &Run, random: &mut Random, silent: &mut Vec<RawClient>) {
    match kind {
        0 => {
            let mut client = connected(site, random);
            let (offset, length) = span(random, 1 << 20);
            let pattern = Pattern(random.next());
            client.write(offset, &pattern.bytes(offset, length as usize));
            assert_eq!(pattern.first_difference(offset, &client.read(offset, length)), None);
            client.finish();
        }
        1 => {
            let mut client = connected(site, random);
            let (offset, length) = span(random, 1 << 20);
            let mut bytes = Vec::new();
            client.stage(&Request::write(offset, &vec![1; length as usize]), &mut bytes);
            let part = random.below(bytes.len() as u64) as usize;
            let _sent = client.wire().try_send(&bytes[..part]);
        }
        2 => {
            let mut client = connected(site, random);
            client.send_all(&vec![Request::read(0, 1 << 20); 1 + random.below(8) as usize]);
        }
        3 => {
            let mut wire = Wire::connect(&site.endpoint);
            let bytes: Vec<u8> = (0..random.below(4096)).map(|_| random.next() as u8).collect();
            let _sent = wire.try_send(&bytes);
        }
        4 => {
            let client = match random.below(3) {
                0 => RawClient::connect(&site.endpoint),
                1 => RawClient::negotiate(&site.endpoint),
                _ => connected(site, random),
            };
            silent.push(client);
            if silent.len() > MAX_SILENT {
                silent.swap_remove(random.below(silent.len() as u64) as usize);
            }
        }
        5 => {
            let mut client = connected(site, random);
            client.send_all(&[Request::read(0, 4096), Request::flush()]);
            client.wire().shutdown_write();
            client.wire().drain_to_eof();
        }
        _ => {
            let mut command = Command::new(&site.program);
            command.arg("copy").arg(site.endpoint.uri("")).arg(site.folder.path().join("copy"));
            let program = Background::spawn(&mut command).expect("it is there");
            run.pause(Duration::from_millis(random.below(100)));
            // It may be over already, which is as good.
            program.kill();
        }
    }
}

/// A client of any kind in transmission on the disk for visitors.
fn connected(site: &Site, random: &mut Random) -> RawClient {
    let mode = random.of(&[Mode::Simple, Mode::Structured, Mode::Extended]);
    let mut client = RawClient::negotiate(&site.endpoint);
    match mode {
        Mode::Simple => {}
        Mode::Structured => client.structured_reply().expect("it is supported"),
        Mode::Extended => client.extended_headers().expect("it is supported"),
    }
    client.go(SCRATCH, &[]).expect("it is there");
    client
}

fn span(random: &mut Random, max: u64) -> (u64, u64) {
    let length = 1 + random.below(max);
    (random.below((4 << 20) - length + 1), length)
}
