//! The commands of the pages outside of their `console` blocks: those that are typed on several machines, as root, or one
//! by one. Each is run, by its row here or by another test, or has a reason why it is not.

use crate::{Step, check_steps, root};

/// What becomes of a command.
enum How {
    /// It ends, with success.
    Ends,
    /// It serves, and says where.
    Serves,
    /// It is not run, or elsewhere.
    Not(&'static str),
}

use How::{Ends, Not, Serves};

const ATTACH: &str = "takes root and the kernel's client: internal/guest/scenarios/attach.sh";
const BACKUP: &str = "tests/serve_track.rs";
const REPLACE: &str = "tests/serve/replace_page.rs";
const OBJECTS: &str = "takes a store that others run: tests/volume.rs";
const TENANTS: &str = "takes root and systemd: internal/release/tenants-trial";

/// The commands of each page, in order, as they stand there.
const TYPED: &[(&str, &[(&str, How)])] = &[
    ("README.md", &[("cargo run -r -- serve", Serves)]),
    (
        "docs/attach.md",
        &[
            ("nbd attach nbd://server/disk", Not(ATTACH)),
            ("nbd devices", Not(ATTACH)),
            ("nbd detach /dev/nbd0", Not(ATTACH)),
            ("nbd attach --persist nbd://server/disk >device &", Not(ATTACH)),
            ("nbd resize nbd://server/disk +10G", Not(ATTACH)),
        ],
    ),
    (
        "docs/incremental-backup.md",
        &[
            ("nbd serve -U nbd.sock --control nbd.control disk.img", Not(BACKUP)),
            ("nbd bitmap nbd.control start monday", Not(BACKUP)),
            ("nbd bitmap nbd.control start \"$new\"", Not(BACKUP)),
            ("nbd map -c \"qemu:dirty-bitmap:$old\" \"$uri\" >\"$new.map\"", Not(BACKUP)),
            ("nbd bitmap nbd.control stop \"$old\"", Not(BACKUP)),
        ],
    ),
    (
        "docs/migrate.md",
        &[
            ("nbd volume create s3://BUCKET/VOLUME --size 50G", Not(OBJECTS)),
            ("nbd copy nbd://OLD-SERVER/ [ nbd serve volume:s3://BUCKET/VOLUME ]", Not(OBJECTS)),
        ],
    ),
    (
        "docs/operating.md",
        &[
            ("nbd cert /etc/nbd/acme --name 192.0.2.1 --client acme", Not(TENANTS)),
            ("nbd info --tls-certificates acme nbds://192.0.2.1/disk", Not(TENANTS)),
            (
                "nbd copy --retries 20 --tls-certificates acme disk.img nbds://192.0.2.1/disk",
                Not(TENANTS),
            ),
            ("nbd cert /etc/nbd/acme --renew && systemctl reload nbd-serve@acme", Not(TENANTS)),
        ],
    ),
    (
        "docs/replace.md",
        &[
            ("nbd serve --control nbd.control -U nbd.sock disk.img", Not(REPLACE)),
            ("nbd serve --take-over nbd.control --pid-file nbd.pid disk.img", Not(REPLACE)),
            ("nbd serve -U nbd.sock --ready-fd 3 disk.img 3>ready >/dev/null &", Not(REPLACE)),
        ],
    ),
    ("docs/tls.md", TLS),
    ("docs/volumes.md", VOLUMES),
];

const TLS: &[(&str, How)] = &[
    ("nbd cert pki --name 192.0.2.1", Ends),
    ("nbd serve --ip-addr 192.0.2.1 --tls-certificates pki --tls-verify-peer disk.img", Serves),
    ("nbd info --tls-certificates pki nbds://192.0.2.1/", Ends),
    ("nbd cert /etc/pki/nbd --name disks.example.org --name 192.0.2.7", Ends),
    ("nbd cert /etc/pki/nbd --add-client alice", Ends),
    ("nbd psk keys.psk alice", Ends),
    ("nbd serve --tls-psk keys.psk disk.img", Serves),
    ("nbd info --tls-psk keys.psk --tls-username alice nbds://disks.example.org/", Ends),
];

const VOLUMES: &[(&str, How)] = &[
    ("nbd volume create s3://bucket/volumes/mail --size 100G", Ends),
    ("nbd serve volume:s3://bucket/volumes/mail", Serves),
    ("nbd volume list s3://bucket/volumes", Ends),
    ("nbd volume info s3://bucket/volumes/mail", Ends),
    ("nbd volume resize s3://bucket/volumes/mail 200G", Ends),
    ("nbd volume snapshot s3://bucket/volumes/mail monday", Ends),
    ("nbd serve volume:s3://bucket/volumes/mail@monday", Serves),
    ("nbd volume clone s3://bucket/volumes/mail@monday s3://bucket/volumes/test", Ends),
    ("nbd volume check s3://bucket/volumes/mail", Ends),
    ("nbd volume delete s3://bucket/volumes/mail@monday", Ends),
    ("nbd volume create s3://bucket/volumes/secret --size 100G --encrypt", Ends),
    ("nbd serve volume:s3://bucket/volumes/secret", Serves),
    ("nbd serve --volume-cache /var/cache/nbd:20G volume:s3://bucket/volumes/test", Serves),
    ("nbd serve https://cloud.example.org/images/debian.raw", Not(OBJECTS)),
    ("nbd serve s3://bucket/images/disk.img", Not(OBJECTS)),
    ("nbd copy [ nbd serve s3://bucket/images/disk.img ] disk.img", Not(OBJECTS)),
];

/// The commands outside of what the `console` blocks run.
fn typed(page: &str) -> Vec<String> {
    let (mut found, mut fence) = (Vec::new(), None);
    for line in page.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(language) };
            continue;
        }
        let is_code = match fence {
            Some("console") => line.starts_with("# "),
            Some(language) => matches!(language, "" | "sh"),
            None => line.starts_with("    "),
        };
        let line = line.trim_start();
        let prompts = ["server$ ", "client$ ", "$ ", "# "];
        let line = prompts.iter().find_map(|prompt| line.strip_prefix(prompt)).unwrap_or(line);
        if is_code && (line.starts_with("nbd ") || line.starts_with("cargo run ")) {
            // Remarks stand behind two spaces.
            found.push(line.split("  ").next().unwrap_or_default().to_owned());
        }
    }
    found
}

