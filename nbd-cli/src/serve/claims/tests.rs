//! Whatever two things are at one place, and however that is spelled, it is found; and nothing else is.

use std::fs;
use std::io::ErrorKind;

use nbd_engine::net::{DEFAULT_BACKLOG, bind_tcp};
use nbd_testkit::{Random, cases};

use super::super::config::{Export, Listen, Tls};
use super::super::identity::tests::{folders, spelling};
use super::super::layers::Layer;
use super::*;

/// All that a server can have at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thing {
    Listener,
    Control,
    Metrics,
    Replaced,
    PidFile,
    Overlay,
    Log,
    Disk,
    Directory,
    Keys,
    ConfigFile,
}

const THINGS: [Thing; 11] = [
    Thing::Listener,
    Thing::Control,
    Thing::Metrics,
    Thing::Replaced,
    Thing::PidFile,
    Thing::Overlay,
    Thing::Log,
    Thing::Disk,
    Thing::Directory,
    Thing::Keys,
    Thing::ConfigFile,
];

/// Of what can be there once. There may be several of the others.
fn is_single(thing: Thing) -> bool {
    use Thing::{ConfigFile, Control, Keys, Metrics, PidFile, Replaced};
    matches!(thing, Control | Metrics | Replaced | PidFile | Keys | ConfigFile)
}

fn put(thing: Thing, path: PathBuf, config: &mut Config, run: &mut Run) {
    let export = |layer: Layer| {
        let mut export = Export::new("", Backend::Memory(1));
        export.layers.push(layer);
        export
    };
    match thing {
        Thing::Listener => config.listeners.push(Listen::unix(path)),
        Thing::Control => config.server.control = Some(path),
        Thing::Metrics => config.server.metrics = Some(MetricsAddress::Unix(path)),
        Thing::Replaced => run.take_over = Some(path),
        Thing::PidFile => run.pid_file = Some(path),
        Thing::Overlay => config.exports.push(export(Layer::Overlay(Some(path)))),
        Thing::Log => config.exports.push(export(Layer::Log(Some(path)))),
        Thing::Disk => config.exports.push(Export::new("", Backend::File(&path))),
        Thing::Directory => config.exports.push(Export::new("", Backend::Directory(&path))),
        Thing::Keys => config.tls = Tls { psk: Some(path), ..Tls::default() },
        Thing::ConfigFile => run.file = Some(path),
    }
}

/// Whether both can be at one place, or what exports share is judged elsewhere.
fn go_together(one: Thing, other: Thing) -> bool {
    use Thing::{ConfigFile, Control, Directory, Disk, Keys, Log, Overlay, Replaced};
    let all = |things: &[Thing]| things.contains(&one) && things.contains(&other);
    let reads = all(&[Disk, Directory, Keys, ConfigFile]);
    reads || all(&[Disk, Directory, Overlay, Log]) || (one != other && all(&[Control, Replaced]))
}

#[test]
fn no_two_things_are_at_one_place_however_it_is_spelled() {
    let folder = folders();
    fs::write(folder.path().join("there"), "1").unwrap();
    let names = ["there", "new", "gone/new"];
    let (mut refused, mut fine) = (0, 0);
    cases(2000, |random: &mut Random| {
        let (mut config, mut run) = (Config::default(), Run::default());
        let mut put_there: Vec<(Thing, &str)> = Vec::new();
        for _ in 0..2 + random.below(2) {
            let thing = THINGS[random.below(THINGS.len() as u64) as usize];
            if is_single(thing) && put_there.iter().any(|(other, _)| *other == thing) {
                continue;
            }
            let name = names[random.below(names.len() as u64) as usize];
            put(thing, spelling(random, folder.path(), name), &mut config, &mut run);
            put_there.push((thing, name));
        }
        let in_the_way = put_there.iter().enumerate().any(|(index, (one, at))| {
            let rest = &put_there[index + 1..];
            rest.iter().any(|(other, name)| name == at && !go_together(*one, *other))
        });
        let found = faults(&config, &run);
        assert_eq!(!found.is_empty(), in_the_way, "{put_there:?}: {found:?}");
        assert_eq!(refuse(&config, &run).is_err(), in_the_way);
        refused += u32::from(in_the_way);
        fine += u32::from(!in_the_way);
    });
    // A single case, as for a seed, is one or the other.
    assert!(refused + fine == 1 || refused > 0 && fine > 0);
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 3, "nothing is made");
}

