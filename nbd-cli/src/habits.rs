//! Hints for those whose hands know nbdkit, qemu-nbd, nbd-server, nbd-client or nbdinfo.

#[cfg(test)]
mod tests;

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::feature;

/// What stands for a flag of another program: the subcommands in which it may be typed, the flag, what to do.
const FLAGS: &[(&str, &[&str], &str)] = &[
    ("serve", &["-f", "--foreground"], FOREGROUND),
    ("serve", &["--format", "--image-opts", "--load-snapshot"], AS_THEY_ARE),
    (
        "serve",
        &["-l"],
        "for qemu-nbd's -l: disks are served as they are, without image formats and their snapshots: keep qemu-nbd; \
         --allow CIDR for each line of the file of nbd-server's",
    ),
    (
        "serve",
        &["--fork"],
        "nbd serve does not go to the background: start it by systemd, or with & and --pid-file",
    ),
    (
        "serve",
        &["-d"],
        "nbd detach DEVICE for qemu-nbd's -d; for nbd-server's: nbd serve stays in the foreground, leave it out",
    ),
    ("serve", &["--dont-fork"], FOREGROUND),
    ("serve", &["--newstyle"], NEWSTYLE),
    (
        "serve",
        &["-n"],
        "leave it out: newstyle, nbdkit's -n, is the default; and of the cache, qemu-nbd's -n, there is nothing to choose",
    ),
    (
        "serve",
        &["-o"],
        "--oldstyle for nbdkit's -o; --layer offset for qemu-nbd's; --print-config for nbd-server's",
    ),
    (
        "serve",
        &["-4", "--ipv4-only", "-6", "--ipv6-only"],
        "give an address of that family: --ip-addr 127.0.0.1, or --ip-addr ::1",
    ),
    ("serve", &["-b", "--ipaddr", "--bind"], "--ip-addr ADDR"),
    ("serve", &["--exportname"], "--export-name NAME, or NAME= in front of what is to be served"),
    ("serve", &["-x"], "--export-name NAME, or NAME= in front of what is to be served"),
    ("serve", &["--filter"], FILTER),
    (
        "serve",
        &["--snapshot", "--overlay", "--cow", "--copy-on-write"],
        "--layer overlay, or --layer overlay:FILE",
    ),
    ("serve", &["--delay"], "--layer delay:TIME"),
    ("serve", &["--rate"], "--layer rate:BYTES"),
    ("serve", &["--error"], "--layer error:ERRNO"),
    ("serve", &["--readonly"], "--read-only"),
    (
        "serve",
        &["--readwrite", "--read-write"],
        "clients may write unless there is --read-only: leave it out",
    ),
    (
        "serve",
        &["-m", "--multi-file"],
        "a disk of several files is none here: make one of them, or serve each as NAME=FILE",
    ),
    ("serve", &["--authorize-file"], "--allow CIDR for each line of the file"),
    (
        "serve",
        &["--config-file"],
        "--config FILE, in another format: docs/migrate.md has what stands for what",
    ),
    ("serve", &["--output-config"], "--print-config shows what is configured"),
    ("serve", &["-k", "--socket"], "--unix PATH"),
    (
        "serve",
        &["--single"],
        "--stdio for one client on standard input and output; --max-connections 1 for one at a time",
    ),
    (
        "serve",
        &["-s"],
        "--layer overlay for qemu-nbd's -s; --stdio for nbdkit's, one client on standard input and output, or \
         --max-connections 1 for one at a time",
    ),
    ("serve", &["--shared"], "--max-connections N"),
    ("serve", &["-M"], "--max-connections N"),
    ("serve", &["--persistent"], "the server stays when its clients have gone: leave it out"),
    ("serve", &["--threads"], "the number of threads follows the machine: leave it out"),
    (
        "serve",
        &["-t"],
        "leave it out: the server stays when its clients have gone, qemu-nbd's -t; and the number of threads, nbdkit's -t, \
         follows the machine",
    ),
    ("serve", &["--pidfile"], "--pid-file PATH"),
    ("serve", &["--partition"], "--layer partition:N"),
    (
        "serve",
        &["-P"],
        "--pid-file PATH for nbdkit's -P; --layer partition:N for that of older versions of qemu-nbd",
    ),
    ("serve", &["-D"], "--description TEXT for qemu-nbd's -D; -v for nbdkit's, twice for more"),
    ("serve", &["--debug", "-T", "--trace"], "-v, twice for more"),
    (
        "serve",
        &["--log"],
        "messages go to standard error, and systemd's journal takes them from there: leave it out",
    ),
    ("serve", &["-B", "--bitmap"], "--track NAME"),
    (
        "serve",
        &["-u", "--user", "-g", "--group"],
        "start nbd serve as that user, by systemd or setpriv",
    ),
    ("serve", &["--exit-with-parent"], "--run COMMAND ends the server with the command"),
    ("serve", &["--connect"], "nbd attach URI gives a served disk a device"),
    (
        "serve",
        &["-c"],
        "nbd attach URI, which gives a served disk a device, for qemu-nbd's -c; --layer overlay for nbd-server's",
    ),
    ("serve", &["--disconnect"], "nbd detach DEVICE"),
    ("serve", &["-L", "--list"], "nbd list URI"),
    ("serve", &["--tls-creds", "--object"], "--tls require --tls-certificates DIR"),
    ("serve", &["--tls-authz"], "--tls-allow PATTERN"),
    ("serve", &["-C"], "--config FILE"),
    (
        "serve",
        &["--cache", "--nocache", "--aio", "--discard", "--detect-zeroes"],
        "there is nothing to choose: leave it out",
    ),
    ("serve", &["--offset"], "--layer offset:N"),
    ("serve", &["--export"], "--export-name NAME, or NAME= in front of what is to be served"),
    ("serve", &["--new-style"], NEWSTYLE),
    ("serve", &["--old-style"], "--oldstyle"),
    ("serve", &["--no-fork"], FOREGROUND),
    ("serve", &["--stdin"], "--stdio"),
    ("serve", &["--handshake-limit"], "the handshake has a limit as it is: leave it out"),
    ("serve", &["--dump-config"], "--print-config shows what is configured"),
    ("serve", &["--dump-plugin"], "there are no plugins: leave it out"),
    (
        "serve",
        &[
            "--mask-handshake",
            "--no-sr",
            "--no-meta-contexts",
            "--swap",
            "--selinux-label",
            "--tls-hostname",
        ],
        "there is no such thing here: leave it out",
    ),
    (
        "attach",
        &["-N", "--name", "-name"],
        "the name of the export stands in the URI: nbd attach nbd://HOST/NAME",
    ),
    ("attach", &["-u", "--unix", "-unix"], "nbd attach nbd+unix:///NAME?socket=PATH"),
    ("attach", &["-C"], "--connections N"),
    ("attach", &["-p", "-persist"], "--persist"),
    ("attach", &["-R", "-r", "--readonly", "-readonly"], "--read-only"),
    ("attach", &["-t", "-timeout"], "--timeout T"),
    (
        "attach",
        &["-b", "-block-size", "--block-size"],
        "the device has the block size of the server's export: leave it out",
    ),
    (
        "attach",
        &["-B", "-size", "--size"],
        "the device has the size of the server's export: leave it out",
    ),
    (
        "attach",
        &["-n", "-nofork", "--nofork"],
        "what has to stay, stays in the foreground: leave it out",
    ),
    ("attach", &["-x", "-enable-tls", "--enable-tls"], "nbd attach nbds://HOST/NAME takes TLS"),
    (
        "attach",
        &[
            "-F",
            "-certfile",
            "--certfile",
            "-K",
            "-keyfile",
            "--keyfile",
            "-A",
            "-cacertfile",
            "--cacertfile",
        ],
        "--tls-certificates DIR, a folder with all of them",
    ),
    ("attach", &["-H", "-tlshostname", "--tlshostname"], "--tls-hostname NAME"),
    (
        "attach",
        &[
            "-s",
            "-swap",
            "--swap",
            "-S",
            "-sdp",
            "--sdp",
            "-m",
            "-systemd-mark",
            "--systemd-mark",
            "-L",
            "-nonetlink",
            "--nonetlink",
            "-P",
            "-preinit",
            "--preinit",
        ],
        "there is no such thing here: leave it out",
    ),
    ("attach", &["-d"], "nbd detach DEVICE"),
    ("attach", &["-l", "--list", "-list"], "nbd list URI"),
    ("attach", &["-c", "--check", "-check"], "nbd devices shows what is attached"),
    ("detach", &["-d", "--disconnect"], "leave it out: nbd detach DEVICE"),
    ("detach", &["-c", "--check"], "nbd devices shows what is attached"),
    ("info", &["-l"], "nbd list URI"),
    ("map", &["--output"], "--json, or --totals"),
    ("bench", &["--iodepth"], "--depth N"),
    ("bench", &["--runtime"], "--time T"),
    ("bench", &["--numjobs"], "--connections N"),
    ("bench", &["--blocksize"], "--bs N"),
    ("bench", &["--size", "--filesize"], "--length N"),
    ("bench", &["--rwmixread"], "--read-percent N"),
    ("bench", &["--randseed"], "--seed N"),
    ("bench", &["--output-format"], "--json"),
    (
        "compare",
        &["-f", "-F", "-T", "-s"],
        "disks are compared as they are, and by size, too: leave it out, or take --length N",
    ),
    (
        "compare",
        &["-b", "-l", "--print-bytes", "--verbose"],
        "nbd dump shows the bytes at the offset where disks differ: leave it out",
    ),
    (
        "copy",
        &["-f", "-O"],
        "disks are copied as they are: leave it out, with the format, for raw ones, and put [ qemu-nbd -f FORMAT FILE ] in \
         the place of others",
    ),
    ("copy", &["-n", "--target-is-zero"], "disks are copied as they are: leave it out"),
];

