//! `nbd bench`, with this project's server and those of others.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nbd_testkit::process::{Finished, run, wait_until};
use nbd_testkit::raw;
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::nbd_binary;
use nbd_testkit::{cases, peers};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// `nbd bench` with arguments, a server's command among them, which takes no longer than these say.
fn command(args: &[&str], server: &[&str]) -> Command {
    let mut command = Command::new(nbd_binary());
    command.arg("bench").args(args).arg("[").args(server).arg("]");
    command
}

#[track_caller]
fn bench(args: &[&str], server: &[&str]) -> Finished {
    run(&mut command(args, server), SOON)
}

/// The words of a server of ours between brackets.
fn ours<'a>(binary: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[binary, "serve"], more].concat()
}

fn binary() -> String {
    nbd_binary().display().to_string()
}

#[track_caller]
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A file of that many bytes, which are zero.
fn disk(size: u64) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    let path = path.display().to_string();
    (folder, path)
}

/// That many requests of 4 KiB succeeded, and their numbers go together.
#[track_caller]
fn succeeded(outcomes: &Value, requests: u64) {
    assert_eq!(outcomes["requests"], requests, "{outcomes}");
    assert_eq!(outcomes["bytes"], requests * 4096, "{outcomes}");
    assert_eq!((&outcomes["failed"], &outcomes["errors"]), (&json!(0), &json!({})));
    let latencies = &outcomes["latency_seconds"];
    let time = |name: &str| latencies[name].as_f64().unwrap_or_else(|| panic!("{outcomes}"));
    let order = ["min", "p50", "p90", "p99", "p99_9", "max"].map(time);
    assert!(order.is_sorted() && order[0] > 0.0, "{outcomes}");
    assert!((order[0]..=order[5]).contains(&time("mean")), "{outcomes}");
    let rate = outcomes["requests_per_second"].as_f64().unwrap();
    let bytes = outcomes["bytes_per_second"].as_f64().unwrap();
    assert!(rate > 0.0 && (bytes / rate - 4096.0).abs() < 0.01, "{outcomes}");
}

#[test]
fn every_pattern_sends_as_many_requests_as_it_says_to_any_server() {
    let (binary, (_folder, file)) = (binary(), disk(1 << 20));
    let mut servers = vec![ours(&binary, &["memory:1M"])];
    servers.extend(peers::require("nbdkit").map(|_| vec!["nbdkit", "memory", "1M"]));
    servers.extend(peers::require("qemu-nbd").map(|_| vec!["qemu-nbd", "-f", "raw", &file]));
    for server in &servers {
        for (pattern, reads, writes) in [
            ("read", true, false),
            ("write", false, true),
            ("randread", true, false),
            ("randwrite", false, true),
            ("mixed", true, true),
        ] {
            let args = ["--rw", pattern, "--requests=300", "--depth=8", "--destructive", "--json"];
            let report = parsed(&bench(&[&args[..], &["--time=1h"]].concat(), server).success());
            assert_eq!(report["rw"], pattern);
            assert_eq!((&report["length"], &report["depth"]), (&json!(1 << 20), &json!(8)));
            let (of_reads, of_writes) = (&report["reads"], &report["writes"]);
            assert_eq!((of_reads.is_object(), of_writes.is_object()), (reads, writes), "{report}");
            let all = match (reads, writes) {
                (true, true) => {
                    let count = of_reads["requests"].as_u64().unwrap();
                    succeeded(of_reads, count);
                    succeeded(of_writes, 300 - count);
                    continue;
                }
                (true, false) => of_reads,
                _ => of_writes,
            };
            succeeded(all, 300);
            assert_eq!(report["flush_seconds"].is_number(), writes, "{report}");
        }
    }
}

#[test]
fn it_ends_by_itself_when_the_time_is_over() {
    let binary = binary();
    let report = bench(&["--time=50ms", "--json"], &ours(&binary, &["memory:1M"])).success();
    let report = parsed(&report);
    assert!(report["seconds"].as_f64().unwrap() >= 0.05, "{report}");
    assert!(report["reads"]["requests"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["interrupted"], false);
}

/// The indices of the blocks of a file that are not zero.
fn written(path: &str) -> Vec<usize> {
    let bytes = std::fs::read(path).unwrap();
    let blocks = bytes.chunks(4096).enumerate();
    blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)).map(|(at, _)| at).collect()
}

