//! Files that can't be, files that mean the same as a command line, and files that nobody wrote.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_engine::export::BlockSize;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::sandbox;
use super::read::parse;
use super::words::VsockAddress;
use super::*;
use crate::exit::{Failure, Fault};
use crate::quantity::Timeout;
use crate::serve::metrics::MetricsAddress;

mod mistakes;

/// Every key there is.
const FULL: &str = r#"# A comment.
[server]
runtime = "blocking"
max-connections = 16
idle-timeout = "never"
stall-timeout = "5m"
drain-timeout = 3
hang-up = false
control = "control.sock"
metrics = "unix:metrics.sock"
log = "info"
sandbox = "off"
oldstyle = false

[[listen]]
tcp = "localhost:0"

[[listen]]
unix = "/run/nbd.sock"

[[listen]]
activation = true

[[listen]]
vsock = "3:10809"

[access]
allow = ["10.0.0.0/8", "fd00::/8"]
deny = ["10.9.0.1"]
allow-user = ["root", "117"]
allow-group = ["0"]

[tls]
mode = "on"
certificates = "pki"
psk = "keys.psk"
verify-peer = true
allow = ["*.example.org"]

[[export]]
name = "disk"
file = "disk.img"
description = "for a test"
read-only = false
resize = true
layers = ["read-only", "offset:1M,length=10M"]
track = ["monday", "tuesday"]
allocation-depth = true
block-size = "512:4k:1M"
block-size-required = true
tls-only = true

[[export]]
memory = "1G"

[[export]]
directory = "disks"

[[export]]
name = "volume"
volume = "s3://bucket/volumes/mail@monday"
volume-memory = "1G"
volume-cache = "/var/cache/nbd:20G"
volume-exclusive = true
volume-lease = "3s"

[[export]]
name = "object"
object = "https://host/disk.img"
"#;

fn read(text: &str) -> Result<Config, Vec<Fault>> {
    parse(Path::new("/etc/nbd.toml"), text.to_owned())
}

/// Reads and checks a text; gives what is wrong with it, without the path.
fn faults(text: &str) -> Vec<String> {
    let faults = match read(text).map(|config| check(&config)) {
        Ok(Ok(())) => Vec::new(),
        Ok(Err(Failure::Config(faults))) | Err(faults) => faults,
        Ok(Err(other)) => panic!("{other:?}"),
    };
    let heading = |fault: Fault| fault.heading.strip_prefix("/etc/nbd.toml:").unwrap().to_owned();
    faults.into_iter().map(heading).collect()
}

