//! What the pages say beyond the help: exit statuses, the environment, examples, other pages.

use crate::exit;

/// A section that is the same on every page.
pub(super) struct Section {
    pub(super) heading: &'static str,
    /// Words, and what they mean.
    pub(super) entries: &'static [(&'static str, &'static str)],
}

pub(super) const fn exit_status() -> Section {
    Section { heading: "EXIT STATUS", entries: exit::CODES }
}

pub(super) const fn environment() -> Section {
    Section {
        heading: "ENVIRONMENT",
        entries: &[
            (
                "NO_COLOR",
                "If it is set and not empty, there are no colours unless --color asks for them.",
            ),
            (
                "LISTEN_FDS, LISTEN_PID",
                "Sockets that nbd serve takes in place of its own, as systemd's socket activation passes them.",
            ),
            (
                "NOTIFY_SOCKET",
                "Where nbd serve says that it is ready, reloads or ends, as systemd sets it; see sd_notify(3).",
            ),
            (
                "NBD_LOG",
                "What is logged on standard error: warn, info, debug or trace. nbd serve and nbd copy take the more verbose of this \
                 and -v; nbd info, list, map, dump, compare, bench and resize log nothing without it.",
            ),
            ("NBD_SSH", "The program that nbd+ssh:// URIs run in place of ssh."),
            (
                "TMPDIR",
                "Where the private socket of a server between brackets is made; /tmp by default.",
            ),
            (
                "NBD_VOLUME_KEY_FILE",
                "The file with the key of an encrypted volume, for nbd serve and nbd volume of a build with volumes.",
            ),
            ("USER, LOGNAME", "The user of a pre-shared key, if the URI names none."),
        ],
    }
}

/// Other programs' pages.
pub(super) const SEE_ALSO: &[(&str, &str)] = &[
    ("nbdkit", "1"),
    ("nbdinfo", "1"),
    ("nbdcopy", "1"),
    ("qemu-nbd", "8"),
    ("qemu-img", "1"),
    ("nbd-client", "8"),
];

