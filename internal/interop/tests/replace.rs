//! Servers are replaced by a successor (`nbd serve --take-over`) while clients connect, write and read: none is refused or
//! reset, and no request is lost. Plain clients notice nothing; those that stay notice a pause, if they connect again by
//! themselves as ours and nbdkit's do.
//!
//! `NBD_REPLACEMENTS=100` in the environment has each test replace its server so many times.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nbd_blocking::Client;
use nbd_engine::client::{ClientConfig, Flags, Reconnect, Uri};
use nbd_interop::certificates::Certificates;
use nbd_testkit::Pattern;
use nbd_testkit::peers::require;
use nbd_testkit::process::{Background, run, wait_until};
use nbd_testkit::server::nbd_binary;

const PATIENCE: Duration = Duration::from_secs(120);

const RUNTIMES: [&str; 3] = ["blocking", "tokio", "async-std"];

/// Clients at a time, each with a part of the disk of its own.
const CLIENTS: u64 = 4;

/// Bytes that a client writes.
const STEP: usize = 100_000;

fn replacements() -> usize {
    let asked = std::env::var("NBD_REPLACEMENTS");
    asked.map_or(2, |number| number.parse().expect("NBD_REPLACEMENTS is a number"))
}

/// Where one server after the other listens.
struct Site<'a> {
    folder: tempfile::TempDir,
    certificates: Option<&'a Certificates>,
    runtime: &'static str,
    running: Background,
    uri: String,
    /// Besides what all have.
    options: &'static [&'static str],
}

impl<'a> Site<'a> {
    fn new(runtime: &'static str, listen: &[&str], certificates: Option<&'a Certificates>) -> Self {
        Self::with(&[], runtime, listen, certificates)
    }

    fn with(
        options: &'static [&'static str],
        runtime: &'static str,
        listen: &[&str],
        certificates: Option<&'a Certificates>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = std::fs::File::create(folder.path().join("disk")).expect("a file");
        disk.set_len(1 << 20).expect("a disk");
        let mut command = server(folder.path(), runtime, certificates);
        command.args(["--control", "control"]).args(options).args(listen);
        let running = Background::spawn(command.arg("disk")).expect("nbd starts");
        let uri = running.next_line(PATIENCE);
        let uri = uri.unwrap_or_else(|| panic!("no URI, but: {}", running.stderr()));
        Self { folder, certificates, runtime, running, uri, options }
    }

    /// That of the only export, with what a client needs to trust it.
    fn uri(&self) -> Uri {
        let mut uri = self.uri.clone();
        if let Some(certificates) = self.certificates {
            let between = if uri.contains('?') { '&' } else { '?' };
            let folder = certificates.path();
            uri += &format!("{between}tls-certificates={folder}&tls-hostname=localhost");
        }
        uri.parse().expect("a URI")
    }

    /// Another server takes its place. Clients of the old one may stay for as long as `linger` says.
    #[track_caller]
    fn replace(&mut self, linger: &str) {
        let mut command = server(self.folder.path(), self.runtime, self.certificates);
        command.args(["--take-over", "control", "--linger", linger, "disk"]).args(self.options);
        let successor = Background::spawn(&mut command).expect("nbd starts");
        let uri = successor.next_line(PATIENCE);
        assert_eq!(uri.as_ref(), Some(&self.uri), "{}", successor.stderr());
        let mut replaced = core::mem::replace(&mut self.running, successor);
        let status = replaced.wait_exit(PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(0), "{}", replaced.stderr());
    }

    /// It ends, and another one starts after that.
    #[track_caller]
    fn restart(&mut self, listen: &[&str]) {
        self.running.terminate();
        let status = self.running.wait_exit(PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(0), "{}", self.running.stderr());
        let mut command = server(self.folder.path(), self.runtime, self.certificates);
        command.args(["--control", "control", "disk"]).args(self.options).args(listen);
        self.running = Background::spawn(&mut command).expect("nbd starts");
        let uri = self.running.next_line(PATIENCE);
        assert_eq!(uri.as_ref(), Some(&self.uri), "{}", self.running.stderr());
    }

    fn end(mut self) {
        self.running.terminate();
        let status = self.running.wait_exit(PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(0), "{}", self.running.stderr());
    }
}