/// The line and column of a fault.
fn position(heading: &str) -> (usize, usize) {
    let mut numbers = heading.trim_start_matches("/etc/nbd.toml:").split(':');
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

#[test]
fn every_key_is_known_and_is_in_the_file_of_these_tests() {
    let config = read(FULL).unwrap();
    assert_eq!(config.exports[1].backend(), Ok(Backend::Memory(1 << 30)));
    assert_eq!(config.server.drain_timeout, Period(Duration::from_secs(3)));
    for (_, keys) in fields::tables() {
        assert!(!keys.is_empty());
        for key in keys {
            let there = FULL.lines().any(|line| {
                line.starts_with(&format!("{key} =")) || line.trim_matches(['[', ']']) == *key
            });
            assert!(there, "{key}");
        }
    }
}

#[test]
fn durations_may_be_fractions_without_quotes_and_sizes_may_not() {
    let of =
        |server: &str, export: &str| read(&format!("[server]\n{server}\n[[export]]\n{export}\n"));
    let config = of("drain-timeout = 1.5", "memory = 4096").unwrap();
    assert_eq!(config.server.drain_timeout, Period(Duration::from_millis(1500)));
    let Err(wrong) = of("", "memory = 1.5") else { panic!("half a byte") };
    assert!(format!("{wrong:?}").contains("'1.5' is not a size"), "{wrong:?}");
}

#[test]
fn what_is_left_out_is_what_the_command_line_leaves_out() {
    let config = read("export = [{memory = 4096}]").unwrap();
    assert_eq!(config.server, Server::default());
    assert_eq!((config.tls, config.listeners), (Tls::default(), vec![]));
    assert_eq!(config.exports, [Export::new("", Backend::Memory(4096))]);
}

#[test]
fn what_can_not_be_is_named_with_its_line_and_column_and_a_remedy() {
    let disk = "[[export]]\nmemory = 1\n";
    for (text, expected) in [
        ("", "1:1: there is nothing to serve: add an [[export]]"),
        (
            "[[export]]\n",
            "1:1: an export needs exactly one of file, memory, directory, volume and object",
        ),
        (
            "[[export]]\nfile = 'a'\nmemory = 1",
            "1:1: an export needs exactly one of file, memory, directory, volume and object",
        ),
        (
            "[[export]]\nvolume = 's3://b/v'\nvolume-memory = '1M'",
            "3:17: volume-memory 1048576 is too little: give at least 192M",
        ),
        (
            "[[export]]\nmemory = 1\nvolume-memory = '1G'",
            "3:17: volume-memory is for volumes and objects alone: leave it out",
        ),
        (
            "[[export]]\nmemory = 1\nvolume-exclusive = true",
            "3:20: volume-exclusive is for volumes alone, and not every export is one: leave it out",
        ),
        (
            "[[export]]\nvolume = 's3://b/v'\nvolume-lease = '11m'",
            "3:16: volume-lease 11m is not from 1s to 10m",
        ),
        (
            "[[export]]\nvolume = 's3://b/v'\nvolume-cache = '/c:1M'",
            "3:16: volume-cache of 1048576 bytes is too little for a volume: give at least 64M",
        ),
        (
            "[[export]]\nmemory = 1\nvolume-cache = '/c:1G'",
            "3:16: volume-cache is for volumes alone, and not every export is one: leave it out",
        ),
        ("[[export]]\nvolume = 's3://b/v'\nvolume-cache = '/c'", "3:16: '/c' is no cache"),
        ("[[export]]\ndirectory = ''", "2:13: give the path of a directory"),
        ("[[export]]\ndirectory = 'a'\ntrack = ['t']", "3:9: changes to files of a directory"),
        (
            "[[export]]\ndirectory = 'a'\nlayers = ['read-only', 'overlay:x']",
            "3:24: the layer overlay:x would write",
        ),
        (
            &format!("[[export]]\ndirectory = 'a'\nname = '{}'", "x".repeat(3841)),
            "3:8: the name of a directory has at most 3840 bytes",
        ),
        (
            "[[export]]\ndirectory = 'a'\n[[export]]\ndirectory = 'b'",
            "3:1: two directories have no name in front of their files",
        ),
        (
            "[[export]]\nname = 'a'\ndirectory = 'a'\n[[export]]\nname = 'a/'\nmemory = 1",
            "5:8: two exports are called 'a/'",
        ),
        (
            "[[export]]\ndirectory = 'a'\n[server]\noldstyle = true",
            "2:13: oldstyle clients name no export",
        ),
        ("[[export]]\nfile = ''", "2:8: give the path of a file or block device"),
        ("[[export]]\nmemory = '1X'", "2:10: '1X' is not a size"),
        ("[[export]]\nmemory = 1\nblock-size-required = true", "3:23: block-size-required needs"),
        ("[[export]]\nmemory = 1\nblock-size = '3'", "3:14: a minimum block size of 3"),
        ("[[export]]\nmemory = 1\nread-only = true\ntrack = ['a']", "4:9: what is read-only"),
        ("[[export]]\nmemory = 1\ntrack = ['a', '']", "3:15: track '': "),
        ("[[export]]\nmemory = 1\ntrack = ['a', 'a']", "3:15: track 'a': "),
        ("[[export]]\nmemory = 1\nname = \"\\u0000\"", "3:8: the export name has more than"),
        ("[[exports]]\nmemory = 1", "1:3: unknown key 'exports'; did you mean 'export'?"),
        ("[[export]]\nmemory = 1\nRead_Only = true", "did you mean 'read-only'?"),
        ("[[export]]\nmemory = 1\ndrain-timeout = 1", "it is a key of [server]"),
        (
            "[[export]]\nmemory = 1\ncolour = 1",
            "unknown key 'colour' in [[export]]; there are name,",
        ),
        ("[server]\nruntime = 'toki'", "2:11: 'toki' is none of tokio, "),
        ("[server]\nruntime = 'toki'", "did you mean 'tokio'?"),
        ("[server]\nmax-connections = 0", "2:19: give a number of at least 1"),
        (
            "[server]\nmax-connections = -1",
            "2:19: max-connections cannot be -1: give a number of at least 1",
        ),
        (
            "[server]\nmax-connections = 'x'",
            "2:19: max-connections cannot be \"x\": give a whole number, without quotes",
        ),
        (
            "[server]\nmax-connections = 18446744073709551616",
            "cannot be 18446744073709551616: give a number of at most 18446744073709551615",
        ),
        (
            "[server]\nsandbox = true",
            "2:11: sandbox cannot be true: give \"off\", \"try\" or \"require\"",
        ),
        ("[server]\nsandbox = { off = {} }", "sandbox cannot be a table: give \"off\", "),
        ("[server]\ncontrol = 1", "2:11: control cannot be 1: give a path in quotes"),
        (
            "[[export]]\nmemory = 1\nread-only = 'yes'",
            "3:13: read-only cannot be \"yes\": give true or false, without quotes",
        ),
        ("[[export]]\nmemory = 1\nname = 1.50", "name cannot be 1.50: give a text in quotes"),
        ("[[export]]\nmemory = []", "2:10: memory cannot be a list: give a size, such as"),
        (
            "[[export]]\nmemory = 1\ntrack = ['a', 7]",
            "3:15: an item of track cannot be 7: give a text in quotes",
        ),
        (
            "[[export]]\nmemory = 1\nlayers = [{ overlay = [1] }]",
            "3:23: overlay cannot be a list: give a text or a number",
        ),
        ("[server]\nstall-timeout = 0", "2:17: give at least 1ms, or never"),
        ("[server]\nlog = 1", "2:7: "),
        ("[access]\nallow = ['10.0.0.1/8']", "2:10: '10.0.0.1/8': the address has bits"),
        ("[access]\ndeny = ['::/0', 'host']", "2:17: 'host': give an IP address, or a network"),
        (
            "[access]\nallow = '10.0.0.0/8'",
            "2:9: allow cannot be \"10.0.0.0/8\": give a list in brackets, each item an address",
        ),
        ("[server]\nallow-user = ['a']", "it is a key of [access]"),
        ("[server]\ncontrol = ''\n[[export]]\nmemory = 1", "2:11: give the path of a socket"),
        ("server = 1", "1:10: server is a table: write [server]"),
        ("[[server]]\nlog = 'info'", "server is a table: write [server]"),
        ("server = ['tokio']", "1:10: server is a table: write [server]"),
        ("[export]\nmemory = 1", "export is a table: write [[export]]"),
        ("export = [1]", "1:10: export is a table: write [[export]]"),
        ("export = [{memory = 1}, 'x']", "export is a table: write [[export]]"),
        ("[server]\nlog = 'info'\nlog = 'info'", "3:1: duplicate key"),
        ("[server\n", "1:8: "),
        ("[[listen]]\ntcp = ':1'\n", "2:7: ':1' is not a TCP address"),
        ("[[listen]]\ntcp = '[::1]x'\n", "2:7: '[::1]x' is not a TCP address"),
        ("[[listen]]\ntcp = 'a:http'\n", "2:7: a port is a number from 0 to 65535"),
        (
            &format!("{disk}[[listen]]"),
            "3:1: a listener needs exactly one of tcp, unix, vsock and activation",
        ),
        (
            &format!("{disk}[[listen]]\ntcp = '::1'\n[[listen]]\ntcp = '[::1]:10809'"),
            "6:7: two listeners",
        ),
        (
            &format!("{disk}[[listen]]\nunix = '/a'\n[server]\ncontrol = '/a'"),
            "4:8: '/a' is the path of",
        ),
        (&format!("{disk}{disk}"), "3:1: two exports are called ''"),
        (&format!("{disk}name = 'a'\n{disk}name = 'a'"), "6:8: two exports are called 'a'"),
        (&format!("{disk}name = 'a'\n{disk}name = 'a'"), "the first is at /etc/nbd.toml:3:8"),
        (
            &format!("{disk}{disk}name = 'a'\n[server]\noldstyle = true"),
            "3:1: oldstyle clients get the one",
        ),
        (
            &format!("{disk}track = ['a']\n[server]\noldstyle = true"),
            "3:9: oldstyle clients have none",
        ),
    ] {
        let faults = faults(text);
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}\n{faults:#?}");
    }
}

#[test]
fn two_listeners_may_each_take_a_free_port() {
    let text = "[[listen]]\ntcp = 'a:0'\n[[listen]]\ntcp = 'a:0'\n[[export]]\nmemory = 1";
    assert_eq!(faults(text), [""; 0]);
}

#[test]
fn all_faults_are_reported_in_the_order_of_the_file() {
    let text = "[server]\nlog = 1\nrun-time = 1\nmax-connections = 0\n[[export]]\nmemory = []\n[[export]]\n\
                fil = 'x'\nmemory = true";
    let lines = Vec::from_iter(faults(text).iter().map(|fault| position(fault).0));
    assert_eq!(lines, [2, 3, 4, 6, 8, 9]);
    // Each item of a list as well.
    let text = "[[export]]\nmemory = 1\ntrack = [\n7,\n'a',\n8]\nlayers = [\n'delay:x',\n'read-only',\n{ delay = 'y' },\n\
                { foo = 1 },\n5]\n[[export]]\nmemory = 'x'";
    let lines = Vec::from_iter(faults(text).iter().map(|fault| position(fault).0));
    assert_eq!(lines, [4, 6, 8, 10, 11, 12, 14]);
    let many = (0..100).map(|key| format!("key{key} = 1\n")).collect::<String>();
    assert_eq!(faults(&many).len(), 20);
}

#[test]
fn a_fault_shows_its_line_and_marks_it() {
    let fault = read("[server]\n\tlog = \"\u{fc}\u{1b}\"  # \u{202e}").unwrap_err().remove(0);
    assert!(fault.heading.starts_with("/etc/nbd.toml:2:"), "{}", fault.heading);
    let fault = read("[server]\n\tlog = \"\u{fc}b\"  # \u{202e}").unwrap_err().remove(0);
    let expected = ["  |", "2 |  log = \"\u{fc}b\"  # \\u{202e}", "  |        ^^^^"];
    assert_eq!(fault.excerpt, expected);
    let long = format!("{}log = 1", " ".repeat(5000));
    let fault = read(&format!("[server]\n{long}")).unwrap_err().remove(0);
    assert_eq!(position(&fault.heading), (2, 5007));
    assert!(fault.excerpt[1].ends_with("log = 1") && fault.excerpt[1].len() < 120);
    assert_eq!(fault.excerpt[1].find('1'), fault.excerpt[2].find('^'));
}

#[test]
fn relative_paths_begin_at_the_folder_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.toml");
    std::fs::write(&path, FULL).unwrap();
    let config = load(&path).unwrap();
    let within = |name: &str| folder.path().join(name);
    assert_eq!(config.exports[0].backend(), Ok(Backend::File(&within("disk.img"))));
    assert_eq!(config.listeners[1].address(), Ok(Address::Unix(Path::new("/run/nbd.sock"))));
    assert_eq!(config.server.control, Some(within("control.sock")));
    assert_eq!(config.tls.certificates, Some(within("pki")));
    assert_eq!(config.tls.psk, Some(within("keys.psk")));
}