/// For nbdkit's `-n`.
const NEWSTYLE: &str = "newstyle is the default: leave it out";

/// For nbdkit's and nbd-server's `-f`.
const FOREGROUND: &str = "nbd serve stays in the foreground: leave it out";

/// For qemu-nbd's `-f FORMAT`, and what belongs to it.
const AS_THEY_ARE: &str = "disks are served as they are, without image formats: leave it out, with the format, for raw ones; \
                           for qcow2 and others take qemu-nbd, or convert them: qemu-img convert -O raw IMAGE disk.img";

/// For nbdkit's `--filter`, of which [`of_filter`] knows more.
const FILTER: &str = "--layer NAME";

/// What stands for one of nbdkit's filters.
fn of_filter(name: &str) -> &'static str {
    match name {
        "cow" => "--layer overlay, or --layer overlay:FILE",
        "partition" => "--layer partition:N",
        "offset" => "--layer offset:N, with length=N for a part",
        "truncate" => {
            "--layer offset:0,length=N for a part of the disk; there is no layer that makes it larger"
        }
        "rate" => "--layer rate:BYTES",
        "delay" => "--layer delay:TIME",
        "error" => "--layer error:ERRNO",
        "log" => "--layer log:FILE",
        "stats" => {
            "there is no such layer: nbd status shows what was asked for, and --metrics serves it"
        }
        "exportname" => "there is no such layer: NAME= stands in front of what is to be served",
        "ip" => "there is no such layer: --allow CIDR",
        "limit" => "there is no such layer: --max-connections N",
        "exitlast" | "exitwhen" => {
            "there is no such layer: --run COMMAND ends the server with a command, and --stdio with its client"
        }
        "retry" | "retry-request" => {
            "there is no such layer: objects and volumes are asked again for a minute as it is: leave it out"
        }
        "cache" | "cacheextents" | "readahead" | "scan" | "nocache" => {
            "there is no such layer: the system reads files ahead and keeps them in memory, and nbd serve does so with objects \
             and volumes: leave it out"
        }
        "xz" | "gzip" | "tar" | "ext2" | "luks" => {
            "there is no such layer: unpack it first, or serve it by nbdkit"
        }
        "blocksize" | "blocksize-policy" => "there is no such layer: --block-size SIZE",
        "fua" | "multi-conn" | "noextents" | "nofilter" | "noparallel" | "nozero"
        | "tls-fallback" => "there is no such layer: leave it out",
        "" => FILTER,
        _ => "there is no such layer: leave it out, or serve the disk by nbdkit",
    }
}