/// A command of a page with paths, hosts and ports of this test, and no question.
fn here(command: &str) -> String {
    let mut command = command.to_owned();
    for (there, here) in [
        (" /etc/", " etc/"),
        ("//disks.example.org", "//127.0.0.1"),
        ("s3://bucket", "file://$PWD/bucket"),
        // Two servers of one machine.
        ("nbd serve volume:", "nbd serve --port 0 volume:"),
        ("nbd serve --volume-cache /var/cache", "nbd serve --port 0 --volume-cache $PWD"),
        ("nbd volume delete", "nbd volume delete --yes"),
    ] {
        command = command.replace(there, here);
    }
    // A key that is not needed is warned of.
    let key = if command.contains("/secret") { "NBD_VOLUME_KEY_FILE=$PWD/volume.key " } else { "" };
    format!("{key}{command}")
}

#[track_caller]
fn run_typed(page: &str) {
    let (_, rows) = TYPED.iter().find(|(name, _)| *name == page).expect("it has rows");
    let step = |command: String| Step { command, prints: vec!["...".into()] };
    let mut steps = vec![
        step("truncate -s 1M disk.img; mkdir bucket".into()),
        step("( umask 077; head -c 32 /dev/urandom >volume.key )".into()),
    ];
    for (command, how) in *rows {
        let command = here(command);
        match how {
            Ends => {
                steps.push(step(command));
                let status = Step { command: "echo $?".into(), prints: vec!["0".into()] };
                steps.push(status);
            }
            Serves => {
                let prints = vec!["nbd...://...".into()];
                steps.push(Step { command: format!("{command} &"), prints });
            }
            Not(_) => {}
        }
    }
    check_steps(page, &steps);
}

#[test]
fn each_typed_command_is_run_or_has_a_reason() {
    let entries = std::fs::read_dir(root().join("docs")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    let mut names: Vec<String> = names.collect();
    names.extend(["README.md".into(), "nbd-cli/README.md".into()]);
    for name in names {
        let page = std::fs::read_to_string(root().join(&name)).unwrap();
        let rows = TYPED.iter().find(|(page, _)| *page == name).map_or(&[][..], |(_, rows)| rows);
        let known: Vec<_> = rows.iter().map(|(command, _)| (*command).to_owned()).collect();
        assert_eq!(typed(&page), known, "{name}");
        for reason in rows.iter().filter_map(|(_, how)| match how {
            Not(reason) => reason.rsplit(' ').next(),
            Ends | Serves => None,
        }) {
            let found = [root(), root().join("nbd-cli")].iter().any(|at| at.join(reason).exists());
            assert!(found, "{name}: there is no {reason}");
        }
    }
}

#[test]
fn what_is_typed_of_the_front_page_runs() {
    run_typed("README.md");
}

#[test]
#[cfg(feature = "tls-psk")]
fn what_is_typed_of_the_page_about_tls_runs() {
    run_typed("docs/tls.md");
}

#[test]
#[cfg(feature = "volume")]
fn what_is_typed_of_the_page_about_volumes_runs() {
    run_typed("docs/volumes.md");
}