fn path() -> impl Strategy<Value = PathBuf> {
    "(/|\\./|)[a-z \"'\\\\\n\u{fc}=]{1,8}".prop_map(PathBuf::from)
}

fn timeout() -> impl Strategy<Value = Timeout> {
    prop_oneof![
        Just(Timeout::Never),
        (1..u64::MAX / 8).prop_map(|time| Timeout::After(Duration::from_millis(time))),
        (1..9999u64).prop_map(|time| Timeout::After(Duration::from_secs(time))),
    ]
}

fn metrics() -> impl Strategy<Value = MetricsAddress> {
    let host = prop_oneof!["[a-z][a-z.-]{0,8}", "([0-9a-f:]{1,4}:){2}[0-9a-f]{1,4}"];
    let tcp = (host, any::<u16>()).prop_map(|(host, port)| MetricsAddress::Tcp(host, port));
    prop_oneof![tcp, path().prop_map(MetricsAddress::Unix)]
}

fn server() -> impl Strategy<Value = Server> {
    let log = select(vec![LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace]);
    (
        select(vec![RuntimeName::Tokio, RuntimeName::Blocking]),
        1..i64::MAX as usize,
        proptest::option::of(timeout()),
        timeout(),
        0..9999u64,
        proptest::option::of(path()),
        proptest::option::of(metrics()),
        log,
        select(vec![sandbox::Mode::Off, sandbox::Mode::Try, sandbox::Mode::Require]),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|values| {
            let (
                runtime,
                max_connections,
                idle_timeout,
                stall_timeout,
                drain,
                control,
                metrics,
                log,
                sandbox,
                oldstyle,
                hang_up,
            ) = values;
            Server {
                runtime,
                max_connections,
                idle_timeout,
                stall_timeout,
                drain_timeout: Period(Duration::from_millis(drain * 50)),
                hang_up,
                control,
                metrics,
                log,
                sandbox,
                oldstyle,
            }
        })
}