#[test]
fn a_seed_writes_the_same_blocks_whatever_is_in_flight() {
    let binary = binary();
    let blocks = |args: &[&str]| {
        let (_folder, path) = disk(4 << 20);
        let args = [&["--rw=randwrite", "--requests=100", "--destructive"], args].concat();
        bench(&args, &ours(&binary, &[&path])).success();
        written(&path)
    };
    let first = blocks(&["--seed=1", "--depth=1"]);
    assert!(first.len() > 80, "{first:?}");
    assert_eq!(first, blocks(&["--seed=1", "--depth=9", "--connections=3"]));
    assert_ne!(first, blocks(&["--seed=2", "--depth=1"]));
    let part = blocks(&["--offset=1M", "--length=1M"]);
    assert!(part.iter().all(|block| (256..512).contains(block)), "{part:?}");
}

#[test]
fn nothing_is_written_without_being_told_to() {
    let (binary, (_folder, path)) = (binary(), disk(1 << 20));
    for pattern in ["write", "randwrite", "mixed"] {
        let args = ["--rw", pattern, "--bs=64k", "--offset=64k"];
        let finished = bench(&args, &ours(&binary, &[&path]));
        assert_eq!(finished.status.code(), Some(64), "{}", finished.stderr);
        for says in ["overwrites the 983040 bytes from offset 65536 on of [ ", "add --destructive"]
        {
            assert!(finished.stderr.contains(says), "{}", finished.stderr);
        }
        assert!(written(&path).is_empty(), "{pattern}");
    }
}