fn server(folder: &Path, runtime: &str, certificates: Option<&Certificates>) -> Command {
    let mut command = Command::new(nbd_binary());
    command.current_dir(folder).args(["serve", "--runtime", runtime]);
    if let Some(certificates) = certificates {
        command.args(["--tls", "require", "--tls-certificates", certificates.path()]);
    }
    command
}

/// A part of the disk is written and read back.
fn use_disk(client: &Client, part: u64, seed: u64) {
    let offset = part * STEP as u64;
    client.write(offset, Pattern(seed).bytes(0, STEP), Flags::empty()).expect("a write");
    client.flush().expect("a flush");
    let found = client.read(offset, STEP, Flags::empty()).expect("a read");
    assert!(found == Pattern(seed).bytes(0, STEP), "what was written is read");
}

/// What each of several clients does until all replacements are done.
fn while_replaced(
    site: &mut Site<'_>,
    linger: &str,
    client: impl Fn(u64, &dyn Fn() -> bool) + Sync,
) {
    let (over, rounds) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; CLIENTS as usize]);
    // Also when this thread panics: the scope waits for the others.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        let _over = Over(&over);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|part| {
                let (over, rounds, client) = (&over, &rounds, &client);
                scope.spawn(move || {
                    let goes_on = || {
                        rounds[part as usize].fetch_add(1, Ordering::Relaxed);
                        !over.load(Ordering::Relaxed)
                    };
                    client(part, &goes_on);
                })
            })
            .collect();
        for _ in 0..replacements() {
            // All of them are at work before, and after it.
            let before: Vec<u64> =
                rounds.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            wait_until("clients are served", PATIENCE, || {
                let failed = clients.iter().any(|client| client.is_finished());
                let went_on = |(count, before): (&AtomicU64, &u64)| {
                    count.load(Ordering::Relaxed) > before + 1
                };
                failed || rounds.iter().zip(&before).all(went_on)
            });
            site.replace(linger);
        }
    });
    let rounds: Vec<u64> = rounds.into_iter().map(AtomicU64::into_inner).collect();
    eprintln!("{} {}: {} replacements, {rounds:?} rounds", site.runtime, site.uri, replacements());
}

/// Clients that connect, work and disconnect, all the time.
fn none_is_refused(listen: &[&str], certificates: Option<&Certificates>) {
    let config = ClientConfig::new();
    for runtime in RUNTIMES {
        let mut site = Site::new(runtime, listen, certificates);
        let uri = site.uri();
        while_replaced(&mut site, "1h", |part, goes_on| {
            let mut seed = 0;
            while goes_on() {
                let client =
                    Client::connect_with(&uri, &config).expect("no connection is refused or reset");
                use_disk(&client, part, seed);
                client.disconnect();
                seed += 1;
            }
        });
        site.end();
    }
}

#[test]
fn no_client_is_refused_over_tcp() {
    none_is_refused(&["--port", "0"], None);
}

#[test]
fn no_client_is_refused_over_a_unix_socket() {
    none_is_refused(&["-U", "nbd.sock"], None);
}

#[test]
fn no_client_is_refused_over_tls() {
    let certificates = Certificates::new();
    none_is_refused(&["--port", "0"], Some(&certificates));
}

/// Clients that stay connected and have to connect again.
fn they_notice_a_pause_only(listen: &[&str], certificates: Option<&Certificates>) {
    // A client can't know that the disk outlives its server: it keeps what it has not flushed, or a flush reports doubt.
    let reconnect = Reconnect::new()
        .with_delays(Duration::from_millis(1), Duration::from_millis(50))
        .with_kept_writes(16 << 20);
    let config = ClientConfig::new().with_reconnect(reconnect);
    for runtime in RUNTIMES {
        let mut site = Site::new(runtime, listen, certificates);
        let uri = site.uri();
        while_replaced(&mut site, "0s", |part, goes_on| {
            let client = Client::connect_with(&uri, &config).expect("it serves");
            let mut seed = 0;
            while goes_on() {
                use_disk(&client, part, seed);
                seed += 1;
            }
            client.disconnect();
        });
        site.end();
    }
}

#[test]
fn clients_that_connect_again_notice_a_pause_only_over_tcp() {
    they_notice_a_pause_only(&["--port", "0"], None);
}

#[test]
fn clients_that_connect_again_notice_a_pause_only_over_a_unix_socket() {
    they_notice_a_pause_only(&["-U", "nbd.sock"], None);
}

#[test]
fn clients_that_connect_again_notice_a_pause_only_over_tls() {
    let certificates = Certificates::new();
    they_notice_a_pause_only(&["--port", "0"], Some(&certificates));
}