fn listen() -> impl Strategy<Value = Listen> {
    let host = prop_oneof!["[a-z][a-z.-]{0,8}", "([0-9a-f:]{1,4}:){2}[0-9a-f]{1,4}"];
    let tcp = (host, any::<u16>()).prop_map(|(host, port)| Listen::tcp(TcpAddress { host, port }));
    let vsock = (any::<u32>(), any::<u32>())
        .prop_map(|(cid, port)| Listen::vsock(VsockAddress { cid, port }));
    prop_oneof![tcp, path().prop_map(Listen::unix), vsock]
}

fn tls() -> impl Strategy<Value = Tls> {
    let mode = proptest::option::of(select(vec![TlsMode::Off, TlsMode::On, TlsMode::Require]));
    let path = || proptest::option::of(path());
    (mode, path(), path(), any::<bool>(), proptest::collection::vec("\\PC{0,5}", 0..3)).prop_map(
        |(mode, certificates, psk, verify_peer, allow)| Tls {
            mode,
            certificates,
            psk,
            verify_peer,
            allow,
        },
    )
}

fn access() -> impl Strategy<Value = Access> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| std::net::IpAddr::from(bits.to_be_bytes())),
        any::<u128>().prop_map(|bits| std::net::IpAddr::from(bits.to_be_bytes())),
    ];
    let network = (ip, 0..129u8).prop_filter_map("no network", |(ip, prefix)| {
        match nbd_engine::net::Network::new(ip, prefix) {
            Ok(network) | Err(nbd_engine::net::InvalidNetwork::Host(network)) => {
                Some(Cidr(network))
            }
            Err(_) => None,
        }
    });
    let networks = proptest::collection::vec(network, 0..3);
    let names = || proptest::collection::vec("\\PC{0,5}", 0..3);
    (networks.clone(), networks, names(), names()).prop_map(
        |(allow, deny, allow_user, allow_group)| Access { allow, deny, allow_user, allow_group },
    )
}