#[test]
fn what_a_server_would_refuse_is_refused_before() {
    let binary = binary();
    let large = ["--block-size", "4k:64k:128k", "memory:1M"];
    let refused = |args: &[&str], server: &[&str], code: i32, says: &str| {
        let finished = bench(args, &ours(&binary, server));
        assert_eq!(finished.status.code(), Some(code), "{args:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(says), "{says}: {}", finished.stderr);
        assert_eq!(finished.stdout, "");
    };
    refused(&["--bs=512"], &large, 1, "multiples of 4096 bytes only");
    refused(&["--bs=256k"], &large, 1, "at most 131072 bytes in a request");
    refused(&["--offset=512"], &large, 1, "multiples of 4096 only");
    refused(&["--offset=1M"], &["memory:1M"], 1, "less than one block of 4096");
    refused(&["--length=2M"], &["memory:1M"], 1, "the export has 1048576 bytes");
    let write = ["--rw=write", "--destructive"];
    refused(&write, &["--read-only", "memory:1M"], 1, "is read-only: nothing can be written");
    let many = ["--depth=1000000", "--bs=1M"];
    refused(&many, &["memory:1M"], 64, "of at most 1073741824: choose less");
    refused(&["--read-percent=5"], &["memory:1M"], 64, "is for --rw mixed");
    refused(&["--time=0"], &["memory:1M"], 64, "give at least 1ms");
}

/// Whatever server it is: one that can't be reached is not asked.
#[test]
fn what_no_server_would_take_is_a_fault_of_the_command_line() {
    cases(60, |random| {
        let few = 1 + random.below(4096);
        let block = 4096 + random.below(1 << 20);
        let less = random.below(block);
        let large = (64 << 20) + 1 + random.below(1 << 40);
        let far = (1_u64 << 62) + random.below(1 << 61);
        let args = [
            vec![format!("--bs={large}")],
            vec!["--bs=0".to_owned()],
            vec!["--length=0".to_owned()],
            vec![format!("--length={}", few - 1)],
            vec![format!("--bs={block}"), format!("--length={less}")],
            vec![format!("--bs={block}"), format!("--depth={}", 1 + (1 << 30) / block)],
            vec![format!("--connections={}", 1 + (1 << 30) / 4096 / 16)],
            vec![format!("--offset={far}"), format!("--length={far}")],
        ];
        let args = &args[usize::try_from(random.below(args.len() as u64)).unwrap()];
        let mut command = Command::new(binary());
        command.arg("bench").args(args).arg("nbd+unix:///?socket=/no/such/socket");
        let finished = run(&mut command, SOON);
        assert_eq!(finished.status.code(), Some(64), "{args:?}: {}", finished.stderr);
        let fine = ["--bs=64M", "--depth=16", "--length=64M", "--offset=4k"];
        let mut command = Command::new(binary());
        command.arg("bench").args(fine).arg("nbd+unix:///?socket=/no/such/socket");
        assert_eq!(run(&mut command, SOON).status.code(), Some(1));
    });
}

#[test]
fn several_connections_need_a_server_that_offers_them() {
    if peers::require("qemu-nbd").is_none() {
        return;
    }
    let (_folder, path) = disk(1 << 20);
    let finished = bench(&["--connections=2"], &["qemu-nbd", "-f", "raw", &path]);
    assert!(finished.failure().contains("does not offer several connections"));
}

#[test]
fn requests_that_the_server_fails_are_counted_and_end_in_failure() {
    if peers::require("nbdkit").is_none() {
        return;
    }
    let server =
        ["nbdkit", "--filter=error", "memory", "1M", "error-pread=ENOSPC", "error-rate=100%"];
    let finished = bench(&["--requests=50", "--json"], &server);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    let said = "nbd: 50 of 50 requests failed; the first one: NBD_CMD_READ of 4096 bytes at ";
    assert!(finished.stderr.contains(said), "{}", finished.stderr);
    assert!(!finished.stderr.contains("socket="), "a private socket: {}", finished.stderr);
    let report = parsed(&finished.stdout);
    let reads = &report["reads"];
    assert_eq!((&reads["requests"], &reads["failed"]), (&json!(0), &json!(50)), "{report}");
    assert_eq!(reads["errors"], json!({ "NBD_ENOSPC": 50 }));
    assert_eq!(reads["latency_seconds"], Value::Null);
}

#[test]
fn what_was_measured_before_the_connection_was_lost_is_shown() {
    if peers::require("nbdkit").is_none() {
        return;
    }
    let pread = "pread=test $4 -lt 65536 || kill -9 $PPID; head -c $3 /dev/zero";
    let server = ["nbdkit", "eval", "get_size=echo 1M", pread];
    let finished = bench(&["--rw=read", "--depth=1", "--time=1h", "--json"], &server);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    assert_eq!(parsed(&finished.stdout)["reads"]["requests"], 16);
    assert!(finished.stderr.contains("nbd: "), "{}", finished.stderr);
}

#[test]
fn a_signal_shows_what_was_measured_so_far() {
    if peers::require("nbdkit").is_none() {
        return;
    }
    for json_too in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let pread = format!("pread=echo read >>'{}'; head -c $3 /dev/zero", log.display());
        let server = ["nbdkit", "eval", "get_size=echo 1M", &pread];
        let args: &[&str] = if json_too { &["--time=1h", "--json"] } else { &["--time=1h"] };
        let mut command = command(args, &server);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines =
            |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        wait_until("requests are answered", SOON, || lines(&log) > 40);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(130), "{text}");
        if json_too {
            let report = parsed(&text);
            assert_eq!(report["interrupted"], true);
            assert!(report["reads"]["requests"].as_u64().unwrap() > 0, "{report}");
        } else {
            assert!(text.contains(" (interrupted), seed "), "{text}");
            assert!(text.lines().any(|line| line.starts_with("reads ")), "{text}");
        }
    }
}

