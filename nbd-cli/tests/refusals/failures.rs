//! Every failure at run time that can be caused here, with its exit status: `failures.txt` has what was agreed on.
//!
//! Each line is run by one shell, in a folder with a few files, a server of ours, and [servers that break their
//! word](crate::broken_servers). [`ELSEWHERE`] has the failures that nothing here can cause, and why. A failure that is
//! in neither fails a test.

#[cfg(feature = "tls")]
use nbd_testkit::snapshot::check;

use crate::sources::{assert_all_shown, read};
#[cfg(feature = "tls")]
use crate::transcript::{Step, transcript};

/// What is there when the lines are run. `served` is the socket of a server, and `control` its control socket.
#[cfg(feature = "tls")]
const PREPARE: &str = r#"
mkdir bin
truncate -s 1M disk.img
truncate -s 5M large.toml
printf x > small.img
printf '[[listen]]\nactivation = true\n[[export]]\nmemory = 1048576\n' > activation.toml
printf 'not holes' > data.img
ln -s "$(command -v nbd)" "$(command -v timeout)" bin
cp "$(command -v sleep)" running
./running 600 &
ended=$!
nbd serve --unix served --control control a=memory:1M >/dev/null 2>&1 &
ended="$ended $!"
trap 'kill $ended 2>/dev/null' EXIT
i=0
until [ -S served ] && [ -S control ] || [ $i -ge 600 ]; do sleep 0.05; i=$((i + 1)); done
"#;

#[cfg(feature = "tls")]
const LINES: &[&str] = &[
    "nbd info nbd://127.0.0.1:1",
    "nbd info nbd+unix:///?socket=gone",
    "nbd info nbd+unix:///b?socket=served",
    "nbd info nbds+unix:///a?socket=served",
    "nbd info nbd+unix:///?socket=no-nbd",
    "nbd map --timeout 3s nbd+unix:///?socket=silent",
    "nbd map nbd+unix:///?socket=no-entry",
    "nbd map nbd+unix:///?socket=wants-tls",
    "nbd dump nbd+unix:///?socket=hangs-up",
    "nbd info [ true ]",
    "nbd info [ sh -c 'exit 7' ]",
    "TMPDIR=missing nbd info [ nbd serve memory:1M ]",
    "mkdir a:b; TMPDIR=$PWD/a:b nbd info 'nbd+ssh://localhost/?socket=/a'",
    "nbd info --content nbd+unix:///?socket=coarse",
    "PATH=bin nbd info --content nbd+unix:///a?socket=served",
    "nbd list nbd+unix:///?socket=no-list",
    "nbd list nbd+unix:///?socket=half-a-list",
    "nbd info nbd+unix:///a?socket=served >/dev/full",
    "nbd info nbd+unix:///a?socket=served >&-",
    "nbd map --context x:y nbd+unix:///a?socket=served",
    "nbd map --totals nbd+unix:///?socket=too-many-types",
    "nbd map --svg map.svg nbd+unix:///?socket=many-types",
    "nbd map --svg missing/map.svg nbd+unix:///a?socket=served",
    "nbd dump [ nbd serve --layer error:EIO memory:1M ]",
    "nbd copy [ nbd serve --layer error:EIO memory:1M ] copy.img",
    "nbd copy data.img nbd+unix:///?socket=full",
    "nbd copy --flush data.img nbd+unix:///?socket=no-flush",
    "nbd copy --synchronous --no-extents nbd+unix:///?socket=hangs-up copy.img",
    "nbd copy nbd+unix:///?socket=too-large copy.img",
    "nbd copy nbd+unix:///a?socket=served /dev/full",
    "nbd copy nbd+unix:///a?socket=served - >/dev/full",
    "nbd copy - null: <&-",
    "nbd copy data.img running",
    "nbd copy [ nbd serve disk.img ] disk.img",
    "nbd copy disk.img [ nbd serve small.img ]",
    "nbd copy --resume --synchronous --no-extents -S 0 [ nbd serve --layer error:EIO disk.img ] copy.img",
    "nbd copy --resume data.img copy.img",
    "nbd copy data.img [ nbd serve data.img ]",
    "nbd compare --length 1 disk.img [ nbd serve --layer error:EIO memory:1M ]",
    "nbd compare --length 2 disk.img small.img",
    "nbd copy --verify data.img [ nbd serve --layer error:EIO,commands=read memory:1M ]",
    "nbd bench --rw read --depth 1 --time 100ms [ nbd serve --layer error:EIO memory:1M ] >/dev/null",
    "nbd bench --time 1 --connections 2 nbd+unix:///?socket=one-connection",
    "nbd bench --time 1 --connections 2 nbd+unix:///?socket=two-sizes",
    "nbd resize nbd+unix:///a?socket=served 2M",
    "nbd resize [ nbd serve --resize --block-size 4k memory:1M ] 1000001",
    "nbd status served",
    "nbd status \"$(printf '%0200d' 0)\"",
    "nbd disconnect control 99",
    "nbd reload control",
    "nbd export control add a=memory:1M",
    "nbd export control add b=missing.img",
    "nbd export control remove b",
    "nbd export control remove a",
    "nbd bitmap control start ''",
    "nbd bitmap control start \"$(printf '%04079d' 0)\"",
    "nbd bitmap control stop b",
    "nbd overlay info data.img",
    "nbd cert pki >/dev/null; nbd cert pki",
    "nbd cert pki/ca-key.pem/x",
    "cp -r pki half; rm half/server-cert.pem; nbd cert half --renew",
    "nbd cert pki --renew --add-client bob",
    "cp -r pki broken; echo x > broken/ca-key.pem; nbd cert broken --renew",
    "cp -r pki encrypted; sed -i 's/ PRIVATE/ ENCRYPTED PRIVATE/' encrypted/ca-key.pem; nbd cert encrypted --renew",
    "nbd psk disk.img/keys alice",
    "mkfifo pipe; nbd copy --resume --record pipe disk.img nbd+unix:///a?socket=served",
    "nbd psk /dev/null alice",
    "nbd psk pki/ca-cert.pem alice",
    "nbd man --dir disk.img/man",
    "nbd serve --config large.toml",
    "nbd serve --config activation.toml",
    "nbd serve running",
    "nbd serve --check --unix socket a=disk.img b=disk.img",
    "nbd serve --unix missing/socket memory:1M",
    "nbd serve --unix served memory:1M",
    "nbd serve --ip-addr a..b memory:1M",
    "nbd serve --ip-addr 192.0.2.1 --tls off memory:1M",
    "nbd serve --unix socket --metrics 192.0.2.1:1 memory:1M",
    "nbd serve --unix socket --pid-file missing/pid memory:1M",
    "nbd serve --unix socket --layer log:missing/log memory:1M",
    "nbd serve --unix socket --layer overlay:missing/overlay disk.img",
    "nbd serve --unix socket --layer partition:1 disk.img",
    "nbd serve --unix socket --take-over missing memory:1M",
    "nbd serve --unix socket --take-over served memory:1M",
    "nbd serve --unix socket --take-over control memory:1M",
    "TMPDIR=missing nbd serve --unix - --run true memory:1M",
    "nbd serve --unix - --run 'exit 7' memory:1M",
    "nbd serve --stdio memory:1M <&-",
    "nbd serve --stdio memory:1M >&-",
    "echo GET / | nbd serve --stdio memory:1M >/dev/null",
    "mkdir here; (cd here; rmdir ../here; nbd serve --print-config disk.img)",
    "mkdir here; (cd here; rmdir ../here; nbd export ../control add x=disk.img)",
];

