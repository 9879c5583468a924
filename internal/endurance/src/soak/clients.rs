//! Clients that verify what they wrote, for as long as the run goes on.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::path::Path;

use nbd_blocking::Client;
use nbd_engine::client::{ClientConfig, Error, Flags, Reconnect, Uri};
use nbd_testkit::peers::find;
use nbd_testkit::process::{Background, run as run_program, wait_until};
use nbd_testkit::raw::Wire;
use nbd_testkit::{Endpoint, Pattern, Random};

use super::site::{FILE, PROXIED, Run, Site};

/// How long a run of fio may take, of a few seconds by itself: restarts and other programs make it longer.
const FIO: Duration = Duration::from_secs(300);

/// Bytes that a run of fio writes and then reads.
const FIO_BYTES: u64 = FILE / 4;

/// Bytes that a client writes, reads and compares as a whole.
const BLOCK: u64 = 4096;

/// Bytes that clients which reconnect keep until they are flushed.
const KEPT: u64 = 8 << 20;

/// Runs of fio that verified everything, and rounds of the client that reconnects.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) fio: AtomicU64,
    pub(super) proxied: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) reconnects: AtomicU64,
}

/// fio on the server that stays: random writes, then each block is read and its checksum compared.
pub(super) fn fio_on_the_steady_one(site: &Site, run: &Run, count: &Count) {
    while !run.is_over() && fio(site, run, &site.endpoint.uri(""), "--iodepth=8") {
        count.fio.fetch_add(1, Ordering::Relaxed);
    }
}

/// fio on the server that is restarted. libnbd does not reconnect; nbdkit does so for it.
pub(super) fn fio_behind_a_proxy(site: &Site, run: &Run, count: &Count) {
    let Some(nbdkit) = find("nbdkit") else {
        eprintln!("nbdkit is not here: fio has the servers that stay only");
        return;
    };
    let socket = site.folder.path().join("proxy.sock");
    let mut command = nbdkit.command();
    command.args(["--foreground", "--filter=retry", "--unix"]).arg(&socket).arg("nbd");
    command.arg(format!("socket={}", site.restarted_socket().display()));
    command.arg(format!("export={PROXIED}"));
    command.args(["retry=30", "retry-delay=1", "retry-exponential=no"]);
    let proxy = Background::spawn(&mut command).expect("nbdkit starts");
    let endpoint = Endpoint::Unix(socket);
    wait_until("nbdkit listens", FIO, || Wire::try_connect(&endpoint).is_ok());
    while !run.is_over() {
        // One at a time: the filter opens the connection again for all requests that failed meanwhile.
        if !fio(site, run, &endpoint.uri(""), "--iodepth=1") {
            run.fault(format!("behind nbdkit, which wrote: {}", proxy.stderr()));
            return;
        }
        count.proxied.fetch_add(1, Ordering::Relaxed);
    }
}

fn fio(site: &Site, run: &Run, uri: &str, depth: &str) -> bool {
    let fio = find("fio").expect("it was looked for");
    let mut command = fio.command();
    command.current_dir(site.folder.path()).args(["--name=soak", "--ioengine=nbd", depth]);
    command.args(["--rw=randwrite", "--bsrange=4k-64k", "--fsync=64", "--rate=2m,2m"]);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
    command.arg(format!("--size={FIO_BYTES}")).arg(format!("--uri={uri}"));
    let finished = run_program(&mut command, FIO);
    let is_good = finished.status.success() && finished.stdout.contains("err= 0");
    if !is_good {
        let name = site.runtime.name();
        run.fault(format!(
            "{name}: fio: {}: {}{}",
            finished.status, finished.stdout, finished.stderr
        ));
    }
    is_good
}

/// A client that reconnects: it writes, flushes, reads and compares.
pub(super) fn reconnecting(site: &Site, run: &Run, count: &'static Count, random: Random) {
    let name = site.runtime.name();
    if let Err(error) = verify(&site.restarted_socket(), run, count, random) {
        run.fault(format!("{name}: the client that reconnects: {error}"));
    }
}

fn verify(
    socket: &Path,
    run: &Run,
    count: &'static Count,
    mut random: Random,
) -> Result<(), String> {
    let uri: Uri = Endpoint::Unix(socket.to_owned()).uri("").parse().expect("a URI");
    let reconnect = Reconnect::new()
        .with_delays(Duration::from_millis(20), Duration::from_secs(1))
        .with_kept_writes(KEPT)
        .with_observer(|event| {
            if event.to_string().starts_with("reconnected") {
                count.reconnects.fetch_add(1, Ordering::Relaxed);
            }
        });
    let config = ClientConfig::new().with_connections(2).with_reconnect(reconnect);
    let text = |error: Error| error.to_string();
    let client = Client::connect_with(&uri, &config).map_err(text)?;
    // Which write each block has; 0 for none.
    let mut blocks = vec![0u64; (FILE / BLOCK) as usize];
    let mut write = 0;
    while !run.is_over() {
        let length = 1 + random.below(16);
        let first = random.below(blocks.len() as u64 - length + 1);
        let range = first as usize..(first + length) as usize;
        let bytes = (length * BLOCK) as usize;
        match random.below(20) {
            0 => client.flush().map_err(text)?,
            1..=8 => {
                let found = client.read(first * BLOCK, bytes, Flags::empty()).map_err(text)?;
                let pairs = found.chunks(BLOCK as usize).zip(&blocks[range]);
                for (index, (found, &write)) in pairs.enumerate() {
                    let block = first + index as u64;
                    if !is_block(found, write, block) {
                        return Err(format!("block {block} is not as write {write} left it"));
                    }
                }
            }
            _ => {
                write += 1;
                let data = Pattern(write).bytes(first * BLOCK, bytes);
                client.write(first * BLOCK, data, Flags::empty()).map_err(text)?;
                blocks[range].fill(write);
            }
        }
        count.requests.fetch_add(1, Ordering::Relaxed);
        run.pause(Duration::from_millis(random.below(20)));
    }
    client.flush().map_err(text)?;
    client.disconnect();
    Ok(())
}

fn is_block(found: &[u8], write: u64, block: u64) -> bool {
    match write {
        0 => found.iter().all(|&byte| byte == 0),
        _ => found == Pattern(write).bytes(block * BLOCK, BLOCK as usize),
    }
}