/// fio writes and verifies through nbdkit, whose filter connects again, while servers that `listen` there are replaced.
fn fio_verifies(listen: &[&str], certificates: Option<&Certificates>) {
    let (Some(fio), Some(nbdkit)) = (require("fio"), require("nbdkit")) else { return };
    let mut site = Site::new("tokio", listen, certificates);
    let folder = site.folder.path().to_owned();
    let mut bridge = nbdkit.command();
    bridge.current_dir(&folder).args(["--foreground", "--unix", "bridge.sock"]);
    bridge.args(["--filter=retry", "nbd"]);
    if let Some(certificates) = certificates {
        // The certificate names the host.
        let uri = site.uri.replace("127.0.0.1", "localhost");
        bridge.arg(format!("uri={}", uri.split('?').next().expect("a URI")));
        bridge.args(["tls=require", &format!("tls-certificates={}", certificates.path())]);
    } else {
        bridge.arg(format!("uri={}", site.uri));
    }
    bridge.args(["retry-delay=1", "retry-exponential=no", "retries=60"]);
    let _bridge = Background::spawn(&mut bridge).expect("nbdkit starts");
    let socket = folder.join("bridge.sock");
    wait_until("nbdkit listens", PATIENCE, || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut command = fio.command();
            command.current_dir(&folder).args(["--name=verify", "--ioengine=nbd", "--bs=4k"]);
            command.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
            command.args(["--rw=randwrite", "--iodepth=8", "--size=1M", "--loops=1000000"]);
            let seconds = 2 + 3 * replacements() / 2;
            command.args(["--time_based", "--verify=crc32c", "--verify_fatal=1"]);
            command.arg(format!("--runtime={seconds}"));
            command.args(["--verify_state_save=0", "--do_verify=1", "--verify_backlog=64"]);
            let finished = run(&mut command, PATIENCE);
            done.store(true, Ordering::Relaxed);
            let report = finished.success();
            assert!(report.contains("err= 0"), "{report}");
        });
        for _ in 0..replacements() {
            if !done.load(Ordering::Relaxed) {
                site.replace("0s");
            }
        }
    });
    site.end();
}

#[test]
fn fio_verifies_through_nbdkit_while_the_server_is_replaced_over_tcp() {
    fio_verifies(&["--port", "0"], None);
}

#[test]
fn fio_verifies_through_nbdkit_while_the_server_is_replaced_over_a_unix_socket() {
    fio_verifies(&["-U", "nbd.sock"], None);
}

#[test]
fn fio_verifies_through_nbdkit_while_the_server_is_replaced_over_tls() {
    let certificates = Certificates::new();
    fio_verifies(&["--port", "0"], Some(&certificates));
}

/// The disk of a virtual machine: qemu connects again when it is hung up on, and takes an error for one of the disk.
#[test]
fn qemu_notices_a_pause_only_if_it_is_hung_up_on() {
    let Some(qemu_img) = require("qemu-img") else { return };
    let listen = ["-U", "nbd.sock"];
    for runtime in RUNTIMES {
        let mut site = Site::with(&["--hang-up"], runtime, &listen, None);
        let disk = site.folder.path().join("disk");
        let options = format!(
            "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.reconnect-delay=60",
            site.folder.path().join("nbd.sock").display()
        );
        let (done, pattern) = (AtomicBool::new(false), 0xa5);
        thread::scope(|scope| {
            let writes = scope.spawn(|| {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    // Each block of the disk many times.
                    let mut command = qemu_img.command();
                    command.args(["bench", "-w", "-d", "16", "-c", "20000", "-s", "4096"]);
                    command.args(["--pattern", "165", "--flush-interval", "64", "--image-opts"]);
                    run(command.arg(&options), PATIENCE).success();
                    rounds += 1;
                }
                rounds
            });
            for round in 0..2 * replacements() {
                thread::sleep(Duration::from_millis(300));
                match round % 2 {
                    0 => site.restart(&listen),
                    _ => site.replace("0s"),
                }
            }
            done.store(true, Ordering::Relaxed);
            eprintln!("{runtime}: {} rounds", writes.join().expect("qemu notices no error"));
        });
        let content = std::fs::read(disk).expect("it is a file");
        site.end();
        assert!(content.iter().all(|byte| *byte == pattern), "each block was written");
    }
}
