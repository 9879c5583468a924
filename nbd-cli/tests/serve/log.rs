//! Its log, when it is not read.

use std::io::{PipeReader, Read, pipe};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use nbd_testkit::process::{Background, run};
use nbd_testkit::raw::{Errno, Opt, RawClient, Rep, Request};

use super::{LIMIT, RUNTIMES, Serving, serve};

/// A server that logs everything, and the other end of its standard error.
fn logging(runtime: &str) -> (Serving, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    let mut command = serve(["--runtime", runtime, "-vv", "--port", "0", "memory:1M"]);
    let process = Background::spawn_with_stderr(&mut command, Stdio::from(writer)).unwrap();
    // It holds the other end of the pipe.
    drop(command);
    let uri = process.next_line(LIMIT).expect("it says where it listens");
    (Serving { process, uri }, reader)
}

/// As many sessions, one after the other.
fn visit(server: &Serving, times: usize) {
    for _ in 0..times {
        let mut client = RawClient::go_simple(&server.endpoint());
        assert_eq!(client.read(0, 8), [0; 8]);
        client.finish();
    }
}

#[test]
fn a_reader_of_the_log_that_is_gone_changes_nothing() {
    for runtime in RUNTIMES {
        let (server, reader) = logging(runtime);
        visit(&server, 1);
        drop(reader);
        visit(&server, 20);
        server.process.terminate();
        assert_eq!(server.end().0, Some(0), "{runtime}");
    }
}

#[test]
fn a_reader_of_the_log_that_takes_nothing_changes_nothing() {
    for runtime in RUNTIMES {
        let (server, _reader) = logging(runtime);
        visit(&server, 2000);
        server.process.terminate();
        assert_eq!(server.end().0, Some(0), "{runtime}");
    }
}

#[test]
fn a_slow_reader_of_the_log_learns_how_much_it_has_missed() {
    let (server, mut reader) = logging("tokio");
    visit(&server, 2000);
    let slow = std::thread::spawn(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        log
    });
    server.process.terminate();
    assert_eq!(server.end().0, Some(0));
    let log = slow.join().unwrap();
    assert!(log.contains(" lines of the log were lost here\n"), "{} bytes", log.len());
}

/// They may say nothing of it themselves.
#[test]
fn clients_that_are_refused_are_logged_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let pki = folder.path().join("pki");
    run(Command::new(env!("CARGO_BIN_EXE_nbd")).arg("cert").arg(&pki), LIMIT).success();
    for (runtime, tls) in RUNTIMES.into_iter().flat_map(|one| [(one, false), (one, true)]) {
        let mut command = serve(["--runtime", runtime, "-v", "--port", "0", "disk=memory:1M"]);
        if tls {
            command.arg("--tls-certificates").arg(&pki);
        }
        let server = Serving::spawn(&mut command);
        for option in [Opt::LIST, Opt::GO] {
            let mut client = RawClient::negotiate(&server.endpoint());
            match (option, tls) {
                (Opt::LIST, false) => continue,
                (Opt::LIST, true) => {
                    assert_eq!(client.option_error(option, &[]), Rep::ERR_TLS_REQD)
                }
                _ => {
                    client.go("none", &[]).unwrap_err();
                }
            }
            client.option(Opt::ABORT, &[]).unwrap();
        }
        server.process.terminate();
        let (code, log) = server.end();
        assert_eq!(code, Some(0));
        let says: &[&str] = match tls {
            true => &[
                "refused a client without TLS option=NBD_OPT_LIST error=NBD_REP_ERR_TLS_REQD",
                "refused a client without TLS option=NBD_OPT_GO error=NBD_REP_ERR_TLS_REQD",
            ],
            false => {
                &["refused a client option=NBD_OPT_GO error=NBD_REP_ERR_UNKNOWN export=\"none\""]
            }
        };
        for text in says {
            assert_eq!(log.matches(text).count(), 1, "{runtime}: {text}: {log}");
        }
    }
}

/// With what the log has by default, and once for each disk, however often clients try again.
#[test]
fn a_disk_that_fails_is_in_the_log_by_name_and_with_its_error() {
    for runtime in RUNTIMES {
        let words = ["bad=memory:1M", "worse=memory:1M", "--layer", "error:EIO,commands=write"];
        let server = Serving::spawn(serve(["--runtime", runtime, "--port", "0"]).args(words));
        for name in ["bad", "worse"] {
            let mut client = RawClient::negotiate(&server.endpoint());
            client.go(name, &[]).unwrap();
            for _ in 0..100 {
                client.call(&Request::write(4096, &[1; 512])).expect_error(Errno::EIO);
            }
            // What the client did wrong is not the disk's fault.
            client.call(&Request::read(1 << 20, 1)).expect_error(Errno::EINVAL);
            client.finish();
        }
        server.process.terminate();
        let (status, log) = server.end();
        assert_eq!(status, Some(0), "{runtime}");
        for name in ["bad", "worse"] {
            let export = format!("export=\"{name}\"");
            let lines: Vec<_> = log.lines().filter(|line| line.contains(&export)).collect();
            let [first, last] = lines[..] else { panic!("{runtime}: {log}") };
            for part in ["WARN", "the disk failed a request", "4096", "EIO", "times=1", "peer="] {
                assert!(first.contains(part), "{runtime}: {part}: {first}");
            }
            assert!(last.contains("the disk failed further requests") && last.contains("times=99"));
        }
        assert!(!log.contains("EINVAL"), "{log}");
    }
}