fn block_sizes() -> impl Strategy<Value = BlockSizes> {
    (0..17u32, 9..26u32, 9..32u32).prop_filter_map("rules", |(minimum, preferred, maximum)| {
        BlockSize::new(1 << minimum, 1 << preferred, 1 << maximum).ok().map(BlockSizes)
    })
}

fn export() -> impl Strategy<Value = Export> {
    let text = "(\\PC|[\n\t\"\\\\'#]){0,9}";
    let backend = prop_oneof![
        path().prop_map(|path| Export::new("", Backend::File(&path))),
        path().prop_map(|path| Export::new("", Backend::Directory(&path))),
        any::<u32>().prop_map(|size| Export::new("", Backend::Memory(size.into()))),
        (0..62u32).prop_map(|shift| Export::new("", Backend::Memory(1 << shift))),
    ];
    let track = proptest::collection::vec(text, 0..3);
    (
        backend,
        text,
        proptest::option::of(text),
        track,
        proptest::option::of(block_sizes()),
        any::<[bool; 5]>(),
    )
        .prop_map(|(mut export, name, description, track, block_size, flags)| {
            export.name = name;
            export.description = description;
            export.track = track;
            export.block_size = block_size;
            [
                export.read_only,
                export.resize,
                export.allocation_depth,
                export.block_size_required,
                export.tls_only,
            ] = flags;
            export
        })
}

fn config() -> impl Strategy<Value = Config> {
    let listeners = proptest::collection::vec(listen(), 0..3);
    let exports = proptest::collection::vec(export(), 0..4);
    (server(), listeners, access(), tls(), exports).prop_map(
        |(server, listeners, access, tls, exports)| Config {
            server,
            listeners,
            access,
            tls,
            exports,
            source: Source::default(),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_configuration_that_is_printed_reads_back_as_the_same(config in config()) {
        let text = print(&config).unwrap();
        let mut expected = config;
        expected.resolve(&std::path::absolute(".").unwrap());
        let read = read(&text);
        prop_assert_eq!(read, Ok(expected), "{}", text);
    }
}

#[test]
fn vsock_listens_on_a_port_of_one_machine_or_of_all() {
    let address = |cid, port| Ok(VsockAddress { cid, port });
    assert_eq!(VsockAddress::parse("5"), address(u32::MAX, 5));
    assert_eq!(VsockAddress::parse("1:4294967295"), address(1, u32::MAX));
    for text in ["", ":", "1:", ":5", "host:5", "4294967296", "-1", "1:2:3"] {
        assert!(VsockAddress::parse(text).unwrap_err().contains("CID:PORT"), "{text}");
    }
}
