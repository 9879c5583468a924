//! Servers that break their word, for the failures of clients. Each has a socket of its name in the folder.

use std::path::Path;

use nbd_testkit::raw::{BlockSize, Cmd, Errno, Mode, Opt, Rep, flag};
use nbd_testkit::scripted::{Answer, Export, OptionAnswer, Script, ScriptedServer};

fn export() -> Export {
    Export::new(Mode::Extended)
}

fn of_size(size: u64) -> Export {
    Export { size, ..export() }
}

fn without(flags: u16) -> Export {
    Export { flags: export().flags & !flags, ..export() }
}

/// Answers requests until the client disconnects.
fn serving(export: Export) -> Script {
    Script::new(export).enter().serve()
}

/// An export for clients of one connection.
fn alone() -> Export {
    without(flag::CAN_MULTI_CONN)
}

fn no(errno: Errno) -> Answer {
    Answer::error(errno, "the platter is scratched").done()
}

/// An item of a list.
fn listed(name: &[u8]) -> OptionAnswer {
    let length = u32::try_from(name.len()).expect("a short name").to_be_bytes();
    OptionAnswer::new(Rep::SERVER, &[&length[..], name].concat())
}

/// Lists an export, and does not show it.
fn half_a_list() -> Script {
    Script::new(export())
        .until(Opt::LIST)
        .answer_option(listed(b"b"))
        .answer_option(OptionAnswer::ack())
        .then_until(Opt::INFO)
        .answer_option(OptionAnswer::new(Rep::ERR_POLICY, b"ask the owner"))
        .go_on()
}

/// A context whose every sector is of another type.
fn many_types(count: u64) -> Script {
    let export = of_size(count * 512);
    let extents = Vec::from_iter((0..count).map(|status| (512, status)));
    let answer = Answer::status_ext(1, &extents).done();
    Script::new(export).enter().request(Cmd::BLOCK_STATUS).answer(answer).serve()
}

/// The servers, and what they play on each connection.
fn scripts() -> Vec<(&'static str, Vec<Script>)> {
    let refusing_option = |option, reply, text: &[u8]| {
        Script::new(export()).until(option).answer_option(OptionAnswer::new(reply, text)).go_on()
    };
    let coarse = BlockSize { minimum: 4096, preferred: 4096, maximum: 1 << 20 };
    let header = Script::new(export()).enter().header(Cmd::READ);
    vec![
        ("no-nbd", vec![Script::new(export()).send(b"220 mail.example.org ESMTP\r\n").silence()]),
        ("no-list", vec![refusing_option(Opt::LIST, Rep::ERR_POLICY, b"not for you")]),
        ("half-a-list", vec![half_a_list()]),
        ("no-entry", vec![refusing_option(Opt::GO, Rep::ERR_POLICY, b"the lid is closed")]),
        ("wants-tls", vec![refusing_option(Opt::GO, Rep::ERR_TLS_REQD, b"")]),
        ("hangs-up", vec![header.clone(), header.clone(), header]),
        ("silent", vec![Script::new(export()).enter().silence()]),
        (
            "full",
            vec![
                Script::new(alone()).enter().request(Cmd::WRITE).answer(no(Errno::ENOSPC)).serve(),
            ],
        ),
        (
            "no-flush",
            vec![
                Script::new(alone())
                    .enter()
                    .request(Cmd::WRITE)
                    .obey()
                    .request(Cmd::FLUSH)
                    .answer(no(Errno::EIO))
                    .serve(),
            ],
        ),
        ("one-connection", vec![serving(alone())]),
        ("two-sizes", vec![serving(export()), serving(of_size(2 << 20))]),
        ("too-large", vec![serving(of_size(1 << 63))]),
        ("coarse", vec![serving(Export { block_size: Some(coarse), ..of_size(512) })]),
        ("many-types", vec![many_types(2000)]),
        ("too-many-types", vec![many_types(70_000)]),
    ]
}

/// Starts them. They end when they are dropped.
pub(crate) fn start(folder: &Path) -> Vec<ScriptedServer> {
    let start = |(name, scripts)| {
        let server = ScriptedServer::unix(scripts);
        let socket = server.endpoint().socket_path().expect("a Unix socket");
        std::os::unix::fs::symlink(socket, folder.join(name)).expect("a new name");
        server
    };
    scripts().into_iter().map(start).collect()
}
