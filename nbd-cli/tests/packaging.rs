//! The files of the package: units and the configuration that comes with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::server::nbd_binary;

const LIMIT: Duration = Duration::from_secs(60);

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn unit(name: &str) -> String {
    fs::read_to_string(packaging("systemd").join(name)).unwrap()
}

#[test]
fn an_instance_is_the_service_of_another_configuration() {
    let one = unit("nbd-serve.service");
    let instance = unit("nbd-serve@.service");
    let changes = [
        ("nbd/nbd.toml", "nbd/%i.toml"),
        ("NBD server", "NBD server %i"),
        // A tenant's server can't open what is another one's.
        ("=_nbd\n", "=_nbd-%i\n"),
        ("=nbd\n", "=nbd-%i\n"),
        ("run/nbd.", "run/nbd-%i."),
        ("run/nbd/", "run/nbd-%i/"),
        ("lib/nbd.", "lib/nbd-%i."),
    ];
    let renamed = changes.iter().fold(one, |text, (from, to)| text.replace(from, to));
    for (line, other) in renamed.lines().zip(instance.lines()) {
        // Paths in comments end in other signs.
        if !line.starts_with('#') {
            assert_eq!(line, other);
        }
    }
    assert_eq!(renamed.lines().count(), instance.lines().count());
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    if peers::require("systemd-analyze").is_none() {
        return;
    }
    let names = ["nbd-serve.service", "nbd-serve.socket", "nbd-serve@.service"];
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=no"]);
    let finished = run(command.args(names.map(|name| packaging("systemd").join(name))), LIMIT);
    // The command need not be installed here.
    let installed = |line: &&str| !line.contains("Command /usr/bin/nbd is not executable");
    let told: Vec<&str> = finished.stderr.lines().filter(installed).collect();
    let ours: Vec<&&str> = told.iter().filter(|line| line.contains("nbd-serve")).collect();
    assert!(ours.is_empty(), "{told:#?}");
}

#[test]
fn systemd_finds_the_service_well_confined() {
    if peers::require("systemd-analyze").is_none() {
        return;
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--no-pager", "--threshold=20"]);
    // At most 2.0 of 10, where it would fail.
    run(command.arg(packaging("systemd").join("nbd-serve.service")), LIMIT).success();
}

#[test]
fn the_configuration_of_the_package_is_good_when_it_has_an_export() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.toml");
    let text = fs::read_to_string(packaging("nbd.toml")).unwrap();
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        run(Command::new(nbd_binary()).args(["serve", "--check", "--config"]).arg(&path), LIMIT)
    };
    let says = check(&text).failure();
    assert!(says.contains("there is nothing to serve"), "{says}");
    // All that it shows, uncommented.
    let disk = folder.path().join("disk.img");
    fs::write(&disk, [0; 4096]).unwrap();
    let pki = folder.path().join("pki");
    run(Command::new(nbd_binary()).arg("cert").arg(&pki), LIMIT).success();
    let setting =
        |line: &str| line.starts_with("#[[") || line.starts_with("#[") || line.contains(" = ");
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| if setting(line) { line.trim_start_matches('#') } else { line })
        .collect();
    let text = uncommented.join("\n").replace("/var/lib/nbd/disk.img", &disk.display().to_string());
    let text = text.replace("/etc/nbd/pki", &pki.display().to_string());
    // Another test may have that port, and only the service has the folder of the control socket.
    let text = text.replace(":10809", ":0");
    let finished = check(&text);
    assert!(finished.stderr.lines().all(|line| line.contains("/run/nbd/")), "{}", finished.stderr);
    assert_eq!(finished.success(), "", "{text}");
}
