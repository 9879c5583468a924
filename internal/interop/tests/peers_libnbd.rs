//! libnbd against `nbd serve`: nbdinfo, nbdcopy, and the library from Python.
//!
//! libnbd is the strictest client there is: it checks what a server sends against the protocol text.

use std::time::Duration;

use nbd_interop::{MIB, sparse_image};
use nbd_testkit::peers::{Peer, require, require_python_libnbd};
use nbd_testkit::process::run;
use nbd_testkit::server::Setup;
use nbd_testkit::{assert_same_bytes, matrix};

matrix! {
    tcp_and_unix: [
        info_describes_the_export,
        copies_in_and_out_are_identical,
        several_connections_copy_at_once,
        python_reads_and_writes_in_every_mode,
    ],
    unix: [
        json_describes_the_export,
        size_is_exact,
        read_only_is_seen,
        list_shows_every_export,
        unknown_exports_are_refused,
        map_totals_of_a_sparse_export,
        an_odd_size_is_copied_whole,
        copies_between_two_servers_are_identical,
        python_finds_every_error_where_it_belongs,
    ],
}

const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn output(peer: &Peer, args: &[&str]) -> String {
    run(peer.command().args(args), PATIENCE).success()
}

/// S-OPT-GO-02, S-XF-01, S-OPT-SR-01, S-OPT-LM-05: as nbdinfo tells it to a human.
fn info_describes_the_export(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let server = setup.serving("memory:64M");
    let info = output(&nbdinfo, &[&server.uri("")]);
    // libnbd knows extended headers since 1.18.
    let minor = nbdinfo.version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    let extended = minor.is_some_and(|minor| minor >= 18);
    for expected in [
        if extended { "using extended packets" } else { "using structured packets" },
        "newstyle-fixed",
        "export-size: 67108864 (64M)",
        "base:allocation",
        "is_read_only: false",
        "can_flush: true",
        "can_fua: true",
        "can_trim: true",
        "can_zero: true",
        "can_df: true",
        "can_multi_conn: true",
    ] {
        assert!(info.contains(expected), "{expected:?} is not in:\n{info}");
    }
}

/// The same for programs.
fn json_describes_the_export(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let server = setup.serving("memory:64M");
    let info = output(&nbdinfo, &["--json", &server.uri("")]);
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"TLS\": false",
        "\"structured\": true",
        "\"export-name\": \"\"",
        "\"is_read_only\": false",
        "\"export-size\": 67108864",
    ] {
        assert!(info.contains(expected), "{expected:?} is not in:\n{info}");
    }
}

/// S-OPT-GO-02: also where it is no multiple of anything.
fn size_is_exact(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    for (size, bytes) in [("1000", "1000"), ("1T", "1099511627776"), ("513", "513")] {
        let server = setup.serving(&format!("memory:{size}"));
        assert_eq!(output(&nbdinfo, &["--size", &server.uri("")]).trim(), bytes);
    }
}

/// S-XF-05: the flag is there for one export and not for the other.
fn read_only_is_seen(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let server = setup.serve().args(["--read-only", "memory:1M"]).start();
    output(&nbdinfo, &["--is", "read-only", &server.uri("")]);
    let server = setup.serving("memory:1M");
    let answer = run(nbdinfo.command().args(["--is", "read-only", &server.uri("")]), PATIENCE);
    assert_eq!(answer.status.code(), Some(2), "{answer:?}");
}

/// S-OPT-LS-01, S-OPT-LS-05: nbdinfo lists, then asks about each.
fn list_shows_every_export(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let server = setup.serve().args(["memory:1M", "a=memory:2M", "b c=memory:4M"]).start();
    let list = output(&nbdinfo, &["--list", &server.uri("")]);
    for expected in ["export=\"\":", "export=\"a\":", "export=\"b c\":"] {
        assert!(list.contains(expected), "{expected:?} is not in:\n{list}");
    }
    for expected in [1048576, 2097152, 4194304] {
        assert!(
            list.contains(&format!("export-size: {expected}")),
            "{expected} is not in:\n{list}"
        );
    }
}

/// S-OPT-GO-04.
fn unknown_exports_are_refused(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let server = setup.serving("memory:1M");
    let refusal = run(nbdinfo.command().args([&server.uri("nosuch")]), PATIENCE).failure();
    assert!(refusal.contains("nosuch"), "{refusal}");
}