/// The whole word of a flag of which clap names the first letter: nbd-client takes words behind one dash.
fn whole<'a>(flag: &'a str, words: &'a [OsString]) -> Option<&'a str> {
    let is_letter = flag.len() == 2 && !flag.starts_with("--");
    let mut words = words.iter().filter_map(|word| word.to_str());
    let word = words.find(|word| is_letter && word.len() > 2 && word.starts_with(flag))?;
    Some(word.split_once('=').map_or(word, |(word, _)| word))
}

/// The value of a flag, in the same word or as the next.
fn value<'a>(flag: &str, words: &'a [OsString]) -> &'a str {
    let mut words = words.iter().filter_map(|word| word.to_str());
    let found = words.find_map(|word| word.strip_prefix(flag)).unwrap_or_default();
    match found.strip_prefix('=') {
        Some(value) => value,
        None => words.next().unwrap_or_default(),
    }
}

/// For a name and what to serve in two words, behind `nbd export CONTROL add`.
fn in_two_words(given: &str, words: &[OsString]) -> Option<String> {
    let is_given = |pair: &[OsString]| pair[1] == given;
    let name = words.windows(2).find(|pair| is_given(pair))?[0].to_str()?;
    let is_added = words.get(1).is_some_and(|word| word == "add") && !given.starts_with('-');
    (is_added && name != "add" && !name.contains(['=', ':', '/'])).then(|| {
        format!("for '{given}': the name and what is to be served are one word: {name}={given}")
    })
}

