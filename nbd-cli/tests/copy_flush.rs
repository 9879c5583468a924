//! `nbd copy --verify` compares what the destination has, and not what is cached of it.

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use nbd_testkit::raw::{Cmd, Errno, Mode};
use nbd_testkit::scripted::{Answer, Export, Script, ScriptedServer};
use nbd_testkit::server::{Runtime, Setup, Transport};
use nbd_testkit::{LoopDevice, SmallFileSystem};
use support::{Folder, MIB, copy, noise, refused, try_copy};

#[test]
fn a_device_that_could_not_keep_everything_is_found_out() {
    if !LoopDevice::are_possible() {
        return;
    }
    let Some(small) = SmallFileSystem::mount(4) else { return };
    let backing = small.path("backing");
    std::fs::File::create(&backing).unwrap().set_len(16 << 20).unwrap();
    let folder = Folder::new();
    let source = folder.file("source", &noise(8 * MIB));
    let device = LoopDevice::on(&backing);
    for more in [&["--verify"][..], &["--verify", "--synchronous"], &["--flush"]] {
        let said = refused(&[more, &[&source, &device.path]].concat());
        let wanted = format!("cannot flush '{}': ", device.path);
        assert!(said.contains(&wanted), "{more:?}: {said}");
    }
    let server = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };
    let server = server.serving(&device.path);
    let said = refused(&["--verify", "-C", "1", &source, &server.uri("")]);
    assert!(said.contains("failed"), "{said}");
}

#[test]
fn space_is_set_aside_before_anything_is_written() {
    let Some(small) = SmallFileSystem::mount(4) else { return };
    let folder = Folder::new();
    let source = folder.file("source", &noise(8 * MIB));
    let to = small.path("to");
    let said = refused(&["--allocated", &source, to.to_str().unwrap()]);
    assert!(said.contains("cannot make room in"), "{said}");
    // It has a size by then, but nothing was copied to it.
    assert!(!to.exists());
}

#[test]
fn a_server_is_flushed_before_it_is_read_back() {
    let folder = Folder::new();
    let source = folder.file("source", &noise(MIB));
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        // One connection, of which every write is answered before the flush.
        let written = |script: Script| {
            (0..4).fold(script.enter(), |script, _| script.request(Cmd::WRITE).obey())
        };
        let script = || written(Script::new(Export::new(mode))).request(Cmd::FLUSH);
        let failing = match mode {
            Mode::Simple => Answer::simple(Errno::EIO, &[]),
            _ => Answer::error(Errno::EIO, "").done(),
        };
        let words = ["--verify", "-C", "1", "-S", "0", "--no-extents", &source];
        let server = ScriptedServer::unix([script().answer(failing).serve()]);
        let said = refused(&[&words[..], &[&server.endpoint().uri("")]].concat());
        assert!(said.contains("flush") || said.contains("FLUSH"), "{said}");
        server.finish();
        // This one then has something else than it was given.
        let server = ScriptedServer::unix([script().obey().serve()]);
        let finished = try_copy(&[&words[..], &[&server.endpoint().uri("")]].concat());
        assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
        assert!(finished.stderr.contains("differs"), "{}", finished.stderr);
        server.finish();
    }
}

/// What a server has lost with its connection comes to light by a flush alone.
#[test]
fn a_copy_that_may_reconnect_ends_with_a_flush_and_others_do_if_they_are_asked_to() {
    let folder = Folder::new();
    let source = folder.file("source", &noise(1000));
    for (more, flushes) in [(&["--retries=1"][..], true), (&["--flush"], true), (&[], false)] {
        let script = Script::new(Export::new(Mode::Extended)).enter();
        let script = script.request(Cmd::WRITE).obey();
        let script = if flushes { script.request(Cmd::FLUSH).obey() } else { script };
        let server = ScriptedServer::unix([script.header(Cmd::DISC)]);
        copy(&[more, &["-C", "1", &source, &server.endpoint().uri("")]].concat());
        assert!(server.finish().iter().all(|report| !report.left), "that was all of it");
    }
}