/// What fails in the sources and no line here shows: a part of the text, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    // What the kernel's client says: src/attach/tests.rs has a model of it, internal/guest the kernel itself.
    ("; give --force to do without", "takes the kernel's client"),
    ("; unmount it first, or give --force", "takes the kernel's client"),
    (" is not attached", "takes the kernel's client"),
    ("this user may not use the control socket", "takes another user than root"),
    ("cannot configure NBD devices:", "src/attach/explain.rs"),
    (
        "this kernel has no NBD devices",
        "src/attach/explain.rs, and the kernel of this machine may have some",
    ),
    ("this kernel's NBD devices cannot be configured by netlink", "src/attach/explain.rs"),
    ("has no connection any more, and was detached", "internal/guest/scenarios/tls.sh"),
    (" stays attached: ", "takes the kernel's client"),
    ("another nbd attach stays with", "takes the kernel's client"),
    (", which the device does not have", "takes the kernel's client"),
    ("its connections don't lead to the same export", "takes the kernel's client"),
    ("the server does not allow several connections", "takes the kernel's client"),
    ("cannot use the connection to ", "the system gives no socket, descriptor or thread"),
    // What the system refuses only when it has no descriptors, threads or entropy left.
    ("signals are lost", "the pipe of a signal handler is closed"),
    ("does not hand over its overlay files", "tests/serve/replace.rs"),
    ("unless their parts are apart", "tests/serve/exports.rs"),
    ("lies on the other, or is what that lies on", "tests/serve/exports.rs"),
    ("can't be flushed, and what was written last is lost", "takes a disk that fails a flush"),
    ("cannot watch for signals: ", "no descriptor is left"),
    ("cannot wait for signals: ", "no descriptor is left"),
    ("cannot watch for SIGUSR1: ", "no descriptor is left"),
    ("cannot use a listening socket: ", "no descriptor is left"),
    ("cannot use the private socket: ", "a socket's path is always one of a URI"),
    ("cannot start thread ", "no thread is left"),
    ("cannot start the log's thread: ", "no thread is left"),
    ("cannot start the thread that reports metrics: ", "no thread is left"),
    ("cannot start tokio: ", "no thread is left"),
    ("cannot start a runtime: ", "no thread is left"),
    ("cannot serve metrics at ", "no thread is left"),
    ("cannot run a command: ", "there is no /bin/sh"),
    ("the command is lost", "a thread has panicked, or another one has waited for the command"),
    ("cannot choose a seed: ", "the system has no random numbers"),
    ("no random key: ", "the system has no random numbers"),
    ("cannot make certificates: ", "the system has no random numbers"),
    // Faults of ours.
    (" were dealt with; please report it", "a fault of nbd"),
    ("a directory is no disk", "a fault of nbd: directories are opened elsewhere"),
    ("there is nothing to read", "a fault of nbd: each side of a comparison can be read"),
    ("cannot write the configuration: ", "a fault of nbd: each configuration can be written"),
    // What takes files, times, or servers of its own.
    ("cannot list the bitmaps: ", "no server of ours refuses it"),
    ("cannot look at the server: ", "no server of ours refuses it"),
    (" s: try again when the server is less busy", "takes a minute: src/control.rs"),
    (" closed the connection without an answer", "a server that ends meanwhile: src/control.rs"),
    (", which was to be replaced, goes on: ", "tests/volume/exchange.rs"),
    ("cannot start a thread: ", "no thread is left"),
    ("a volume has no layers", "a fault of nbd: volumes are opened elsewhere"),
    ("it is no volume", "the same"),
    (" has expired, so that nobody would accept", "src/cert/tests.rs"),
    (" has no names: give what", "takes a certificate that is not ours"),
    ("name a folder (tls-certificates) whose", "the library's text"),
    ("give --tls-certificates DIR, a folder whose", "internal/interop/tests/tls_clients.rs"),
    (": one of them was written to since;", "takes a block device: tests/copy_resume.rs"),
    (
        " has changed its size during the copy",
        "takes a file that another process changes as the copy ends",
    ),
    ("cannot flush what ", "takes a disk that fails"),
    ("the connection to it was lost during the copy", "tests/retries.rs"),
    ("the server reports more than 64 MiB", "tests/bad_servers.rs"),
    ("the list ends before ", "tests/bad_servers.rs"),
    ("socket activation (LISTEN_FDS=", "tests/serve/activation.rs"),
    ("; serve it with ", "root may write every file: takes a file system that is read-only"),
    ("' has no address: give one in its place", "a name that is known, and has no address"),
    ("; start without --take-over", "takes a server that ends as it is replaced"),
    ("cannot replace the server of {path}: {why}", "tests/serve/replace.rs"),
    ("; see man 7 vsock", "depends on the machine: internal/guest/scenarios/vsock.sh"),
    ("a listener failed, and the server ended", "the system closes a listener"),
    (" that did not finish within ", "tests/serve/end.rs"),
    (
        "; --sandbox=try serves all the same",
        "a kernel without Landlock: src/serve/sandbox/tests.rs",
    ),
    ("this server itself listens on ", "src/serve/listeners.rs"),
    ("this server itself has its control socket", "the same"),
    // Volumes, which are another build: tests/volume.rs.
    ("cannot resize the volume at ", "tests/volume.rs"),
    ("nothing was changed", "takes a terminal"),
];

#[cfg(feature = "tls")]
fn failures() -> String {
    let folder = tempfile::tempdir().unwrap();
    let _servers = crate::broken_servers::start(folder.path());
    let steps = Vec::from_iter(LINES.iter().map(|line| Step::new(*line, *line)));
    transcript(folder.path(), PREPARE, &steps)
}

#[test]
#[cfg(feature = "tls")]
fn every_failure_has_the_text_that_was_agreed_on() {
    check(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/refusals/failures.txt"), &failures());
}

/// A new failure needs a line here, so that its text is looked at.
#[test]
fn every_failure_in_the_sources_is_shown() {
    let shown = [read("failures.txt"), read("usage.txt")].concat();
    let calls = ["Failure::failed(", "Failure::CutOff(", "refused("];
    assert_all_shown(&calls, &shown, ELSEWHERE, 90);
}