/// S-CMD-BS-01, S-META-03: bytes of data and of holes, as the map adds them up.
fn map_totals_of_a_sparse_export(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let Some(nbdcopy) = require("nbdcopy") else { return };
    let server = setup.serving("memory:32M");
    let image = server.dir().join("image");
    let data = sparse_image(&image, 32 * MIB);
    output(&nbdcopy, &[image.to_str().unwrap(), &server.uri("")]);
    let totals = output(&nbdinfo, &["--map", "--totals", &server.uri("")]);
    let sum = |kind: &str| -> u64 {
        let rows = totals.lines().filter(|row| row.trim_end().ends_with(kind));
        rows.map(|row| row.split_whitespace().next().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert_eq!((sum("data"), sum("hole,zero")), (data, 32 * MIB - data), "{totals}");
}

/// S-CMD-READ-01, S-CMD-WRITE-01, S-CMD-WZ-01, S-CMD-FLUSH-01.
fn copies_in_and_out_are_identical(setup: Setup) {
    let Some(nbdcopy) = require("nbdcopy") else { return };
    let server = setup.serving("memory:32M");
    let (source, target) = (server.dir().join("source"), server.dir().join("target"));
    sparse_image(&source, 32 * MIB);
    output(&nbdcopy, &["--flush", source.to_str().unwrap(), &server.uri("")]);
    output(&nbdcopy, &[&server.uri(""), target.to_str().unwrap()]);
    assert_same_bytes(&std::fs::read(&target).unwrap(), &std::fs::read(&source).unwrap(), "copy");
}

/// S-XF-06, S-ORD-03: four connections, many requests in flight, into a file and out of it.
fn several_connections_copy_at_once(setup: Setup) {
    let Some(nbdcopy) = require("nbdcopy") else { return };
    let serve = setup.serve();
    let export = serve.dir().join("export");
    std::fs::File::create(&export).unwrap().set_len(32 * MIB).unwrap();
    let server = serve.arg(export.to_str().unwrap()).start();
    let (source, target) = (server.dir().join("source"), server.dir().join("target"));
    sparse_image(&source, 32 * MIB);
    let load = ["--connections=4", "--requests=32", "--request-size=65536", "--flush"];
    let uri = server.uri("");
    output(&nbdcopy, &[&load[..], &[source.to_str().unwrap(), &uri]].concat());
    output(&nbdcopy, &[&load[..], &[&uri, target.to_str().unwrap()]].concat());
    let expected = std::fs::read(&source).unwrap();
    assert_same_bytes(&std::fs::read(&export).unwrap(), &expected, "served file");
    assert_same_bytes(&std::fs::read(&target).unwrap(), &expected, "copy");
}

/// S-REQ-09: the last bytes are neither lost nor multiplied.
fn an_odd_size_is_copied_whole(setup: Setup) {
    let Some(nbdcopy) = require("nbdcopy") else { return };
    let server = setup.serving("memory:1000003");
    let (source, target) = (server.dir().join("source"), server.dir().join("target"));
    let content = nbd_testkit::Pattern(1).bytes(0, 1_000_003);
    std::fs::write(&source, &content).unwrap();
    output(&nbdcopy, &[source.to_str().unwrap(), &server.uri("")]);
    output(&nbdcopy, &[&server.uri(""), target.to_str().unwrap()]);
    assert_same_bytes(&std::fs::read(&target).unwrap(), &content, "copy");
}

/// From one server to another, without a file between them.
fn copies_between_two_servers_are_identical(setup: Setup) {
    let Some(nbdcopy) = require("nbdcopy") else { return };
    let serve = setup.serve();
    let source = serve.dir().join("source");
    sparse_image(&source, 32 * MIB);
    let from = serve.arg("--read-only").arg(source.to_str().unwrap()).start();
    let to = setup.serving("memory:32M");
    output(&nbdcopy, &[&from.uri(""), &to.uri("")]);
    let target = to.dir().join("target");
    output(&nbdcopy, &[&to.uri(""), target.to_str().unwrap()]);
    assert_same_bytes(&std::fs::read(&target).unwrap(), &std::fs::read(&source).unwrap(), "copy");
}

/// Runs a script with `h` connected to the export as the preamble asks for.
#[track_caller]
fn python(preamble: &str, uri: &str, script: &str) {
    let Some(mut python) = require_python_libnbd() else { return };
    let text = format!(
        "import errno, nbd, sys\nh = nbd.NBD()\nh.set_strict_mode(0)\n{preamble}\n\
         h.connect_uri(sys.argv[1])\n{script}\nh.shutdown()\n"
    );
    run(python.args(["-c", &text, uri]), PATIENCE).success();
}

/// S-CMD-*, S-REP-*: with and without structured replies, DF and contexts included.
fn python_reads_and_writes_in_every_mode(setup: Setup) {
    let script = "
size = h.get_size()
assert size == 1048577, size
data = bytes(range(1, 256)) * 400
h.pwrite(data, 1001)
assert h.pread(len(data), 1001) == data
h.pwrite(b'last', size - 4, nbd.CMD_FLAG_FUA)
assert h.pread(5, size - 5) == b'\\0last'
h.zero(1000, 2000, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(1002, 1999) == data[998:999] + bytes(1000) + data[1999:2000]
h.trim(4096, 8192)
h.flush()
h.cache(4096, 0) if h.can_cache() else None
found = bytearray()
h.pread_structured(size, 0, lambda buf, offset, status, error: found.extend(buf))
assert len(found) == size
if h.get_structured_replies_negotiated():
    h.pread(65536, 100, nbd.CMD_FLAG_DF)
    extents = []
    h.block_status(size, 0, lambda context, offset, entries, error: extents.extend(entries))
    assert sum(extents[::2]) == size, extents
";
    let server = setup.serving("memory:1048577");
    python("h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)", &server.uri(""), script);
    python("h.set_request_structured_replies(False)", &server.uri(""), script);
    let old =
        "h.set_handshake_flags(0)\nh.set_opt_mode(False)\nh.set_request_structured_replies(False)";
    python(old, &server.uri(""), script);
}

/// S-REQ-03 to S-REQ-12 as a client sees them that is made to send what it should not.
fn python_finds_every_error_where_it_belongs(setup: Setup) {
    let script = "
def fails(code, action):
    try:
        action()
    except nbd.Error as error:
        assert error.errnum == code, (error.errnum, code, str(error))
    else:
        raise AssertionError('no error')
size = h.get_size()
fails(errno.EINVAL, lambda: h.pread(1, size))
fails(errno.ENOSPC, lambda: h.pwrite(b'x', size))
fails(errno.ENOSPC, lambda: h.zero(2, size - 1))
fails(errno.EINVAL, lambda: h.trim(2, size - 1))
fails(errno.EINVAL, lambda: h.pread(512, 0, 0x4000))
fails(errno.EINVAL, lambda: h.block_status(512, 0, lambda *args: 0))
assert h.pread(512, 0) == bytes(512)
";
    let server = setup.serving("memory:1M");
    python("", &server.uri(""), script);
}
