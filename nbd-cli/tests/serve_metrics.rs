//! `nbd serve --metrics`, SIGUSR1, `nbd status` and `nbd disconnect`: what is shown of a server that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbd_testkit::Endpoint;
use nbd_testkit::exposition::{self, Metric};
use nbd_testkit::process::{Background, run, wait_until};
use nbd_testkit::raw::{Errno, Mode, RawClient, Request};
use nbd_testkit::server::nbd_binary;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

/// A server with metrics and a control socket in a folder of its own.
struct Serving {
    process: Background,
    dir: TempDir,
}

impl Serving {
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(nbd_binary());
        command.current_dir(dir.path()).arg("serve").args(["--unix", "nbd.sock"]);
        command.args(["--metrics", "unix:metrics.sock", "--control", "control.sock"]);
        let process = Background::spawn(command.args(arguments)).unwrap();
        let line = process.next_line(LIMIT);
        assert!(line.is_some(), "{}", process.stderr());
        Self { process, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self, mode: Mode) -> RawClient {
        RawClient::go_in(mode, &Endpoint::Unix(self.path("nbd.sock")))
    }

    /// What is answered to a request over HTTP: the header and the body.
    fn http(&self, request: &str) -> (String, String) {
        let mut stream = UnixStream::connect(self.path("metrics.sock")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (header, body) = text.split_once("\r\n\r\n").expect("a header");
        (header.to_lowercase(), body.into())
    }

    fn scrape(&self) -> BTreeMap<String, Metric> {
        let (header, body) = self.http("GET /metrics HTTP/1.1\r\nHost: nbd\r\n\r\n");
        assert!(header.starts_with("http/1.1 200 ok"), "{header}");
        let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
        assert!(header.contains(kind), "{header}");
        exposition::parse(&body)
    }

    /// Waits until all connections so far have ended and are counted.
    fn wait_for_the_clients(&self) {
        wait_until("no client is there", LIMIT, || {
            self.scrape()["nbd_connections"].sum("", &[]) == 0.0
        });
    }

    fn nbd(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(nbd_binary());
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    fn status(&self) -> Value {
        let words = ["status", "--json", "--interval", "0", "control.sock"];
        serde_json::from_str(&run(&mut self.nbd(&words), LIMIT).success()).unwrap()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

#[test]
fn a_scrape_is_well_formed_and_counts_what_a_client_saw() {
    let strange = "a \"strange\" \\name\n";
    let serving = Serving::start(&["memory:1M", &format!("{strange}=memory:2M")]);
    let mut client = serving.client(Mode::Structured);
    for index in 0..7 {
        client.read(index * 4096, 4096);
    }
    client.write(0, &[1; 512]);
    client.call(&Request::read(1 << 20, 1)).expect_error(Errno::EINVAL);
    client.finish();
    let mut other = RawClient::connect(&Endpoint::Unix(serving.path("nbd.sock")));
    other.set_mode(Mode::Simple);
    drop(other);
    // It may not have been accepted yet.
    wait_until("both connections have ended", LIMIT, || {
        serving.scrape()["nbd_connections_ended_total"].sum("", &[]) == 2.0
    });
    let metrics = serving.scrape();
    let reads = [("export", ""), ("command", "read")];
    assert_eq!(metrics["nbd_requests_total"].sum("", &reads), 8.0);
    assert_eq!(metrics["nbd_request_bytes_total"].sum("", &reads), 7.0 * 4096.0);
    assert_eq!(metrics["nbd_request_errors_total"].sum("", &[("error", "einval")]), 1.0);
    assert_eq!(metrics["nbd_request_duration_seconds"].sum("_count", &reads), 7.0);
    assert_eq!(metrics["nbd_requests_total"].sum("", &[("command", "write")]), 1.0);
    assert_eq!(metrics["nbd_connections_accepted_total"].sum("", &[]), 2.0);
    assert_eq!(metrics["nbd_connections_ended_total"].sum("", &[]), 2.0);
    assert_eq!(metrics["nbd_build_info"].sum("", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);

    let info = serving.nbd(&[
        "info",
        "--content",
        "nbd+unix:///a%20%22strange%22%20%5Cname%0A?socket=nbd.sock",
    ]);
    run(&mut { info }, LIMIT).success();
    let used = [("export", strange), ("command", "read")];
    wait_until("the other export was read", LIMIT, || {
        serving.scrape()["nbd_requests_total"].sum("", &used) > 0.0
    });
}

#[test]
fn those_who_may_not_connect_are_counted() {
    let serving = Serving::start(&["--allow-user", "4000000000", "memory:1M"]);
    for _ in 0..3 {
        let mut wire = UnixStream::connect(serving.path("nbd.sock")).unwrap();
        assert_eq!(wire.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    }
    wait_until("three are counted", LIMIT, || {
        serving.scrape()["nbd_connections_denied_total"].sum("", &[]) == 3.0
    });
    assert_eq!(serving.scrape()["nbd_connections_accepted_total"].sum("", &[]), 0.0);
}

#[test]
fn only_metrics_are_there_and_only_to_be_read() {
    let serving = Serving::start(&["memory:1M"]);
    for (request, says) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "http/1.1 404"),
        ("GET /metrics/x HTTP/1.1\r\nHost: x\r\n\r\n", "http/1.1 404"),
        ("GET /metrics?name=x HTTP/1.1\r\nHost: x\r\n\r\n", "http/1.1 200"),
        ("GET /metrics HTTP/1.0\r\n\r\n", "http/1.0 200"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", "http/1.1 405"),
        ("nonsense\r\n\r\n", "http/1.1 400"),
    ] {
        let (header, _) = serving.http(request);
        assert!(header.starts_with(says), "{request}: {header}");
    }
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100 << 10));
    let mut stream = UnixStream::connect(serving.path("metrics.sock")).unwrap();
    // It may be refused before all of it is sent.
    let _refused = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _reset = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    serving.scrape();
}

#[test]
fn silent_and_slow_scrapers_and_control_clients_hold_up_nobody() {
    let serving = Serving::start(&["memory:1M"]);
    let connect = |name: &str| UnixStream::connect(serving.path(name)).unwrap();
    let mut held: Vec<UnixStream> = Vec::new();
    for _ in 0..40 {
        held.push(connect("metrics.sock"));
        let mut slow = connect("metrics.sock");
        slow.write_all(b"GET /metrics HTTP/1.1\r\nHo").unwrap();
        held.push(slow);
        let mut unread = connect("metrics.sock");
        unread.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        held.push(unread);
    }
    for _ in 0..100 {
        held.push(connect("control.sock"));
    }
    assert_eq!(serving.scrape()["nbd_connections"].sum("", &[]), 0.0);
    assert_eq!(serving.status()["connections"]["current"], 0);
    let mut client = serving.client(Mode::Simple);
    client.read(0, 512);
    client.finish();
    drop(held);
}

#[test]
fn a_signal_logs_a_summary() {
    let serving = Serving::start(&["disk=memory:1M"]);
    let mut client = RawClient::go_in(Mode::Simple, &Endpoint::Unix(serving.path("nbd.sock")));
    client.read(0, 4096);
    client.finish();
    serving.wait_for_the_clients();
    let pid = Pid::from_raw(serving.process.id() as i32).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
    wait_until("the summary is logged", LIMIT, || serving.process.stderr().contains("disk"));
    let text = serving.process.stderr();
    assert!(text.contains("connections: 0 of 1024, 1 accepted, 0 refused; buffers: "), "{text}");
    let row = text.lines().find(|line| line.contains("disk")).expect("a row");
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words[..8], ["nbd:", "disk", "read", "1", "0", "0", "4.0", "KiB"], "{text}");
}

#[test]
fn status_shows_clients_and_exports_and_a_client_can_be_disconnected() {
    let serving = Serving::start(&["disk=memory:1M", "more=memory:2M"]);
    let mut client = serving.client(Mode::Structured);
    client.read(0, 4096);
    let mut other = serving.client(Mode::Simple);
    other.write(0, &[1; 512]);
    let mut status = Value::Null;
    wait_until("both clients are shown as idle", LIMIT, || {
        status = serving.status();
        let clients = status["clients"].as_array().unwrap();
        clients.len() == 2 && clients.iter().all(|it| it["requests"] == 1 && it["in_flight"] == 0)
    });
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["pid"], serving.process.id());
    let [disk, more] = &status["exports"].as_array().unwrap()[..] else { panic!("{status}") };
    assert_eq!((&disk["name"], &disk["size"]), (&"disk".into(), &(1 << 20).into()));
    assert_eq!((&disk["read_bytes"], &disk["written_bytes"]), (&4096.into(), &512.into()));
    assert_eq!((&disk["clients"], &disk["requests"]), (&2.into(), &2.into()));
    assert_eq!((&more["size"], &more["requests"]), (&(2 << 20).into(), &0.into()));
    let first = &status["clients"][0];
    assert_eq!((&first["export"], &first["tls"]), (&"disk".into(), &Value::Null));
    assert!(first["peer"].as_str().unwrap().contains("unix socket"), "{first}");

    let words = ["status", "--interval", "1ms", "control.sock"];
    let text = run(&mut serving.nbd(&words), LIMIT).success();
    for says in ["connections: 2 of 1024; 2 accepted", "EXPORT", "disk", "1.0 MiB", "CLIENT", "0/s"]
    {
        assert!(text.contains(says), "{says:?} is not in: {text}");
    }

    let id = first["id"].to_string();
    run(&mut serving.nbd(&["disconnect", "control.sock", &id]), LIMIT).success();
    assert!(client.next_reply().is_none(), "the connection is closed");
    other.read(0, 512);
    other.finish();
    serving.wait_for_the_clients();
    let refused = run(&mut serving.nbd(&["disconnect", "control.sock", &id]), LIMIT);
    assert!(refused.failure().contains("there is no client"));
}

#[cfg(feature = "tls")]
#[test]
fn status_shows_what_clients_have_proved_by_tls() {
    let pki = tempfile::tempdir().unwrap();
    let folder = pki.path().to_str().unwrap();
    run(Command::new(nbd_binary()).args(["cert", "--client", "alice", folder]), LIMIT).success();
    let serving = Serving::start(&[
        "--tls=require",
        "--tls-verify-peer",
        "--tls-certificates",
        folder,
        "disk=memory:1M",
    ]);
    let uri = "nbds+unix:///disk?socket=nbd.sock";
    let words = ["bench", "--time", "10m", "--depth", "1", "--tls-certificates", folder, uri];
    let mut client = Background::spawn(&mut serving.nbd(&words)).unwrap();
    let mut status = Value::Null;
    wait_until("the client is shown with its export", LIMIT, || {
        status = serving.status();
        status["clients"][0]["export"] == "disk"
    });
    assert_eq!(status["clients"][0]["tls"], serde_json::json!(["alice"]), "{status}");
    let text = run(&mut serving.nbd(&["status", "--interval", "0", "control.sock"]), LIMIT);
    assert!(text.success().contains("alice"));
    client.terminate();
    client.wait_exit(LIMIT).expect("it ends");
}

#[test]
fn status_goes_on_while_it_watches_and_ends_with_the_server() {
    let serving = Serving::start(&["memory:1M"]);
    let words = ["status", "--json", "--watch", "--interval", "1ms", "control.sock"];
    let mut watching = Background::spawn(&mut serving.nbd(&words)).unwrap();
    for _ in 0..3 {
        let line = watching.next_line(LIMIT).expect("a line");
        let status: Value = serde_json::from_str(&line).unwrap();
        assert!(status["traffic"]["sent_bytes_per_second"].is_number(), "{line}");
    }
    serving.process.terminate();
    while watching.next_line(LIMIT).is_some() {}
    assert_eq!(watching.wait_exit(LIMIT).expect("it ends").code(), Some(1));
}

#[test]
fn exports_are_added_and_removed_while_the_server_runs() {
    let serving = Serving::start(&["disk=memory:1M"]);
    std::fs::write(serving.path("file.img"), vec![7; 4096]).unwrap();
    let change = |words: &[&str]| {
        let all = [&["export", "control.sock"][..], words].concat();
        run(&mut serving.nbd(&all), LIMIT)
    };
    assert_eq!(change(&["add", "--read-only", "more=file.img"]).success(), "");
    let names = |status: &Value| {
        let exports = status["exports"].as_array().unwrap().iter();
        let served = exports.filter(|export| !export["size"].is_null());
        served.map(|export| export["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&serving.status()), ["disk", "more"]);
    let uri = "nbd+unix:///more?socket=nbd.sock";
    let info = run(&mut serving.nbd(&["info", "--json", uri]), LIMIT).success();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");
    assert_eq!(info["exports"][0]["export-size"], 4096, "{info}");
    assert!(change(&["add", "more=memory:1M"]).failure().contains("cannot add the export: "));
    assert!(change(&["add", "x=no/such/file"]).failure().contains("no/such/file"));
    assert_eq!(change(&["remove", "more"]).success(), "");
    assert_eq!(names(&serving.status()), ["disk"]);
    assert!(change(&["remove", "more"]).failure().contains("export 'more' is not served"));
    for (add, known, unknown) in
        [("all=dir:.", ["all", "all/"], "all/x"), ("dir:.", ["/", "/"], "x")]
    {
        for name in known {
            assert_eq!(change(&["add", add]).success(), "");
            let refused = change(&["remove", unknown]).failure();
            assert!(refused.contains("move it elsewhere, or remove the directory"), "{refused}");
            assert_eq!(change(&["remove", name]).success(), "");
            let refused = change(&["remove", name]).failure();
            assert!(refused.contains("see which exports are"), "{refused}");
        }
    }
    let reload = run(&mut serving.nbd(&["reload", "control.sock"]), LIMIT);
    assert!(reload.failure().contains("has no configuration file"));
}

/// Paths are those of the folder that the command runs in, which need not be the server's.
#[test]
fn an_export_is_added_with_layers_around_it() {
    let serving = Serving::start(&["disk=memory:1M"]);
    let folder = serving.path("folder");
    std::fs::create_dir(&folder).unwrap();
    for name in ["file.img", "other.img"] {
        std::fs::write(folder.join(name), vec![7; 4096]).unwrap();
    }
    let add = |words: &[&str]| {
        let control = serving.path("control.sock");
        let mut command = Command::new(nbd_binary());
        command.args(["export", control.to_str().unwrap(), "add"]).args(words);
        run(command.current_dir(&folder), LIMIT)
    };
    let layers = ["--layer", "offset:1k", "--layer", "overlay:over", "--layer=log:requests"];
    assert_eq!(add(&[&layers[..], &["more=file.img"]].concat()).success(), "");
    let uri = "nbd+unix:///more?socket=nbd.sock";
    let info = run(&mut serving.nbd(&["info", "--json", uri]), LIMIT).success();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["exports"][0]["export-size"], 3072, "{info}");
    assert_eq!(info["exports"][0]["is_read_only"], false, "{info}");
    assert!(folder.join("over").exists() && folder.join("requests").exists());
    let again = add(&["--layer", "overlay:over", "again=other.img"]).failure();
    assert!(again.contains("'more' and 'again' would both write to the overlay"), "{again}");
    let refused = add(&["--layer", "readonly", "x=other.img"]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(
        refused.stderr.contains("--layer 'readonly': 'readonly' is not a layer"),
        "{}",
        refused.stderr
    );
    let refused = add(&["--layer", "partition:1", "x=other.img"]).failure();
    assert!(refused.contains("cannot add the export: layer partition:1: "), "{refused}");
}

#[test]
fn a_reload_says_what_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let file = |exports: &str| {
        let listen = "[server]\ncontrol = 'control.sock'\n[[listen]]\nunix = 'nbd.sock'\n";
        std::fs::write(dir.path().join("nbd.toml"), format!("{listen}{exports}")).unwrap();
    };
    let nbd = |words: &[&str]| {
        let mut command = Command::new(nbd_binary());
        command.args(words).current_dir(dir.path());
        command
    };
    file("[[export]]\nname = 'a'\nmemory = '1M'\n");
    let server = Background::spawn(&mut nbd(&["serve", "--config", "nbd.toml"])).unwrap();
    assert!(server.next_line(LIMIT).is_some(), "{}", server.stderr());
    file("[[export]]\nname = 'b'\nmemory = '1M'\n[[export]]\nname = ''\nmemory = '2M'\n");
    let reloaded = run(&mut nbd(&["reload", "control.sock"]), LIMIT).success();
    assert_eq!(reloaded, "added b\nadded (default)\nremoved a\n");
    file("[[export]]\nname = 7\n");
    let failed = run(&mut nbd(&["reload", "control.sock"]), LIMIT).failure();
    assert!(failed.contains("cannot read the configuration again: "), "{failed}");
}

#[test]
fn addresses_for_metrics_that_can_not_be_are_refused_with_a_remedy() {
    for (address, code, says) in [
        ("http://localhost", 64, "unix:PATH"),
        ("65536", 64, "unix:PATH"),
        ("unix:no/such/folder/sock", 1, "make the folder first"),
        ("192.0.2.1:1", 1, "--metrics"),
    ] {
        let mut command = Command::new(nbd_binary());
        let finished = run(command.args(["serve", "--port", "0", "--metrics", address]), LIMIT);
        assert_eq!(finished.status.code(), Some(code), "{address}: {}", finished.stderr);
        assert!(finished.stderr.contains(says), "{address}: {}", finished.stderr);
    }
}

/// What is watched is there before anything happens, so that a rule about it has something to compare.
#[test]
fn an_export_has_its_connections_before_the_first_client() {
    let serving = Serving::start(&["a=memory:1M", "b=memory:2M"]);
    let of = |export: &str| {
        let (_, body) = serving.http("GET /metrics HTTP/1.1\r\nHost: nbd\r\n\r\n");
        let start = format!("nbd_export_connections{{export=\"{export}\"}} ");
        let mut values = body.lines().filter_map(|line| line.strip_prefix(&*start));
        let value = values.next().map(str::to_owned);
        assert_eq!(values.next(), None);
        value
    };
    assert_eq!((of("a").as_deref(), of("b").as_deref(), of("c")), (Some("0"), Some("0"), None));
    let add = ["export", "control.sock", "add", "c=memory:1M"];
    let mut add = Command::new(nbd_binary()).args(add).current_dir(serving.dir.path()).spawn();
    assert!(add.as_mut().unwrap().wait().unwrap().success());
    assert_eq!(of("c").as_deref(), Some("0"));
    let mut client = RawClient::negotiate(&Endpoint::Unix(serving.path("nbd.sock")));
    client.go("b", &[]).unwrap();
    wait_until("it is counted", LIMIT, || of("b").as_deref() == Some("1"));
    assert_eq!(of("a").as_deref(), Some("0"));
    client.finish();
    wait_until("it is gone", LIMIT, || of("b").as_deref() == Some("0"));
}

/// The names of metrics in a text: all words that begin like one.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let own = |word: &&str| word.starts_with("nbd_") || word.starts_with("process_");
    words.filter(own).map(str::to_owned).collect()
}

#[test]
fn the_page_has_all_metrics_and_no_others() {
    let serving = Serving::start(&["memory:1M"]);
    let metrics = serving.scrape();
    let page = std::fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    let rows: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.split('{').next().unwrap_or(name).to_owned())
        .filter(|name| name.starts_with("nbd_") || name.starts_with("process_"))
        .collect();
    let exposed: BTreeSet<String> = metrics.keys().cloned().collect();
    assert_eq!(rows, exposed);
    for (name, Metric { kind, .. }) in &metrics {
        let row = page.lines().find(|line| {
            line.strip_prefix("| `")
                .and_then(|rest| rest.strip_prefix(name.as_str()))
                .is_some_and(|rest| rest.starts_with(['`', '{']))
        });
        assert!(row.unwrap().contains(&format!("| {kind} |")), "{name} is a {kind}: {row:?}");
    }
    known(&names_in(&page), &metrics);
}

/// Fails if one of the names is no metric, nor a sample of a histogram.
#[track_caller]
fn known(names: &BTreeSet<String>, metrics: &BTreeMap<String, Metric>) {
    for name in names {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|ending| {
            let metric = name.strip_suffix(ending).and_then(|name| metrics.get(name));
            metric.is_some_and(|metric| metric.kind == "histogram")
        });
        assert!(of_histogram || metrics.contains_key(name), "there is no metric {name}");
    }
}

#[test]
fn the_dashboard_draws_metrics_that_there_are() {
    let serving = Serving::start(&["memory:1M"]);
    let text = std::fs::read_to_string(root().join("docs/grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(panel["title"].is_string() && panel["gridPos"].is_object(), "{panel}");
        for target in panel["targets"].as_array().expect("targets") {
            expressions.push(target["expr"].as_str().expect("an expression").to_owned());
        }
    }
    assert!(expressions.len() >= 10, "{expressions:?}");
    let metrics = serving.scrape();
    for expression in &expressions {
        let names = names_in(expression);
        assert!(!names.is_empty(), "{expression} draws nothing");
        known(&names, &metrics);
        let open = |c| expression.matches(c).count();
        assert!(open('(') == open(')') && open('{') == open('}'), "{expression}");
    }
}