/// The image formats of qemu.
const FORMATS: [&str; 13] = [
    "raw",
    "qcow2",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "luks",
    "parallels",
    "bochs",
    "cloop",
    "dmg",
];

/// Whether `-f` has the name of an image format behind it, in the same word or as the next.
fn has_format(words: &[OsString]) -> bool {
    let is_format = |text: &str| FORMATS.contains(&text);
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        match word.strip_prefix("-f") {
            Some("") => return words.next().is_some_and(|next| is_format(&next)),
            Some(rest) if is_format(rest.trim_start_matches('=')) => return true,
            _ => {}
        }
    }
    false
}

/// Commands that some builds don't have.
const FEATURES: &[(&[&str], feature::Missing)] =
    &[(&["volume"], feature::VOLUMES), (&["cert", "psk"], feature::TLS)];

/// What stands for a command of another program.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["nbdinfo"], "nbd info"),
    (&["nbdcopy", "cp", "convert", "clone"], "nbd copy"),
    (&["client", "connect", "nbd-client", "mount"], "nbd attach"),
    (&["disconnect-device", "umount"], "nbd detach"),
    (&["server", "nbdkit", "qemu-nbd", "nbd-server", "daemon"], "nbd serve"),
    (&["hexdump", "xxd", "cat"], "nbd dump"),
    (&["ls"], "nbd list"),
    (&["fio", "benchmark", "speed", "perf"], "nbd bench"),
    (&["cmp", "diff", "verify"], "nbd compare"),
];

/// The error of an option that there is not, without the tip to give it behind `--`, as if it were the name of a file.
pub(crate) fn without_misleading_tip(mut error: clap::Error) -> clap::Error {
    let is_misleading = |tip: &clap::builder::StyledStr| tip.to_string().contains("as a value");
    let Some(ContextValue::StyledStrs(tips)) = error.remove(ContextKind::Suggested) else {
        return error;
    };
    let tips: Vec<_> = tips.into_iter().filter(|tip| !is_misleading(tip)).collect();
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

/// The error without tips, where there is a [hint]: what looks alike is not what was meant.
pub(crate) fn without_tips(mut error: clap::Error) -> clap::Error {
    for tip in [
        ContextKind::Suggested,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedCommand,
    ] {
        error.remove(tip);
    }
    error
}

/// A hint for a command line that clap refused; `words` are those behind the subcommand.
pub(crate) fn hint(subcommand: &str, words: &[OsString], error: &clap::Error) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let given = context(ContextKind::InvalidArg)?;
            if subcommand == "export" {
                return in_two_words(given, words);
            }
            let flag = given.split_once('=').map_or(given, |(flag, _)| flag);
            let known = |flag: &str| {
                FLAGS.iter().find(|entry| entry.0 == subcommand && entry.1.contains(&flag))
            };
            let word = whole(flag, words).filter(|word| known(word).is_some());
            let flag = word.unwrap_or(flag);
            let (_, _, text) = known(flag)?;
            let text = match *text {
                FILTER => of_filter(value(flag, words)),
                FOREGROUND if flag == "-f" && has_format(words) => AS_THEY_ARE,
                text => text,
            };
            Some(format!("for '{flag}': {text}"))
        }
        ErrorKind::InvalidSubcommand => {
            let given = context(ContextKind::InvalidSubcommand)?;
            // One behind a command, such as nbd volume, is of that.
            if given != subcommand {
                return None;
            }
            if let Some((_, missing)) = FEATURES.iter().find(|(names, _)| names.contains(&given)) {
                return Some(missing.text());
            }
            let known = COMMANDS.iter().find(|(names, _)| names.contains(&given));
            known.map(|(_, command)| format!("for '{given}': {command}"))
        }
        _ => None,
    }
}