#[test]
fn a_bench_that_a_signal_comes_upon_shows_one_report_that_is_whole_or_interrupted() {
    const REQUESTS: u64 = 40;
    cases(20, |random| {
        let mut export = Export::new(raw::Mode::Extended);
        export.size = 1 << 20;
        let server = ScriptedServer::unix([Script::new(export).enter().serve()]);
        let mut command = Command::new(nbd_binary());
        command.args(["bench", "--json", "--depth=1", "--requests", &REQUESTS.to_string()]);
        command.args(["--time=1h", &server.endpoint().uri("")]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The end is what is special.
        let requests = if random.one_in(2) { REQUESTS } else { 1 + random.below(REQUESTS) };
        server.wait_for_requests(requests as usize);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let report = parsed(&String::from_utf8(output.stdout).unwrap());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let interrupted = report["interrupted"] == true;
        assert_eq!(output.status.code(), Some(if interrupted { 130 } else { 0 }), "{report}");
        if !interrupted {
            assert_eq!(report["reads"]["requests"], REQUESTS);
        }
    });
}

/// A text in which `N` stands for each number and `U` for its unit, with one space between words.
fn masked(text: &str) -> String {
    const UNITS: [&str; 10] = ["ns", "us", "ms", "s", "B", "KiB", "MiB", "B/s", "KiB/s", "MiB/s"];
    let mask = |line: &str| {
        let mut words: Vec<&str> = Vec::new();
        for word in line.split_whitespace() {
            let bare = word.trim_end_matches(',');
            words.push(match bare.trim_end_matches("/s").parse::<f64>() {
                Ok(_) => "N",
                Err(_) if UNITS.contains(&bare) && words.last() == Some(&"N") => "U",
                Err(_) => word,
            });
        }
        words.join(" ") + "\n"
    };
    text.lines().map(mask).collect()
}

#[test]
fn the_table_has_a_line_for_each_kind_of_request() {
    let binary = binary();
    let server = ours(&binary, &["memory:1M"]);
    let args = ["--rw=mixed", "--requests=200", "--seed=5", "--destructive", "--depth=4"];
    let text = bench(&args, &server).success().replace(&binary, "nbd");
    let expected = "\
mixed of N U on [ nbd serve memory:1M ]: N in flight on N connection, N U seed N

REQUESTS FAILED RATE THROUGHPUT MEAN P50 P90 P99 P99.9 MAX
reads N N N N U N U N U N U N U N U N U
writes N N N N U N U N U N U N U N U N U

flush after the writes: N U
";
    assert_eq!(masked(&text), expected, "{text}");
}

#[test]
fn a_terminal_shows_the_rate_while_it_runs() {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    // It has no columns yet.
    let path = name.to_str().unwrap();
    run(Command::new("stty").args(["-F", path, "columns", "120"]), SOON).success();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let stderr = rustix::fs::open(path, flags, Mode::empty()).unwrap();
    let binary = binary();
    // It ends by itself if nothing is shown.
    let mut command = command(&["--time=60s"], &ours(&binary, &["memory:1M"]));
    let mut child =
        command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
    drop(command);
    let mut terminal = std::fs::File::from(controller);
    let (mut shown, mut piece) = (String::new(), [0; 4096]);
    while !(shown.contains("randread: ") && shown.contains("s of 1m 0s")) {
        let count = terminal.read(&mut piece).unwrap();
        assert!(count > 0, "{shown}");
        shown.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut report = String::new();
    child.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(report.contains("(interrupted)"), "{report}");
}

/// The names of all members of a value, with those of what they hold as `outer.inner`.
fn names(value: &Value, prefix: &str, names: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let name = format!("{prefix}{name}");
        names.push(name.clone());
        if !name.ends_with("errors") {
            self::names(value, &format!("{name}."), names);
        }
    }
}

#[test]
fn the_page_names_every_member_of_the_json_and_no_other() {
    let binary = binary();
    let args = ["--rw=mixed", "--requests=100", "--destructive", "--json"];
    let report = parsed(&bench(&args, &ours(&binary, &["memory:1M"])).success());
    let mut expected = Vec::new();
    names(&report, "", &mut expected);
    expected.retain(|name| !name.starts_with("writes."));
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bench.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut named: Vec<String> =
        rows.map(|row| row.split('`').next().unwrap_or_default().to_owned()).collect();
    named.retain(|name| !name.starts_with('-'));
    named.sort();
    expected.sort();
    assert_eq!(named, expected);
}