/// By the system itself, which lets both listen or does not.
#[test]
fn metrics_are_at_no_address_of_clients_however_it_is_spelled() {
    let hosts = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "localhost"];
    let (mut refused, mut fine) = (0, 0);
    let listeners = |words: &[&str], port| {
        let words = words.iter().map(|host| TcpAddress { host: (*host).into(), port });
        words.map(Listen::tcp).collect::<Vec<_>>()
    };
    for own in hosts {
        for (first, second) in hosts.iter().flat_map(|one| hosts.iter().map(move |two| (one, two)))
        {
            let says = |port| {
                let mut config =
                    Config { listeners: listeners(&[first, second], port), ..Config::default() };
                config.server.metrics = Some(MetricsAddress::Tcp(own.into(), port));
                !faults(&config, &Run::default()).is_empty()
            };
            assert!(!says(0), "each takes a port of its own");
            // A port that is free at one address may be another program's at another.
            let system = (0..5).find_map(|_| {
                let metrics = bind_tcp(&[addresses(own, 0).unwrap()], DEFAULT_BACKLOG).ok()?;
                let port = metrics[0].local_addr().unwrap().port();
                let clients = [first, second].map(|host| addresses(host, port).unwrap());
                match bind_tcp(&clients, DEFAULT_BACKLOG).map_err(|error| error.kind()) {
                    Ok(_) => Some((port, false)),
                    Err(ErrorKind::AddrInUse) if says(port) => Some((port, true)),
                    Err(ErrorKind::AddrInUse) => None,
                    // A machine without IPv6 has fewer pairs.
                    Err(_) => Some((port, says(port))),
                }
            });
            let Some((port, in_use)) = system else {
                let bound = bind_tcp(&[addresses(own, 0).unwrap()], DEFAULT_BACKLOG);
                assert!(bound.is_err(), "{own} beside {first} and {second}");
                continue;
            };
            assert_eq!(says(port), in_use, "{own} beside {first} and {second}");
            refused += u32::from(in_use);
            fine += u32::from(!in_use);
        }
    }
    assert!(refused > 8 && fine > 8, "{refused} {fine}");
}

#[test]
fn a_server_without_listeners_has_the_default_one_unless_it_is_told_otherwise() {
    let mut config = Config::default();
    config.server.metrics = Some(MetricsAddress::Tcp("localhost".into(), DEFAULT_PORT));
    let run = Run { listens: true, ..Run::default() };
    assert_eq!(faults(&config, &run).len(), 1);
    assert!(faults(&config, &Run::default()).is_empty());
    config.listeners = vec![Listen::unix("socket".into())];
    assert!(faults(&config, &run).is_empty());
}

#[test]
#[cfg(target_os = "linux")]
fn a_vsock_of_all_contexts_is_one_of_each() {
    use super::super::config::VsockAddress;
    for (words, twice) in [
        (["1", "3:1"], true),
        (["3:1", "1"], true),
        (["3:1", "3:1"], true),
        (["3:1", "2:1"], false),
        (["1", "2"], false),
        (["0", "3:0"], false),
    ] {
        let listen = |word: &str| Listen::vsock(VsockAddress::parse(word).unwrap());
        let config = Config { listeners: words.map(listen).to_vec(), ..Config::default() };
        assert_eq!(!faults(&config, &Run::default()).is_empty(), twice, "{words:?}");
    }
}
