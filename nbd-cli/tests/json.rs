//! `--json`: what commands write has the members that docs/json.md lists, and the page lists no others.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::process::run;
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport, nbd_binary};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const SETUP: Setup = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };

/// The members of a document by their paths, without the objects and arrays that hold others.
fn members(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                members(value, &format!("{path}{dot}{name}"), found);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            values.iter().for_each(|value| members(value, &format!("{path}[]"), found));
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// The members that the page lists under the heading of a command.
fn listed(command: &str) -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once(&format!("\n## `{command}`\n")).expect("a heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split(" | ").next().unwrap_or_default());
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.map(str::to_owned).collect()
}

/// What a command writes with `--json`.
#[track_caller]
fn json(words: &[&str]) -> Value {
    let text = run(Command::new(nbd_binary()).args(words).arg("--json"), SOON).success();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
}

/// Documents of one command that have, together, all the members that the page lists and no others.
#[track_caller]
fn has_what_is_listed(command: &str, documents: &[&Value]) {
    let mut found = BTreeSet::new();
    documents.iter().for_each(|document| members(document, "", &mut found));
    assert_eq!(found, listed(command), "{command}");
}

fn serving(args: &[&str]) -> NbdServe {
    SETUP.serve().args(args.iter().copied()).start()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

#[test]
fn resize_writes_both_sizes() {
    let server = serving(&["--resize", "memory:1M"]);
    let document = json(&["resize", &server.uri(""), "+1M"]);
    assert_eq!(document["size"], 2 << 20);
    assert_eq!(document["previous-size"], 1 << 20);
    has_what_is_listed("nbd resize", &[&document]);
}

#[test]
fn comparisons_have_their_members() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, b"disk").unwrap();
    has_what_is_listed("nbd compare", &[&json(&["compare", text(&path), text(&path)])]);
}

#[test]
fn maps_and_dumps_have_their_members() {
    let server = serving(&["memory:1M"]);
    let uri = server.uri("");
    let map = json(&["map", &uri]);
    let totals = json(&["map", "--totals", &uri]);
    has_what_is_listed("nbd map", &[&map, &totals]);
    has_what_is_listed("nbd dump", &[&json(&["dump", &uri])]);
}

/// An export with a partition, so that all is there that can be.
#[test]
fn info_has_its_members() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let mut disk = vec![0_u8; 1 << 20];
    disk[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&path, disk).unwrap();
    let disk = format!("disk={}", text(&path));
    let server = serving(&["--description", "a text", &disk]);
    let partitioned = json(&["info", &server.uri("disk")]);
    // The header of a swap area.
    let mut swap = vec![0_u8; 1 << 20];
    swap[1024] = 1;
    swap[1028] = 255;
    swap[4086..4096].copy_from_slice(b"SWAPSPACE2");
    std::fs::write(folder.path().join("swap.img"), swap).unwrap();
    let swap = json(&["info", &serving(&[text(&folder.path().join("swap.img"))]).uri("")]);
    assert_eq!(swap["exports"][0]["contents"]["type"], "swap");
    let mut found = BTreeSet::new();
    [&partitioned, &swap].iter().for_each(|one| members(one, "", &mut found));
    // A program that need not be there.
    found.insert("exports[].content".into());
    let mut expected = listed("nbd info");
    expected.remove("exports[].contents");
    assert_eq!(found, expected);
}

#[test]
fn bitmaps_and_reloads_have_their_members() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let control = text(&control);
    let config = folder.path().join("nbd.toml");
    let socket = folder.path().join("nbd.sock");
    let exports = |names: &[&str]| {
        let mut lines = format!(
            "[server]\ncontrol = \"{control}\"\n[[listen]]\nunix = \"{}\"\n",
            text(&socket)
        );
        for name in names {
            lines.push_str(&format!(
                "[[export]]\nname = \"{name}\"\nmemory = \"1M\"\ntrack = [\"monday\"]\n"
            ));
        }
        std::fs::write(&config, lines).unwrap();
    };
    exports(&["a", "b"]);
    let mut command = Command::new(nbd_binary());
    command.args(["serve", "--config", text(&config)]);
    let server = nbd_testkit::process::Background::spawn(&mut command).unwrap();
    assert!(server.next_line(SOON).is_some(), "{}", server.stderr());
    let bitmaps = json(&["bitmap", control, "list"]);
    assert_eq!(bitmaps, serde_json::json!([{ "name": "monday" }]));
    has_what_is_listed("nbd bitmap list", &[&bitmaps]);
    exports(&["b", "c"]);
    let changes = json(&["reload", control]);
    assert_eq!(changes["added"], serde_json::json!(["c"]));
    assert_eq!(changes["removed"], serde_json::json!(["a"]));
    has_what_is_listed("nbd reload", &[&changes]);
}

#[test]
fn overlays_have_their_members() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (base, overlay) = (path("base.img"), path("overlay"));
    std::fs::write(&base, vec![1; 1 << 20]).unwrap();
    let mut server = serving(&["--layer", &format!("overlay:{overlay}"), &base]);
    std::fs::write(path("data"), vec![2; 1 << 20]).unwrap();
    let words = ["copy", "--flush", &path("data"), &server.uri("")];
    run(Command::new(nbd_binary()).args(words), SOON).success();
    server.terminate();
    assert!(server.wait_exit(SOON).is_some());
    let info = json(&["overlay", "info", &overlay]);
    assert_eq!((&info["present"], &info["committing"]), (&(1 << 20).into(), &false.into()));
    has_what_is_listed("nbd overlay info", &[&info]);
    let commit = json(&["overlay", "commit", &overlay, &base]);
    assert_eq!((&commit["written"], &commit["zeroed"]), (&(1 << 20).into(), &0.into()));
    has_what_is_listed("nbd overlay commit", &[&commit]);
}

#[test]
#[cfg(feature = "tls")]
fn certificates_have_their_members() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let document = json(&["cert", text(&path), "--name", "disks.example.org"]);
    assert_eq!(document["server"]["names"], serde_json::json!(["disks.example.org"]));
    for file in ["/authority", "/server/certificate", "/server/key", "/client/certificate"] {
        let path = document.pointer(file).and_then(Value::as_str).expect("a path");
        assert!(Path::new(path).is_file(), "{path}");
    }
    has_what_is_listed("nbd cert", &[&document]);
}