/// What a command is used for, and the command lines for that. The name of the whole is `nbd`.
pub(crate) fn examples(command: &str) -> &'static [(&'static str, &'static str)] {
    match command {
        crate::NAME => &[
            ("Serve a file on this machine:", "nbd serve disk.img"),
            ("Look at what is served:", "nbd info nbd://localhost"),
            ("Copy it to another file:", "nbd copy nbd://localhost copy.img"),
        ],
        "serve" => &[
            ("Serve a file to this machine, on 127.0.0.1:10809:", "nbd serve disk.img"),
            (
                "Serve two disks on a Unix socket, each under a name:",
                "nbd serve --unix /run/nbd.sock system=disk.img scratch=memory:1G",
            ),
            (
                "Serve each file of a directory for reading, by its name:",
                "nbd serve --read-only dir:/srv/images",
            ),
            #[cfg(feature = "volume")]
            (
                "Serve an image that lies on a web server or in a bucket, for reading:",
                "nbd serve https://cloud.example.org/images/debian.raw",
            ),
            (
                "Serve a block device to others for reading, encrypted:",
                "nbd serve --read-only --ip-addr :: --tls require --tls-certificates /etc/pki/nbd /dev/vg/disk",
            ),
            (
                "Replace the server that was started with --control nbd.control, without refusing a client:",
                "nbd serve --take-over nbd.control disk.img",
            ),
            (
                "Run a command on a disk in memory, and end with it:",
                "nbd serve memory:1G --run 'nbd copy disk.img \"$uri\" && nbd info \"$uri\"'",
            ),
        ],
        "info" => &[
            ("Show size, flags and contexts of an export:", "nbd info nbd://localhost/disk"),
            (
                "Look at an image of another format by the server of its format:",
                "nbd info [ qemu-nbd -r -f qcow2 disk.qcow2 ]",
            ),
            (
                "Ask in a script whether it can be written:",
                "nbd info --can write nbd://localhost/disk",
            ),
        ],
        "list" => &[("Show all exports of a server:", "nbd list nbd://localhost")],
        "map" => &[
            ("Show how much of an export is data:", "nbd map --totals nbd://localhost/disk"),
            (
                "Show what was changed since a backup began:",
                "nbd map --context qemu:dirty-bitmap:monday nbd://localhost/disk",
            ),
        ],
        "dump" => &[("Show the first sector of a disk:", "nbd dump nbd://localhost/disk 0 512")],
        "copy" => &[
            ("Copy an export to a file, with its holes:", "nbd copy nbd://localhost/disk disk.img"),
            (
                "Copy between servers, with a line of progress:",
                "nbd copy --progress nbd://old/disk nbd://new/disk",
            ),
        ],
        "compare" => &[
            ("Compare a file with what a server has:", "nbd compare disk.img nbd://localhost/disk"),
            (
                "Compare a raw image with one of another format:",
                "nbd compare disk.img [ qemu-nbd -r -f qcow2 disk.qcow2 ]",
            ),
        ],
        "bench" => &[
            (
                "Measure how fast blocks of 4 KiB are read at random, for 10 seconds:",
                "nbd bench nbd://localhost/disk",
            ),
            (
                "Measure writes of 1 MiB over 4 connections, to an export that nobody needs:",
                "nbd bench --rw write --bs 1M --connections 4 --destructive nbd://localhost/scratch",
            ),
        ],
        "resize" => {
            &[("Make an export one gibibyte larger:", "nbd resize nbd://localhost/disk +1G")]
        }
        "attach" => &[
            (
                "Mount an export, over restarts of its server:",
                "nbd attach --persist nbd://localhost/disk",
            ),
            (
                "The same for an image that qemu knows:",
                "nbd attach [ qemu-nbd -f qcow2 disk.qcow2 ]",
            ),
        ],
        "detach" => &[("End that:", "nbd detach /dev/nbd0")],
        "devices" => &[("What is attached, for programs:", "nbd devices --json")],
        "volume" => &[
            (
                "Make a volume of 10 GiB in a bucket, to be served by nbd serve volume:s3://bucket/volumes/mail:",
                "nbd volume create s3://bucket/volumes/mail --size 10G",
            ),
            (
                "Keep what it holds now, to be served by nbd serve volume:s3://bucket/volumes/mail@monday:",
                "nbd volume snapshot s3://bucket/volumes/mail monday",
            ),
        ],
        "overlay" => &[
            ("Show how much an overlay has:", "nbd overlay info today.overlay"),
            ("Bring it into its disk:", "nbd overlay commit today.overlay disk.img"),
        ],
        "bitmap" => &[
            ("Begin to record changes:", "nbd bitmap /run/nbd-control.sock start monday"),
            ("Forget them after a backup:", "nbd bitmap /run/nbd-control.sock clear monday"),
        ],
        "export" => &[
            (
                "Serve one more file:",
                "nbd export /run/nbd-control.sock add scratch=/srv/scratch.img",
            ),
            (
                "Serve a part of a disk, at most 20 MiB a second of it:",
                "nbd export /run/nbd-control.sock add --layer offset:1M,length=1G --layer rate:20M \
                 part=/srv/disk.img",
            ),
            ("Serve it no longer:", "nbd export /run/nbd-control.sock remove scratch"),
        ],
        "reload" => {
            &[("Have the configuration file read again:", "nbd reload /run/nbd-control.sock")]
        }
        "status" => &[
            ("Show clients and exports of a server:", "nbd status /run/nbd-control.sock"),
            ("Watch them:", "nbd status --watch --interval 5s /run/nbd-control.sock"),
        ],
        "disconnect" => {
            &[("Disconnect the client of number 7:", "nbd disconnect /run/nbd-control.sock 7")]
        }
        "cert" => &[
            (
                "Make certificates for a server with two names:",
                "nbd cert /etc/pki/nbd --name disks.example.org --name 192.0.2.7",
            ),
            ("Replace them by new ones of the same authority:", "nbd cert /etc/pki/nbd --renew"),
        ],
        "psk" => &[("Add a user with a new key:", "nbd psk /etc/nbd/keys.psk alice")],
        "completion" => &[(
            "Have bash complete nbd's command lines from now on:",
            "nbd completion bash > ~/.local/share/bash-completion/completions/nbd",
        )],
        "man" => {
            &[("Install the manual pages for oneself:", "nbd man --dir ~/.local/share/man/man1")]
        }
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::target;

    /// The words of a line, up to where it is redirected.
    fn words(line: &str) -> Vec<std::ffi::OsString> {
        let line = line.split(" > ").next().unwrap_or(line);
        target::arguments(line.split(' ').map(std::ffi::OsString::from))
    }

    #[test]
    fn every_command_has_examples_and_all_are_understood() {
        let command = crate::Cli::command();
        let names = command.get_subcommands().map(|one| one.get_name().to_owned());
        for name in names.chain([crate::NAME.to_owned()]) {
            assert!(!examples(&name).is_empty(), "{name}");
            for (_, line) in examples(&name) {
                if name != crate::NAME {
                    assert!(line.starts_with(&format!("nbd {name} ")), "{line}");
                }
                if let Err(error) = crate::Cli::try_parse_from(words(line)) {
                    panic!("{line}: {error}");
                }
            }
        }
    }
}