/// As a file system that becomes read-only, for which clients get the error of those who may not write.
#[test]
fn a_disk_that_takes_no_writes_any_more_is_in_the_log() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    for runtime in RUNTIMES {
        let disk = memfd_create("disk", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&disk, 1 << 20).unwrap();
        let path = format!("disk=/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd());
        let server =
            Serving::spawn(serve(["--runtime", runtime, "--port", "0", "ro=memory:1M"]).arg(path));
        let mut client = RawClient::negotiate(&server.endpoint());
        client.go("disk", &[]).unwrap();
        client.write(4096, &[1; 512]);
        fcntl_add_seals(&disk, SealFlags::WRITE).unwrap();
        for _ in 0..3 {
            client.call(&Request::write(4096, &[2; 512])).expect_error(Errno::EPERM);
        }
        assert_eq!(client.read(4096, 512), [1; 512]);
        client.finish();
        server.process.terminate();
        let (status, log) = server.end();
        assert_eq!(status, Some(0), "{runtime}");
        let failed: Vec<_> = log.lines().filter(|line| line.contains("the disk failed")).collect();
        let [first, last] = failed[..] else { panic!("{runtime}: {log}") };
        assert!(first.contains("WARN") && first.contains("Operation not permitted"), "{first}");
        assert!(last.contains("times=2") && last.contains("export=\"disk\""), "{last}");
    }
}

#[test]
fn a_log_that_cannot_be_written_changes_nothing() {
    for runtime in RUNTIMES {
        for redirection in ["2>/dev/full", "2>&-"] {
            let script = format!("exec \"$0\" \"$@\" {redirection}");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script, env!("CARGO_BIN_EXE_nbd"), "serve", "--runtime", runtime]);
            shell.args(["-vv", "--port", "0", "memory:1M"]);
            let process = Background::spawn(&mut shell).unwrap();
            let uri = process.next_line(LIMIT).expect("it says where it listens");
            let server = Serving { process, uri };
            visit(&server, 20);
            server.process.terminate();
            assert_eq!(server.end().0, Some(0), "{runtime} {redirection}");
        }
    }
}

/// What the command writes to standard error that it takes for the journal's.
fn in_the_journal(command: &mut Command, end: impl FnOnce(Background)) -> String {
    let (mut reader, writer) = pipe().unwrap();
    let stat = rustix::fs::fstat(&writer).unwrap();
    command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino));
    let process = Background::spawn_with_stderr(command, Stdio::from(writer)).unwrap();
    // It holds the other end of the pipe.
    command.stderr(Stdio::null());
    end(process);
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    log
}

#[test]
fn in_the_journal_each_line_begins_with_its_priority_and_has_no_time() {
    for runtime in RUNTIMES {
        let mut command = serve(["--runtime", runtime, "-vv", "--port", "0", "memory:1M"]);
        let log = in_the_journal(&mut command, |process| {
            let uri = process.next_line(LIMIT).expect("it says where it listens");
            let server = Serving { process, uri };
            visit(&server, 1);
            server.process.terminate();
            assert_eq!(server.end().0, Some(0), "{runtime}");
        });
        assert!(log.lines().any(|line| line.starts_with("<7>DEBUG ")), "{log}");
        for line in log.lines() {
            assert!(["<4>", "<6>", "<7>"].iter().any(|prefix| line.starts_with(prefix)), "{log}");
        }
    }
}

#[test]
fn in_the_journal_all_lines_of_an_error_have_its_priority() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.toml");
    std::fs::write(&path, "[[export]]\nmemroy = \"1G\"\n").unwrap();
    let log = in_the_journal(serve(["--config"]).arg(&path), |mut process| {
        assert_eq!(process.wait_exit(LIMIT).and_then(|status| status.code()), Some(78));
    });
    assert!(log.lines().count() > 3, "{log}");
    assert!(log.lines().all(|line| line.starts_with("<3>")), "{log}");
    assert!(log.starts_with("<3>nbd: "), "{log}");
}
